"""The options of a generation by lm-eval, the end of the generation, and the text."""

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from weightsteer_jax.data import thoughts
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


def has_ended(
  tokenizer: Any, prompt: Sequence[int], until: Sequence[str], tokens: Sequence[int]
) -> bool:
  """Whether the answer in the tokens contains a stop text.

  A thought ends nothing: stop texts such as blank lines stand in every thought.

  Args:
    prompt: tokens that the tokens were generated behind.
  """
  if not tokens:
    return False
  # With special tokens, since a stop text may be a special token.
  text = _answer(tokenizer, prompt, tokenizer.decode(tokens))
  return any(stop in text for stop in until)


def text_until(
  tokenizer: Any, prompt: Sequence[int], until: Sequence[str], tokens: Sequence[int]
) -> str:
  """The answer in the tokens before the first stop text, without its thought.

  A stop text may begin and end within tokens, or be a special token.
  """
  if has_ended(tokenizer, prompt, until, tokens):

    def ended(count: int) -> bool:
      return has_ended(tokenizer, prompt, until, tokens[:count])

    # The fewest tokens with a stop text in them: more tokens contain the stop text too, so that
    # the counts can be bisected.
    fewest = bisect.bisect_left(range(len(tokens)), True, key=ended)
    tokens = tokens[:fewest]
  text = _answer(tokenizer, prompt, thoughts.text_of(tokenizer, tokens))
  # Cuts what the last token has from the stop text on.
  return postprocess_generated_text(text, list(until), think_end_token=None)


def _answer(tokenizer: Any, prompt: Sequence[int], text: str) -> str:
  # A model without thoughts answers with all that it says.
  return thoughts.of_text(tokenizer, prompt, text).answer
