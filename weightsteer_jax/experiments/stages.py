"""The method as straight-line programs over a workdir.

  config.json                what is run, and with which versions
  answers/                   the model's own answers to the questions, and what a judge said of
                             them, as they come
  data/                      the contrast made of them: positive.jsonl and negative.jsonl;
                             evaluation.jsonl has the questions kept apart
  finetune/<side>/           two fine-tunes of one base, alike but for their data
  directions/<name>/         their difference, the direction
  sweep/rows.jsonl           one row per (arm, alpha, task, example, sample)
  sweep/judgements.jsonl     what judges say of the rows, where the config has judges
  results.jsonl              means and standard errors of the rows
  agreement.jsonl            how far judges agree, where the config has judges
  contrasts/, watched/       further directions, and fine-tunes watched for all of them, where the
  config has some (see monitor_study.py)
  report/                    the page, the figures, the table

Each stage reads what the ones before it wrote, continues where it stopped, and does nothing where
it has finished.
"""

import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from weightsteer_jax import config as configs
from weightsteer_jax import data as datas
from weightsteer_jax import directions, evaluation, inference, models
from weightsteer_jax import export as exports
from weightsteer_jax import finetune as finetuning
from weightsteer_jax.config import ModelChoice, Run
from weightsteer_jax.data import Conversation, Example
from weightsteer_jax.experiments import arms as methods
from weightsteer_jax.experiments import contrast as contrasts
from weightsteer_jax.experiments import monitor_study, monitoring
from weightsteer_jax.experiments.arms import SIDES
from weightsteer_jax.experiments.experiment import (
  checkpoint_folder,
  encode,
  engine,
  folder_of,
  forget_judges,
  judges_of,
  layouts_of,
  load_model,
  load_tasks,
  say,
  tokenizer_of,
)
from weightsteer_jax.runtime import processes, tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import files
from weightsteer_jax.storage.versions import versions

Path = str | pathlib.Path

ARM = 'weights'  # the direction, applied at alpha
# What computes, by version in config.json.
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
# What a workdir may hold; with one of the first two it is taken for one even where config.json is
# not there.
PARTS = (
  'finetune',
  'sweep',
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
  'agreement.jsonl',
)


def steer(run: Run, workdir: Path, *, command: str = '') -> pathlib.Path:
  """The report's page of a whole run: data, what its arms are made from (fine-tunes, directions), a
  sweep over alpha.
  """
  started = time.monotonic()
  begin(run, workdir, command=command)
  contrast(run, workdir)
  sweep(run, workdir)
  if run.judges:
    judge(run, workdir)
  if run.watched:
    watch(run, workdir)
  page = report(run, workdir)
  say(f'done in {time.monotonic() - started:.0f} s')
  return page


@jax.profiler.annotate_function
def check(run: Run, workdir: Path, *, to: Path = '') -> None:
  """Checks all that can be checked before anything is computed, and says what `steer` would do.

  Args:
    to: how the workdir is to be called, if it stands for another one.

  Raises:
    InputError: what is wrong with the config, the workdir, the model, the data or the tasks.
  """
  _refuse_other_run(run, pathlib.Path(workdir))
  folder = checkpoint_folder(run.model)
  config, family = models.load_config(folder)
  platform = layouts_of(run).train.mesh.devices.flat[0].platform
  models.with_kernel(config, run.model.attention, platform=platform, dtype=run.model.dtype)
  tasks = load_tasks(run.tasks)
  for judge in judges_of(run, workdir):
    judge.check(())
  about = contrasts.check(run, workdir)
  say(
    f'model: {run.model.source} ({family.model_type}, '
    f'{tree.count(models.abstract_params(config)) / 1e6:.1f}M parameters, {run.model.dtype})'
  )
  say(f'data: {about}')
  say(
    f'fine-tunes: {run.finetune.kind}, {len(run.finetune.learning_rates)} learning rate(s), '
    'both sides'
  )
  texts = [
    text for arm in run.arms.values() for text in (*arm.positive_prompts, *arm.negative_prompts)
  ]
  evaluation.sweep.check(
    [*tasks, *load_tasks(run.validation)],
    tokenizer_of(run.model),
    config,
    system_prompt=max(texts, key=len, default=''),
  )
  if run.task_model.data:
    say(
      f'task: {len(methods.task_examples(run))} examples of {run.task_model.data}, to be '
      'fine-tuned on first'
    )
  if run.arms:
    say('arms: ' + ', '.join(f'{name} ({arm.kind})' for name, arm in run.arms.items()))
  for line in (*monitor_study.check(run), *layouts_of(run).words):
    say(line)
  say(
    f'sweep: {len(run.sweep.alphas)} alphas, '
    + ', '.join(f'{task.name} ({len(task.items)} items)' for task in tasks)
  )
  say(f'would write to {to or workdir}')


