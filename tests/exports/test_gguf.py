"""LoRA adapters of llama.cpp, against the steered checkpoint turned as llama.cpp's converter turns
checkpoints."""

import json

import gguf as library
import gguf_files
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from weightsteer_jax import directions, models
from weightsteer_jax.directions import Direction, gram
from weightsteer_jax.exports import export, verify
from weightsteer_jax.exports import gguf as writer
from weightsteer_jax.exports.base_folder import BaseFolder
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import CorruptError, InputError

ALPHA = -0.7
TABLES = ('embed/embedding', 'lm_head/kernel')


def direction_of(model: models.Model, leaves: dict) -> Direction:
  meta = {'kind': 'test', 'base': directions.base_of(model).to_json(), 'sources': []}
  return Direction(tree.unflatten(leaves), meta)


def low_rank(model: models.Model, *, rank: int = 2) -> Direction:
  """A direction that changes every kernel but embedding and head, each by another rank."""
  random = np.random.default_rng(0)
  leaves = {}
  for path, site in models.sites(model.config).items():
    if not site.inputs or path in TABLES:
      continue
    stack = site.shape[: len(site.stack)]
    axes = site.shape[len(site.stack) :]
    ranks = rank + len(leaves) % 2
    a = 0.2 * random.normal(size=(*stack, *axes[: site.inputs], ranks))
    b = 0.2 * random.normal(size=(*stack, ranks, *axes[site.inputs :]))
    factors = [jnp.asarray(x, jnp.float32) for x in (a, b)]
    leaves[path] = LowRank(*factors, scale=1.5)
  return direction_of(model, leaves)


def loaded(path) -> tuple[library.GGUFReader, dict[str, np.ndarray]]:
  reader = library.GGUFReader(path)
  return reader, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def changes_in_llama_cpp(path, scale: float) -> dict[str, np.ndarray]:
  """{tensor: what llama.cpp adds to it}: the product of the factors, times the scale.

  Source: llama.cpp src/llama-adapter.h `get_scale`, src/llama-graph.cpp `build_lora_mm`,
    `build_inp_embd`.
  """
  reader, tensors = loaded(path)
  alpha = reader.fields['adapter.lora.alpha'].contents()
  changes = {}
  for name in {name.rsplit('.', 1)[0] for name in tensors}:
    a, b = tensors[f'{name}.lora_a'], tensors[f'{name}.lora_b']
    product = (b @ a.T).T if name == 'token_embd.weight' else b @ a
    changes[name] = scale * alpha / b.shape[-1] * product
  return changes


@pytest.mark.parametrize('name', ['llama3', 'gemma3', 'phi3', 'mixtral'])
def test_an_adapter_adds_what_the_merged_checkpoint_has(name, tmp_path):
  checkpoint = tiny.make(tmp_path / 'base', **tiny.CASES[name])
  model = models.load(checkpoint.folder)
  direction = low_rank(model)
  (tmp_path / 'adapter').mkdir()
  base = BaseFolder.of(model)
  facts = writer.write(tmp_path / 'adapter', direction.delta, base)
  changes = changes_in_llama_cpp(tmp_path / 'adapter' / 'adapter.gguf', ALPHA)
  export(direction, base, ALPHA, 'hf', tmp_path / 'merged', dtype='float32', logits='never')
  config = json.loads((checkpoint.folder / 'config.json').read_text())
  arch = facts['architecture']
  before = gguf_files.turned(load_file(checkpoint.folder / 'model.safetensors'), config, arch)
  after = gguf_files.turned(load_file(tmp_path / 'merged' / 'model.safetensors'), config, arch)
  moved = {key for key, tensor in after.items() if not np.array_equal(tensor, before[key])}
  assert moved == changes.keys()
  for key, change in changes.items():
    np.testing.assert_allclose(before[key] + change, after[key], atol=2e-6)
  # As read back for the comparison of logits.
  again = writer.read(tmp_path / 'adapter' / 'adapter.gguf', base)
  leaves = tree.flatten(direction.delta, models.is_delta_leaf)
  for path, leaf in tree.flatten(again, models.is_delta_leaf).items():
    for got, expected in zip(
      gram.layer_changes(path, leaf), gram.layer_changes(path, leaves[path])
    ):
      np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.fixture(scope='module')
def llama(tmp_path_factory) -> models.Model:
  """A Llama with a head of its own."""
  folder = tmp_path_factory.mktemp('gguf') / 'base'
  return models.load(tiny.make(folder, **tiny.CASES['llama2']).folder)


