r"""Makes the contrast alone, and writes <workdir>/data.

  python launch/data.py --config=CONFIG --workdir=DIR|URL \
    --config.data.trait=evil.json --config.data.samples=10 [--dry_run]

The model is asked under opposite system prompts, and the answers are judged and paired. The section
`data` of the config decides the source: a trait file, questions and prompts, or two files that are
only checked. An interrupted run continues.
"""

import _main
from absl import flags

_main.define_run_flags()
_main.define_profile_flags()
flags.DEFINE_bool(
  'dry_run',
  False,
  'Check the config, the model, the data and the judge, say what would run, and stop.',
)


def main():
  from weightsteer_jax.experiments import stages

  experiment = _main.experiment(dry_run=flags.FLAGS.dry_run)
  if flags.FLAGS.dry_run:
    stages.check(experiment, to=flags.FLAGS.workdir)
  else:
    stages.data(experiment, command=_main.command())


if __name__ == '__main__':
  _main.start(main)
