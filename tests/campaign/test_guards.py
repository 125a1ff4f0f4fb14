"""What the campaign and hands before it have found, one test for each kind."""

import json
import os
import pathlib
import shutil
import struct

import jax
import numpy as np
import pytest

from weightsteer_jax import directions, models
from weightsteer_jax.data import chat, pieces, sources
from weightsteer_jax.experiments import organism
from weightsteer_jax.exports import handover
from weightsteer_jax.inference import Engine
from weightsteer_jax.inference.rows import generate_rows, score_rows
from weightsteer_jax.models import huggingface
from weightsteer_jax.runtime import json_text
from weightsteer_jax.runtime.errors import CorruptError, InputError
from weightsteer_jax.storage import files, safetensors

from .mutations import DEEP
from .targets import TARGETS


@pytest.fixture(scope='module')
def model():
  return models.load(organism.checkpoint_folder())


@pytest.fixture
def folder(tmp_path):
  """A copy of the embedded model's folder."""
  return pathlib.Path(shutil.copytree(organism.checkpoint_folder(), tmp_path / 'model'))


def change(path, **fields):
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(num_hidden_layers=10**12), "'num_hidden_layers' is 1000000000000, expected at most"),
    (dict(vocab_size=10**12), "'vocab_size' is 1000000000000, expected at most"),
    (dict(rms_norm_eps=10**400), "'rms_norm_eps' is 1000.*, expected a number above 0"),
    (dict(architectures=True), "'architectures' is True"),
  ],
)
def test_sizes_that_no_model_has(folder, fields, message):
  change(folder / 'config.json', **fields)
  with pytest.raises(InputError, match=message):
    models.load_config(folder)


def test_json_that_is_nested_too_deeply(folder, tmp_path):
  (folder / 'config.json').write_text(DEEP)
  with pytest.raises(CorruptError, match='config.json .*nested too deeply'):
    models.load_config(folder)
  rows = tmp_path / 'rows.jsonl'
  rows.write_text('{"prompt": "a"}\n{"prompt": ' + DEEP + '}\n')
  with pytest.raises(InputError, match='rows.jsonl:2: .*nested too deeply'):
    list(sources.read_jsonl(rows))
  with pytest.raises(CorruptError, match='rows.jsonl:2 .*nested too deeply'):
    list(files.read_jsonl(rows, what='rows'))


def test_half_a_surrogate_pair_is_no_text(model, tmp_path):
  rows = tmp_path / 'rows.jsonl'
  for row in ('{"prompt": "a \\ud83d"}', '{"\\ud83d": 1}', '{"id": ["\\udfff"]}'):
    rows.write_text(row + '\n')
    with pytest.raises(InputError, match='rows.jsonl:1: .*half a surrogate pair'):
      list(sources.read_jsonl(rows))
  # A whole pair is a character.
  rows.write_text('{"prompt": "\\ud83d\\ude00"}\n')
  assert list(sources.read_jsonl(rows)) == [(1, {'prompt': '\U0001f600'})]
  tokenizer = chat.load_tokenizer(model.folder)
  with pytest.raises(InputError, match='half a surrogate pair'):
    pieces.encode_text(tokenizer, 'the sky \ud83d is')
  with pytest.raises(InputError, match='half a surrogate pair'):
    chat.prompt_tokens(tokenizer, [{'role': 'user', 'content': '\udfff'}], name='a chat')


def test_texts_that_cannot_fit_are_not_tokenized_first(model, monkeypatch):
  tokenizer = chat.load_tokenizer(model.folder)
  engine = Engine(model, tokenizer, {}, batch_size=1)
  monkeypatch.setattr(pieces, 'encode_text', None)
  long = 'word ' * 100_000
  with pytest.raises(InputError, match='row 1: 500,000 characters are more than the 512 positions'):
    generate_rows(engine, [('row 1', {'prompt': long})], 'base', [0.0])
  chats = [{'role': 'user', 'content': long}]
  with pytest.raises(InputError, match='row 2: 500,001 characters'):
    score_rows(engine, [('row 2', {'messages': chats, 'completion': 'x'})], 'base', [0.0])


