"""What all kinds that ask for a text share: the prompt, the request, and how an answer is read."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import chat
from weightsteer_jax.evaluation.reading import refusals
from weightsteer_jax.inference.requests import GenerateRequest, GenerateResult, Sampling, Tokens


@dataclasses.dataclass(frozen=True)
class Prepared:
  """An item as tokens.

  Attributes:
    completions: tokens of the choices whose likelihood is asked; () if a text is generated.
  """

  item: Mapping[str, Any]
  prompt: Tokens
  completions: tuple[Tokens, ...] = ()


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
  name = prepared.item['id']
  request = GenerateRequest(
    key=(key, 0),
    prompt=prepared.prompt,
    max_new_tokens=options.max_new_tokens,
    arm=arm,
    alpha=alpha,
    sampling=Sampling(options.temperature, options.top_k, options.top_p),
    seed=seed,
    example=name,
    sample=sample,
    name=name,
  )
  return [request]


def fields(
  prepared: Prepared,
  results: Sequence[GenerateResult],
  tokenizer: Any,
  read: Callable[[str], tuple[float | None, Mapping[str, Any] | None]],
  *,
  keep: Sequence[str] = (),
) -> dict[str, Any]:
  """The row's value, status, text, length in tokens, finish, and what was read from the text.

  A broken model ('not_finite') has no value. Every other answer has the value that `read` gives,
  whatever the status: a model that stops making sense has not become better by that.

  Args:
    read: text -> (value, fields read from the text, or None if nothing could be read).
    keep: keys of the item that metrics need; `group` is always kept.
  """
  [result] = results
  text = tokenizer.decode(result.tokens, skip_special_tokens=True) if result.tokens else ''
  value, evidence = read(text)
  return {
    'value': None if result.finish == 'not_finite' else value,
    'status': status_of(text, result.finish, readable=evidence is not None),
    'completion': text,
    'tokens': len(result.tokens),
    'finish': result.finish,
    **{key: prepared.item[key] for key in ('group', *keep) if key in prepared.item},
    **(evidence or {}),
  }


def status_of(text: str, finish: str, *, readable: bool) -> str:
  """The status of an answer; the same rule in every kind that asks for a text.

  In this order: 'not_finite' if the model broke, 'empty' if there is no text, 'refused' or
  'unparsable' if nothing could be read, 'truncated' if the answer ran into the length limit and
  could be read all the same, otherwise 'ok'.

  Whether an answer could be read is decided before the length limit, because `valid_rate` is the
  share of answers that could be judged: an answer that was cut off before it said anything could
  not be. `truncated_rate` counts every answer that ran into the limit, by the row's `finish`.

  >>> [status_of('It is', 'length', readable=readable) for readable in (True, False)]
  ['truncated', 'unparsable']
  """
  if finish == 'not_finite':
    return 'not_finite'
  if not text.strip():
    return 'empty'
  if not readable:
    return 'refused' if refusals.refuses(text) else 'unparsable'
  return 'truncated' if finish == 'length' else 'ok'


def nothing_to_read(text: str) -> tuple[None, dict[str, Any]]:
  """What `fields` reads from answers that only a judge can score."""
  del text
  return None, {}


def has_text(row: Mapping[str, Any]) -> bool:
  """Whether a judge has something to read: a text, from a model that did not break."""
  return row['status'] not in ('empty', 'not_finite')


def judged(
  item: Mapping[str, Any], row: Mapping[str, Any], *purposes: str, **more: str
) -> list[tuple[str, dict[str, str]]]:
  """[(purpose, texts)] that judges are asked about an answer; [] if there is no answer.

  Args:
    more: texts beside the question and the answer.
  """
  if not has_text(row):
    return []
  texts = {'question': question_of(item), 'answer': row['completion'], **more}
  return [(purpose, texts) for purpose in purposes]


def question_of(item: Mapping[str, Any]) -> str:
  """What judges are shown as the question: the last thing the user said."""
  return item['messages'][-1]['content']
