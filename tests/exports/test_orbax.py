"""Orbax exports as strangers read them: restore.py on four devices, without this package."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import transformers
from directions import oracle

from weightsteer_jax import models
from weightsteer_jax.exports import export, orbax
from weightsteer_jax.runtime import tree

ALPHA, OTHER = -1.5, 0.75
# Without `site` (-S), no .pth file of an editable install is followed; the paths of the libraries
# are given by hand.
STRANGER = '''
import sys
sys.path += sys.argv[1].split(":")
sys.modules["weightsteer_jax"] = None
try:
  import weightsteer_jax
except ImportError:
  pass
else:
  raise SystemExit("this package can be imported")
import runpy
import numpy as np
given = sys.argv[2:]
for i in range(0, len(given), 3):
  folder, alpha, read = given[i:i + 3]
  sys.argv[1:] = [alpha] if alpha else []
  params = runpy.run_path(folder + "/restore.py", run_name="__main__")["params"]
  flat, stack = {}, [("", params)]
  while stack:
    path, node = stack.pop()
    if isinstance(node, dict):
      stack += [(path + "/" + key, child) for key, child in node.items()]
    else:
      flat[path[1:]] = np.asarray(node.astype("float32"))
      flat["shards " + path[1:]] = len({str(shard.index) for shard in node.addressable_shards})
      flat["dtype " + path[1:]] = str(node.dtype)
  np.savez(read, **flat)
'''


def restored_by_a_stranger(tmp_path, requests):
  """The arrays that each restore.py gave, in the order of the requests, and the printed lines."""
  libraries = ':'.join(
    path for path in sys.path if path.endswith(('site-packages', 'dist-packages'))
  )
  arguments = []
  for i, (folder, alpha) in enumerate(requests):
    arguments += [str(folder), str(alpha), str(tmp_path / f'{i}.npz')]
  environment = {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}
  environment |= {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
  }
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir()
  done = subprocess.run(
    [sys.executable, '-I', '-S', '-c', STRANGER, libraries, *arguments],
    cwd=elsewhere,
    timeout=200,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return [np.load(tmp_path / f'{i}.npz') for i in range(len(requests))], done.stdout


def steered(model, direction, alpha):
  """{path: float64 parameter + alpha * change}, from the leaves alone."""
  flat = {path: np.asarray(leaf, np.float64) for path, leaf in tree.flatten(model.params).items()}
  for path, leaf in oracle.leaves_of(direction.delta).items():
    if isinstance(leaf, models.Dense):
      change = np.asarray(leaf.value, np.float64)
    else:
      inputs = leaf.a.shape[:-1]
      stack = inputs[:1] if path.startswith('layers/') else ()
      a = np.asarray(leaf.a, np.float64).reshape(*stack, -1, leaf.a.shape[-1])
      b = np.asarray(leaf.b, np.float64).reshape(*stack, leaf.a.shape[-1], -1)
      change = (a @ (leaf.scale * b)).reshape(flat[path].shape)
    flat[path] = flat[path] + alpha * change
  return flat


def test_restore_py_gives_the_steered_model_where_this_package_is_not_there(untied_model, tmp_path):
  direction = oracle.random_direction(untied_model, 3, size=0.05)
  for format in ('orbax', 'orbax-unmerged'):
    export(direction, untied_model, ALPHA, format, tmp_path / format)
  lines = [line for line in (tmp_path / 'orbax' / 'restore.py').read_text().splitlines() if line]
  assert len(lines) <= 15  # An example that is read at a glance.
  requests = [
    (tmp_path / 'orbax', ''),
    (tmp_path / 'orbax-unmerged', ''),
    (tmp_path / 'orbax-unmerged', OTHER),
  ]
  read, printed = restored_by_a_stranger(tmp_path, requests)
  line = f'{tree.count(untied_model.params)} parameters on 4 device(s)'
  assert printed.splitlines() == [line] * 3
  for found, alpha in zip(read, (ALPHA, ALPHA, OTHER)):
    expected = steered(untied_model, direction, alpha)
    assert {name for name in found if ' ' not in name} == set(expected)
    for path, value in expected.items():
      np.testing.assert_allclose(found[path], value, atol=1e-6, err_msg=path)
      # The sizes of this model are all multiples of four.
      assert found[f'shards {path}'] == 4, path
  unsteered = np.asarray(untied_model.params['embed']['embedding'])
  assert np.abs(read[0]['embed/embedding'] - unsteered).max() > 0.05


def test_what_describes_the_arrays(untied_model, direction, tmp_path):
  export(direction, untied_model, ALPHA, 'orbax-unmerged', tmp_path / 'out')
  axes = json.loads((tmp_path / 'out' / 'axes.json').read_text())
  assert axes['layers/attn/q/kernel'] == 'LDNH'
  assert set(axes) == set(tree.flatten(untied_model.params))
  config = json.loads((tmp_path / 'out' / 'model_config.json').read_text())
  assert config['width'] == 16
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config['hidden_size'] == 16


def test_unmerged_loses_nothing_where_merging_does(untied, tmp_path):
  """A change far below the steps of a bfloat16 base: merged, partly lost; apart, whole."""
  base = transformers.AutoModelForCausalLM.from_pretrained(untied)
  base.bfloat16().save_pretrained(tmp_path / 'base')
  model = models.load(tmp_path / 'base')
  direction = oracle.random_direction(model, 3, size=0.005)
  merged = export(direction, model, 1.0, 'orbax', tmp_path / 'merged')
  apart = export(direction, model, 1.0, 'orbax-unmerged', tmp_path / 'apart')
  assert merged['dtype'] == apart['dtype'] == 'bfloat16'
  assert merged['realised_error'] > 0.02
  assert merged['parity']['largest_difference'] > 1e-3
  assert apart['parity']['largest_difference'] < 1e-5
  assert 'realised_error' not in apart


@pytest.mark.parametrize(
  'axes, shape, inputs', [('LEDF', (2, 3, 4, 5), 1), ('LNHD', (2, 3, 4, 5), 2), ('DV', (4, 5), 1)]
)
def test_matrices_of_experts_and_heads(axes, shape, inputs, monkeypatch):
  """Layers and experts lead; inputs and outputs are flattened, for a plain matmul."""
  path = 'layers/x/kernel' if axes.startswith('L') else 'x/kernel'
  monkeypatch.setattr(models, 'sites', lambda config: {path: models.Site(axes, shape, inputs)})
  lead = len(axes) - len(axes.lstrip('LE'))
  random = np.random.default_rng(0)
  a = random.standard_normal(shape[: lead + inputs] + (2,)).astype(np.float32)
  b = random.standard_normal(shape[:lead] + (2,) + shape[lead + inputs :]).astype(np.float32)
  delta = tree.unflatten({path: models.LowRank(a, b, 3.0)})
  matrices = tree.flatten(orbax.to_matrices(None, delta))
  change = np.asarray(matrices[f'{path}/a'] @ matrices[f'{path}/b']).reshape(shape)
  letters = dict(zip('LEDFNHV', 'ledfnhv'))
  small = ''.join(letters[x] for x in axes)
  first = small[: lead + inputs]
  rest = small[lead + inputs :]
  expected = 3 * np.einsum(f'{first}r,{first[:lead]}r{rest}->{first}{rest}', a, b)
  np.testing.assert_allclose(change, expected, atol=1e-5)
  delta = orbax.from_matrices(None, tree.unflatten(matrices))
  back = tree.flatten(delta, models.is_delta_leaf)[path]
  np.testing.assert_array_equal(back.a, a)
  assert back.b.shape == b.shape
