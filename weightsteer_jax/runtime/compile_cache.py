"""Compiled programs, kept in the user's cache folder for the next run.

jax runs the files of the folder as machine code: the folder has to be the user's alone.
Several processes may share the folder: each reads and writes under jax's own lock. When the folder
is full, jax removes the program unused for longest.
"""

import logging
import os
import pathlib
import platform
import stat

import jax

from weightsteer_jax.runtime import hashes
from weightsteer_jax.runtime.errors import InputError

# Size limit of the whole folder.
MAX_BYTES = 2 * 1000**3
# Every program is kept. A small model has many programs that compile in less than a second, which
# jax by default would not keep.
MIN_COMPILE_SECONDS = 0.0
# How long to wait for another process's lock before clearing is left to that process.
LOCK_SECONDS = 5.0


def use(choice: str = 'auto') -> pathlib.Path | None:
  """The folder of compiled programs from now on, or None.

  Args:
    choice: 'off', a folder, or 'auto'. 'auto' is the folder in jax's own setting
      (JAX_COMPILATION_CACHE_DIR), or else `default_folder`. Where the default folder cannot be
      used, a warning says why, and nothing is kept.

  Raises:
    InputError: if a folder named by the user cannot be used.
  """
  if choice == 'off':
    jax.config.update('jax_enable_compilation_cache', False)
    return None
  # jax defines its options when it is imported, where mypy does not see them.
  if not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
    return None
  jax_folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
  if choice == 'auto' and jax_folder:
    return pathlib.Path(jax_folder)
  folder = default_folder() if choice == 'auto' else pathlib.Path(choice).expanduser().absolute()
  try:
    prepare(folder)
  except InputError as error:
    if choice != 'auto':
      raise
    logging.warning('compiled programs are not kept: %s', error)
    return None
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_compilation_cache_max_size', MAX_BYTES)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', MIN_COMPILE_SECONDS)
  return folder


def user_folder() -> pathlib.Path:
  """The folder weightsteer_jax in the user's cache folder."""
  cache = pathlib.Path(os.environ.get('XDG_CACHE_HOME', ''))
  # A relative path counts for nothing. Source: XDG Base Directory Specification.
  if not cache.is_absolute():
    cache = pathlib.Path(os.path.expanduser('~')) / '.cache'
  return cache / 'weightsteer_jax'


def default_folder() -> pathlib.Path:
  """The folder compiled/<kind of CPU> in `user_folder`."""
  # Code for a CPU is for one kind of CPU: hosts that share a home may have different kinds.
  return user_folder() / 'compiled' / _cpu()


def prepare(folder: pathlib.Path) -> None:
  """Makes a folder for the user alone, or checks one, and clears remains of killed processes.

  Raises:
    InputError: if the folder cannot be made, written or locked, or others can write to the folder.
  """
  try:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_others(folder)
    _clear_halves(folder)
  # filelock raises NotImplementedError on a file system without locks.
  except (OSError, NotImplementedError) as error:
    raise InputError(
      f'the folder of compiled programs {folder} cannot be used: '
      f'{getattr(error, "strerror", "") or error}; name another with --compilation_cache=DIR, or '
      'none with --compilation_cache=off'
    ) from error


def _refuse_others(folder: pathlib.Path) -> None:
  """Raises InputError if others own the folder, or can change the folder or a folder above."""
  status = folder.stat()
  if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
    raise InputError(
      f'{folder} belongs to or can be written by others, who could have their own code run by this '
      'program: make it yours alone (chown, chmod 700), or name another with '
      '--compilation_cache=DIR'
    )
  for above in folder.resolve().parents:
    mode = above.stat().st_mode
    # In a folder with the sticky bit, as /tmp, only the owner can rename or remove an entry.
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
      raise InputError(
        f'{above}, which {folder} is in, can be written by anybody, who could put another folder '
        f'in its place: chmod o-w {above}, or name another folder with --compilation_cache=DIR'
      )


def _clear_halves(folder: pathlib.Path) -> None:
  """Removes programs without a time of last use, as left by a killed process."""
  # jax writes the time after the program. Without the time, jax uses the program, but can no longer
  # make room when the folder is full.
  import filelock

  try:
    with filelock.FileLock(folder / '.lockfile', timeout=LOCK_SECONDS):
      for entry in folder.glob('*-cache'):
        if not entry.with_name(entry.name.removesuffix('-cache') + '-atime').exists():
          entry.unlink()
  except filelock.Timeout:
    # Other processes are at work in the folder, so that it works.
    pass


def _cpu() -> str:
  """The kind of this CPU as 8 hex digits."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
  except OSError:
    lines = []
  # Names on x86, then on Arm.
  fields = ('model name', 'flags', 'Features', 'CPU part')
  named = {line for line in lines if line.startswith(fields)}
  description = '\n'.join([platform.machine(), platform.processor(), *sorted(named)])
  return hashes.of_text(description, digits=8)
