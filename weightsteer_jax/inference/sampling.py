"""The next token of each row, drawn from its own stream of random numbers."""

import hashlib

import jax
import jax.numpy as jnp

# Each mode is a program of its own: greedy rows pay for no random numbers, and only filtered rows
# for a sort of the vocabulary.
MODES = ('greedy', 'sampled', 'filtered')


def example_hash(name: str) -> int:
  """32 bits that name an example, the same in every process."""
  # Python's own hash of a text changes from process to process; `fold_in` takes 32 bits.
  digest = hashlib.sha256(name.encode()).digest()
  return int.from_bytes(digest[:4], 'little')


def row_keys(seeds_B: jax.Array, examples_B: jax.Array, samples_B: jax.Array) -> jax.Array:
  """Each row's key, from (seed, hash of the example, sample); uint32 [B, 2]."""

  def key_of(seed, example, sample):
    # By name: the draws must not change with jax's default.
    key = jax.random.key(seed, impl='threefry2x32')
    key = jax.random.fold_in(key, example)
    key = jax.random.fold_in(key, sample)
    # Plain uint32: a slot's keys lie in the decoding state, beside its other arrays.
    return jax.random.key_data(key)

  return jax.vmap(key_of)(seeds_B, examples_B, samples_B)


def next_tokens(
  logits_BV: jax.Array,
  keys_B2: jax.Array,
  steps_B: jax.Array,
  temperatures_B: jax.Array,
  top_ks_B: jax.Array,
  top_ps_B: jax.Array,
  *,
  mode: str,
) -> jax.Array:
  """One token per row, int32 [B].

  Args:
    logits_BV: float32.
    keys_B2: uint32, from `row_keys`.
    steps_B: int32, tokens that each row has drawn so far.
    temperatures_B: float32; a row at 0 is greedy in every mode.
    top_ks_B: int32, likeliest tokens to draw from; 0 is all.
    top_ps_B: float32, least total probability of the tokens to draw from.
    mode: 'greedy' looks at the logits alone; 'sampled' ignores top k and top p; 'filtered' honours
      all.
  """
  # `mode` is static: a branch that is not taken is not in the program.
  likeliest_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  if mode == 'greedy':
    return likeliest_B
  draws_B = temperatures_B > 0
  scaled_BV = logits_BV / jnp.where(draws_B, temperatures_B, 1.0)[:, None]
  if mode == 'filtered':
    kept_BV = kept(scaled_BV, top_ks_B, top_ps_B)
    scaled_BV = jnp.where(kept_BV, scaled_BV, -jnp.inf)
  # The largest of logits plus Gumbel noise is a draw from their softmax, with no sum over V that
  # could round differently.
  gumbel_BV = _gumbel(keys_B2, steps_B, logits_BV.shape[-1])
  drawn_B = jnp.argmax(scaled_BV + gumbel_BV, axis=-1).astype(jnp.int32)
  return jnp.where(draws_B, drawn_B, likeliest_B)


def kept(logits_BV: jax.Array, top_ks_B: jax.Array, top_ps_B: jax.Array) -> jax.Array:
  """The tokens to draw from, bool [B, V].

  The top k (0: all), and among the top k the fewest tokens with probability top p, at least one.
  Ties with the last token kept are kept too.

  Source: nucleus sampling, arXiv 1904.09751; first top k, then top p, as in transformers.
  """
  # Likeliest first: `sort` only ascends.
  sorted_BV = -jnp.sort(-logits_BV, axis=-1)
  # The top k are the first k places; a top k of 0 takes all.
  ranks_V = jnp.arange(logits_BV.shape[-1])
  takes_all_B1 = top_ks_B[:, None] == 0
  in_k_BV = takes_all_B1 | (ranks_V < top_ks_B[:, None])
  # Top p is a share of the probability of the top k, not of the whole vocabulary.
  in_k_logits_BV = jnp.where(in_k_BV, sorted_BV, -jnp.inf)
  probabilities_BV = jax.nn.softmax(in_k_logits_BV, axis=-1)
  # A token is kept if the likelier ones alone do not hold top p. Rounding may leave their sum below
  # 1: a top p of 1 keeps all.
  up_to_BV = jnp.cumsum(probabilities_BV, axis=-1)
  before_BV = up_to_BV - probabilities_BV
  in_p_BV = before_BV < top_ps_B[:, None]
  in_p_BV |= top_ps_B[:, None] >= 1
  # Both filters keep the first places of the order: their number gives the last place, and the
  # logit in that place is the threshold for the tokens in their own order.
  in_both_BV = in_k_BV & in_p_BV
  num_kept_B1 = jnp.sum(in_both_BV, axis=-1, keepdims=True)
  thresholds_B1 = jnp.take_along_axis(sorted_BV, num_kept_B1 - 1, axis=-1)
  return logits_BV >= thresholds_B1


def _gumbel(keys_B2: jax.Array, steps_B: jax.Array, size: int) -> jax.Array:
  def draw(key_data, step):
    key = jax.random.wrap_key_data(key_data, impl='threefry2x32')
    key = jax.random.fold_in(key, step)
    return jax.random.gumbel(key, (size,))

  # Row by row, so that a row's draws do not depend on the batch around the row.
  return jax.vmap(draw)(keys_B2, steps_B)
