"""What was compiled, kept in the user's cache folder, so that the next run does not compile it
again.

jax runs what it finds there as machine code: the folder has to be the user's alone. Several
processes may share it: each reads and writes under a lock (jax's own), and what was not used for
longest goes when the folder is full.
"""

import logging
import os
import pathlib
import platform
import stat

import jax

from weightsteer_jax.runtime import hashes
from weightsteer_jax.runtime.errors import InputError

MAX_BYTES = 2 * 1000**3
# Every program: those of a small model are many, and take less than the second from which jax would
# keep them.
MIN_COMPILE_SECONDS = 0.0
LOCK_SECONDS = 5.0


def use(choice: str = 'auto') -> pathlib.Path | None:
  """The folder that compiled programs are kept in from now on, or None.

  Args:
    choice: 'off'; a folder; or 'auto': where jax was told to keep them (JAX_COMPILATION_CACHE_DIR),
      or else `default_folder`, without which the run goes on and says why.

  Raises:
    InputError: a folder that was named cannot be used.
  """
  if choice == 'off':
    jax.config.update('jax_enable_compilation_cache', False)
    return None
  if not jax.config.jax_enable_compilation_cache:
    return None
  told = jax.config.jax_compilation_cache_dir
  if choice == 'auto' and told:
    return pathlib.Path(told)
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


def default_folder() -> pathlib.Path:
  """weightsteer_jax/compiled/<kind of CPU> in the user's cache folder ($XDG_CACHE_HOME, or
  ~/.cache).

  Code for the CPU is for its kind: hosts that share a home need not have the same.
  """
  told = os.environ.get(
    'XDG_CACHE_HOME', ''
  )  # By its specification a relative one counts for nothing.
  cache = (
    pathlib.Path(told) if os.path.isabs(told) else pathlib.Path(os.path.expanduser('~')) / '.cache'
  )
  return cache / 'weightsteer_jax' / 'compiled' / _cpu()


def prepare(folder: pathlib.Path) -> None:
  """Makes the folder if need be, sees that nobody else can put anything there, and clears what a
  killed process left.

  Raises:
    InputError: it cannot be made, written or locked, or others can write there.
  """
  try:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_others(folder)
    _clear_halves(folder)
  except (OSError, NotImplementedError) as error:  # The latter: a file system without locks.
    raise InputError(
      f'the folder of compiled programs {folder} cannot be used: '
      f'{getattr(error, "strerror", "") or error}; name another with --compilation_cache=DIR, or '
      'none with --compilation_cache=off'
    ) from error


def _refuse_others(folder: pathlib.Path) -> None:
  """Nothing, if the folder is this user's, and neither it nor a folder above can be changed by just
  anybody.
  """
  about = folder.stat()
  if about.st_uid != os.geteuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
    raise InputError(
      f'{folder} belongs to or can be written by others, who could have their own code run by this '
      'program: make it yours alone (chown, chmod 700), or name another with '
      '--compilation_cache=DIR'
    )
  for above in folder.resolve().parents:
    mode = above.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
      raise InputError(
        f'{above}, which {folder} is in, can be written by anybody, who could put another folder '
        f'in its place: chmod o-w {above}, or name another folder with --compilation_cache=DIR'
      )


def _clear_halves(folder: pathlib.Path) -> None:
  """Removes entries without the time of their last use, which jax writes after them: a process was
  killed between the two.

  jax would take them for whole, and could not make room any more.
  """
  import filelock

  try:
    with filelock.FileLock(folder / '.lockfile', timeout=LOCK_SECONDS):
      for entry in folder.glob('*-cache'):
        if not entry.with_name(entry.name.removesuffix('-cache') + '-atime').exists():
          entry.unlink()
  except filelock.Timeout:
    pass  # Others are at work in it, and it works for them.


def _cpu() -> str:
  """The kind of this CPU, as 8 hex digits."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
  except OSError:
    lines = []
  named = {
    line for line in lines if line.startswith(('model name', 'flags', 'Features', 'CPU part'))
  }
  about = '\n'.join([platform.machine(), platform.processor(), *sorted(named)])
  return hashes.of_text(about, digits=8)
