"""Whether a run fits hardware that is not there yet, and what it costs: its real programs, compiled
from shapes alone.
"""

from weightsteer_jax.experiments.preflight.examine import examine, recommend
from weightsteer_jax.experiments.preflight.programs import RunPlan, Sizes, plan
from weightsteer_jax.experiments.preflight.run import Result, check
from weightsteer_jax.experiments.preflight.search import candidates, search
from weightsteer_jax.experiments.preflight.topology import CHIPS, Chip, Hardware, find_hardware
