"""The sites of a model: its parameters by path, and the places that a delta may change."""

import dataclasses
import functools
from typing import Any

import jax
from flax import nnx

from weightsteer_jax.models.config import ModelConfig
from weightsteer_jax.models.decoder import Decoder
from weightsteer_jax.models.delta import Dense, LowRank, is_delta_leaf
from weightsteer_jax.runtime import sharding, tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Site:
  """A parameter, or a place a delta may change.

  Attributes:
    axes: letters of the shape, 'L' first inside the layer stack.
    shape: sizes of the axes.
    inputs: number of axes that are contracted with the input; 0 for everything but kernels of
      projections.
  """

  axes: str
  shape: tuple[int, ...]
  inputs: int

  @property
  def stack(self) -> str:
    """Letters of the first axes, which count layers and experts: '', 'L' or 'LE'."""
    if self.axes.startswith('LE'):
      return 'LE'
    return 'L' if self.axes.startswith('L') else ''


def stack_axes(path: str) -> str:
  """Letters of the axes that a parameter at this path is stacked along: '', 'L' or 'LE'."""
  if not path.startswith('layers/'):
    return ''
  return 'LE' if path.startswith('layers/mlp/experts/') else 'L'


# Cached: building the graph takes longer than tracing a small model's forward pass.
@functools.cache
def definition(config: ModelConfig) -> tuple[nnx.GraphDef[Decoder], nnx.State]:
  """The decoder's graph and its state of shapes and dtypes, as from `nnx.split`."""
  abstract = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
  return nnx.split(abstract)


@functools.cache
def sites(config: ModelConfig) -> dict[str, Site]:
  """{path: Site} of every parameter of the model."""
  _, state = definition(config)
  by_path = {}
  for names, variable in nnx.to_flat_state(state):
    path = '/'.join(map(str, names))
    metadata = variable.get_metadata()
    # A module names the axes of one layer; nnx.vmap stacked the layers along a new first axis.
    lead = 'L' if path.startswith('layers/') else ''
    by_path[path] = Site(lead + metadata['axes'], tuple(variable.shape), metadata['inputs'])
  return by_path


def delta_sites(config: ModelConfig) -> dict[str, Site]:
  """{path: Site} of every place that a delta may change.

  The places are the parameters, a bias on each projection of a layer, and the residual stream.
  """
  by_path = dict(sites(config))
  for path, site in sites(config).items():
    if not site.inputs or not path.startswith('layers/'):
      continue
    # A bias has the axes of its kernel's outputs.
    stack = len(site.stack)
    outputs = slice(stack + site.inputs, None)
    axes = site.stack + site.axes[outputs]
    shape = site.shape[:stack] + site.shape[outputs]
    bias_path = path.removesuffix('kernel') + 'bias'
    # Where the base has the bias, the entry is there already.
    by_path.setdefault(bias_path, Site(axes, shape, 0))
  by_path['layers/residual'] = Site('LD', (config.num_layers, config.width), 0)
  return by_path


def check_delta(config: ModelConfig, delta: PyTree) -> None:
  """Raises InputError if the delta does not fit the model.

  Raises:
    InputError: if the model does not have a path of the delta, a leaf is neither LowRank nor Dense,
      a low-rank leaf is at no kernel, or a shape does not fit (names both shapes).
  """
  known = delta_sites(config)
  for path, leaf in tree.flatten(delta, is_delta_leaf).items():
    # A path passed over in silence would steer with a part of the direction.
    if path not in known:
      raise InputError(
        f"the delta changes '{path}', which this model does not "
        f'have{did_you_mean(path, known)}; it was made for another architecture'
      )
    site = known[path]
    if isinstance(leaf, Dense):
      if tuple(leaf.value.shape) != site.shape:
        raise InputError(
          f"the delta at '{path}' has shape {tuple(leaf.value.shape)}, the model has {site.shape} "
          f'(axes {site.axes}); it was made for another architecture'
        )
    elif isinstance(leaf, LowRank):
      _check_low_rank(path, site, leaf)
    else:
      raise InputError(
        f"the delta at '{path}' is a {type(leaf).__name__}, expected a LowRank or a Dense"
      )


def low_rank_shapes(site: Site, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Shapes of the factors a and b of a low-rank change of a projection's kernel."""
  stack = len(site.stack)
  # The index of the first output axis, behind stack and inputs.
  outputs = stack + site.inputs
  a_shape = (*site.shape[:outputs], rank)
  b_shape = (*site.shape[:stack], rank, *site.shape[outputs:])
  return a_shape, b_shape


def leaf_axes(site: Site, leaf: LowRank | Dense) -> dict[str, str]:
  """{field: axis letters} of the leaf's arrays; the rank is R.

  >>> leaf_axes(Site('LDNH', (2, 8, 4, 2), 1), LowRank(None, None))
  {'a': 'LDR', 'b': 'LRNH'}
  """
  if isinstance(leaf, Dense):
    return {'value': site.axes}
  outputs = len(site.stack) + site.inputs
  a_axes = site.axes[:outputs] + 'R'
  b_axes = site.stack + 'R' + site.axes[outputs:]
  return {'a': a_axes, 'b': b_axes}


def param_shardings(config: ModelConfig, layout: sharding.Layout) -> PyTree:
  """Where each parameter lies, as a tree parallel to the parameters.

  Raises:
    InputError: if the mesh does not divide an axis.
  """
  placed = {}
  for path, site in sites(config).items():
    placed[path] = layout.weights(site.axes, site.shape, name=path)
  return tree.unflatten(placed)


def delta_shardings(config: ModelConfig, delta: PyTree, layout: sharding.Layout) -> PyTree:
  """Where each array of a delta (or of its shapes) lies, as a tree parallel to the delta.

  A factor of a kernel is cut as the kernel is, along the axes that both have.

  Raises:
    InputError: if the delta does not fit, or the mesh does not divide an axis.
  """
  check_delta(config, delta)
  known = delta_sites(config)
  # {path of an array, e.g. 'layers/attn/q/kernel/a': its axis letters}
  axes: dict[str, str] = {}
  for path, leaf in tree.flatten(delta, is_delta_leaf).items():
    for field, letters in leaf_axes(known[path], leaf).items():
      axes[f'{path}/{field}'] = letters
  placed = []
  for path, x in tree.flatten(delta).items():
    placed.append(layout.weights(axes[path], x.shape, name=path))
  # Unflattened along the structure of the delta, whose leaves are LowRank and Dense, not dicts.
  return jax.tree.unflatten(jax.tree.structure(delta), placed)


def _check_low_rank(path: str, site: Site, leaf: LowRank) -> None:
  if not site.inputs:
    raise InputError(
      f"the delta at '{path}' is low-rank, but only kernels of projections can be; use a "
      "dense change there"
    )
  # Any rank will do; every other size must be the model's.
  rank = leaf.a.shape[-1] if leaf.a.ndim else 0
  expected = low_rank_shapes(site, rank)
  got = (tuple(leaf.a.shape), tuple(leaf.b.shape))
  if got != expected:
    raise InputError(
      f"the delta at '{path}' has factors {got[0]} and {got[1]}, the model needs {expected[0]} and "
      f'{expected[1]}; it was made for another architecture'
    )