@jax.profiler.annotate_function
def begin(run: Run, workdir: Path, *, command: str = '') -> None:
  """Makes the workdir this run's: checks everything, then writes config.json.

  Raises:
    InputError: as `check`.
  """
  check(run, workdir)
  load_model(
    run.model, layouts_of(run).train
  )  # Weights that cannot be read should leave no workdir behind.
  record = configs.to_dict(run) | {'command': command, 'versions': versions(*PACKAGES)}
  processes.on_main(lambda: files.write_json(pathlib.Path(workdir) / 'config.json', record))


@jax.profiler.annotate_function
def contrast(run: Run, workdir: Path) -> dict[str, list[Conversation]]:
  """The conversations of both sides, made if need be and kept (see contrast.py)."""
  return contrasts.make(run, workdir)


def data(run: Run, workdir: Path, *, command: str = '') -> None:
  """The contrast alone, made or read, and what came of it."""
  begin(run, workdir, command=command)
  sides = contrast(run, workdir)
  where = (
    pathlib.Path(workdir) / 'data'
    if not run.data.positive
    else f'{run.data.positive} and {run.data.negative}'
  )
  say(f"data: {len(sides['positive'])} and {len(sides['negative'])} examples in {where}")


@jax.profiler.annotate_function
def finetune(
  run: Run, workdir: Path, *, sides: Sequence[str] = SIDES
) -> dict[str, finetuning.FineTuneResult]:
  """The fine-tunes of the given sides. Both start from the same factors and see their data in the
  same order.
  """
  return methods.sides(run, workdir, _examples(run, workdir), only=sides)


@jax.profiler.annotate_function
def direction(run: Run, workdir: Path) -> directions.Direction:
  """The direction of the run: positive minus negative, made once and kept."""
  return methods.direction(run, workdir, _examples(run, workdir))


@jax.profiler.annotate_function
def sweep(run: Run, workdir: Path, *, direction: Path = '') -> None:
  """Evaluates every arm, alpha and task of the run that has no rows yet, and writes results.jsonl;
  what an arm needs and is not there is made first.

  Args:
    direction: folder of a direction to sweep alone, in place of the run's arms.
  """
  if not run.tasks:
    raise InputError(
      "the config has no tasks to sweep: add some, as in config.tasks.<name> = "
      "task(items=..., role=...)"
    )
  tasks = load_tasks(run.tasks)
  if direction:
    found = directions.load(direction)
    directions.check_base(found, load_model(run.model, layouts_of(run).evaluate))
    made = {ARM: methods.Method(inference.Arm([(found.delta, None)]), run.sweep.alphas)}
  else:
    made = methods.make(run, workdir, _examples(run, workdir))
  arms, alphas = (
    {name: getattr(method, field) for name, method in made.items()} for field in ('arm', 'alphas')
  )
  rows = evaluation.sweep.run(
    engine(run, arms), tasks, alphas=alphas, workdir=workdir, seed=run.sweep.seed
  )
  processes.on_main(lambda: evaluation.metrics.write(workdir, rows, run.tasks, list(run.judges)))


