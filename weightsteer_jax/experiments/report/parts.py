"""Every example of a sweep as the page's scripts read them: an index and parts for each task.

The index has a line for each example: the question, and a number for each strength, enough to list,
filter and sort. Parts hold whole prompts and answers, and a page opens the part of the example that
a reader looks at. All are JSON texts; `page.py` puts them into the page or beside it.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from weightsteer_jax.experiments.report import study
from weightsteer_jax.experiments.report.examples import Places, Survey
from weightsteer_jax.experiments.report.judged import Scores
from weightsteer_jax.experiments.report.safe import script_json
from weightsteer_jax.experiments.report.study import Study, SweptTask

# Characters: of a part, which a browser reads in some milliseconds; of a text, beyond which nobody
# reads on; and of a question in the list.
PART_SIZE = 400_000
TEXT_LIMIT = 20_000
QUESTION_LIMIT = 160
# Answers on either side of the middle of a scale have changed sides.
MIDDLES = {(0.0, 1.0): 0.5, (0.0, 100.0): 50.0}

# Reads the row whose line begins at a byte.
ReadRow = Callable[[int], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Part:
  """A piece of the examples.

  Attributes:
    name: the task's number, and 'index' or the part's number, as in '0/index'.
    text: JSON that can stand in a script.
  """

  name: str
  text: str


@dataclasses.dataclass
class _Index:
  """What a task's list shows, a line for each example."""

  starts: list[int] = dataclasses.field(default_factory=list)
  names: list[str] = dataclasses.field(default_factory=list)
  questions: list[str] = dataclasses.field(default_factory=list)
  values: list[list[float | None]] = dataclasses.field(default_factory=list)
  margins: list[list[float | None]] = dataclasses.field(default_factory=list)
  failed: list[list[int]] = dataclasses.field(default_factory=list)


def columns(survey: Survey) -> list[tuple[str, float]]:
  """(arm, alpha) of every strength: arms in the order of the rows, alphas ascending."""
  every = []
  for arm in survey.arms:
    alphas = {alpha for name, _, alpha in survey.counts if name == arm}
    every += [(arm, alpha) for alpha in sorted(alphas)]
  return every


def shown_tasks(sweep: Study, survey: Survey) -> list[SweptTask]:
  """The tasks that have rows, behaviours first: a reader comes for the behaviours."""
  # sorted() keeps the order of the config within a role.
  ordered = sorted(sweep.tasks, key=lambda task: study.ROLES.index(task.role))
  return [task for task in ordered if survey.places[task.name]]


def about(sweep: Study, survey: Survey, scores: Scores) -> list[dict[str, Any]]:
  """What the page's scripts need of each task before any part is read."""
  tasks = []
  for task in shown_tasks(sweep, survey):
    low, high = survey.values.get(task.name, scores.range(task.name))
    # Rates keep the scale from 0 to 1 even where all answers were alike.
    if 0 <= low and high <= 1:
      low = 0.0
      high = 1.0
    places = survey.places[task.name].values()
    tasks.append(
      {
        'name': task.name,
        'role': task.role,
        'description': task.description,
        'low': low,
        'high': high,
        'middle': MIDDLES.get((low, high)),
        'examples': len(places),
        'rows': sum(len(place.lines) for place in places),
      }
    )
  return tasks


def make(sweep: Study, survey: Survey, scores: Scores) -> Iterator[Part]:
  """All parts of all tasks, each task's index last."""
  numbers = {column: number for number, column in enumerate(columns(survey))}
  path = study.rows_path(sweep.workdir)
  with path.open('rb') as file:

    def read(place: int) -> dict[str, Any]:
      file.seek(place)
      return study.parse_row(file.readline(), f'{path}, byte {place}')

    for task_number, task in enumerate(shown_tasks(sweep, survey)):
      places = survey.places[task.name]
      yield from _task_parts(str(task_number), task.name, places, read, numbers, scores)


def _task_parts(
  prefix: str,
  task: str,
  places: dict[str, Places],
  read: ReadRow,
  numbers: dict[tuple[str, float], int],
  scores: Scores,
) -> Iterator[Part]:
  """The parts of one task."""
  index = _Index()
  texts: list[str] = []
  size = 0
  for name in sorted(places, key=natural):
    rows = [read(place) for place in places[name].lines]
    rows.sort(key=lambda row: (numbers[row['arm'], row['alpha']], str(row['sample'])))
    example = _example(task, name, rows, numbers, scores)
    text = script_json(example)
    if texts and size + len(text) > PART_SIZE:
      yield Part(f'{prefix}/{len(index.starts) - 1}', f'[{",".join(texts)}]')
      texts = []
      size = 0
    if not texts:
      index.starts.append(len(index.names))
    texts.append(text)
    size += len(text)
    _enter(index, example, len(numbers))
  yield Part(f'{prefix}/{len(index.starts) - 1}', f'[{",".join(texts)}]')
  yield Part(f'{prefix}/index', script_json(vars(index)))


