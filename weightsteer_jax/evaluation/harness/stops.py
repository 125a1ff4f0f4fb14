"""What a generation of lm-eval means: its options, what ends it, and its text."""

import bisect
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import files

# New tokens where a task names no number, as in HFLM.
MAX_GEN_TOKS = 256
# Keywords of a generation that are honoured.
HONOURED = ('until', 'max_gen_toks', 'do_sample', 'temperature', 'top_k', 'top_p')
# Further keywords, which change nothing at these values; other values are refused.
NEUTRAL = {
  'num_beams': 1,
  'num_return_sequences': 1,
  'repetition_penalty': 1.0,
  'min_p': 0.0,
  'typical_p': 1.0,
  'use_cache': True,
  'early_stopping': False,
}


def end_ids(folder: pathlib.Path, tokenizer: Any) -> list[int]:
  """Tokens that end a generation, as in transformers.

  They are those of generation_config.json, or of config.json without such a file, and the
  tokenizer's end of text.
  """
  path = folder / 'generation_config.json'
  if not path.is_file():
    path = folder / 'config.json'
  stops = files.read_json(path, what='the settings of generation').get('eos_token_id')
  # A checkpoint names one token, several, or none.
  listed = stops if isinstance(stops, list) else [stops]
  ids = [*listed, tokenizer.eos_token_id]
  return sorted({int(token) for token in ids if token is not None})


def check_generation(options: Mapping[str, Any], *, where: str) -> dict[str, Any]:
  """The generation_kwargs of a task, in lm-eval's normal form.

  Raises:
    InputError: if an option is not honoured.
  """
  kwargs = dict(normalize_gen_kwargs(dict(options), MAX_GEN_TOKS))
  refused = [
    f'{key}={value!r}'
    for key, value in kwargs.items()
    if key not in HONOURED and not (key in NEUTRAL and value == NEUTRAL[key])
  ]
  if refused:
    raise InputError(
      f'{where} asks for {", ".join(refused)} in its generation_kwargs, which is not supported'
    )
  return kwargs


def has_ended(tokenizer: Any, until: Sequence[str], tokens: Sequence[int]) -> bool:
  """Whether the text of the tokens contains a stop text."""
  text = tokenizer.decode(tokens) if tokens else ''
  return any(stop in text for stop in until)


def text_until(tokenizer: Any, until: Sequence[str], tokens: Sequence[int]) -> str:
  """The text of the tokens before the first stop text.

  A stop text may begin and end within tokens, or be a special token.
  """
  if has_ended(tokenizer, until, tokens):

    def ended(count: int) -> bool:
      return has_ended(tokenizer, until, tokens[:count])

    # The fewest tokens that contain a stop text; more tokens contain it too.
    tokens = tokens[: bisect.bisect_left(range(len(tokens)), True, key=ended)]
  text = tokenizer.decode(tokens, skip_special_tokens=True) if tokens else ''
  return postprocess_generated_text(text, list(until), think_end_token=None)
