"""On what, when and how long a run ran, in words for the head of its page."""

from collections.abc import Mapping
from typing import Any

from weightsteer_jax.experiments.report.study import Study

# Packages whose versions stand in the head; config.json has all.
PACKAGES = ('weightsteer_jax', 'jax')


def of_run(sweep: Study) -> list[str]:
  """What the workdir tells of model, day, devices, duration and versions, some words each."""
  versions = _mapping(sweep.config.get('versions'))
  named = [f'{name} {versions[name]}' for name in PACKAGES if versions.get(name)]
  facts = [
    model(sweep.config),
    day(sweep),
    devices(sweep),
    took(sweep),
    ', '.join(named),
  ]
  # Workdirs of earlier versions tell less.
  return [fact for fact in facts if fact]


def model(config: Mapping[str, Any]) -> str:
  """The model of a config and the precision of its weights; '' where the config has none."""
  options = _mapping(config.get('model'))
  source = options.get('source')
  if not source:
    return ''
  return f'{source}, {options["dtype"]}' if options.get('dtype') else str(source)


def day(sweep: Study) -> str:
  """The day on which the last stage began, or without times that of the first start."""
  days = [str(line.get('began', ''))[:10] for line in sweep.times]
  return max(days, default='') or str(sweep.config.get('chat_date') or '')


def devices(sweep: Study) -> str:
  """The devices of the stages, as in 'on 8 x TPU v5 lite'; '' where not on record."""
  # A run may have gone on elsewhere: each kind once, in order.
  named = dict.fromkeys(str(line['device']) for line in sweep.times if line.get('device'))
  return f'on {", then ".join(named)}' if named else ''


def took(sweep: Study) -> str:
  """How long the finished stages took, together and each; '' where not on record."""
  by_stage = _by_stage(sweep)
  if not by_stage:
    return ''
  each = [f'{stage} {duration(spent)}' for stage, spent in by_stage.items()]
  return f'{duration(seconds(sweep))} ({", ".join(each)})'


def seconds(sweep: Study) -> float:
  """How long the finished stages took together; 0 where not on record."""
  return sum(_by_stage(sweep).values())


def _by_stage(sweep: Study) -> dict[str, float]:
  """{stage: seconds}, all starts of a stage added up."""
  by_stage: dict[str, float] = {}
  for line in sweep.times:
    spent = line.get('seconds')
    # The file is foreign: what is no number is no time.
    if isinstance(spent, (int, float)):
      stage = str(line.get('stage'))
      by_stage[stage] = by_stage.get(stage, 0.0) + spent
  return by_stage


def duration(seconds: float) -> str:
  """A time in words.

  >>> [duration(seconds) for seconds in (0.2, 51.7, 119, 5400, 200_000)]
  ['<1 s', '52 s', '2 min', '1.5 h', '2.3 days']
  """
  if seconds < 1:
    return '<1 s'
  if seconds < 100:
    return f'{seconds:.0f} s'
  hours = seconds / 3600
  if hours < 1:
    return f'{seconds / 60:.0f} min'
  return f'{hours:.1f} h' if hours < 48 else f'{hours / 24:.1f} days'


def _mapping(value: Any) -> Mapping[str, Any]:
  return value if isinstance(value, Mapping) else {}
