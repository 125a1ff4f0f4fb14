"""Asks the config's judges about the rows of a sweep.

  OPENAI_API_KEY=... weightsteer judge --config=sycophancy_qwen2_5_7b --workdir=DIR|URL

Writes <workdir>/sweep/judgements.jsonl, results and the report. Rows that were judged before are
not judged again. A judge is a section of the config, as in
c.judges.gpt = configs.judge(kind='endpoint', model='gpt-4.1-mini'); docs/judging.md has more.
"""

from absl import flags

from weightsteer_jax.interfaces.cli import profile_flags, run_flags
from weightsteer_jax.interfaces.cli.program import Program


def _define_flags() -> None:
  run_flags.define()
  profile_flags.define()
  flags.DEFINE_bool('report', True, 'Also write the results and the report anew.')


def _main() -> None:
  from weightsteer_jax.experiments import stages

  experiment = run_flags.experiment()
  stages.judge(experiment)
  if flags.FLAGS.report:
    stages.report(experiment)


PROGRAM = Program(__doc__, _define_flags, _main, together=True)
