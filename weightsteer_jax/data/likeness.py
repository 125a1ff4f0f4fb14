"""The two sides of a contrast beside each other, and beside the questions that are measured on.

A direction holds all that differs between the sides. What should not differ, and what should not be
shared with the evaluation, is told before anything is trained.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from weightsteer_jax.data.sources import Conversation
from weightsteer_jax.runtime.errors import InputError

Text = tuple[tuple[str, str], ...]


def notes(positive: Sequence[Conversation], negative: Sequence[Conversation]) -> list[str]:
  """What to know of the sides before they are trained on, a line each; [] if all is as it should.

  Raises:
    InputError: if both sides are the same conversations, so that the direction would be zero.
  """
  sides = {'positive': positive, 'negative': negative}
  if sorted(map(_whole, positive)) == sorted(map(_whole, negative)):
    raise InputError(
      f'both sides are the same {len(positive)} conversations ({positive[0].name} and '
      f'{negative[0].name} for two), so that the direction would be zero: the positive side needs '
      'answers with the behaviour, the negative side answers with its opposite'
    )
  found = [*_of_questions(positive, negative), *_of_answers(positive, negative)]
  for side, conversations in sides.items():
    repeated = len(conversations) - len(set(map(_whole, conversations)))
    if repeated:
      found.append(f'{repeated} of {len(conversations)} {side} conversations are there twice')
  return found


def _of_questions(
  positive: Sequence[Conversation], negative: Sequence[Conversation]
) -> Iterable[str]:
  """Whether row i of both sides asks the same question."""
  first = list(map(question, positive))
  second = list(map(question, negative))
  if first == second:
    return
  if len(first) != len(second):
    yield (
      f'the positive side has {len(first)} conversations, the negative {len(second)}: the larger '
      'is trained for more steps, and the direction holds that too'
    )
  lone = {'positive': set(first) - set(second), 'negative': set(second) - set(first)}
  for side, questions in lone.items():
    if questions:
      example = min(questions)[-1][1]
      yield (
        f'{len(questions)} of the questions are on the {side} side alone, {example!r:.60} for one: '
        'what differs between the questions becomes part of the direction'
      )
  if not any(lone.values()) and len(first) == len(second):
    yield (
      'the sides have the same questions in another order: sort them alike, so that both '
      'fine-tunes see each question at the same step'
    )


def _of_answers(
  positive: Sequence[Conversation], negative: Sequence[Conversation]
) -> Iterable[str]:
  """Whether some questions are answered alike on both sides."""
  alike = set(map(_whole, positive)) & set(map(_whole, negative))
  if alike:
    yield (
      f'{len(alike)} conversations are the same on both sides, {min(alike)[-1][1]!r:.60} for one '
      'answer: they hold both sides alike, and add nothing to the direction'
    )


def shared(
  conversations: Iterable[Conversation], items: Iterable[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
  """The items whose last question is also a question of the conversations."""
  trained = {_last(conversation.messages) for conversation in conversations}
  return [item for item in items if item.get('messages') and _last(item['messages']) in trained]


def question(conversation: Conversation) -> Text:
  """What is asked: the messages before the last answer."""
  return _whole(conversation)[:-1]


def _whole(conversation: Conversation) -> Text:
  return tuple(
    (message['role'], '\n'.join((message.get('reasoning_content', ''), message['content'])).strip())
    for message in conversation.messages
  )


def _last(messages: Sequence[Mapping[str, Any]]) -> str:
  """The last thing that the user says, with single blanks."""
  said = [message['content'] for message in messages if message['role'] == 'user']
  return ' '.join(said[-1].split()) if said else ''
