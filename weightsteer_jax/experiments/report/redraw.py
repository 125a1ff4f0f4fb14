"""Pages made anew from the files of finished runs, without a model."""

from collections.abc import Sequence
from pathlib import Path

from weightsteer_jax.experiments.report import page, pick, runs_page, study, tables
from weightsteer_jax.runtime.progress import say


def one(workdir: str | Path) -> Path:
  """The path of a run's page, written anew, picked by the config's rule; says table and pick.

  Raises:
    InputError, CorruptError, OutputError: as `page.write`.
  """
  sweep = study.read(workdir)
  options = pick.options_of(sweep.config)
  path = page.write(workdir, **options)
  for choice in pick.choose_all(sweep, **options):
    say(tables.text(choice, sweep.results))
  say(f'report: {path}')
  return path


def many(workdirs: Sequence[str | Path], output: str | Path) -> Path:
  """The path of an index over runs; says which runs have no page of their own.

  Raises:
    InputError, CorruptError, OutputError: as `runs_page.write`.
  """
  path = runs_page.write(workdirs, output)
  for workdir in workdirs:
    if not (Path(workdir) / 'report' / 'index.html').is_file():
      say(f'{workdir} has no page to link to; weightsteer report --workdir={workdir} makes one')
  say(f'report: {path}')
  return path
