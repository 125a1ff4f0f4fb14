"""The method as straight-line programs over a workdir, each a function of an Experiment.

  config.json                settings of the run, and versions of the packages
  log.txt                    what the run has said, with the time of each line
  answers/                   the model's own answers to the questions, and judgements of the answers
  data/                      the contrast made of the answers: positive.jsonl and negative.jsonl;
                             evaluation.jsonl has the questions kept apart
  finetune/<side>/           two fine-tunes of the same base, alike but for the data
  directions/<name>/         difference of the two fine-tunes, the direction
  sweep/rows.jsonl           a row per (arm, alpha, task, example, sample)
  sweep/tensorboard/         the means and errors of the rows, alpha in thousandths as the step
  sweep/judgements.jsonl     judgements of the rows, where the config has judges
  sweep/grids.jsonl          the sweeps that the rows come from
  results.jsonl              means, errors and intervals of the rows, also as results.csv and
                             results.parquet
  agreement.jsonl            how far judges agree, where the config has judges
  contrasts/, watched/       further directions, and fine-tunes watched for all directions, where
                             the config has some (see monitor_study.py)
  report/                    the page, the figures, the table
  times.jsonl                how long each stage took, when, and on what
  persona_vectors/, activations/
                             vectors, and the selection of a layer, where the config has arms of
                             activation steering (see arms.py)
  judges/                    answers of judges behind an endpoint, which are never asked for twice
  profile/                   a trace, where --profile asks for one

Each stage reads the files of earlier stages, continues after an interruption, and does nothing when
already finished.
"""

import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from weightsteer_jax import config as configs
from weightsteer_jax import directions, evaluation, inference, models
from weightsteer_jax.config import Run
from weightsteer_jax.data import Conversation, bindings, templates
from weightsteer_jax.data.pairs import SIDES
from weightsteer_jax.experiments import (
  arms,
  chat_date,
  monitor_study,
  sources,
  swept_settings,
  times,
)
from weightsteer_jax.experiments import contrast as contrasts
from weightsteer_jax.experiments.experiment import Experiment
from weightsteer_jax.finetune import FineTuneResult
from weightsteer_jax.runtime import log, processes, redaction, tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.progress import say
from weightsteer_jax.storage import files
from weightsteer_jax.storage.versions import versions

Path = str | pathlib.Path

# Characters of a key; a shorter word may stand in a config by chance.
SHORTEST_KEY = 8
# The packages that compute, whose versions go into config.json.
PACKAGES = (
  'weightsteer_jax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'transformers',
  'numpy',
)
# A workdir may be swept again with other tasks or strengths; what its fine-tunes are made from may
# not change under them.
FIXED = ('seed', 'model', 'data', 'finetune')
# A folder that holds one of these is a workdir, even where config.json is not there.
MARKS = ('finetune', 'sweep')
LOG = 'log.txt'
# The stages of a whole run in the words of its progress.
CONTRAST = 'the contrast'
ARMS = 'fine-tunes and directions'
SWEEP = 'the sweep'
JUDGES = 'the judges'
WATCHED = 'the watched fine-tunes'
REPORT = 'the report'
# All that a workdir holds.
PARTS = (
  *MARKS,
  'answers',
  'data',
  'activations',
  'persona_vectors',
  'directions',
  'judges',
  'contrasts',
  'watched',
  'report',
  'profile',
  'results.jsonl',
  'results.csv',
  'results.parquet',
  'agreement.jsonl',
  LOG,
  times.NAME,
)


def steer(experiment: Experiment, *, command: str = '') -> pathlib.Path:
  """The report's page of a whole run, from a checkpoint to a steered model.

  Args:
    command: the command line, recorded in config.json.
  """
  with experiment.held():
    return _steer(experiment, command)


