"""The fields of a `config.json`, read so that no field is passed over in silence."""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

# No field of a config counts more.
MOST = 2**31 - 1
# Every layer has a name of its own, and lists are made of them before weights are read.
MOST_LAYERS = 10_000
# Keys that say nothing about the forward pass.
INERT = frozenset(
  (
    # Bookkeeping, token ids (the tokenizer's business), labels of classifiers, and settings of
    # training and of the cache.
    '_attn_implementation_autoset',
    '_commit_hash',
    # The name that transformers takes from the metadata of a GGUF file.
    '_model_name_or_path',
    '_name_or_path',
    'architectures',
    'auto_map',
    'bos_token_id',
    'cache_implementation',
    'chunk_size_feed_forward',
    'cls_token_id',
    'decoder_start_token_id',
    'dtype',
    'eos_token_id',
    'finetuning_task',
    'id2label',
    'initializer_range',
    'is_llama_config',
    'label2id',
    'mask_token_id',
    'name_or_path',
    'output_attentions',
    'output_hidden_states',
    'output_scores',
    'pad_token_id',
    'prefix',
    'problem_type',
    'return_dict',
    'return_dict_in_generate',
    'task_specific_params',
    'tf_legacy_loss',
    'tokenizer_class',
    'torch_dtype',
    'torchscript',
    'transformers.js_config',
    'transformers_version',
    'unk_token_id',
    'unsloth_fixed',
    'unsloth_version',
    'use_bfloat16',
    'use_cache',
    # Settings of text generation, which older checkpoints carry here.
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
    'max_new_tokens',
    'min_length',
    'min_p',
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
  """The fields of a `config.json`; `finish` refuses fields that were not read.

  A field that is null counts as absent, except in `optional`.

  Attributes:
    where: the file or part of a file, for errors.
    left: {field: value} of the fields neither taken nor ignored yet.
    handling: {field: 'honoured', 'without effect', or 'only' and the supported values} of all
      fields read so far, for docs/families.md.
  """

  def __init__(self, raw: Mapping[str, Any], *, where: str):
    self.where = where
    self.left: dict[str, Any] = {}
    self.handling: dict[str, str] = {}
    self._nulls: set[str] = set()
    for key, value in raw.items():
      if value is None:
        self._nulls.add(key)
      # The model type chose the family that reads these fields.
      elif key not in INERT and key != 'model_type':
        self.left[key] = value

  # Defaults are given as `*default` below, so that None can be a default.
  def take(self, key: str, *default: Any, kind: type | tuple[type, ...] = object) -> Any:
    """The value of a field, or the default of an absent field.

    Raises:
      InputError: if the field is absent without a default, or the value is of another kind.
    """
    self.handling.setdefault(key, 'honoured')
    if key not in self.left:
      if not default:
        raise InputError(
          f"{self.where}: the field '{key}' is missing{did_you_mean(key, self.left)}"
        )
      return default[0]
    value = self.left.pop(key)
    # In Python a bool is an int; in JSON true is no number.
    misplaced_bool = isinstance(value, bool) and kind not in (bool, object)
    if misplaced_bool or not isinstance(value, kind):
      kinds = kind if isinstance(kind, tuple) else (kind,)
      names = ' or '.join(k.__name__ for k in kinds)
      raise InputError(f"{self.where}: '{key}' is {value!r}, expected {names}")
    return value

  def count(self, key: str, *default: int, most: int = MOST) -> int:
    """The field as a whole number from 1 to `most`; see `take`."""
    value = self.take(key, *default, kind=int)
    if value < 1:
      raise InputError(f"{self.where}: '{key}' is {value!r}, expected 1 or more")
    if value > most:
      raise InputError(f"{self.where}: '{key}' is {value!r:.40}, expected at most {most}")
    return value

  def positive(self, key: str, *default: float) -> float:
    """The field as a finite number above 0; see `take`."""
    value = self.take(key, *default, kind=(int, float))
    # False for NaN too. A whole number may be beyond every float.
    if not 0 < value <= sys.float_info.max:
      raise InputError(f"{self.where}: '{key}' is {value!r:.40}, expected a number above 0")
    return float(value)

  def optional(self, take: Callable[..., Any], key: str, default: Any) -> Any:
    """The field as `take` reads the value, or None for null.

    Args:
      take: a method of this object, for example `count`.
      default: the value of an absent field; None gives None.
    """
    is_null = key in self._nulls
    if is_null or (key not in self.left and default is None):
      self.handling.setdefault(key, 'honoured')
      return None
    return take(key, default)

  def expect(self, key: str, *allowed: Any) -> None:
    """Takes a field that must be absent, null or an allowed value.

    Raises:
      InputError: if the field has another value, which the decoder would not honour.
    """
    as_json = ', '.join(map(json.dumps, allowed)) or 'null'
    self.handling.setdefault(key, f'only {as_json}')
    value = self.left.pop(key, None)
    if value is None:
      return
    for other in allowed:
      # In Python, True == 1 and False == 0.
      if value == other and isinstance(value, bool) == isinstance(other, bool):
        return
    raise InputError(
      f"{self.where}: '{key}' is {value!r}, which is not supported (supported: "
      f"{', '.join(map(repr, allowed)) or 'null'})"
    )

  def ignore(self, *keys: str) -> None:
    """Drops fields that have no effect beside the values of other fields."""
    for key in keys:
      self.handling.setdefault(key, 'without effect')
      self.left.pop(key, None)

  def finish(self) -> None:
    """Raises InputError if a field is left; names every field that is left."""
    if not self.left:
      return
    fields = ', '.join(f'{key}={value!r}' for key, value in sorted(self.left.items()))
    raise InputError(
      f'{self.where}: these fields are not supported, and ignoring them could change the '
      f'results: {fields}'
    )
