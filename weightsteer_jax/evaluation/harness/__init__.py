"""lm-evaluation-harness on our engine, at every strength of a grid. Needs the extra `lm-eval`.

grid.py   tasks over a grid of strengths, into a folder
model.py  lm-eval's interface to a model, answered by the engine
stops.py  what ends a generation, and its text
"""

from weightsteer_jax.evaluation.harness.grid import find_tasks, run
from weightsteer_jax.evaluation.harness.model import SteeredLM
from weightsteer_jax.evaluation.harness.stops import text_until
