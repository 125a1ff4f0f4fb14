"""Free answers judged by rules.

An item is {"id", "messages", "match": {..}, "group": ".."} with the rules of `rules.py`; errors are
clustered by `group`, where there is one. The row's value is 1 if every rule holds. The status is
that of every kind that asks for a text (see `answers.status_of`), where an answer can be read if
the rules say so: the number that is asked for is there, or one of the `readable` patterns.

  rate        mean of the rows' values
  valid_rate  share of all rows with an answer that could be judged
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
  item_rules = rules.make(prepared.item['match'], prepared.item['id'])

  def read(text: str) -> tuple[float, dict[str, Any] | None]:
    value, readable = item_rules.judge(text)
    return value, {} if readable else None

  return answers.fields(prepared, results, tokenizer, read)


KIND = Kind[config.TextTask, GenerateResult](
  required=('id', 'messages', 'match'),
  optional=('group',),
  prepare=answers.prepare,
  requests=answers.requests,
  fields=fields,
  check=check,
  metrics={
    'rate': each(measures.value),
    'valid_rate': failures.valid_rate,
  },
)
