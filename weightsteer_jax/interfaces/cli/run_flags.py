"""Flags of verbs that work on a run."""

from __future__ import annotations

import atexit
import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from absl import flags

from weightsteer_jax.interfaces.cli import arguments, chat_flags, config_changes, profile_flags
from weightsteer_jax.runtime.errors import InputError

if TYPE_CHECKING:
  import ml_collections

  from weightsteer_jax.config import Run
  from weightsteer_jax.experiments.experiment import Experiment

STAGING = (
  'the staging folder (--staging; process 0 alone copies it to the bucket, which hosts that share '
  'no folder have to mount)'
)

# What is left to do when the verb's work is done.
_finishes: list[Callable[[], None]] = []
# The hold on the workdir.
_holds = contextlib.ExitStack()


def define() -> None:
  """Defines --config, --workdir and their kin."""
  # A plain text until the command line is known to be right: see load_config.
  flags.DEFINE_string(
    'config',
    None,
    'Experiment to run: the name of a config that comes with the package, as in quickstart, or a '
    'Python file. Each of its keys is a flag, --config.KEY=VALUE; weightsteer help config lists '
    'the keys and the configs, --config=NAME --help the values of one.',
  )
  flags.DEFINE_string(
    'workdir',
    '',
    'Folder of the run, or its address in a bucket (gs://, s3://, what fsspec takes); '
    "default runs/<the config's name>. An unfinished run continues there.",
  )
  flags.DEFINE_string(
    'staging',
    '',
    'With an address as --workdir: the local folder to work in, shared by all hosts; '
    "default runs/<the config's name>.",
  )
  flags.DEFINE_float(
    'push_seconds',
    30.0,
    'With an address as --workdir: seconds between two pushes of what is new.',
    lower_bound=0.1,
  )
  arguments.require('config')
  chat_flags.define(
    "the day of the run's first start. Both are short for --config.model.<the same>"
  )


def load_config(argv: list[str]) -> None:
  """Makes --config a flag of ml_collections, which reads the file.

  Args:
    argv: the command line that absl will parse.
  """
  # A tenth of a second to import, which help and mistakes do without.
  from ml_collections import config_flags

  said = flags.FLAGS['config'].help
  delattr(flags.FLAGS, 'config')
  config_flags.DEFINE_config_file('config', None, said, lock_config=True, sys_argv=argv)


def change_config(changes: Sequence[config_changes.Change]) -> None:
  """Sets the keys of the config that was read; see config_changes.apply."""
  config_changes.apply(changes, _read_config())


def chosen() -> Run:
  """The checked run of --config and its keys.

  Raises:
    InputError: if a value is out of range, or the file gives no config.
  """
  from weightsteer_jax import config

  config_dict = _read_config()
  if flags.FLAGS.chat_template_args:
    config_dict.model.chat_template_args = chat_flags.template_args()
  if flags.FLAGS.chat_date:
    config_dict.model.chat_date = flags.FLAGS.chat_date
  return config.resolve(config_dict)


def run_and_workdir(*, dry_run: bool = False) -> tuple[Run, str]:
  """The checked run of --config, and the local workdir, the same for all processes.

  If --workdir is an address, the local workdir is the staging folder, and the run continues from
  what lies at the address.

  Args:
    dry_run: whether nothing is to be computed. Of an address only the settings are fetched, into a
      folder of their own.

  Raises:
    InputError: if a value is out of range, or the processes disagree. See mirror.Mirror for further
      errors.
  """
  from weightsteer_jax import config
  from weightsteer_jax.experiments.experiment import held
  from weightsteer_jax.runtime import processes, tree
  from weightsteer_jax.storage.remote import mirror

  run = chosen()
  local = os.path.join('runs', run.name)
  workdir = flags.FLAGS.workdir or local
  staging = flags.FLAGS.staging
  url = workdir if mirror.is_url(workdir) else ''
  if staging and (not url or mirror.is_url(staging)):
    raise InputError(
      f'--staging={staging}: expected a local folder, and an address (gs://, s3://, ...) as '
      f'--workdir, not {workdir}'
    )
  if url:
    workdir = staging or local
  settings = {'url': url, 'workdir': os.path.abspath(workdir), 'config': config.to_dict(run)}
  processes.agree(tree.dotted(settings), what='the run')
  if url and dry_run:
    return run, _settings_of(url)
  processes.share(pathlib.Path(workdir), what=STAGING if url else 'the workdir')
  if url:
    # Before the address is taken over. The staging may be renamed then, so nothing is held yet.
    with held(workdir):
      pass
    _mirror(url, workdir)
  if not dry_run:
    profile_flags.begin(os.path.join(workdir, 'profile'))
  return run, workdir


def experiment(*, dry_run: bool = False) -> Experiment:
  """The Experiment of the run and the workdir that the flags name (see run_and_workdir)."""
  from weightsteer_jax.experiments.experiment import Experiment

  made = Experiment(*run_and_workdir(dry_run=dry_run))
  if not dry_run:
    # From the first look to the last word, so that nobody else comes in between two stages.
    _holds.enter_context(made.held())
  return made


def release() -> None:
  """Gives the workdir back for others to write to."""
  _holds.close()


def finish() -> None:
  """What is left to do for a workdir in a bucket when the verb's work is done."""
  for act in _finishes:
    act()


def _read_config() -> ml_collections.ConfigDict:
  import ml_collections

  read = flags.FLAGS.config
  if not isinstance(read, ml_collections.ConfigDict):
    raise InputError(
      f'--config: get_config() returned {read!r}, expected what configs.base_config() returns, '
      'with the keys of the experiment changed'
    )
  return read


def _mirror(url: str, staging: str) -> None:
  """Pulls a workdir into the staging folder, and has changes pushed, however the run ends."""
  from weightsteer_jax.runtime import ending, processes
  from weightsteer_jax.storage.remote import mirror

  # One on process 0, none elsewhere.
  mirrors = []

  def begin() -> None:
    mirrors.append(mirror.begin(url, staging, push_seconds=flags.FLAGS.push_seconds))

  def push_last() -> None:
    for begun in mirrors:
      begun.last_push()

  processes.on_main(begin)
  processes.see(pathlib.Path(staging) / mirror.LISTING)
  ending.before_end(push_last)
  _finishes.extend(begun.finish for begun in mirrors)


def _settings_of(url: str) -> str:
  """A folder with the config.json of the workdir at the URL, if that has one."""
  from weightsteer_jax.storage.remote import mirror

  folder = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  mirror.peek(url, 'config.json', folder)
  return folder
