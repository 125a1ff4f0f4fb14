"""Trees named by path, and fingerprints that see every change and no sharding."""

import doctest
import gc
import importlib
import os
import pkgutil
import subprocess
import sys
import textwrap
import weakref

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import weightsteer_jax
from weightsteer_jax.models import Dense, LowRank, is_delta_leaf
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError

NESTED = {'layers': {'attn': {'q': 1, 'k': 2}, 'norm': 3}, 'head': 4}


def test_flatten_and_unflatten_are_inverse():
  flat = tree.flatten(NESTED)
  assert flat == {'head': 4, 'layers/attn/k': 2, 'layers/attn/q': 1, 'layers/norm': 3}
  assert tree.unflatten(flat) == NESTED


def test_paths_go_through_dataclasses_and_lists_and_stop_at_leaves():
  nested = {'a': LowRank(1, 2, 0.5), 'b': [Dense(3), 4]}
  assert tree.flatten(nested) == {'a/a': 1, 'a/b': 2, 'b/0/value': 3, 'b/1': 4}
  assert list(tree.flatten(nested, is_delta_leaf)) == ['a', 'b/0', 'b/1']


def test_two_leaves_of_one_name_are_an_error():
  with pytest.raises(InputError, match="called 'a/b'"):
    tree.flatten({'a': {'b': 1}, 'a/b': 2})
  for flat in ({'a': 1, 'a/b/c': 2}, {'a/b/c': 2, 'a/b': 1}):
    with pytest.raises(InputError, match='both a leaf and a folder'):
      tree.unflatten(flat)


def test_get_is_strict():
  assert (
    tree.get(NESTED, 'layers/attn') == {'q': 1, 'k': 2} and tree.get(NESTED, 'layers/norm') == 3
  )
  with pytest.raises(
    InputError,
    match=r"no 'atn' on the way to 'layers/atn/q' \(did you mean 'attn'\?\); there are: attn, norm",
  ):
    tree.get(NESTED, 'layers/atn/q')
  with pytest.raises(InputError, match='there are: no keys'):
    tree.get(NESTED, 'head/kernel')


def test_masks_take_the_first_rule_and_cover_everything():
  assert tree.mask(NESTED, [('attn/q', 'train'), ('attn', None), ('', 'freeze')]) == {
    'layers': {'attn': {'q': 'train', 'k': None}, 'norm': 'freeze'},
    'head': 'freeze',
  }
  with pytest.raises(InputError, match="no rule covers the leaf 'head'"):
    tree.mask(NESTED, [('layers', 1)])
  with pytest.raises(InputError, match=r"rules \['bias'\] cover no leaf"):
    tree.mask(NESTED, [('bias', 0), ('', 1)])
  assert tree.mask({'a': Dense(1), 'b': Dense(2)}, [('a', 1), ('b', 2)], is_delta_leaf) == {
    'a': 1,
    'b': 2,
  }


def test_names_that_differ_are_listed_with_their_nearest():
  tree.same_keys(['a', 'b'], ['b', 'a'], what='it')
  with pytest.raises(InputError) as error:
    tree.same_keys(['kernel', 'bias', *map(str, range(10))], ['kernle', 'bias'], what='the tensors')
  assert str(error.value) == (
    "the tensors: the names differ from what was expected.\n  missing (11): 0, 1, 2, 3, 4, "
    "5, 6, 7 and 3 more\n"
    "  unexpected (1): kernle (did you mean 'kernel'?)"
  )


def test_counts():
  arrays = {
    'a': jnp.zeros((3, 4), jnp.bfloat16),
    'b': np.zeros((5,), np.float32),
    'c': jax.ShapeDtypeStruct((), jnp.int8),
  }
  assert tree.count(arrays) == 18 and tree.nbytes(arrays) == 24 + 20 + 1
  huge = {'a': jax.ShapeDtypeStruct((126, 16384, 53248), jnp.bfloat16)}
  assert tree.count(huge) == 126 * 16384 * 53248 and tree.nbytes(huge) == 2 * tree.count(huge)


