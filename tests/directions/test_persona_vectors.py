"""Persona vectors against transformers' hidden states, and steering with them against hooks on
torch's blocks."""

import contextlib

import numpy as np
import pytest
import torch

from weightsteer_jax import models
from weightsteer_jax.data import Example
from weightsteer_jax.directions import persona_vectors
from weightsteer_jax.inference import AnswerOnly, Engine, GenerateRequest, ScoreRequest
from weightsteer_jax.runtime.errors import CorruptError, InputError

CASE = 'qwen2'
STOPS = ()


@pytest.fixture(scope='module')
def case(checkpoint):
  return checkpoint(CASE)


@pytest.fixture(scope='module')
def model(case):
  return models.load(case.folder)


def examples(model, seed, count=7):
  """Conversations of several turns: the mask has gaps, and answers differ in length."""
  draw = np.random.default_rng(seed)
  made = []
  for i in range(count):
    length = int(draw.integers(4, 30))
    mask = draw.random(length) < 0.4
    mask[0], mask[-1] = False, True
    made.append(
      Example(
        draw.integers(0, model.config.vocab_size, length).astype(np.int32), mask, f'{seed}/{i}'
      )
    )
  return made


def torch_states(case, tokens):
  """The residual stream [L + 1, T, D] of one row, the last before the final norm."""
  last = []
  hook = case.torch_model.model.layers[-1].register_forward_hook(
    lambda module, inputs, output: last.append(output[0] if isinstance(output, tuple) else output)
  )
  with torch.no_grad():
    out = case.torch_model(
      torch.as_tensor(np.asarray(tokens)[None], dtype=torch.long), output_hidden_states=True
    )
  hook.remove()
  states = [*out.hidden_states[:-1], last[0]]
  return np.stack([state.reshape(-1, state.shape[-1]).numpy() for state in states]).astype(
    np.float64
  )


def torch_mean(case, rows):
  return np.mean(
    [torch_states(case, row.tokens)[:, row.loss_mask].mean(axis=1) for row in rows], axis=0
  )


def test_persona_vectors_are_those_of_torch(case, model):
  positive, negative = examples(model, 1), examples(model, 2, count=4)
  found = persona_vectors.persona_vectors(model, positive, negative)
  expected = torch_mean(case, positive) - torch_mean(case, negative)
  assert found.shape == (model.config.num_layers + 1, model.config.width)
  np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_means_count_examples_not_tokens_and_do_not_depend_on_the_batch(model, monkeypatch):
  rows = examples(model, 3)
  whole = persona_vectors.mean_residuals(model, rows)
  np.testing.assert_allclose(
    whole,
    np.mean([persona_vectors.mean_residuals(model, [row]) for row in rows], axis=0),
    atol=1e-5,
  )
  monkeypatch.setattr(persona_vectors, 'BATCH_TOKENS', 64)
  np.testing.assert_allclose(persona_vectors.mean_residuals(model, rows), whole, atol=1e-5)


def test_deltas_of_a_layer_and_of_all(model):
  vectors = np.random.default_rng(0).standard_normal((4, model.config.width)).astype(np.float32)
  at_layer = np.asarray(persona_vectors.at_layer(vectors, 3)['layers']['residual'].value)
  zero = np.zeros(model.config.width)
  np.testing.assert_array_equal(at_layer, [zero, zero, vectors[3]])
  at_all = np.asarray(persona_vectors.at_all_layers(vectors)['layers']['residual'].value)
  # Behind every block, the last included.
  np.testing.assert_array_equal(at_all, vectors[1:] - vectors[:-1])
  for layer in (0, 4):
    with pytest.raises(InputError, match='layers 1 to 3'):
      persona_vectors.at_layer(vectors, layer)


