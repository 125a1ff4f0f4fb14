"""Monitoring put to the test: fine-tunes known to be misaligned or not, each watched for every
direction of a run.

  contrasts/<name>/        data, fine-tunes and direction of each further contrast
  watched/<name>-<seed>/   a fine-tune, and monitor/ with its cosines, thresholds and alarms
  watched/sweep/           what each fine-tune does, by the run's behaviour tasks
  watched/study.json       AUROC and detections of each direction; how similar directions and
                           updates are

Directions are the run's own and those of its `contrasts`; of these, `monitor.controls` are no
directions to look for but controls.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax import config as configs
from weightsteer_jax import evaluation, finetune, inference
from weightsteer_jax.config import Run
from weightsteer_jax.data import Example
from weightsteer_jax.experiments import arms as methods
from weightsteer_jax.experiments import contrast, monitoring
from weightsteer_jax.experiments.experiment import (
  checkpoint_folder,
  direction_folder,
  encode,
  engine,
  forget_judges,
  judges_of,
  load_conversations,
  load_tasks,
  say,
  tokenizer_of,
)
from weightsteer_jax.runtime import processes
from weightsteer_jax.storage import files

Path = str | pathlib.Path

STUDY = 'study.json'


@dataclasses.dataclass(frozen=True)
class _Watched:
  """A fine-tune of the study, one of several seeds."""

  name: str  # of the config's section
  seed: int
  misaligned: bool
  result: finetune.FineTuneResult

  @property
  def label(self) -> str:
    return f'{self.name}-{self.seed}'

  @property
  def folder(self) -> pathlib.Path:
    return self.result.folder.parent


def make(run: Run, workdir: Path, examples: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
  """The study, written to watched/study.json; what it needs and is not there is made first.

  Args:
    examples: of both sides of the run's own contrast.

  Raises:
    InputError, NotFiniteError, CorruptError, OutputError, Preempted: as fine-tuning, the sweep and
    monitoring do.
  """
  workdir = pathlib.Path(workdir)
  folders = _directions(run, workdir, examples)
  fine_tunes = [one for name in run.watched for one in _fine_tunes(run, workdir, name)]
  rates = _rates(run, workdir, fine_tunes)
  return processes.on_main(lambda: _study(run, workdir, folders, fine_tunes, rates))


def check(run: Run) -> list[str]:
  """What would be watched, in words; the data of all of it was read.

  Raises:
    InputError: data that cannot be used.
  """
  told = []
  for name, options in run.watched.items():
    kind = 'misaligned' if options.misaligned else 'not misaligned'
    told.append(
      f'watched: {name} ({kind}), {len(_examples(run, options, options.seeds[0]))} '
      f'examples, {len(options.seeds)} seeds'
    )
  for name in run.contrasts:
    told.append(f'contrast {name}: {contrast.check(_sub_run(run, name), "")}')
  return told


def _sub_run(run: Run, name: str) -> Run:
  """The run of one of the further contrasts."""
  return dataclasses.replace(run, name=name, data=run.contrasts[name])


def _directions(
  run: Run, workdir: pathlib.Path, examples: Mapping[str, Sequence[Example]]
) -> dict[str, pathlib.Path]:
  """{name: folder} of all directions, the run's own first."""
  methods.direction(run, workdir, examples)
  folders = {run.name: direction_folder(run, workdir)}
  for name in run.contrasts:
    sub, folder = _sub_run(run, name), workdir / 'contrasts' / name
    sides = {
      side: encode(sub, tokenizer_of(run.model), rows)
      for side, rows in contrast.make(sub, folder).items()
    }
    methods.direction(sub, folder, sides)
    folders[name] = direction_folder(sub, folder)
  return folders


def _examples(run: Run, options: configs.Watched, seed: int) -> list[Example]:
  rows = load_conversations(
    options.data, split=options.split, revision=options.revision, n=options.n, seed=seed
  )
  return encode(run, tokenizer_of(run.model), rows)


def _fine_tunes(run: Run, workdir: pathlib.Path, name: str) -> list[_Watched]:
  """Those of all seeds."""
  options, fits = run.watched[name], []
  for seed in options.seeds:
    folder = workdir / 'watched' / f'{name}-{seed}'
    fits.append(
      methods.fit_on(dataclasses.replace(run, seed=seed), folder, _examples(run, options, seed))
    )
  results = methods.fine_tune(run, fits, configs.finetune_of(run, options.finetune))
  return [
    _Watched(name, seed, options.misaligned, result) for seed, result in zip(options.seeds, results)
  ]


