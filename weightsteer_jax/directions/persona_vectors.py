"""Persona vectors: directions in the residual stream, the activation-steering baseline.

A persona vector of a layer is the mean of the residual stream over the tokens of answers that show
a behaviour, less that over answers that show its opposite: mean over an answer's tokens first, then
over answers. Layers are counted as hidden states: 0 is behind the embedding, l behind block l - 1,
the last before the final norm. Steering adds the vector of layer l to the output of block l - 1.

Source: Persona Vectors (arXiv 2507.21509), section 2. Adding the increments v[l] - v[l-1] behind
every block is the all-layers baseline of contrastive weight steering (arXiv 2511.05408, section 4);
its reference code leaves the last block out and begins with v[1], here every block is steered and
the first by v[1] - v[0].
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
BATCH_TOKENS = 16384  # of one program call


@functools.partial(jax.jit, static_argnums=0)
def _sums(
  config: models.ModelConfig, params: PyTree, batch: data.Batch, weights_BT: jax.Array
) -> jax.Array:
  return sharding.replicate(models.residual_sums(config, params, batch.inputs, weights_BT))


def mean_residuals(
  model: models.Model, examples: Sequence[Example], *, layout: Layout | None = None
) -> np.ndarray:
  """Mean residual stream over the answers' tokens, then over the examples: float64 [L + 1, D].

  The tokens are those that a fine-tune would learn: answers and what ends them.

  Raises:
    InputError: no examples, or one longer than the model's positions.
  """
  layout = layout or sharding.single()
  length = data.batches.row_length_for(max(map(len, examples), default=1))
  rows = max(1, BATCH_TOKENS // length)
  total = np.zeros((model.config.num_layers + 1, model.config.width))
  for batch in data.eval_batches(
    _weighted(examples), rows=rows, row_length=length, row_multiple=layout.rows
  ):
    weights_BT = np.zeros(batch.tokens_BT.shape, np.float32)
    weights_BT[:, 1:] = batch.weights_BT[
      :, :-1
    ]  # Of the token itself, not of what is predicted from it.
    with layout.context():
      sums = _sums(model.config, model.params, *layout.put_batch((batch, weights_BT)))
    total += np.asarray(sums, np.float64)
  return total / len(examples)


def _weighted(examples: Sequence[Example]) -> list[Example]:
  """The examples with 1 / number of answer tokens in place of the mask, so that each example counts
  once.
  """
  if not examples:
    raise InputError('there are no answers to take a mean over')
  return [
    dataclasses.replace(example, loss_mask=example.loss_mask / np.float32(example.loss_mask.sum()))
    for example in examples
  ]


def persona_vectors(
  model: models.Model,
  positive: Sequence[Example],
  negative: Sequence[Example],
  *,
  layout: Layout | None = None,
) -> np.ndarray:
  """Positive less negative `mean_residuals`: float32 [L + 1, D]."""
  means = (mean_residuals(model, examples, layout=layout) for examples in (positive, negative))
  return np.subtract(*means).astype(np.float32)


def at_layer(vectors: np.ndarray, layer: int) -> PyTree:
  """The delta that adds the vector of one layer (1 to L) behind its block.

  Raises:
    InputError: no such layer.
  """
  layers = len(vectors) - 1
  if not 1 <= layer <= layers:
    raise InputError(
      f'there is no layer {layer} to steer: behind its blocks the model has layers 1 to {layers}'
    )
  residual = np.zeros_like(vectors[1:])
  residual[layer - 1] = vectors[layer]
  return {'layers': {'residual': models.Dense(jax.numpy.asarray(residual))}}


def at_all_layers(vectors: np.ndarray) -> PyTree:
  """The delta that adds v[l] - v[l-1] behind the block of every layer l, the last one too."""
  return {'layers': {'residual': models.Dense(jax.numpy.asarray(np.diff(vectors, axis=0)))}}


def save(folder: files.Path, vectors: np.ndarray, meta: Mapping[str, Any]) -> None:
  """Writes vectors and JSON values about them as a new folder; every process calls it."""
  tensors = {'vectors': np.ascontiguousarray(vectors, np.float32)}

  def write():
    with files.new_folder(folder, what='persona vectors') as partial:
      files.save_safetensors(partial / TENSORS, tensors)
      _MANIFEST.write(partial, {**meta, 'fingerprints': tree.fingerprint(tensors)})

  processes.on_main(write)


def load(folder: files.Path) -> tuple[np.ndarray, dict[str, Any]]:
  """(vectors [L + 1, D], what is known of them).

  Raises:
    InputError: none there. CorruptError: they were changed or cut short.
  """
  folder = pathlib.Path(folder)
  meta = _MANIFEST.read(folder)
  tensors = safetensors.read(folder / TENSORS, remedy=_MANIFEST.remedy)
  _MANIFEST.check_fingerprints(folder, meta['fingerprints'], tree.fingerprint(tensors))
  return tensors['vectors'], meta
