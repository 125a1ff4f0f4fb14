"""A jsonl file in, a jsonl file out: scoring and generating for users with rows of their own.

rows.py says what a row has. The output has each input row once per alpha, in order.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.data import sources
from weightsteer_jax.inference.arms import BASE
from weightsteer_jax.inference.engine import Engine
from weightsteer_jax.inference.requests import Sampling
from weightsteer_jax.inference.rows import GREEDY, Row, generate_rows, score_rows
from weightsteer_jax.inference.stops import stop_ids
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import nearest
from weightsteer_jax.storage import files

# Name of the arm with the caller's delta.
STEERED = 'steered'


def score_file(
  model: Any,
  tokenizer: Any,
  delta: Any,
  alphas: Sequence[float],
  input: files.Path,
  output: files.Path,
  *,
  add_bos: bool = False,
  end_of_turn: bool = False,
  apart: bool = False,
  batch_size: int = 64,
) -> int:
  """The number of rows written, an input row once per alpha.

  A row of the output is a row of the input with the columns of `score_rows` added.

  Args:
    delta: a direction's delta, or None for the model as it is.
    add_bos: put the tokenizer's leading special token before raw prompts.
    end_of_turn: also score the token that ends an answer.
    apart: tokenise a raw prompt and its completion each by itself.

  Raises:
    InputError: if a row is broken (names the line, before anything is computed), or if the output
      exists.
    NotFiniteError: if the model broke at some alpha.
    OutputError: if the output could not be written; nothing is left behind.
  """
  arm = _arm(delta, alphas)
  rows = read_rows(input, output, ('completion',))
  engine = _engine(model, tokenizer, delta, batch_size, stop_ids=())
  all_columns = score_rows(
    engine, rows, arm, alphas, add_bos=add_bos, end_of_turn=end_of_turn, apart=apart
  )
  return write_rows(output, rows, all_columns)


def generate_file(
  model: Any,
  tokenizer: Any,
  delta: Any,
  alphas: Sequence[float],
  input: files.Path,
  output: files.Path,
  *,
  max_new_tokens: int = 256,
  sampling: Sampling = GREEDY,
  samples: int = 1,
  seed: int = 0,
  add_bos: bool = False,
  batch_size: int = 64,
) -> int:
  """The number of rows written, an input row once per alpha and sample.

  A row of the output is a row of the input with the columns of `generate_rows` added. Generation
  stops at the model's stop tokens (see stops.py). The other arguments and errors are as in
  `score_file`.

  Args:
    max_new_tokens: length limit of an answer, tokens.
    samples: answers per row and alpha.
    seed: seed of the draws.
  """
  rows = read_rows(input, output, ())
  all_columns = answers(
    model,
    tokenizer,
    delta,
    alphas,
    rows,
    batch_size=batch_size,
    max_new_tokens=max_new_tokens,
    sampling=sampling,
    samples=samples,
    seed=seed,
    add_bos=add_bos,
  )
  return write_rows(output, rows, all_columns)


def answers(
  model: Any,
  tokenizer: Any,
  delta: Any,
  alphas: Sequence[float],
  rows: Sequence[Row],
  *,
  batch_size: int = 64,
  **options: Any,
) -> list[list[dict[str, Any]]]:
  """The columns of each row's answers at each alpha, ended by the model's stop tokens.

  Args:
    delta: a direction's delta, or None for the model as it is.
    **options: see `generate_rows`.

  Raises:
    InputError: if a row is broken, or an alpha other than 0 has no direction.
  """
  arm = _arm(delta, alphas)
  stops = stop_ids(tokenizer, model.folder)
  engine = _engine(model, tokenizer, delta, batch_size, stop_ids=stops)
  return generate_rows(engine, rows, arm, alphas, **options)


def write_rows(
  output: files.Path, rows: Sequence[Row], all_columns: Sequence[Sequence[Mapping[str, Any]]]
) -> int:
  """The number of lines written: each row with each of its columns."""
  lines = []
  for (_, row), at_alphas in zip(rows, all_columns):
    for columns in at_alphas:
      lines.append({**row, **columns})
  files.write_jsonl(output, lines)
  return len(lines)


def _arm(delta: Any, alphas: Sequence[float]) -> str:
  if delta is None and any(alphas):
    raise InputError(
      f'the alphas {", ".join(f"{alpha:g}" for alpha in alphas)} need a direction, and none '
      'was given'
    )
  if not alphas:
    raise InputError('no alphas were given: expected at least one; 0 is the model as it is')
  return BASE if delta is None else STEERED


def _engine(
  model: Any, tokenizer: Any, delta: Any, batch_size: int, stop_ids: Sequence[int]
) -> Engine:
  # A coefficient of None: the delta is scaled by alpha itself.
  arms = {} if delta is None else {STEERED: [(delta, None)]}
  return Engine(model, tokenizer, arms, batch_size=batch_size, stop_ids=stop_ids)


def read_rows(
  input: files.Path, output: files.Path, columns: Sequence[str]
) -> list[tuple[str, Mapping[str, Any]]]:
  """(file:line, row) of every row, checked for what can be seen without a tokenizer."""
  # Refused now rather than after the model has computed for hours.
  files.refuse_existing(output, what='the output')
  rows = [(f'{input}:{line}', row) for line, row in sources.read_jsonl(input)]
  if not rows:
    raise InputError(f'{input} holds no rows')
  for where, row in rows:
    if not isinstance(row, Mapping):
      raise InputError(f'{where}: a row must be an object, it is a {type(row).__name__}')
    if ('prompt' in row) == ('messages' in row):
      raise InputError(
        f"{where}: a row needs either 'prompt' or 'messages'; its columns are {', '.join(row)}"
        f"{_hint(row, ('prompt', 'messages'))}"
      )
    # The chat template checks 'messages'.
    texts = ['prompt', *columns] if 'prompt' in row else columns
    for column in texts:
      if column not in row:
        hint = _hint(row, (column,))
        there = f'; its columns are {", ".join(row)}'
        raise InputError(f"{where}: '{column}' must be text, and is missing{hint or there}")
      if not isinstance(row[column], str):
        got = type(row[column]).__name__
        raise InputError(f"{where}: '{column}' must be text, not {got}")
  return rows


def _hint(row: Mapping[str, Any], columns: Sequence[str]) -> str:
  """The row's columns with names near to the wanted columns."""
  near = ''
  for column in row:
    meant = nearest(column, columns)
    if meant:
      near += f" (is '{column}' meant to be '{meant}'?)"
  return near
