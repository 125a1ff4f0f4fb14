"""Tokens that end a generation: one rule for every program that generates.

  end of turn      what the chat template writes after an answer
  end of text      the tokenizer's eos_token
  the checkpoint   `eos_token_id` of generation_config.json, a number or a list

The last is what makes transformers and vLLM stop, and names more than the other two: <|endoftext|>
in Qwen2.5, <|end_of_text|> and <|eom_id|> in Llama 3.1, <|assistant|> in Phi-3.
"""

import contextlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.data import chat
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.progress import say
from weightsteer_jax.storage import files

# The name of the list among the inputs of finished work.
INPUT = 'stop tokens'


def stop_ids(tokenizer: Any, folder: files.Path | None = None) -> list[int]:
  """Ids of the tokens that end a generation: of a turn, of a text, and those of the checkpoint.

  Args:
    folder: the checkpoint's folder; None leaves the checkpoint's own list out.

  Raises:
    InputError: if there is no such token, or the checkpoint's list cannot be read.
  """
  ids = turn_and_text_ids(tokenizer)
  if folder is not None:
    ids += checkpoint_ids(pathlib.Path(folder))
  if not ids:
    raise InputError(
      f"the tokenizer '{tokenizer.name_or_path}' has neither a chat template nor an end-of-text "
      'token, and the checkpoint names none: generation would not stop'
    )
  return list(dict.fromkeys(ids))


def turn_and_text_ids(tokenizer: Any) -> list[int]:
  """Ids of the chat template's end of turn and of the end of text, where there are such."""
  ids = []
  # None, or no such attribute, in the tokenizer of a base model.
  if getattr(tokenizer, 'chat_template', None):
    # A template that ends no turn is refused where a conversation is rendered; raw prompts need
    # none.
    with contextlib.suppress(InputError):
      ids += chat.end_of_turn_ids(tokenizer)
  if tokenizer.eos_token_id is not None:
    ids.append(tokenizer.eos_token_id)
  return list(dict.fromkeys(ids))


def checkpoint_ids(folder: pathlib.Path) -> list[int]:
  """Ids that the checkpoint itself names, in its order.

  Source: transformers 5.24, GenerationConfig: config.json counts where generation_config.json is
  missing, and its text_config where the outer level names nothing.

  Raises:
    InputError: if the file names anything but token ids.
  """
  for name in ('generation_config.json', 'config.json'):
    path = folder / name
    if path.is_file():
      break
  else:
    return []
  settings = files.read_json(path, what='the settings of generation')
  stops = settings.get('eos_token_id')
  inner = settings.get('text_config')
  if stops is None and isinstance(inner, Mapping):
    stops = inner.get('eos_token_id')
  # A checkpoint names one token, several, or none.
  if stops is None:
    return []
  listed = stops if isinstance(stops, list) else [stops]
  # JSON's true is an int to Python.
  if not all(type(token) is int and token >= 0 for token in listed):
    raise InputError(
      f'{path}: eos_token_id is {json.dumps(stops)}, expected the id of a token or a list of ids'
    )
  return listed


def as_begun(
  plan: pathlib.Path, ids: Sequence[int], *, unrecorded: Sequence[int], what: str
) -> list[int]:
  """The stop tokens of unfinished work: those it was begun with, where the rule names more now.

  Answers that end by two rules would not be comparable, and refusing would throw the work away.

  Args:
    plan: plan.json beside the work.
    ids: the stop tokens by the rule.
    unrecorded: the stop tokens of work whose plan names none.
    what: the work in words, as in 'the sweep'.
  """
  begun = list(ids)
  if plan.exists():
    inputs = files.read_json(plan, what=f'the plan of {what}').get('inputs', {})
    begun = inputs.get(INPUT, list(unrecorded))
  # Other tokens, rather than fewer: the comparison of inputs refuses them.
  if not set(begun) <= set(ids):
    return list(ids)
  if added := [token for token in ids if token not in begun]:
    say(
      f'{what} in {plan.parent} was begun with the stop tokens {begun} and goes on with them; '
      f"{added}, which the model's generation_config.json or chat template also names, end no "
      'answer there. Start in another workdir to end answers at these as well'
    )
  return list(dict.fromkeys(begun))
