"""Files and folders that appear whole or not at all."""

import json
import os
import stat
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from weightsteer_jax.runtime.errors import CorruptError, InputError, OutputError
from weightsteer_jax.storage import files, safetensors


def tree_of(folder):
  return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


def mode(path):
  return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o077], ids=oct)
def umask(request):
  before = os.umask(request.param)
  yield request.param
  os.umask(before)


def test_json_comes_back_whatever_its_text(tmp_path):
  """Half a surrogate pair can come out of a JSON file, and must be able to go into one."""
  value = {
    'a': ['naïve ☃ 日本語 \u2028', json.loads('"\\ud83d"'), '\x00\n"'],
    'b': [1, 2.5, None, True],
  }
  files.write_json(tmp_path / 'deep' / 'x.json', value)
  assert files.read_json(tmp_path / 'deep' / 'x.json', what='it') == value
  assert json.loads((tmp_path / 'deep' / 'x.json').read_bytes()) == value


def test_nan_is_no_json(tmp_path):
  with pytest.raises(ValueError):
    files.write_json(tmp_path / 'x.json', {'loss': float('nan')})
  assert tree_of(tmp_path) == []


def test_a_text_replaces_the_one_before_in_one_piece(tmp_path, file_size_limit):
  path = tmp_path / 'x'
  files.write_text(path, 'first')
  files.write_text(path, 'second')
  with (
    file_size_limit(100),
    pytest.raises(OutputError, match='x could not be written.*nothing was left behind'),
  ):
    files.write_text(path, 'third' * 100)
  assert path.read_text() == 'second' and tree_of(tmp_path) == ['x']


def test_a_text_below_a_file_is_an_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OutputError, match='could not be written'):
    files.write_text(tmp_path / 'file' / 'x', 'text')


@pytest.mark.parametrize('content', [b'{"a": ', b'', b'\xff\xfe\x00', b'{} {}'])
def test_broken_json_is_corrupt(tmp_path, content):
  (tmp_path / 'x.json').write_bytes(content)
  with pytest.raises(CorruptError, match='the manifest.*is not valid JSON'):
    files.read_json(tmp_path / 'x.json', what='the manifest')


