"""The tokenizer of a GGUF file, as the files of a Hugging Face tokenizer.

A file names a kind of model ('gpt2' for byte-level BPE, 'llama' for sentencepiece), the tokens with
types and scores, the merges, and the way to split texts before the merges ('tokenizer.ggml.pre').

Source: llama.cpp b6155, src/llama-vocab.cpp; the `tokenizer.json` that the models were published
with.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.models.gguf.file import GgufFile
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

# Types of tokens, as the file numbers them.
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
# How texts are split before the merges, as the published tokenizers say it.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
CL100K = (
  CONTRACTIONS + r'|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*'
  r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)
QWEN2 = CL100K.replace(r'\p{N}{1,3}', r'\p{N}')
UPPER = r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]'
LOWER = r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]'
WORD = r'[^\r\n\p{L}\p{N}]?'
ENDING = r'| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+'
TEKKEN = f'{WORD}{UPPER}*{LOWER}+|{WORD}{UPPER}+{LOWER}*' + r'|\p{N}' + ENDING
O200K = (
  f'{WORD}{UPPER}*{LOWER}+{CONTRACTIONS}?|{WORD}{UPPER}+{LOWER}*{CONTRACTIONS}?'
  r'|\p{N}{1,3}' + ENDING
)
# GPT-2's own splitting: '' stands for the default of the ByteLevel pre-tokenizer. With DIGITS
# before it, each digit stands alone.
GPT2 = ''
DIGITS = 'digits'
SPLITS = {
  'gpt-2': GPT2,
  'olmo': GPT2,
  'smollm': DIGITS,
  'starcoder': DIGITS,
  'refact': DIGITS,
  'command-r': DIGITS,
  'llama-bpe': CL100K,
  'llama3': CL100K,
  'llama-v3': CL100K,
  'falcon3': CL100K,
  'dbrx': CL100K,
  'smaug-bpe': CL100K,
  'qwen2': QWEN2,
  'deepseek-r1-qwen': QWEN2,
  'stablelm2': QWEN2,
  'tekken': TEKKEN,
  'gpt-4o': O200K,
}
# A word that is a token as it stands is not merged anew, and a text begins with the first token.
WHOLE_WORDS = ('llama-bpe', 'llama3', 'llama-v3', 'falcon3', 'tekken')
# The published tokenizer composes characters first.
COMPOSED = ('qwen2',)
# Texts of tokens at which llama.cpp stops, whatever ids the file names.
STOPS = (
  '<|eot_id|>',
  '<|im_end|>',
  '<|end|>',
  '<end_of_turn>',
  '<|endoftext|>',
  '<|eom_id|>',
  '<EOT>',
  '_<EOT>',
  '<|end_of_text|>',
  '<end_of_utterance>',
)
# {name in the tokenizer's config: key in the file}
SPECIAL = {
  'bos_token': 'bos_token_id',
  'eos_token': 'eos_token_id',
  'unk_token': 'unknown_token_id',
  'pad_token': 'padding_token_id',
}
BLANK = '▁'


class Vocabulary:
  """The tokens of a GGUF file, and what its metadata say of the tokenizer."""

  def __init__(self, file: GgufFile):
    """Reads the metadata.

    Raises:
      InputError: if the file holds no tokenizer, one of another kind, or another way to split.
    """
    self.path = file.path
    self.architecture = file.architecture
    self._metadata = file.metadata
    self.kind = self.value('model', '')
    # Sentencepiece splits nothing.
    self.pre = str(self.value('pre', 'default'))
    if self.kind not in ('gpt2', 'llama'):
      raise InputError(
        f"{self.path}: the tokenizer is of the kind '{self.kind}'; supported: gpt2 (byte-level "
        'BPE), llama (sentencepiece)'
      )
    if self.kind == 'gpt2' and self.pre not in SPLITS:
      raise InputError(
        f"{self.path}: 'tokenizer.ggml.pre' is '{self.pre}'{did_you_mean(self.pre, SPLITS)}; "
        f'supported: {", ".join(SPLITS)}. Convert the model again, or name the right one with '
        'gguf-new-metadata --pre-tokenizer, where a file has none'
      )
    self.tokens: list[str] = self.value('tokens', [])
    self.types: list[int] = self.value('token_type', [1] * len(self.tokens))
    self.scores: list[float] = self.value('scores', [0.0] * len(self.tokens))

  def value(self, key: str, default: Any) -> Any:
    """The value of a key 'tokenizer.ggml.KEY'."""
    return self._metadata.get(f'tokenizer.ggml.{key}', default)

  @property
  def chat_template(self) -> str:
    """The chat template, or '' if the file holds none."""
    return self._metadata.get('tokenizer.chat_template', '')

  def special_tokens(self) -> dict[str, str]:
    """{'eos_token': text} of the special tokens that the file names."""
    special = {}
    for name, key in SPECIAL.items():
      number = self.value(key, None)
      if number is not None and 0 <= number < len(self.tokens):
        special[name] = self.tokens[number]
    return special

  def stop_ids(self) -> list[int]:
    """Ids of the tokens that end an answer, the one that the file names first."""
    ids = []
    for key in ('eos_token_id', 'eot_token_id', 'eom_token_id'):
      ids.append(self.value(key, None))
    for number, token in enumerate(self.tokens):
      if token in STOPS and self.types[number] in (CONTROL, USER_DEFINED):
        ids.append(number)
    # In order, each once.
    return [number for number in dict.fromkeys(ids) if number is not None]


def files_of(file: GgufFile, *, max_length: int) -> dict[str, Any]:
  """{name: JSON value or text} of the tokenizer's and the generation settings' files.

  Args:
    max_length: tokens of the longest text.

  Raises:
    InputError: if the file holds no tokenizer, or one that is not supported.
  """
  vocabulary = Vocabulary(file)
  config = {
    # The class that takes `tokenizer.json` as it is.
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'model_max_length': max_length,
    'clean_up_tokenization_spaces': False,
    **vocabulary.special_tokens(),
  }
  settings: dict[str, Any] = {'eos_token_id': vocabulary.stop_ids()}
  for name, key in (('bos_token_id', 'bos_token_id'), ('pad_token_id', 'padding_token_id')):
    number = vocabulary.value(key, None)
    if number is not None:
      settings[name] = number
  made = {
    'tokenizer.json': json.loads(_build(vocabulary).to_str()),
    'tokenizer_config.json': config,
    'generation_config.json': settings,
  }
  if vocabulary.chat_template:
    made['chat_template.jinja'] = vocabulary.chat_template
  return made


def token_ids(file: GgufFile) -> dict[str, int]:
  """The ids of special tokens, as fields of `config.json`."""
  ids = {}
  for name, key in SPECIAL.items():
    number = file.metadata.get(f'tokenizer.ggml.{key}')
    if number is not None:
      ids[f'{name}_id'] = int(number)
  return ids


def _build(vocabulary: Vocabulary) -> Any:
  """The tokenizer as an object of the tokenizers library."""
  # Imported here: a config is read without.
  from tokenizers import AddedToken, processors

  make = _byte_level if vocabulary.kind == 'gpt2' else _sentencepiece
  tokenizer = make(vocabulary)
  special = []
  plain = []
  present = tokenizer.get_vocab()
  for token, kind in zip(vocabulary.tokens, vocabulary.types):
    if kind in (CONTROL, UNKNOWN):
      strip = _strips_behind(vocabulary, token)
      special.append(AddedToken(token, normalized=False, special=True, rstrip=strip))
    elif kind == USER_DEFINED and token in present:
      plain.append(AddedToken(token, normalized=False, special=False))
  tokenizer.add_special_tokens(special)
  tokenizer.add_tokens(plain)
  named = vocabulary.special_tokens()
  default = vocabulary.kind == 'llama' or vocabulary.pre in WHOLE_WORDS
  pieces = ['$A']
  if vocabulary.value('add_bos_token', default) and 'bos_token' in named:
    pieces.insert(0, named['bos_token'])
  if vocabulary.value('add_eos_token', False) and 'eos_token' in named:
    pieces.append(named['eos_token'])
  if len(pieces) > 1:
    around = [(piece, present[piece]) for piece in pieces if piece != '$A']
    # A list, for '$A' and the tokens may hold blanks.
    template = processors.TemplateProcessing(single=pieces, special_tokens=around)
    tokenizer.post_processor = template
  return tokenizer


def _strips_behind(vocabulary: Vocabulary, token: str) -> bool:
  """Whether a special token takes the blanks behind it, which no key of the file says.

  Source: llama.cpp src/llama-vocab.cpp, the exceptions for Phi-3, as in the models' own
  `tokenizer.json`.
  """
  of_phi3 = vocabulary.architecture == 'phi3' and vocabulary.kind == 'llama'
  return of_phi3 and token not in ('<unk>', '<s>', '<|endoftext|>')


def _byte_level(vocabulary: Vocabulary) -> Any:
  """Byte-level BPE, as of GPT-2."""
  from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

  vocab = {token: number for number, token in enumerate(vocabulary.tokens)}
  merges = [tuple(merge.split(' ')) for merge in vocabulary.value('merges', [])]
  whole = vocabulary.pre in WHOLE_WORDS
  tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=whole))
  split = SPLITS[vocabulary.pre]
  if vocabulary.pre in COMPOSED:
    tokenizer.normalizer = normalizers.NFC()
  own = split in (GPT2, DIGITS)
  steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own)]
  if split == DIGITS:
    steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
  elif not own:
    steps.insert(0, pre_tokenizers.Split(Regex(split), behavior='isolated'))
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def _sentencepiece(vocabulary: Vocabulary) -> Any:
  """Sentencepiece's BPE, the merges made of the tokens' scores."""
  from tokenizers import Tokenizer, decoders, models, normalizers

  prefixed = bool(vocabulary.value('add_space_prefix', True))
  tokens = vocabulary.tokens
  ranks: Sequence[float] = vocabulary.scores
  if not prefixed:
    # Gemma: runs of blanks are spelt as blanks in the file, and merges go by the tokens' order,
    # which its scores do not follow.
    tokens = [BLANK * len(token) if token and not token.strip(' ') else token for token in tokens]
    ranks = [-float(number) for number in range(len(tokens))]
  vocab = {token: number for number, token in enumerate(tokens)}
  unknown = vocabulary.special_tokens().get('unk_token')
  model = models.BPE(
    vocab=vocab,
    merges=merges_of(vocab, ranks),
    unk_token=unknown,
    fuse_unk=True,
    byte_fallback=True,
  )
  tokenizer = Tokenizer(model)
  blanks: list[Any] = [normalizers.Replace(' ', BLANK)]
  steps: list[Any] = [decoders.Replace(BLANK, ' '), decoders.ByteFallback(), decoders.Fuse()]
  if prefixed:
    blanks.insert(0, normalizers.Prepend(BLANK))
    steps.append(decoders.Strip(' ', 1, 0))
  tokenizer.normalizer = normalizers.Sequence(blanks)
  tokenizer.decoder = decoders.Sequence(steps)
  return tokenizer


def merges_of(vocab: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
  """The merges of a sentencepiece vocabulary: every pair of tokens that is a token, best first.

  Args:
    vocab: {token: id}.
    scores: of each token by id, the higher the earlier it is merged.

  >>> merges_of({'a': 0, 'b': 1, 'ab': 2, 'aab': 3}, [0, 0, -1, -2])
  [('a', 'b'), ('a', 'ab')]
  """
  found = []
  for token, number in vocab.items():
    for cut in range(1, len(token)):
      left, right = token[:cut], token[cut:]
      if left in vocab and right in vocab:
        found.append((-scores[number], vocab[left], vocab[right], left, right))
  found.sort()
  return [(left, right) for *_, left, right in found]
