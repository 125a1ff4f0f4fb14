"""Checkpoints: what comes back, and each way in which something on disk can be wrong."""

import json
import os
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from weightsteer_jax import models
from weightsteer_jax.runtime.errors import CorruptError, InputError, OutputError
from weightsteer_jax.storage import checkpoint, sealed


def make_tree(seed=0):
  draw = np.random.default_rng(seed)
  return {
    'delta': {
      'q': {
        'kernel': models.LowRank(
          jnp.asarray(draw.normal(size=(2, 5, 3)), jnp.float32),
          jnp.asarray(draw.normal(size=(2, 3, 7)), jnp.bfloat16),
          0.5,
        )
      },
      'embedding': models.Dense(jnp.asarray(draw.normal(size=(64, 40)), jnp.float32)),
    },
    'moments': (jnp.asarray(draw.integers(0, 99, (4,)), jnp.int32), jnp.asarray([True, False])),
    'step': jnp.int32(7),
  }


def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def damage(folder: pathlib.Path, *, bit: int = 4) -> pathlib.Path:
  """Flips one bit in the middle of the largest file below the folder."""
  path = max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1 << bit
  path.write_bytes(bytes(data))
  return path


def test_a_tree_comes_back_bit_for_bit_with_its_metadata(tmp_path):
  tree = make_tree()
  checkpoint.save(tmp_path / 'c', tree, metadata={'losses': [1.5, 0.1], 'name': 'x'})
  restored = checkpoint.restore(tmp_path / 'c', abstract(tree))
  assert jax.tree.structure(restored) == jax.tree.structure(tree)
  for mine, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(tree)):
    assert mine.dtype == theirs.dtype
    np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))
  assert checkpoint.metadata(tmp_path / 'c') == {'losses': [1.5, 0.1], 'name': 'x'}
  assert os.listdir(tmp_path) == ['c']


def test_orbax_alone_reads_a_checkpoint_as_nested_dicts(tmp_path):
  tree = make_tree()
  checkpoint.save(tmp_path / 'c', tree, metadata={})
  plain = ocp.load(tmp_path / 'c')
  np.testing.assert_array_equal(plain['delta']['q']['kernel']['a'], tree['delta']['q']['kernel'].a)
  np.testing.assert_array_equal(plain['moments']['0'], tree['moments'][0])


def test_nothing_is_overwritten(tmp_path):
  checkpoint.save(tmp_path / 'c', make_tree(), metadata={})
  with pytest.raises(InputError, match='exists already'):
    checkpoint.save(tmp_path / 'c', make_tree(1), metadata={})
  np.testing.assert_array_equal(
    checkpoint.restore(tmp_path / 'c', abstract(make_tree()))['step'], 7
  )


def test_differences_are_listed_leaf_by_leaf(tmp_path):
  """Orbax would cast another dtype in silence, and report another shape as an 'incompatible
  handler'."""
  checkpoint.save(tmp_path / 'c', {'a': jnp.ones((2, 3)), 'b': jnp.ones(4)}, metadata={})
  a, b = jax.ShapeDtypeStruct((2, 3), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.float32)
  with pytest.raises(
    InputError, match=r"a: it has float32 \(2, 3\), asked for was bfloat16 \(2, 3\)"
  ):
    checkpoint.restore(tmp_path / 'c', {'a': jax.ShapeDtypeStruct((2, 3), jnp.bfloat16), 'b': b})
  with pytest.raises(InputError, match=r"b: it has float32 \(4,\), asked for was float32 \(5,\)"):
    checkpoint.restore(tmp_path / 'c', {'a': a, 'b': jax.ShapeDtypeStruct((5,), jnp.float32)})
  with pytest.raises(InputError, match=r'(?s)missing \(1\): bb.*unexpected \(1\): b'):
    checkpoint.restore(tmp_path / 'c', {'a': a, 'bb': b})


