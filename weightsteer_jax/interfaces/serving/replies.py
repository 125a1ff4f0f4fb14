"""Replies in the shapes of OpenAI's interfaces.

Source: openai-python 3.57, types `ChatCompletion`, `ChatCompletionChunk`, `Completion`.
`reasoning_content` is the name under which vLLM and others give thoughts.
"""

import dataclasses
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import weightsteer_jax
from weightsteer_jax.inference.requests import Tokens
from weightsteer_jax.inference.tops import Place
from weightsteer_jax.interfaces.serving.bodies import Asked
from weightsteer_jax.interfaces.serving.texts import Piece

Json = dict[str, Any]
# OpenAI's own texts of tokens stand for bytes that are no text alone.
_FINGERPRINT = f'weightsteer_jax-{weightsteer_jax.__version__}'


@dataclasses.dataclass(frozen=True)
class Choice:
  """One finished answer.

  Attributes:
    index: its number in the reply.
    text: the whole text.
    whole: answer and thought.
    tokens: as many as the text has.
    counted: tokens that were generated for it.
    finish: 'stop' or 'length'.
    prompt: tokens of its prompt.
    places: of the prompt's tokens from the second on and of the answer's, or None.
  """

  index: int
  text: str
  whole: Piece
  tokens: Tokens
  counted: int
  finish: str
  prompt: Tokens
  places: Sequence[Place] | None = None


class Replies:
  """The replies to one request."""

  def __init__(self, asked: Asked):
    self._asked = asked
    kind = 'chatcmpl' if asked.is_chat else 'cmpl'
    self._id = f'{kind}-{uuid.uuid4().hex}'
    self._created = int(time.time())

  def whole(self, choices: Sequence[Choice]) -> Json:
    """The reply where nothing is streamed."""
    kind = 'chat.completion' if self._asked.is_chat else 'text_completion'
    told = [self._choice(choice) for choice in choices]
    return self._frame(kind, told) | {'usage': self.usage(choices)}

  def openings(self, prompts: Sequence[Tokens]) -> Iterator[Json]:
    """The first chunk of each answer: in a chat its role, elsewhere its prompt where asked for."""
    for index, prompt in enumerate(prompts):
      if self._asked.is_chat:
        yield self._chunk({'index': index, 'delta': {'role': 'assistant', 'content': ''}})
      elif self._asked.echo:
        yield self.piece(index, Piece(self._prompt_text(prompt)))

  def piece(self, index: int, piece: Piece) -> Json:
    """A chunk with what is new of an answer."""
    if not self._asked.is_chat:
      return self._chunk({'index': index, 'text': piece.answer, 'logprobs': None})
    delta = {}
    if piece.thought:
      delta['reasoning_content'] = piece.thought
    if piece.answer:
      delta['content'] = piece.answer
    return self._chunk({'index': index, 'delta': delta})

  def closing(self, choice: Choice, rest: Piece) -> Json:
    """The last chunk of an answer, with what was not sent of it."""
    if not self._asked.is_chat:
      told = self._choice(choice) | {'text': rest.answer}
      return self._chunk(told)
    chunk = self.piece(choice.index, rest)
    told = {'finish_reason': choice.finish, 'logprobs': self._chat_logprobs(choice)}
    chunk['choices'][0] |= told
    return chunk

  def usage_chunk(self, choices: Sequence[Choice]) -> Json:
    """The chunk behind all others, with the usage alone."""
    chunk = self._chunk({})
    return chunk | {'choices': [], 'usage': self.usage(choices)}

  def usage(self, choices: Sequence[Choice]) -> Json:
    """Tokens of the prompts, each counted once, and of all answers."""
    prompt = sum(map(len, self._asked.prompts))
    completion = sum(choice.counted for choice in choices)
    return {
      'prompt_tokens': prompt,
      'completion_tokens': completion,
      'total_tokens': prompt + completion,
    }

  def _frame(self, kind: str, choices: list[Json]) -> Json:
    return {
      'id': self._id,
      'object': kind,
      'created': self._created,
      'model': self._asked.model,
      'system_fingerprint': _FINGERPRINT,
      'choices': choices,
    }

  def _chunk(self, choice: Json) -> Json:
    kind = 'chat.completion.chunk' if self._asked.is_chat else 'text_completion'
    chunk = self._frame(kind, [{'finish_reason': None, **choice}])
    # Where the usage is asked for, OpenAI has the field in every chunk.
    return chunk | {'usage': None} if self._asked.include_usage else chunk

  def _choice(self, choice: Choice) -> Json:
    told: Json = {'index': choice.index, 'finish_reason': choice.finish}
    if not self._asked.is_chat:
      text = choice.text
      if self._asked.echo:
        text = self._prompt_text(choice.prompt) + text
      return told | {'text': text, 'logprobs': self._completion_logprobs(choice)}
    message: Json = {'role': 'assistant', 'content': choice.whole.answer, 'refusal': None}
    if choice.whole.thought:
      message['reasoning_content'] = choice.whole.thought
    return told | {'message': message, 'logprobs': self._chat_logprobs(choice)}

  def _chat_logprobs(self, choice: Choice) -> Json | None:
    if choice.places is None:
      return None
    content = []
    for token, place in zip(choice.tokens, choice.places[len(choice.prompt) - 1 :]):
      tops = [self._token(top, logprob) for top, logprob in place.tops]
      content.append(self._token(token, place.logprob) | {'top_logprobs': tops})
    return {'content': content, 'refusal': None}

  def _token(self, token: int, logprob: float) -> Json:
    text = self._text(token)
    # The bytes of a token that is a part of a character are not known from its text.
    known = '�' not in text
    return {
      'token': text,
      'logprob': logprob,
      'bytes': list(text.encode()) if known else None,
    }

  def _completion_logprobs(self, choice: Choice) -> Json | None:
    if choice.places is None:
      return None
    start = 0 if self._asked.echo else len(choice.prompt)
    tokens = (*choice.prompt, *choice.tokens)
    told: Json = {'tokens': [], 'token_logprobs': [], 'top_logprobs': [], 'text_offset': []}
    offset = 0
    for i in range(start, len(tokens)):
      text = self._text(tokens[i])
      # Nothing stands before the first token.
      place = choice.places[i - 1] if i else None
      told['tokens'].append(text)
      told['token_logprobs'].append(place.logprob if place else None)
      tops = {self._text(top): logprob for top, logprob in place.tops} if place else None
      told['top_logprobs'].append(tops)
      told['text_offset'].append(offset)
      offset += len(text)
    return told

  def _prompt_text(self, prompt: Tokens) -> str:
    return self._asked.tokenizer.decode(prompt, skip_special_tokens=False)

  def _text(self, token: int) -> str:
    return self._asked.tokenizer.decode([token], skip_special_tokens=False)