def _steer(experiment: Experiment, command: str) -> pathlib.Path:
  started = time.monotonic()
  begin(experiment, command=command)
  enter = _counted(experiment.run)
  enter(CONTRAST)
  contrast(experiment)
  # Fine-tunes, directions and vectors are made by the sweep, which knows what its arms need.
  sweep(experiment, enter=enter)
  # Answers that no rule can score have no numbers before a judge was asked.
  if experiment.run.judges:
    enter(JUDGES)
    judge(experiment)
  if experiment.run.watched:
    enter(WATCHED)
    watch(experiment)
  enter(REPORT)
  page = report(experiment)
  say(f'done in {time.monotonic() - started:.0f} s')
  return page


def _counted(run: Run) -> Callable[[str], None]:
  """A function that says which stage of a whole run begins, and of how many."""
  names = [CONTRAST, ARMS, SWEEP]
  names += [JUDGES] if run.judges else []
  names += [WATCHED] if run.watched else []
  names.append(REPORT)
  return lambda name: say(f'stage {names.index(name) + 1} of {len(names)}: {name}')


@jax.profiler.annotate_function
def check(experiment: Experiment, *, to: Path = '') -> None:
  """Checks the run before anything is computed, and says what `steer` would do.

  Args:
    to: address to print as the place of the files, where the workdir is the staging folder of a
      URL; '' is the workdir.

  Raises:
    InputError: if something is wrong with the config, the workdir, the model, the data or the
      tasks.
  """
  run = experiment.run
  # What takes no time comes first: the workdir, then the model's config, without weights.
  _refuse_other_run(run, experiment.workdir)
  config, family = models.load_config(experiment.checkpoint)
  platform = experiment.layouts.train.mesh.devices.flat[0].platform
  models.with_kernel(config, run.model.attention, platform=platform, dtype=run.model.dtype)
  tasks = experiment.tasks
  # An endpoint needs a key in the environment. No judge loads a model here.
  with experiment.judges() as judges:
    for each_judge in judges:
      each_judge.check(())
  _check_judges_arguments(experiment)
  about = contrasts.check(experiment)
  millions = tree.count(models.abstract_params(config)) / 1e6
  say(
    f'model: {run.model.source} ({family.model_type}, {millions:.1f}M parameters, '
    f'{run.model.dtype})'
  )
  _say_binding(experiment)
  for line in about:
    say(f'data: {line}')
  say(
    f'fine-tunes: {run.finetune.kind}, {len(run.finetune.learning_rates)} learning rate(s), '
    'both sides'
  )
  # Every item and answer must fit the model's positions, under the longest of the system prompts.
  notes = evaluation.sweep.check(
    [*tasks, *experiment.validation_tasks],
    experiment.tokenizer,
    config,
    system_prompt=_longest_prompt(run),
  )
  for note in notes:
    say(note)
  if run.task_model.data:
    count = len(arms.task_examples(experiment))
    say(f'task: {count} examples of {run.task_model.data}, to be fine-tuned on first')
  if run.arms:
    say('arms: ' + ', '.join(f'{name} ({arm.kind})' for name, arm in run.arms.items()))
  for line in (*monitor_study.check(experiment), *experiment.layouts.words):
    say(line)
  items = ', '.join(f'{task.name} ({len(task.items)} items)' for task in tasks)
  say(f'sweep: {len(run.sweep.alphas)} alphas, {items}')
  say(f'would write to {to or experiment.workdir}')


@jax.profiler.annotate_function
def begin(experiment: Experiment, *, command: str = '') -> None:
  """Makes the workdir this run's: checks everything, then writes config.json.

  Where the workdir has results, its config.json says what these were made with, and is left for the
  sweep to replace, together with them.

  Raises:
    InputError: see `check`.
    Busy: if another process writes to the workdir; nothing else is looked at.
  """
  with experiment.held():
    _begin(experiment, command)


