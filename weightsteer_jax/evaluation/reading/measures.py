"""Parts of the metrics of all kinds: clusters, numbers per row, and scores of judges.

A metric is a function from the rows of a cell (an arm, a task and an alpha) to (cluster, value)
pairs. A row that does not count has no pair, so the pairs are the denominator.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from weightsteer_jax.evaluation.rows import RowKey, key_of
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

Row = Mapping[str, Any]
# (cluster, value) pairs: the cluster is the unit of the standard error.
Pairs = list[tuple[str, float]]
# The rows of a cell as pairs.
Metric = Callable[[Sequence[Row]], Pairs]
# A row's number; a row whose number is None does not count.
Number = Callable[[Row], float | None]


def cluster(row: Row) -> str:
  """The name of the question behind a row: the item's group, or the item.

  Rows of one question are not independent, so the standard error takes them as one cluster.

  >>> cluster({'example': 'q1/plain', 'group': 'q1'}), cluster({'example': 'q2'})
  ('q1', 'q2')
  """
  return row.get('group', row['example'])


def group_of(item: Mapping[str, Any]) -> dict[str, Any]:
  """The item's group as a row keeps the group: {'group': name}, or nothing.

  >>> group_of({'id': 'q1/plain', 'group': 'q1'}), group_of({'id': 'q2'})
  ({'group': 'q1'}, {})
  """
  # Items of most kinds stand alone, and their rows get no column.
  if 'group' not in item:
    return {}
  return {'group': item['group']}


def value(row: Row) -> float | None:
  """The row's value; None if the model broke, or if only a judge can score the row."""
  return row['value']


def value_or_zero(row: Row) -> float:
  """The row's value; 0.0, a miss, for a row without a value."""
  return row['value'] or 0.0


def each(number: Number) -> Metric:
  """The mean of a number over the rows that have the number, as a metric."""

  def metric(rows: Sequence[Row]) -> Pairs:
    pairs = []
    for row in rows:
      x = number(row)
      # A row without a number is no zero: the row leaves the denominator.
      if x is not None:
        pairs.append((cluster(row), float(x)))
    return pairs

  return metric


def where(condition: Number, number: Number) -> Number:
  """The number of rows that meet the condition; None for all other rows."""

  def number_where(row: Row) -> float | None:
    if not condition(row):
      return None
    return number(row)

  return number_where


def of_form(form: str, number: Number) -> Number:
  """The number of rows whose item asks in this form; None for all other rows."""

  def number_of_form(row: Row) -> float | None:
    if row['form'] != form:
      return None
    return number(row)

  return number_of_form


def among(right: Number, *, base: str, forms: Sequence[str], number: Number) -> Metric:
  """The mean of a number over rows of `forms`, among questions right in the form `base`.

  A question counts as right for a row if the row in the form `base` with the same arm, alpha,
  question and sample is right.

  >>> asked = [('p', 'plain', 1.0), ('p', 'cued', 0.0), ('q', 'plain', 0.0), ('q', 'cued', 1.0)]
  >>> rows = [{'example': f'{question}/{form}', 'group': question, 'form': form, 'sample': 0,
  ...          'value': x} for question, form, x in asked]
  >>> among(value, base='plain', forms=('cued',), number=value)(rows)
  [('p', 0.0)]
  """

  def metric(rows: Sequence[Row]) -> Pairs:
    # All rows of a cell have one arm and one alpha, so question and sample are enough.
    solved = set()
    for row in rows:
      if row['form'] == base and right(row) == 1:
        solved.add((cluster(row), row['sample']))
    # The second pass: rows in the base form may come after the rows that depend on them.
    counted = []
    for row in rows:
      if row['form'] in forms and (cluster(row), row['sample']) in solved:
        counted.append(row)
    return each(number)(counted)

  return metric


def forms_of(names: str, known: Sequence[str]) -> list[str]:
  """The forms that a config names with commas between, in the order of `known`.

  Raises:
    InputError: if a form is not known.
  """
  named = [name.strip() for name in names.split(',')]
  # A misspelt form would otherwise leave its questions out without a word.
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


def judgement_of(row: Row, purpose: str) -> Mapping[str, Any] | None:
  """The first judge's judgement of a row for a purpose; None if the judge was not asked."""
  by_judge = list(row.get('judgements', {}).values())
  if not by_judge:
    return None
  # Only the first judge counts in metrics; the others serve `agreement`.
  return by_judge[0].get(purpose)


def score(row: Row, purpose: str) -> float | None:
  """The first judge's score, in the purpose's own scale; None without a score.

  A missing score is never guessed.

  >>> row = {'judgements': {'first': {'trait': {'status': 'ok', 'score': 70.0}}, 'second': {}}}
  >>> score(row, 'trait'), score(row, 'coherence'), score({}, 'trait')
  (70.0, None, None)
  """
  judgement = judgement_of(row, purpose)
  if not judgement or judgement['status'] != 'ok':
    return None
  return judgement['score']


def score_for(purpose: str) -> Number:
  """The first judge's score for a purpose, as a number of a row."""
  return lambda row: score(row, purpose)


def above(purpose: str, cut: float, *, inclusive: bool = False) -> Number:
  """Whether the first judge's score is above a cut (or at the cut); None without a score."""

  def number(row: Row) -> float | None:
    x = score(row, purpose)
    if x is None:
      return None
    # A published cut may count itself or not, so each caller says.
    return float(x >= cut) if inclusive else float(x > cut)

  return number


def verdict(row: Row, purpose: str) -> float | None:
  """1.0 or 0.0 as the first judge says yes or no; None if the judge gave no score.

  The score of a yes-or-no purpose is the probability of yes, cut at a half. Where no judge was
  asked the rules have decided: the verdict is the row's value.
  """
  if judgement_of(row, purpose) is None:
    return row['value']
  probability = score(row, purpose)
  # The judge was asked: the rules do not step in for a judge that failed.
  if probability is None:
    return None
  return float(probability > 0.5)


def attach(rows: Sequence[Row], judgements: Sequence[Row], judges: Sequence[str] = ()) -> list[Row]:
  """The rows, each with `judgements`: {judge: {purpose: judgement}}.

  The judge that counts comes first in `judgements`, even where that judge gave no judgement.

  Args:
    judges: names in order; by default as the judgements first mention them.
  """
  mentioned = [judgement['judge'] for judgement in judgements]
  # A dictionary keeps the order and drops the repetitions.
  names = list(dict.fromkeys([*judges, *mentioned]))
  by_row: dict[RowKey, dict[str, dict[str, Row]]] = {}
  for judgement in judgements:
    # Every judge has an entry, so that the first entry is the first judge's even if empty.
    no_judgements: dict[str, dict[str, Row]] = {name: {} for name in names}
    by_judge = by_row.setdefault(key_of(judgement), no_judgements)
    by_judge[judgement['judge']][judgement['purpose']] = judgement
  attached: list[Row] = []
  for row in rows:
    of_row = by_row.get(key_of(row), {})
    attached.append({**row, 'judgements': of_row})
  return attached
