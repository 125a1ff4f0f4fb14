"""Programs without a run: from files to files.

Each of the launchers direction, combine, monitor, audit, export, score, generate and harness calls
a function here.
"""

import functools
import inspect
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax

from weightsteer_jax import directions, evaluation, exports, inference, models
from weightsteer_jax.config import ModelChoice
from weightsteer_jax.data import bindings
from weightsteer_jax.directions import combining
from weightsteer_jax.experiments import auditing, monitoring
from weightsteer_jax.experiments import chat_date as chat_dates
from weightsteer_jax.experiments.arms import WEIGHTS
from weightsteer_jax.experiments.experiment import load_model, load_tokenizer
from weightsteer_jax.experiments.sources import direction_folder, folder_of
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.progress import say
from weightsteer_jax.storage import files, locks
from weightsteer_jax.storage.versions import versions

Path = str | pathlib.Path
P = ParamSpec('P')
T = TypeVar('T')


def _alone(program: Callable[P, T]) -> Callable[P, T]:
  """The program, which refuses at once if another process writes to its `output`."""
  signature = inspect.signature(program)

  @functools.wraps(program)
  def alone(*args: P.args, **kwargs: P.kwargs) -> T:
    output = signature.bind(*args, **kwargs).arguments['output']
    with locks.held(output, what='the output', remedy='name another --output'):
      return program(*args, **kwargs)

  return alone


@jax.profiler.annotate_function
@_alone
def direction_from(
  positive: Path,
  negative: Path,
  output: Path,
  *,
  base: Path = '',
  sync: bool = True,
  **options: Any,
) -> directions.Direction:
  """The direction between two fine-tunes of any supported kind, written to a new folder.

  Args:
    positive: our run, a PEFT adapter or a checkpoint with the behaviour; '' is the base.
    negative: the same kind, with the opposite behaviour; '' is the base.
    output: folder to write; must not exist.
    base: the model behind both fine-tunes; '' is the model named in the fine-tunes' own records.
    sync: whether to wait until the direction is on the disk.
    **options: see `directions.between`.
  """
  # Refused now rather than after both sources were read.
  files.refuse_existing(output, what='a direction')
  # Both are streamed from files layer by layer, so that a large model needs little memory.
  direction = directions.between(
    positive or None,
    negative or None,
    base=folder_of(base) if base else None,
    unread=True,
    **options,
  )
  directions.save(output, direction, sync=sync)
  # Read back: the figures below are those of the files.
  saved = directions.load(output, unread=True)
  say(f'direction: {output}, norm {saved.meta["norm"]:.4g} over {len(saved.meta["norms"])} sites')
  if 'bfloat16_route' in saved.meta:
    say(f'through merged bfloat16 checkpoints: {json.dumps(saved.meta["bfloat16_route"])}')
  return saved


@jax.profiler.annotate_function
@_alone
def combine(
  recipe: combining.Recipe,
  output: Path,
  *,
  base: Path = '',
  allow_other_base: bool = False,
  sync: bool = True,
) -> directions.Direction:
  """The combination of a recipe's directions, written to a new folder.

  Args:
    output: folder to write; must not exist.
    base: the model behind adapters among the terms; '' is the one that they name.
    sync: whether to wait until the direction is on the disk.

  Raises:
    InputError: if a term cannot be read, or `combining.combine` would raise it.
  """
  files.refuse_existing(output, what='a direction')

  def read(source: str) -> directions.Direction:
    return _of_term(source, base, allow_other_base)

  terms = [read(term.source) for term in recipe.terms]
  others = [read(source) for source in recipe.orthogonal_to]
  combined = combining.combine(
    terms, recipe, orthogonal_to=others, allow_other_base=allow_other_base
  )
  directions.save(output, combined, sync=sync)
  saved = directions.load(output, unread=True)
  say(f'direction: {output}, norm {saved.meta["norm"]:.4g} over {len(saved.meta["norms"])} sites')
  for line in _combined_lines(saved, recipe, terms):
    say(line)
  return saved


