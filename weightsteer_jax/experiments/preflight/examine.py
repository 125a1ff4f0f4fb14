"""A preflight as a user sees it: what is compiled, the table, the verdict, and what would do
instead.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from weightsteer_jax import config as configs
from weightsteer_jax import models
from weightsteer_jax.experiments.preflight import report
from weightsteer_jax.experiments.preflight.programs import Sizes, plan
from weightsteer_jax.experiments.preflight.run import as_json, check, check_names
from weightsteer_jax.experiments.preflight.search import search
from weightsteer_jax.experiments.preflight.topology import Hardware, find_hardware
from weightsteer_jax.experiments.sources import folder_of
from weightsteer_jax.models.attention import with_kernel
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.messages import memory_size
from weightsteer_jax.runtime.progress import say
from weightsteer_jax.storage import files


def examine(
  run: configs.Run,
  topology: str,
  sizes: Sizes = Sizes(),
  *,
  mesh: str = '',
  programs: Sequence[str] = (),
  output: str | pathlib.Path = '',
) -> bool:
  """Whether the run's programs (those of these names, if any) fit that hardware, with a table of
  what they cost.

  Args:
    mesh: in place of the config's. output: a jsonl file to which a line per program is added.

  Raises:
    InputError: no such hardware, model or program, or a mesh that fits neither.
  """
  run, config, hardware, sizes = _prepare(run, topology, sizes, mesh)
  made = plan(run, config, hardware, sizes)
  check_names(made, programs)
  _say_all(*made.layouts.words, *made.words(sizes))
  results = []
  for result in check(made, programs):
    results.append(result)
    if output:
      files.append_json(
        output,
        {
          'model': run.model.source,
          'topology': hardware.name,
          **made.as_json(sizes),
          **as_json(made, result),
        },
      )
  _say_all('', *report.lines(made, results), '', report.verdict(made, results))
  fits = all(result.fits for result in results)
  if not fits:
    _say_all(*report.advice(run, config, hardware, sizes))
  return fits


def recommend(run: configs.Run, topology: str, sizes: Sizes = Sizes()) -> bool:
  """Whether one of the fastest ways to run by estimate fits by the compiler; says which one, with
  all its programs.

  Raises:
    InputError: no such hardware or model.
  """
  run, config, hardware, sizes = _prepare(run, topology, sizes, '')
  for candidate, result in search(run, config, hardware, sizes):
    fits = 'fits' if result.fits else 'does not fit'
    say(f'{fits}, {memory_size(result.peak, 2)}{candidate.pace}: {candidate}')
    if result.fits:
      made = candidate.plan(run, config, hardware, sizes)
      results = [result, *check(made, tuple(program.name for program in made.programs[1:]))]
      _say_all(
        '',
        *report.lines(made, results),
        '',
        report.verdict(made, results),
        f'recommended: {candidate}',
      )
      return all(each.fits for each in results)
  say('nothing that was tried fits: take more devices, shorter rows or a smaller rank')
  return False


def _prepare(
  run: configs.Run, topology: str, sizes: Sizes, mesh: str
) -> tuple[configs.Run, models.ModelConfig, Hardware, Sizes]:
  if mesh:
    run = dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, shape=mesh))
  hardware = find_hardware(topology)
  folder, _ = models.resolve(
    folder_of(run.model.source), revision=run.model.revision or None, weights=False
  )
  config, family = models.load_config(folder)
  config = with_kernel(
    config, run.model.attention, platform=hardware.devices[0].platform, dtype=run.model.dtype
  )
  count = tree.count(models.abstract_params(config))
  say(
    f'model: {run.model.source} ({family.model_type}, {count / 1e9:.3g}B parameters, '
    f'{run.model.dtype}, {config.attention} attention)'
  )
  return run, config, hardware, sizes.within(config.max_positions)


def _say_all(*lines: str) -> None:
  for line in lines:
    say(line)
