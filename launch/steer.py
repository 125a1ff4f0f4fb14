r"""From a checkpoint to a steered model: data, two fine-tunes, a direction, a sweep, a report.

  python launch/steer.py --config=configs/quickstart.py [--workdir=DIR|URL] \
    [--config.sweep.alphas='(-1.0, 0.0, 1.0)']
"""

import _main
from absl import flags

_main.define_run_flags()
_main.define_profile_flags()
flags.DEFINE_bool(
  'dry_run',
  False,
  'Check the config, the model, the data and the tasks, say what would run, and stop.',
)


def main():
  from weightsteer_jax.experiments import stages

  experiment = _main.experiment(dry_run=flags.FLAGS.dry_run)
  if flags.FLAGS.dry_run:
    stages.check(experiment, to=flags.FLAGS.workdir)
  else:
    stages.steer(experiment, command=_main.command())


if __name__ == '__main__':
  _main.start(main)
