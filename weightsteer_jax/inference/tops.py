"""Log-probabilities of every token of a text, and of the likeliest tokens in its places.

Axes as in models/decoder.py; N tokens that are named in each place.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.data.batches import round_up
from weightsteer_jax.inference.engine import Engine
from weightsteer_jax.inference.programs import edits_of, program
from weightsteer_jax.inference.requests import Tokens
from weightsteer_jax.runtime import sharding

PyTree = Any

# Likeliest tokens in each place: as many as OpenAI's interface gives at most.
MOST_TOPS = 20
# Padded tokens of one pass.
PASS_TOKENS = 1024
_SHORTEST = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TopBatch:
  """Texts, padded on the right.

  Attributes:
    tokens_BT: int32.
    targets_BT: int32, the token behind each.
    coefficients_BC: float32, one per edit.
  """

  tokens_BT: Any
  targets_BT: Any
  coefficients_BC: Any


@dataclasses.dataclass(frozen=True)
class Place:
  """What the model expected in the place of a token.

  Attributes:
    logprob: of the token, nats.
    tops: (token, nats) of the likeliest tokens, likeliest first.
  """

  logprob: float
  tops: tuple[tuple[int, float], ...]


def places(
  engine: Engine, texts: Sequence[tuple[Tokens, tuple[float, ...]]], *, tops: int
) -> list[list[Place]]:
  """The places of each text from the second token on; the first is behind nothing.

  Args:
    texts: (tokens, a coefficient for each delta of the engine).
    tops: likeliest tokens to name, at most MOST_TOPS.
  """
  found: list[list[Place]] = [[] for _ in texts]
  # Alike in length, so that little is padded.
  order = sorted(range(len(texts)), key=lambda i: len(texts[i][0]))
  while order:
    length = _padded(len(texts[order[0]][0]) - 1, engine.config.max_positions)
    together = max(1, PASS_TOKENS // length)
    fitting = [i for i in order if len(texts[i][0]) - 1 <= length][:together]
    order = order[len(fitting) :]
    told = _pass(engine, [texts[i] for i in fitting], length)
    for row, i in enumerate(fitting):
      count = len(texts[i][0]) - 1
      found[i] = [_place(told, row, place, tops) for place in range(count)]
  return found


def _place(told: Sequence[np.ndarray], row: int, place: int, tops: int) -> Place:
  logprobs_BT, ids_BTN, tops_BTN = told
  named = zip(ids_BTN[row, place, :tops].tolist(), tops_BTN[row, place, :tops].tolist())
  return Place(float(logprobs_BT[row, place]), tuple(named))


def _pass(
  engine: Engine, texts: Sequence[tuple[Tokens, tuple[float, ...]]], length: int
) -> list[np.ndarray]:
  """The arrays of `top_logprobs` for texts that fit the length."""
  # Powers of two, so that few programs are compiled.
  rows = round_up(1 << math.ceil(math.log2(len(texts))), engine.layout.rows)
  batch = TopBatch(
    np.zeros((rows, length), np.int32),
    np.zeros((rows, length), np.int32),
    np.zeros((rows, len(engine.deltas)), np.float32),
  )
  for row, (tokens, coefficients) in enumerate(texts):
    batch.tokens_BT[row, : len(tokens) - 1] = tokens[:-1]
    batch.targets_BT[row, : len(tokens) - 1] = tokens[1:]
    batch.coefficients_BC[row] = coefficients
  with engine.layout.context():
    placed = engine.layout.put_batch(batch)
    told = top_logprobs(engine.config, engine.params, engine.deltas, placed)
  return list(map(np.asarray, told))


@program(static_argnums=0)
def top_logprobs(
  config: models.ModelConfig, params: PyTree, deltas: Sequence[PyTree], batch: TopBatch
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(log p(target) [B, T], the likeliest tokens [B, T, N], their log p [B, T, N]), in nats."""
  rows, length = batch.tokens_BT.shape
  edits = edits_of(deltas, batch.coefficients_BC)
  x_BTD, _ = models.hidden(config, params, models.TokenBatch(batch.tokens_BT), edits=edits)
  on_device = rows // sharding.row_shards(rows)
  chunk = models.chunk_length(config.vocab_size, on_device, length)
  parts = []
  # A Python loop, as in scoring.py: the logits of one chunk are in memory at a time.
  for start in range(0, length, chunk):
    part = slice(start, start + chunk)
    logits_BtV = models.logits(config, params, x_BTD[:, part], edits=edits)
    total_Bt1 = jax.nn.logsumexp(logits_BtV, axis=-1, keepdims=True)
    targets_Bt1 = batch.targets_BT[:, part, None]
    picked_Bt1 = jnp.take_along_axis(logits_BtV, targets_Bt1, axis=-1)
    tops_BtN, ids_BtN = jax.lax.top_k(logits_BtV, min(MOST_TOPS, config.vocab_size))
    parts.append(((picked_Bt1 - total_Bt1)[..., 0], ids_BtN, tops_BtN - total_Bt1))
  told = tuple(jnp.concatenate(arrays, axis=1) for arrays in zip(*parts))
  # The host of every process reads all.
  return sharding.replicate(told)


def _padded(tokens: int, most: int) -> int:
  """The length that a text is padded to: a power of two, or the model's own limit."""
  length = max(_SHORTEST, 1 << math.ceil(math.log2(max(tokens, 1))))
  return max(min(length, most), tokens)
