"""Where compiled programs are kept: the user's own folder, or none."""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from weightsteer_jax.runtime import compile_cache
from weightsteer_jax.runtime.errors import InputError


@pytest.fixture
def untold(monkeypatch):
  """jax as it is where nobody said anything of a cache; what is set in the test is set back."""
  names = (
    'jax_enable_compilation_cache',
    'jax_compilation_cache_dir',
    'jax_compilation_cache_max_size',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = {name: getattr(jax.config, name) for name in names}
  jax.config.update('jax_compilation_cache_dir', None)
  jax.config.update('jax_enable_compilation_cache', True)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_by_default_it_is_a_folder_of_the_users_cache(untold, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  folder = compile_cache.use()
  assert (
    folder.is_relative_to(tmp_path / 'weightsteer_jax' / 'compiled')
    and folder.stat().st_mode & 0o777 == 0o700
  )
  assert jax.config.jax_compilation_cache_dir == str(folder)
  monkeypatch.setenv('XDG_CACHE_HOME', 'relative')
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  assert compile_cache.default_folder().is_relative_to(tmp_path / 'home' / '.cache')


def test_what_jax_was_told_counts_more_and_the_flag_most(untold, tmp_path):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'told'))
  assert compile_cache.use() == tmp_path / 'told' and not (tmp_path / 'told').exists()
  assert (
    compile_cache.use(str(tmp_path / 'flag')) == tmp_path / 'flag' and (tmp_path / 'flag').is_dir()
  )
  assert compile_cache.use('off') is None and not jax.config.jax_enable_compilation_cache


@pytest.mark.parametrize('mode', [0o770, 0o707])
def test_a_folder_that_others_can_write_is_left_alone(untold, tmp_path, monkeypatch, caplog, mode):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  folder = compile_cache.default_folder()
  folder.mkdir(parents=True)
  folder.chmod(mode)
  assert compile_cache.use() is None and jax.config.jax_compilation_cache_dir is None
  assert 'can be written by others' in caplog.text
  with pytest.raises(InputError, match='can be written by others'):
    compile_cache.use(str(folder))
  folder.chmod(0o700)
  assert compile_cache.use() == folder


def test_a_folder_that_can_be_replaced_by_others_is_left_alone(untold, tmp_path):
  (tmp_path / 'open').mkdir()
  (tmp_path / 'open').chmod(0o777)
  with pytest.raises(InputError, match='who could put another folder in its place'):
    compile_cache.use(str(tmp_path / 'open' / 'mine'))
  # As /tmp, where each can only replace their own.
  (tmp_path / 'open').chmod(0o1777)
  assert compile_cache.use(str(tmp_path / 'open' / 'mine'))


def test_a_folder_of_someone_else_is_left_alone(untold, tmp_path, monkeypatch):
  monkeypatch.setattr(os, 'geteuid', lambda: tmp_path.stat().st_uid + 1)
  with pytest.raises(InputError, match='belongs to or can be written by others'):
    compile_cache.use(str(tmp_path / 'theirs'))


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(untold, tmp_path, monkeypatch, caplog):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  assert compile_cache.use() is None and 'compiled programs are not kept: ' in caplog.text


def test_what_a_killed_process_left_is_cleared(tmp_path):
  for name in ('whole-cache', 'whole-atime', 'half-cache'):
    (tmp_path / name).touch()
  compile_cache.prepare(tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == {'whole-cache', 'whole-atime', '.lockfile'}


def test_what_was_compiled_is_found_again(untold, tmp_path):
  heard = []
  jax.monitoring.register_event_listener(
    listener := lambda name, **_: heard.append(name.rsplit('/')[-1])
  )
  compilation_cache.reset_cache()
  try:
    folder = compile_cache.use(str(tmp_path))
    for _ in range(2):
      jax.jit(lambda x: x * 3)(jax.numpy.arange(7)).block_until_ready()
      jax.clear_caches()
    assert any('lambda' in path.name for path in folder.glob('*-cache'))
    assert (
      heard.count('cache_misses') == heard.count('cache_hits') == len(list(folder.glob('*-cache')))
    )
  finally:
    jax.monitoring.unregister_event_listener(listener)
    compilation_cache.reset_cache()
