"""A finished run told to W&B or MLflow, through their own libraries.

Everything is read from the workdir, so that a run is told at any time, and again.
"""

import math
import os
import pathlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from weightsteer_jax.runtime import redaction, tree
from weightsteer_jax.runtime.errors import EndpointError, InputError
from weightsteer_jax.runtime.messages import did_you_mean, first_line
from weightsteer_jax.storage import files

# Values of MLflow's parameters are no longer.
LONGEST_PARAMETER = 500
# MLflow's steps are whole numbers: alpha in thousandths, as in sweep/tensorboard.
STEPS_PER_ALPHA = 1000
# Of a fine-tune's log, what moves.
CURVES = ('train_loss', 'validation_loss', 'grad_norm', 'learning_rate')


def track(workdir: files.Path, to: str, *, project: str, name: str = '') -> str:
  """Tells a run to a tracker; returns where it is to be seen.

  Settings, the curves of fine-tunes by step, the sweep's means by alpha, and the report. Nothing
  that looks like a secret is told (see redaction.py).

  Args:
    to: 'wandb' or 'mlflow'.
    project: W&B's project, MLflow's experiment.
    name: the run's name there; '' is the run's own.

  Raises:
    InputError: if there is no run, or no such tracker.
    EndpointError: if the tracker's library fails, say because its server cannot be reached.
  """
  if to not in TRACKERS:
    raise InputError(
      f"no tracker '{to}'{did_you_mean(to, TRACKERS)}; there are: {', '.join(TRACKERS)}"
    )
  folder = pathlib.Path(workdir)
  config = files.read_json(folder / 'config.json', what='the config of a run')
  settings = tree.dotted(redaction.redact(config))
  try:
    return TRACKERS[to](folder, settings, project, name or str(config.get('name', folder.name)))
  except ModuleNotFoundError as error:
    raise InputError(
      f"this needs the package '{error.name}': pip install 'weightsteer_jax[{to}]'"
    ) from error
  # Their libraries raise many kinds, most of them about their servers.
  except Exception as error:
    raise EndpointError(
      f'{to} did not take the run: {first_line(error)}; nothing is lost, the same command tells it '
      'again'
    ) from error


def _wandb(folder: pathlib.Path, settings: Mapping[str, Any], project: str, name: str) -> str:
  import wandb

  run = wandb.init(
    project=project,
    name=name,
    config=dict(settings),
    # Its files too belong into the workdir.
    dir=str(folder),
    settings=wandb.Settings(silent=True, console='off'),
  )
  run.define_metric('alpha')
  run.define_metric('sweep/*', step_metric='alpha')
  for trial, rows in curves(folder):
    run.define_metric(f'{trial}/step')
    run.define_metric(f'{trial}/*', step_metric=f'{trial}/step')
    for step, values in rows:
      run.log({f'{trial}/step': step} | {f'{trial}/{key}': x for key, x in values.items()})
  for alpha, values in means(folder):
    run.log({'alpha': alpha} | {f'sweep/{key}': value for key, value in values.items()})
  if (folder / 'report').is_dir():
    artifact = wandb.Artifact(f'report-{name}', type='report')
    artifact.add_dir(str(folder / 'report'))
    run.log_artifact(artifact)
  url = run.url or str(pathlib.Path(run.dir).parent)
  run.finish()
  return url


def _mlflow(folder: pathlib.Path, settings: Mapping[str, Any], project: str, name: str) -> str:
  # Before the import, which would else report the use of the library to its makers.
  os.environ.setdefault('MLFLOW_DISABLE_TELEMETRY', 'true')
  import mlflow

  # Without a server of the environment, into the workdir.
  if not os.environ.get('MLFLOW_TRACKING_URI'):
    mlflow.set_tracking_uri(f'sqlite:///{(folder / "mlflow.db").absolute()}')
  mlflow.set_experiment(project)
  with mlflow.start_run(run_name=name) as run:
    mlflow.log_params({key: str(value)[:LONGEST_PARAMETER] for key, value in settings.items()})
    for trial, rows in curves(folder):
      for step, values in rows:
        mlflow.log_metrics({_plain(f'{trial}/{key}'): x for key, x in values.items()}, step=step)
    for alpha, values in means(folder):
      at = {_plain(f'sweep/{key}'): value for key, value in values.items()}
      mlflow.log_metrics(at, step=round(STEPS_PER_ALPHA * alpha))
    if (folder / 'report').is_dir():
      mlflow.log_artifacts(str(folder / 'report'), artifact_path='report')
    return f'{mlflow.get_tracking_uri()} run {run.info.run_id}'


TRACKERS = {'wandb': _wandb, 'mlflow': _mlflow}


def curves(folder: pathlib.Path) -> Iterator[tuple[str, list[tuple[int, dict[str, float]]]]]:
  """(name of a trial, [(step, {what: value})]) of every fine-tune of a run."""
  for path in sorted(folder.glob('finetune/*/metrics.jsonl')):
    by_trial: dict[str, list[tuple[int, dict[str, float]]]] = defaultdict(list)
    for row in files.read_jsonl(path, what='the log of a fine-tune'):
      values = {key: row[key] for key in CURVES if key in row}
      by_trial[f'{path.parent.name}/{row["peak"]:g}'].append((row['step'], values))
    yield from by_trial.items()


def means(folder: pathlib.Path) -> list[tuple[float, dict[str, float]]]:
  """(alpha, {arm/task/metric: mean}) of a sweep, alphas rising; [] where there was none."""
  path = folder / 'results.jsonl'
  by_alpha: dict[float, dict[str, float]] = defaultdict(dict)
  if path.is_file():
    for row in files.read_jsonl(path, what='the results of a sweep'):
      if row['mean'] is not None and math.isfinite(row['mean']):
        by_alpha[row['alpha']][f'{row["arm"]}/{row["task"]}/{row["metric"]}'] = row['mean']
  return sorted(by_alpha.items())


def _plain(name: str) -> str:
  """The name in the letters that MLflow takes."""
  return ''.join(c if c.isalnum() or c in '_-. /' else '_' for c in name)
