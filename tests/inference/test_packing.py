"""Questions in packed rows: what a batch holds, how full it is, and that every architecture
computes each text alone."""

import dataclasses

import numpy as np
import pytest
import tiny

from weightsteer_jax import models
from weightsteer_jax.inference import Engine, ScoreRequest, make_arms, packing

FAMILIES = ('llama3', 'mistral', 'gemma2', 'gemma3', 'phi3_short', 'smollm3', 'mixtral')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  return lambda name: tiny.make(tmp_path_factory.mktemp(name), **tiny.CASES[name])


@pytest.mark.parametrize('name', FAMILIES)
def test_every_text_gets_the_score_that_torch_gives_it_alone(made, name):
  """With windows, softcaps, layers without positions, experts, and ropes that go by the length of a
  text (up to 40 of 64)."""
  found, draw = made(name), np.random.default_rng(0)

  def tokens(length):
    return tuple(draw.integers(0, 89, length).tolist())

  questions = [
    (tokens(n), [tokens(m) for m in lengths])
    for n, lengths in [
      (1, (1, 4)),
      (13, (2, 1, 9)),
      (30, (12, 3, 20)),
      (38, (2, 3, 4, 27)),
      (5, (50,)),
    ]
  ]
  requests = [
    ScoreRequest((i, j), prompt, completion)
    for i, (prompt, all_) in enumerate(questions)
    for j, completion in enumerate(all_)
  ]
  engine = Engine(found.model, None, {}, batch_size=5)
  results = {result.key: result.logprob for result in engine.score(requests)}
  assert set(results) == {request.key for request in requests}
  for request in requests:
    logits = found.torch_logits(np.array([request.prompt + request.completion[:-1]]))[
      0, len(request.prompt) - 1 :
    ].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = logprobs[np.arange(len(request.completion)), request.completion].sum()
    np.testing.assert_allclose(
      results[request.key], expected, rtol=1e-5, atol=1e-4, err_msg=f'{request}'
    )


CONFIG = models.ModelConfig(
  vocab_size=96,
  num_layers=1,
  width=64,
  num_heads=4,
  num_kv_heads=2,
  head_dim=16,
  mlp_width=160,
  norm_eps=1e-5,
  rope=models.Rope(1000.0, 'default', 1.0, 1.0, 1.0, 4096),
  tied=False,
  qkv_bias=False,
  o_bias=False,
  mlp_bias=False,
  activation='silu',
  max_positions=4096,
)


def asked(*lengths, config=CONFIG, arms=make_arms({'steered': [({}, None)]}), alpha=0.5):
  """Questions of (prompt, completions) tokens, each token another."""
  requests, token = [], iter(range(10**6))

  def take(n):
    return tuple(next(token) for _ in range(n))

  for i, (prompt, completions) in enumerate(lengths):
    start = take(prompt)
    requests += [
      ScoreRequest((i, j), start, take(n), 'steered', alpha) for j, n in enumerate(completions)
    ]
  # No weights are used here: the vocabulary may be as large as the tokens are many.
  return packing.questions(requests, arms, dataclasses.replace(config, vocab_size=10**6))


def packed(questions, config=CONFIG, batch_size=64, compile_tokens=0, groups=1):
  return list(
    packing.batches(
      questions, config, batch_size=batch_size, compile_tokens=compile_tokens, groups=groups
    )
  )


def test_a_batch_written_out():
  """A prompt 0 1 2 with the completions 3 4 and 5, and a prompt 6 with the completion 7 8 9."""
  [(active, batch, served)] = packed(asked((3, (2, 1)), (1, (3,))))
  assert active == (0,) and batch.reach == 4 and batch.tokens_BT.shape == (1, 32)
  rows = {
    name: value[0, :8].tolist()
    for name, value in vars(batch).items()
    if name.endswith('BT') or name.endswith('BTC')
  }
  assert rows == dict(
    tokens_BT=[0, 1, 2, 3, 6, 7, 8, 0],
    positions_BT=[0, 1, 2, 3, 0, 1, 2, 0],
    questions_BT=[1, 1, 1, 1, 2, 2, 2, 0],
    branches_BT=[0, 0, 0, 1, 0, 1, 1, 0],
    answers_BT=[False, False, True, True, True, True, True, False],
    coefficients_BTC=[[0.5]] * 7 + [[0.0]],
  )
  assert batch.places_UM[0, :6].tolist() == [2, 3, 2, 4, 5, 6] and batch.targets_UM[
    0, :6
  ].tolist() == [3, 4, 5, 7, 8, 9]
  assert [(one.keys, one.targets) for one in served] == [
    (((0, 0),), slice(0, 2)),
    (((0, 1),), slice(2, 3)),
    (((1, 0),), slice(3, 6)),
  ]


