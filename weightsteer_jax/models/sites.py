"""The places of a model: its parameters by path, and where a delta may change it."""

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
    axes: letters of its shape, 'L' first inside the layer stack.
    shape: sizes of those axes.
    inputs: number of its axes that are contracted with the input, 0 if it is no projection's
      kernel.
  """

  axes: str
  shape: tuple[int, ...]
  inputs: int

  @property
  def stack(self) -> str:
    """Letters of a kernel's first axes, those that count layers and experts: '', 'L' or 'LE'."""
    return 'LE' if self.axes.startswith('LE') else 'L' if self.axes.startswith('L') else ''


def stack_axes(path: str) -> str:
  """Letters of the axes that a parameter at this path, or a change of it, is stacked along: '', 'L'
  or 'LE'.
  """
  if not path.startswith('layers/'):
    return ''
  return 'LE' if path.startswith('layers/mlp/experts/') else 'L'


@functools.cache
def definition(config: ModelConfig):
  """(graph, state of shapes and dtypes) of the decoder, as `nnx.split` gives them."""
  abstract = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
  return nnx.split(abstract)


@functools.cache
def sites(config: ModelConfig) -> dict[str, Site]:
  """{path: Site} of every parameter of the model."""
  _, state = definition(config)
  found = {}
  for path, variable in nnx.to_flat_state(state):
    name = '/'.join(map(str, path))
    metadata = variable.get_metadata()
    axes = ('L' if name.startswith('layers/') else '') + metadata['axes']
    found[name] = Site(axes, tuple(variable.shape), metadata['inputs'])
  return found


def delta_sites(config: ModelConfig) -> dict[str, Site]:
  """{path: Site} of all that a delta may change: parameters, a bias on each projection, and the
  residual stream.
  """
  found = dict(sites(config))
  for path, site in sites(config).items():
    if site.inputs and path.startswith('layers/'):
      bias, stack = path.removesuffix('kernel') + 'bias', len(site.stack)
      outputs = slice(stack + site.inputs, None)
      found.setdefault(
        bias, Site(site.stack + site.axes[outputs], site.shape[:stack] + site.shape[outputs], 0)
      )
  found['layers/residual'] = Site('LD', (config.num_layers, config.width), 0)
  return found


def check_delta(config: ModelConfig, delta: PyTree) -> None:
  """Nothing, if the delta fits the model.

  Raises:
    InputError: a path that the model does not have, a leaf of another kind, or a shape that does
      not fit; names both shapes.
  """
  known = delta_sites(config)
  for path, leaf in tree.flatten(delta, is_delta_leaf).items():
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
  lead = site.shape[:stack]
  return site.shape[: stack + site.inputs] + (rank,), lead + (rank,) + site.shape[
    stack + site.inputs :
  ]


def leaf_axes(site: Site, leaf: LowRank | Dense) -> LowRank | Dense:
  """The leaf with axis letters in place of its arrays; the rank is R.

  >>> leaf_axes(Site('LDNH', (2, 8, 4, 2), 1), LowRank(None, None)).b
  'LRNH'
  """
  if isinstance(leaf, Dense):
    return dataclasses.replace(leaf, value=site.axes)
  inputs = len(site.stack) + site.inputs
  return dataclasses.replace(
    leaf, a=site.axes[:inputs] + 'R', b=site.stack + 'R' + site.axes[inputs:]
  )


def param_shardings(config: ModelConfig, layout: sharding.Layout) -> PyTree:
  """Where each parameter lies, as a tree parallel to the parameters.

  Raises:
    InputError: an axis that the mesh does not divide.
  """
  return tree.unflatten(
    {path: layout.weights(site.axes, site.shape, name=path) for path, site in sites(config).items()}
  )


def delta_shardings(config: ModelConfig, delta: PyTree, layout: sharding.Layout) -> PyTree:
  """Where each array of a delta (or of its shapes) lies: a factor as the axes of the kernel that it
  has.

  Raises:
    InputError: a delta that does not fit, or an axis that the mesh does not divide.
  """
  check_delta(config, delta)
  known, axes = delta_sites(config), {}
  for path, leaf in tree.flatten(delta, is_delta_leaf).items():
    axes |= {
      f'{path}/{name}': letters
      for name, letters in vars(leaf_axes(known[path], leaf)).items()
      if name != 'scale'
    }
  placed = [
    layout.weights(axes[path], x.shape, name=path) for path, x in tree.flatten(delta).items()
  ]
  return jax.tree.unflatten(jax.tree.structure(delta), placed)


def _check_low_rank(path: str, site: Site, leaf: LowRank) -> None:
  if not site.inputs:
    raise InputError(
      f"the delta at '{path}' is low-rank, but only kernels of projections can be; use a "
      "dense change there"
    )
  expected = low_rank_shapes(site, leaf.a.shape[-1] if leaf.a.ndim else 0)
  got = (tuple(leaf.a.shape), tuple(leaf.b.shape))
  if got != expected:
    raise InputError(
      f"the delta at '{path}' has factors {got[0]} and {got[1]}, the model needs {expected[0]} and "
      f'{expected[1]}; it was made for another architecture'
    )
