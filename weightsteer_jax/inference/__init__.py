"""Requests in, results out: scoring and generation under arms, at any strength, in few batches.

requests.py    requests: a text to score or to continue, under an arm at an alpha
arms.py        named changes of the model or of its prompt, whose deltas are held once
engine.py      the order in which requests run, and the way of the results
packing.py     questions packed into rows, rows into batches of few shapes
prefixes.py    what several questions begin with, computed once for many
scoring.py     the compiled program that scores a batch
generation.py  greedy and sampled generation: who enters which slot when
decoding.py    the compiled programs of generation, with a KV cache
live.py        the same slots for rows that come one by one
divergence.py  KL of a steered model from the base, place by place
tops.py        log-probabilities of every token of a text
sampling.py    the next token of each row
shapes.py      the few lengths for which programs are compiled
programs.py    compiled programs, kept while the process lives
stops.py       tokens that end a generation
rows.py        texts and chats asked of the model, answers and scores as columns
jsonl.py       files of rows in, files of results out
"""

from weightsteer_jax.inference.arms import BASE, AnswerOnly, Arm, Arms, make_arms
from weightsteer_jax.inference.engine import Engine
from weightsteer_jax.inference.generation import check_fit
from weightsteer_jax.inference.jsonl import (
  answers,
  generate_file,
  read_rows,
  score_file,
  write_rows,
)
from weightsteer_jax.inference.requests import (
  GenerateRequest,
  GenerateResult,
  Sampling,
  ScoreRequest,
  ScoreResult,
  check_ids,
)
from weightsteer_jax.inference.rows import Row, generate_rows, score_rows
from weightsteer_jax.inference.stops import stop_ids
