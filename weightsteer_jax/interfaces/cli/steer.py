r"""From a checkpoint to a steered model: data, two fine-tunes, a direction, a sweep, a report.

  weightsteer steer --config=quickstart [--workdir=DIR|URL] \
    [--config.sweep.alphas='(-1.0, 0.0, 1.0)']

The workdir then holds report/index.html, results, directions/<name> and every answer. A run that
was interrupted goes on where it stopped when the same command is given again.
"""

from absl import flags

from weightsteer_jax.interfaces.cli import profile_flags, program, run_flags
from weightsteer_jax.interfaces.cli.program import Program


def _define_flags() -> None:
  run_flags.define()
  profile_flags.define()
  flags.DEFINE_bool(
    'dry_run',
    False,
    'Check the config, the model, the data and the tasks, say what would run, and stop.',
  )


def _main() -> None:
  from weightsteer_jax.experiments import stages

  experiment = run_flags.experiment(dry_run=flags.FLAGS.dry_run)
  if flags.FLAGS.dry_run:
    stages.check(experiment, to=flags.FLAGS.workdir)
  else:
    stages.steer(experiment, command=program.command())


PROGRAM = Program(__doc__, _define_flags, _main, together=True)
