"""Judging: the judges' scores of the rows of a sweep, each asked for once and kept on disk.

`<workdir>/sweep/judgements.jsonl` has a line for each (row, judge, purpose): {arm, alpha, task,
example, sample, judge, purpose, score, status, text, asked}, where `asked` is a hash of the judge's
prompt. A request that failed is asked again the next time, and the later line counts. `judges.json`
in the same folder records the judges' models and parameters.
"""

import collections
import contextlib
import math
import pathlib
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from weightsteer_jax.config import TextTask
from weightsteer_jax.evaluation import judges as judging
from weightsteer_jax.evaluation import tasks as kinds
from weightsteer_jax.evaluation.judges import Judge, Judgement, JudgeRequest
from weightsteer_jax.evaluation.reading import answers
from weightsteer_jax.evaluation.rows import RowKey, key_of
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import journal, made_from, resumable

Row = Mapping[str, Any]
LineKey = Callable[[Mapping[str, Any]], tuple[Hashable, ...]]


class LineWords(TypedDict):
  """A journal's lines: their columns, their names in error messages, and what values they have."""

  needs: tuple[str, ...]
  what: str
  again: str
  fault: NotRequired[Callable[[Mapping[str, Any]], str]]


def fault_of(line: Mapping[str, Any]) -> str:
  """What is wrong with the values of a judgement, or ''.

  >>> fault_of({'purpose': 'trait', 'score': 900.0, 'status': 'ok'})
  'score is 900.0, and one for trait lies between 0 and 100'
  """
  score = line['score']
  if (score is None) == (line['status'] == 'ok'):
    return f'score is {score!r}, and the status {line["status"]}'
  if score is None:
    return ''
  if not isinstance(score, (int, float)) or not math.isfinite(score):
    return f'score is {score!r}, and no number'
  purpose = judging.PURPOSES.get(line['purpose'])
  # A purpose of another version has limits that nobody here knows.
  low, high = purpose.scale.limits if purpose else (score, score)
  if not low <= score <= high:
    return f'score is {score!r}, and one for {line["purpose"]} lies between {low:g} and {high:g}'
  return ''


# Lines about rows; results need no hash, so a file without the column `asked` can be read.
_JUDGEMENT = LineWords(
  needs=(*RowKey._fields, 'judge', 'purpose', 'score', 'status', 'text'),
  what='a judgement',
  again='the judges',
  fault=fault_of,
)


def requests_of(tasks: Sequence[kinds.Task], rows: Iterable[Row]) -> list[JudgeRequest]:
  """The requests to judges about the rows, by the kinds of the tasks.

  The key of a request is the key of the row. Judges see answers without their thoughts, unless the
  task says `judge_thoughts`.

  Raises:
    InputError: if a row's item is missing in the row's task.
  """
  items = {}
  for task in tasks:
    for item in task.items:
      items[task.name, item['id']] = (task, item)
  names = {task.name for task in tasks}
  requests = []
  for row in rows:
    # Rows of tasks that the config no longer has stay in the file.
    if row['task'] not in names:
      continue
    if (row['task'], row['example']) not in items:
      raise InputError(
        f"the sweep has rows of the item '{row['example']}' of task '{row['task']}', which the "
        'task no longer has: judge with the config that the sweep was made with'
      )
    task, item = items[row['task'], row['example']]
    shown = row
    if isinstance(task.options, TextTask) and task.options.judge_thoughts:
      shown = answers.with_thought(row)
    # The kind decides: a choice needs no judge, an open answer may need several purposes.
    for purpose, fields in task.kind.judged(item, shown):
      requests.append(JudgeRequest(key_of(row), purpose, fields))
  return requests


def run(
  judges: Sequence[Judge],
  requests: Sequence[JudgeRequest],
  *,
  workdir: str | pathlib.Path,
  progress: bool = True,
) -> list[dict[str, Any]]:
  """The judgements of all requests, judge by judge.

  Judgements that are not on disk yet are asked for, and each is written as the judge answers;
  finished judgements are kept whatever happens.

  Raises:
    InputError: before anything is asked, if earlier judgements were made from other words or by
      another judge, or a judge cannot judge for a purpose; later, if a spend cap is reached or a
      judge cannot go on.
    EndpointError: if an endpoint does not answer.
    Preempted: if SIGTERM or SIGINT came.
  """
  # Before anything is asked: a judge that cannot go on would waste what the others cost. A
  # dictionary, for each purpose once and in order.
  purposes = dict.fromkeys(request.purpose for request in requests)
  for judge in judges:
    judge.check(purposes)
  return keep(
    judges,
    requests,
    pathlib.Path(workdir) / 'sweep',
    key=_key,
    columns=_columns,
    kind=_JUDGEMENT,
    progress=progress,
  )


def _columns(request: JudgeRequest) -> dict[str, Any]:
  # Requests about rows come from `requests_of`.
  assert isinstance(request.key, RowKey)
  return request.key._asdict()


