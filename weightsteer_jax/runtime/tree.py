"""Pytrees with leaves named by path.

A path is the keys from the root joined by '/', as in `layers/attn/q/kernel`. The rooms of the
project share paths as names: of parameters, deltas, optimizer state, fingerprints.
"""

import functools
import math
import re
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax.runtime import hashes
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean, listed

PyTree = Any
Array = jax.Array | np.ndarray
AnyArray = TypeVar('AnyArray', jax.Array, np.ndarray)

# Paths that an error lists.
NAMED = 8
# Elements that NumPy hashes in about a tenth of a second, less than a compilation takes.
AT_HAND = 1 << 22
# The unsigned integers that elements are hashed as, by the bytes of an element. Elements of 8 bytes
# are two words.
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}


def flatten(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
  """{path: leaf}, in the tree's own order.

  >>> flatten({'a': {'x': 1, 'y': 2}, 'b': 3})
  {'a/x': 1, 'a/y': 2, 'b': 3}

  Raises:
    InputError: if two leaves have the same path, because a key holds a '/'.
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
    InputError: if a path is both a leaf and on the way to another leaf.
  """
  # Every proper beginning of a path, of which none may be a leaf.
  inner_nodes = set()
  for path in flat:
    for depth in range(1, path.count('/') + 1):
      inner_nodes.add(path.rsplit('/', depth)[0])
  root: dict[str, Any] = {}
  for path, leaf in flat.items():
    if path in inner_nodes:
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
    InputError: if the path is missing; the error lists the keys and names the nearest.
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
  """A tree of values of the same structure, chosen by rules on the paths.

  A leaf gets the value of the first rule with a regular expression found in the leaf's path.

  Raises:
    InputError: if a leaf is covered by no rule, or a rule covers no leaf.
  """
  rules = list(rules)
  used = set()
  values = []
  for path in flatten(tree, is_leaf):
    matching = [i for i, (pattern, _) in enumerate(rules) if re.search(pattern, path)]
    if not matching:
      raise InputError(
        f"no rule covers the leaf '{path}'; rules: {[pattern for pattern, _ in rules]}"
      )
    used.add(matching[0])
    values.append(rules[matching[0]][1])
  # A rule that covers nothing is a slip in its pattern, and would otherwise go unseen.
  idle = [pattern for i, (pattern, _) in enumerate(rules) if i not in used]
  if idle:
    raise InputError(f'rules {idle} cover no leaf of the tree')
  return jax.tree.unflatten(jax.tree.structure(tree, is_leaf=is_leaf), values)


def same_keys(expected: Iterable[str], got: Iterable[str], *, what: str) -> None:
  """Raises InputError if two sets of names differ.

  The error lists missing and unexpected names, with the nearest expected names.
  """
  expected = set(expected)
  got = set(got)
  missing = sorted(expected - got)
  extra = sorted(got - expected)
  if not missing and not extra:
    return
  lines = [f'{what}: the names differ from what was expected.']
  if missing:
    lines.append(f'  missing ({len(missing)}): {listed(missing, NAMED)}')
  if extra:
    hinted = [name + did_you_mean(name, missing) for name in extra]
    lines.append(f'  unexpected ({len(extra)}): {listed(hinted, NAMED)}')
  raise InputError('\n'.join(lines))


def count(tree: PyTree) -> int:
  """The number of scalars in the tree."""
  return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))


def nbytes(tree: PyTree) -> int:
  """The bytes of the tree's arrays, each whole, over all devices."""
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def fingerprint(tree: PyTree) -> dict[str, str]:
  """{path: 8 hex digits} of every array leaf.

  The digits change when a bit, the order of the elements, the shape or the dtype changes, and do
  not depend on how an array is sharded: the hash mixes each word with the word's index in the array
  and adds up modulo 2^32.

  Raises:
    InputError: if a leaf is no array of real numbers of 8 to 64 bits.
  """
  labels = {}
  small_hashes = {}
  large_words = {}
  for path, leaf in flatten(tree).items():
    labels[path] = _label(path, leaf)
    words = _words(leaf)
    if at_hand(words):
      small_hashes[path] = _hash_in_numpy(np.asarray(words))
    else:
      large_words[path] = words
  # One program for all large leaves, and one transfer of their sums.
  large_hashes = jax.device_get(_hash_in_jax(large_words)) if large_words else {}
  sums = {**small_hashes, **large_hashes}
  return {path: _hex_digits(int(sums[path]), label) for path, label in labels.items()}


def at_hand(x: Array) -> bool:
  """Whether an array is small and on this host.

  NumPy is through with such an array before a program for the same work is compiled.
  """
  on_host = isinstance(x, np.ndarray) or x.is_fully_addressable
  return on_host and math.prod(x.shape) <= AT_HAND


def named_hash(total: int, shape: tuple[int, ...], dtype: str) -> str:
  """The fingerprint of an array from the sum of the `mixed` words of all parts."""
  return _hex_digits(total, f'{tuple(shape)} {dtype}')


