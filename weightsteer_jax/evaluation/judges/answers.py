"""What an endpoint answered, kept on disk: the same question is never paid for twice."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.storage import journal, made_from

Messages = Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Answer:
  """An endpoint's answer.

  Attributes:
    text: what it said.
    finish: why it stopped, in the endpoint's words: 'stop', 'length', 'content_filter'.
    refusal: what it says in place of an answer, where the endpoint sets refusals apart.
    first: [[token, log-probability in nats], ..] of the most likely first tokens, likeliest first;
      empty where none are given.
    tokens_in, tokens_out: what was counted, or estimated where the endpoint counts nothing.
    model: what the endpoint says that it is.
  """

  text: str
  finish: str
  refusal: str
  first: Sequence[tuple[str, float]]
  tokens_in: int
  tokens_out: int
  model: str


class Answers:
  """The answers in a jsonl file; use as a context manager.

  A line is {key, model, messages, parameters, answer}, the key a hash of the three before the
  answer. Several threads may add to it.

  Attributes:
    tokens_in, tokens_out: of all answers that the file holds.
  """

  def __init__(self, path: pathlib.Path):
    self._journal = journal.Journal(
      path,
      key=lambda line: line['key'],
      needs=('key', 'messages', 'answer'),
      what='an answer of a judge',
      again='the judge',
      replaces=True,
    )
    self._known = {key: _answer_of(line) for key, line in self._journal.done.items()}
    self.tokens_in = sum(answer.tokens_in for answer in self._known.values())
    self.tokens_out = sum(answer.tokens_out for answer in self._known.values())

  def __enter__(self) -> 'Answers':
    return self

  def __exit__(self, *_) -> None:
    self._journal.__exit__()

  def __len__(self) -> int:
    return len(self._known)

  def get(self, messages: Messages, parameters: Mapping[str, Any]) -> Answer | None:
    """The answer, if it is there."""
    return self._known.get(key_of(messages, parameters))

  def add(self, messages: Messages, parameters: Mapping[str, Any], answer: Answer) -> None:
    """Keeps an answer.

    Raises:
      OutputError: the disk refuses.
    """
    key = key_of(messages, parameters)
    rest = {name: value for name, value in parameters.items() if name != 'model'}
    self._journal.append(
      {
        'key': key,
        'model': parameters['model'],
        'messages': list(messages),
        'parameters': rest,
        'answer': dataclasses.asdict(answer),
      }
    )
    self._known[key] = answer


def key_of(messages: Messages, parameters: Mapping[str, Any]) -> str:
  """The hash of a question: of the model's name, the messages and all parameters."""
  return made_from.digest([list(messages), dict(parameters)])


def _answer_of(line: Mapping[str, Any]) -> Answer:
  return Answer(**line['answer'])
