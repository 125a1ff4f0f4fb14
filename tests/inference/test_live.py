"""Rows that come one by one, against the same rows generated together."""

import itertools

import jax
import numpy as np
import pytest
import tiny

from weightsteer_jax import models
from weightsteer_jax.inference import Engine, GenerateRequest, Sampling, live

MODES = (Sampling(), Sampling(temperature=1.0), Sampling(temperature=0.8, top_k=12, top_p=0.9))
# Across the sizes of the cache (32 and 128), and of padded prompts.
PROMPTS = (3, 1, 17, 25, 60, 9, 40, 2, 30, 5, 90, 12)
STOPS = range(200, 215)


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(live, 'SMALLEST', 32)


@pytest.fixture
def requests(random_tokens):
  """Requests under both directions at once, of every mode, more than there are slots."""
  made = []
  for i, length in enumerate(PROMPTS):
    arm, alpha = (('both', 0.5), ('weights', -1.0), ('base', 0.0))[i % 3]
    sampling = MODES[(i // 3) % 3]
    made.append(
      GenerateRequest(i, random_tokens(length), 4 + 3 * (i % 5), arm, alpha, sampling, seed=i)
    )
  return made


def coefficients(engine, request):
  return engine.arms.coefficients(request.arm, request.alpha)


def run(engine, requests, *, slots, most=5, max_length=128):
  """{key: (tokens, finish)} of requests admitted as slots become free."""
  slots_of = live.Live(engine, slots=slots, max_length=max_length)
  line = list(requests)
  told = {}
  while line or slots_of.free < slots:
    entering = [line.pop(0) for _ in range(min(slots_of.free, len(line)))]
    slots_of.admit([(request, coefficients(engine, request)) for request in entering])
    for row in slots_of.step(most):
      if row.finish:
        told[row.key] = row.tokens, row.finish
  return told


def test_rows_are_those_of_a_batch_whoever_is_beside_them(engine_of, requests, small):
  """Refilled slots, a cache that grows, and all modes in one batch change no token."""
  engine = engine_of(8, STOPS)
  expected = {each.key: (each.tokens, each.finish) for each in engine.generate(requests)}
  assert {finish for _, finish in expected.values()} == {'stop', 'length'}
  assert run(engine, requests, slots=4) == expected
  for request in requests[:4]:
    assert run(engine, [request], slots=4) == {request.key: expected[request.key]}


def test_tokens_grow_step_by_step(engine_of, requests, small):
  engine = engine_of(8)
  slots = live.Live(engine, slots=4, max_length=128)
  slots.admit([(request, coefficients(engine, request)) for request in requests[:3]])
  seen = {request.key: [()] for request in requests[:3]}
  while slots.free < 4:
    for row in slots.step(2):
      before = seen[row.key][-1]
      assert row.tokens[: len(before)] == before and len(row.tokens) <= len(before) + 2
      seen[row.key].append(row.tokens)
  assert [len(lengths[-1]) for lengths in seen.values()] == [4, 7, 10]


def test_a_row_that_is_given_up_leaves_the_others_alone(engine_of, requests, small):
  engine = engine_of(8)
  expected = {each.key: each.tokens for each in engine.generate(requests[:4])}
  slots = live.Live(engine, slots=4, max_length=128)
  slots.admit([(request, coefficients(engine, request)) for request in requests[:4]])
  slots.step(2)
  slots.cancel([1])
  assert slots.free == 1
  told = {}
  while slots.free < 4:
    told |= {row.key: row.tokens for row in slots.step(3)}
  assert told == {key: tokens for key, tokens in expected.items() if key != 1}


def test_after_warming_nothing_is_compiled(engine_of, requests, small):
  engine = engine_of(8, STOPS)
  slots = live.Live(engine, slots=4, max_length=128)
  assert len(list(slots.warm())) == len(set(slots.warm()))
  compiled = dict(engine.compiled)
  assert run(engine, requests, slots=4)
  assert slots.free == 4 and engine.compiled == compiled


def test_sizes_of_padded_prompts_reach_the_cache():
  for size, tokens in itertools.product((100, 128, 512, 2048), (0, 1, 50, 99)):
    assert any(length >= tokens for length in live._padded_lengths(size))


@pytest.mark.parametrize(
  'case, kind, dtype',
  [
    ('gemma3', 'full', 'float32'),
    ('gemma3', 'lora_embeddings', 'bfloat16'),
    ('mixtral', 'lora', 'float32'),
    ('phi3_short', 'lora', 'float32'),
  ],
)
def test_windows_experts_long_ropes_and_dense_directions(tmp_path, small, case, kind, dtype):
  """Lengths on both sides of the window, of a cache's size and of a rope's original context."""
  folder = tiny.make(tmp_path, **tiny.CASES[case]).folder
  model = models.load(folder, dtype=dtype)
  delta = models.init_delta(model.config, kind, jax.random.key(0), rank=2)
  delta = jax.tree.map(np.float32, tiny.randomised(delta, scale=0.1))
  engine = Engine(model, None, {'weights': [(delta, None)]}, batch_size=4)
  draw = np.random.default_rng(0)
  requests = []
  for i, length in enumerate((3, 20, 29, 6, 31, 12)):
    prompt = tuple(draw.integers(0, 89, length).tolist())
    requests.append(GenerateRequest(i, prompt, 5 + 4 * i, 'weights', (0.0, 0.5, -1.0)[i % 3]))
  expected = {one.key: (one.tokens, one.finish) for one in engine.generate(requests)}
  assert len({tokens[:5] for tokens, _ in expected.values()}) > 3
  assert run(engine, requests, slots=4, max_length=64) == expected
