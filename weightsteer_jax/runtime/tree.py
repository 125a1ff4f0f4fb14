"""Pytrees whose leaves are named by path.

A path is the keys from the root joined by '/', as in `layers/attn/q/kernel`. Everything that passes
between the rooms of the project (parameters, deltas, optimizer state, fingerprints) is spoken of by
these names.
"""

import functools
import math
import re
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax.runtime import hashes
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean, listed

PyTree = Any
Array = jax.Array | np.ndarray

NAMED = 8  # paths that an error lists
AT_HAND = 1 << 22  # elements, which NumPy goes through in a tenth of a second
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}  # of an element, by its bytes


def flatten(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
  """{path: leaf}, in the tree's own order.

  >>> flatten({'a': {'x': 1, 'y': 2}, 'b': 3})
  {'a/x': 1, 'a/y': 2, 'b': 3}

  Raises:
    InputError: two leaves have the same path, because a key holds a '/'.
  """
  flat: dict[str, Any] = {}
  for keys, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
    path = '/'.join(_key_name(key) for key in keys)
    if path in flat:
      raise InputError(f"two leaves of the tree are called '{path}': its keys must not hold a '/'")
    flat[path] = leaf
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dicts from {path: leaf}; the inverse of `flatten` for trees of dicts.

  >>> unflatten({'a/x': 1, 'b': 3})
  {'a': {'x': 1}, 'b': 3}

  Raises:
    InputError: a path is both a leaf and on the way to another leaf.
  """
  root: dict[str, Any] = {}
  inner = {path.rsplit('/', depth)[0] for path in flat for depth in range(1, path.count('/') + 1)}
  for path, leaf in flat.items():
    if path in inner:
      raise InputError(f"'{path}' is both a leaf and a folder of leaves")
    *parents, name = path.split('/')
    node = root
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return root


def dotted(record: Mapping[str, Any]) -> dict[str, Any]:
  """The values of nested mappings by dotted name, as config keys are written.

  Unlike `flatten`, this takes no value apart but a mapping, and keeps every None.

  >>> dotted({'a': {'x': (1, 2), 'y': None}, 'b': 3})
  {'a.x': (1, 2), 'a.y': None, 'b': 3}
  """
  flat: dict[str, Any] = {}
  for key, value in record.items():
    if isinstance(value, Mapping):
      flat |= {f'{key}.{name}': item for name, item in dotted(value).items()}
    else:
      flat[key] = value
  return flat


def get(tree: PyTree, path: str) -> Any:
  """The subtree or leaf at `path`.

  Raises:
    InputError: no such path; names the keys that are there and the nearest one.
  """
  node = tree
  for name in path.split('/'):
    keys = sorted(node) if isinstance(node, Mapping) else []
    if name not in keys:
      raise InputError(
        f"no '{name}' on the way to '{path}'{did_you_mean(name, keys)}; there are: "
        f"{', '.join(keys) or 'no keys'}"
      )
    node = node[name]
  return node


def mask(
  tree: PyTree, rules: Iterable[tuple[str, Any]], is_leaf: Callable[[Any], bool] | None = None
) -> PyTree:
  """A tree of the same structure: at each leaf the value of the first rule whose regular expression
  finds its path.

  Raises:
    InputError: a leaf is covered by no rule, or a rule covers no leaf.
  """
  rules = list(rules)
  used = set()

  def value(path):
    for i, (pattern, result) in enumerate(rules):
      if re.search(pattern, path):
        used.add(i)
        return result
    raise InputError(
      f"no rule covers the leaf '{path}'; rules: {[pattern for pattern, _ in rules]}"
    )

  values = [value(path) for path in flatten(tree, is_leaf)]
  idle = [pattern for i, (pattern, _) in enumerate(rules) if i not in used]
  if idle:
    raise InputError(f'rules {idle} cover no leaf of the tree')
  return jax.tree.unflatten(jax.tree.structure(tree, is_leaf=is_leaf), values)


def same_keys(expected: Iterable[str], got: Iterable[str], *, what: str) -> None:
  """Nothing, if both hold the same names.

  Raises:
    InputError: lists what is missing and what is too many, with the nearest expected names.
  """
  expected, got = set(expected), set(got)
  missing, extra = sorted(expected - got), sorted(got - expected)
  if not missing and not extra:
    return
  lines = [f'{what}: the names differ from what was expected.']
  if missing:
    lines.append(f'  missing ({len(missing)}): {listed(missing, NAMED)}')
  if extra:
    lines.append(
      f'  unexpected ({len(extra)}): '
      f'{listed([name + did_you_mean(name, missing) for name in extra], NAMED)}'
    )
  raise InputError('\n'.join(lines))


def count(tree: PyTree) -> int:
  """Number of scalars in the tree."""
  return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))


def nbytes(tree: PyTree) -> int:
  """Bytes the tree's arrays take, whole (over all devices)."""
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def fingerprint(tree: PyTree) -> dict[str, str]:
  """{path: 8 hex digits} of every array leaf: others when a bit, the order of elements, the shape
  or the dtype changes.

  The hash mixes each word with its index and adds up modulo 2^32, so it is the same however the
  array is sharded.

  Raises:
    InputError: a leaf is no array of numbers of 8 to 64 bits.
  """
  flat = flatten(tree)
  labels = {path: _label(path, leaf) for path, leaf in flat.items()}
  words = {path: _words(leaf) for path, leaf in flat.items()}
  hashes = {path: _hash_at_hand(np.asarray(x)) for path, x in words.items() if at_hand(x)}
  large = {path: x for path, x in words.items() if path not in hashes}
  hashes |= jax.device_get(_hash_leaves(large)) if large else {}
  return {path: _named(int(hashes[path]), label) for path, label in labels.items()}


def at_hand(x: Array) -> bool:
  """Whether NumPy has gone through the array before a program that does so is compiled: it is
  small, and on this host.
  """
  return math.prod(x.shape) <= AT_HAND and (isinstance(x, np.ndarray) or x.is_fully_addressable)


def named_hash(total: int, shape: tuple[int, ...], dtype: str) -> str:
  """The fingerprint of an array from the sum of its parts' `mixed` words."""
  return _named(total, f'{tuple(shape)} {dtype}')


def _named(total: int, label: str) -> str:
  return f'{(total + zlib.crc32(label.encode())) % 2**32:08x}'


def per_arrays(function: Callable[[PyTree], Any]) -> Callable[[PyTree], Any]:
  """The function, which then computes once for as long as the arrays of a tree live; it must depend
  on them alone.

  For what goes through all of a model's weights and is asked for again and again. Only trees of jax
  arrays, which never change, are known again: by the identity of each leaf, and their paths.
  Nothing is kept alive.
  """
  known: dict[Any, tuple[list[weakref.ref], Any]] = {}

  @functools.wraps(function)
  def remembered(tree: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    if not leaves or not all(
      isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) for leaf in leaves
    ):
      return function(tree)
    key = structure, tuple(map(id, leaves))
    # An id is given to another array when its first owner is gone, which the references tell.
    if key in known and all(ref() is leaf for ref, leaf in zip(known[key][0], leaves)):
      return known[key][1]
    for stale in [key for key, (refs, _) in known.items() if any(ref() is None for ref in refs)]:
      del known[stale]
    known[key] = [weakref.ref(leaf) for leaf in leaves], function(tree)
    return known[key][1]

  return remembered


@per_arrays
def digest(tree: PyTree) -> str:
  """16 hex digits that name the whole tree: a hash of its sorted paths, shapes, dtypes and leaf
  fingerprints.
  """
  prints = fingerprint(tree)
  lines = [f'{path} {_label(path, leaf)} {prints[path]}' for path, leaf in flatten(tree).items()]
  return hashes.of_text('\n'.join(sorted(lines)), hashes.SHORT)


def _label(path: str, leaf: Any) -> str:
  """Shape and dtype of an array leaf, which the hash of its words does not see."""
  dtype = leaf.dtype if isinstance(leaf, jax.Array) else np.asarray(leaf).dtype
  real = jnp.issubdtype(dtype, np.number) and not jnp.issubdtype(dtype, np.complexfloating)
  if not (
    real and dtype.itemsize <= 8 or dtype == np.bool_ or jnp.issubdtype(dtype, jax.dtypes.prng_key)
  ):
    raise InputError(
      f"the leaf '{path}' has dtype {dtype}; only arrays of real numbers of 8 to 64 bits "
      "have a fingerprint"
    )
  return f'{tuple(np.shape(leaf))} {dtype}'


def _words(leaf: Any) -> jax.Array | np.ndarray:
  """The leaf, with 64-bit numbers of NumPy as pairs of 32-bit words: jax would round them."""
  if isinstance(leaf, jax.Array):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
  array = np.asarray(leaf)
  return (
    np.ascontiguousarray(array).view(np.uint32).reshape(array.shape + (2,))
    if array.dtype.itemsize == 8
    else array
  )


def _hash_at_hand(x: np.ndarray) -> np.ndarray:
  bits = np.ascontiguousarray(x).ravel().view(WORDS[x.dtype.itemsize]).astype(np.uint32)
  return mixed(bits, np.arange(bits.size, dtype=np.uint32))


@jax.jit
def _hash_leaves(leaves):
  return jax.tree.map(_hash_leaf, leaves)


def _hash_leaf(x):
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  word = WORDS[x.dtype.itemsize]
  bits = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
  index = jnp.zeros(bits.shape, jnp.uint32)
  for axis, size in enumerate(bits.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
  return mixed(bits, index)


def mixed(bits: Array, index: Array) -> Array:
  """The sum modulo 2^32 of uint32 words, each mixed with its index in the array: of parts, it adds
  up to the whole's.

  NumPy's arrays or jax's, of one axis at least: NumPy warns of what a scalar loses.
  """
  # Odd multipliers are invertible modulo 2^32, so a single changed word always changes its term of
  # the sum.
  salt = index * np.uint32(2654435761) + np.uint32(0x9E3779B9)
  salt = (salt ^ (salt >> 15)) * np.uint32(0x85EBCA6B) | np.uint32(1)
  mixed = bits * salt
  mixed = mixed ^ (mixed >> 13)
  return (mixed * np.uint32(0xC2B2AE35)).sum(dtype=np.uint32)


def _key_name(key) -> str:
  for attribute in ('key', 'name', 'idx'):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)
