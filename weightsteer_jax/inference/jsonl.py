"""A jsonl file in, a jsonl file out: scoring and generating for users with rows of their own.

A row of the input has "messages", which go through the chat template, or "prompt", raw text, to
which no special token is added unless asked for. A raw prompt and its completion have the tokens of
the whole text, cut where the prompt ends, as in lm-evaluation-harness; or, if asked for, each its
own. The completion to "messages" is the assistant's answer; the token that ends an answer is scored
only if asked for. The output has each input row once per alpha, in order.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.data import chat, pieces, sources, thoughts
from weightsteer_jax.inference.arms import BASE
from weightsteer_jax.inference.engine import Engine
from weightsteer_jax.inference.requests import (
  GenerateRequest,
  GenerateResult,
  Sampling,
  ScoreRequest,
  ScoreResult,
  Tokens,
)
from weightsteer_jax.inference.stops import stop_ids
from weightsteer_jax.runtime.errors import InputError, NotFiniteError
from weightsteer_jax.runtime.messages import did_you_mean
from weightsteer_jax.runtime.progress import say
from weightsteer_jax.storage import files

# Name of the arm with the caller's delta.
STEERED = 'steered'
# The default of `generate_file`: temperature 0.
GREEDY = Sampling()


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

  A row of the output is a row of the input with "alpha", "logprob" (nats, over the completion) and
  "tokens" (of the completion, and of blanks at the end of a raw prompt) added, and "behind" if an
  empty thought was put before the completion (see `chat.scored_tokens`).

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
  rows = _read(input, output, ('completion',))
  engine = _engine(model, tokenizer, delta, batch_size, stop_ids=())
  scored = _all_scored(tokenizer, rows, add_bos=add_bos, end_of_turn=end_of_turn, apart=apart)
  # A request per row and alpha; the key is the place of both, since two rows may be equal.
  requests = []
  for index, (one, (where, _)) in enumerate(zip(scored, rows)):
    for i, alpha in enumerate(alphas):
      requests.append(ScoreRequest((index, i), one.prompt, one.completion, arm, alpha, where))
  # Results come in the order that is fastest to compute.
  results = {result.key: result for result in engine.score(requests)}
  for (index, i), result in results.items():
    _refuse_broken(result, rows[index][0], alphas[i])
  lines = []
  for index, (_, row) in enumerate(rows):
    for i, alpha in enumerate(alphas):
      result = results[index, i]
      scores: dict[str, Any] = {
        'alpha': alpha,
        'logprob': result.logprob,
        'tokens': result.tokens,
      }
      # Only where something stands between the model's own prompt and the completion.
      if scored[index].behind:
        scores['behind'] = scored[index].behind
      lines.append({**row, **scores})
  files.write_jsonl(output, lines)
  return len(lines)


def _refuse_broken(result: ScoreResult, where: str, alpha: float) -> None:
  # All or nothing: a broken model leaves no output that looks complete.
  if not math.isfinite(result.logprob):
    raise NotFiniteError(
      f'{where}: the log-likelihood at alpha {alpha:g} is {result.logprob}: the model is broken '
      'there'
    )


def _all_scored(
  tokenizer: Any,
  rows: Sequence[tuple[str, Mapping[str, Any]]],
  *,
  add_bos: bool,
  end_of_turn: bool,
  apart: bool,
) -> list[chat.Scored]:
  """The completion of every row as tokens; says what was put before some, or taken off them."""
  all_scored = []
  # Rows with a token that reaches over the end of the prompt.
  overlapping = []
  for where, row in rows:
    if 'messages' in row:
      scored = _scored_answer(tokenizer, row, where, end_of_turn)
    elif apart:
      scored = _scored_apart(tokenizer, row, where, add_bos)
    else:
      scored, whole = _scored_whole(tokenizer, row, where, add_bos)
      if not whole:
        overlapping.append(where)
    all_scored.append(scored)
  behind = sum(bool(scored.behind) for scored in all_scored)
  if behind:
    say(
      f'score: {behind} of {len(rows)} completions are scored behind an empty thought, since the '
      'model would think first: the column "behind" says which'
    )
  if overlapping:
    say(
      f'score: {len(overlapping)} of {len(rows)} rows, {overlapping[0]} first: a token of the '
      'whole text reaches over the end of the prompt, and the completion is scored without it, as '
      'in lm-evaluation-harness; end prompts at a blank, or tokenise the two apart (--apart)'
    )
  return all_scored


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

  A row of the output is a row of the input with "alpha", "sample", "completion", "tokens" and
  "finish" added. `finish` is 'stop', 'length' (max_new_tokens) or 'not_finite' (the model broke).
  Of a model whose chat template knows thoughts, "completion" is the whole text, and "thought",
  "answer", "thought_tokens" (part of the tokens), "thought_cut" (no answer came) and
  "thought_leaked" say what is in it (see data/thoughts.py). Generation stops at the model's stop
  tokens (see stops.py). The other arguments and errors are as in `score_file`.

  Args:
    max_new_tokens: length limit of an answer, tokens.
    samples: answers per row and alpha.
    seed: seed of the draws.
  """
  arm = _arm(delta, alphas)
  rows = _read(input, output, ())
  stops = stop_ids(tokenizer, model.folder)
  engine = _engine(model, tokenizer, delta, batch_size, stop_ids=stops)
  requests = []
  # The input row of each request.
  rows_of = []
  for index, (where, row) in enumerate(rows):
    first = GenerateRequest(
      key=(index, 0, 0),
      prompt=_prompt(tokenizer, row, where, add_bos),
      max_new_tokens=max_new_tokens,
      arm=arm,
      sampling=sampling,
      seed=seed,
      # Draws go by the row's place, so that equal rows draw differently.
      example=str(index),
      name=where,
    )
    for (i, alpha), sample in itertools.product(enumerate(alphas), range(samples)):
      key = (index, i, sample)
      requests.append(dataclasses.replace(first, key=key, alpha=alpha, sample=sample))
      rows_of.append(row)
  # Results come in the order that is fastest to compute, lines in the order of the requests.
  results = {result.key: result for result in engine.generate(requests)}
  lines = []
  for request, row in zip(requests, rows_of):
    result = results[request.key]
    lines.append({**row, **_answer(tokenizer, request, result)})
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