@contextlib.contextmanager
def steered(case, shifts_LD, first):
  """The torch model with a vector added behind each block, from position `first` of the sequence
  on."""
  hooks, seen = [], [0]

  def before(module, args, kwargs):
    states = kwargs['hidden_states'] if 'hidden_states' in kwargs else args[0]
    seen.append(seen[-1] + states.shape[1])

  def behind(shift):
    def add(module, inputs, output):
      states = output[0] if isinstance(output, tuple) else output
      places = torch.arange(seen[-2], seen[-1])[None, :, None]
      return torch.where(places >= first, states + torch.as_tensor(shift), states)

    return add

  layers = case.torch_model.model.layers
  hooks.append(layers[0].register_forward_pre_hook(before, with_kwargs=True))
  hooks += [layer.register_forward_hook(behind(shift)) for layer, shift in zip(layers, shifts_LD)]
  try:
    yield case.torch_model
  finally:
    for hook in hooks:
      hook.remove()


@pytest.mark.parametrize('answers_only', [True, False])
def test_scores_and_tokens_are_those_of_hooks_in_torch(case, model, answers_only):
  vectors = 3 * np.random.default_rng(1).standard_normal(
    (model.config.num_layers + 1, model.config.width)
  ).astype(np.float32)
  delta = persona_vectors.at_all_layers(vectors)
  engine = Engine(
    model,
    None,
    {'activation': [(AnswerOnly(delta) if answers_only else delta, None)]},
    batch_size=4,
  )
  draw = np.random.default_rng(2)
  rows = [
    (
      tuple(draw.integers(0, model.config.vocab_size, n).tolist()),
      tuple(draw.integers(0, model.config.vocab_size, m).tolist()),
    )
    for n, m in ((1, 3), (9, 5), (21, 2))
  ]
  alphas = (-0.4, 0.0, 0.7)
  keys = [(i, alpha) for i in range(len(rows)) for alpha in alphas]
  scores = {
    r.key: r.logprob
    for r in engine.score(ScoreRequest((i, a), *rows[i], 'activation', a) for i, a in keys)
  }
  texts = {
    r.key: r.tokens
    for r in engine.generate(
      GenerateRequest((i, a), rows[i][0], 6, 'activation', a) for i, a in keys
    )
  }
  for i, alpha in keys:
    prompt, completion = rows[i]
    first = len(prompt) - 1 if answers_only else 0
    shifts = alpha * np.asarray(delta['layers']['residual'].value)
    with torch.no_grad(), steered(case, shifts, first) as oracle:
      logits = oracle(torch.tensor([prompt + completion])).logits[0].double().log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    expected = sum(float(logits[place, token]) for place, token in zip(places, completion))
    assert abs(scores[i, alpha] - expected) < 1e-4 * max(1, abs(expected)), (i, alpha)
    with torch.no_grad(), steered(case, shifts, first) as oracle:
      tokens = torch.tensor([prompt])
      out = oracle.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
      )
    assert texts[i, alpha] == tuple(out[0, len(prompt) :].tolist()), (i, alpha)
  if answers_only:  # The two ways of steering differ, where there is a prompt to steer.
    whole = Engine(model, None, {'activation': [(delta, None)]}, batch_size=4)
    other = {r.key: r.logprob for r in whole.score([ScoreRequest(0, *rows[2], 'activation', 0.7)])}
    assert abs(other[0] - scores[2, 0.7]) > 0.01


def test_vectors_on_disk_are_verified(tmp_path):
  vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
  persona_vectors.save(tmp_path / 'v', vectors, {'layer': 2})
  found, meta = persona_vectors.load(tmp_path / 'v')
  np.testing.assert_array_equal(found, vectors)
  assert meta['layer'] == 2
  path = tmp_path / 'v' / persona_vectors.TENSORS
  data = bytearray(path.read_bytes())
  data[-3] ^= 4
  path.write_bytes(data)
  with pytest.raises(CorruptError, match='does not match its fingerprints at vectors:'):
    persona_vectors.load(tmp_path / 'v')