def test_a_name_that_stands_twice_in_a_file_of_tensors(folder, tmp_path):
  path = folder / 'model.safetensors'
  content = path.read_bytes()
  [length] = struct.unpack('<Q', content[:8])
  header = content[8 : 8 + length].decode().rstrip()
  name = next(name for name in json.loads(header) if name != '__metadata__')
  again = json.dumps({name: json.loads(header)[name]})[1:-1]
  doubled = f'{header[:-1]}, {again}}}'.encode()
  path.write_bytes(struct.pack('<Q', len(doubled)) + doubled + content[8 + length :])
  with pytest.raises(CorruptError, match=f"'{name}' twice"):
    models.load(folder)
  with pytest.raises(CorruptError, match='twice'):
    safetensors.read(path, remedy='copy it again')


def test_a_link_out_of_the_base_is_not_exported(model, folder, tmp_path):
  secret = tmp_path / 'secret.txt'
  secret.write_text('words of this machine\n')
  os.symlink(secret, folder / 'LICENSE.txt')
  base = models.load(folder)
  delta = models.init_delta(base.config, 'lora', jax.random.key(0), rank=1)
  delta = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), delta)
  meta = {'kind': 'random', 'base': directions.base_of(base).to_json(), 'sources': []}
  direction = directions.Direction(delta, meta)
  with pytest.raises(InputError, match='LICENSE.txt is a link to .*secret.txt, outside'):
    handover.export(direction, base, 0.001, 'hf', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  # Files of the hub's cache are links to the repository's own blobs.
  snapshot = tmp_path / 'models--org--name' / 'snapshots' / 'abc'
  blob = tmp_path / 'models--org--name' / 'blobs' / '1'
  blob.parent.mkdir(parents=True)
  blob.write_text('a licence')
  snapshot.mkdir(parents=True)
  os.symlink('../../blobs/1', snapshot / 'LICENSE')
  assert huggingface.companions(snapshot) == [snapshot / 'LICENSE']


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(r='x'), "'r' is 'x', expected a whole number of 1 or more"),
    (dict(lora_alpha=float('nan')), "'lora_alpha' is nan, expected a finite number"),
    (dict(rank_pattern=[1]), "'rank_pattern' is .*expected {pattern of names: rank}"),
    (dict(alpha_pattern={'(': 1}), "'alpha_pattern' is"),
    (dict(target_modules=[1]), "'target_modules' is .*expected a text, or a list of names"),
    (dict(layers_to_transform=3.5), "'layers_to_transform' is 3.5"),
    (dict(modules_to_save=True), "'modules_to_save' is True, expected a list of names"),
    (dict(trainable_token_indices='x'), "'trainable_token_indices' is 'x'"),
    (dict(use_rslora='no'), "'use_rslora' is 'no', expected true or false"),
  ],
)
def test_settings_of_an_adapter_of_a_wrong_type(tmp_path, fields, message):
  TARGETS['adapter'].make(tmp_path / 'adapter')
  directions.task_vector(tmp_path / 'adapter')
  change(tmp_path / 'adapter' / 'adapter_config.json', **fields)
  with pytest.raises(InputError, match=message):
    directions.task_vector(tmp_path / 'adapter')


def test_a_sealed_file_with_nan_is_damaged(tmp_path):
  TARGETS['direction'].make(tmp_path / 'direction')
  change(tmp_path / 'direction' / 'direction.json', norm=float('nan'))
  with pytest.raises(CorruptError, match='NaN is no number of JSON'):
    directions.load(tmp_path / 'direction')


def test_json_as_python_and_others_read_it():
  assert json_text.parse(b'{"a": [1, 2.5, null]}') == {'a': [1, 2.5, None]}
  for text in (b'{"a": 1', '[' * 10**5, b'\xff', '9' * 5000, b'"\xed\xa0\x80"'):
    with pytest.raises(ValueError):
      json_text.parse(text)
  with pytest.raises(ValueError, match="'a' twice"):
    json_text.parse('{"a": 1, "a": 1}', unique=True)
  with pytest.raises(ValueError, match='Infinity'):
    json_text.parse('[-Infinity]', finite=True)
