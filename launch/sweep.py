"""Evaluates a direction over the alphas and tasks of a config.

  python launch/sweep.py --config=configs/quickstart.py --workdir=DIR|URL [--direction=DIR]

Writes rows, results and the report.
"""

import _main
from absl import flags

_main.define_run_flags()
_main.define_profile_flags()
flags.DEFINE_string(
  'direction', '', "Direction to sweep; default the run's own, <workdir>/directions/<name>."
)


def main():
  from weightsteer_jax.experiments import stages

  experiment = _main.experiment()
  stages.begin(experiment, command=_main.command())
  stages.sweep(experiment, direction=flags.FLAGS.direction)
  stages.report(experiment)


if __name__ == '__main__':
  _main.start(main)
