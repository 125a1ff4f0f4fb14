import os
import signal

import pytest

from weightsteer_jax.runtime.errors import Preempted
from weightsteer_jax.storage import resumable
from weightsteer_jax.storage.journal import Journal

TOTAL = 5


def run(path, made, signalled_at=None):
  """Keeps lines 0 to 4; `made` gets the numbers of lines that are made, and 'closed' at the end."""

  def lines(missing):
    try:
      for number in missing:
        if number == signalled_at:
          os.kill(os.getpid(), signal.SIGTERM)
        made.append(number)
        yield {'number': number}
    finally:
      made.append('closed')

  kind = dict(needs=('number',), what='a number', again='the test')
  with Journal(path, key=lambda line: line['number'], **kind) as journal:
    missing = [number for number in range(TOTAL) if number not in journal.done]
    resumable.keep(
      journal,
      lines(missing),
      left=lambda: sum(number not in journal.done for number in range(TOTAL)),
      total=TOTAL,
      what='numbers',
      title='numbers',
      unit='number',
    )
    return sorted(journal.done)


def test_a_signal_stops_behind_a_finished_line_and_the_rest_is_made_later(tmp_path):
  path = tmp_path / 'numbers.jsonl'
  made = []
  with pytest.raises(Preempted, match=rf'^SIGTERM came: 2 of 5 numbers are left, .* in {path};'):
    run(path, made, signalled_at=2)
  assert made == [0, 1, 2, 'closed']
  assert path.read_text().count('\n') == 3
  later = []
  assert run(path, later) == [0, 1, 2, 3, 4]
  assert later == [3, 4, 'closed']


def test_work_that_is_done_makes_nothing(tmp_path):
  run(tmp_path / 'numbers.jsonl', [])
  made = []
  assert run(tmp_path / 'numbers.jsonl', made) == [0, 1, 2, 3, 4]
  assert made == ['closed']