@jax.profiler.annotate_function
def judge(run: Run, workdir: Path) -> None:
  """Asks the run's judges for what they have not said yet about the rows of the sweep, and writes
  results.jsonl.

  Raises:
    InputError: no judges in the config, or no rows.
  """
  if not run.judges:
    raise InputError(
      "the config has no judges: add some, as in config.judges.<name> = "
      "judge(kind='endpoint', model=...)"
    )
  rows = list(evaluation.rows.read(pathlib.Path(workdir) / 'sweep' / 'rows.jsonl'))
  requests = evaluation.judging.requests_of(load_tasks(run.tasks), rows)
  say(f'judge: {len(requests)} questions about {len(rows)} rows, to {", ".join(run.judges)}')
  processes.on_main(lambda: _judge(run, workdir, requests))
  forget_judges(run)


@jax.profiler.annotate_function
def watch(run: Run, workdir: Path) -> None:
  """The run's watched fine-tunes, measured against its directions (see monitor_study.py), with a page of
  their own.
  """
  from weightsteer_jax.experiments.report import watched_page

  study = monitor_study.make(run, workdir, _examples(run, workdir))
  for line in watched_page.lines(study):
    say(line)
  page = pathlib.Path(workdir) / 'report' / 'watched.html'
  processes.on_main(lambda: watched_page.write(page, study, title=run.description or run.name))
  say(f'report: {page}')


@jax.profiler.annotate_function
def report(run: Run, workdir: Path) -> pathlib.Path:
  """The report's page, from the files of the workdir; prints the table and the pick."""
  from weightsteer_jax.experiments.report import (
    page,
    pick,
    study,
    tables,  # matplotlib takes a second to import.
  )

  rule = dict(behaviour=run.sweep.pick_by or None, tolerance=run.sweep.tolerance)
  path = pathlib.Path(processes.on_main(lambda: str(page.write(workdir, **rule))))
  for one in pick.choose_all(study.read(workdir), **rule):
    print(tables.text(one))
  say(f'report: {path}')
  return path


# What the other launchers do.


@jax.profiler.annotate_function
def direction_from(
  positive: Path,
  negative: Path,
  output: Path,
  *,
  base: Path = '',
  sync: bool = True,
  **options: Any,
) -> directions.Direction:
  """The direction between two fine-tunes of any supported kind, written to a new folder (options as
  in directions.contrast).
  """
  files.refuse_existing(output, what='a direction')
  made = directions.contrast(
    positive, negative, base=folder_of(base) if base else None, unread=True, **options
  )
  directions.save(output, made, sync=sync)
  saved = directions.load(output, unread=True)
  say(f'direction: {output}, norm {saved.meta["norm"]:.4g} over {len(saved.meta["norms"])} sites')
  if 'bfloat16_route' in saved.meta:
    say(f'through merged bfloat16 checkpoints: {json.dumps(saved.meta["bfloat16_route"])}')
  return saved


@jax.profiler.annotate_function
def monitor(
  run: Path,
  base: Path,
  output: Path,
  *,
  direction: Sequence[Path],
  control: Sequence[Path] = (),
  task_vector: Sequence[Path] = (),
  **options: Any,
) -> bool:
  """Whether an alarm went off: a training run's checkpoints measured against directions, written to
  a new folder with a page (options as in monitoring.Options).
  """
  from weightsteer_jax.experiments.report import monitor_page

  files.refuse_existing(output, what='a monitoring report')
  sources = {
    monitoring.DIRECTION: direction,
    monitoring.CONTROL: control,
    monitoring.TASK_VECTOR: task_vector,
  }
  rows, summary = monitoring.monitor(
    run, folder_of(base), sources, monitoring.Options(**options), say=say
  )
  with files.new_folder(output, what='a monitoring report') as folder:
    monitoring.write(folder, rows, summary)
    monitor_page.write(folder, rows, summary)
  for line in monitor_page.lines(summary):
    say(line)
  say(f'report: {pathlib.Path(output) / "index.html"}')
  return any(found['alarm']['step'] is not None for found in summary['directions'].values())


