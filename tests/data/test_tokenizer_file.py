"""Tokenizers by their file and by transformers' classes, where the two part."""

import json
import subprocess
import sys

import pytest
import tokenizers
import transformers
from tokenizers import normalizers, pre_tokenizers

from weightsteer_jax.data import chat, tokenizer_file
from weightsteer_jax.runtime.errors import InputError

TEXTS = [*tokenizer_file.PROBES, 'Is it right ?\n\nYes , it is 1234567 .', ' No', '']


def folder_of(make_tokenizer, folder, model_type, change=lambda core: None, style='chatml'):
  """A checkpoint's folder with a tokenizer.json of one's own beside a config.json."""
  tokenizer = make_tokenizer(style)
  change(tokenizer.backend_tokenizer)
  tokenizer.save_pretrained(folder)
  (folder / 'config.json').write_text(json.dumps({'model_type': model_type}))
  return folder


def digits_in_threes(core):
  core.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(r'\p{N}{1,3}'), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )


def lower(core):
  core.normalizer = normalizers.Lowercase()


def ids(tokenizer, text):
  return tokenizer(text, add_special_tokens=False)['input_ids']


@pytest.mark.parametrize('change', [digits_in_threes, lower])
def test_a_class_around_a_file_of_ones_own_is_told_and_either_can_be_chosen(
  make_tokenizer, tmp_path, capsys, change
):
  folder = folder_of(make_tokenizer, tmp_path, 'qwen2', change)
  core = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  auto = chat.load_tokenizer(folder)
  said = capsys.readouterr().out
  assert said.count('\n') == 1 and str(folder) in said
  assert 'its Qwen2Tokenizer puts rules of its own' in said and '--tokenizer=file' in said
  chat.load_tokenizer(folder)
  assert capsys.readouterr().out == '', 'said once'
  file = chat.load_tokenizer(folder, choice='file')
  assert capsys.readouterr().out == ''
  parted = 0
  for text in TEXTS:
    assert ids(auto, text) == ids(theirs, text)
    assert ids(file, text) == core.encode(text, add_special_tokens=False).ids
    parted += ids(auto, text) != ids(file, text)
  assert parted
  # The same control tokens and chat template in both.
  ask = [{'role': 'user', 'content': 'Is it ?'}]
  assert file.chat_template == auto.chat_template
  assert file.eos_token_id == auto.eos_token_id
  rendered = file.apply_chat_template(ask, tokenize=False, add_generation_prompt=True)
  assert chat.prompt_tokens(file, ask) == core.encode(rendered, add_special_tokens=False).ids


def test_llama_2s_blank_before_a_text_is_seen(make_tokenizer, tmp_path, capsys):
  """transformers 5 puts no blank before a text that begins with one; the file does."""

  def prepend(core):
    core.pre_tokenizer = None
    core.normalizer = normalizers.Sequence(
      [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
    )

  folder = folder_of(make_tokenizer, tmp_path, 'llama', prepend, style='llama2')
  settings = json.loads((folder / 'tokenizer_config.json').read_text())
  settings['tokenizer_class'] = 'LlamaTokenizer'
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  auto = chat.load_tokenizer(folder)
  assert "In ' Yes'" in capsys.readouterr().out
  file = chat.load_tokenizer(folder, choice='file')
  assert len(ids(file, ' Yes')) == len(ids(auto, ' Yes')) + 1


@pytest.mark.parametrize('model_type', ['phi3', 'mistral', 'qwen3'])
def test_nothing_is_said_where_the_file_is_kept(make_tokenizer, tmp_path, capsys, model_type):
  folder = folder_of(make_tokenizer, tmp_path, model_type, digits_in_threes)
  auto = chat.load_tokenizer(folder)
  assert capsys.readouterr().out == ''
  file = chat.load_tokenizer(folder, choice='file')
  for text in TEXTS:
    assert ids(auto, text) == ids(file, text)


def test_settings_beside_the_file_do_not_change_its_rules(make_tokenizer, tmp_path):
  folder = folder_of(make_tokenizer, tmp_path, 'phi3')
  settings = json.loads((folder / 'tokenizer_config.json').read_text())
  settings['add_prefix_space'] = True
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  file = chat.load_tokenizer(folder, choice='file')
  core = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  for text in TEXTS:
    assert ids(file, text) == core.encode(text, add_special_tokens=False).ids


def test_the_file_must_be_there_to_be_chosen(tmp_path):
  (tmp_path / 'tokenizer_config.json').write_text('{}')
  with pytest.raises(InputError, match="no tokenizer.json, .*--tokenizer=file.*choose 'auto'"):
    chat.load_tokenizer(tmp_path, choice='file')


# What transformers finds where torch is not installed.
WITHOUT_TORCH = """
import importlib.util, pathlib, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else found(name, *rest)
from weightsteer_jax.data import tokenizer_file
tokenizer_file.load(pathlib.Path(sys.argv[1]), 'file')
assert 'torch' not in sys.modules
"""


def test_without_torch_nobody_is_told_that_models_are_not_available(make_tokenizer, tmp_path):
  folder = folder_of(make_tokenizer, tmp_path, 'llama')
  ran = subprocess.run(
    [sys.executable, '-c', WITHOUT_TORCH, folder], capture_output=True, text=True, check=True
  )
  assert ran.stdout + ran.stderr == ''
