"""The answers of an endpoint, kept on disk: the same question is never paid for twice."""

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
    text: the answer's text.
    finish: why the answer ended, in the endpoint's words: 'stop', 'length', 'content_filter'.
    refusal: the text of a refusal, where the endpoint sets refusals apart.
    first: [[token, log-probability in nats], ..] of the most likely first tokens, likeliest first;
      empty where none are given.
    tokens_in: tokens of the prompt, estimated where the endpoint does not count.
    tokens_out: tokens of the answer, estimated where the endpoint does not count.
    model: the model's name, as the endpoint gives it.
    fault: why the answer has no score, whatever its text; '' if there is nothing wrong.
  """

  text: str
  finish: str
  refusal: str
  first: Sequence[tuple[str, float]]
  tokens_in: int
  tokens_out: int
  model: str
  # Files of earlier versions have no such entry.
  fault: str = ''


class Answers:
  """The answers in a jsonl file; use as a context manager.

  A line is {key, model, messages, parameters, answer}, the key a hash of model, messages and
  parameters. Several threads may add answers.

  Attributes:
    tokens_in: tokens of the prompts of all answers in the file.
    tokens_out: tokens of all answers in the file.
  """

  def __init__(self, path: pathlib.Path):
    self._journal = journal.Journal(
      path,
      key=lambda line: line['key'],
      needs=('key', 'messages', 'answer'),
      what='an answer of a judge',
      again='the judge',
      # Two runs that share a cache may both have paid for a question; either answer will do.
      replaces=True,
    )
    # A journal's keys are hashable values of any type; here they are hashes in hexadecimal.
    self._known = {str(key): Answer(**line['answer']) for key, line in self._journal.done.items()}
    # Earlier runs count towards the spend caps.
    self.tokens_in = sum(answer.tokens_in for answer in self._known.values())
    self.tokens_out = sum(answer.tokens_out for answer in self._known.values())

  def __enter__(self) -> 'Answers':
    return self

  def __exit__(self, *_) -> None:
    self._journal.close()

  # Questions, not lines: the file may hold an answer twice.
  def __len__(self) -> int:
    return len(self._known)

  def get(self, messages: Messages, parameters: Mapping[str, Any]) -> Answer | None:
    """The kept answer to a question; None if there is none."""
    return self._known.get(key_of(messages, parameters))

  def add(self, messages: Messages, parameters: Mapping[str, Any], answer: Answer) -> None:
    """Keeps an answer.

    Raises:
      OutputError: if the answer could not be written.
    """
    key = key_of(messages, parameters)
    # The model has a column of its own, for readers of the file.
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
  """The hash of a question: of the messages and all parameters, the model's name among them."""
  return made_from.digest([list(messages), dict(parameters)])
