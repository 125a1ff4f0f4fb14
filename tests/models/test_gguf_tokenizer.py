"""Tokenizers of GGUF files: tokens of the tokenizer that the file was made of, and of
transformers' own reading."""

import json
import pathlib

import gguf_files
import pytest
import tiny
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from weightsteer_jax import data
from weightsteer_jax.models import gguf
from weightsteer_jax.models.gguf.tokenizer import merges_of

CORPUS = [
  "They'll say it's 12,345.67 or 890; I'VE seen  two   blanks\n\nand a tab\t(here).",
  'the theory of the thing that they think, said the man who then thought 2024 was 1999',
  'Überraschung! naïve café, 日本語の文章 и русский текст — “quotes”…',
  'def f(x):\n    return x ** 2  # comment\n',
] * 4
TEXTS = [
  *CORPUS[:4],
  '',
  ' ',
  '  leading and trailing  ',
  'a1b22c333d4444',
  "WE'LL they'Ll don't",
  'e\u0301 composed \u00e9',
  '\U0001f642 unseen \u0b9c',
  'tabs\t\tand\r\nlines\n\n\n',
  'x    y     z',
]
TEMPLATE = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
  '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
CONTROL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> tiny.Checkpoint:
  fields = tiny.CASES['llama32_tied'] | dict(vocab_size=700)
  return tiny.make(tmp_path_factory.mktemp('tokenizers') / 'hf', **fields)


def folder_of(checkpoint: tiny.Checkpoint, tmp_path: pathlib.Path, keys: dict) -> pathlib.Path:
  """The folder made of a GGUF file with these keys of a tokenizer."""
  # Tokens of no text fill up the vocabulary, as in files of models.
  missing = 700 - len(keys['tokens'])
  keys['tokens'] = keys['tokens'] + [f'[PAD{i}]' for i in range(missing)]
  keys['token_type'] = keys['token_type'] + [5] * missing
  if 'scores' in keys:
    keys['scores'] = keys['scores'] + [-1000.0] * missing
  path = gguf_files.write(checkpoint.folder, tmp_path / 'model.gguf', tokenizer=keys)
  return gguf.write_folder(path, tmp_path / 'folder')