def test_a_missing_file_names_the_nearest(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(
    InputError, match=f"the config was expected at .*did you mean '{tmp_path}/config.json'"
  ):
    files.read_json(tmp_path / 'confg.json', what='the config')
  with pytest.raises(InputError, match=f'{tmp_path}/no is no folder either'):
    files.read_json(tmp_path / 'no' / 'config.json', what='the config')


def test_tensors_come_back_with_dtype_shape_and_order(tmp_path):
  tensors = {
    'bf16': np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
    'transposed': np.arange(6, dtype=np.float32).reshape(2, 3).T,
    'scalar': np.float32(3).reshape(()),
    'empty': np.zeros((0, 4), np.float32),
    'int': np.array([1, -2]),
  }
  safetensors.save(tmp_path / 'x.safetensors', tensors, metadata={'k': 'v'})
  back = load_file(tmp_path / 'x.safetensors')
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    assert (
      back[name].dtype == tensor.dtype
      and back[name].shape == tensor.shape
      and np.array_equal(back[name], tensor)
    )


def test_tensors_on_a_full_disk_leave_nothing(tmp_path, file_size_limit):
  with (
    file_size_limit(1000),
    pytest.raises(OutputError, match='could not be written.*nothing was left behind'),
  ):
    safetensors.save(tmp_path / 'x.safetensors', {'a': np.zeros(1000)})
  assert tree_of(tmp_path) == []
  with pytest.raises(OutputError, match='could not be written'):
    safetensors.save(tmp_path / 'no' / 'x.safetensors', {'a': np.zeros(1)})


def test_tensors_never_overwrite(tmp_path):
  (tmp_path / 'x.safetensors').write_text('mine')
  with pytest.raises(InputError, match='exists already'):
    safetensors.save(tmp_path / 'x.safetensors', {'a': np.zeros(1)})
  assert (tmp_path / 'x.safetensors').read_text() == 'mine'


def test_permissions_are_those_the_user_asks_for(tmp_path, umask):
  with files.new_folder(tmp_path / 'out', what='it') as partial:
    safetensors.save(partial / 'x.safetensors', {'a': np.zeros(1)})
    files.write_text(partial / 'x.txt', 'text')
  assert {mode(path) for path in (tmp_path / 'out').iterdir()} == {0o666 & ~umask} and mode(
    tmp_path / 'out'
  ) == 0o777 & ~umask


def test_a_folder_appears_when_it_is_whole(tmp_path):
  with files.new_folder(tmp_path / 'a' / 'out', what='it') as partial:
    (partial / 'sub').mkdir()
    (partial / 'sub' / 'x').write_text('text')
    assert not (tmp_path / 'a' / 'out').exists()
    assert partial.parent == tmp_path / 'a' and partial.name.startswith('.out.')
  assert tree_of(tmp_path) == ['a', 'a/out', 'a/out/sub', 'a/out/sub/x']


@pytest.mark.parametrize(
  'error, raised',
  [
    (OSError(28, 'No space left on device'), OutputError),
    (InputError('bad'), InputError),
    (KeyboardInterrupt(), KeyboardInterrupt),
    (ValueError('x'), ValueError),
  ],
)
def test_a_folder_that_fails_leaves_nothing(tmp_path, error, raised):
  with pytest.raises(raised) as caught:
    with files.new_folder(tmp_path / 'out', what='the checkpoint') as partial:
      (partial / 'x').write_text('half')
      raise error
  assert tree_of(tmp_path) == []
  if raised is OutputError:
    assert str(caught.value) == (
      f'the checkpoint could not be written to {tmp_path}/out: No space left on device; '
      'nothing was left behind'
    )


def test_an_existing_folder_or_file_is_refused_before_any_work(tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'x').write_text('mine')
  (tmp_path / 'file').write_text('mine')
  (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
  before = tree_of(tmp_path)
  for name in ('out', 'file', 'link'):
    with pytest.raises(
      InputError, match=f'{name} exists already, and the checkpoint never overwrites'
    ):
      with files.new_folder(tmp_path / name, what='the checkpoint'):
        raise AssertionError('work was done')
  assert tree_of(tmp_path) == before


def test_a_folder_made_meanwhile_is_not_overwritten(tmp_path):
  with pytest.raises(InputError, match='exists already'):
    with files.new_folder(tmp_path / 'out', what='it') as partial:
      (partial / 'x').write_text('ours')
      (tmp_path / 'out').mkdir()
      (tmp_path / 'out' / 'x').write_text('theirs')
  assert tree_of(tmp_path) == ['out', 'out/x'] and (tmp_path / 'out' / 'x').read_text() == 'theirs'


def test_an_empty_folder_is_filled_and_stays_if_that_fails(tmp_path):
  (tmp_path / 'out').mkdir()
  with pytest.raises(InputError):
    with files.new_folder(tmp_path / 'out', what='it'):
      raise InputError('bad')
  assert tree_of(tmp_path) == ['out']
  with files.new_folder(tmp_path / 'out', what='it') as partial:
    (partial / 'x').write_text('text')
  assert tree_of(tmp_path) == ['out', 'out/x']


def test_a_folder_below_a_file_is_an_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OutputError, match='cannot be written'):
    with files.new_folder(tmp_path / 'file' / 'out', what='it'):
      raise AssertionError('work was done')


def test_a_file_that_a_thread_writes_during_the_removal_is_removed_too(tmp_path, monkeypatch):
  remove, late = files.shutil.rmtree, []

  def removed(folder, ignore_errors):
    remove(folder, ignore_errors=ignore_errors)
    # As a thread of orbax does that has not heard of the full disk yet.
    if not late:
      late.append(folder)
      (folder / 'orbax').mkdir(parents=True)

  monkeypatch.setattr(files.shutil, 'rmtree', removed)
  with pytest.raises(OutputError), files.new_folder(tmp_path / 'out', what='an adapter'):
    raise OSError('no space left on device')
  assert late and list(tmp_path.iterdir()) == []


KILLED = """
import os, pathlib, signal, sys
from weightsteer_jax.storage import files
folder = pathlib.Path(sys.argv[1])
with files.new_folder(folder / 'out', what='an export') as partial:
  (partial / 'model.safetensors').write_bytes(b'x' * 1000)
  files.partial_path(folder / 'rows.jsonl').touch()
  os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path):
  alive = files.partial_path(tmp_path / 'other')
  alive.mkdir()
  # The second removes what the first has left.
  for _ in range(2):
    subprocess.run([sys.executable, '-c', KILLED, str(tmp_path)])
    assert len(list(tmp_path.iterdir())) == 3
  with files.new_folder(tmp_path / 'out', what='an export'):
    pass
  assert sorted(tmp_path.iterdir()) == [alive, tmp_path / 'out']


def test_what_other_hosts_left_stays_for_a_week(tmp_path):
  # Of another host, and of versions that named no host, a folder and a file.
  left = ('.out.00000000-1-1-0123abcd.partial', '.out.77-0123abcd.partial', '.x.json.77.partial')
  for name in left:
    (tmp_path / name).mkdir()
  # Not ours.
  (tmp_path / '.mine.partial').mkdir()
  files.write_text(tmp_path / 'x.json', '1')
  assert len(list(tmp_path.iterdir())) == 5
  before = time.time() - files.FOREIGN_SECONDS - 60
  for path in tmp_path.iterdir():
    os.utime(path, (before, before))
  with files.new_folder(tmp_path / 'out', what='an export'):
    pass
  assert [path.name for path in sorted(tmp_path.iterdir())] == ['.mine.partial', 'out', 'x.json']
