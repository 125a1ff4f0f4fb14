r"""Tells a finished run to W&B or MLflow: settings, curves, the sweep by alpha, the report.

  weightsteer track --workdir=runs/quickstart --to=mlflow --project=steering
  WANDB_MODE=offline weightsteer track --workdir=runs/quickstart --to=wandb --project=steering

Keys and servers are those of their own environment variables (WANDB_API_KEY, MLFLOW_TRACKING_URI);
without a server MLflow's store is mlflow.db in the workdir.
"""

from absl import flags

from weightsteer_jax.interfaces.cli import arguments
from weightsteer_jax.interfaces.cli.program import Program


def _define_flags() -> None:
  flags.DEFINE_string('workdir', None, 'Folder of the run.')
  flags.DEFINE_enum('to', None, ['wandb', 'mlflow'], 'Who is told.')
  flags.DEFINE_string('project', 'weightsteer', "W&B's project, MLflow's experiment.")
  flags.DEFINE_string('name', '', "The run's name there; its own if empty.")
  arguments.require('workdir', 'to')


def _main() -> None:
  from weightsteer_jax.interfaces import trackers
  from weightsteer_jax.runtime.progress import say

  args = flags.FLAGS
  where = trackers.track(args.workdir, args.to, project=args.project, name=args.name)
  say(f'{args.to} has the run: {where}')


PROGRAM = Program(__doc__, _define_flags, _main)
