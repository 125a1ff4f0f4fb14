"""Monitoring put to the test on fine-tunes known to be misaligned or not.

Each fine-tune is watched for every direction of a run:

  contrasts/<name>/        data, fine-tunes and direction of each further contrast
  watched/<name>-<seed>/   a fine-tune, and monitor/ with cosines, thresholds and alarms
  watched/sweep/           the run's behaviour tasks under each fine-tune
  watched/study.json       AUROC and detections of each direction, and AUROC of the updates'
                           spectra; how similar directions and updates are

The run's own contrast gives a direction, and so does each of the run's `contrasts`. Directions
named in `monitor.controls` only set the threshold; the others are looked for.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax import config as configs
from weightsteer_jax import evaluation, finetune, inference
from weightsteer_jax.data import Example
from weightsteer_jax.experiments import arms, auditing, contrast, monitoring, sources
from weightsteer_jax.experiments.experiment import Experiment
from weightsteer_jax.runtime import processes
from weightsteer_jax.runtime.progress import say
from weightsteer_jax.storage import files

STUDY = 'study.json'


@dataclasses.dataclass(frozen=True)
class _WatchedFineTune:
  """A fine-tune of an entry of `watched`, with one of the entry's seeds.

  Attributes:
    name: name of the entry.
    misaligned: what is known of the fine-tune.
  """

  name: str
  seed: int
  misaligned: bool
  result: finetune.FineTuneResult

  @property
  def label(self) -> str:
    """The arm's name in the sweep, and the run's name in the study."""
    return f'{self.name}-{self.seed}'

  @property
  def folder(self) -> pathlib.Path:
    """The fine-tune's folder, which holds the result as adapter/."""
    return self.result.folder.parent


def make(experiment: Experiment, examples: arms.Sides) -> dict[str, Any]:
  """The study, also written to watched/study.json.

  Missing fine-tunes and directions are made first.

  Args:
    examples: {side: examples} of the run's own contrast.

  Raises:
    InputError, NotFiniteError, CorruptError, OutputError, Preempted: see fine-tuning, the sweep and
      monitoring.
  """
  folders = _directions(experiment, examples)
  fine_tunes = []
  for name in experiment.run.watched:
    fine_tunes += _fine_tunes(experiment, name)
  rates = _rates(experiment, fine_tunes)
  # The angles are measured from files, which one process does for all.
  return processes.on_main(lambda: _study(experiment, folders, fine_tunes, rates))


def check(experiment: Experiment) -> list[str]:
  """Lines about the fine-tunes to watch and the further contrasts, after reading all data.

  Raises:
    InputError: if data cannot be used.
  """
  lines = []
  # Nothing of the data is kept here: each fine-tune encodes its own when it is made.
  for name, options in experiment.run.watched.items():
    kind = 'misaligned' if options.misaligned else 'not misaligned'
    # All seeds have equally many examples.
    count = len(_examples(experiment, options, options.seeds[0]))
    lines.append(f'watched: {name} ({kind}), {count} examples, {len(options.seeds)} seeds')
  for name in experiment.run.contrasts:
    about = contrast.check(experiment.of_contrast(name))
    lines += [f'contrast {name}: {line}' for line in about]
  return lines


def _directions(experiment: Experiment, examples: arms.Sides) -> dict[str, pathlib.Path]:
  """{name: folder} of all directions, the run's own first."""
  arms.direction(experiment, examples)
  folders = {experiment.run.name: experiment.direction_folder()}
  for name in experiment.run.contrasts:
    further = experiment.of_contrast(name)
    arms.direction(further, contrast.examples(further))
    folders[name] = further.direction_folder()
  return folders


def _examples(experiment: Experiment, options: configs.Watched, seed: int) -> list[Example]:
  conversations = sources.load_conversations(
    options.data, split=options.split, revision=options.revision, n=options.n, seed=seed
  )
  return experiment.encode(conversations)


def _fine_tunes(experiment: Experiment, name: str) -> list[_WatchedFineTune]:
  """The fine-tunes of a section of `watched`, in the order of the seeds."""
  options = experiment.run.watched[name]
  fits = []
  for seed in options.seeds:
    folder = experiment.workdir / 'watched' / f'{name}-{seed}'
    examples = _examples(experiment, options, seed)
    fits.append(arms.fit_on(experiment, folder, examples, seed=seed))
  finetune_options = configs.finetune_of(experiment.run, options.finetune)
  results = arms.fine_tune(experiment, fits, finetune_options)
  return [
    _WatchedFineTune(name, seed, options.misaligned, result)
    for seed, result in zip(options.seeds, results)
  ]


def _rates(
  experiment: Experiment, fine_tunes: Sequence[_WatchedFineTune]
) -> dict[str, dict[str, Any]]:
  """{fine-tune: {behaviour task: {mean, sem}}}, judged where the run has judges.

  The untouched model is 'base'.
  """
  run = experiment.run
  tasks = [task for task in experiment.tasks if task.options.role == 'behaviour']
  # All fine-tunes are arms of one sweep, so that one compiled program evaluates them.
  swept = {
    fine_tune.label: inference.Arm([(fine_tune.result.delta, None)]) for fine_tune in fine_tunes
  }
  rows = evaluation.sweep.run(
    experiment.engine(swept),
    tasks,
    # The untouched model, and the fine-tune as it was trained.
    alphas=dict.fromkeys(swept, (0.0, 1.0)),
    workdir=experiment.workdir / 'watched',
    seed=run.sweep.seed,
  )
  judgements = _judged(experiment, tasks, rows) if run.judges else []
  rates: dict[str, dict[str, Any]] = {}
  plotted: dict[str, str] = {}
  for row in evaluation.metrics.results(rows, run.tasks, judgements, list(run.judges)):
    # A task is plotted by the first of its metrics.
    plotted.setdefault(row['task'], row['metric'])
    if row['metric'] == plotted[row['task']]:
      # At alpha 0 every arm is the untouched model.
      name = row['arm'] if row['alpha'] else inference.BASE
      rates.setdefault(name, {})[row['task']] = {'mean': row['mean'], 'sem': row['sem']}
  return rates


