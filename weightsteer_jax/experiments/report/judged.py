"""Scores of judges, found by row: what a page shows beside an answer that a judge has read."""

from pathlib import Path
from typing import Any

from weightsteer_jax.experiments.report import study

# Columns that name a row.
_KEY = ('arm', 'alpha', 'task', 'example', 'sample')


class Scores:
  """The judgements of a sweep; none where no judge was asked."""

  def __init__(self, workdir: str | Path):
    # {row: {(judge, purpose): [judge, purpose, score, status]}}.
    self._by_row: dict[tuple[Any, ...], dict[tuple[str, str], list[Any]]] = {}
    self._ranges: dict[str, tuple[float, float]] = {}
    for line in study.judgements(workdir):
      of_row = self._by_row.setdefault(_key(line), {})
      judge = line['judge']
      purpose = line['purpose']
      score = line['score']
      # A question that failed is asked again, and the later line counts.
      of_row[judge, purpose] = [judge, purpose, score, line['status']]
      # Scores are probabilities, or points of 100.
      if score is not None and score > 1:
        self._ranges[line['task']] = (0.0, 100.0)

  def of(self, row: dict[str, Any]) -> list[list[Any]]:
    """[[judge, purpose, score or None, status]] about a row, in the order of asking."""
    return list(self._by_row.get(_key(row), {}).values())

  def value(self, judged: list[list[Any]]) -> float | None:
    """The score that stands for a row without a value: the first judge's on the first purpose."""
    return judged[0][2]

  def range(self, task: str) -> tuple[float, float]:
    """The scale of a task's scores: 0 to 1, or 0 to 100."""
    return self._ranges.get(task, (0.0, 1.0))


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
  return tuple(row[name] for name in _KEY)
