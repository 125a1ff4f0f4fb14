"""A verb as it is, with a fault after a step of one process's training or a row of its sweep.

python program.py steer|finetune|sweep [--fault=raise|stop|kill|hang --on=PROCESS --at=STEP
--at_row=N]
    [--pause=SECONDS] flags of the verb...
"""

import dataclasses
import importlib
import os
import signal
import sys
import time

from absl import flags

from weightsteer_jax.interfaces.cli import program
from weightsteer_jax.interfaces.cli.table import VERBS


def define_flags() -> None:
  flags.DEFINE_enum('fault', '', ['', 'raise', 'stop', 'kill', 'hang'], 'What happens.')
  flags.DEFINE_integer('on', 0, 'To which process.')
  flags.DEFINE_integer('at', 0, 'After which step.')
  flags.DEFINE_integer('at_row', 0, 'After which row of the sweep of this start.')
  flags.DEFINE_float(
    'pause', 0.0, 'Seconds after each step and row, for a test to come in between.'
  )


def strike() -> None:
  match flags.FLAGS.fault:
    case 'raise':
      raise RuntimeError('a fault of the test')
    case 'stop':
      os.kill(os.getpid(), signal.SIGTERM)
    case 'kill':
      os.kill(os.getpid(), signal.SIGKILL)
    case 'hang':
      time.sleep(10**6)


def with_fault(main) -> None:
  """Runs the verb's `main`, in whose log and rows the fault waits."""
  from weightsteer_jax.evaluation import rows
  from weightsteer_jax.finetune import log
  from weightsteer_jax.runtime import processes

  log_step, append, args = log.Log.step, rows.Rows.append, flags.FLAGS
  appended = []

  def step(self, number, *values, **named):
    log_step(self, number, *values, **named)
    time.sleep(args.pause)
    if number == args.at and processes.index() == args.on:
      strike()

  def add(self, row):
    append(self, row)
    appended.append(row)
    time.sleep(args.pause)
    if len(appended) == args.at_row and processes.index() == args.on:
      strike()

  log.Log.step, rows.Rows.append = step, add
  main()


if __name__ == '__main__':
  name = sys.argv[1]
  verb = importlib.import_module(VERBS[name].module).PROGRAM

  def define_all_flags() -> None:
    verb.define_flags()
    define_flags()

  faulty = dataclasses.replace(
    verb, define_flags=define_all_flags, main=lambda: with_fault(verb.main)
  )
  program.run(faulty, sys.argv[2:], f'program.py {name}')