@pytest.mark.parametrize('groups', [1, 4])
def test_every_completion_is_served_once_from_rows_that_are_nearly_full(groups):
  draw = np.random.default_rng(0)
  questions = asked(
    *[
      (int(n), draw.integers(1, 13, 4))
      for n in np.clip(64 * 1.6 ** draw.standard_normal(300), 8, 256)
    ]
  )
  found = packed(questions, dataclasses.replace(CONFIG, attention='blocked'), groups=groups)
  keys = [key for _, _, served in found for one in served for key in one.keys]
  assert len(keys) == len(set(keys)) == 1200
  assert len({(batch.tokens_BT.shape, batch.targets_UM.shape) for _, batch, _ in found}) == 1
  [rows] = {len(batch.tokens_BT) for _, batch, _ in found}
  assert rows % groups == 0
  tokens = sum((batch.questions_BT > 0).sum() for _, batch, _ in found)
  assert (
    tokens
    == sum(question.tokens for question in questions)
    > 0.9 * sum(batch.tokens_BT.size for _, batch, _ in found)
  )
  for _, batch, served in found:  # What a device looks up is in its own rows.
    assert batch.places_UM.max() < batch.tokens_BT.size // groups and len(batch.places_UM) == groups
    for one in served:
      places = batch.places_UM[one.group, one.targets] + one.group * batch.tokens_BT.size // groups
      assert batch.answers_BT.ravel()[places].all()
      np.testing.assert_array_equal(
        batch.tokens_BT.ravel()[places[1:]], batch.targets_UM[one.group, one.targets][:-1]
      )


def test_long_rows_are_apart_where_attention_pays_for_what_is_not_seen():
  questions = asked(*[(100, (5,))] * 400, *[(3000, (5,))] * 4)

  def lengths(**options):
    return {batch.tokens_BT.shape[1] for _, batch, _ in packed(questions, **options)}

  assert len(lengths()) == 2 and max(lengths()) == 3072
  assert lengths(compile_tokens=10**9) == {3072}, 'another program is not worth it'
  assert lengths(config=dataclasses.replace(CONFIG, attention='blocked')) == {3072}, (
    'blocks that nothing sees are left out'
  )


def test_rows_are_as_long_as_costs_least():
  """Of questions of 300 tokens two nearly fill 640; where attention computes what is not seen, a
  row of 384 costs less."""
  questions = asked(*[(296, (5,))] * 64)

  def length(kernel):
    return packed(questions, dataclasses.replace(CONFIG, attention=kernel))[0][1].tokens_BT.shape[1]

  assert (length('blocked'), length('reference')) == (640, 384)


def test_a_question_with_very_many_completions_is_cut():
  [question] = asked((600, (100,) * 30))
  found = packed([question])
  sizes = [len(batch.tokens_BT[0]) for _, batch, _ in found]
  assert max(sizes) <= 1536 and sum(len(served) for *_, served in found) == 30


def test_texts_beyond_the_limit_of_longrope_are_apart():
  rope = models.Rope(100.0, 'longrope', 1.0, 1.0, 1.0, 20, (1.0,) * 8, (2.0,) * 8)
  config = dataclasses.replace(CONFIG, rope=rope)
  found = packed(asked((18, (2, 3, 4)), (30, (1,)), config=config), config)
  assert sorted(
    (batch.reach, sorted(key for one in served for key in one.keys)) for _, batch, served in found
  ) == [(20, [(0, 0), (0, 1)]), (30, [(0, 2), (1, 0)])]