def reference_hash(words) -> int:
  """The sum of mixed words modulo 2^32, in Python's integers."""
  total = 0
  for i, word in enumerate(words):
    salt = (i * 2654435761 + 0x9E3779B9) % 2**32
    salt = (salt ^ (salt >> 15)) * 0x85EBCA6B % 2**32 | 1
    mixed = int(word) * salt % 2**32
    total += (mixed ^ (mixed >> 13)) * 0xC2B2AE35
  return total % 2**32


def test_the_hash_is_the_documented_sum():
  array = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
  difference = int(tree.fingerprint({'x': array})['x'], 16) - reference_hash(
    array.view(np.uint32).ravel()
  )
  other = array[::-1].copy()
  assert (
    difference % 2**32
    == (
      int(tree.fingerprint({'x': other})['x'], 16) - reference_hash(other.view(np.uint32).ravel())
    )
    % 2**32
  )


@pytest.mark.parametrize(
  'dtype',
  [np.float32, ml_dtypes.bfloat16, np.float16, np.int8, np.uint8, np.int32, np.float64, np.int64],
)
def test_every_single_flipped_bit_is_seen(dtype):
  array = np.random.default_rng(1).integers(0, 100, (6, 8)).astype(dtype)
  bits = array.dtype.itemsize * 8
  unsigned = array.view(f'u{array.dtype.itemsize}')
  base = tree.fingerprint({'x': array})
  for i, j, bit in np.random.default_rng(2).integers(0, (6, 8, bits), (60, 3)):
    changed = unsigned.copy()
    changed[i, j] ^= np.array(1, changed.dtype) << np.array(bit, changed.dtype)
    assert tree.fingerprint({'x': changed.view(dtype)}) != base


def test_order_shape_dtype_and_length_are_seen():
  array = np.arange(24, dtype=np.float32).reshape(4, 6)
  swapped = array.copy()
  swapped[[0, 1]] = swapped[[1, 0]]
  variants = {
    'base': array,
    'rows': swapped,
    'columns': array[:, ::-1].copy(),
    'shape': array.reshape(6, 4),
    'flat': array.ravel(),
    'dtype': array.view(np.int32),
    'zeros': np.zeros(3, np.float32),
    'more zeros': np.zeros(4, np.float32),
    'fewer bits': np.zeros(4, np.float16),
    'negative zero': np.array([0, 0, 0, -0.0], np.float32),
    'bool': np.zeros(4, np.bool_),
    'true': np.array([0, 0, 0, 1], np.bool_),
  }
  assert len(set(tree.fingerprint(variants).values())) == len(variants)


def test_the_same_array_has_the_same_fingerprint_wherever_it_lies():
  array = np.random.default_rng(3).normal(size=(7, 3)).astype(np.float32)
  strided = np.asfortranarray(array)
  prints = tree.fingerprint({'numpy': array, 'jax': jnp.asarray(array), 'strided': strided})
  assert len(set(prints.values())) == 1
  key = jax.random.key(0)
  assert tree.fingerprint({'x': key}) != tree.fingerprint({'x': jax.random.key(1)})


@pytest.mark.parametrize(
  'dtype', ['float32', 'bfloat16', 'float16', 'int8', 'bool', 'int64', 'float64']
)
def test_small_arrays_are_hashed_without_a_compilation_to_what_large_ones_are(dtype, monkeypatch):
  leaves = {
    'x': np.random.default_rng(0).normal(size=(5, 3, 2)).astype(jnp.dtype(dtype)),
    'scalar': np.ones((), jnp.dtype(dtype)),
  }
  found = tree.fingerprint(leaves)
  monkeypatch.setattr(tree, 'AT_HAND', 0)
  assert tree.fingerprint(leaves) == found


@pytest.mark.parametrize(
  'leaf', [np.array(['text']), np.zeros(2, np.complex64), np.array([object()])]
)
def test_what_is_no_array_of_real_numbers_has_no_fingerprint(leaf):
  with pytest.raises(InputError, match="the leaf 'a/b' has dtype"):
    tree.fingerprint({'a': {'b': leaf}})


