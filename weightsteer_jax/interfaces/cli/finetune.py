r"""Fine-tunes one side of a contrast, or both, and writes <workdir>/finetune/<side>/adapter.

  weightsteer finetune --config=quickstart --workdir=DIR|URL \
    [--side=positive|negative|both]

The contrast is made first where the workdir has none. `weightsteer steer` with the same flags goes
on from there.
"""

from absl import flags

from weightsteer_jax.interfaces.cli import profile_flags, program, run_flags
from weightsteer_jax.interfaces.cli.program import Program


def _define_flags() -> None:
  run_flags.define()
  profile_flags.define()
  flags.DEFINE_enum(
    'side', 'both', ['positive', 'negative', 'both'], 'Which side of the contrast to fine-tune.'
  )


def _main() -> None:
  from weightsteer_jax.experiments import stages

  experiment = run_flags.experiment()
  sides = ('positive', 'negative') if flags.FLAGS.side == 'both' else (flags.FLAGS.side,)
  stages.begin(experiment, command=program.command())
  stages.finetune(experiment, sides=sides)


PROGRAM = Program(__doc__, _define_flags, _main, together=True)