@jax.profiler.annotate_function
def export(
  direction: Path,
  base: Path,
  alpha: float,
  format: str,
  output: Path,
  *,
  positive: Path = '',
  negative: Path = '',
  allow_other_base: bool = False,
  logits: str = 'auto',
  sync: bool = True,
  **options: Any,
) -> dict[str, Any]:
  """The provenance of an exported direction (options as in directions.Request), read from its
  folder or made here, from `positive` and `negative`, and not kept.
  """
  unread = (
    format == 'hf'
  )  # Written from files, block by block; the other formats from a model in memory.
  found = (
    directions.load(direction, unread=unread)
    if direction
    else directions.contrast(
      positive,
      negative,
      base=directions.base_for(positive, folder_of(base)),
      allow_other_base=allow_other_base,
      unread=unread,
    )
  )
  exports.check_export(found, exports.Request(format, alpha, **options), output, logits=logits)
  results = (
    _results_of(found, pathlib.Path(direction)) if direction and not allow_other_base else []
  )
  model = (
    exports.unread_base(folder_of(base), name=str(base))
    if unread
    else load_model(ModelChoice(str(base)))
  )
  record = exports.export(
    found,
    model,
    alpha,
    format,
    output,
    results=results,
    allow_other_base=allow_other_base,
    logits=logits,
    sync=sync,
    **options,
  )
  for note in record.get('notes', []):
    say(note)
  say(
    f'export: {output}, {len(record["files"])} files, {_checked(record)}; its README.md '
    'says how to load it'
  )
  return record


def _checked(record: Mapping[str, Any]) -> str:
  """What was compared before an export got its name."""
  return json.dumps({key: record[key] for key in ('parity', 'rechecked') if record.get(key)})


def verify(folder: Path) -> None:
  """Says what an export, a direction, an adapter or a checkpoint of ours was checked for.

  Raises:
    CorruptError: what is missing or was changed.
  """
  found = exports.verify(folder)
  say(f'{folder}: {found.kind}, whole ({found.checked})')
  if found.unlisted:
    say(f'not part of it, and not checked: {", ".join(found.unlisted)}')


@jax.profiler.annotate_function
def score(
  model: str,
  input: Path,
  output: Path,
  *,
  direction: Path = '',
  alphas: Sequence[float] = (0.0,),
  dtype: str = 'float32',
  batch_size: int = 32,
  add_bos: bool = False,
) -> None:
  """Writes the log-likelihood of each row's completion at each alpha (see
  evaluation.score_file).
  """
  choice = ModelChoice(model, dtype=dtype)
  inference.score_file(
    *_loaded(choice, direction, alphas),
    alphas,
    input,
    output,
    add_bos=add_bos,
    batch_size=batch_size,
  )
  say(f'wrote {output}')


@jax.profiler.annotate_function
def generate(
  model: str,
  input: Path,
  output: Path,
  *,
  direction: Path = '',
  alphas: Sequence[float] = (0.0,),
  dtype: str = 'float32',
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  **options: Any,
) -> None:
  """Writes completions of each row at each alpha (see evaluation.generate_file)."""
  choice = ModelChoice(model, dtype=dtype)
  sampling = inference.Sampling(temperature, top_k, top_p)
  inference.generate_file(
    *_loaded(choice, direction, alphas), alphas, input, output, sampling=sampling, **options
  )
  say(f'wrote {output}')


@jax.profiler.annotate_function
def harness(
  model: str,
  tasks: Sequence[str],
  output: Path,
  *,
  direction: Path = '',
  alphas: Sequence[float] = (0.0,),
  include_path: Path = '',
  dtype: str = 'float32',
  batch_size: int = 32,
  max_length: int | None = None,
  **options: Any,
) -> None:
  """Writes what lm-evaluation-harness finds at each alpha (see evaluation/harness/grid.py; options
  as in lm_eval.simple_evaluate).
  """
  try:
    from weightsteer_jax.evaluation import (
      harness as adapter,  # The extra takes seconds to import, where it is.
    )
  except ModuleNotFoundError as error:
    raise InputError(
      f"lm-evaluation-harness cannot be imported ({error}): pip install 'weightsteer_jax[lm-eval]'"
    ) from error
  names, manager = adapter.find_tasks(tasks, include_path)
  loaded, tokenizer, delta = _loaded(ModelChoice(model, dtype=dtype), direction, alphas)
  arms = {} if delta is None else {ARM: [(delta, None)]}
  inputs = {
    'model': tree.digest(loaded.params),
    'direction': None if delta is None else evaluation.sweep.delta_digest(delta),
    'max_length': max_length,
    'version of lm-eval': versions('lm_eval')['lm_eval'],
  }

  def grid(missing):
    engine = inference.Engine(
      loaded,
      tokenizer,
      arms,
      batch_size=batch_size,
      stop_ids=adapter.end_ids(loaded.folder, tokenizer),
    )
    return adapter.SteeredLM(
      engine, missing, arm=next(iter(arms), inference.BASE), max_length=max_length
    )

  adapter.run(grid, alphas, names, manager, output, inputs=inputs, **options)
  say(f'wrote {output}')


