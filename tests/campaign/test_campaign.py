"""Damaged files, drawn from a seed: each is read as it is, or refused in one line.

  COUNT=500 SEED=7 pytest -m slow -s tests/campaign

prints a table, and every fault with the damaged file, which can be made again from seed and number.
A fault is an error of Python's own: whoever meets it reads a traceback, and a launcher starts the
same command again and again.
"""

import collections
import contextlib
import io
import os
import random
import shutil
import traceback

import pytest

from weightsteer_jax.runtime import errors

from . import mutations
from .targets import TARGETS

OURS = tuple(
  value
  for value in vars(errors).values()
  if isinstance(value, type) and issubclass(value, Exception)
)


def damaged(path, draw):
  """Damages a file in one place."""
  if path.suffix == '.json':
    content = mutations.of_json(path.read_text(), draw).encode('utf-8', 'surrogatepass')
  elif path.suffix == '.jsonl':
    content = mutations.of_lines(path.read_text(), draw).encode('utf-8', 'surrogatepass')
  else:
    content = mutations.of_bytes(path.read_bytes(), draw)
  path.write_bytes(content)


def campaign(target, folder, *, seed, count):
  """({what came of it: number}, [fault]) of so many damaged copies of a target's folder."""
  whole = folder / 'whole'
  target.make(whole)
  came = collections.Counter()
  faults = []
  for number in range(count):
    draw = random.Random(f'{seed} {number}')
    copy = folder / 'copy'
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    name = draw.choice(target.files)
    damaged(copy / name, draw)
    try:
      with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        target.read(copy)
      came['read'] += 1
    except OURS as error:
      came[type(error).__name__] += 1
      if len(str(error).splitlines()) > 8:
        faults.append((number, name, f'of many lines: {error}'))
    except Exception as error:
      came['fault'] += 1
      last = traceback.extract_tb(error.__traceback__)[-1]
      where = f'{os.path.basename(last.filename)}:{last.lineno}'
      faults.append((number, name, f'{type(error).__name__}: {str(error):.200} at {where}'))
  return came, faults


def check(name, folder, *, seed, count):
  came, faults = campaign(TARGETS[name], folder, seed=seed, count=count)
  print(f'\n{name}, seed {seed}, {count} copies: {dict(came)}')
  assert not faults, '\n'.join(map(str, faults))


@pytest.mark.parametrize('name', TARGETS)
def test_damaged_files_are_read_or_refused(name, tmp_path):
  check(name, tmp_path, seed='1', count=12)


@pytest.mark.slow
@pytest.mark.parametrize('name', TARGETS)
def test_many_damaged_files_are_read_or_refused(name, tmp_path):
  seed = os.environ.get('SEED', '1')
  check(name, tmp_path, seed=seed, count=int(os.environ.get('COUNT', '200')))