def _of_term(source: str, base: Path, allow_other_base: bool) -> directions.Direction:
  """The direction of a term: a direction's folder, a run's, or the change of an adapter."""
  folder = direction_folder(source)
  if not folder.is_dir() or any(folder.glob('direction.*')):
    return directions.load(folder, unread=True)
  of = folder_of(base) if base else None
  return directions.task_vector(folder, of, allow_other_base=allow_other_base)


def _combined_lines(
  combined: directions.Direction,
  recipe: combining.Recipe,
  terms: Sequence[directions.Direction],
) -> Iterator[str]:
  """What came of a recipe: ranks, cosines with its terms, and what is not exact."""
  leaves = tree.flatten(combined.delta, models.is_delta_leaf).values()
  ranks = [leaf.a.shape[-1] for leaf in leaves if isinstance(leaf, models.LowRank)]
  if ranks:
    yield f'{len(ranks)} kernels in factors of rank {max(ranks)}'
  if len(leaves) > len(ranks):
    yield f'{len(leaves) - len(ranks)} dense changes'
  for term, direction in zip(recipe.terms, terms):
    # Saved directions have their norms on record, and each is a pass over all factors.
    length = combined.meta['norm'] * (direction.meta.get('norm') or directions.norm(direction))
    cosine = directions.dot(combined, direction) / length if length else 0.0
    yield f'cosine with {term.source}: {cosine:+.4f}'
  meta = combined.meta
  if 'share_left' in meta:
    yield f'left of the norm after {", ".join(recipe.orthogonal_to)}: {meta["share_left"]:.4f}'
  if meta.get('merge_error') is not None:
    yield (
      f'{recipe.method} is {meta["merge_error"]:.4f} of its norm away from the weighted sum, and '
      'dense'
    )
  if 'compression' in meta:
    errors = meta['compression']['relative_errors'].values()
    yield f'cut to rank {recipe.rank}: relative error up to {max(errors):.4f} at a module'


@jax.profiler.annotate_function
@_alone
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
  """Whether an alarm went off in a training run, with a report in a new folder.

  Args:
    run: folder of the training run, with the checkpoints to measure.
    base: the model before the training run.
    output: folder to write; must not exist.
    direction: directions to look for; the folder of a run stands for its own direction, here and
      below.
    control: directions of something neutral, for the threshold.
    task_vector: fine-tunes or directions to compare only.
    **options: see `monitoring.MonitorOptions`.
  """
  # matplotlib takes a second to import.
  from weightsteer_jax.experiments.report import monitor_page

  # Refused now rather than after minutes of measuring.
  files.refuse_existing(output, what='a monitoring report')
  sources = {
    monitoring.DIRECTION: [direction_folder(path) for path in direction],
    monitoring.CONTROL: [direction_folder(path) for path in control],
    monitoring.TASK_VECTOR: [direction_folder(path) for path in task_vector],
  }
  rows, summary = monitoring.monitor(
    run, folder_of(base), sources, monitoring.MonitorOptions(**options), say=say
  )
  with files.new_folder(output, what='a monitoring report') as folder:
    monitoring.write(folder, rows, summary)
    monitor_page.write(folder, rows, summary)
  for line in monitor_page.lines(summary):
    say(line)
  say(f'report: {pathlib.Path(output) / "index.html"}')
  # An alarm has the step at which it went off.
  return any(about['alarm']['step'] is not None for about in summary['directions'].values())


@jax.profiler.annotate_function
@_alone
def audit(
  fine_tune: Path,
  base: Path,
  output: Path,
  *,
  good: Sequence[Path] = (),
  direction: Sequence[Path] = (),
  control: Sequence[Path] = (),
  **options: Any,
) -> bool:
  """Whether a fine-tune is out of line, or moves along a direction, with a report in a new folder.

  Args:
    fine_tune: a run of ours, an adapter or a full checkpoint.
    base: the model before the fine-tune.
    output: folder to write; must not exist.
    good: fine-tunes known to be good, or folders of such, to compare with.
    direction, control: as of `monitor`.
    **options: see `auditing.AuditOptions`.
  """
  from weightsteer_jax.experiments.report import audit_page

  files.refuse_existing(output, what='an audit')
  sources = {
    monitoring.DIRECTION: [direction_folder(path) for path in direction],
    monitoring.CONTROL: [direction_folder(path) for path in control],
  }
  rows, summary = auditing.audit(
    fine_tune, folder_of(base), auditing.AuditOptions(**options), good=good, sources=sources
  )
  with files.new_folder(output, what='an audit') as folder:
    auditing.write(folder, rows, summary)
    audit_page.write(folder, summary)
  for line in [*audit_page.table(summary), *audit_page.lines(summary)]:
    say(line)
  say(f'report: {pathlib.Path(output) / "index.html"}')
  return auditing.is_alarmed(summary)