# Parts.


def _judge(run: Run, workdir: Path, requests: Sequence[evaluation.JudgeRequest]) -> None:
  """Asks, on one process, and says what came of it."""
  judges = judges_of(run, workdir)
  said = evaluation.judging.run(judges, requests, workdir=workdir)
  for line in (
    *(f'{judge.name}: {judge.summary()}' for judge in judges if judge.summary()),
    *evaluation.judging.words(said),
    *evaluation.agreement.words(said),
  ):
    say(f'judge: {line}')
  files.write_jsonl(pathlib.Path(workdir) / 'agreement.jsonl', evaluation.agreement.agreement(said))
  evaluation.metrics.write(workdir, tasks=run.tasks, judges=list(run.judges))


def _loaded(
  choice: ModelChoice, direction: Path, alphas: Sequence[float]
) -> tuple[models.Model, Any, Any]:
  """(model, tokenizer, the direction's delta or None)."""
  if not direction and any(alphas):
    raise InputError(f'alphas {list(alphas)} were asked for without a direction; pass --direction')
  found = directions.load(direction) if direction else None
  model = load_model(choice)
  if found:
    directions.check_base(found, model)
  return model, datas.load_tokenizer(model.folder), found.delta if found else None


def _results_of(direction: directions.Direction, folder: pathlib.Path) -> list[dict[str, Any]]:
  """The results of the run that the direction lies in, where they are a sweep of this very
  direction; else none.
  """
  workdir = folder.resolve().parent.parent
  plan, results = workdir / 'sweep' / 'plan.json', workdir / 'results.jsonl'
  if not (plan.is_file() and results.is_file()):
    return []
  swept = files.read_json(plan, what='the plan of a sweep')['inputs'].get(
    f"direction of arm '{ARM}'"
  )
  if swept != [[evaluation.sweep.delta_digest(direction.delta), None]]:
    return []
  rows = (json.loads(line) for line in results.read_text(encoding='utf-8').splitlines())
  return [row for row in rows if row['arm'] == ARM]


def _examples(run: Run, workdir: Path) -> dict[str, list[Example]]:
  """The conversations of both sides as examples."""
  tokenizer = tokenizer_of(run.model)
  return {
    side: encode(run, tokenizer, conversations)
    for side, conversations in contrast(run, workdir).items()
  }


def _refuse_other_run(run: Run, workdir: pathlib.Path) -> None:
  path = workdir / 'config.json'
  if not path.exists():
    there = (
      {entry.name for entry in workdir.iterdir() if entry.name[0] != '.'}
      if workdir.is_dir()
      else set()
    )
    if not there <= {*PARTS} or there and not there & {*PARTS[:2]}:
      raise InputError(f'{workdir} exists and is no workdir of a run: name another --workdir')
    return
  there = _flat_settings(files.read_json(path, what='the config of a run'))
  here = _flat_settings(json.loads(json.dumps(configs.to_dict(run))))
  differing = [
    f'  {key}: {there.get(key)!r} there, {here.get(key)!r} now'
    for key in here
    if there.get(key) != here[key]
  ]
  if differing:
    raise InputError(
      '\n'.join(
        [
          f'{workdir} holds a run with other settings; name another --workdir. What differs:',
          *differing,
        ]
      )
    )


def _flat_settings(record: Mapping[str, Any]) -> dict[str, Any]:
  """{'section.key': value} of the FIXED sections."""
  flat = {}
  for section in FIXED:
    value = record[section]
    flat |= (
      {f'{section}.{key}': item for key, item in value.items()}
      if isinstance(value, dict)
      else {section: value}
    )
  return flat
