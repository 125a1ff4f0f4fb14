r"""Compiles a run's programs for hardware that need not be there.

  weightsteer preflight --config=preflight:Qwen2.5-7B --topology=v5e:4x4 \
    [--mesh=1x8x2] [--search]

Says whether the programs fit and what they cost. Exit status 0: all fit. 1: not all do.
"""

import sys

from absl import flags

from weightsteer_jax.interfaces.cli import run_flags
from weightsteer_jax.interfaces.cli.program import Program


def _define_flags() -> None:
  run_flags.define()
  flags.DEFINE_string(
    'topology',
    'local',
    "Hardware: local, v5e:4x4, v5p:2x2x4, v6e:16x16, ..., or as it is sold (v5litepod-16).",
  )
  flags.DEFINE_string('mesh', '', 'The same as --config.mesh.shape.')
  flags.DEFINE_bool(
    'search', False, 'Try meshes, batch sizes and rematerialisation, and recommend one.'
  )
  flags.DEFINE_list(
    'programs', [], 'Only these: training step, scoring, prefill, decoding step, export.'
  )
  flags.DEFINE_integer('row_tokens', 1024, 'Tokens of a training row.', lower_bound=1)
  flags.DEFINE_integer('prompt_tokens', 256, 'Tokens of a prompt.', lower_bound=1)
  flags.DEFINE_integer('completion_tokens', 32, 'Tokens of a scored completion.', lower_bound=1)
  flags.DEFINE_integer('answer_tokens', 128, 'Tokens of a generated answer.', lower_bound=1)
  flags.DEFINE_integer(
    'train_rows', 0, 'Rows of a microbatch; 0: as many as the config has examples.', lower_bound=0
  )
  flags.DEFINE_integer(
    'rows', 0, 'Rows of an evaluation batch; 0: sweep.batch_size.', lower_bound=0
  )
  flags.DEFINE_string('json', '', 'File to which a line of JSON per program is appended.')


def _main() -> None:
  from weightsteer_jax.experiments import preflight
  from weightsteer_jax.runtime import compile_cache

  # The compiler tells of a program only where the program is compiled.
  compile_cache.use('off')
  run, _ = run_flags.run_and_workdir()
  args = flags.FLAGS
  sizes = preflight.Sizes(
    args.row_tokens,
    args.prompt_tokens,
    args.completion_tokens,
    args.answer_tokens,
    args.train_rows,
    args.rows,
  )
  if args.search:
    fits = preflight.recommend(run, args.topology, sizes)
  else:
    fits = preflight.examine(
      run, args.topology, sizes, mesh=args.mesh, programs=tuple(args.programs), output=args.json
    )
  if not fits:
    sys.exit(1)


PROGRAM = Program(__doc__, _define_flags, _main)
