"""What the metrics of all kinds are made of: clusters, numbers per row, and the scores of judges.

A metric is a function from the rows of one cell (one arm, task and alpha) to (cluster, value)
pairs. What does not count is left out, so that the pairs are the denominator.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

Row = Mapping[str, Any]
Pairs = list[tuple[str, float]]
Metric = Callable[[Sequence[Row]], Pairs]
Number = Callable[[Row], float | None]  # of one row; None does not count


def cluster(row: Row) -> str:
  """The name of what a row is a repetition of: the question of its item, or the item itself.

  >>> cluster({'example': 'q1/plain', 'group': 'q1'}), cluster({'example': 'q2'})
  ('q1', 'q2')
  """
  return row.get('group', row['example'])


def group_of(item: Mapping[str, Any]) -> dict[str, Any]:
  """What a row keeps of its item's group: {'group': name}, or nothing.

  >>> group_of({'id': 'q1/plain', 'group': 'q1'}), group_of({'id': 'q2'})
  ({'group': 'q1'}, {})
  """
  return {'group': item['group']} if 'group' in item else {}


def each(number: Number) -> Metric:
  """The metric that is the mean of a number over rows; rows whose number is None are left out."""
  return lambda rows: [
    (cluster(row), float(value)) for row in rows if (value := number(row)) is not None
  ]


def of_form(form: str, number: Number) -> Number:
  """The number of rows whose item asks in this form; no others count."""
  return lambda row: number(row) if row['form'] == form else None


def among(right: Number, *, base: str, forms: Sequence[str], number: Number) -> Metric:
  """The mean of a number over the rows of some forms, among questions that were right in the form
  `base`.

  Right there means: in the row of the same arm, alpha, question and sample.

  >>> rows = [{'example': f'{q}/{form}', 'group': q, 'form': form, 'sample': 0, 'value': value}
  ...         for q, form, value in (('p', 'plain', 1.0), ('p', 'cued', 0.0), ('q', 'plain', 0.0), ('q', 'cued', 1.0))]
  >>> among(lambda row: row['value'], base='plain', forms=('cued',), number=lambda row: row['value'])(rows)
  [('p', 0.0)]
  """

  def pairs(rows: Sequence[Row]) -> Pairs:
    solved = {
      (cluster(row), row['sample']) for row in rows if row['form'] == base and right(row) == 1
    }
    counted = [
      row for row in rows if row['form'] in forms and (cluster(row), row['sample']) in solved
    ]
    return each(number)(counted)

  return pairs


def forms_of(names: str, known: Sequence[str]) -> list[str]:
  """The forms that a config names with commas between them, in the order in which they are known.

  Raises:
    InputError: one that is not known.
  """
  named = [name.strip() for name in names.split(',')]
  for name in named:
    if name not in known:
      raise InputError(
        f"the config key 'form' names '{name}'{did_you_mean(name, known)}; there are: "
        f"{', '.join(known)}"
      )
  return [name for name in known if name in named]


def check_form(item: Mapping[str, Any], known: Iterable[str], where: str) -> None:
  """Nothing, if the item's form is one of the kind's.

  Raises:
    InputError: it is not; names the item.
  """
  if item['form'] not in known:
    raise InputError(f"{where}: 'form' is {item['form']!r}, expected one of {', '.join(known)}")


def asked(row: Row, purpose: str) -> Mapping[str, Any] | None:
  """What the judge that counts, the first one, said about a row for a purpose, or None if it was
  not asked.
  """
  first = next(iter(row.get('judgements', {}).values()), {})
  return first.get(purpose)


def score(row: Row, purpose: str) -> float | None:
  """The score of the judge that counts, in the purpose's own scale; None if there is none: it is
  never guessed.

  >>> row = {'judgements': {'first': {'trait': {'status': 'ok', 'score': 70.0}}, 'second': {}}}
  >>> score(row, 'trait'), score(row, 'coherence'), score({}, 'trait')
  (70.0, None, None)
  """
  judgement = asked(row, purpose)
  return judgement['score'] if judgement and judgement['status'] == 'ok' else None


def verdict(row: Row, purpose: str) -> float | None:
  """1.0 or 0.0 as the judge's score of a yes-or-no purpose (the probability of yes, 0 to 1) is
  above a half or not.

  Where the judge was not asked, it is what the rules said: the row's value. Where it was asked and
  gave no score, it is None.
  """
  if asked(row, purpose) is None:
    return row['value']
  found = score(row, purpose)
  return None if found is None else float(found > 0.5)


def attach(rows: Sequence[Row], judgements: Sequence[Row], judges: Sequence[str] = ()) -> list[Row]:
  """The rows, each with `judgements`: {judge: {purpose: judgement}}, the judge that counts first
  even where it said nothing.

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
