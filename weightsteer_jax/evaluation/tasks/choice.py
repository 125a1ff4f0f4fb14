"""Multiple choice by log-likelihood: which of the answers does the model find most likely after the
prompt?

An item is {"id", "messages", "choices": [text, ..], "target": index, "normalise": "none" | "tokens"
| "bytes", "group": ".."}; errors are
clustered by `group`, where there is one. A choice's score is its log-likelihood as the assistant's
answer, the token that ends the answer not counted, divided by its length if it says so. The row's
value is 1 if the target has the highest score: a tie is not a hit.

  rate            mean of the rows' values
  valid_rate      share of all rows with an answer that could be judged
  target_logprob  log-likelihood of the target, nats
  log_odds        the target's log-likelihood less that of the best other choice, nats
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import chat
from weightsteer_jax.evaluation.reading import failures, measures
from weightsteer_jax.evaluation.reading.measures import Metric, Row, each
from weightsteer_jax.inference.requests import ScoreRequest, ScoreResult, Tokens
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

REQUIRED, OPTIONAL, GENERATES = (
  ('id', 'messages', 'choices', 'target'),
  ('normalise', 'group'),
  False,
)
NORMALISE = ('none', 'tokens', 'bytes')


@dataclasses.dataclass(frozen=True)
class Prepared:
  """An item as tokens."""

  item: Mapping[str, Any]
  prompt: Tokens
  completions: tuple[Tokens, ...]


def check(item: Mapping[str, Any], where: str) -> None:
  """Nothing, if the item is a question with choices.

  Raises:
    InputError: names the item and what is wrong with it.
  """
  choices, target, normalised = item['choices'], item['target'], item.get('normalise', 'none')
  if isinstance(choices, str) or not isinstance(choices, Sequence) or len(choices) < 2:
    raise InputError(f"{where}: 'choices' is {choices!r:.80}, expected a list of two or more texts")
  if not all(isinstance(choice, str) and choice.strip() for choice in choices) or len(
    set(choices)
  ) < len(choices):
    raise InputError(f"{where}: 'choices' is {choices!r:.80}, expected different texts, none empty")
  if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < len(choices):
    raise InputError(
      f"{where}: 'target' is {target!r}, expected the index of a choice, 0 to {len(choices) - 1}"
    )
  if normalised not in NORMALISE:
    hint = did_you_mean(str(normalised), NORMALISE)
    raise InputError(
      f"{where}: 'normalise' is {normalised!r}{hint}, expected one of {', '.join(NORMALISE)}"
    )


def prepare(tokenizer: Any, item: Mapping[str, Any]) -> Prepared:
  """The item as tokens, through the chat template."""
  name, messages = item['id'], item['messages']
  completions = (
    chat.completion_tokens(tokenizer, messages, choice, end_of_turn=False, name=name)
    for choice in item['choices']
  )
  return Prepared(
    item, tuple(chat.prompt_tokens(tokenizer, messages, name=name)), tuple(map(tuple, completions))
  )


def requests(
  prepared: Prepared, key: Any, arm: str, alpha: float, sample: int, options: config.Task, seed: int
) -> list[ScoreRequest]:
  """One request per choice, named (key, index)."""
  del sample, options, seed  # Nothing is drawn.
  name = prepared.item['id']
  return [
    ScoreRequest((key, i), prepared.prompt, completion, arm, alpha, name)
    for i, completion in enumerate(prepared.completions)
  ]


def fields(prepared: Prepared, results: Sequence[ScoreResult], tokenizer: Any) -> dict[str, Any]:
  """Value, status, and the log-likelihood (nats) and length (tokens) of every choice."""
  del tokenizer
  item, logprobs = prepared.item, [result.logprob for result in results]
  row = {
    'choices': list(item['choices']),
    'target': item['target'],
    'tokens': [result.tokens for result in results],
    **measures.group_of(item),
  }
  if not all(map(math.isfinite, logprobs)):
    return {
      'value': None,
      'status': 'not_finite',
      **row,
      'logprobs': [x if math.isfinite(x) else None for x in logprobs],
    }
  lengths = {
    'none': [1] * len(results),
    'tokens': row['tokens'],
    'bytes': [len(choice.encode()) for choice in item['choices']],
  }
  scores = [x / length for x, length in zip(logprobs, lengths[item.get('normalise', 'none')])]
  best_other = max(score for i, score in enumerate(scores) if i != item['target'])
  return {
    'value': float(scores[item['target']] > best_other),
    'status': 'ok',
    **row,
    'logprobs': logprobs,
  }


def target_logprob(row: Row) -> float | None:
  """Log-likelihood of the target in nats, or None where it was not finite."""
  return row['logprobs'][row['target']]


def log_odds(row: Row) -> float | None:
  """The target's log-likelihood less that of the most likely other choice, nats.

  >>> log_odds({'logprobs': [-3.0, -1.0, -2.0], 'target': 2})
  -1.0
  """
  logprobs = row['logprobs']
  others = [x for i, x in enumerate(logprobs) if i != row['target']]
  return None if None in logprobs else logprobs[row['target']] - max(others)


METRICS: dict[str, Metric] = {
  'rate': each(lambda row: row['value']),
  'valid_rate': failures.valid_rate,
  'target_logprob': each(target_logprob),
  'log_odds': each(log_odds),
}
