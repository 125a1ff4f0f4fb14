"""From rows to results: means with standard errors, needing no model.

  rate            mean of the rows' values
  valid_rate      share of all rows with an answer that could be judged (neither empty, nor unparsable, nor not finite)
  target_logprob  choice tasks: log-likelihood of the target, nats
  log_odds        choice tasks: the target's log-likelihood less that of the best other choice, nats
"""
import math
import os
import pathlib
from typing import Any, Callable, Iterable, Mapping, Sequence

import numpy as np

from weightsteer_jax import files
from weightsteer_jax.evaluation import rows as row_files

Row = Mapping[str, Any]
INVALID = ('empty', 'unparsable', 'not_finite')


def target_logprob(row: Row) -> float | None:
  """Log-likelihood of the target in nats, or None where it was not finite."""
  return row['logprobs'][row['target']]


def log_odds(row: Row) -> float | None:
  """The target's log-likelihood less that of the most likely other choice, nats.

  >>> log_odds({'logprobs': [-3.0, -1.0, -2.0], 'target': 2})
  -1.0
  """
  logprobs = row['logprobs']
  others = [x for i, x in enumerate(logprobs) if i != row['target']]
  return None if None in logprobs else logprobs[row['target']] - max(others)


METRICS: dict[str, Callable[[Row], float | None]] = {
    'rate': lambda row: row['value'],
    'valid_rate': lambda row: float(row['status'] not in INVALID),
}
CHOICE_METRICS = {'target_logprob': target_logprob, 'log_odds': log_odds}


def results(rows: Iterable[Row]) -> list[dict[str, Any]]:
  """Result rows {arm, task, metric, alpha, mean, sem, n}: arms and tasks as they first appear, metrics, alphas.

  `n` counts the examples behind the mean (rows whose number is null are left out), and `sem` is the standard error
  clustered by example: several samples of one question are not several questions. The mean of no rows is null, and so
  is the error of one example.
  """
  groups: dict[tuple[str, str], dict[float, list[Row]]] = {}
  for row in rows:
    groups.setdefault((row['arm'], row['task']), {}).setdefault(float(row['alpha']), []).append(row)
  found = []
  for (arm, task), by_alpha in groups.items():
    choice = all('logprobs' in row for members in by_alpha.values() for row in members)
    for metric, number in (METRICS | (CHOICE_METRICS if choice else {})).items():
      for alpha, members in sorted(by_alpha.items()):
        pairs = [(row['example'], value) for row in members if (value := number(row)) is not None]
        mean, sem, n = clustered_mean(pairs)
        found.append(dict(arm=arm, task=task, metric=metric, alpha=alpha, mean=mean, sem=sem, n=n))
  return found


def clustered_mean(pairs: Sequence[tuple[str, float]]) -> tuple[float | None, float | None, int]:
  """(mean, its standard error, number of clusters) of (cluster, value) pairs; None where it is not defined.

  With G clusters, residual sums e_g and m values in all, the variance of the mean is G / (G - 1) * sum(e_g^2) / m^2,
  which is the usual standard error when every cluster holds one value. Source: cluster-robust variance of a mean (Liang
  and Zeger 1986), with the G / (G - 1) correction; for evaluations, arXiv 2411.00640, section 2.2.

  >>> clustered_mean([('a', 1.0), ('a', 1.0), ('b', 0.0), ('b', 0.0)])
  (0.5, 0.5, 2)
  """
  if not pairs:
    return None, None, 0
  values = np.array([value for _, value in pairs], np.float64)
  names, clusters = np.unique([name for name, _ in pairs], return_inverse=True)
  mean = float(values.mean())
  if len(names) < 2:
    return mean, None, len(names)
  sums = np.bincount(clusters, weights=values - mean)
  return mean, math.sqrt(len(names) / (len(names) - 1) * float(np.sum(sums**2))) / len(values), len(names)


def write(workdir: str | os.PathLike, rows: Iterable[Row] | None = None) -> list[dict[str, Any]]:
  """The results, also written to `<workdir>/results.jsonl`; of all rows in `<workdir>/sweep/rows.jsonl` by default.

  Raises:
    InputError: no rows there. CorruptError: a broken one. OutputError: the results could not be written.
  """
  workdir = pathlib.Path(workdir)
  found = results(row_files.read(workdir / 'sweep' / 'rows.jsonl') if rows is None else rows)
  files.write_jsonl(workdir / 'results.jsonl', found)
  return found
