"""A preflight from the flags to the verdict.

Said are the programs, the table, the verdict, and what would fit instead.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from weightsteer_jax import config as configs
from weightsteer_jax import models
from weightsteer_jax.experiments.preflight import report
from weightsteer_jax.experiments.preflight.programs import DEFAULT_SIZES, Sizes, plan
from weightsteer_jax.experiments.preflight.run import as_json, check, check_names
from weightsteer_jax.experiments.preflight.search import search
from weightsteer_jax.experiments.preflight.topology import Hardware, find_hardware
from weightsteer_jax.experiments.sources import folder_of, of_key
from weightsteer_jax.models.attention import with_kernel
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.messages import memory_size
from weightsteer_jax.runtime.progress import say
from weightsteer_jax.storage import files


def examine(
  run: configs.Run,
  topology: str,
  sizes: Sizes = DEFAULT_SIZES,
  *,
  mesh: str = '',
  programs: Sequence[str] = (),
  output: str | pathlib.Path = '',
) -> bool:
  """Whether a run's programs fit some hardware, with a table of the costs.

  Args:
    topology: the hardware's name; see `find_hardware`.
    mesh: a mesh in place of the config's.
    programs: names of the programs to compile; all by default.
    output: a jsonl file; a line for each program is added.

  Raises:
    InputError: if hardware, model or program is unknown, or the mesh fits neither hardware
      nor model.
  """
  run, config, hardware, sizes = _prepare(run, topology, sizes, mesh)
  run_plan = plan(run, config, hardware, sizes)
  check_names(run_plan, programs)
  _say_all(*run_plan.layouts.words, *run_plan.words(sizes), *report.first_change(run))
  # The same for all lines of the file, so that each line can be read alone.
  about = {'model': run.model.source, 'topology': hardware.name}
  about |= run_plan.as_json(sizes)
  results = []
  for result in check(run_plan, tuple(programs)):
    results.append(result)
    # At once: compiling the next program may take minutes.
    if output:
      files.append_json(output, {**about, **as_json(run_plan, result)})
  table = report.lines(run_plan, results)
  _say_all('', *table, '', report.verdict(run_plan, results))
  fits = all(result.fits for result in results)
  # What would fit is an estimate of its own, which takes a moment.
  if not fits:
    _say_all(*report.advice(run, config, hardware, sizes))
  return fits


def recommend(run: configs.Run, topology: str, sizes: Sizes = DEFAULT_SIZES) -> bool:
  """Whether some fast way to run fits, by the compiler.

  Says the first way that fits, with all programs compiled.

  Raises:
    InputError: if the hardware or the model is unknown.
  """
  run, config, hardware, sizes = _prepare(run, topology, sizes, '')
  for candidate, result in search(run, config, hardware, sizes):
    fits = 'fits' if result.fits else 'does not fit'
    say(f'{fits}, {memory_size(result.peak, 2)}{candidate.pace}: {candidate}')
    if result.fits:
      run_plan = candidate.plan(run, config, hardware, sizes)
      # The search has compiled the training step, the first program.
      others = tuple(program.name for program in run_plan.programs[1:])
      results = [result, *check(run_plan, others)]
      table = report.lines(run_plan, results)
      _say_all('', *table, '', report.verdict(run_plan, results))
      say(f'recommended: {candidate}')
      return all(each.fits for each in results)
  say('nothing that was tried fits: take more devices, shorter rows or a smaller rank')
  return False


def _prepare(
  run: configs.Run, topology: str, sizes: Sizes, mesh: str
) -> tuple[configs.Run, models.ModelConfig, Hardware, Sizes]:
  """The run on the mesh, the model's config, the hardware, and sizes within the model's."""
  if mesh:
    replaced = dataclasses.replace(run.mesh, shape=mesh)
    run = dataclasses.replace(run, mesh=replaced)
  hardware = find_hardware(topology)
  # Shapes are all that is needed, so the weights of a hub model are not downloaded.
  with of_key('model.source'):
    source = folder_of(run.model.source)
    revision = run.model.revision or None
    folder, _ = models.resolve(source, revision=revision, weights=False)
  config, family = models.load_config(folder)
  # The kernel that the run would choose there, not the kernel for the machine of the preflight.
  platform = hardware.devices[0].platform
  config = with_kernel(config, run.model.attention, platform=platform, dtype=run.model.dtype)
  count = tree.count(models.abstract_params(config))
  say(
    f'model: {run.model.source} ({family.model_type}, {count / 1e9:.3g}B parameters, '
    f'{run.model.dtype}, {config.attention} attention)'
  )
  return run, config, hardware, sizes.within(config.max_positions)


def _say_all(*lines: str) -> None:
  for line in lines:
    say(line)
