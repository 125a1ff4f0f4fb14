r"""Fine-tunes one side of a contrast, or both, and writes <workdir>/finetune/<side>/adapter.

  python launch/finetune.py --config=configs/quickstart.py --workdir=DIR|URL \
    [--side=positive|negative|both]
"""

import _main
from absl import flags

_main.define_run_flags()
_main.define_profile_flags()
flags.DEFINE_enum(
  'side', 'both', ['positive', 'negative', 'both'], 'Which side of the contrast to fine-tune.'
)


def main():
  from weightsteer_jax.experiments import stages

  experiment = _main.experiment()
  sides = ('positive', 'negative') if flags.FLAGS.side == 'both' else (flags.FLAGS.side,)
  stages.begin(experiment, command=_main.command())
  stages.finetune(experiment, sides=sides)


if __name__ == '__main__':
  _main.start(main)