def test_a_digest_names_the_whole_tree():
  a, b = np.arange(3, dtype=np.float32), np.arange(4, dtype=np.float32)
  digest = tree.digest({'a': a, 'b': b})
  assert len(digest) == 16 and int(digest, 16) >= 0
  assert digest == tree.digest({'b': jnp.asarray(b), 'a': a})
  others = [
    {'a': b, 'b': a},
    {'a': a},
    {'a': a, 'c': b},
    {'a': a, 'b': b + 1},
    {'x': {'a': a, 'b': b}},
  ]
  other_digests = {tree.digest(other) for other in others}
  assert digest not in other_digests and len(other_digests) == len(others)


def test_fingerprints_do_not_depend_on_the_sharding():
  """Eight devices are asked for before jax starts, in a process of its own; the hash of the
  unsharded array is the oracle."""
  program = textwrap.dedent('''
      import jax, numpy as np
      from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
      from weightsteer_jax.runtime import tree
      assert jax.device_count() == 8
      draw = np.random.default_rng(0)
      host = {
        'w': draw.normal(size=(16, 8, 8)).astype(np.float32),
        'h': draw.normal(size=(8, 32)).astype('float16'),
      }
      prints = {str(tree.fingerprint(host))}
      tree.AT_HAND = 0
      for shape in ((8, 1), (2, 4)):
        mesh = jax.make_mesh(shape, ('a', 'b'), axis_types=(AxisType.Auto,) * 2)
        for spec in (P(), P('a'), P('b', 'a')):
          sharding = NamedSharding(mesh, spec)
          placed = {name: jax.device_put(array, sharding) for name, array in host.items()}
          prints.add(str(tree.fingerprint(placed)))
      assert len(prints) == 1, prints
      print('one fingerprint')
  ''')
  environment = os.environ | {
    'XLA_FLAGS': f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
    'JAX_PLATFORMS': 'cpu',
  }
  root = os.path.dirname(os.path.dirname(weightsteer_jax.__file__))
  result = subprocess.run(
    [sys.executable, '-c', program],
    env=environment,
    cwd=root,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert result.stdout == 'one fingerprint\n', result.stderr


ROOMS = ['runtime', 'storage', 'config', 'models']


def modules():
  for room in ROOMS:
    module = importlib.import_module(f'weightsteer_jax.{room}')
    yield module
    if hasattr(module, '__path__'):
      yield from (
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(module.__path__, module.__name__ + '.')
      )


def test_the_examples_in_docstrings_hold():
  results = [doctest.testmod(module) for module in modules()]
  assert sum(result.attempted for result in results) >= 3 and not any(
    result.failed for result in results
  )


def test_what_is_computed_per_arrays_is_computed_once_for_as_long_as_they_live():
  calls = []
  count = tree.per_arrays(lambda values: calls.append(0) or len(calls))
  a, b = jnp.arange(3.0), jnp.arange(4.0)
  assert [count({'a': a, 'b': b}), count({'b': b, 'a': a}), count({'a': a, 'b': b})] == [1, 1, 1]
  assert count({'a': b, 'b': a}) == 2 and count({'a': a}) == 3, 'other places, other trees'
  assert count({'a': a + 0, 'b': b}) == 4 and count({'a': a, 'b': b}) == 1, (
    'an equal array is another one'
  )
  held = np.arange(3)
  assert count({'a': held}) == 5 and count({'a': held}) == 6, 'an array of NumPy may change'
  # Each takes the place in memory, and so perhaps the id, of the one before.
  for number in range(7, 30):
    assert count({'a': jnp.full(3, float(number))}) == number
  digest = tree.digest({'a': held})
  held[0] = 5
  assert tree.digest({'a': held}) != digest


def test_what_is_computed_per_arrays_keeps_none_of_them_alive():
  sized = tree.per_arrays(tree.nbytes)
  array = jnp.arange(1000.0)
  reference = weakref.ref(array)
  assert sized({'a': array}) == 4000
  del array
  gc.collect()
  assert reference() is None