def _rates(
  run: Run, workdir: pathlib.Path, fine_tunes: Sequence[_Watched]
) -> dict[str, dict[str, Any]]:
  """{fine-tune: {behaviour task: {mean, sem}}}, that of the untouched model as 'base'; judged,
  where the run has judges.
  """
  tasks = [task for task in load_tasks(run.tasks) if task.options.role == 'behaviour']
  arms = {one.label: inference.Arm([(one.result.delta, None)]) for one in fine_tunes}
  rows = evaluation.sweep.run(
    engine(run, arms),
    tasks,
    alphas=dict.fromkeys(arms, (0.0, 1.0)),
    workdir=workdir / 'watched',
    seed=run.sweep.seed,
  )
  judgements = processes.on_main(lambda: _judged(run, workdir, tasks, rows))
  forget_judges(run)
  found: dict[str, dict[str, Any]] = {}
  plotted = {}
  for row in evaluation.metrics.results(rows, run.tasks, judgements, list(run.judges)):
    plotted.setdefault(row['task'], row['metric'])
    if row['metric'] == plotted[row['task']]:
      name = row['arm'] if row['alpha'] else inference.BASE
      found.setdefault(name, {})[row['task']] = {key: row[key] for key in ('mean', 'sem')}
  return found


def _judged(
  run: Run,
  workdir: pathlib.Path,
  tasks: Sequence[evaluation.tasks.Task],
  rows: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """What the run's judges say of the rows."""
  if not run.judges:
    return []
  return evaluation.judging.run(
    judges_of(run, workdir),
    evaluation.judging.requests_of(tasks, rows),
    workdir=workdir / 'watched',
  )


def _study(
  run: Run,
  workdir: pathlib.Path,
  folders: Mapping[str, pathlib.Path],
  fine_tunes: Sequence[_Watched],
  rates: Mapping[str, Any],
) -> dict[str, Any]:
  base = checkpoint_folder(run.model)
  controls = [folder for name, folder in folders.items() if name in run.monitor.controls]
  looked_for = {
    name: folder for name, folder in folders.items() if name not in run.monitor.controls
  }
  sources = {monitoring.DIRECTION: list(looked_for.values()), monitoring.CONTROL: controls}
  summaries = {one.label: _monitored(one, base, sources, run) for one in fine_tunes}
  misaligned, seeds = (
    {one.label: getattr(one, field) for one in fine_tunes} for field in ('misaligned', 'seed')
  )
  worth = {}
  for name in looked_for:
    runs = monitoring.of_summaries(summaries, misaligned, seeds, name)
    worth[name] = {
      'auroc': monitoring.to_json(monitoring.assess(runs)),
      'detections': monitoring.to_json(monitoring.detections(runs)),
    }
  vectors = {name: fine_tunes_of[0].folder for name, fine_tunes_of in _by_name(fine_tunes).items()}
  similar = monitoring.similarities(
    {
      monitoring.DIRECTION: list(looked_for.values()),
      monitoring.CONTROL: controls,
      monitoring.TASK_VECTOR: list(vectors.values()),
    },
    base,
  )
  study = {
    'directions': list(looked_for),
    'controls': [name for name in folders if name in run.monitor.controls],
    'runs': [_about(one, summaries[one.label], rates) for one in fine_tunes],
    'base': rates.get(inference.BASE, {}),
    'worth': worth,
    'similarity': similar,
  }
  files.write_json(workdir / 'watched' / STUDY, study)
  return study


def _by_name(fine_tunes: Sequence[_Watched]) -> dict[str, list[_Watched]]:
  found: dict[str, list[_Watched]] = {}
  for one in fine_tunes:
    found.setdefault(one.name, []).append(one)
  return found


def _monitored(
  one: _Watched, base: pathlib.Path, sources: Mapping[str, Sequence[pathlib.Path]], run: Run
) -> dict[str, Any]:
  """The summary of a fine-tune's monitoring, made once."""
  folder = one.folder / 'monitor'
  if not folder.exists():
    options = monitoring.Options(learning_rate=one.result.learning_rate, seed=run.seed)
    rows, summary = monitoring.monitor(one.folder, base, sources, options, say=lambda line: None)
    with files.new_folder(folder, what='a monitoring report') as partial:
      monitoring.write(partial, rows, summary)
    say(
      f'watched: {one.label}: '
      + ', '.join(
        f'{name} {found["alarm"]["peak"]:+.3f}' for name, found in summary['directions'].items()
      )
    )
  return files.read_json(folder / monitoring.SUMMARY, what='the summary of a monitored run')


def _about(one: _Watched, summary: Mapping[str, Any], rates: Mapping[str, Any]) -> dict[str, Any]:
  found = {
    name: {
      'cosines': about['cosines'],
      **{key: about['alarm'][key] for key in ('peak', 'peak_step', 'step', 'threshold')},
    }
    for name, about in summary['directions'].items()
  }
  return {
    'run': one.label,
    'name': one.name,
    'seed': one.seed,
    'misaligned': one.misaligned,
    'rates': rates[one.label],
    'directions': found,
  }
