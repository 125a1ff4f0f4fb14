"""What the metrics of all kinds are made of: clusters, numbers per row, and scores of judges.

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
# Of one row; a row whose number is None does not count.
Number = Callable[[Row], float | None]


def cluster(row: Row) -> str:
  """The name of the question that a row repeats: the group of its item, or the item.

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


def value(row: Row) -> float | None:
  """The row's value; None if the model broke, or only a judge can say."""
  return row['value']


def value_or_zero(row: Row) -> float:
  """The row's value, where a row without one counts as a miss."""
  return row['value'] or 0.0


def each(number: Number) -> Metric:
  """The metric that is the mean of a number over the rows that have one."""

  def pairs(rows: Sequence[Row]) -> Pairs:
    numbers = [(cluster(row), number(row)) for row in rows]
    return [(name, float(x)) for name, x in numbers if x is not None]

  return pairs


def where(condition: Number, number: Number) -> Number:
  """The number of rows of which the condition is true; None for all others."""
  return lambda row: number(row) if condition(row) else None


def of_form(form: str, number: Number) -> Number:
  """The number of rows whose item asks in this form; None for all others."""
  return lambda row: number(row) if row['form'] == form else None


def among(right: Number, *, base: str, forms: Sequence[str], number: Number) -> Metric:
  """The mean of a number over rows of some forms, among questions right in the form `base`.

  A question is right there if the row of the same arm, alpha, question and sample is.

  >>> asked = [('p', 'plain', 1.0), ('p', 'cued', 0.0), ('q', 'plain', 0.0), ('q', 'cued', 1.0)]
  >>> rows = [{'example': f'{question}/{form}', 'group': question, 'form': form, 'sample': 0,
  ...          'value': x} for question, form, x in asked]
  >>> among(value, base='plain', forms=('cued',), number=value)(rows)
  [('p', 0.0)]
  """

  def pairs(rows: Sequence[Row]) -> Pairs:
    base_rows = [row for row in rows if row['form'] == base]
    solved = {(cluster(row), row['sample']) for row in base_rows if right(row) == 1}
    asked_in_forms = [row for row in rows if row['form'] in forms]
    counted = [row for row in asked_in_forms if (cluster(row), row['sample']) in solved]
    return each(number)(counted)

  return pairs


def forms_of(names: str, known: Sequence[str]) -> list[str]:
  """The forms that a config names with commas between, in the order in which they are known.

  Raises:
    InputError: if a form is not known.
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
  """Raises InputError if the item's form is none of the kind's; names the item."""
  if item['form'] not in known:
    raise InputError(f"{where}: 'form' is {item['form']!r}, expected one of {', '.join(known)}")


def asked(row: Row, purpose: str) -> Mapping[str, Any] | None:
  """What the first judge said about a row for a purpose; None if the judge was not asked."""
  by_judge = list(row.get('judgements', {}).values())
  return by_judge[0].get(purpose) if by_judge else None


def score(row: Row, purpose: str) -> float | None:
  """The first judge's score, in the purpose's own scale; None if there is none.

  A score that is missing is never guessed.

  >>> row = {'judgements': {'first': {'trait': {'status': 'ok', 'score': 70.0}}, 'second': {}}}
  >>> score(row, 'trait'), score(row, 'coherence'), score({}, 'trait')
  (70.0, None, None)
  """
  judgement = asked(row, purpose)
  return judgement['score'] if judgement and judgement['status'] == 'ok' else None


def score_for(purpose: str) -> Number:
  """The number that is the first judge's score for a purpose."""
  return lambda row: score(row, purpose)


def above(purpose: str, cut: float, *, inclusive: bool = False) -> Number:
  """Whether the first judge's score is above a cut (or at the cut); None without a score."""

  def number(row: Row) -> float | None:
    x = score(row, purpose)
    return None if x is None else float(x > cut or (inclusive and x == cut))

  return number


def verdict(row: Row, purpose: str) -> float | None:
  """1.0 or 0.0 as the first judge says yes or no; None if the judge was asked and gave no score.

  The score of a yes-or-no purpose is the probability of yes, cut at a half. Where no judge was
  asked the rules have decided: the verdict is the row's value.
  """
  if asked(row, purpose) is None:
    return row['value']
  probability = score(row, purpose)
  return None if probability is None else float(probability > 0.5)


def attach(rows: Sequence[Row], judgements: Sequence[Row], judges: Sequence[str] = ()) -> list[Row]:
  """The rows, each with `judgements`: {judge: {purpose: judgement}}.

  The judge that counts comes first, even where this judge said nothing.

  Args:
    judges: names in order; by default as the judgements first mention them.
  """
  mentioned = [judgement['judge'] for judgement in judgements]
  names = list(dict.fromkeys([*judges, *mentioned]))
  by_row: dict[tuple, dict[str, dict[str, Row]]] = {}
  for judgement in judgements:
    by_judge = by_row.setdefault(_key(judgement), {name: {} for name in names})
    by_judge[judgement['judge']][judgement['purpose']] = judgement
  return [{**row, 'judgements': by_row.get(_key(row), {})} for row in rows]


def _key(row: Row) -> tuple:
  return row['arm'], float(row['alpha']), row['task'], row['example'], row['sample']
