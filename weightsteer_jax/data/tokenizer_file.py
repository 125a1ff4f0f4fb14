"""A tokenizer from a checkpoint's folder: by tokenizer.json alone, or by transformers' own classes.

For some models, transformers 5 takes the vocabulary out of tokenizer.json and puts the rules of a
class around it: how texts are normalised, and cut before the vocabulary is asked. Beside a
config.json of Qwen2 these are Qwen2's, whatever the file says. Texts then get other tokens than by
the file, without a word; both are compared here.
"""

import functools
import logging
import os
import pathlib
from typing import Any

from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean
from weightsteer_jax.runtime.progress import say

# Texts for which rules of normalising and cutting differ, each for another reason.
PROBES = (
  'Hello world',
  ' Yes',
  'two  and   three blanks ',
  '\n\n\tdef f(x):\r\n    return x\n\n\n',
  "I'll, DON'T, we've",
  '1234567890 3.14 7',
  'na\u00efve e\u0301 \ufb01 \u2163 \uff21',
  '\u6f22\u5b57\u304b\u306a \ud55c\uad6d\uc5b4',
  '\u0639\u0631\u0628 \u0939\u093f\u0928\u094d\u0926\u0940',
  '\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7!',
  'x=[1,22];//--> <a href="#">$%^&*</a>',
  'HTTPServer camelCase snake_case',
)
# Whose rules cut texts into tokens.
CHOICES = ('auto', 'file')
# Control tokens that are tried between words; they all go by one rule.
_CONTROL_TOKENS = 6
# The name of transformers' warning of a text longer than the tokenizer's own maximum. Source:
# transformers 5.24, `_eventual_warn_about_too_long_sequence`.
_TOO_LONG = 'sequence-length-is-longer-than-the-specified-maximum'
# Tokens of a text that a line shows.
_SHOWN = 4


def _transformers() -> Any:
  """The library. Without torch it says that models are not available, which is about its own."""
  logger = logging.getLogger('transformers')

  def other(record: logging.LogRecord) -> bool:
    return 'PyTorch was not found' not in record.getMessage()

  logger.addFilter(other)
  try:
    # The import takes seconds.
    import transformers
  finally:
    logger.removeFilter(other)
  return transformers


def load(folder: pathlib.Path, choice: str) -> Any:
  """The tokenizer in a folder, no network, no remote code; says once if the choice matters.

  Args:
    choice: 'auto', transformers' AutoTokenizer; or 'file', the rules of tokenizer.json.

  Raises:
    InputError: if transformers cannot read the tokenizer, there is no tokenizer.json to go by, or
      the choice is another.
  """
  if choice not in CHOICES:
    raise InputError(
      f"tokenizer is '{choice}'{did_you_mean(choice, CHOICES)}; there are: {', '.join(CHOICES)}"
    )
  transformers = _transformers()
  path = folder / 'tokenizer.json'
  if choice == 'file' and not path.is_file():
    raise InputError(
      f'{folder} has no tokenizer.json, whose rules model.tokenizer = \'file\' (--tokenizer=file) '
      "asks for: choose 'auto'"
    )
  kind = transformers.AutoTokenizer if choice == 'auto' else transformers.PreTrainedTokenizerFast
  try:
    tokenizer = kind.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    # Lengths are held against the model's own positions: transformers would warn of texts that are
    # refused here, and of those that fit.
    tokenizer.deprecation_warnings[_TOO_LONG] = True
    core = _read(path) if path.is_file() else None
    # Some settings are first looked at when a text comes.
    _ids(tokenizer, 'a')
  # transformers and tokenizers raise many types, bare Exception among them, for a bad file.
  except Exception as error:
    raise InputError(f'{folder}: transformers cannot read the tokenizer: {error}') from error
  if core is None:
    return tokenizer
  if choice == 'file':
    # Settings of tokenizer_config.json may have changed the rules.
    tokenizer.backend_tokenizer.normalizer = core.normalizer
    tokenizer.backend_tokenizer.pre_tokenizer = core.pre_tokenizer
    return tokenizer
  if differing := differences(tokenizer, core):
    _say_once(_line(folder, tokenizer, core, differing, transformers.__version__))
  return tokenizer


def differences(tokenizer: Any, core: Any) -> list[str]:
  """The probe texts to which a tokenizer gives other ids than tokenizer.json does.

  Args:
    core: the `tokenizers.Tokenizer` of the file.
  """
  return [
    text for text in _probes(tokenizer, core) if _ids(tokenizer, text) != _core_ids(core, text)
  ]


def _probes(tokenizer: Any, core: Any) -> list[str]:
  # Tokens that only tokenizer_config.json adds are no rule of the file's.
  common = [
    token
    for token in dict.fromkeys(tokenizer.all_special_tokens)
    if core.token_to_id(token) == tokenizer.convert_tokens_to_ids(token)
  ]
  between = [f'Yes{token} No {token}\n{token}' for token in common[:_CONTROL_TOKENS]]
  return [*PROBES, *between]


def _ids(tokenizer: Any, text: str) -> list[int]:
  return tokenizer(text, add_special_tokens=False)['input_ids']


def _core_ids(core: Any, text: str) -> list[int]:
  return core.encode(text, add_special_tokens=False).ids


def _read(path: pathlib.Path) -> Any:
  import tokenizers

  core = tokenizers.Tokenizer.from_file(str(path))
  # Settings of a pipeline, which transformers leaves out as well.
  core.no_truncation()
  core.no_padding()
  return core


def _line(
  folder: pathlib.Path, tokenizer: Any, core: Any, differing: list[str], version: str
) -> str:
  # The shortest text shows the difference best, from the first token that differs on.
  text = min(differing, key=len)
  theirs = tokenizer.convert_ids_to_tokens(_ids(tokenizer, text))
  own = [core.id_to_token(token) for token in _core_ids(core, text)]
  same = len(os.path.commonprefix([theirs, own]))
  count = len(_probes(tokenizer, core))
  return (
    f'{folder}: transformers {version} gives {len(differing)} of {count} probe texts other tokens '
    f'than tokenizer.json: its {type(tokenizer).__name__} puts rules of its own around the '
    f'vocabulary. In {text!r} {theirs[same:][:_SHOWN]} stands for {own[same:][:_SHOWN]} of the '
    "file. Used are those of transformers; model.tokenizer = 'file' (--tokenizer=file) takes the "
    "file's: choose what the model was trained with"
  )


# A run loads its tokenizer several times.
@functools.lru_cache(maxsize=64)
def _say_once(line: str) -> None:
  say(line)
