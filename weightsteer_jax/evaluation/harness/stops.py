"""The options of a generation by lm-eval, the end of the generation, and the text."""

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from weightsteer_jax.runtime.errors import InputError

# New tokens if a task names no number, as in HFLM.
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


def check_generation(options: Mapping[str, Any], *, where: str) -> dict[str, Any]:
  """The generation_kwargs of a task, in lm-eval's normal form.

  Raises:
    InputError: if an option is not honoured.
  """
  kwargs = dict(normalize_gen_kwargs(dict(options), MAX_GEN_TOKS))
  refused = []
  for key, value in kwargs.items():
    is_neutral = key in NEUTRAL and value == NEUTRAL[key]
    if key not in HONOURED and not is_neutral:
      refused.append(f'{key}={value!r}')
  if refused:
    raise InputError(
      f'{where} asks for {", ".join(refused)} in its generation_kwargs, which is not supported'
    )
  return kwargs


def has_ended(tokenizer: Any, until: Sequence[str], tokens: Sequence[int]) -> bool:
  """Whether the text of the tokens contains a stop text."""
  if not tokens:
    return False
  # With special tokens, since a stop text may be a special token.
  text = tokenizer.decode(tokens)
  return any(stop in text for stop in until)


def text_until(tokenizer: Any, until: Sequence[str], tokens: Sequence[int]) -> str:
  """The text of the tokens before the first stop text.

  A stop text may begin and end within tokens, or be a special token.
  """
  if has_ended(tokenizer, until, tokens):

    def ended(count: int) -> bool:
      return has_ended(tokenizer, until, tokens[:count])

    # The fewest tokens with a stop text in them: more tokens contain the stop text too, so that
    # the counts can be bisected.
    fewest = bisect.bisect_left(range(len(tokens)), True, key=ended)
    tokens = tokens[:fewest]
  text = ''
  if tokens:
    text = tokenizer.decode(tokens, skip_special_tokens=True)
  # Cuts what the last token has from the stop text on.
  return postprocess_generated_text(text, list(until), think_end_token=None)
