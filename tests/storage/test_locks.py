"""A single writer: refused, taken over, given back."""

import contextlib
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time

import filelock
import pytest

from weightsteer_jax.evaluation.rows import Rows
from weightsteer_jax.experiments import stages, standalone
from weightsteer_jax.experiments.experiment import Experiment
from weightsteer_jax.runtime.errors import Busy, OutputError
from weightsteer_jax.storage import locks, writers

ROW = dict(arm='weights', alpha=0.0, task='t', example='e', sample=0, value=1.0, status='ok')
HOLDS = """
import sys, time
from weightsteer_jax.storage import locks
locks.BEAT_SECONDS = 0.05
lock = locks.Lock(sys.argv[1], what='the workdir', within=True)
print('held', flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def another_process(workdir):
  """A process that holds the workdir."""
  process = subprocess.Popen(
    [sys.executable, '-c', HOLDS, str(workdir)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
  )
  try:
    assert process.stdout.readline() == b'held\n'
    yield process
  finally:
    process.kill()
    process.wait()


def names(folder):
  return sorted(path.name for path in folder.rglob('*'))


def record(path, writer, host='elsewhere'):
  """Writes what a writer says of itself."""
  about = dict(host=host, writer=dataclasses.asdict(writer), since='2026-01-01', token='1')
  path.write_text(json.dumps(about))


def parent():
  """A process of this host that lives, and is not this one."""
  return writers.Writer(writers.place(), os.getppid(), writers.started(os.getppid()))


def gone():
  """A process of this host that has ended."""
  process = subprocess.Popen(['true'])
  writer = writers.Writer(writers.place(), process.pid, '1')
  process.wait()
  return writer


def test_a_second_process_is_refused_at_once_and_a_killed_one_is_followed_at_once(tmp_path):
  with another_process(tmp_path) as other:
    started = time.monotonic()
    with pytest.raises(Busy, match=f'^the workdir {tmp_path} is being .* process {other.pid} on'):
      locks.Lock(tmp_path, what='the workdir', within=True)
    with pytest.raises(Busy, match=r'since 20\d\d-.*end it \(kill \d+\), or name another --workd'):
      stages.begin(Experiment(None, tmp_path))
    assert time.monotonic() - started < 2
    other.send_signal(signal.SIGKILL)
    other.wait()
    locks.Lock(tmp_path, what='the workdir', within=True).release()
  assert names(tmp_path) == []


def test_a_writer_that_was_taken_over_ends(tmp_path):
  with another_process(tmp_path) as other:
    record(tmp_path / '.writer', writers.this())
    said = other.communicate(timeout=10)[1].decode()
    assert other.returncode == 65 and 'was taken over by another process' in said


def test_another_host_is_followed_once_its_sign_of_life_is_old(tmp_path):
  path = tmp_path / '.rows.jsonl.writer'
  record(path, writers.Writer('00000000', 1, '1'), host='elsewhere')
  with pytest.raises(Busy, match=r'process 1 on elsewhere since .*counts as ended 120 s after'):
    Rows(tmp_path / 'rows.jsonl')
  assert path.exists()
  before = time.time() - locks.STALE_SECONDS - 5
  os.utime(path, (before, before))
  with Rows(tmp_path / 'rows.jsonl') as rows:
    rows.append(ROW)
  assert names(tmp_path) == ['rows.jsonl']


@pytest.mark.parametrize('error', [NotImplementedError(), OSError(errno.ENOLCK, 'No locks')])
@pytest.mark.parametrize('writer, busy', [(parent, True), (gone, False)])
def test_the_record_alone_decides_without_flock(tmp_path, monkeypatch, writer, busy, error):
  def no_flock(self):
    raise error

  monkeypatch.setattr(filelock.FileLock, 'acquire', no_flock)
  record(tmp_path / '.out.writer', writer())
  with pytest.raises(Busy) if busy else contextlib.nullcontext():
    with locks.held(tmp_path / 'out', what='the output'):
      with pytest.raises(Busy, match='this very process'):
        locks.Lock(tmp_path / 'out', what='the output')
  assert names(tmp_path) == (['.out.writer'] if busy else [])


def test_an_empty_record_is_of_a_writer_that_died_as_it_was_made(tmp_path, monkeypatch):
  (tmp_path / '.out.writer').touch()
  monkeypatch.setattr(locks, 'EMPTY_SECONDS', 0.1)
  locks.Lock(tmp_path / 'out', what='the output').release()
  assert names(tmp_path) == []


def test_a_journal_has_one_writer_in_one_process_too(tmp_path):
  path = tmp_path / 'rows.jsonl'
  with Rows(path) as rows:
    with pytest.raises(Busy, match='this very process'):
      Rows(path)
    rows.append(ROW)
  with Rows(path) as rows:
    assert len(rows.done) == 1
  # A journal that nobody closed and nobody holds.
  forgotten = Rows(path)
  del forgotten
  Rows(path).close()


def test_blocks_of_one_process_are_one_block(tmp_path):
  with locks.held(tmp_path / 'new', what='the workdir', within=True):
    with locks.held(tmp_path / 'new', what='the workdir', within=True):
      pass
    assert names(tmp_path / 'new') == ['.lock', '.writer']
  # A workdir to which nothing was written is gone.
  assert names(tmp_path) == []


def test_of_two_programs_to_one_output_the_second_is_refused_before_it_reads(tmp_path):
  record(tmp_path / '.y.jsonl.writer', parent(), host='here')
  with pytest.raises(Busy, match=r'the output .*y\.jsonl is being written by process .*--output$'):
    standalone.generate('no-model', tmp_path / 'x.jsonl', tmp_path / 'y.jsonl')
  with pytest.raises(Busy):
    standalone.export('no-direction', 'no-model', 1.0, 'hf', output=tmp_path / 'y.jsonl')


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(OutputError, match='cannot be written'):
    locks.Lock(tmp_path / 'file' / 'out', what='the output')
