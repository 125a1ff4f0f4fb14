"""Multiple choice by log-likelihood: the most likely choice is the model's answer.

An item is {"id", "messages", "choices": [text, ..], "target": index, "normalise": "none" | "tokens"
| "bytes", "group": ".."}; errors are clustered by `group`, if given. A choice's score is the
log-likelihood of the choice as the assistant's answer, without the end-of-turn token, divided by
the choice's length in tokens or bytes if `normalise` says so. The row's value is 1 if the target
has the highest score: a tie is not a hit. Of a model that would think first, choices are scored
behind an empty thought, which is a part of the prompt: the row's `behind` says so.

  rate            mean of the rows' values
  valid_rate      share of all rows with finite log-likelihoods
  target_logprob  log-likelihood of the target, nats
  log_odds        the target's log-likelihood less that of the best other choice, nats
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import chat
from weightsteer_jax.evaluation.reading import failures, measures
from weightsteer_jax.evaluation.reading.answers import Prepared
from weightsteer_jax.evaluation.reading.measures import Row, each
from weightsteer_jax.evaluation.tasks.kind import Kind
from weightsteer_jax.inference.requests import ScoreRequest, ScoreResult
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

# What a log-likelihood may be divided by: nothing, or the length of the choice.
NORMALISE = ('none', 'tokens', 'bytes')


def check(item: Mapping[str, Any], where: str) -> None:
  """Raises InputError if the item is no question with choices and a target."""
  choices = item['choices']
  target = item['target']
  normalise = item.get('normalise', 'none')
  # A str is a sequence too, of single letters.
  is_list = isinstance(choices, Sequence) and not isinstance(choices, str)
  if not is_list or len(choices) < 2:
    raise InputError(f"{where}: 'choices' is {choices!r:.80}, expected a list of two or more texts")
  are_texts = all(isinstance(choice, str) and choice.strip() for choice in choices)
  if not are_texts or len(set(choices)) < len(choices):
    raise InputError(f"{where}: 'choices' is {choices!r:.80}, expected different texts, none empty")
  # In Python True is an int, and would be the index 1.
  is_index = isinstance(target, int) and not isinstance(target, bool)
  last = len(choices) - 1
  if not is_index or not 0 <= target <= last:
    raise InputError(
      f"{where}: 'target' is {target!r}, expected the index of a choice, 0 to {last}"
    )
  if normalise not in NORMALISE:
    # A number, say, has no text to compare with the names.
    hint = did_you_mean(str(normalise), NORMALISE)
    known = ', '.join(NORMALISE)
    raise InputError(f"{where}: 'normalise' is {normalise!r}{hint}, expected one of {known}")


def prepare(tokenizer: Any, item: Mapping[str, Any]) -> Prepared:
  """The item's prompt and choices as tokens, through the chat template.

  Raises:
    InputError: if a choice holds a thought and another does not, or the template refuses them.
  """
  name = item['id']
  scored = [
    # As in lm-eval, the choice's own tokens count, and the end of the turn does not.
    chat.scored_tokens(tokenizer, item['messages'], choice, end_of_turn=False, name=name)
    for choice in item['choices']
  ]
  first = scored[0]
  # Likelihoods behind different texts do not compare.
  if any(choice.prompt != first.prompt for choice in scored):
    raise InputError(
      f'{name}: some choices hold a thought and some do not, so that they would be scored behind '
      'different prompts: give all of them a thought, or none'
    )
  completions = tuple(choice.completion for choice in scored)
  return Prepared(item, first.prompt, completions, behind=first.behind)


def requests(
  prepared: Prepared, key: Any, arm: str, alpha: float, sample: int, options: config.Task, seed: int
) -> list[ScoreRequest]:
  """A request for each choice, named (key, index of the choice)."""
  # Log-likelihoods are not sampled.
  del sample, options, seed
  name = prepared.item['id']
  return [
    ScoreRequest((key, i), prepared.prompt, completion, arm, alpha, name)
    for i, completion in enumerate(prepared.completions)
  ]


def fields(prepared: Prepared, results: Sequence[ScoreResult], tokenizer: Any) -> dict[str, Any]:
  """Value, status, and the log-likelihood (nats) and length (tokens) of every choice."""
  del tokenizer
  item = prepared.item
  target = item['target']
  logprobs = [result.logprob for result in results]
  tokens = [result.tokens for result in results]
  common = {
    'choices': list(item['choices']),
    'target': target,
    'tokens': tokens,
    **measures.group_of(item),
  }
  # Only where something stands between the model's own prompt and the choice.
  if prepared.behind:
    common['behind'] = prepared.behind
  # JSON has no number for NaN and infinity, so they are written as null.
  finite = [logprob if math.isfinite(logprob) else None for logprob in logprobs]
  if None in finite:
    return {'value': None, 'status': 'not_finite', **common, 'logprobs': finite}
  normalise = item.get('normalise', 'none')
  lengths = [1] * len(results)
  if normalise == 'tokens':
    lengths = tokens
  elif normalise == 'bytes':
    lengths = [len(choice.encode()) for choice in item['choices']]
  scores = [logprob / length for logprob, length in zip(logprobs, lengths)]
  best_other = max(score for i, score in enumerate(scores) if i != target)
  # Strictly above: a model that finds all choices alike gets no hits.
  value = float(scores[target] > best_other)
  return {'value': value, 'status': 'ok', **common, 'logprobs': logprobs}


def target_logprob(row: Row) -> float | None:
  """The target's log-likelihood in nats; None for a value that is not finite."""
  return row['logprobs'][row['target']]


def log_odds(row: Row) -> float | None:
  """The target's log-likelihood less that of the most likely other choice, nats.

  None if a log-likelihood is not finite.

  >>> log_odds({'logprobs': [-3.0, -1.0, -2.0], 'target': 2})
  -1.0
  """
  logprobs = row['logprobs']
  target = row['target']
  if None in logprobs:
    return None
  best_other = max(logprob for i, logprob in enumerate(logprobs) if i != target)
  return logprobs[target] - best_other


KIND = Kind[config.ChoiceTask, ScoreResult](
  required=('id', 'messages', 'choices', 'target'),
  optional=('normalise', 'group'),
  prepare=prepare,
  requests=requests,
  fields=fields,
  check=check,
  metrics={
    'rate': each(measures.value),
    'valid_rate': failures.valid_rate,
    'target_logprob': each(target_logprob),
    'log_odds': each(log_odds),
  },
)
