"""Evaluates a direction over the alphas and tasks of a config.

  weightsteer sweep --config=quickstart --workdir=DIR|URL [--direction=DIR]

Writes rows, results and the report.
"""

from absl import flags

from weightsteer_jax.interfaces.cli import profile_flags, program, run_flags
from weightsteer_jax.interfaces.cli.program import Program


def _define_flags() -> None:
  run_flags.define()
  profile_flags.define()
  flags.DEFINE_string(
    'direction', '', "Direction to sweep; default the run's own, <workdir>/directions/<name>."
  )


def _main() -> None:
  from weightsteer_jax.experiments import stages

  experiment = run_flags.experiment()
  stages.begin(experiment, command=program.command())
  stages.sweep(experiment, direction=flags.FLAGS.direction)
  stages.report(experiment)


PROGRAM = Program(__doc__, _define_flags, _main, together=True)