@jax.profiler.annotate_function
@_alone
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
  """The provenance of an exported direction.

  Args:
    direction: folder of the direction; '' makes a direction from `positive` and `negative`, as
      `direction_from` does, for this export only.
    base: the model to steer.
    format: a name in export.FORMATS.
    allow_other_base: whether the base may be another model than the direction's own.
    logits: whether logits are compared: 'auto', 'always' or 'never'.
    **options: see `export.ExportRequest`.
  """
  writer = exports.writer_of(format)
  # A direction is read with the base: left on disk where the base is.
  unread = not writer.needs_model
  if direction:
    direction = direction_folder(direction)
    exported = directions.load(direction, unread=unread)
  else:
    start = folder_of(base)
    # A checkpoint alone is told from the base; two of them need none.
    source = directions.base_for(positive, start) if positive and negative else start
    exported = directions.between(
      positive or None,
      negative or None,
      base=source,
      allow_other_base=allow_other_base,
      unread=unread,
    )
  return hand_over(
    exported,
    base,
    alpha,
    format,
    output,
    folder=direction,
    allow_other_base=allow_other_base,
    logits=logits,
    sync=sync,
    **options,
  )


def hand_over(
  direction: directions.Direction,
  base: Path | models.Model,
  alpha: float,
  format: str,
  output: Path,
  *,
  folder: Path = '',
  allow_other_base: bool = False,
  logits: str = 'auto',
  sync: bool = True,
  **options: Any,
) -> dict[str, Any]:
  """The provenance of the export of a direction that was read; arguments as in `export`.

  Args:
    base: the model to steer, or its name.
    folder: the direction's folder, whose run's results go into the model card; '' for none.
  """
  # Everything that can be refused is refused before a large model is read.
  request = exports.ExportRequest(format, alpha, **options)
  exports.check_export(direction, request, output, logits=logits)
  # For the model card. Another base would behave differently than in the sweep.
  results = []
  if folder and not allow_other_base:
    results = _results_of(direction, pathlib.Path(folder))
  steered: models.Model | exports.BaseFolder
  if isinstance(base, models.Model):
    steered = base
  elif exports.writer_of(format).needs_model:
    steered = load_model(ModelChoice(str(base)))
  else:
    steered = exports.BaseFolder.find(folder_of(base), name=str(base))
  record = exports.export(
    direction,
    steered,
    alpha,
    format,
    output,
    results=results,
    allow_other_base=allow_other_base,
    logits=logits,
    sync=sync,
    **options,
  )
  _say_export(output, record)
  return record


def _say_export(output: Path, record: Mapping[str, Any]) -> None:
  for note in record.get('notes', []):
    say(note)
  # What was compared before the export got its name.
  compared = ''
  if record.get('rechecked'):
    compared = f'; {record["rechecked"]["weights"]} weights agree with float64 to one rounding'
  if record['parity']:
    parity = record['parity']
    compared += (
      f'; logits differ by at most {parity["largest_difference"]:.2g} on {parity["tokens"]} tokens '
      f'(allowed: {parity["tolerance"]})'
    )
  say(
    f'export: {output}, {len(record["files"])} files{compared}; its README.md says how to load it'
  )


def verify(folder: Path) -> None:
  """Checks an export, a direction, an adapter or a checkpoint of ours, and says how.

  Raises:
    CorruptError: if files are missing or were changed.
  """
  verified = exports.verify(folder)
  say(f'{folder}: {verified.kind}, whole ({verified.checked})')
  # Files that somebody put beside it do no harm.
  if verified.unlisted:
    say(f'not part of it, and not checked: {", ".join(verified.unlisted)}')