def _begin(experiment: Experiment, command: str) -> None:
  check(experiment)
  _refuse_keys(experiment.run, command)
  # Weights that cannot be read should leave no workdir behind.
  experiment.model(experiment.layouts.train)
  settings = configs.to_dict(experiment.run)
  settings[chat_date.KEY] = experiment.chat_date
  record = settings | {
    'command': redaction.redact(command),
    'versions': versions(*PACKAGES),
    # What every conversation holds beside its messages, for readers of the page.
    'chat_template': {
      'told': bindings.bound(experiment.tokenizer).to_json(),
      'writes': templates.words_of_its_own(experiment.tokenizer),
    },
  }

  experiment.record = record

  def write() -> None:
    swept_settings.adopt_rows(experiment.workdir)
    if not swept_settings.describes_results(experiment.workdir):
      files.write_json(experiment.workdir / 'config.json', record)
    log.write_to(experiment.workdir / LOG)

  processes.on_main(write)


def _refuse_keys(run: Run, command: str) -> None:
  """Raises InputError if the config or the command holds the key of a judge in the environment."""
  # As JSON, so that a key in a text of JSON is found too.
  written = json.dumps([configs.to_dict(run), command])
  for judge in run.judges.values():
    if not isinstance(judge, configs.EndpointJudge):
      continue
    key = os.environ.get(judge.key_variable, '').strip()
    # Endpoints that want no key are given any short word.
    if len(key) >= SHORTEST_KEY and redaction.spellings(key).search(written):
      raise InputError(
        f'the config or the command line holds the key that {judge.key_variable} has in the '
        'environment, and both are written to the workdir: take it out'
      )


@times.kept
@jax.profiler.annotate_function
def contrast(experiment: Experiment) -> dict[str, list[Conversation]]:
  """The conversations of both sides, made if need be and kept (see contrast.py)."""
  return contrasts.make(experiment)


def data(experiment: Experiment, *, command: str = '') -> None:
  """Makes or reads the contrast alone, and says how many examples each side has."""
  begin(experiment, command=command)
  conversations = contrast(experiment)
  options = experiment.run.data
  if options.positive:
    where = f'{options.positive} and {options.negative}'
  else:
    where = str(experiment.workdir / 'data')
  positive, negative = (len(conversations[side]) for side in SIDES)
  say(f'data: {positive} and {negative} examples in {where}')


@times.kept
@jax.profiler.annotate_function
def finetune(experiment: Experiment, *, sides: Sequence[str] = SIDES) -> dict[str, FineTuneResult]:
  """{side: fine-tune} of the given sides.

  Both sides start from the same factors and see their data in the same order.
  """
  return arms.fine_tune_sides(experiment, contrasts.examples(experiment), only=sides)


@times.kept
@jax.profiler.annotate_function
def direction(experiment: Experiment) -> directions.Direction:
  """The direction of the run, positive minus negative, made once and kept."""
  return arms.direction(experiment, contrasts.examples(experiment))


@times.kept
@jax.profiler.annotate_function
def sweep(
  experiment: Experiment, *, direction: Path = '', enter: Callable[[str], None] = lambda name: None
) -> None:
  """Evaluates every arm at every alpha on every task, and writes results.jsonl.

  Missing fine-tunes, directions and vectors are made first; rows in the workdir are kept.

  Args:
    direction: folder of a direction to sweep alone, in place of the run's arms.
    enter: called with ARMS and SWEEP where these begin.

  Raises:
    InputError: if the config has no tasks; see also `arms.make` and the sweep.
  """
  run = experiment.run
  if not run.tasks:
    raise InputError(
      "the config has no tasks to sweep: add some, as in config.tasks.<name> = "
      "task(items=..., role=...)"
    )
  # Tasks first: what is wrong with an item should not cost a fine-tune.
  tasks = experiment.tasks
  enter(ARMS)
  if direction:
    steering = directions.load(sources.direction_folder(direction))
    directions.check_base(steering, experiment.model(experiment.layouts.evaluate))
    arm = inference.Arm([(steering.delta, None)])
    swept = {arms.WEIGHTS: arms.SweptArm(arm, run.sweep.alphas)}
  else:
    swept = arms.make(experiment, contrasts.examples(experiment))
  enter(SWEEP)
  # Rows of one sweep share batches, whatever their arm and alpha.
  rows = evaluation.sweep.run(
    experiment.engine({name: each.arm for name, each in swept.items()}),
    tasks,
    alphas={name: each.alphas for name, each in swept.items()},
    workdir=experiment.workdir,
    seed=run.sweep.seed,
    command=experiment.record.get('command', ''),
    settings=swept_settings.strengths(run),
  )
  for line in evaluation.reading.thinking.cut_words(rows, run.tasks):
    say(f'sweep: {line}')
  # The results read all rows of the workdir again: memory holds them once.
  del rows

  # Judgements of an earlier run count too, where the workdir holds some.
  def write() -> None:
    results = evaluation.metrics.write(experiment.workdir, run.tasks, list(run.judges))
    swept_settings.write(experiment.workdir, experiment.record)
    evaluation.scalars.write(experiment.workdir, results)

  processes.on_main(write)