def _read(
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
        raise InputError(f"{where}: '{column}' must be text, it is missing{hint}")
      if not isinstance(row[column], str):
        got = type(row[column]).__name__
        raise InputError(f"{where}: '{column}' must be text, it is a {got}")
  return rows


def _hint(row: Mapping[str, Any], columns: Sequence[str]) -> str:
  """The row's columns with names near to the wanted columns."""
  near = ''
  for column in row:
    meant = did_you_mean(column, columns)
    if meant:
      near += f" ('{column}' is there{meant})"
  return near


def _answer(tokenizer: Any, request: GenerateRequest, result: GenerateResult) -> dict[str, Any]:
  """The columns that an output row has beyond the input row."""
  said = thoughts.read(tokenizer, request.prompt, result.tokens)
  columns: dict[str, Any] = {
    'alpha': request.alpha,
    'sample': request.sample,
    'completion': said.text,
    'tokens': len(result.tokens),
    'finish': result.finish,
  }
  # Only a model whose template knows thoughts has these columns.
  if said.thought is not None:
    columns |= {
      'thought': said.thought,
      'answer': said.answer,
      'thought_tokens': said.thought_tokens,
      'thought_cut': thoughts.is_cut(said, result.finish),
      'thought_leaked': said.leaked,
    }
  return columns


def _prompt(tokenizer: Any, row: Mapping[str, Any], where: str, add_bos: bool) -> Tokens:
  if 'messages' in row:
    return tuple(chat.prompt_tokens(tokenizer, row['messages'], name=where))
  tokens = pieces.encode_text(tokenizer, row['prompt'])
  return _led(tokenizer, tokens, where, add_bos)


def _led(tokenizer: Any, tokens: list[int], where: str, add_bos: bool) -> Tokens:
  """The ids of a raw prompt, with the leading special token if asked for."""
  # By hand: some tokenizers would also put a special token at the end.
  if add_bos and tokenizer.bos_token_id is None:
    raise InputError(
      f"the tokenizer '{tokenizer.name_or_path}' has no leading special token to add"
    )
  if add_bos:
    tokens = [tokenizer.bos_token_id, *tokens]
  if not tokens:
    raise InputError(
      f'{where}: the prompt is empty, so that there is nothing to predict the first token from; '
      'add the leading token (add_bos)'
    )
  return tuple(tokens)


def _scored_answer(
  tokenizer: Any, row: Mapping[str, Any], where: str, end_of_turn: bool
) -> chat.Scored:
  scored = chat.scored_tokens(
    tokenizer, row['messages'], row['completion'], end_of_turn=end_of_turn, name=where
  )
  if not scored.completion:
    raise InputError(f'{where}: the completion is empty')
  return scored


def _scored_apart(tokenizer: Any, row: Mapping[str, Any], where: str, add_bos: bool) -> chat.Scored:
  prompt = _prompt(tokenizer, row, where, add_bos)
  completion = pieces.encode_text(tokenizer, row['completion'])
  if not completion:
    raise InputError(f'{where}: the completion is empty')
  return chat.Scored(prompt, tuple(completion))


def _scored_whole(
  tokenizer: Any, row: Mapping[str, Any], where: str, add_bos: bool
) -> tuple[chat.Scored, bool]:
  """(a raw prompt and its completion, whether the two are the whole text's tokens)."""
  if not row['completion']:
    raise InputError(f'{where}: the completion is empty')
  before, completion, whole = pieces.encode_pair(tokenizer, row['prompt'], row['completion'])
  prompt = _led(tokenizer, before, where, add_bos)
  if not completion:
    raise InputError(
      f'{where}: prompt and completion together have no more tokens than the prompt alone: a token '
      'reaches over the end of the prompt; end the prompt at a blank, or tokenise the two apart '
      '(--apart)'
    )
  return chat.Scored(prompt, tuple(completion)), whole
