r"""Makes the contrast alone, and writes <workdir>/data.

  weightsteer data --config=CONFIG --workdir=DIR|URL \
    --config.data.trait=evil.json --config.data.samples=10 [--dry_run]

The model is asked under opposite system prompts, and the answers are judged and paired. The section
`data` of the config decides the source: a trait file, questions and prompts, or two files that are
only checked. An interrupted run continues.
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
    'Check the config, the model, the data and the judge, say what would run, and stop.',
  )


def _main() -> None:
  from weightsteer_jax.experiments import stages

  experiment = run_flags.experiment(dry_run=flags.FLAGS.dry_run)
  if flags.FLAGS.dry_run:
    stages.check(experiment, to=flags.FLAGS.workdir)
  else:
    stages.data(experiment, command=program.command())


PROGRAM = Program(__doc__, _define_flags, _main, together=True)