@jax.profiler.annotate_function
@_alone
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
  apart: bool = False,
  tokenizer_choice: str = 'auto',
  chat_template_args: Mapping[str, Any] | None = None,
  chat_date: str = '',
) -> None:
  """Writes the log-likelihood of each row's completion at each alpha.

  See `inference.score_file`, and `_loaded` for what the chat template is told.
  """
  choice = ModelChoice(
    model,
    dtype=dtype,
    tokenizer=tokenizer_choice,
    chat_template_args=chat_template_args or {},
    chat_date=chat_date,
  )
  # Before the model is read: a broken row, or an output that is there, is told at once.
  inference.read_rows(input, output, ('completion',))
  inference.score_file(
    *_loaded(choice, direction, alphas),
    alphas,
    input,
    output,
    add_bos=add_bos,
    apart=apart,
    batch_size=batch_size,
  )
  say(f'wrote {output}')


@jax.profiler.annotate_function
@_alone
def generate(model: str, input: Path, output: Path, **options: Any) -> None:
  """Writes completions of each row at each alpha; see `ask` for the options."""
  # Before the model is read: a broken row, or an output that is there, is told at once.
  rows = inference.read_rows(input, output, ())
  inference.write_rows(output, rows, ask(model, rows, **options))
  say(f'wrote {output}')


@jax.profiler.annotate_function
def ask(
  model: str,
  rows: Sequence[inference.Row],
  *,
  direction: Path = '',
  alphas: Sequence[float] = (0.0,),
  dtype: str = 'float32',
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  tokenizer_choice: str = 'auto',
  chat_template_args: Mapping[str, Any] | None = None,
  chat_date: str = '',
  **options: Any,
) -> list[list[dict[str, Any]]]:
  """The columns of each row's completions, alpha by alpha and sample by sample.

  See `inference.answers`, also for further options, and `_loaded` for what the chat template is
  told.

  Args:
    rows: (how errors cite the row, its "messages" or its "prompt").
  """
  choice = ModelChoice(
    model,
    dtype=dtype,
    tokenizer=tokenizer_choice,
    chat_template_args=chat_template_args or {},
    chat_date=chat_date,
  )
  loaded, tokenizer, delta = _loaded(choice, direction, alphas)
  stops = inference.stop_ids(tokenizer, loaded.folder)
  say(f'answers end at {", ".join(map(repr, tokenizer.convert_ids_to_tokens(stops)))}')
  sampling = inference.Sampling(temperature, top_k, top_p)
  return inference.answers(loaded, tokenizer, delta, alphas, rows, sampling=sampling, **options)


@jax.profiler.annotate_function
@_alone
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
  tokenizer_choice: str = 'auto',
  chat_template_args: Mapping[str, Any] | None = None,
  chat_date: str = '',
  **options: Any,
) -> None:
  """Writes the results of lm-evaluation-harness at each alpha.

  Args:
    model: folder, hub id or 'organism'.
    tasks: names of tasks, groups and tags of lm-eval, or patterns.
    output: folder of results; strengths in an earlier output are kept.
    direction: folder of the direction to apply; '' is none, and then alpha must be 0.
    max_length: most tokens of an input; None is the model's positions.
    tokenizer_choice: whose rules cut texts into tokens, 'auto' or 'file'.
    chat_template_args: variables of the chat template beside the messages.
    chat_date: the day that a dated chat template is told; '' is that of the output's first
      strengths, and else as in `_loaded`.
    **options: see `lm_eval.simple_evaluate`.

  Raises:
    InputError: if lm-evaluation-harness is not installed; see also evaluation/harness/grid.py.
  """
  # An optional extra, which takes seconds to import.
  try:
    from weightsteer_jax.evaluation import harness as lm_eval_harness
  except ModuleNotFoundError as error:
    raise InputError(
      f"lm-evaluation-harness cannot be imported ({error}): pip install 'weightsteer_jax[lm-eval]'"
    ) from error
  names, manager = lm_eval_harness.find_tasks(tasks, include_path)
  plan = pathlib.Path(output) / 'plan.json'
  begun = files.read_json(plan, what='the plan of a run of lm-eval') if plan.exists() else {}
  told = begun.get('inputs', {}).get('chat template', {})
  choice = ModelChoice(
    model,
    dtype=dtype,
    tokenizer=tokenizer_choice,
    chat_template_args=chat_template_args or {},
    chat_date=chat_date or told.get('date', ''),
  )
  loaded, tokenizer, delta = _loaded(choice, direction, alphas)
  # The coefficient None stands for alpha itself.
  arms = {} if delta is None else {WEIGHTS: [(delta, None)]}
  # Strengths may be added to an output later only if all else is as it was.
  inputs = {
    'model': tree.digest(loaded.params),
    'direction': None if delta is None else evaluation.sweep.delta_digest(delta),
    'max_length': max_length,
    'tokenizer': tokenizer_choice,
    'chat template': bindings.bound(tokenizer).to_json(),
    'version of lm-eval': versions('lm_eval')['lm_eval'],
  }

  stops = _stops_of_harness(loaded, tokenizer, pathlib.Path(output))
  inputs[inference.stops.INPUT] = stops

  # Called only if a strength is missing.
  def steered(missing):
    engine = inference.Engine(
      loaded,
      tokenizer,
      arms,
      batch_size=batch_size,
      stop_ids=stops,
    )
    # Without a direction the model is asked as it is.
    arm = next(iter(arms), inference.BASE)
    return lm_eval_harness.SteeredLM(engine, missing, arm=arm, max_length=max_length)

  lm_eval_harness.run(steered, alphas, names, manager, output, inputs=inputs, **options)
  say(f'wrote {output}')