def trained(pre: str) -> tuple[tokenizers.Tokenizer, dict]:
  """A byte-level tokenizer that splits in a published way, and the keys of its GGUF file."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  digits = pre_tokenizers.Digits(individual_digits=True)
  tokenizer.pre_tokenizer = own if pre == 'gpt-2' else pre_tokenizers.Sequence([digits, own])
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=500,
    special_tokens=CONTROL,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(CORPUS, trainer)
  tokenizer.add_tokens(['<think>'])
  vocab = tokenizer.get_vocab()
  tokens = sorted(vocab, key=vocab.get)
  merges = json.loads(tokenizer.to_str())['model']['merges']
  return tokenizer, {
    'model': 'gpt2',
    'pre': pre,
    'tokens': tokens,
    'token_type': [3 if token in CONTROL else 4 if token == '<think>' else 1 for token in tokens],
    'merges': [' '.join(pair) for pair in merges],
    'bos_token_id': 1,
    'eos_token_id': 2,
    'unknown_token_id': 0,
    'padding_token_id': 2,
    'chat_template': TEMPLATE,
  }


@pytest.mark.parametrize('pre', ['gpt-2', 'smollm'])
def test_byte_level_tokens_are_those_of_the_tokenizer_in_the_file(pre, checkpoint, tmp_path):
  expected, keys = trained(pre)
  folder = folder_of(checkpoint, tmp_path, keys)
  ours = data.load_tokenizer(folder)
  for text in [*TEXTS, '<|im_start|>user\nHi<|im_end|>', 'a<think>b']:
    ids = expected.encode(text, add_special_tokens=False).ids
    assert ours(text)['input_ids'] == ids
    assert ours.decode(ids) == expected.decode(ids, skip_special_tokens=False)
  assert (ours.eos_token, ours.pad_token, ours.bos_token) == (
    '<|im_end|>',
    '<|im_end|>',
    CONTROL[1],
  )
  assert ours.chat_template == TEMPLATE
  data.require_chat_template(ours)
  settings = json.loads((folder / 'generation_config.json').read_text())
  # The end of turn that the file names, and another token that llama.cpp stops at.
  assert settings == {'eos_token_id': [2, 0], 'bos_token_id': 1, 'pad_token_id': 2}


@pytest.mark.parametrize('pre', ['llama-bpe', 'smaug-bpe', 'qwen2', 'tekken', 'gpt-4o'])
def test_byte_level_tokens_are_those_of_transformers(pre, checkpoint, tmp_path):
  _, keys = trained('gpt-2')
  folder = folder_of(checkpoint, tmp_path, keys | {'pre': pre})
  ours = data.load_tokenizer(folder)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file='model.gguf')
  for text in [*TEXTS, '<|im_start|>user\nHi<|im_end|>', 'a<think>b']:
    expected = theirs(text, add_special_tokens=False)['input_ids']
    if pre != 'qwen2' or 'e\u0301' not in text:
      assert ours(text, add_special_tokens=False)['input_ids'] == expected
  starts = ours('a')['input_ids'][0] == ours.bos_token_id
  assert starts == (pre in ('llama-bpe', 'tekken'))
  # Qwen's own tokenizer composes characters first; transformers' reading of a GGUF does not.
  composed = ours('e\u0301')['input_ids'] == ours('\u00e9')['input_ids']
  assert composed == (pre == 'qwen2')


def sentencepiece(*, prefixed: bool) -> tuple[tokenizers.Tokenizer, dict]:
  """A tokenizer as Llama 2's or Gemma's, and the keys of its GGUF file."""
  first = ['<unk>', '<s>', '</s>'] if prefixed else ['<pad>', '</s>', '<s>', '<unk>']
  first += ['<|im_start|>', '<|im_end|>']
  blanks = [normalizers.Replace(' ', '▁')]
  if prefixed:
    blanks.insert(0, normalizers.Prepend('▁'))
  tokenizer = tokenizers.Tokenizer(models.BPE(unk_token='<unk>', fuse_unk=True, byte_fallback=True))
  tokenizer.normalizer = normalizers.Sequence(blanks)
  # Words end before a blank, so that no token holds a blank inside.
  tokenizer.pre_tokenizer = pre_tokenizers.Split('▁', behavior='merged_with_next')
  trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=first, show_progress=False)
  tokenizer.train_from_iterator(CORPUS, trainer)
  state = json.loads(tokenizer.to_str())
  old = state['model']['vocab']
  learnt = [token for token in sorted(old, key=old.get) if token not in first]
  tokens = first + [f'<0x{byte:02X}>' for byte in range(256)] + learnt
  merges = state['model']['merges']
  # A merge's place in the list is the token's score, as sentencepiece writes.
  rank = {left + right: -float(i) for i, (left, right) in enumerate(merges)}
  state['model']['vocab'] = {token: number for number, token in enumerate(tokens)}
  state['model']['merges'] = merges_of(
    state['model']['vocab'], [rank.get(token, 0.0) for token in tokens]
  )
  state['pre_tokenizer'] = None
  state['added_tokens'] = []
  tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
  tokenizer.add_special_tokens(first)
  # Gemma's file spells runs of blanks as blanks.
  spelt = (
    tokens
    if prefixed
    else [
      token.replace('▁', ' ') if len(token) > 1 and not token.strip('▁') else token
      for token in tokens
    ]
  )
  kinds = [3] * len(first) + [6] * 256 + [1] * len(learnt)
  kinds[first.index('<unk>')] = 2
  return tokenizer, {
    'model': 'llama',
    'pre': 'default',
    'tokens': spelt,
    'token_type': kinds,
    'scores': [rank.get(token, 0.0) for token in tokens],
    'bos_token_id': first.index('<s>'),
    'eos_token_id': first.index('</s>'),
    'unknown_token_id': first.index('<unk>'),
    'add_space_prefix': prefixed,
    'chat_template': TEMPLATE,
  }


@pytest.mark.parametrize('prefixed', [True, False])
def test_sentencepiece_tokens_are_those_of_the_tokenizer_in_the_file(
  prefixed, checkpoint, tmp_path
):
  expected, keys = sentencepiece(prefixed=prefixed)
  folder = folder_of(checkpoint, tmp_path, keys)
  ours = data.load_tokenizer(folder)
  for text in [*TEXTS, '<|im_start|>user\nHi<|im_end|>']:
    ids = expected.encode(text, add_special_tokens=False).ids
    # A text begins with <s> where the file does not say otherwise.
    assert ours(text)['input_ids'] == [ours.bos_token_id, *ids]
    # Behind a special token, a blank is put before a word as at the start of a text.
    if '<|im_start|>' not in text:
      assert ours.decode(ids) == text
  settings = json.loads((folder / 'generation_config.json').read_text())
  assert settings['eos_token_id'] == [ours.eos_token_id, ours.convert_tokens_to_ids('<|im_end|>')]


def test_llama_2_tokens_are_those_of_transformers(checkpoint, tmp_path):
  _, keys = sentencepiece(prefixed=True)
  ours = data.load_tokenizer(folder_of(checkpoint, tmp_path, keys))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file='model.gguf')
  for text in TEXTS:
    # Before a first blank, transformers puts no other; llama.cpp and sentencepiece do.
    if not text.startswith(' '):
      assert ours(text)['input_ids'] == theirs(text)['input_ids']


def test_keys_say_whether_a_text_begins_and_ends_with_a_token(checkpoint, tmp_path):
  _, keys = sentencepiece(prefixed=True)
  said = {'add_bos_token': False, 'add_eos_token': True}
  ours = data.load_tokenizer(folder_of(checkpoint, tmp_path, keys | said))
  ids = ours('the man')['input_ids']
  assert ids[0] != ours.bos_token_id and ids[-1] == ours.eos_token_id


def test_special_tokens_of_phi_3_take_the_blanks_behind(tmp_path):
  """As in the model's own tokenizer.json; no key of the file says so."""
  fields = tiny.CASES['phi3'] | dict(vocab_size=700)
  phi3 = tiny.make(tmp_path / 'hf', **fields)
  _, keys = sentencepiece(prefixed=True)
  ours = data.load_tokenizer(folder_of(phi3, tmp_path, keys))
  assert ours('<|im_start|>\n the')['input_ids'] == ours('<|im_start|>the')['input_ids']
  assert ours('<s>\n the')['input_ids'] != ours('<s>the')['input_ids']
