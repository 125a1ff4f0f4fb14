"""What the metrics of all kinds are made of: clusters, numbers per row, and the scores of judges.

A metric is a function from the rows of one cell (one arm, task and alpha) to (cluster, value) pairs. What does not count
is left out, so that the pairs are the denominator.
"""
from typing import Any, Callable, Mapping, Sequence

Row = Mapping[str, Any]
Pairs = list[tuple[str, float]]
Metric = Callable[[Sequence[Row]], Pairs]


def cluster(row: Row) -> str:
  """The name of what a row is a repetition of: the question of its item, or the item itself.

  >>> cluster({'example': 'q1/plain', 'group': 'q1'}), cluster({'example': 'q2'})
  ('q1', 'q2')
  """
  return row.get('group', row['example'])


def each(number: Callable[[Row], float | None]) -> Metric:
  """The metric that is the mean of a number over rows; rows whose number is None are left out."""
  return lambda rows: [(cluster(row), float(value)) for row in rows if (value := number(row)) is not None]


def asked(row: Row, purpose: str) -> Mapping[str, Any] | None:
  """What the judge that counts, the first one, said about a row for a purpose, or None if it was not asked."""
  first = next(iter(row.get('judgements', {}).values()), {})
  return first.get(purpose)


def score(row: Row, purpose: str) -> float | None:
  """The score of the judge that counts, in the purpose's own scale; None if there is none: it is never guessed.

  >>> row = {'judgements': {'first': {'trait': {'status': 'ok', 'score': 70.0}}, 'second': {}}}
  >>> score(row, 'trait'), score(row, 'coherence'), score({}, 'trait')
  (70.0, None, None)
  """
  judgement = asked(row, purpose)
  return judgement['score'] if judgement and judgement['status'] == 'ok' else None


def verdict(row: Row, purpose: str) -> float | None:
  """1.0 or 0.0 as the judge's score of a yes-or-no purpose (the probability of yes, 0 to 1) is above a half or not.

  Where the judge was not asked, it is what the rules said: the row's value. Where it was asked and gave no score, it is
  None.
  """
  if asked(row, purpose) is None:
    return row['value']
  found = score(row, purpose)
  return None if found is None else float(found > 0.5)


def attach(rows: Sequence[Row], judgements: Sequence[Row], judges: Sequence[str] = ()) -> list[Row]:
  """The rows, each with `judgements`: {judge: {purpose: judgement}}, the judge that counts first even where it said
  nothing.

  Args:
    judges: names in order; by default as the judgements first mention them.
  """
  names = list(dict.fromkeys([*judges, *(judgement['judge'] for judgement in judgements)]))
  found: dict[tuple, dict[str, dict[str, Row]]] = {}
  for judgement in judgements:
    by_judge = found.setdefault(_key(judgement), {name: {} for name in names})
    by_judge[judgement['judge']][judgement['purpose']] = judgement
  return [{**row, 'judgements': found.get(_key(row), {})} for row in rows]


def _key(row: Row) -> tuple:
  return row['arm'], float(row['alpha']), row['task'], row['example'], row['sample']
