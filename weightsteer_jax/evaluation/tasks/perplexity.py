"""Plain texts, and how well the model predicts them.

An item is {"id", "text", "group": ".."}; tables need a column `text`, and of a `.txt` file every
paragraph is a text. No chat template and no system prompt is applied: the model reads the token
that begins a text (where it has none, the one that ends it) and predicts every token of the text.
The row's value is the text's loss in nats per token: below that of alpha 0 the text is predicted
better.

  nats_per_token  mean over all tokens of all texts; perplexity is its exponential
  bits_per_byte   mean over all bytes of all texts, which models with other tokenizers share
  valid_rate      share of all rows with a finite log-likelihood

Source: the prefix is that of lm-evaluation-harness 0.4.13, `loglikelihood_rolling`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import pieces, tables
from weightsteer_jax.evaluation.reading import failures, measures
from weightsteer_jax.evaluation.reading.answers import Prepared
from weightsteer_jax.evaluation.reading.measures import Metric, Pairs, Row, cluster
from weightsteer_jax.evaluation.tasks.kind import Kind
from weightsteer_jax.inference.requests import ScoreRequest, ScoreResult
from weightsteer_jax.runtime.errors import InputError


def build(rows: Sequence[tables.Row], options: config.PlainTextsTask) -> list[dict[str, Any]]:
  """An item for each row of a table with a column `text`."""
  del options
  return [
    {'id': str(i), 'text': tables.text(row, ('text',), where)}
    for i, (where, row) in enumerate(rows)
  ]


def check(item: Mapping[str, Any], where: str) -> None:
  """Raises InputError if the item holds no text."""
  text = item['text']
  if not isinstance(text, str) or not text.strip():
    raise InputError(f"{where}: 'text' is {text!r:.60}, expected a text")


def prepare(tokenizer: Any, item: Mapping[str, Any]) -> Prepared:
  """The item's text as tokens, after the token that begins a text."""
  prefix = tokenizer.bos_token_id
  if prefix is None:
    prefix = tokenizer.eos_token_id
  if prefix is None:
    raise InputError(
      f"'{item['id']}': the tokenizer has no token that begins or ends a text, after which the "
      'first token of a plain text could be predicted'
    )
  # Without special tokens: the prefix is there once, whatever the tokenizer would add.
  tokens = pieces.encode_text(tokenizer, item['text'])
  return Prepared(item, (prefix,), (tuple(tokens),))


def requests(
  prepared: Prepared, key: Any, arm: str, alpha: float, sample: int, options: config.Task, seed: int
) -> list[ScoreRequest]:
  """A single request, named (key, 0)."""
  # Log-likelihoods are not sampled.
  del sample, options, seed
  [tokens] = prepared.completions
  return [ScoreRequest((key, 0), prepared.prompt, tokens, arm, alpha, prepared.item['id'])]


def fields(prepared: Prepared, results: Sequence[ScoreResult], tokenizer: Any) -> dict[str, Any]:
  """Value, status, and the text's log-likelihood (nats) and length (tokens and bytes)."""
  del tokenizer
  item = prepared.item
  [result] = results
  is_finite = math.isfinite(result.logprob)
  return {
    'value': -result.logprob / result.tokens if is_finite else None,
    'status': 'ok' if is_finite else 'not_finite',
    # Laid out as a choice without an alternative, which the report's page can show.
    'choices': [item['text']],
    'target': 0,
    'tokens': [result.tokens],
    'bytes': len(item['text'].encode()),
    **measures.group_of(item),
    # JSON has no number for NaN and infinity, so they are written as null.
    'logprobs': [result.logprob if is_finite else None],
  }


def tokens(row: Row) -> int:
  """The text's length in tokens."""
  return row['tokens'][0]


def size(row: Row) -> int:
  """The text's length in bytes."""
  return row['bytes']


def loss_per(length: Callable[[Row], int], unit: float) -> Metric:
  """The loss per unit of length over all texts together, as a metric.

  Args:
    length: a row's units of length.
    unit: nats to one unit of loss.
  """

  def metric(rows: Sequence[Row]) -> Pairs:
    pairs: Pairs = []
    for row in rows:
      [logprob] = row['logprobs']
      if logprob is None:
        continue
      # A pair for each unit of length, so that the mean over pairs is the whole loss by the whole
      # length, and a text stays one cluster of the standard error.
      count = length(row)
      pairs += [(cluster(row), -logprob / unit / count)] * count
    return pairs

  return metric


KIND = Kind[config.PlainTextsTask, ScoreResult](
  required=('id', 'text'),
  optional=('group',),
  prepare=prepare,
  requests=requests,
  fields=fields,
  check=check,
  # The first metric is plotted.
  metrics={
    'nats_per_token': loss_per(tokens, 1.0),
    'bits_per_byte': loss_per(size, math.log(2)),
    'valid_rate': failures.valid_rate,
  },
  build=build,
  split='test',
)