def keep(
  judges: Sequence[Judge],
  requests: Sequence[JudgeRequest],
  folder: pathlib.Path,
  *,
  key: LineKey,
  columns: Callable[[JudgeRequest], Mapping[str, Any]],
  kind: LineWords,
  progress: bool = True,
) -> list[dict[str, Any]]:
  """The judgements of all requests, as `run`, for lines of any key.

  Args:
    folder: where `judgements.jsonl` and `judges.json` are kept.
    key: a line -> the line's key, with the judge and the purpose last.
    columns: a request -> the columns that name the judged text.
    kind: columns and names of the journal's lines.
  """
  lines = []
  for request in requests:
    # A hash of the whole prompt notices a changed judge prompt, reference or trait.
    asked = made_from.digest(judging.messages(request))
    lines.append({**columns(request), 'purpose': request.purpose, 'asked': asked})
  inputs = {f"judge '{judge.name}'": judge.inputs() for judge in judges}
  # A later line replaces an earlier one: failed requests are asked again in a later run.
  with journal.Journal(folder / 'judgements.jsonl', key=key, replaces=True, **kind) as on_disk:
    made_from.check_and_record(
      folder / 'judges.json',
      inputs,
      fresh=not on_disk.done,
      what='judgements',
      rows='judgements',
      remedy=(
        'Give the judge another name in the config, or move judgements.jsonl and judges.json away'
      ),
    )
    judgements = []
    for judge in judges:
      of_judge = [{**line, 'judge': judge.name} for line in lines]
      _judge(judge, requests, of_judge, on_disk, key, progress)
      judgements += [on_disk.done[key(line)] for line in of_judge]
    return judgements


def _judge(
  judge: Judge,
  requests: Sequence[JudgeRequest],
  lines: Sequence[dict[str, Any]],
  on_disk: journal.Journal,
  key: LineKey,
  progress: bool,
) -> None:
  """Asks a judge for the missing judgements."""

  def missing() -> list[int]:
    """Numbers of the lines that still lack a judgement."""
    return [i for i, line in enumerate(lines) if _is_open(on_disk, key(line), line)]

  # By number, so that a judgement finds its line whatever the key of the request was.
  numbered = [JudgeRequest(i, requests[i].purpose, requests[i].fields) for i in missing()]
  resumable.keep(
    on_disk,
    _judged(judge, numbered, lines),
    left=lambda: len(missing()),
    total=len(lines),
    what=f'judgements of {judge.name}',
    title=f'judge {judge.name}',
    unit='row',
    shown=progress,
  )


def _judged(
  judge: Judge, requests: Sequence[JudgeRequest], lines: Sequence[dict[str, Any]]
) -> Generator[dict[str, Any], None, None]:
  """The judge's lines, as the judge answers; the key of a request is a number of `lines`."""
  # Without requests the judge is not started: an endpoint would open the cache and a connection.
  if requests:
    # Closing ends the asking at once when a signal stops the loop.
    with contextlib.closing(judge.judge(iter(requests))) as judgements:
      for judgement in judgements:
        yield _line(lines[judgement.key], judgement)


def _is_open(on_disk: journal.Journal, key: Any, line: Mapping[str, Any]) -> bool:
  """Whether a judgement is still to be made.

  Raises:
    InputError: if the judgement on disk was made from another prompt.
  """
  known = on_disk.done.get(key)
  if known is None or known['status'] == 'failed':
    return True
  if known.get('asked') != line['asked']:
    raise InputError(
      f"{on_disk.path}: what judge '{line['judge']}' said for '{line['purpose']}' of {key[:-2]} "
      'was asked in other words (another judge prompt, reference or trait): move that file away to '
      'judge again; an endpoint is not asked again for what stayed the same'
    )
  return False


def _line(line: Mapping[str, Any], judgement: Judgement) -> dict[str, Any]:
  # The columns that name the judged text come first, in the file as in a table.
  later = ('judge', 'purpose', 'asked')
  named = {name: value for name, value in line.items() if name not in later}
  return {
    **named,
    'judge': line['judge'],
    'purpose': line['purpose'],
    'score': judgement.score,
    'status': judgement.status,
    'text': judgement.text,
    'asked': line['asked'],
  }


def read(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """The judgements of a workdir, the last of each key; [] if nothing was judged.

  Raises:
    CorruptError: if a line is broken.
  """
  path = pathlib.Path(workdir) / 'sweep' / 'judgements.jsonl'
  if not path.is_file():
    return []
  # A request that failed and was asked again has two lines.
  last = {_key(line): line for line in journal.read(path, journal.Format(**_JUDGEMENT))}
  return list(last.values())


def _key(line: Mapping[str, Any]) -> tuple[Hashable, ...]:
  return (*key_of(line), line['judge'], line['purpose'])


def accounting(judgements: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Rows {judge, purpose, asked, ok, refused, unparsable, failed}: counts of requests."""
  # (judge, purpose) -> status -> requests.
  counts: dict[tuple[str, str], collections.Counter] = collections.defaultdict(collections.Counter)
  for line in judgements:
    counts[line['judge'], line['purpose']][line['status']] += 1
  rows = []
  for (judge, purpose), by_status in counts.items():
    row = {'judge': judge, 'purpose': purpose, 'asked': sum(by_status.values())}
    rows.append(row | {status: by_status[status] for status in judging.STATUSES})
  return rows


def words(judgements: Iterable[Mapping[str, Any]]) -> Iterator[str]:
  """The accounting, a line each, as in 'gpt, trait: 40 asked, 38 ok, 2 unparsable'."""
  for row in accounting(judgements):
    counts = [f'{row["asked"]} asked']
    for status in judging.STATUSES:
      # A status that never occurred is no news.
      if row[status]:
        counts.append(f'{row[status]} {status}')
    yield f'{row["judge"]}, {row["purpose"]}: {", ".join(counts)}'