@times.kept
@jax.profiler.annotate_function
def judge(experiment: Experiment) -> None:
  """Asks the judges about the sweep's rows, and writes results.jsonl.

  Earlier judgements are kept, and not asked for again.

  Raises:
    InputError: if the config has no judges, or the workdir no rows.
  """
  run = experiment.run
  if not run.judges:
    raise InputError(
      "the config has no judges: add some, as in config.judges.<name> = "
      "judge(kind='endpoint', model=...)"
    )
  rows = list(evaluation.rows.read(experiment.workdir / 'sweep' / 'rows.jsonl'))
  requests = evaluation.judging.requests_of(experiment.tasks, rows)
  say(f'judge: {len(requests)} questions about {len(rows)} rows, to {", ".join(run.judges)}')
  if not requests:
    kinds = sorted({task.options.kind for task in experiment.tasks})
    say(f'judge: rules score every task here (kinds: {", ".join(kinds)}), so nobody is asked')
  # One process asks; the others wait.
  with experiment.judges() as judges:
    processes.on_main(lambda: _ask(experiment, judges, requests))


@times.kept
@jax.profiler.annotate_function
def watch(experiment: Experiment) -> None:
  """Measures the watched fine-tunes against all directions, and writes a page of the study."""
  # matplotlib takes a second to import.
  from weightsteer_jax.experiments.report import watched_page

  study = monitor_study.make(experiment, contrasts.examples(experiment))
  for line in watched_page.lines(study):
    say(line)
  run = experiment.run
  page = experiment.workdir / 'report' / 'watched.html'
  processes.on_main(lambda: watched_page.write(page, study, title=run.description or run.name))
  say(f'report: {page}')


@jax.profiler.annotate_function
def report(experiment: Experiment) -> pathlib.Path:
  """The report's page, from the files of the workdir; prints the table and the pick."""
  # matplotlib takes a second to import.
  from weightsteer_jax.experiments.report import comparison, page, pick, study, tables

  workdir = experiment.workdir
  options = experiment.run.sweep
  behaviour = options.pick_by or None
  rule = comparison.Rule(options.tolerance, options.capability_rule, options.capability_evidence)

  def write():
    return str(page.write(workdir, behaviour=behaviour, rule=rule))

  path = pathlib.Path(processes.on_main(write))
  sweep = study.read(workdir)
  choices = pick.choose_all(sweep, behaviour=behaviour, rule=rule)
  for choice in choices:
    say(tables.text(choice, sweep.results))
  say(f'report: {path}')
  return path


