"""lm-evaluation-harness on our engine, at every strength of a grid. Needs the extra `lm-eval`."""

from weightsteer_jax.evaluation.harness.grid import find_tasks, run
from weightsteer_jax.evaluation.harness.model import SteeredLM
from weightsteer_jax.evaluation.harness.stops import end_ids, text_until
