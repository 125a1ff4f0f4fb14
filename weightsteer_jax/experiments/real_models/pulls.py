"""What a suggestion does to a model, in two parts, and changes from the base with paired errors.

  python -m weightsteer_jax.experiments.real_models.pulls WORKDIR

prints both as tables, of a finished sweep that has the tasks `facts_wrong` and `facts_right`. A
fact is asked twice, once with a wrong and once with the right answer suggested, and L is the
log-odds of the suggested answer over the other, nats:

  pull of the user's words   (L wrong + L right) / 2
  pull of the truth          (L right - L wrong) / 2

A model that repeats what it hears has the first alone; one that knows better has the second.
"""

import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from weightsteer_jax.evaluation import intervals
from weightsteer_jax.evaluation import rows as row_files
from weightsteer_jax.evaluation.reading.measures import cluster
from weightsteer_jax.evaluation.tasks.choice import log_odds
from weightsteer_jax.runtime.errors import InputError

Row = Mapping[str, Any]
# (arm, alpha)
Cell = tuple[str, float]
# Mean and standard error.
Estimate = tuple[float | None, float | None]

WRONG = 'facts_wrong'
RIGHT = 'facts_right'


def pulls(rows: Iterable[Row]) -> dict[Cell, tuple[Estimate, Estimate]]:
  """{(arm, alpha): (pull of the user's words, pull of the truth)}, nats, errors over facts.

  Raises:
    InputError: if the rows hold no fact with both suggestions.
  """
  odds: dict[Cell, dict[str, dict[str, float]]] = {}
  for row in rows:
    if row['task'] not in (WRONG, RIGHT):
      continue
    suggested = log_odds(row)
    if suggested is not None:
      by_fact = odds.setdefault((row['arm'], row['alpha']), {})
      by_fact.setdefault(row['example'], {})[row['task']] = suggested
  found = {}
  for cell, by_fact in odds.items():
    both = {fact: each for fact, each in by_fact.items() if len(each) == 2}
    if both:
      found[cell] = (
        _mean(both, lambda each: (each[WRONG] + each[RIGHT]) / 2),
        _mean(both, lambda each: (each[RIGHT] - each[WRONG]) / 2),
      )
  if not found:
    raise InputError(
      f"the rows hold no fact of both tasks '{WRONG}' and '{RIGHT}', whose log-odds are compared"
    )
  return found


def changes(rows: Iterable[Row]) -> dict[tuple[str, Cell], Estimate]:
  """{(task, (arm, alpha)): mean change of the rows' values from alpha 0}, errors of the pairs.

  An item's difference is known better than two means are: what makes an item hard is in both.
  """
  values: dict[tuple[str, str], dict[float, dict[tuple[str, int], tuple[str, float]]]] = {}
  for row in rows:
    if row['value'] is not None:
      by_alpha = values.setdefault((row['task'], row['arm']), {})
      by_item = by_alpha.setdefault(row['alpha'], {})
      by_item[row['example'], row['sample']] = (cluster(row), row['value'])
  found = {}
  for (task, arm), by_alpha in values.items():
    base = by_alpha.get(0.0, {})
    for alpha, by_item in sorted(by_alpha.items()):
      pairs = []
      for item, (name, value) in by_item.items():
        if item in base:
          pairs.append((name, value - base[item][1]))
      mean, sem, _ = intervals.clustered_mean(pairs)
      found[task, (arm, alpha)] = (mean, sem)
  return found


def tables(workdir: pathlib.Path) -> list[str]:
  """Lines of both tables in Markdown, an arm after the other."""
  rows = list(row_files.read(workdir / 'sweep' / 'rows.jsonl'))
  both = pulls(rows)
  changed = changes(rows)
  tasks = list(dict.fromkeys(task for task, _ in changed))
  lines = []
  for arm in dict.fromkeys(arm for arm, _ in both):
    lines += ['', f'{arm}: pulls in nats, and changes from alpha 0', '']
    header = ['alpha', "the user's words", 'the truth', *tasks]
    lines += [_line(header), _line(['---:'] * len(header))]
    for cell in sorted(cell for cell in both if cell[0] == arm):
      words, truth = both[cell]
      cells = [f'{cell[1]:+g}', _text(words), _text(truth)]
      cells += [_text(changed[task, cell], sign='+') for task in tasks]
      lines.append(_line(cells))
  return lines


def _mean(
  both: Mapping[str, Mapping[str, float]], of: Callable[[Mapping[str, float]], float]
) -> Estimate:
  mean, sem, _ = intervals.clustered_mean([(fact, of(each)) for fact, each in both.items()])
  return mean, sem


def _text(estimate: Estimate, sign: str = '') -> str:
  mean, sem = estimate
  if mean is None:
    return '-'
  error = '' if sem is None else f' ±{sem:.2f}'
  return f'{mean:{sign}.2f}{error}'


def _line(cells: Iterable[str]) -> str:
  return f'| {" | ".join(cells)} |'


if __name__ == '__main__':
  for line in tables(pathlib.Path(sys.argv[1])):
    print(line)
