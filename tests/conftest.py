"""Settings of all tests, and tiny random checkpoints shared between them."""

import atexit
import contextlib
import datetime
import importlib.metadata
import os
import resource
import shutil
import tempfile

os.environ.setdefault('HF_HUB_OFFLINE', '1')  # No test goes to the network.
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
os.environ.setdefault('OMP_NUM_THREADS', '1')  # Of torch: two workers on two cores.
# Tiny models take longer to compile than to run, and half as long if programs are not optimised.
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles as users do (see the marker `optimised`).
flags = os.environ.setdefault('XLA_FLAGS', '')
if os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1') == '1':
  # XLA's newer way to write fused operations for the CPU compiles three times as long as the older,
  # which jaxlib 0.12 no longer has: an unknown flag would end the process.
  if tuple(map(int, importlib.metadata.version('jaxlib').split('.')[:2])) < (0, 12):
    os.environ['XLA_FLAGS'] = f'{flags} --xla_cpu_use_fusion_emitters=false'.strip()
# What one test compiled, the next ones need not, in whichever worker or launcher they run; and none
# writes into the user's cache folder.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='weightsteer-compiled-')
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import jax
import pytest
import tiny

jax.config.update(
  'jax_default_matmul_precision', 'highest'
)  # Oracles are float32; accelerators would otherwise round to fewer bits.


# Each takes half a minute or more. They come first, so that no worker has one left when the others
# are done.
LONGEST = (
  'test_monitor_study',
  'test_processes',
  'test_meshes',
  'test_launch',
  'test_together',
  'test_arms',
  'test_page',
  'test_generation',
  'test_parity',
  'test_loop',
  'test_attention',
)


def pytest_collection_modifyitems(items):
  items.sort(
    key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)
  )


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
  """name -> tiny.Checkpoint of tiny.CASES, each made once a session."""
  made = {}

  def get(name: str) -> tiny.Checkpoint:
    if name not in made:
      made[name] = tiny.make(tmp_path_factory.mktemp(name), **tiny.CASES[name])
    return made[name]

  return get


@pytest.fixture
def file_size_limit():
  """A context in which files cannot grow beyond so many bytes, as on a disk that is full."""

  @contextlib.contextmanager
  def limit(size: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
      yield
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, before)

  return limit


class Clock(datetime.datetime):
  """A clock that stands."""

  day = (2026, 11, 30)

  @classmethod
  def now(cls, tz=None):
    return cls(*cls.day, 23, 59, 0)


@pytest.fixture
def clock(monkeypatch):
  """The day as transformers and the project see it: set `clock.day`."""
  from transformers.utils import chat_template_utils

  from weightsteer_jax.data import bindings

  monkeypatch.setattr(chat_template_utils, 'datetime', Clock)
  monkeypatch.setattr(bindings.datetime, 'datetime', Clock)
  monkeypatch.setattr(Clock, 'day', (2026, 11, 30))
  return Clock
