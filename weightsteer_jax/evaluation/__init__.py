"""Evaluation: scoring, generation, tasks, the sweep over arms and alphas, and the metrics of its rows."""
from weightsteer_jax.evaluation import metrics, rows, sweep, tasks
from weightsteer_jax.evaluation.arms import BASE, AnswerOnly, Arm, Arms, make_arms
from weightsteer_jax.evaluation.engine import Engine
from weightsteer_jax.evaluation.jobs import generate_file, score_file, stop_ids
from weightsteer_jax.evaluation.requests import (GenerateRequest, GenerateResult, Sampling, ScoreRequest, ScoreResult)
