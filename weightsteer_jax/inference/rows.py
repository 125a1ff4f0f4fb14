"""Rows asked of a model: prompts and completions as texts or chats, answers and scores as columns.

A row has "messages", which go through the chat template, or "prompt", raw text, to which no special
token is added unless asked for. A raw prompt and its completion have the tokens of the whole text,
cut where the prompt ends, as in lm-evaluation-harness; or, if asked for, each its own. The
completion to "messages" is the assistant's answer; the token that ends an answer is scored only if
asked for.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from weightsteer_jax.data import chat, pieces, thoughts
from weightsteer_jax.inference.engine import Engine
from weightsteer_jax.inference.requests import (
  GenerateRequest,
  GenerateResult,
  Sampling,
  ScoreRequest,
  ScoreResult,
  Tokens,
)
from weightsteer_jax.runtime.errors import InputError, NotFiniteError
from weightsteer_jax.runtime.progress import say_once

# (how errors cite the row, the row)
Row = tuple[str, Mapping[str, Any]]
# Sees results as they come, say to move a bar.
Watch = Callable[[Iterable[Any], int], Iterable[Any]]
# The default of `generate_rows`: temperature 0.
GREEDY = Sampling()
# Characters of a token that no usual text has on average, and how many characters a tokenizer may
# make one of before it looks for tokens.
USUAL_CHARACTERS = 16
NORMALISED = 2


def unwatched(results: Iterable[Any], total: int) -> Iterable[Any]:
  """The results as they are."""
  del total
  return results


def score_rows(
  engine: Engine,
  rows: Sequence[Row],
  arm: str,
  alphas: Sequence[float],
  *,
  add_bos: bool = False,
  end_of_turn: bool = False,
  apart: bool = False,
  watch: Watch = unwatched,
) -> list[list[dict[str, Any]]]:
  """The columns "alpha", "logprob", "tokens" and "behind" of each row, at each alpha.

  "logprob" is in nats, over the completion; "tokens" counts those of the completion and of blanks
  at the end of a raw prompt; "behind" is there if an empty thought was put before the completion
  (see `chat.scored_tokens`).

  Args:
    arm: the engine's arm to score under.
    add_bos: put the tokenizer's leading special token before raw prompts.
    end_of_turn: also score the token that ends an answer.
    apart: tokenise a raw prompt and its completion each by itself.
    watch: sees (results, number of results to come).

  Raises:
    InputError: if a row is broken (names the row, before anything is computed).
    NotFiniteError: if the model broke at some alpha.
  """
  _refuse_long(engine, rows)
  scored = _all_scored(
    engine.tokenizer, rows, add_bos=add_bos, end_of_turn=end_of_turn, apart=apart
  )
  # A request per row and alpha; the key is the place of both, since two rows may be equal.
  requests = []
  for index, (one, (where, _)) in enumerate(zip(scored, rows)):
    for i, alpha in enumerate(alphas):
      requests.append(ScoreRequest((index, i), one.prompt, one.completion, arm, alpha, where))
  # Results come in the order that is fastest to compute.
  results = {result.key: result for result in watch(engine.score(requests), len(requests))}
  for (index, i), result in results.items():
    _refuse_broken(result, rows[index][0], alphas[i])
  all_columns = []
  for index, one in enumerate(scored):
    at_alphas = []
    for i, alpha in enumerate(alphas):
      result = results[index, i]
      columns: dict[str, Any] = {
        'alpha': alpha,
        'logprob': result.logprob,
        'tokens': result.tokens,
      }
      # Only where something stands between the model's own prompt and the completion.
      if one.behind:
        columns['behind'] = one.behind
      at_alphas.append(columns)
    all_columns.append(at_alphas)
  return all_columns


def generate_rows(
  engine: Engine,
  rows: Sequence[Row],
  arm: str,
  alphas: Sequence[float],
  *,
  max_new_tokens: int = 256,
  sampling: Sampling = GREEDY,
  samples: int = 1,
  seed: int = 0,
  add_bos: bool = False,
  watch: Watch = unwatched,
) -> list[list[dict[str, Any]]]:
  """The columns of each row's answers, alpha by alpha and sample by sample.

  The columns are "alpha", "sample", "completion", "tokens" and "finish", which is 'stop', 'length'
  (max_new_tokens) or 'not_finite' (the model broke). Of a model whose chat template knows thoughts,
  "completion" is the whole text, and "thought", "answer", "thought_tokens" (part of the tokens),
  "thought_cut" (no answer came) and "thought_leaked" say what is in it (see data/thoughts.py).

  Args:
    arm: the engine's arm to answer under.
    max_new_tokens: length limit of an answer, tokens.
    samples: answers per row and alpha.
    seed: seed of the draws, which also go by the row's place.
    add_bos: put the tokenizer's leading special token before raw prompts.
    watch: sees (results, number of results to come).

  Raises:
    InputError: if a row is broken or does not fit (names the row, before anything is computed).
  """
  _refuse_long(engine, rows)
  requests = []
  # The row of each request.
  indices = []
  for index, (where, row) in enumerate(rows):
    first = GenerateRequest(
      key=(index, 0, 0),
      prompt=_prompt(engine.tokenizer, row, where, add_bos),
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
      indices.append(index)
  # Results come in the order that is fastest to compute, columns in the order of the requests.
  results = {result.key: result for result in watch(engine.generate(requests), len(requests))}
  all_columns: list[list[dict[str, Any]]] = [[] for _ in rows]
  for index, request in zip(indices, requests):
    all_columns[index].append(_answer(engine.tokenizer, request, results[request.key]))
  return all_columns


def _refuse_long(engine: Engine, rows: Sequence[Row]) -> None:
  """Raises InputError for texts that cannot fit, before a tokenizer works on them for minutes."""
  positions = engine.config.max_positions
  for where, row in rows:
    characters = sum(map(len, _texts(row)))
    if characters <= positions * USUAL_CHARACTERS:
      continue
    most = positions * NORMALISED * pieces.longest_token(engine.tokenizer)
    if characters > most:
      raise InputError(
        f'{where}: {characters:,} characters are more than the {positions} positions of the model '
        f'can hold ({most:,} if every token were the longest there is); shorten the texts'
      )


def _texts(row: Mapping[str, Any]) -> Iterator[str]:
  """The texts of a row that are tokenized."""
  messages = row.get('messages')
  of_messages = messages if isinstance(messages, list) else []
  contents = [one.get('content') for one in of_messages if isinstance(one, Mapping)]
  for text in (row.get('prompt'), row.get('completion'), *contents):
    if isinstance(text, str):
      yield text


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
    say_once(
      f'score: {behind} of {len(rows)} completions are scored behind an empty thought, since the '
      'model would think first: the column "behind" says which'
    )
  if overlapping:
    say_once(
      f'score: {len(overlapping)} of {len(rows)} rows, {overlapping[0]} first: a token of the '
      'whole text reaches over the end of the prompt, and the completion is scored without it, as '
      'in lm-evaluation-harness; end prompts at a blank, or tokenise the two apart (--apart)'
    )
  return all_scored


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
