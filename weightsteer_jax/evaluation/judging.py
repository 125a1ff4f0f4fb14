"""Judging: what judges say of the rows of a sweep, each asked once and kept on disk.

`<workdir>/sweep/judgements.jsonl` has a line for each (row, judge, purpose): {arm, alpha, task,
example, sample, judge, purpose, score, status, text, asked}, `asked` a hash of the words that the
judge was asked in. What failed is asked again the next time, and the later line counts.
`judges.json` beside it says what the judgements were made with.
"""

import collections
import contextlib
import pathlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from weightsteer_jax.evaluation import judges as judging
from weightsteer_jax.evaluation import tasks as kinds
from weightsteer_jax.evaluation.judges import Judge, Judgement, JudgeRequest
from weightsteer_jax.evaluation.rows import RowKey, key_of
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import journal, made_from, resumable

Row = Mapping[str, Any]
_KIND = dict(
  needs=(*RowKey._fields, 'judge', 'purpose', 'score', 'status', 'text'),
  what='a judgement',
  again='the judges',
)


def requests_of(tasks: Sequence[kinds.Task], rows: Iterable[Row]) -> list[JudgeRequest]:
  """What judges are to be asked about the rows, by the kinds of their tasks; the key of a request
  is that of its row.

  Raises:
    InputError: a row of an item that its task does not have.
  """
  items = {(task.name, item['id']): (task.kind, item) for task in tasks for item in task.items}
  names = {task.name for task in tasks}
  found = []
  for row in rows:
    if row['task'] not in names:
      continue  # An earlier sweep's.
    if (row['task'], row['example']) not in items:
      raise InputError(
        f"the sweep has rows of the item '{row['example']}' of task '{row['task']}', which the "
        'task no longer has: judge with the config that the sweep was made with'
      )
    kind, item = items[row['task'], row['example']]
    questions = kind.judged(item, row)
    found += [JudgeRequest(key_of(row), purpose, fields) for purpose, fields in questions]
  return found


def run(
  judges: Sequence[Judge],
  requests: Sequence[JudgeRequest],
  *,
  workdir: str | pathlib.Path,
  progress: bool = True,
) -> list[dict[str, Any]]:
  """The judgements of all requests by all judges, in that order; those not on disk yet are asked
  for, each written as it comes.

  Raises:
    InputError: judgements that were made from other words, by another judge, or for a purpose that
      a judge cannot judge for; before anything is asked. A spend cap that is reached, and what else
      a judge cannot go on after.
    EndpointError: an endpoint that does not answer. Preempted: SIGTERM or SIGINT came. What was
      judged is kept.
  """
  for judge in judges:
    judge.check(dict.fromkeys(request.purpose for request in requests))
  return keep(
    judges,
    requests,
    pathlib.Path(workdir) / 'sweep',
    key=lambda line: (*key_of(line), line['judge'], line['purpose']),
    columns=lambda request: request.key._asdict(),
    kind=_KIND,
    progress=progress,
  )


def keep(
  judges: Sequence[Judge],
  requests: Sequence[JudgeRequest],
  folder: pathlib.Path,
  *,
  key,
  columns,
  kind: Mapping[str, Any],
  progress: bool = True,
) -> list[dict[str, Any]]:
  """As `run`, for lines of any key: `judgements.jsonl` and `judges.json` in the folder.

  Args:
    key: a line -> its key. columns: a request -> the columns that name what is judged. kind: the
      journal's words.
  """
  lines = [
    {
      **columns(request),
      'purpose': request.purpose,
      'asked': made_from.digest(judging.messages(request)),
    }
    for request in requests
  ]
  with journal.Journal(folder / 'judgements.jsonl', key=key, replaces=True, **kind) as said:
    made_from.check(
      folder / 'judges.json',
      {f"judge '{judge.name}'": judge.inputs() for judge in judges},
      fresh=not said.done,
      what='judgements',
      rows='judgements',
      remedy=(
        'Give the judge another name in the config, or move judgements.jsonl and judges.json away'
      ),
    )
    for judge in judges:
      _judge(
        judge, requests, [{**line, 'judge': judge.name} for line in lines], said, key, progress
      )
    return [said.done[key({**line, 'judge': judge.name})] for judge in judges for line in lines]


def _judge(
  judge: Judge,
  requests: Sequence[JudgeRequest],
  lines: Sequence[dict[str, Any]],
  said: journal.Journal,
  key,
  progress: bool,
) -> None:
  """Asks one judge for what is not said yet."""
  missing = [
    JudgeRequest(i, requests[i].purpose, requests[i].fields)
    for i, line in enumerate(lines)
    if _is_open(said, key(line), line)
  ]
  resumable.keep(
    said,
    _judged(judge, missing, lines),
    left=lambda: sum(_is_open(said, key(line), line) for line in lines),
    total=len(lines),
    what=f'judgements of {judge.name}',
    title=f'judge {judge.name}',
    unit='row',
    shown=progress,
  )


def _judged(
  judge: Judge, requests: Sequence[JudgeRequest], lines: Sequence[dict[str, Any]]
) -> Generator[dict[str, Any], None, None]:
  """The judge's lines for requests whose keys are numbers of `lines`, as they come."""
  if requests:
    with contextlib.closing(judge.judge(iter(requests))) as judgements:
      for judgement in judgements:
        yield _line(lines[judgement.key], judgement)


def _is_open(said: journal.Journal, key: Any, line: Mapping[str, Any]) -> bool:
  """Whether a judgement is still to be made.

  Raises:
    InputError: it was made, from other words.
  """
  known = said.done.get(key)
  if known is None or known['status'] == 'failed':
    return True
  if known.get('asked') != line['asked']:
    raise InputError(
      f"{said.path}: what judge '{line['judge']}' said for '{line['purpose']}' of {key[:-2]} was "
      'asked in other words (another judge prompt, reference or trait): move that file away to '
      'judge again; an endpoint is not asked again for what stayed the same'
    )
  return False


def _line(line: Mapping[str, Any], judgement: Judgement) -> dict[str, Any]:
  named = {name: value for name, value in line.items() if name not in ('judge', 'purpose', 'asked')}
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
  """The judgements of a workdir, the last of each key; none where nothing was judged.

  Raises:
    CorruptError: a broken line.
  """
  path = pathlib.Path(workdir) / 'sweep' / 'judgements.jsonl'
  if not path.is_file():
    return []
  return list(
    {
      (*key_of(line), line['judge'], line['purpose']): line for line in journal.read(path, **_KIND)
    }.values()
  )


def accounting(judgements: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Rows {judge, purpose, asked, ok, refused, unparsable, failed}: what became of what was
  asked.
  """
  counts: dict[tuple[str, str], collections.Counter] = collections.defaultdict(collections.Counter)
  for line in judgements:
    counts[line['judge'], line['purpose']][line['status']] += 1
  return [
    {
      'judge': judge,
      'purpose': purpose,
      'asked': sum(found.values()),
      **{status: found[status] for status in judging.STATUSES},
    }
    for (judge, purpose), found in counts.items()
  ]


def words(judgements: Iterable[Mapping[str, Any]]) -> Iterator[str]:
  """The accounting, a line each, as in 'gpt, trait: 40 asked, 38 ok, 2 unparsable'."""
  for row in accounting(judgements):
    rest = ', '.join(f'{row[status]} {status}' for status in judging.STATUSES if row[status])
    yield f"{row['judge']}, {row['purpose']}: {row['asked']} asked, {rest}"