def test_the_strength_is_chosen_when_the_adapter_is_loaded(llama, tmp_path):
  direction = low_rank(llama)
  for alpha in (1.0, ALPHA):
    record = export(direction, llama, alpha, 'gguf', tmp_path / f'{alpha}')
    assert record['parity']['relative_difference'] < 1e-4
    assert verify(tmp_path / f'{alpha}').unlisted == ()
    card = (tmp_path / f'{alpha}' / 'README.md').read_text()
    assert f'--lora-scaled adapter.gguf:{alpha:g}' in card and '`llama`' in card
  one, other = ((tmp_path / f'{alpha}' / 'adapter.gguf').read_bytes() for alpha in (1.0, ALPHA))
  assert one == other
  reader, tensors = loaded(tmp_path / '1.0' / 'adapter.gguf')
  assert {key: reader.fields[key].contents() for key in METADATA} == METADATA
  # Every pair has the one rank that the file's alpha is divided by.
  for name, tensor in tensors.items():
    assert tensor.shape[0 if name.endswith('lora_a') else 1] == 3


METADATA = {
  'general.architecture': 'llama',
  'general.type': 'adapter',
  'adapter.type': 'lora',
  'adapter.lora.alpha': 3.0,
}


def test_embedding_and_head_are_folded_where_they_are_apart(llama, tmp_path):
  random = np.random.default_rng(1)
  kernels = tree.flatten(low_rank(llama).delta, models.is_delta_leaf)
  leaves = {'layers/attn/q/kernel': kernels['layers/attn/q/kernel']}
  # Of rank 2, so that the fold loses nothing.
  for path in TABLES:
    rows, columns = models.sites(llama.config)[path].shape
    change = random.normal(size=(rows, 2)) @ random.normal(size=(2, columns))
    leaves[path] = Dense(jnp.asarray(0.1 * change, jnp.float32))
  direction = direction_of(llama, leaves)
  with pytest.raises(InputError, match='for llama.cpp cannot hold the dense changes of embed/'):
    export(direction, llama, 1.0, 'gguf', tmp_path / 'refused')
  export(direction, llama, 1.0, 'gguf', tmp_path / 'out', rank=2)
  changes = changes_in_llama_cpp(tmp_path / 'out' / 'adapter.gguf', 1.0)
  embedding = np.asarray(leaves['embed/embedding'].value)
  head = np.asarray(leaves['lm_head/kernel'].value).T
  np.testing.assert_allclose(changes['token_embd.weight'], embedding, atol=1e-5)
  np.testing.assert_allclose(changes['output.weight'], head, atol=1e-5)


def test_what_llama_cpp_cannot_hold_is_refused_with_a_way_out(llama, tmp_path):
  kernel = {'layers/attn/q/kernel': low_rank(llama).delta['layers']['attn']['q']['kernel']}
  norm = {'final_norm/scale': Dense(jnp.ones(llama.config.width))}
  tied = models.load(tiny.make(tmp_path / 'tied', **tiny.CASES['qwen2_tied']).folder)
  table = Dense(jnp.ones(models.sites(tied.config)['embed/embedding'].shape))
  requests = {
    'cannot hold the changes of final_norm/scale .*export merged weights': (llama, kernel | norm),
    'ties its head to its embedding.*export merged weights': (tied, {'embed/embedding': table}),
  }
  for message, (model, leaves) in requests.items():
    with pytest.raises(InputError, match=message):
      export(direction_of(model, leaves), model, 1.0, 'gguf', tmp_path / 'out', rank=1)
  with pytest.raises(InputError, match='an adapter .gguf. is always written in float32'):
    export(low_rank(llama), llama, 1.0, 'gguf', tmp_path / 'out', dtype='bfloat16')
  with pytest.raises(InputError, match="the target 'vllm' is of a PEFT adapter"):
    export(low_rank(llama), llama, 1.0, 'gguf', tmp_path / 'out', target='vllm')
  assert not (tmp_path / 'out').exists()


def test_files_that_are_not_the_adapter_of_a_base_are_refused(llama, tmp_path):
  export(low_rank(llama), llama, 1.0, 'gguf', tmp_path / 'out')
  path = tmp_path / 'out' / 'adapter.gguf'
  qwen = models.load(tiny.make(tmp_path / 'qwen', **tiny.CASES['qwen2']).folder)
  with pytest.raises(InputError, match="of the architecture 'llama', and .* is of 'qwen2'"):
    writer.read(path, BaseFolder.of(qwen))
  with pytest.raises(InputError, match="is a GGUF file of the type 'adapter', expected 'model'"):
    models.load(path)
  reader, tensors = loaded(path)
  other = library.GGUFWriter(tmp_path / 'other.gguf', 'llama')
  other.add_type('adapter')
  other.add_float32('adapter.lora.alpha', 3.0)
  for name, tensor in tensors.items():
    other.add_tensor(name.replace('blk.0.', 'blk.7.'), tensor)
  other.write_header_to_file()
  other.write_kv_data_to_file()
  other.write_tensors_to_file()
  other.close()
  with pytest.raises(InputError, match="other.gguf changes 'blk.7.*which .* does not have"):
    writer.read(tmp_path / 'other.gguf', BaseFolder.of(llama))
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(CorruptError):
    verify(tmp_path / 'out')
