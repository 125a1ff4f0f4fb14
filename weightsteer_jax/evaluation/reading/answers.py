"""What all kinds have in common that ask for a text: the prompt, the one request, and how an answer
becomes a row.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import chat
from weightsteer_jax.evaluation.reading import refusals
from weightsteer_jax.inference.requests import GenerateRequest, GenerateResult, Sampling, Tokens


@dataclasses.dataclass(frozen=True)
class Prepared:
  """An item as tokens."""

  item: Mapping[str, Any]
  prompt: Tokens


def prepare(tokenizer: Any, item: Mapping[str, Any]) -> Prepared:
  """The item as tokens, through the chat template."""
  return Prepared(item, tuple(chat.prompt_tokens(tokenizer, item['messages'], name=item['id'])))


def requests(
  prepared: Prepared,
  key: Any,
  arm: str,
  alpha: float,
  sample: int,
  options: config.TextTask,
  seed: int,
) -> list[GenerateRequest]:
  """One request, named (key, 0)."""
  how = Sampling(options.temperature, options.top_k, options.top_p)
  name = prepared.item['id']
  return [
    GenerateRequest(
      (key, 0), prepared.prompt, options.max_new_tokens, arm, alpha, how, seed, name, sample, name
    )
  ]


def text_of(result: GenerateResult, tokenizer: Any) -> str:
  """The answer as text."""
  return tokenizer.decode(result.tokens, skip_special_tokens=True) if result.tokens else ''


def row(
  prepared: Prepared,
  results: Sequence[GenerateResult],
  tokenizer: Any,
  read: Callable[[str], tuple[float | None, Mapping[str, Any] | None]],
  *,
  keep: Sequence[str] = (),
) -> dict[str, Any]:
  """Value, status, the text, its length in tokens, how it ended, what was read from it, and keys of
  the item.

  The status is 'not_finite' if the model broke (no value then), 'empty', 'refused' or 'unparsable'
  if nothing could be read, 'truncated' if the answer ran into the length limit and was read all the
  same, otherwise 'ok'.

  Args:
    read: text -> (value, fields read from it, or None if there was nothing to read).
    keep: keys of the item that metrics need; its `group` is always kept.
  """
  [result] = results
  text = text_of(result, tokenizer)
  value, found = read(text)
  kept = {key: prepared.item[key] for key in ('group', *keep) if key in prepared.item}
  common = {
    'completion': text,
    'tokens': len(result.tokens),
    'finish': result.finish,
    **kept,
    **(found or {}),
  }
  if result.finish == 'not_finite':
    return {'value': None, 'status': 'not_finite', **common}
  return {'value': value, 'status': _status(text, result.finish, found is not None), **common}


def nothing_to_read(text: str) -> tuple[None, dict]:
  """What `row` reads from answers that only a judge can score."""
  del text
  return None, {}


def has_text(row: Mapping[str, Any]) -> bool:
  """Whether there is something for a judge to read: an answer that is not empty, of a model that
  did not break.
  """
  return row['status'] not in ('empty', 'not_finite')


def judged(
  item: Mapping[str, Any], row: Mapping[str, Any], *purposes: str, **more: str
) -> list[tuple[str, dict[str, str]]]:
  """[(purpose, texts)] of what judges are asked about an answer: the question, the answer and what
  is given beside; nothing where there is no answer.
  """
  if not has_text(row):
    return []
  fields = {'question': question_of(item), 'answer': row['completion'], **more}
  return [(purpose, fields) for purpose in purposes]


def question_of(item: Mapping[str, Any]) -> str:
  """What judges are shown as the question: the last thing the user said."""
  return item['messages'][-1]['content']


def _status(text: str, finish: str, readable: bool) -> str:
  if not text.strip():
    return 'empty'
  if not readable:
    return 'refused' if refusals.refuses(text) else 'unparsable'
  return 'truncated' if finish == 'length' else 'ok'
