"""Evaluation: scoring, generation, tasks, the sweep over arms and alphas, judges of its rows, and
their metrics.
"""

from weightsteer_jax.evaluation import (
  agreement,
  contrast,
  judges,
  judging,
  metrics,
  rows,
  sweep,
  tasks,
)
from weightsteer_jax.evaluation.arms import BASE, AnswerOnly, Arm, Arms, make_arms
from weightsteer_jax.evaluation.engine import Engine
from weightsteer_jax.evaluation.jobs import generate_file, score_file, stop_ids
from weightsteer_jax.evaluation.judges import JudgeRequest
from weightsteer_jax.evaluation.requests import (
  GenerateRequest,
  GenerateResult,
  Sampling,
  ScoreRequest,
  ScoreResult,
)
