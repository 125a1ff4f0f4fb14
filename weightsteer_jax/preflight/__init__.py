"""Whether a run fits hardware that is not there yet, and what it costs: its real programs, compiled from shapes alone."""
from weightsteer_jax.preflight.programs import Plan, Sizes, plan
from weightsteer_jax.preflight.report import advice, lines, verdict
from weightsteer_jax.preflight.run import Result, as_json, check, check_names
from weightsteer_jax.preflight.search import candidates, search
from weightsteer_jax.preflight.topology import CHIPS, Chip, Target, target