@pytest.mark.parametrize('fraction', [0.25, 0.5, 0.75])
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path, fraction):
  tree = make_tree()
  checkpoint.save(tmp_path / 'c', tree, metadata={})
  path = max(
    (p for p in (tmp_path / 'c').rglob('*') if p.is_file()), key=lambda p: p.stat().st_size
  )
  data = bytearray(path.read_bytes())
  data[int(len(data) * fraction)] ^= 16
  path.write_bytes(bytes(data))
  with pytest.raises(CorruptError, match=str(tmp_path / 'c')):
    checkpoint.restore(tmp_path / 'c', abstract(tree))


def test_a_leaf_that_orbax_reads_wrong_is_named(tmp_path):
  """Another checkpoint's data under this one's fingerprints: whole for orbax, and of the right
  shapes."""
  one, other = {'a': jnp.ones(3), 'b': jnp.zeros(3)}, {'a': jnp.ones(3), 'b': jnp.full(3, -0.0)}
  checkpoint.save(tmp_path / 'one', one, metadata={})
  checkpoint.save(tmp_path / 'other', other, metadata={})
  markers = [
    json.loads((tmp_path / name / checkpoint.MARKER).read_text()) for name in ('one', 'other')
  ]
  mixed = {**markers[1], 'leaves': markers[0]['leaves']}
  del mixed['seal']
  (tmp_path / 'other' / checkpoint.MARKER).write_text(json.dumps(sealed.sealed(mixed)))
  with pytest.raises(CorruptError, match='does not match its fingerprints at b:'):
    checkpoint.restore(tmp_path / 'other', abstract(one))


def test_half_a_folder_is_found(tmp_path):
  tree = make_tree()
  checkpoint.save(tmp_path / 'c', tree, metadata={})
  shutil.copytree(tmp_path / 'c', tmp_path / 'no_marker')
  (tmp_path / 'no_marker' / checkpoint.MARKER).unlink()
  with pytest.raises(CorruptError, match='cut short'):
    checkpoint.restore(tmp_path / 'no_marker', abstract(tree))
  shutil.copytree(tmp_path / 'c', tmp_path / 'no_data')
  shutil.rmtree(tmp_path / 'no_data' / 'state' / 'd')
  with pytest.raises(CorruptError, match=r'state/d/\w+ is missing'):
    checkpoint.restore(tmp_path / 'no_data', abstract(tree))
  shutil.copytree(tmp_path / 'c', tmp_path / 'cut')
  cut = next((tmp_path / 'cut' / 'state' / 'd').iterdir())
  cut.write_bytes(cut.read_bytes()[:-3])
  with pytest.raises(CorruptError, match=rf'{cut.name} has \d+ bytes instead of \d+'):
    checkpoint.restore(tmp_path / 'cut', abstract(tree))
  with pytest.raises(InputError, match=r"no checkpoint at .*did you mean .*no_data'"):
    checkpoint.restore(tmp_path / 'no_dat', abstract(tree))


def test_damaged_metadata_is_found(tmp_path):
  checkpoint.save(tmp_path / 'c', {'a': jnp.ones(3)}, metadata={'loss': 1.25})
  marker = tmp_path / 'c' / checkpoint.MARKER
  marker.write_text(marker.read_text().replace('1.25', '1.75'))
  with pytest.raises(CorruptError, match='changed or damaged'):
    checkpoint.metadata(tmp_path / 'c')
  marker.write_text(json.dumps({'format': 1})[:-3])
  with pytest.raises(CorruptError, match='not valid JSON'):
    checkpoint.metadata(tmp_path / 'c')


def test_what_cannot_be_verified_is_refused(tmp_path):
  with pytest.raises(InputError, match="the leaf 'a' is float64"):
    checkpoint.save(tmp_path / 'c', {'a': np.ones(3)}, metadata={})
  assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can mount a small file system')
def test_a_full_disk_leaves_nothing_behind(tmp_path, caplog):
  small = tmp_path / 'small'
  small.mkdir()
  if subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=128k', 'tmpfs', small], capture_output=True
  ).returncode:
    pytest.skip('this machine does not let us mount a small file system')
  try:
    noise = {'a': jnp.asarray(np.random.default_rng(0).normal(size=10**5), jnp.float32)}
    with pytest.raises(OutputError, match='no space left on device'):
      checkpoint.save(small / 'c', noise, metadata={})
    assert os.listdir(small) == []
    assert not caplog.records, 'orbax reports the failure thread by thread'
  finally:
    subprocess.run(['umount', small], check=True)


