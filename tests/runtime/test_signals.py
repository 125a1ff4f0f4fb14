"""SIGTERM wherever it comes: each program here is a process of its own."""

import signal
import subprocess
import sys
import time

import pytest

from weightsteer_jax.runtime import signals

# Sends the first signal, and defines what the programs share.
BEGIN = """
import os, signal, sys, threading, time
from weightsteer_jax.runtime import signals
from weightsteer_jax.runtime.errors import Preempted
signals.listen()
def term(): os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.fixture(autouse=True)
def heard():
  """Ctrl-C as in a terminal, here and in processes begun here: jobs in the background ignore it."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


def outcome(code: str, *, within: float = 10.0) -> tuple[int, str]:
  """(exit status, what was said) of a program, which must end in time."""
  began = time.monotonic()
  done = subprocess.run(
    [sys.executable, '-c', BEGIN + code], capture_output=True, text=True, timeout=60
  )
  assert time.monotonic() - began < within, done.stderr
  return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
  'work',
  [
    'time.sleep(60)',
    'threading.Event().wait(60)',
    # Within C code, where no handler of Python runs.
    'import ctypes; ctypes.CDLL(None).sleep(60); ctypes.CDLL(None).sleep(60)',
  ],
)
def test_work_that_does_not_ask_is_ended_after_the_grace(work):
  code, said = outcome(f'signals.set_grace(0.3)\nterm()\n{work}\nprint("went on")')
  assert code == 75 and said == f'error: {signals.KEPT}\n'


def test_foreign_code_that_swallows_exceptions_sees_none():
  code, said = outcome(
    'signals.set_grace(60)\n'
    'try:\n  term(); time.sleep(0.2)\n'
    'except Exception: print("swallowed")\n'
    'try: signals.check()\n'
    'except Preempted as error: print(error); sys.exit(error.exit_code)\n'
  )
  assert (code, said) == (75, signals.KEPT + '\n')


def test_a_check_that_is_swallowed_does_not_make_the_process_deaf():
  code, said = outcome(
    'signals.set_grace(0.5)\nterm()\n'
    'while True:\n  time.sleep(0.05)\n  try: signals.check()\n  except Exception: pass\n'
  )
  assert code == 75 and signals.KEPT in said


def test_saving_is_not_cut_short_but_by_a_second_signal():
  save = 'signals.set_grace(0.1)\nterm()\nsignals.finish()\n'
  assert outcome(save + 'term()\ntime.sleep(1.5)\nprint("saved")') == (0, 'saved\n')
  code, said = outcome(save + 'time.sleep(1.2)\nterm()\ntime.sleep(60)')
  assert code == 75 and 'second SIGTERM' in said


def test_who_waits_for_the_signal_is_woken_and_ends_in_its_own_way():
  serve = (
    'signals.set_grace(0.2)\nthreading.Timer(0.2, term).start()\n'
    'assert not signals.requested() and signals.wait(30)\n'
    'signals.finish()\ntime.sleep(0.5)\nprint("served the rest")'
  )
  assert outcome(serve) == (0, 'served the rest\n')


def test_a_forked_child_keeps_its_signals_to_itself():
  code, said = outcome(
    'child = os.fork()\n'
    'if not child: time.sleep(60)\n'
    'time.sleep(0.2); os.kill(child, signal.SIGTERM)\n'
    'print(os.WTERMSIG(os.waitpid(child, 0)[1]), signals.wait(0.3))'
  )
  assert (code, said) == (0, f'{signal.SIGTERM.value} False\n')


def test_a_tokenizer_that_is_read_is_not_called_bad():
  code, said = outcome(
    'import transformers\n'
    'from weightsteer_jax.data import templates\n'
    'from weightsteer_jax.experiments import organism\n'
    'signals.set_grace(30)\n'
    'real = transformers.AutoTokenizer.from_pretrained\n'
    'def slow(*args, **options):\n'
    '  term(); time.sleep(0.3)\n  return real(*args, **options)\n'
    'transformers.AutoTokenizer.from_pretrained = slow\n'
    'try: templates.load_tokenizer(organism.checkpoint_folder())\n'
    'except Preempted as error: print(error); sys.exit(error.exit_code)\n',
    within=40,
  )
  assert code == 75 and said.endswith(signals.KEPT + '\n')


def test_ctrl_c_is_not_lost_to_a_callback_of_the_garbage_collector():
  status, said = outcome(
    """
import gc
signals.act(told=None, end=print)
def callback(phase, info):
  gc.callbacks.remove(callback)
  signal.raise_signal(signal.SIGINT)
gc.callbacks.append(callback)
try:
  gc.collect()
  time.sleep(5)
except KeyboardInterrupt:
  print('interrupted')
"""
  )
  assert (status, said) == (0, 'interrupted\n')


def test_ctrl_c_among_the_imports_is_no_fault_of_a_module():
  status, said = outcome(
    """
try:
  signal.raise_signal(signal.SIGINT)
except BaseException as error:
  raise ImportError('the module failed to import') from error
"""
  )
  assert (status, said) == (130, 'error: interrupted; nothing was begun\n')


def test_ctrl_c_is_left_alone_where_the_shell_has_it_ignored():
  code = BEGIN.replace(
    'signals.listen', 'signal.signal(signal.SIGINT, signal.SIG_IGN)\nsignals.listen'
  )
  done = subprocess.run(
    [sys.executable, '-c', code + 'signal.raise_signal(signal.SIGINT)\nprint("went on")'],
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout) == (0, 'went on\n')


def test_ctrl_c_sets_an_event_where_work_looks_for_it():
  with signals.interruptible() as interrupted:
    signal.raise_signal(signal.SIGINT)
    assert interrupted.is_set()
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  with signals.interruptible() as interrupted:
    assert not interrupted.is_set()
  with pytest.raises(KeyboardInterrupt):
    signal.raise_signal(signal.SIGINT)
