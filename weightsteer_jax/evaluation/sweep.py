"""The sweep: every arm, alpha, task, example and sample, each computed once and kept on disk."""

import pathlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import jax

from weightsteer_jax import models
from weightsteer_jax.config import TextTask
from weightsteer_jax.data import bindings, thoughts
from weightsteer_jax.evaluation import grids
from weightsteer_jax.evaluation import tasks as kinds
from weightsteer_jax.evaluation.reading.answers import Prepared
from weightsteer_jax.evaluation.rows import RowKey, Rows
from weightsteer_jax.inference import generation, packing, stops
from weightsteer_jax.inference.arms import BASE, AnswerOnly, Arms, bare, make_arms
from weightsteer_jax.inference.engine import Engine
from weightsteer_jax.inference.requests import (
  GenerateRequest,
  GenerateResult,
  ScoreRequest,
  ScoreResult,
)
from weightsteer_jax.runtime import processes, tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean
from weightsteer_jax.storage import journal, made_from, resumable

# Items as tokens, by (task, example, system prompt that the arm adds).
PreparedItems = Mapping[tuple[str, str, str], Prepared]
Requests = Sequence[ScoreRequest] | Sequence[GenerateRequest]


def run(
  engine: Engine,
  tasks: Sequence[kinds.Task],
  *,
  alphas: Mapping[str, Sequence[float]],
  workdir: str | pathlib.Path,
  seed: int = 0,
  progress: bool = True,
  command: str = '',
  settings: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
  """All rows of the sweep, in the order of the plan.

  Rows that are not yet on disk are computed and written as soon as finished. A row is {arm, alpha,
  task, example, sample, value, status, messages} and, by the task's kind, {completion, tokens,
  finish} or {choices, target, tokens, logprobs}; texts of a reasoning model have
  {thought, thought_tokens, thought_cut, thought_leaked} too (see reading/answers.py). If an arm has
  P system prompts, sample s of an item takes prompt s modulo P: `prompt` is the prompt's number,
  and `messages` hold the prompt's text. Alphas, tasks and arms may be added to a sweep later; the
  inputs of finished rows may not change. Rows are kept in `<workdir>/sweep/rows.jsonl`, the inputs
  in `plan.json` in the same folder, and the sweep itself in `grids.jsonl` (see grids.py).

  Args:
    engine: holds the model and the arms.
    alphas: {arm: strengths}.
    seed: seed of sampled answers.
    progress: whether to show a progress bar on stderr.
    command, settings: kept in grids.jsonl.

  Raises:
    InputError: if two tasks have the same name, an input differs from the input of the rows on
      disk (names each changed input), or rows on disk count thoughts as answers.
    CorruptError: if the file of rows is broken.
    OutputError: if the disk is full.
    Preempted: if SIGTERM or SIGINT came; finished rows are kept.
  """
  by_name = {task.name: task for task in tasks}
  if len(by_name) < len(tasks):
    raise InputError(f'two tasks have the same name: {", ".join(task.name for task in tasks)}')
  folder = pathlib.Path(workdir) / 'sweep'
  prepared = _prepare(engine, tasks, alphas)
  plan = list(_plan(engine.arms, tasks, alphas))
  with Rows(folder / 'rows.jsonl') as rows:
    engine = _as_begun(engine, rows, folder / 'plan.json')
    # Before a row is computed: rows of other weights or items must not mix with the new rows.
    inputs = inputs_of(engine, tasks, prepared, list(alphas), seed)
    made_from.check_and_record(folder / 'plan.json', inputs, fresh=not rows.done)
    missing = [key for key in plan if key not in rows.done]
    _refuse_unparted_thoughts(rows, missing, engine.tokenizer)
    grid = grids.Grid(
      grid=0,
      alphas={arm: sorted({key.alpha for key in plan if key.arm == arm}) for arm in alphas},
      tasks=list(by_name),
      inputs=inputs,
      command=command,
      settings=settings or {},
    )
    number = processes.on_main(lambda: grids.begin(pathlib.Path(workdir), grid))
    resumable.keep(
      rows,
      _compute(engine, by_name, prepared, plan, missing, seed),
      left=lambda: sum(key not in rows.done for key in plan),
      total=len(plan),
      what='rows of the sweep',
      title='sweep',
      unit='row',
      shown=progress,
    )
    processes.on_main(lambda: grids.finish(pathlib.Path(workdir), number))
    # Only the plan's rows: the file may hold alphas that this call did not name.
    return [rows.done[key] for key in plan]


def _as_begun(engine: Engine, rows: journal.Journal, plan: pathlib.Path) -> Engine:
  """The engine, stopping at the tokens that finished rows were stopped at."""
  # A plan without rows is replaced by this call's.
  if not rows.done:
    return engine
  # Every sweep has its stop tokens on record.
  begun = stops.as_begun(plan, engine.stop_ids, unrecorded=engine.stop_ids, what='the sweep')
  return engine.stopping_at(begun)


def _refuse_unparted_thoughts(
  rows: journal.Journal, missing: Sequence[RowKey], tokenizer: Any
) -> None:
  """Raises InputError if missing rows would join rows with thoughts in their answers.

  Earlier versions wrote such rows; a finished sweep of them is left as it is.
  """
  tags = thoughts.tags_of(tokenizer)
  if tags is None or not missing:
    return
  for key, row in rows.done.items():
    completion = str(row.get('completion', ''))
    if 'thought' not in row and tags.within(completion):
      raise InputError(
        f'{rows.path} counts a thought as part of the answer in the row {key}, as earlier '
        'versions did; new rows set thoughts apart, and the two must not mix: start in another '
        'workdir, or move that folder away'
      )


@jax.profiler.annotate_function
def check(
  tasks: Sequence[kinds.Task],
  tokenizer: Any,
  config: models.ModelConfig,
  *,
  system_prompt: str = '',
) -> list[str]:
  """What to know of how the tasks are asked, a line each.

  Args:
    system_prompt: the longest prompt that an arm may add to an item.

  Raises:
    InputError: if an item and its answer do not fit the model; names task and item.
  """
  notes = []
  # The base model stands for every arm: steering does not change a length.
  arms = make_arms({})
  for task in tasks:
    scored: list[ScoreRequest] = []
    generated: list[GenerateRequest] = []
    behind = ''
    for i, item in enumerate(task.items):
      prepared = task.kind.prepare(tokenizer, _under(system_prompt, item))
      behind = behind or prepared.behind
      for request in task.kind.requests(prepared, i, BASE, 0.0, 0, task.options, 0):
        if isinstance(request, ScoreRequest):
          scored.append(request)
        else:
          generated.append(request)
    # Both calls raise if a request does not fit; the engine makes their results again.
    try:
      generation.continuations(generated, arms, config)
      packing.questions(scored, arms, config)
    except InputError as error:
      raise InputError(f"task '{task.name}', {error}") from error
    if always := _always_right(task.items):
      notes.append(
        f"task '{task.name}': {always!r:.60} is the target of every item, so that a model that "
        'always says so seems to show the behaviour: add items with other targets'
      )
    if behind:
      notes.append(
        f"task '{task.name}': the model would think first; choices are scored behind {behind}"
      )
  return notes


def _always_right(items: Sequence[Mapping[str, Any]]) -> str:
  """The choice that is the target of every item; '' if there are several, or one item alone."""
  targets = {
    item['choices'][item['target']] for item in items if 'choices' in item and 'target' in item
  }
  return targets.pop() if len(targets) == 1 and len(items) > 1 else ''


@jax.profiler.annotate_function
def inputs_of(
  engine: Engine,
  tasks: Sequence[kinds.Task],
  prepared: PreparedItems,
  arms: Sequence[str],
  seed: int,
) -> dict[str, Any]:
  """{name: value or hash} of each input of the rows, named as in error messages.

  Raises:
    InputError: if an arm is unknown to the engine.
  """
  digests = [delta_digest(delta) for delta in engine.arms.deltas]
  inputs: dict[str, Any] = {
    'model': tree.digest(engine.params),
    stops.INPUT: list(engine.stop_ids),
    'seed': seed,
    # What the tokens below come from, to be named where the tokens differ.
    'chat template': bindings.bound(engine.tokenizer).to_json(),
  }
  for arm in arms:
    if arm not in engine.arms.parts:
      raise InputError(
        f"no arm '{arm}'{did_you_mean(arm, engine.arms.parts)}; there are: "
        f"{', '.join(engine.arms.parts)}"
      )
    # Deltas go by their hash, since their indices change when an arm is added.
    parts = []
    for index, coefficient in engine.arms.parts[arm]:
      parts.append([digests[index], _listed(coefficient)])
    inputs[f"direction of arm '{arm}'"] = parts
    if arm in engine.arms.prompts:
      prompts = {alpha: list(texts) for alpha, texts in engine.arms.prompts[arm].items()}
      inputs[f"prompts of arm '{arm}'"] = _listed(prompts)
  for task in tasks:
    options = task.options
    items = [dict(item) for item in task.items]
    # The tokens as well: another chat template gives the same items other prompts.
    tokens = [_tokens(prepared[task.name, item['id'], '']) for item in task.items]
    inputs[f"items of task '{task.name}'"] = made_from.digest(items)
    inputs[f"tokens of task '{task.name}'"] = made_from.digest(tokens)
    inputs[f"kind of task '{task.name}'"] = options.kind
    # Choices by likelihood draw nothing.
    if isinstance(options, TextTask):
      inputs[f"sampling of task '{task.name}'"] = [
        options.max_new_tokens,
        options.temperature,
        options.top_p,
        options.top_k,
      ]
  return inputs


def delta_digest(delta: Any) -> str:
  """16 hex digits that name a delta, the scales of low-rank leaves included."""
  bare_delta = bare(delta)
  # `tree.digest` hashes arrays, and the scale of a low-rank leaf is no array.
  scales = {}
  for path, leaf in tree.flatten(bare_delta, models.is_delta_leaf).items():
    if isinstance(leaf, models.LowRank):
      scales[path] = leaf.scale
  parts = [tree.digest(bare_delta), sorted(scales.items())]
  # Nothing is added where a delta acts everywhere, so that older sweeps keep their digest.
  if isinstance(delta, AnswerOnly):
    parts.append('answers')
  return made_from.digest(parts)


def _listed(value: Any) -> Any:
  """A table by strength as a list of pairs, because JSON has no numbers as keys."""
  if not isinstance(value, Mapping):
    return value
  # Sorted, so that the order in a config is no change of inputs.
  return sorted(list(pair) for pair in value.items())


def _tokens(prepared: Prepared) -> list[Any]:
  # Lists throughout, as JSON would give them back.
  completions = [list(tokens) for tokens in prepared.completions]
  return [list(prepared.prompt), completions]


def _plan(
  arms: Arms, tasks: Sequence[kinds.Task], alphas: Mapping[str, Sequence[float]]
) -> Iterator[RowKey]:
  for arm, strengths in alphas.items():
    for task in tasks:
      for strength in strengths:
        # Adding zero turns -0.0 into 0.0.
        alpha = float(strength) + 0.0
        # At least one sample under each system prompt of the arm.
        samples = task.samples * max(1, len(arms.prompts_of(arm, alpha)))
        for item in task.items:
          for sample in range(samples):
            yield RowKey(arm, alpha, task.name, item['id'], sample)


@jax.profiler.annotate_function
def _prepare(
  engine: Engine, tasks: Sequence[kinds.Task], alphas: Mapping[str, Sequence[float]]
) -> PreparedItems:
  """Every item as tokens, without a system prompt and under each system prompt of a row."""
  # Always the empty prompt too: `inputs_of` hashes items without a system prompt.
  prompts = {'': None}
  for arm, strengths in alphas.items():
    for alpha in strengths:
      prompts |= dict.fromkeys(engine.arms.prompts_of(arm, float(alpha)))
  prepared = {}
  for task in tasks:
    for item in task.items:
      for prompt in prompts:
        shown = _under(prompt, item)
        prepared[task.name, item['id'], prompt] = task.kind.prepare(engine.tokenizer, shown)
  return prepared


def _under(prompt: str, item: Mapping[str, Any]) -> Mapping[str, Any]:
  """The item with a system prompt before the item's own system prompt."""
  # Plain texts have no messages, and no place for a system prompt.
  if not prompt or 'messages' not in item:
    return item
  first, *rest = item['messages']
  # Many chat templates take one system message, at the beginning.
  if first['role'] == 'system':
    joined = f'{prompt}\n\n{first["content"]}'
    return {**item, 'messages': [{**first, 'content': joined}, *rest]}
  system = {'role': 'system', 'content': prompt}
  return {**item, 'messages': [system, first, *rest]}


def _compute(
  engine: Engine,
  tasks: Mapping[str, kinds.Task],
  prepared: PreparedItems,
  plan: Sequence[RowKey],
  missing: Sequence[RowKey],
  seed: int,
) -> Generator[dict[str, Any], None, None]:
  """The missing rows of the plan, in the order of finishing."""

  def prompt_of(key: RowKey) -> tuple[int, str] | None:
    """(number, text) of the system prompt that the arm adds to a row."""
    texts = engine.arms.prompts_of(key.arm, key.alpha)
    if not texts:
      return None
    # Samples take the prompts in turn, so that every prompt has as many.
    number = key.sample % len(texts)
    return number, texts[number]

  def item_of(key: RowKey) -> Prepared:
    prompt = prompt_of(key)
    text = prompt[1] if prompt else ''
    return prepared[key.task, key.example, text]

  def requests_of(key: RowKey) -> Requests:
    task = tasks[key.task]
    return task.kind.requests(item_of(key), key, key.arm, key.alpha, key.sample, task.options, seed)

  # Requests of the whole plan, not of the missing rows alone: see `_results`.
  requests = {key: requests_of(key) for key in plan}
  # A row's results, None where a result is still to come: a choice has a request per option.
  open_rows: dict[RowKey, list[Any]] = {}
  for key in missing:
    open_rows[key] = [None] * len(requests[key])
  for result in _results(engine, requests, missing):
    key, part = result.key
    # A row that is on disk may share a batch with one that is missing.
    if key not in open_rows:
      continue
    open_rows[key][part] = result
    if None in open_rows[key]:
      continue
    item = item_of(key)
    prompt = prompt_of(key)
    fields = tasks[key.task].kind.fields(item, open_rows.pop(key), engine.tokenizer)
    row = key._asdict()
    # Rows of arms without system prompts have no such column.
    if prompt:
      row['prompt'] = prompt[0]
    row['messages'] = list(item.item.get('messages', ()))
    yield {**row, **fields}


def _results(
  engine: Engine, requests: Mapping[RowKey, Requests], missing: Sequence[RowKey]
) -> Iterator[ScoreResult | GenerateResult]:
  scored = []
  for row_requests in requests.values():
    scored += [request for request in row_requests if isinstance(request, ScoreRequest)]
  wanted = set()
  generated = []
  for key in missing:
    for request in requests[key]:
      if isinstance(request, ScoreRequest):
        wanted.add(request.key)
      else:
        generated.append(request)
  # Scores come from the batches of the whole plan, so that an interrupted sweep gives the same
  # scores, bit for bit. Generated tokens do not change with the batch.
  if wanted:
    yield from engine.score(scored, wanted=wanted)
  yield from engine.generate(generated)