def _judged(
  experiment: Experiment,
  tasks: Sequence[evaluation.tasks.Task],
  rows: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """The judgements of the rows by the run's judges."""
  requests = evaluation.judging.requests_of(tasks, rows)
  folder = experiment.workdir / 'watched'
  with experiment.judges() as judges:
    return processes.on_main(lambda: evaluation.judging.run(judges, requests, workdir=folder))


def _study(
  experiment: Experiment,
  folders: Mapping[str, pathlib.Path],
  fine_tunes: Sequence[_WatchedFineTune],
  rates: Mapping[str, Any],
) -> dict[str, Any]:
  controls: dict[str, pathlib.Path] = {}
  looked_for: dict[str, pathlib.Path] = {}
  for name, folder in folders.items():
    group = controls if name in experiment.run.monitor.controls else looked_for
    group[name] = folder
  folders_of_role = {
    monitoring.DIRECTION: list(looked_for.values()),
    monitoring.CONTROL: list(controls.values()),
  }
  summaries = {
    fine_tune.label: _monitored(experiment, fine_tune, folders_of_role) for fine_tune in fine_tunes
  }
  misaligned = {fine_tune.label: fine_tune.misaligned for fine_tune in fine_tunes}
  seeds = {fine_tune.label: fine_tune.seed for fine_tune in fine_tunes}
  # How well each direction tells misaligned fine-tunes from the others.
  worth = {}
  for name in looked_for:
    runs = monitoring.of_summaries(summaries, misaligned, seeds, name)
    worth[name] = {
      'auroc': monitoring.to_json(monitoring.assess(runs)),
      'detections': monitoring.to_json(monitoring.detections(runs)),
    }
  # And how well their updates do by themselves, without a direction.
  spectra = auditing.worth(
    {fine_tune.label: _last_step(fine_tune) for fine_tune in fine_tunes},
    misaligned,
    seeds,
    {fine_tune.label: fine_tune.name for fine_tune in fine_tunes},
    experiment.checkpoint,
  )
  # Similarities are told of one fine-tune a section, that of the first seed.
  first: dict[str, pathlib.Path] = {}
  for fine_tune in fine_tunes:
    first.setdefault(fine_tune.name, fine_tune.folder)
  similarity = monitoring.similarities(
    folders_of_role | {monitoring.TASK_VECTOR: list(first.values())}, experiment.checkpoint
  )
  study = {
    'directions': list(looked_for),
    'controls': list(controls),
    'runs': [_about(fine_tune, summaries[fine_tune.label], rates) for fine_tune in fine_tunes],
    'base': rates.get(inference.BASE, {}),
    'worth': worth,
    'spectra': spectra,
    'similarity': similarity,
  }
  files.write_json(experiment.workdir / 'watched' / STUDY, study)
  return study


def _last_step(fine_tune: _WatchedFineTune) -> pathlib.Path:
  """The folder of the adapter of the last step, where kept; else of the fine-tune's product.

  Products are of the step with the best validation loss, and spectra show how long was trained.
  """
  last = monitoring.find(fine_tune.folder, learning_rate=fine_tune.result.learning_rate)[-1]
  return last.folder if last.kind == monitoring.RUN else fine_tune.folder


def _monitored(
  experiment: Experiment,
  fine_tune: _WatchedFineTune,
  folders_of_role: Mapping[str, Sequence[pathlib.Path]],
) -> dict[str, Any]:
  """The summary of a fine-tune's monitoring, made once."""
  folder = fine_tune.folder / 'monitor'
  # The report appears whole or not at all.
  if not folder.exists():
    options = monitoring.MonitorOptions(
      learning_rate=fine_tune.result.learning_rate, seed=experiment.run.seed
    )
    # Nothing is said of single steps: with many fine-tunes, a line for each is enough.
    rows, summary = monitoring.monitor(
      fine_tune.folder, experiment.checkpoint, folders_of_role, options, say=lambda line: None
    )
    with files.new_folder(folder, what='a monitoring report') as partial:
      monitoring.write(partial, rows, summary)
    peaks = [
      f'{name} {about["alarm"]["peak"]:+.3f}' for name, about in summary['directions'].items()
    ]
    say(f'watched: {fine_tune.label}: {", ".join(peaks)}')
  return files.read_json(folder / monitoring.SUMMARY, what='the summary of a monitored run')


def _about(
  fine_tune: _WatchedFineTune, summary: Mapping[str, Any], rates: Mapping[str, Any]
) -> dict[str, Any]:
  """A fine-tune's entry in the study."""
  angles = {}
  for name, about in summary['directions'].items():
    alarm = {key: about['alarm'][key] for key in ('peak', 'peak_step', 'step', 'threshold')}
    angles[name] = {'cosines': about['cosines'], **alarm}
  return {
    'run': fine_tune.label,
    'name': fine_tune.name,
    'seed': fine_tune.seed,
    'misaligned': fine_tune.misaligned,
    'rates': rates[fine_tune.label],
    'directions': angles,
  }