def _ask(
  experiment: Experiment,
  judges: Sequence[evaluation.judges.Judge],
  requests: Sequence[evaluation.JudgeRequest],
) -> None:
  """Asks the judges, says the outcome, and writes agreement and results."""
  workdir = experiment.workdir
  run = experiment.run
  judgements = evaluation.judging.run(judges, requests, workdir=workdir)
  for each in judges:
    if each.summary():
      say(f'judge: {each.name}: {each.summary()}')
  for line in evaluation.judging.words(judgements):
    say(f'judge: {line}')
  for line in evaluation.agreement.words(judgements):
    say(f'judge: {line}')
  files.write_jsonl(workdir / 'agreement.jsonl', evaluation.agreement.agreement(judgements))
  evaluation.metrics.write(workdir, run.tasks, list(run.judges))


def _say_binding(experiment: Experiment) -> None:
  """Says what the chat template is told beside the messages."""
  told = bindings.bound(experiment.tokenizer)
  note = ''
  if told.date and chat_date.is_unrecorded(experiment.workdir):
    note = (
      ' (of the oldest file in the workdir, which has no date on record; if the run began on '
      'another day, set model.chat_date)'
    )
  if told.words():
    say(f'chat template: {told.words()}{note}')
  words = templates.words_of_its_own(experiment.tokenizer)
  # Words that the run itself has set need no warning.
  if words and not told.system_prompt:
    say(
      f'chat template: it writes {words!r} before questions without a system prompt, in training '
      'and evaluation alike: model.system_prompt or model.chat_template_args change that'
    )


def _check_judges_arguments(experiment: Experiment) -> None:
  """Raises InputError if a local judge's chat template does not take the judge's arguments."""
  for options in experiment.run.judges.values():
    # Without arguments nothing can be wrong, and a judge's files are not fetched yet.
    if isinstance(options, configs.ModelJudge) and options.chat_template_args:
      source = sources.folder_of(options.model)
      folder, _ = models.resolve(source, revision=options.revision or None)
      experiment.judge_tokenizer(options, folder)


def _longest_prompt(run: Run) -> str:
  """The longest system prompt of an arm; '' without prompts."""
  # In characters: a bound that needs no tokenizer.
  prompts = ['']
  for arm in run.arms.values():
    if isinstance(arm, configs.PromptsArm):
      prompts += [*arm.positive_prompts, *arm.negative_prompts]
  return max(prompts, key=len)


def _refuse_other_run(run: Run, workdir: pathlib.Path) -> None:
  """Raises InputError if the folder holds something else than this run's files."""
  path = workdir / 'config.json'
  if not path.exists():
    entries = set()
    if workdir.is_dir():
      entries = {entry.name for entry in workdir.iterdir() if entry.name[0] != '.'}
    # 'data' and 'report' alone do not count: anybody's folder may hold these.
    is_workdir = entries <= {*PARTS} and entries & {*MARKS}
    if entries and not is_workdir:
      raise InputError(f'{workdir} exists and is no workdir of a run: name another --workdir')
    return
  there = _fixed_settings(files.read_json(path, what='the config of a run'))
  # Through JSON like the settings there: tuples are lists in both.
  here = _fixed_settings(json.loads(json.dumps(configs.to_dict(run))))
  # A key that an earlier version did not have stands for what that version did: the default.
  there = _fixed_settings(json.loads(json.dumps(configs.to_dict(Run())))) | there
  differing = [
    f'  {key}: {there[key]!r} there, {here[key]!r} now' for key in here if there[key] != here[key]
  ]
  if differing:
    about = f'{workdir} holds a run with other settings; name another --workdir. What differs:'
    raise InputError('\n'.join([about, *differing]))


def _fixed_settings(record: Mapping[str, Any]) -> dict[str, Any]:
  """{'section.key': value} of the FIXED sections."""
  sections = {section: record[section] for section in FIXED}
  model = dict(sections['model'])
  # Free keys are compared as one value: an argument that is gone is another setting too.
  arguments = model.pop('chat_template_args', {})
  # Compared with the date on record, which may be that of the first start (see chat_date.py).
  model.pop(chat_date.KEY, None)
  return tree.dotted({**sections, 'model': model}) | {'model.chat_template_args': arguments}
