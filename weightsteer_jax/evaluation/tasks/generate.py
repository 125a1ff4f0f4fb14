"""Free answers judged by rules.

An item is {"id", "messages", "match": {..}, "group": ".."} with the rules of `rules.py`; errors are
clustered by `group`, where there is one. The row's value is 1 if every rule holds. Its status is
'truncated' if the answer ran into the length limit, 'empty', 'unparsable' if a rule found nothing
to judge (a number was asked for and there is none), 'not_finite' if the model broke, otherwise
'ok'. All but 'not_finite' have a value: a model that stops making sense has not become better by
that.

  rate        mean of the rows' values
  valid_rate  share of all rows with an answer that could be judged
"""

from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.evaluation.reading import answers, failures, measures, rules
from weightsteer_jax.evaluation.reading.answers import Prepared, prepare, requests
from weightsteer_jax.evaluation.reading.measures import Metric, each
from weightsteer_jax.inference.requests import GenerateResult

REQUIRED, OPTIONAL, GENERATES = ('id', 'messages', 'match'), ('group',), True
METRICS: dict[str, Metric] = {
  'rate': each(lambda row: row['value']),
  'valid_rate': failures.valid_rate,
}


def check(item: Mapping[str, Any], where: str) -> None:
  """Nothing, if the item has rules that mean something.

  Raises:
    InputError: names the item and what is wrong with it.
  """
  rules.make(item['match'], where)


def fields(prepared: Prepared, results: Sequence[GenerateResult], tokenizer: Any) -> dict[str, Any]:
  """Value, status, the text and its length in tokens."""
  [result] = results
  text = answers.text_of(result, tokenizer)
  value, readable = rules.make(prepared.item['match'], prepared.item['id']).judge(text)
  row = {'completion': text, 'tokens': len(result.tokens), **measures.group_of(prepared.item)}
  if result.finish == 'not_finite':
    return {'value': None, 'status': 'not_finite', **row}
  status = (
    'empty'
    if not text.strip()
    else 'truncated'
    if result.finish == 'length'
    else 'ok'
    if readable
    else 'unparsable'
  )
  return {'value': value, 'status': status, **row}
