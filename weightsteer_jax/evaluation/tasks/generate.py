"""Free answers judged by rules.

An item is {"id", "messages", "match": {..}, "group": ".."} with the rules of `rules.py`; errors are
clustered by `group`, if given. The row's value is 1 if every rule holds. The status is made as in
every kind with answers in text (see `answers.status_of`): an answer can be read if the rules say
so, that is, if the answer contains the number asked for, or a match of a `readable` pattern.

  rate        mean of the rows' values
  valid_rate  share of all rows whose answer could be judged
"""

from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.evaluation.reading import answers, failures, measures, rules
from weightsteer_jax.evaluation.reading.measures import each
from weightsteer_jax.evaluation.tasks.kind import Kind
from weightsteer_jax.inference.requests import GenerateResult


def check(item: Mapping[str, Any], where: str) -> None:
  """Raises InputError if the item's rules are broken or all empty."""
  rules.make(item['match'], where)


def fields(
  prepared: answers.Prepared, results: Sequence[GenerateResult], tokenizer: Any
) -> dict[str, Any]:
  """Value (1 if every rule holds), status, the text and its length in tokens."""
  item = prepared.item
  item_rules = rules.make(item['match'], item['id'])

  def read(text: str) -> tuple[float, dict[str, Any] | None]:
    value, readable = item_rules.judge(text)
    # None says that the answer could not be read; the value of the rules holds all the same.
    if not readable:
      return value, None
    return value, {}

  return answers.fields(prepared, results, tokenizer, read)


KIND = Kind[config.TextTask, GenerateResult](
  required=('id', 'messages', 'match'),
  optional=('group',),
  prepare=answers.prepare,
  requests=answers.requests,
  fields=fields,
  check=check,
  # The first metric is plotted.
  metrics={
    'rate': each(measures.value),
    'valid_rate': failures.valid_rate,
  },
)
