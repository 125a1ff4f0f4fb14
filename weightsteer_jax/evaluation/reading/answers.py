"""Parts shared by all kinds with text answers: prompt, request, and reading of an answer."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import chat, thoughts
from weightsteer_jax.evaluation.reading import refusals
from weightsteer_jax.inference.requests import GenerateRequest, GenerateResult, Sampling, Tokens


@dataclasses.dataclass(frozen=True)
class Prepared:
  """An item as tokens.

  Attributes:
    completions: tokens of the choices to score; () if a text is generated.
    behind: what the prompt of choices holds beyond the prompt of generation; see `chat.Scored`.
  """

  item: Mapping[str, Any]
  prompt: Tokens
  completions: tuple[Tokens, ...] = ()
  behind: str = ''


def prepare(tokenizer: Any, item: Mapping[str, Any]) -> Prepared:
  """The item as tokens, through the chat template."""
  prompt = chat.prompt_tokens(tokenizer, item['messages'], name=item['id'])
  return Prepared(item, tuple(prompt))


def requests(
  prepared: Prepared,
  key: Any,
  arm: str,
  alpha: float,
  sample: int,
  options: config.TextTask,
  seed: int,
) -> list[GenerateRequest]:
  """A single request, named (key, 0)."""
  # Errors cite the item, whatever the arm and the sample.
  name = prepared.item['id']
  request = GenerateRequest(
    # The second half numbers the requests of a row, and here a row has only this request.
    key=(key, 0),
    prompt=prepared.prompt,
    max_new_tokens=options.max_new_tokens,
    arm=arm,
    alpha=alpha,
    sampling=Sampling(options.temperature, options.top_k, options.top_p),
    seed=seed,
    # Example and sample enter the random key, so that a row's draws do not depend on its batch.
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
  """The row's value, status, text, length in tokens, finish, and fields read from the text.

  A broken model ('not_finite') has no value, and neither has an answer that a cut thought left no
  room for. Every other answer has the value that `read` gives, whatever the status: a model does
  not get better because it stops making sense. `completion` is the answer without the thought; what
  a row says of the thought is in `thought_fields`.

  Args:
    read: text -> (value, fields read from the text, or None if nothing could be read).
    keep: keys of the item that metrics need, kept where the item has them, as `group` always is.
  """
  # A row of these kinds has one request, so anything but one result is a bug.
  [result] = results
  said = thoughts.read(tokenizer, prepared.prompt, result.tokens)
  thought_cut = thoughts.is_cut(said, result.finish)
  value: float | None = None
  evidence: Mapping[str, Any] | None = None
  if not thought_cut:
    value, evidence = read(said.answer)
  if result.finish == 'not_finite':
    value = None
  kept_keys = [key for key in ('group', *keep) if key in prepared.item]
  return {
    'value': value,
    'status': status_of(
      said.answer, result.finish, readable=evidence is not None, thought_cut=thought_cut
    ),
    'completion': said.answer,
    'tokens': len(result.tokens),
    'finish': result.finish,
    **thought_fields(said, thought_cut=thought_cut),
    **_thought_value(said, value, read),
    **{key: prepared.item[key] for key in kept_keys},
    # Last, so that a column that was read replaces the item's column of that name.
    **(evidence or {}),
  }


def thought_fields(said: thoughts.Said, *, thought_cut: bool) -> dict[str, Any]:
  """What a row says of its thought; {} where the model's template knows no thoughts.

  `thought_tokens` are part of `tokens`, tags included. `generated` is the whole text, kept where
  the thought has leaked, as thought and answer do not say then how they lay.
  """
  if said.thought is None:
    return {}
  columns: dict[str, Any] = {
    'thought': said.thought,
    'thought_tokens': said.thought_tokens,
    'thought_cut': thought_cut,
    'thought_leaked': said.leaked,
  }
  if said.leaked:
    columns['generated'] = said.text
  return columns


def _thought_value(
  said: thoughts.Said,
  value: float | None,
  read: Callable[[str], tuple[float | None, Mapping[str, Any] | None]],
) -> dict[str, float]:
  """{'thought_value': what the answer's rule makes of the thought}, where there are both."""
  if value is None or not said.thought:
    return {}
  of_thought, _ = read(said.thought)
  return {} if of_thought is None else {'thought_value': of_thought}


def status_of(text: str, finish: str, *, readable: bool, thought_cut: bool = False) -> str:
  """The status of an answer, by the same rule in every kind with text answers.

  In this order: 'not_finite' if the model broke, 'thought_cut' if the text ended within a thought,
  'empty' without a text, 'refused' or 'unparsable' if nothing could be read, 'truncated' if the
  answer ran into the length limit and could be read all the same, otherwise 'ok'.

  A cut thought is no answer: it is neither a refusal nor unreadable, whatever the thought says.
  Readability is decided before the length limit, because `valid_rate` is the share of answers that
  could be judged, and an answer cut off too early could not be judged. `truncated_rate` counts
  every answer cut off at the limit, by the row's `finish`.

  >>> [status_of('It is', 'length', readable=readable) for readable in (True, False)]
  ['truncated', 'unparsable']
  """
  if finish == 'not_finite':
    return 'not_finite'
  if thought_cut:
    return 'thought_cut'
  if not text.strip():
    return 'empty'
  if not readable:
    # Only unreadable answers are refusals here: "I'm sorry, but it is B" has said B.
    return 'refused' if refusals.refuses(text) else 'unparsable'
  return 'truncated' if finish == 'length' else 'ok'


def nothing_to_read(text: str) -> tuple[None, dict[str, Any]]:
  """The reading of answers for judges alone: no value, no fields."""
  del text
  # An empty dictionary, not None: the answer is readable, though not by a rule.
  return None, {}


def has_text(row: Mapping[str, Any]) -> bool:
  """Whether there is an answer for a judge to read, from a model that is not broken."""
  return row['status'] not in ('empty', 'not_finite', 'thought_cut')


def judged(
  item: Mapping[str, Any], row: Mapping[str, Any], *purposes: str, **more: str
) -> list[tuple[str, dict[str, str]]]:
  """[(purpose, texts)] to ask judges about an answer; [] without an answer.

  Args:
    more: texts beside the question and the answer.
  """
  if not has_text(row):
    return []
  texts = {
    'question': question_of(item),
    'answer': row['completion'],
    **more,
  }
  return [(purpose, texts) for purpose in purposes]


def with_thought(row: Mapping[str, Any]) -> Mapping[str, Any]:
  """The row with its thought before the answer, for judges that are to see both."""
  if not row.get('thought'):
    return row
  both = f'Thought:\n{row["thought"]}\n\nAnswer:\n{row["completion"]}'
  return {**row, 'completion': both}


def question_of(item: Mapping[str, Any]) -> str:
  """The question as judges see the question: the last message of the user."""
  # Loaders leave a last answer off, so the last message is the user's.
  return item['messages'][-1]['content']
