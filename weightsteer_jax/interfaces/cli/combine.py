"""Combines directions: sums with weights, parts left out or projected out, TIES and DARE.

  weightsteer combine --terms=runs/calm:2,runs/terse:-0.5 --output=DIR
  weightsteer combine --recipe=recipe.yaml --output=DIR

A term is a direction's folder, a run's workdir, or an adapter. Sums are exact in factors; a merge
or a lower rank says its error. A recipe in YAML has mergekit's names (docs/combining.md).
"""

from absl import flags

from weightsteer_jax.interfaces.cli import arguments
from weightsteer_jax.interfaces.cli.program import Program
from weightsteer_jax.runtime.errors import InputError

# Flags that a recipe has keys for.
OF_TERMS = ('orthogonal_to', 'by_module', 'layers', 'modules', 'rank')


def _define_flags() -> None:
  flags.DEFINE_string('terms', '', 'FOLDER:WEIGHT, separated by commas; a weight of 1 may be left.')
  flags.DEFINE_string('recipe', '', 'A recipe in YAML, in place of --terms and the flags below it.')
  flags.DEFINE_list(
    'orthogonal_to', [], 'Directions to project out of the result, as one subspace.'
  )
  flags.DEFINE_bool(
    'by_module', False, 'Project out of each layer of each module, not of the whole.'
  )
  flags.DEFINE_string(
    'layers', '', "Layers that may change, from 0, as in '4-11,15'; all if empty."
  )
  flags.DEFINE_list('modules', [], 'Modules that may change, as in q_proj,down_proj; all if empty.')
  flags.DEFINE_integer(
    'rank', 0, "The result's rank at most; 0 leaves the result exact.", lower_bound=0
  )
  flags.DEFINE_string(
    'base', '', 'The model behind the terms: a folder, a hub id or organism. Needed for adapters.'
  )
  flags.DEFINE_bool(
    'allow_other_base', False, 'Combine directions of other weights of one architecture.'
  )
  flags.DEFINE_bool(
    'sync', True, 'Wait until it is on the disk, so that it is whole even after a power cut.'
  )
  flags.DEFINE_string('output', None, 'Folder to write the direction to; must not exist.')
  arguments.require('output')


def _check() -> None:
  args = flags.FLAGS
  if bool(args.terms) == bool(args.recipe):
    raise InputError('give --terms=FOLDER:WEIGHT,.. or --recipe=FILE')
  given = [f'--{name}' for name in OF_TERMS if getattr(args, name)]
  if args.recipe and given:
    raise InputError(f'{", ".join(given)} goes with --terms: the recipe has a key of that name')


def _main() -> None:
  import jax

  # From files to a file: no accelerator takes part, nor is one held.
  jax.config.update('jax_platforms', 'cpu')
  from weightsteer_jax.directions import combining
  from weightsteer_jax.experiments import standalone

  args = flags.FLAGS
  if args.recipe:
    recipe = combining.read(args.recipe)
  else:
    recipe = combining.from_terms(
      args.terms,
      orthogonal_to=tuple(args.orthogonal_to),
      by_module=args.by_module,
      layers=combining.parse_layers(args.layers, '--layers'),
      modules=tuple(args.modules),
      rank=args.rank,
    )
  standalone.combine(
    recipe,
    args.output,
    base=args.base,
    allow_other_base=args.allow_other_base,
    sync=args.sync,
  )


PROGRAM = Program(__doc__, _define_flags, _main, check=_check)
