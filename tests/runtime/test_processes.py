"""One process by itself: the flags and clusters it recognises, and that it needs no others
(several: distributed/)."""

import importlib
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

import weightsteer_jax
from weightsteer_jax.runtime import ending, errors, preemption, processes
from weightsteer_jax.runtime.errors import InputError, NotFiniteError, WeightSteerError

SLURM = {
  'SLURM_JOB_ID': '77',
  'SLURM_STEP_NODELIST': 'node[1-4]',
  'SLURM_NTASKS': '4',
  'SLURM_PROCID': '2',
  'SLURM_LOCALID': '0',
}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
  """No variable of a cluster that these tests may run on."""
  for name in list(os.environ):
    if name.startswith(('SLURM_', 'OMPI_', 'KUBERNETES_', 'JAX_COORDINATOR')):
      monkeypatch.delenv(name)


def test_without_a_cluster_there_is_one_process(capsys):
  processes.join('auto')
  assert (processes.index(), processes.count(), processes.is_main()) == (0, 1, True)
  assert (
    processes.place('auto')
    == processes.place('off')
    == processes.place('on', num_processes=1)
    == (0, 1)
  )
  assert capsys.readouterr() == ('', '')


def test_a_cluster_is_detected_and_flags_come_before_it(monkeypatch):
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  assert processes.place('auto') == (2, 4)
  assert processes.place('off') == (0, 1)
  assert processes.place('auto', process_id=1) == (1, 4)
  assert processes.place('auto', coordinator='host:1', num_processes=2, process_id=1) == (1, 2)
  monkeypatch.setenv('SLURM_NTASKS', '1')
  monkeypatch.setenv('SLURM_PROCID', '0')
  processes.join('auto')
  assert processes.count() == 1


@pytest.mark.parametrize(
  'told, message',
  [
    (dict(mode='maybe'), 'expected one of auto, on, off'),
    (dict(mode='off', num_processes=2), 'leave them out'),
    (dict(coordinator='host'), 'expected HOST:PORT'),
    (dict(coordinator='host:1', num_processes=2, process_id=2), 'expected 0 to 1'),
    (dict(num_processes=0, process_id=0), 'expected 1 or more'),
    (dict(coordinator='host:1', num_processes=2), 'give all of'),
    (dict(mode='on'), 'no cluster was detected'),
  ],
)
def test_flags_that_do_not_go_together_are_refused(told, message):
  with pytest.raises(InputError, match=message):
    processes.join(**told)


@pytest.mark.parametrize('process', [0, 1])
def test_others_that_do_not_come_are_an_error_that_says_what_to_look_at(process):
  """In a process of its own, since one that has tried to join is not fit for anything else."""
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    port = taken.getsockname()[1]
  code = (
    'from weightsteer_jax.runtime import ending, processes\nending.catch_abort()\n'
    f'processes.join("auto", coordinator="127.0.0.1:{port}", num_processes=2, '
    f'process_id={process}, timeout=2)'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
  assert f'the processes of the run did not come together at 127.0.0.1:{port}' in done.stderr, (
    done.stderr
  )
  assert 'JAX_COORDINATOR_PORT' in done.stderr and (
    done.returncode == 75 or 'ProcessLost' in done.stderr
  )


def test_alone_every_message_is_ones_own(tmp_path):
  processes.barrier('x')
  assert processes.broadcast([1]) == [1] and processes.gather('a') == ['a']
  assert processes.on_main(lambda: 5) == 5
  processes.agree({'a': 1}, what='it')
  processes.share(tmp_path / 'none', what='the workdir')
  assert not (tmp_path / 'none').exists()
  np.testing.assert_array_equal(processes.fetch({'x': jnp.arange(3)})['x'], [0, 1, 2])


def test_what_differs_between_processes_is_named():
  assert (
    processes._difference({'a': 1, 'b': 2}, {'a': 1, 'b': 3, 'c': 4})
    == 'b is 3, not 2; c is 4, not None'
  )
  assert processes._difference('x', 'y') == "'y', not 'x'"


@pytest.mark.parametrize(
  'error, code, said',
  [
    (NotFiniteError('the loss is nan'), 70, 'error: the loss is nan\n'),
    (
      KeyboardInterrupt(),
      130,
      'error: interrupted; what was finished is kept, the same command continues\n',
    ),
    (ValueError('a bug'), 1, 'error: ValueError: a bug\n'),
  ],
)
def test_an_error_becomes_a_line_and_an_exit_status(capsys, error, code, said):
  assert ending.fail(error) == code
  told = capsys.readouterr().err
  assert told.endswith(said) and ('Traceback' in told or 'ValueError: a bug' in told) == (code == 1)


def test_no_progress_ends_the_process_with_its_stacks(tmp_path):
  code = (
    'import time\nfrom weightsteer_jax.runtime import ending\nending.guard(stall_minutes=1 / 60)\n'
    'for _ in range(4): time.sleep(0.5); ending.progress()\n'
    'print("went on", flush=True)\n'
    'def stuck(): time.sleep(60)\n'
    'stuck()\n'
  )
  began = time.monotonic()
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=50)
  assert done.returncode == 75 and 'went on' in done.stdout and time.monotonic() - began < 45
  assert 'in stuck' in done.stderr and 'no step, batch or stage was finished for' in done.stderr


def test_a_signal_is_noted_until_the_next_boundary_and_a_second_sigint_is_not():
  outside = []
  before = {
    number: signal.signal(number, lambda *_: outside.append(1)) for number in preemption.SIGNALS
  }
  try:
    with preemption.watch() as stop:
      assert not stop.reached()
      os.kill(os.getpid(), signal.SIGTERM)
      os.kill(os.getpid(), signal.SIGTERM)
      assert not outside and not stop.name
      assert stop.reached() and stop.name == 'SIGTERM'
      os.kill(os.getpid(), signal.SIGINT)
      assert not outside
      os.kill(os.getpid(), signal.SIGINT)
      assert outside == [1]
    with preemption.watch() as stop:
      os.kill(os.getpid(), signal.SIGTERM)
    assert stop.name == 'SIGTERM', 'it came after the last boundary'
    os.kill(os.getpid(), signal.SIGTERM)
    assert outside == [1, 1]
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def test_only_the_main_thread_watches():
  found = []

  def work():
    with preemption.watch() as stop:
      found.append(stop.reached())

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert found == [False]


def _subclasses(error):
  return {error}.union(*map(_subclasses, error.__subclasses__()))


def test_every_error_of_the_main_process_is_raised_by_the_others_too(monkeypatch):
  """A process learns an error's class by name, so that all of the package's are in errors.py."""
  for module in pkgutil.walk_packages(weightsteer_jax.__path__, 'weightsteer_jax.'):
    # The harness and Inspect need libraries of their own, and a __main__ would run.
    away = ('.harness', '.interfaces.inspect')
    if not module.name.endswith('__main__') and not any(part in module.name for part in away):
      importlib.import_module(module.name)
  monkeypatch.setattr(processes, 'count', lambda: 2)
  monkeypatch.setattr(processes, 'is_main', lambda: False)
  kinds = {kind for kind in _subclasses(WeightSteerError) if 'weightsteer_jax' in kind.__module__}
  assert errors.Conflict in kinds and len(kinds) > 8
  for kind in kinds:
    told = {'error': kind.__name__, 'message': 'what the main one met'}
    monkeypatch.setattr(processes, 'wait_for', lambda key: told)
    with pytest.raises(kind, match='what the main one met') as raised:
      processes.on_main(lambda: None)
    assert type(raised.value) is kind
