"""The fields of a `config.json`; no field is passed over in silence."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

# Keys that say nothing about the forward pass: bookkeeping, token ids (the tokenizer's business),
# training-only and cache settings, labels of classifiers, and the settings of text generation that
# older checkpoints carry.
INERT = frozenset(
  (
    '_attn_implementation_autoset',
    '_commit_hash',
    '_name_or_path',
    'architectures',
    'auto_map',
    'bos_token_id',
    'cache_implementation',
    'chunk_size_feed_forward',
    'dtype',
    'eos_token_id',
    'finetuning_task',
    'id2label',
    'initializer_range',
    'is_llama_config',
    'label2id',
    'output_attentions',
    'output_hidden_states',
    'output_scores',
    'pad_token_id',
    'prefix',
    'problem_type',
    'return_dict',
    'return_dict_in_generate',
    'task_specific_params',
    'tokenizer_class',
    'torch_dtype',
    'transformers.js_config',
    'transformers_version',
    'unsloth_fixed',
    'unsloth_version',
    'use_cache',
    'bad_words_ids',
    'begin_suppress_tokens',
    'diversity_penalty',
    'do_sample',
    'early_stopping',
    'encoder_no_repeat_ngram_size',
    'exponential_decay_length_penalty',
    'forced_bos_token_id',
    'forced_eos_token_id',
    'length_penalty',
    'max_length',
    'min_length',
    'no_repeat_ngram_size',
    'num_beam_groups',
    'num_beams',
    'num_return_sequences',
    'remove_invalid_values',
    'repetition_penalty',
    'sep_token_id',
    'suppress_tokens',
    'temperature',
    'top_k',
    'top_p',
    'typical_p',
  )
)


class Fields:
  """The fields of a `config.json`; `finish` refuses fields that nobody took.

  A null field counts as absent, except in `optional`, where null has a meaning.

  Attributes:
    where: the file, as errors cite it.
    left: fields not taken yet.
    asked: how each field taken so far is treated, for docs/families.md: 'honoured', 'without
      effect', or 'only' and the supported values.
  """

  def __init__(self, raw: Mapping[str, Any], *, where: str):
    self.where = where
    passed = INERT | {'model_type'}
    self.left = {
      key: value for key, value in raw.items() if value is not None and key not in passed
    }
    self.asked: dict[str, str] = {}
    self._nulls = {key for key, value in raw.items() if value is None}

  def take(self, key: str, *default: Any, kind: type | tuple[type, ...] = object) -> Any:
    """The value of the field, or the default, if any, where the field is absent.

    Raises:
      InputError: if the field is absent without a default, or not of the kind.
    """
    self.asked.setdefault(key, 'honoured')
    if key not in self.left:
      if not default:
        raise InputError(
          f"{self.where}: the field '{key}' is missing{did_you_mean(key, self.left)}"
        )
      return default[0]
    value = self.left.pop(key)
    # bool is a kind of int in Python, and true is no number.
    unwanted_bool = isinstance(value, bool) and kind not in (bool, object)
    if not isinstance(value, kind) or unwanted_bool:
      kinds = kind if isinstance(kind, tuple) else (kind,)
      names = ' or '.join(kind.__name__ for kind in kinds)
      raise InputError(f"{self.where}: '{key}' is {value!r}, expected {names}")
    return value

  def count(self, key: str, *default: int) -> int:
    """The field as a whole number of 1 or more (see `take`)."""
    value = self.take(key, *default, kind=int)
    if value < 1:
      raise InputError(f"{self.where}: '{key}' is {value!r}, expected 1 or more")
    return value

  def positive(self, key: str, *default: float) -> float:
    """The field as a finite number above 0 (see `take`)."""
    value = float(self.take(key, *default, kind=(int, float)))
    if not 0 < value < float('inf'):
      raise InputError(f"{self.where}: '{key}' is {value!r}, expected a number above 0")
    return value

  def optional(self, take: Callable[..., Any], key: str, default: Any) -> Any:
    """The field as read by `take`, None if the field is null, the default if absent.

    Args:
      take: one of the methods above.
    """
    if key in self._nulls or (key not in self.left and default is None):
      self.asked.setdefault(key, 'honoured')
      return None
    return take(key, default)

  def expect(self, key: str, *allowed: Any) -> None:
    """Raises InputError if the field is present with a value that is not allowed.

    Args:
      allowed: values at which the field changes nothing in the forward pass.
    """
    self.asked.setdefault(key, f'only {", ".join(map(json.dumps, allowed)) or "null"}')
    value = self.left.pop(key, None)
    if value is None:
      return
    for other in allowed:
      # In Python, 0 == False and 1 == True; in a config they are different values.
      if value == other and isinstance(value, bool) == isinstance(other, bool):
        return
    raise InputError(
      f"{self.where}: '{key}' is {value!r}, which is not supported (supported: "
      f"{', '.join(map(repr, allowed)) or 'null'})"
    )

  def ignore(self, *keys: str) -> None:
    """Drops fields that have no effect at the values of the other fields."""
    for key in keys:
      self.asked.setdefault(key, 'without effect')
      self.left.pop(key, None)

  def finish(self) -> None:
    """Raises InputError, with the names, if fields are left that nobody took."""
    if self.left:
      fields = ', '.join(f'{key}={value!r}' for key, value in sorted(self.left.items()))
      raise InputError(
        f'{self.where}: these fields are not supported, and ignoring them could change the '
        f'results: {fields}'
      )