def _stops_of_harness(model: models.Model, tokenizer: Any, output: pathlib.Path) -> list[int]:
  ids = inference.stop_ids(tokenizer, model.folder)
  # Results without stop tokens on record ended at the checkpoint's own and the end of text alone.
  unrecorded = inference.stops.checkpoint_ids(model.folder)
  if tokenizer.eos_token_id is not None:
    unrecorded.append(tokenizer.eos_token_id)
  return inference.stops.as_begun(
    output / 'plan.json', ids, unrecorded=unrecorded, what='the run of lm-eval'
  )


def _loaded(
  choice: ModelChoice, direction: Path, alphas: Sequence[float]
) -> tuple[models.Model, Any, Any]:
  """(model, tokenizer, the direction's delta or None).

  A dated chat template is told the day that was chosen; else the day that the direction's own data
  were made under, where the direction has one on record; else the present day.
  """
  # Alpha 0 alone needs no direction.
  if not direction and any(alphas):
    raise InputError(f'alphas {list(alphas)} were asked for without a direction; pass --direction')
  if direction and not any(alphas):
    say('alpha is 0 alone, so the direction changes nothing; --alphas=-1,0,1 names strengths')
  # The direction first: a folder that holds none is told of before weights are read.
  steering = directions.load(direction_folder(direction)) if direction else None
  model = load_model(choice)
  date = choice.chat_date or (chat_dates.of_direction(steering) if steering else '')
  tokenizer = load_tokenizer(model.folder, choice, date)
  told = bindings.bound(tokenizer)
  if told.words():
    hint = '' if date or not told.date else ' (today; --chat_date keeps it)'
    say(f'chat template: {told.words()}{hint}')
  if steering is None:
    return model, tokenizer, None
  directions.check_base(steering, model)
  return model, tokenizer, steering.delta


def _results_of(direction: directions.Direction, folder: pathlib.Path) -> list[dict[str, Any]]:
  """The results of the run around a direction, if the sweep was of this very direction."""
  # A run keeps a direction in <workdir>/directions/<name>.
  workdir = folder.resolve().parent.parent
  plan = workdir / 'sweep' / 'plan.json'
  results = workdir / 'results.jsonl'
  if not (plan.is_file() and results.is_file()):
    return []
  inputs = files.read_json(plan, what='the plan of a sweep')['inputs']
  swept = inputs.get(f"direction of arm '{WEIGHTS}'")
  # [[digest of the delta, coefficient]], as sweep.inputs_of notes them.
  if swept != [[evaluation.sweep.delta_digest(direction.delta), None]]:
    return []
  rows = files.read_jsonl(results, what='the results of a sweep')
  return [row for row in rows if row['arm'] == WEIGHTS]
