"""The sweep: every arm, alpha, task, example and sample, each computed once and kept on disk."""

import pathlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import jax

from weightsteer_jax import models
from weightsteer_jax.config import TextTask
from weightsteer_jax.evaluation import tasks as kinds
from weightsteer_jax.evaluation.rows import RowKey, Rows
from weightsteer_jax.inference import generation, packing
from weightsteer_jax.inference.arms import BASE, AnswerOnly, Arms, bare, make_arms
from weightsteer_jax.inference.engine import Engine
from weightsteer_jax.inference.requests import GenerateRequest, ScoreRequest
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean
from weightsteer_jax.storage import made_from as plan_files
from weightsteer_jax.storage import resumable

# What a row asks: its task, its item as tokens, by (task, example, system prompt that the arm
# adds).
Prepared = dict[tuple[str, str, str], Any]


def run(
  engine: Engine,
  tasks: Sequence[kinds.Task],
  *,
  alphas: Mapping[str, Sequence[float]],
  workdir: str | pathlib.Path,
  seed: int = 0,
  progress: bool = True,
) -> list[dict[str, Any]]:
  """All rows of the sweep, in the order of the plan; those not yet on disk are computed, each
  written as it finishes.

  A row is {arm, alpha, task, example, sample, value, status, messages} and, by the task's kind,
  {completion, tokens} or {choices, target, tokens, logprobs}. Under an arm's system prompts, sample
  s of an item takes prompt s, and starts over behind the last: `prompt` is its number, `messages`
  hold it. Alphas, tasks and arms may be added to a sweep later; what its rows were made from may
  not change. Rows are kept in `<workdir>/sweep/rows.jsonl`, what they were made from in `plan.json`
  beside it.

  Args:
    engine: holds the model and the arms.
    alphas: {arm: strengths}.
    seed: of sampled answers.
    progress: whether to show a progress bar on stderr.

  Raises:
    InputError: two tasks of one name, or inputs that differ from those of the rows already there;
      names what changed.
    CorruptError: a broken file of rows. OutputError: a full disk. Preempted: SIGTERM or SIGINT
      came; finished rows are kept.
  """
  by_name = {task.name: task for task in tasks}
  if len(by_name) < len(tasks):
    raise InputError(f'two tasks have the same name: {", ".join(task.name for task in tasks)}')
  folder = pathlib.Path(workdir) / 'sweep'
  prepared = _prepare(engine, tasks, alphas)
  plan = list(_plan(engine.arms, tasks, alphas))
  with Rows(folder / 'rows.jsonl') as rows:
    plan_files.check(
      folder / 'plan.json',
      inputs_of(engine, tasks, prepared, list(alphas), seed),
      fresh=not rows.done,
    )
    missing = [key for key in plan if key not in rows.done]
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
    return [rows.done[key] for key in plan]


@jax.profiler.annotate_function
def check(
  tasks: Sequence[kinds.Task],
  tokenizer: Any,
  config: models.ModelConfig,
  *,
  system_prompt: str = '',
) -> None:
  """Nothing, if every item and its answer fit the model.

  Args:
    system_prompt: what an arm may add to each, at its longest.

  Raises:
    InputError: one that does not; names the task and the item.
  """
  arms = make_arms({})
  for task in tasks:
    prepared = [task.kind.prepare(tokenizer, _under(system_prompt, item)) for item in task.items]
    asked = [
      request
      for i, one in enumerate(prepared)
      for request in task.kind.requests(one, i, BASE, 0.0, 0, task.options, 0)
    ]
    try:
      if task.kind.GENERATES:
        generation.continuations(asked, arms, config.max_positions)
      else:
        packing.questions(asked, arms, config)
    except InputError as error:
      raise InputError(f"task '{task.name}', {error}") from error


@jax.profiler.annotate_function
def inputs_of(
  engine: Engine, tasks: Sequence[kinds.Task], prepared: Prepared, arms: Sequence[str], seed: int
) -> dict[str, Any]:
  """{name: value or hash} of everything that the rows depend on, in the words an error names them
  by.
  """
  digests = [delta_digest(delta) for delta in engine.arms.deltas]
  inputs: dict[str, Any] = {
    'model': tree.digest(engine.params),
    'stop tokens': list(engine.stop_ids),
    'seed': seed,
  }
  for arm in arms:
    if arm not in engine.arms.parts:
      raise InputError(
        f"no arm '{arm}'{did_you_mean(arm, engine.arms.parts)}; there are: "
        f"{', '.join(engine.arms.parts)}"
      )
    inputs[f"direction of arm '{arm}'"] = [
      [digests[index], _listed(coefficient)] for index, coefficient in engine.arms.parts[arm]
    ]
    if arm in engine.arms.prompts:
      inputs[f"prompts of arm '{arm}'"] = _listed(
        {a: list(texts) for a, texts in engine.arms.prompts[arm].items()}
      )
  for task in tasks:
    options = task.options
    inputs[f"items of task '{task.name}'"] = plan_files.digest([dict(item) for item in task.items])
    tokens = [_tokens(prepared[task.name, item['id'], '']) for item in task.items]
    inputs[f"tokens of task '{task.name}'"] = plan_files.digest(tokens)
    inputs[f"kind of task '{task.name}'"] = options.kind
    if isinstance(options, TextTask):
      inputs[f"sampling of task '{task.name}'"] = [
        options.max_new_tokens,
        options.temperature,
        options.top_p,
        options.top_k,
      ]
  return inputs


