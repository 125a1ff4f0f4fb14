"""How far a steered model's predictions lie from the base's, place by place.

Axes as in models/decoder.py.
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
from weightsteer_jax.runtime import sharding

PyTree = Any

# Padded tokens of a pass.
PASS_TOKENS = 2048
_SHORTEST = 32


@dataclasses.dataclass(frozen=True)
class Text:
  """A text, and which of its tokens count.

  Attributes:
    name: of the text, to which errors are clustered.
    tokens: at least two.
    counts: for each token but the first, whether its prediction counts.
  """

  name: str
  tokens: tuple[int, ...]
  counts: tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class Places:
  """The places of some texts that count, in order.

  Attributes:
    texts: number of the text of each, int [N].
    divergence: KL(base || steered) over the whole vocabulary, nats, float64 [N].
    lost: log p(token) of the base less that of the steered model, nats, float64 [N].
  """

  texts: np.ndarray
  divergence: np.ndarray
  lost: np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PairBatch:
  """Texts padded on the right, with the base's activations behind the last layer.

  Attributes:
    tokens_BT: int32.
    targets_BT: int32, the token behind each.
    base_BTD: of the unsteered model.
    coefficients_BC: float32, one per edit.
  """

  tokens_BT: Any
  targets_BT: Any
  base_BTD: Any
  coefficients_BC: Any


class Texts:
  """Texts on a device, whose base is computed once, to be measured at any coefficients.

  Args:
    texts: texts that fit the model's positions.
  """

  def __init__(self, engine: Engine, texts: Sequence[Text]):
    self._engine = engine
    longest = max(len(text.tokens) - 1 for text in texts)
    length = max(_SHORTEST, 1 << math.ceil(math.log2(longest)))
    length = max(min(length, engine.config.max_positions), longest)
    rows = round_up(max(1, PASS_TOKENS // length), engine.layout.rows)
    self._passes = []
    # All passes have one shape: one program serves every strength of every direction.
    for start in range(0, len(texts), rows):
      self._passes.append(self._pass(texts[start : start + rows], start, rows, length))

  def measure(self, coefficients: Sequence[float]) -> Places:
    """The places of all texts under one coefficient for each delta of the engine."""
    found = []
    for batch, index, counts in self._passes:
      rows = len(batch.tokens_BT)
      told = np.tile(np.asarray(coefficients, np.float32), (rows, 1))
      with self._engine.layout.context():
        placed = dataclasses.replace(batch, coefficients_BC=self._engine.layout.put_batch(told))
        divergence_BT, lost_BT = divergences(
          self._engine.config, self._engine.params, self._engine.deltas, placed
        )
      divergence = np.asarray(divergence_BT, np.float64)[counts]
      lost = np.asarray(lost_BT, np.float64)[counts]
      found.append((index, divergence, lost))
    return Places(*(np.concatenate(parts) for parts in zip(*found)))

  def _pass(
    self, texts: Sequence[Text], first: int, rows: int, length: int
  ) -> tuple[PairBatch, np.ndarray, np.ndarray]:
    """(batch without coefficients, number of the text of each place that counts, mask [B, T])."""
    tokens_BT = np.zeros((rows, length), np.int32)
    targets_BT = np.zeros((rows, length), np.int32)
    counts_BT = np.zeros((rows, length), bool)
    for row, text in enumerate(texts):
      size = len(text.tokens) - 1
      tokens_BT[row, :size] = text.tokens[:-1]
      targets_BT[row, :size] = text.tokens[1:]
      counts_BT[row, :size] = text.counts
    engine = self._engine
    with engine.layout.context():
      tokens = engine.layout.put_batch(tokens_BT)
      base_BTD = base_activations(engine.config, engine.params, tokens)
      batch = PairBatch(tokens, engine.layout.put_batch(targets_BT), base_BTD, None)
    return batch, first + np.nonzero(counts_BT)[0], counts_BT


@program(static_argnums=0)
def base_activations(config: models.ModelConfig, params: PyTree, tokens_BT: jax.Array) -> jax.Array:
  """The unsteered model's activations behind the last layer, [B, T, D]."""
  x_BTD, _ = models.hidden(config, params, models.TokenBatch(tokens_BT))
  return x_BTD


@program(static_argnums=0)
def divergences(
  config: models.ModelConfig, params: PyTree, deltas: Sequence[PyTree], batch: PairBatch
) -> tuple[jax.Array, jax.Array]:
  """(KL(base || steered) [B, T], log p of the target, base less steered [B, T]), nats, float32.

  Source: Kullback and Leibler 1951, over the whole vocabulary.
  """
  rows, length = batch.tokens_BT.shape
  edits = edits_of(deltas, batch.coefficients_BC)
  x_BTD, _ = models.hidden(config, params, models.TokenBatch(batch.tokens_BT), edits=edits)
  on_device = rows // sharding.row_shards(rows)
  chunk = models.chunk_length(config.vocab_size, on_device, length)
  parts = []
  # A Python loop, as in scoring.py: the logits of one chunk are in memory at a time.
  for start in range(0, length, chunk):
    part = slice(start, start + chunk)
    base_BtV = jax.nn.log_softmax(models.logits(config, params, batch.base_BTD[:, part]))
    steered_BtV = jax.nn.log_softmax(models.logits(config, params, x_BTD[:, part], edits=edits))
    apart_BtV = base_BtV - steered_BtV
    divergence_Bt = jnp.sum(jnp.exp(base_BtV) * apart_BtV, axis=-1)
    targets_Bt1 = batch.targets_BT[:, part, None]
    lost_Bt1 = jnp.take_along_axis(apart_BtV, targets_Bt1, axis=-1)
    parts.append((divergence_Bt, lost_Bt1[..., 0]))
  told = tuple(jnp.concatenate(arrays, axis=1) for arrays in zip(*parts))
  return sharding.replicate(told)
