"""Bars whose time left leaves compilation out."""

import io

import jax
import jax.numpy as jnp
import pytest

from weightsteer_jax.runtime import compiling, progress


@pytest.fixture
def bar():
  with progress.Bar(total=20, initial=5, file=io.StringIO(), mininterval=0, desc='sweep') as bar:
    yield bar


def test_the_rate_counts_what_computes(bar, monkeypatch):
  """10 of 15 units in 100 s, 90 of them compiling: a unit a second, and 5 s are left."""
  monkeypatch.setattr(bar, '_time', lambda: bar.start_t + 100)
  assert bar.format_dict['rate'] is None
  monkeypatch.setattr(compiling, '_seconds', bar._compiled_before + 90)
  bar.update(10)
  assert bar.format_dict['rate'] == pytest.approx(1.0)
  assert '<00:05' in str(bar)


def test_a_compilation_that_takes_long_is_told_until_a_unit_is_finished(bar, monkeypatch):
  monkeypatch.setattr(compiling, '_QUIET_SECONDS', 0.0)
  before = compiling.seconds()

  def slow(x):
    for i in range(20):
      x = jnp.linalg.svd(x + i)[0]
    return x

  jax.jit(slow)(jnp.ones((3, 3))).block_until_ready()
  assert compiling.seconds() > before
  assert 'compiling' in bar.fp.getvalue()
  bar.update()
  assert 'compiling' not in str(bar)


def test_a_bar_that_is_not_shown_listens_to_nothing(monkeypatch):
  monkeypatch.setattr(compiling, '_tell', None)
  with progress.bar('sweep', unit='row', total=2, shown=False) as bar:
    bar.update()
  assert compiling._tell is None