def delta_digest(delta: Any) -> str:
  """16 hex digits that name a delta, the scales of its low-rank leaves included."""
  leaves = tree.flatten(bare(delta), models.is_delta_leaf).items()
  scales = {path: leaf.scale for path, leaf in leaves if isinstance(leaf, models.LowRank)}
  where = ['answers'] if isinstance(delta, AnswerOnly) else []
  return plan_files.digest([tree.digest(bare(delta)), sorted(scales.items()), *where])


def _listed(value: Any) -> Any:
  """A table by strength as a list, which JSON has."""
  return sorted(map(list, value.items())) if isinstance(value, Mapping) else value


def _plan(
  arms: Arms, tasks: Sequence[kinds.Task], alphas: Mapping[str, Sequence[float]]
) -> Iterator[RowKey]:
  for arm, strengths in alphas.items():
    for task in tasks:
      for alpha in (
        float(strength) + 0.0 for strength in strengths
      ):  # Adding zero makes -0.0 the 0.0 it is.
        samples = task.samples * max(1, len(arms.prompts_of(arm, alpha)))
        for item in task.items:
          yield from (
            RowKey(arm, alpha, task.name, item['id'], sample) for sample in range(samples)
          )


@jax.profiler.annotate_function
def _prepare(
  engine: Engine, tasks: Sequence[kinds.Task], alphas: Mapping[str, Sequence[float]]
) -> Prepared:
  """Every item as tokens, by itself and under each system prompt that a row will have."""
  texts = dict.fromkeys(
    text
    for arm, strengths in alphas.items()
    for alpha in strengths
    for text in engine.arms.prompts_of(arm, float(alpha))
  )
  return {
    (task.name, item['id'], text): task.kind.prepare(engine.tokenizer, _under(text, item))
    for task in tasks
    for item in task.items
    for text in ('', *texts)
  }


def _under(text: str, item: Mapping[str, Any]) -> Mapping[str, Any]:
  """The item with a system prompt before whatever system prompt it has."""
  if not text:
    return item
  first, *rest = item['messages']
  if first['role'] == 'system':
    return {**item, 'messages': [{**first, 'content': f"{text}\n\n{first['content']}"}, *rest]}
  return {**item, 'messages': [{'role': 'system', 'content': text}, first, *rest]}


def _compute(
  engine: Engine,
  tasks: Mapping[str, kinds.Task],
  prepared: Prepared,
  plan: Sequence[RowKey],
  missing: Sequence[RowKey],
  seed: int,
) -> Generator[dict[str, Any], None, None]:
  """The missing rows of the plan, as they finish."""

  def item_of(key):
    texts = engine.arms.prompts_of(key.arm, key.alpha)
    return prepared[key.task, key.example, texts[key.sample % len(texts)] if texts else '']

  def requests_of(key):
    task = tasks[key.task]
    return task.kind.requests(item_of(key), key, key.arm, key.alpha, key.sample, task.options, seed)

  asked = {key: requests_of(key) for key in plan}
  open_rows: dict[RowKey, list[Any]] = {key: [None] * len(asked[key]) for key in missing}
  for result in _results(engine, asked, missing):
    key, part = result.key
    if key not in open_rows:
      continue  # It shares a batch with one that is missing.
    open_rows[key][part] = result
    if None not in open_rows[key]:
      item = item_of(key)
      fields = tasks[key.task].kind.fields(item, open_rows.pop(key), engine.tokenizer)
      texts = engine.arms.prompts_of(key.arm, key.alpha)
      which = {'prompt': key.sample % len(texts)} if texts else {}
      yield {**key._asdict(), **which, 'messages': list(item.item['messages']), **fields}


def _results(
  engine: Engine,
  asked: Mapping[RowKey, Sequence[ScoreRequest | GenerateRequest]],
  missing: Sequence[RowKey],
) -> Iterator[Any]:
  """Scores come from the batches of the whole plan, so that a sweep that was interrupted has the
  same ones, bit for bit; tokens do not change with the batch.
  """
  needed = [request for key in missing for request in asked[key]]
  wanted = {request.key for request in needed if isinstance(request, ScoreRequest)}
  if wanted:
    every = [
      request
      for requests in asked.values()
      for request in requests
      if isinstance(request, ScoreRequest)
    ]
    yield from engine.score(every, wanted=wanted)
  yield from engine.generate(request for request in needed if isinstance(request, GenerateRequest))


def _tokens(prepared: Any) -> list[Any]:
  return [list(prepared.prompt), [list(tokens) for tokens in getattr(prepared, 'completions', ())]]
