"""Persona vectors: directions in the residual stream, the activation-steering baseline.

A persona vector of a layer is the mean of the residual stream over the tokens of answers with a
behaviour, minus the mean over answers with the opposite: first over an answer's tokens, then over
answers. Layers are counted as hidden states: 0 is behind the embedding, l behind block l - 1, the
last before the final norm. Steering adds the vector of layer l to the output of block l - 1.

Source: Persona Vectors (arXiv 2507.21509), section 2. Adding the increments v[l] - v[l-1] behind
every block is the all-layers baseline of contrastive weight steering (arXiv 2511.05408, section 4).
Its reference code leaves the last block out and begins with v[1]; here every block is steered, the
first by v[1] - v[0].
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from weightsteer_jax import data, models
from weightsteer_jax.data import Example
from weightsteer_jax.runtime import processes, sharding, tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.sharding import Layout
from weightsteer_jax.storage import files, safetensors, sealed

PyTree = Any

TENSORS = 'vectors.safetensors'
MANIFEST = 'vectors.json'
_MANIFEST = sealed.Manifest(
  noun='folder of persona vectors',
  name=MANIFEST,
  remedy='delete the folder to make the vectors anew',
  needs=('fingerprints',),
  tensors=TENSORS,
)
# Tokens of one call of the program.
BATCH_TOKENS = 16384


@functools.partial(jax.jit, static_argnums=0)
def _sums(
  config: models.ModelConfig, params: PyTree, batch: data.Batch, weights_BT: jax.Array
) -> jax.Array:
  return sharding.replicate(models.residual_sums(config, params, batch.inputs, weights_BT))


def mean_residuals(
  model: models.Model, examples: Sequence[Example], *, layout: Layout | None = None
) -> np.ndarray:
  """Mean residual stream over the answers' tokens, then over the examples: float64 [L + 1, D].

  The tokens are the targets of a fine-tune: answers, and the tokens that end them.

  Raises:
    InputError: if there are no examples, or an example is longer than the model's positions.
  """
  layout = layout or sharding.single()
  # No examples are an error of `_weighted`, which says so.
  longest = max(map(len, examples), default=1)
  length = data.batches.row_length_for(longest)
  rows = max(1, BATCH_TOKENS // length)
  weighted = _weighted(examples)
  batches = data.eval_batches(weighted, rows=rows, row_length=length, row_multiple=layout.rows)
  # float64, as the sums of all batches are far larger than the differences of means.
  total = np.zeros((model.config.num_layers + 1, model.config.width))
  for batch in batches:
    weights_BT = np.zeros(batch.tokens_BT.shape, np.float32)
    # A batch's weight belongs to the token that is predicted; here the token itself is weighed.
    weights_BT[:, 1:] = batch.weights_BT[:, :-1]
    with layout.context():
      placed_batch, placed_weights_BT = layout.put_batch((batch, weights_BT))
      sums = _sums(model.config, model.params, placed_batch, placed_weights_BT)
    total += np.asarray(sums, np.float64)
  return total / len(examples)


def _weighted(examples: Sequence[Example]) -> list[Example]:
  """The examples with 1 / number of answer tokens as mask, so that each example counts once."""
  if not examples:
    raise InputError('there are no answers to take a mean over')
  weighted = []
  for example in examples:
    # The sum of h / n over an answer's n tokens is their mean, so a long answer weighs no more.
    num_targets = np.float32(example.loss_mask.sum())
    weights = example.loss_mask / num_targets
    weighted.append(dataclasses.replace(example, loss_mask=weights))
  return weighted


def persona_vectors(
  model: models.Model,
  positive: Sequence[Example],
  negative: Sequence[Example],
  *,
  layout: Layout | None = None,
) -> np.ndarray:
  """The persona vectors, positive minus negative `mean_residuals`: float32 [L + 1, D]."""
  mean_positive = mean_residuals(model, positive, layout=layout)
  mean_negative = mean_residuals(model, negative, layout=layout)
  # Rounded after the subtraction: the means are large and near each other.
  return (mean_positive - mean_negative).astype(np.float32)


def at_layer(vectors: np.ndarray, layer: int) -> PyTree:
  """The delta that adds the vector of a layer (1 to L) behind the layer's block.

  Raises:
    InputError: if the layer is outside 1 to L.
  """
  layers = len(vectors) - 1
  if not 1 <= layer <= layers:
    raise InputError(
      f'there is no layer {layer} to steer: behind its blocks the model has layers 1 to {layers}'
    )
  # Row l - 1 of the delta is added behind block l - 1, whose output is hidden state l.
  residual = np.zeros_like(vectors[1:])
  residual[layer - 1] = vectors[layer]
  return {'layers': {'residual': models.Dense(jax.numpy.asarray(residual))}}


def at_all_layers(vectors: np.ndarray) -> PyTree:
  """The delta that adds v[l] - v[l-1] behind the block of every layer l from 1 to L."""
  # Additions go on through the residual stream, so increments add up to v[l] - v[0] at layer l.
  increments = np.diff(vectors, axis=0)
  return {'layers': {'residual': models.Dense(jax.numpy.asarray(increments))}}


def save(folder: files.Path, vectors: np.ndarray, meta: Mapping[str, Any]) -> None:
  """Writes vectors and JSON values about them as a new folder; every process calls it."""
  tensors = {'vectors': np.ascontiguousarray(vectors, np.float32)}

  def write():
    with files.new_folder(folder, what='persona vectors') as partial:
      safetensors.save(partial / TENSORS, tensors)
      # The manifest comes last: a folder without one was never finished.
      record = {**meta, 'fingerprints': tree.fingerprint(tensors)}
      _MANIFEST.write(partial, record)

  processes.on_main(write)


def load(folder: files.Path) -> tuple[np.ndarray, dict[str, Any]]:
  """(vectors float32 [L + 1, D], JSON values about the vectors).

  Raises:
    InputError: if the folder holds no persona vectors.
    CorruptError: if the folder was changed or cut short.
  """
  folder = pathlib.Path(folder)
  meta = _MANIFEST.read(folder)
  tensors = safetensors.read(folder / TENSORS, remedy=_MANIFEST.remedy)
  _MANIFEST.check_fingerprints(folder, meta['fingerprints'], tree.fingerprint(tensors))
  return tensors['vectors'], meta
