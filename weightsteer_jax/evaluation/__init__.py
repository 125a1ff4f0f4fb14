"""What arms do at every strength: tasks, the sweep, judges of its rows, and metrics of both.

sweep.py      every arm, alpha, task, item and sample as a row on disk
rows.py       what a row holds
metrics.py    means and standard errors, from rows and judgements alone
judging.py    what judges say of the rows, asked once and kept
agreement.py  how far two judges agree
tasks/        the kinds of task, one file each; kind.py says what a kind is
reading/      how an answer is read: rules, letters, refusals, aliases
judges/       an endpoint, a checkpoint, or rules
harness/      lm-evaluation-harness on our engine
"""

from weightsteer_jax.evaluation import agreement, judges, judging, metrics, rows, sweep, tasks
from weightsteer_jax.evaluation.judges import JudgeRequest
