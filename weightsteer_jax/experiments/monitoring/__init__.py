"""Watching training runs: the angles between what a run has changed and known directions, and when
to be alarmed.

changes.py      a change of the weights, read piece by piece
trajectory.py   a run's checkpoints, each as a change of the base
controls.py     random directions of the same rank and spectrum
measure.py      cosines and projections, whole, per module and per layer
alarm.py        the threshold, from controls
run.py          all of it for one run, as rows and a summary
hook.py         the same inside training
auroc.py        over many runs: what the scores are worth
"""

from weightsteer_jax.experiments.monitoring.auroc import (
  Auroc,
  Detections,
  ScoredRun,
  assess,
  detections,
  of_summaries,
  to_json,
)
from weightsteer_jax.experiments.monitoring.hook import watch
from weightsteer_jax.experiments.monitoring.run import (
  CONTROL,
  DIRECTION,
  SUMMARY,
  TASK_VECTOR,
  MonitorOptions,
  monitor,
  names,
  similarities,
  write,
)
from weightsteer_jax.experiments.monitoring.trajectory import find