def natural(name: str) -> list[tuple[int, int, str]]:
  """A key to sort names by, digits as numbers: item 9 stands before item 10."""
  # Python reads no number of thousands of digits.
  parts = re.split(r'(\d{1,18})', name)
  return [(0, int(part), '') if part.isdecimal() else (1, 0, part) for part in parts]


def cut(text: str, limit: int = TEXT_LIMIT) -> str:
  """The text, or the beginning with a note of how much is missing.

  >>> cut('abcdef', 4)
  'abcd [2 more characters in sweep/rows.jsonl]'
  """
  if len(text) <= limit:
    return text
  return f'{text[:limit]} [{len(text) - limit} more characters in sweep/rows.jsonl]'


def _enter(index: _Index, example: dict[str, Any], width: int) -> None:
  """Adds an example's line to the index."""
  values: list[list[float]] = [[] for _ in range(width)]
  margins: list[list[float]] = [[] for _ in range(width)]
  failed = set()
  for column, _, value, status, _, logprobs, *_ in example['rows']:
    if value is not None:
      values[column].append(value)
    margin = _margin(logprobs, example['target'])
    if margin is not None:
      margins[column].append(margin)
    if status != 'ok':
      failed.add(column)
  index.names.append(example['id'])
  index.questions.append(_question(example))
  index.values.append([_mean(of_column) for of_column in values])
  index.margins.append([_mean(of_column) for of_column in margins])
  index.failed.append(sorted(failed))


def _question(example: dict[str, Any]) -> str:
  """What the user asks last, on one line; the example's first text or name without messages."""
  asked = [content for role, content in example['messages'] if role == 'user']
  said = [content for _, content in example['messages']]
  for text in (*asked[-1:], *said[-1:], *example['choices'][:1]):
    line = ' '.join(text.split())
    if line:
      return line[:QUESTION_LIMIT]
  return example['id']


def _margin(logprobs: list[float | None] | None, target: Any) -> float | None:
  """Log-odds of the target against the best other choice, in nats; None without choices."""
  known = [logprob for logprob in logprobs or [] if logprob is not None]
  # A text whose likelihood is not finite leaves no odds.
  if len(known) < 2 or len(known) < len(logprobs or []):
    return None
  if not isinstance(target, int) or not 0 <= target < len(known):
    return None
  own = known.pop(target)
  return own - max(known)


def _mean(values: list[float]) -> float | None:
  return rounded(sum(values) / len(values), digits=4) if values else None


def _example(
  task: str,
  name: str,
  rows: Sequence[dict[str, Any]],
  numbers: dict[tuple[str, float], int],
  scores: Scores,
) -> dict[str, Any]:
  """An example as the page shows it; most of a row is a list, since keys would repeat."""
  # The arm that adds a system prompt of its own is not the example's prompt.
  first = min(rows, key=lambda row: len(row['messages']))
  messages = _messages(first)
  shown_rows = []
  for row in rows:
    column = numbers[row['arm'], row['alpha']]
    judged = scores.of(row)
    value = rounded(row['value'])
    if value is None and judged:
      value = scores.value(judged)
    shown_rows.append(
      [
        column,
        row['sample'],
        value,
        str(row['status']),
        _text(row.get('completion')),
        [rounded(logprob) for logprob in row['logprobs']] if row.get('logprobs') else None,
        *_further(row, messages, judged),
      ]
    )
  return {
    'id': name,
    'messages': messages,
    'choices': [cut(str(choice)) for choice in first.get('choices') or []],
    'target': first.get('target'),
    'rows': shown_rows,
  }


def _further(
  row: dict[str, Any], messages: list[list[str]], judged: list[list[Any]]
) -> list[dict[str, Any]]:
  """What few rows have, as one object in a list; [] for a row with nothing further."""
  further: dict[str, Any] = {}
  if row.get('thought'):
    further['thought'] = cut(str(row['thought']))
    further['leaked'] = bool(row.get('thought_leaked'))
  if judged:
    further['judged'] = judged
  own = _messages(row)
  if own != messages:
    further['messages'] = own
  return [further] if further else []


def _messages(row: dict[str, Any]) -> list[list[str]]:
  # Foreign JSON: texts may be missing or of another type.
  return [
    [str(message.get('role', '')), cut(str(message.get('content', '')))]
    for message in row['messages']
  ]


def _text(value: Any) -> str | None:
  # Choices have no completion.
  return None if value is None else cut(str(value))


def rounded(value: float | None, digits: int = 6) -> float | None:
  """The number at some digits, or None where JSON has no number."""
  if value is None or not math.isfinite(value):
    return None
  short = float(f'{value:.{digits}g}')
  # Whole numbers, which most are, take a byte less or two.
  return int(short) if short.is_integer() and abs(short) < 1e15 else short
