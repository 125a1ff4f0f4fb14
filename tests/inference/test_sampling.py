import jax.numpy as jnp
import numpy as np
import torch
import transformers

from weightsteer_jax.inference import sampling


def test_top_k_and_top_p_keep_what_transformers_keeps():
  logits = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32) * 2
  for k, p in [(0, 1.0), (5, 1.0), (0, 0.6), (10, 0.8), (1, 0.5), (50, 0.01)]:
    theirs = torch.tensor(logits)
    if k:
      theirs = transformers.TopKLogitsWarper(k)(None, theirs)
    theirs = transformers.TopPLogitsWarper(p)(None, theirs)
    ours = sampling.kept(jnp.asarray(logits), jnp.full(6, k), jnp.full(6, p, jnp.float32))
    np.testing.assert_array_equal(
      np.asarray(ours), torch.isfinite(theirs).numpy(), err_msg=f'{k} {p}'
    )


def test_filters_are_per_row():
  logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]] * 3))
  ours = sampling.kept(logits, jnp.array([1, 0, 3]), jnp.array([1.0, 0.79, 1.0]))
  np.testing.assert_array_equal(ours, [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]])


def test_filtered_draws_stay_inside_the_nucleus():
  logits = jnp.tile(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), (400, 1))
  keys = sampling.row_keys(
    jnp.zeros(400, jnp.uint32), jnp.arange(400, dtype=jnp.uint32), jnp.zeros(400, jnp.uint32)
  )
  drawn = sampling.next_tokens(
    logits,
    keys,
    jnp.zeros(400, jnp.int32),
    jnp.ones(400),
    jnp.zeros(400, jnp.int32),
    jnp.full(400, 0.7),
    mode='filtered',
  )
  shares = np.bincount(drawn, minlength=4) / 400
  np.testing.assert_allclose(shares, [0.625, 0.375, 0, 0], atol=0.1)
  assert shares[2:].sum() == 0


def test_a_row_has_fresh_luck_at_every_step_and_the_same_luck_again():
  n = 2000
  logits = jnp.tile(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), (n, 1))
  keys = sampling.row_keys(*jnp.tile(jnp.array([[3], [5], [0]], jnp.uint32), (1, n)))

  def draw(steps):
    return np.asarray(
      sampling.next_tokens(
        logits, keys, steps, jnp.ones(n), jnp.zeros(n, jnp.int32), jnp.ones(n), mode='sampled'
      )
    )

  once = draw(jnp.arange(n))
  np.testing.assert_allclose(np.bincount(once, minlength=4) / n, [0.5, 0.3, 0.15, 0.05], atol=0.05)
  np.testing.assert_array_equal(once[::-1], draw(jnp.arange(n)[::-1]))