def test_a_failing_marker_leaves_nothing_behind(tmp_path, monkeypatch):
  def full(*_, **__):
    raise OutputError('no space left')

  monkeypatch.setattr(checkpoint.files, 'write_json', full)
  with pytest.raises(OutputError):
    checkpoint.save(tmp_path / 'c', make_tree(), metadata={})
  assert not list(tmp_path.iterdir())


def test_steps_fall_back_to_the_newest_that_is_whole(tmp_path, caplog):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'run')
  assert checkpoints.newest({}) is None
  for step in (2, 10, 30):
    checkpoints.save(step, make_tree(step), metadata={'step': step})
  checkpoints.wait()
  tree = make_tree()
  assert checkpoints.steps() == [2, 10, 30]
  damage(checkpoints.path(30))
  shutil.rmtree(checkpoints.path(10) / 'state')
  step, restored, metadata = checkpoints.newest(abstract(tree))
  assert step == 2 and metadata == {'step': 2}
  np.testing.assert_array_equal(
    restored['delta']['embedding'].value, make_tree(2)['delta']['embedding'].value
  )
  assert checkpoints.steps() == [2]
  checkpoints.save(30, make_tree(31), metadata={})
  assert checkpoints.is_whole(30, abstract(tree)) and not checkpoints.is_whole(10, abstract(tree))


def test_only_the_steps_to_keep_are_kept_once_the_new_one_is_whole(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path)
  for step in (1, 2, 3):
    checkpoints.save(step, {'a': jnp.ones(2)}, metadata={}, keep={1, 9})
  checkpoints.wait()
  assert checkpoints.steps() == [1, 3]
  assert sorted(os.listdir(tmp_path)) == ['00000001', '00000003']


def test_a_save_in_the_background_holds_what_was_given_although_the_buffers_are_used_again(
  tmp_path,
):
  """As a training step does, which consumes its state while the last one is still being written."""
  checkpoints = checkpoint.Checkpoints(tmp_path)
  state = {'x': jnp.arange(1 << 20, dtype=jnp.float32)}
  step = jax.jit(lambda state: {'x': state['x'] * -1.5}, donate_argnums=0)
  expected = np.asarray(state['x']).copy()
  for number in range(3):
    checkpoints.save(number, state, metadata={})
    for _ in range(3):
      state = step(state)
    np.testing.assert_array_equal(checkpoints.restore(number, abstract(state))['x'], expected)
    expected = np.asarray(state['x']).copy()


def test_a_save_that_failed_in_the_background_is_reported_at_the_next_call(tmp_path, monkeypatch):
  def full(*_, **__):
    raise OutputError('no space left')

  checkpoints = checkpoint.Checkpoints(tmp_path)
  monkeypatch.setattr(checkpoint.files, 'write_json', full)
  checkpoints.save(1, make_tree(), metadata={})
  with pytest.raises(OutputError, match='no space left'):
    checkpoints.save(2, make_tree(), metadata={})
  monkeypatch.undo()
  checkpoints.save(3, make_tree(), metadata={})
  checkpoints.wait()
  assert os.listdir(tmp_path) == ['00000003']


def test_what_a_killed_process_left_is_removed(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(1, make_tree(), metadata={})
  checkpoints.wait()
  for name in ('.00000002.77-abcd.partial', '.00000000.removed'):
    shutil.copytree(checkpoints.path(1), tmp_path / name)
  assert checkpoints.newest(abstract(make_tree()))[0] == 1
  assert os.listdir(tmp_path) == ['00000001']


def test_a_relative_path_will_do(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  checkpoint.save('runs/c', {'x': jnp.arange(3)}, metadata={})
  np.testing.assert_array_equal(
    checkpoint.restore('runs/c', abstract({'x': jnp.arange(3)}))['x'], [0, 1, 2]
  )
