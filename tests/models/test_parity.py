"""The decoder against transformers in torch, float32: whole rows, rows packed together, and the
cache."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tiny
import torch

from weightsteer_jax import models
from weightsteer_jax.directions import adapters
from weightsteer_jax.directions.streamed import checkpoints
from weightsteer_jax.runtime import tree

# What a compiler could break: see tests/README.md.
pytestmark = pytest.mark.optimised


TOLERANCE = 1e-4  # Largest difference of a logit.


@pytest.mark.parametrize('name', tiny.CASES)
def test_logits_equal_those_of_transformers(checkpoint, name):
  case = checkpoint(name)
  tokens = tiny.tokens((2, 40))
  ours, theirs = (
    tiny.forward(case.model.config, case.model.params, tokens),
    case.torch_logits(tokens),
  )
  assert np.abs(theirs).max() > 3, 'the oracle is too flat to tell anything'
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize('name', tiny.CASES)
def test_prefill_and_decode_with_the_cache_equal_full_rows(checkpoint, name):
  """Rows of 3, 11 and 7 tokens, right-padded, are prefilled together, then all grow by four tokens,
  one at a time."""
  case = checkpoint(name)
  config, params = case.model.config, case.model.params
  prompt, total = np.array([3, 11, 7]), np.array([7, 15, 11])
  rows = tiny.tokens((3, 16), seed=1)
  expected = case.torch_logits(rows)  # Causal, so that what follows a row's end is of no matter.

  @functools.partial(jax.jit, compiler_options=tiny.QUICK)
  def step(tokens_BT, positions_BT, cache):
    x_BTD, cache = models.hidden(
      config, params, models.TokenBatch(tokens_BT, positions_BT), cache=cache
    )
    return models.logits(config, params, x_BTD), cache

  padded = np.where(np.arange(11) < prompt[:, None], rows[:, :11], 5)
  prefilled, cache = step(
    padded, np.broadcast_to(np.arange(11), (3, 11)), models.init_cache(config, 3, 20)
  )
  for row in range(3):
    np.testing.assert_allclose(
      prefilled[row, : prompt[row]], expected[row, : prompt[row]], rtol=0, atol=TOLERANCE
    )
  for i in range(4):
    at = prompt + i
    logits, cache = step(rows[np.arange(3), at][:, None], at[:, None], cache)
    np.testing.assert_allclose(logits[:, 0], expected[np.arange(3), at], rtol=0, atol=TOLERANCE)
  assert (at + 1 == total).all()


@pytest.mark.parametrize(
  'name', ['qwen3', 'mistral', 'gemma2', 'gemma3', 'olmo2', 'phi3', 'smollm3', 'granite']
)
def test_an_adapter_of_peft_changes_the_same_modules_here(checkpoint, tmp_path, name):
  """Made by PEFT on transformers' model, on every linear layer, under the names the family has for
  them."""
  case = checkpoint(name)
  # A copy, for PEFT puts its layers into the model that it is given.
  wrapped = peft.get_peft_model(
    copy.deepcopy(case.torch_model), peft.LoraConfig(r=2, lora_alpha=3, target_modules='all-linear')
  )
  torch.manual_seed(0)
  with torch.no_grad():
    for key, parameter in wrapped.named_parameters():
      if 'lora_' in key:
        parameter.copy_(torch.randn_like(parameter) * 0.3)
  wrapped.save_pretrained(tmp_path)
  with checkpoints.open_checkpoint(case.folder) as opened:
    delta = adapters.to_delta(adapters.read(tmp_path), opened)
  assert len(tree.flatten(delta, models.is_delta_leaf)) == 7
  rows = tiny.tokens((2, 40))
  with torch.no_grad():
    expected = wrapped(torch.as_tensor(rows, dtype=torch.long)).logits.numpy()
  model = case.model
  ours = tiny.forward(model.config, models.merge(model.config, model.params, delta, 1.0), rows)
  assert np.abs(expected - case.torch_logits(rows)).max() > 0.1
  np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)


PACKED = [
  'llama3',
  'qwen2_tied',
  'gemma3',
  'smollm3',
]  # Two with windows shorter than the longest piece.


@pytest.mark.parametrize('name', PACKED)
def test_packed_rows_equal_separate_ones(checkpoint, name):
  case = checkpoint(name)
  lengths = [9, 1, 14]
  pieces = [tiny.tokens((1, n), seed=n) for n in lengths]
  padding = 30 - sum(lengths)
  tokens = np.concatenate(pieces + [np.full((1, padding), 3, np.int32)], axis=1)
  segments = np.repeat([1, 2, 3, 0], lengths + [padding])[None]
  positions = np.concatenate([np.arange(n) for n in lengths + [padding]])[None]
  ours = tiny.forward(
    case.model.config, case.model.params, tokens, positions_BT=positions, segment_ids_BT=segments
  )
  assert np.isfinite(ours).all()
  for piece, start in zip(pieces, np.cumsum([0] + lengths)):
    np.testing.assert_allclose(
      ours[:, start : start + piece.shape[1]], case.torch_logits(piece), rtol=0, atol=TOLERANCE
    )


def test_bfloat16_stays_near_transformers_in_bfloat16(tmp_path):
  """Both round at every operation, at other places; both must stay as near to float32 as bfloat16
  allows."""
  case = tiny.make(tmp_path / 'bf16', dtype=torch.bfloat16, **tiny.CASES['llama3'])
  model = models.load(case.folder, dtype='bfloat16')
  tokens = tiny.tokens((2, 24))
  exact = tiny.make(tmp_path / 'fp32', **tiny.CASES['llama3']).torch_logits(tokens)
  with torch.no_grad():
    theirs = case.torch_model(torch.as_tensor(tokens, dtype=torch.long)).logits.float().numpy()
  ours = tiny.forward(model.config, model.params, tokens)
  assert ours.dtype == np.float32
  assert np.abs(ours - exact).mean() < 1.2 * np.abs(theirs - exact).mean()


def test_float32_logits_of_a_bfloat16_model_are_not_rounded_to_bfloat16(checkpoint):
  """Log-likelihoods differ by less than the spacing of bfloat16 near a logit of 20, which is an
  eighth."""
  config = checkpoint('qwen2_tied').model.config
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), checkpoint('qwen2_tied').model.params)
  logits = np.asarray(models.logits(config, params, jnp.ones((1, 1, config.width), jnp.bfloat16)))
  assert (logits != np.asarray(jnp.asarray(logits, jnp.bfloat16), np.float32)).any()


def test_no_token_sees_a_later_one_or_another_row(checkpoint):
  """The gradient of one position's output with respect to the embedding is zero at tokens that only
  later positions hold."""
  model = checkpoint('llama3').model
  tokens = np.arange(12, dtype=np.int32).reshape(2, 6)

  def output(embedding, row, position):
    params = model.params | {'embed': {'embedding': embedding}}
    return models.hidden(model.config, params, models.TokenBatch(tokens))[0][row, position].sum()

  gradient = jax.jit(jax.grad(output), compiler_options=tiny.QUICK)(
    model.params['embed']['embedding'], 0, 3
  )
  seen = set(np.flatnonzero(np.abs(gradient).sum(axis=1)))
  assert seen == {0, 1, 2, 3}
