"""Watching training runs: angles between updates and known directions, and when to be alarmed.

A probe looks at one training run; a study (experiments/monitor_study.py) compares fine-tunes.

changes.py      a change of the weights, read piece by piece
trajectory.py   a run's checkpoints, each as a change of the base
controls.py     random directions of the same rank and spectrum
measure.py      cosines and projections, whole, per module and per layer
alarm.py        the threshold, from controls
run.py          one run measured, as rows and a summary
hook.py         the angles inside training
auroc.py        what the scores of many runs are worth
"""

from weightsteer_jax.directions.between import RUN
from weightsteer_jax.experiments.monitoring.alarm import check_rate
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
