"""Log-probabilities in chunks beside those of whole logits: values, gradients, and what is left
out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from meshes import CONFIG

from weightsteer_jax import models
from weightsteer_jax.models import Edit, logprobs

B, T = 3, 300
WANTED = np.zeros((B, T), bool)
WANTED[0, 40:110], WANTED[2, 200:] = True, True


@pytest.fixture(scope='module')
def inputs():
  """(params, hidden states, targets, a delta of the head, alphas per token)."""
  params = models.init_params(CONFIG, jax.random.key(0))
  random = np.random.default_rng(0)
  x_BTD = jnp.asarray(random.standard_normal((B, T, CONFIG.width)), jnp.float32)
  delta = tiny.randomised(
    models.init_delta(CONFIG, 'lora_embeddings', jax.random.key(1), rank=2), seed=2
  )
  head = 'embed' if CONFIG.tied else 'lm_head'
  return (
    params,
    x_BTD,
    random.integers(0, CONFIG.vocab_size, (B, T)),
    {head: delta[head]},
    random.uniform(-1, 1, (B, T)).astype(np.float32),
  )


def whole(params, x_BTD, targets_BT, edits):
  logprobs_BTV = jax.nn.log_softmax(models.logits(CONFIG, params, x_BTD, edits=edits))
  return jnp.where(
    WANTED, jnp.take_along_axis(logprobs_BTV, targets_BT[..., None], axis=-1)[..., 0], 0.0
  )


@pytest.mark.parametrize('chunk', [None, 7], ids=str)
@pytest.mark.parametrize('alpha', ['row', 'token', 'frozen'])
def test_what_is_wanted_is_what_whole_logits_give_and_so_are_its_gradients(inputs, alpha, chunk):
  params, x_BTD, targets_BT, delta, alphas_BT = inputs
  alphas = {'row': alphas_BT[:, 0], 'token': alphas_BT}.get(alpha)
  frozen = alphas is None

  def value_and_grads(function):
    def loss(x_BTD, delta):
      logprobs_BT = function(x_BTD, () if frozen else (Edit(delta, alphas),))
      return jnp.sum(jnp.sin(logprobs_BT)), logprobs_BT

    return jax.jit(jax.value_and_grad(loss, argnums=0 if frozen else (0, 1), has_aux=True))(
      x_BTD, delta
    )

  ours = value_and_grads(
    lambda x_BTD, edits: models.token_logprobs(
      CONFIG, params, x_BTD, targets_BT, wanted_BT=WANTED, frozen=frozen, edits=edits, chunk=chunk
    )
  )
  theirs = value_and_grads(lambda x_BTD, edits: whole(params, x_BTD, targets_BT, edits))
  for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_chunks_in_which_nothing_is_wanted_are_not_computed(inputs, monkeypatch):
  """170 of 900 tokens are, in chunks of 256 (TOKENS): of four chunks the first alone holds them."""
  params, x_BTD, targets_BT, *_ = inputs
  seen = []
  logits = logprobs.logits

  def counted(config, params, x_BTD, *, edits):
    jax.debug.callback(lambda: seen.append(x_BTD.shape))
    return logits(config, params, x_BTD, edits=edits)

  monkeypatch.setattr(logprobs, 'logits', counted)
  jax.block_until_ready(
    jax.jit(lambda x: models.token_logprobs(CONFIG, params, x, targets_BT, wanted_BT=WANTED))(x_BTD)
  )
  jax.effects_barrier()
  assert seen == [(1, 225, CONFIG.width)]


def test_a_delta_of_the_head_is_known(inputs):
  delta = inputs[3]
  assert models.changes_head(CONFIG, delta) and not models.changes_head(CONFIG, {'layers': {}})
