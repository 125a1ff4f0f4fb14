r"""Asks the config's judges about the rows of a sweep.

  OPENAI_API_KEY=... python launch/judge.py --config=configs/sycophancy_qwen2_5_7b.py \
    --workdir=DIR|URL

Writes <workdir>/sweep/judgements.jsonl, results and the report. Rows that were judged before are
not judged again. A judge is a section of the config, as in c.judges.first =
configs.judge(kind='endpoint', model='gpt-4.1-mini'); configs/quickstart.py has none.
"""

import _main
from absl import flags

_main.define_run_flags()
_main.define_profile_flags()
flags.DEFINE_bool('report', True, 'Also write the results and the report anew.')


def main():
  from weightsteer_jax.experiments import stages

  experiment = _main.experiment()
  stages.judge(experiment)
  if flags.FLAGS.report:
    stages.report(experiment)


if __name__ == '__main__':
  _main.start(main)
