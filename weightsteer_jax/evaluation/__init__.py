"""How arms behave at every strength: tasks, the sweep, judges of the rows, and metrics.

sweep.py      every arm, alpha, task, item and sample as a row on disk
rows.py       the columns of a row
grids.py      the sweeps that a workdir's rows come from, and which rows belong together
intervals.py  means of clustered values, 95 % intervals, paired changes
metrics.py    results, from rows and judgements alone
written.py    the results as jsonl, csv and parquet
scalars.py    results for TensorBoard
judging.py    the judges' scores of the rows, asked once and kept
agreement.py  how far two judges agree
tasks/        the kinds of task, one file each; kind.py defines a kind
reading/      how an answer is read: rules, letters, refusals, aliases
judges/       an endpoint, a checkpoint, or rules
harness/      lm-evaluation-harness on our engine
"""

from weightsteer_jax.evaluation import (
  agreement,
  grids,
  intervals,
  judges,
  judging,
  metrics,
  rows,
  scalars,
  sweep,
  tasks,
)
from weightsteer_jax.evaluation.judges import JudgeRequest
