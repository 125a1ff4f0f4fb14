"""What became of the thoughts of a reasoning model, measured for every task with answers in text.

  thought_rate       share of answers with a thought that says something
  thought_tokens     mean length of these thoughts in tokens, tags included
  thought_cut_rate   share of answers that never came: the text ended within the thought, or right
                     behind the thought at the length limit
  thought_leak_rate  share of answers in which thinking stands outside of its place: behind the
                     beginning of the answer, in a second thought, before a closing tag that nothing
                     opened, or where the prompt had closed an empty thought
  thought_only_rate  share of answered thoughts that show what the answer does not show: the task's
                     rule gives the thought a value of 1 and the answer a value of 0

Rows of models without thoughts have no such columns, and count in none of the shares.
"""

import collections
from collections.abc import Iterable, Mapping

from weightsteer_jax import config
from weightsteer_jax.evaluation.reading.measures import Metric, Row, each


def thinks(row: Row) -> bool:
  """Whether the row's model has begun a thought that says something."""
  return bool(row.get('thought'))


def cut_words(rows: Iterable[Row], tasks: Mapping[str, config.Task]) -> list[str]:
  """A line for each task of which thoughts were cut, with the key to raise."""
  # task -> how generation ended -> rows.
  cut: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
  thoughts: collections.Counter[str] = collections.Counter()
  for row in rows:
    if 'thought' in row:
      thoughts[row['task']] += thinks(row)
    if row.get('thought_cut'):
      cut[row['task']][row['finish']] += 1
  lines = []
  for task, endings in cut.items():
    line = f'{task}: {endings.total()} of {thoughts[task]} thoughts were cut before an answer came'
    options = tasks.get(task)
    if endings['length'] and isinstance(options, config.TextTask):
      line += (
        f', {endings["length"]} by the length limit: raise tasks.{task}.max_new_tokens '
        f'(now {options.max_new_tokens})'
      )
    lines.append(line)
  return lines


def _thought(row: Row) -> float | None:
  if 'thought' not in row:
    return None
  return float(thinks(row))


def _tokens(row: Row) -> float | None:
  return float(row['thought_tokens']) if thinks(row) else None


def _cut(row: Row) -> float | None:
  return _mark(row, 'thought_cut')


def _leaked(row: Row) -> float | None:
  return _mark(row, 'thought_leaked')


def _mark(row: Row, name: str) -> float | None:
  # A broken model has neither thought nor answer, but its row has the columns.
  if name not in row:
    return None
  return float(row[name])


def _only(row: Row) -> float | None:
  # Where only a judge reads the behaviour, nothing was read from the thought.
  if 'thought_value' not in row or row['value'] is None:
    return None
  return float(row['thought_value'] == 1 and row['value'] == 0)


METRICS: Mapping[str, Metric] = {
  'thought_rate': each(_thought),
  'thought_tokens': each(_tokens),
  'thought_cut_rate': each(_cut),
  'thought_leak_rate': each(_leaked),
  'thought_only_rate': each(_only),
}