def _hex_digits(total: int, label: str) -> str:
  # The label is added as one more word, so that parts need not know it.
  return f'{(total + zlib.crc32(label.encode())) % 2**32:08x}'


def per_arrays(function: Callable[[PyTree], Any]) -> Callable[[PyTree], Any]:
  """The function, computed once for as long as the arrays of the argument live.

  For functions of the arrays alone, called again and again on all of a model's weights. Results are
  kept for trees of jax arrays only, since jax arrays never change. A tree is known again by its
  structure and the identity of each leaf. No array is kept alive.
  """
  known: dict[Any, tuple[list[weakref.ref], Any]] = {}

  @functools.wraps(function)
  def remembered(tree: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    if not leaves or not all(_is_concrete(leaf) for leaf in leaves):
      return function(tree)
    key = structure, tuple(map(id, leaves))
    if key in known:
      references, result = known[key]
      # Python gives an id to another array when the first owner is gone; the references tell.
      if all(reference() is leaf for reference, leaf in zip(references, leaves)):
        return result
    # Results of trees that are gone are dropped, or the table would grow for ever.
    for old_key, (references, _) in list(known.items()):
      if any(reference() is None for reference in references):
        del known[old_key]
    known[key] = [weakref.ref(leaf) for leaf in leaves], function(tree)
    return known[key][1]

  return remembered


def _is_concrete(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)


@per_arrays
def digest(tree: PyTree) -> str:
  """16 hex digits to name a whole tree of arrays.

  The digits are a hash of the sorted paths, each with shape, dtype and fingerprint of the leaf.
  """
  prints = fingerprint(tree)
  # Shape and dtype are in the fingerprints too, but only as 32 bits with everything else.
  lines = []
  for path, leaf in flatten(tree).items():
    lines.append(f'{path} {_label(path, leaf)} {prints[path]}')
  return hashes.of_text('\n'.join(sorted(lines)), hashes.SHORT)


def _label(path: str, leaf: Any) -> str:
  """The shape and dtype of an array leaf, invisible in the hash of the words."""
  dtype = leaf.dtype if isinstance(leaf, jax.Array) else np.asarray(leaf).dtype
  is_number = jnp.issubdtype(dtype, np.number) and not jnp.issubdtype(dtype, np.complexfloating)
  is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
  if not (is_number and dtype.itemsize <= 8 or dtype == np.bool_ or is_key):
    raise InputError(
      f"the leaf '{path}' has dtype {dtype}; only arrays of real numbers of 8 to 64 bits "
      "have a fingerprint"
    )
  return f'{tuple(np.shape(leaf))} {dtype}'


def _words(leaf: Any) -> Array:
  """The leaf as an array whose elements can be hashed as words of at most 32 bits."""
  if isinstance(leaf, jax.Array):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf
  array = np.asarray(leaf)
  if array.dtype.itemsize < 8:
    return array
  # jax would round numbers of 64 bits to 32.
  return np.ascontiguousarray(array).view(np.uint32).reshape(array.shape + (2,))


def _hash_in_numpy(x: np.ndarray) -> np.ndarray:
  words = np.ascontiguousarray(x).ravel().view(WORDS[x.dtype.itemsize]).astype(np.uint32)
  return mixed(words, np.arange(words.size, dtype=np.uint32))


@jax.jit
def _hash_in_jax(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
  return {path: _hash_leaf(leaf) for path, leaf in leaves.items()}


def _hash_leaf(x: jax.Array) -> jax.Array:
  # A truth value cannot be bitcast.
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  words = jax.lax.bitcast_convert_type(x, WORDS[x.dtype.itemsize]).astype(jnp.uint32)
  # The flat index comes from one iota per axis, without a reshape: it is cut as the array is.
  index = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
  return mixed(words, index)


def mixed(words: AnyArray, index: AnyArray) -> AnyArray:
  """The sum modulo 2^32 of uint32 words, each mixed with its index in the array.

  The sums of an array's parts add up to the sum of the whole array. NumPy's arrays or jax's, with
  at least one axis: of a scalar NumPy warns that bits are lost.
  """
  # Odd multipliers are invertible modulo 2^32, so that a single changed word always changes its
  # term of the sum. Source of the multipliers: the golden ratio (Knuth, The Art of Computer
  # Programming, volume 3, section 6.4), and the finaliser of MurmurHash3.
  salt = index * np.uint32(2654435761) + np.uint32(0x9E3779B9)
  salt = (salt ^ (salt >> np.uint32(15))) * np.uint32(0x85EBCA6B) | np.uint32(1)
  terms = words * salt
  terms = (terms ^ (terms >> np.uint32(13))) * np.uint32(0xC2B2AE35)
  return terms.sum(dtype=np.uint32)


def _key_name(key: Any) -> str:
  # jax has a class of key for each kind of node: dict, attribute, sequence.
  for attribute in ('key', 'name', 'idx'):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)
