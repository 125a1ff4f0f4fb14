"""A growing answer as text: what can be sent of it now, and whether a stop text has ended it.

Nothing is sent that may still change: no part of a character, no beginning of a stop text, no
beginning of a thought's tag.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from weightsteer_jax.data import thoughts

# What a tokenizer writes for a character whose bytes are not all there.
_BROKEN = '�'
# So many tokens, or some more, are decoded again before new ones: a tokenizer may write the first
# token of a text in another way than one inside it.
_CONTEXT = 8


@dataclasses.dataclass(frozen=True)
class Piece:
  """What is new of an answer.

  Attributes:
    answer: text of the answer.
    thought: text of the thought; always '' where thoughts are not set apart.
  """

  answer: str = ''
  thought: str = ''


class Answer:
  """The text of one answer.

  Args:
    tokenizer: whose text it is.
    prompt: the tokens before the answer.
    stops: texts that end the answer, and are no part of it.
    apart: whether thoughts are set apart from the answer (see data/thoughts.py).
  """

  def __init__(
    self, tokenizer: Any, prompt: Sequence[int], *, stops: Sequence[str] = (), apart: bool = False
  ):
    self._tokenizer = tokenizer
    self._stops = tuple(stops)
    self._tags = thoughts.tags_of(tokenizer) if apart else None
    self._start = thoughts.start_of(tokenizer, prompt) if self._tags else 'outside'
    self._text = ''
    # Tokens whose text is all in `_text`.
    self._read = 0
    # Earlier values of `_read`, from which tokens can be decoded again: from inside a character a
    # tokenizer with byte fallback (Llama 2, Gemma) makes nothing of all bytes that follow.
    self._starts = collections.deque([0])
    self._sent = Piece()
    self.is_over = False

  @property
  def has_stops(self) -> bool:
    """Whether a text may end the answer, so that it must be read as it grows."""
    return bool(self._stops)

  @property
  def text(self) -> str:
    """All of the text so far, tags included, up to a stop text."""
    return self._text

  def feed(self, tokens: Sequence[int], *, last: bool) -> Piece:
    """What can be sent of the answer now.

    Args:
      tokens: all tokens so far.
      last: whether none will follow.
    """
    if not self.is_over:
      self._text += self._new_text(tokens, last)
      self._look_for_stop()
    shown = self._text if last or self.is_over else self._settled()
    whole = self._parted(shown)
    piece = Piece(
      _beyond(self._sent.answer, whole.answer), _beyond(self._sent.thought, whole.thought)
    )
    self._sent = Piece(self._sent.answer + piece.answer, self._sent.thought + piece.thought)
    return piece

  def whole(self) -> Piece:
    """The answer and the thought of the text so far."""
    return self._parted(self._text)

  def _new_text(self, tokens: Sequence[int], last: bool) -> str:
    if len(tokens) <= self._read:
      return ''
    while len(self._starts) > 1 and self._starts[1] <= self._read - _CONTEXT:
      self._starts.popleft()
    context = self._starts[0]
    before = thoughts.text_of(self._tokenizer, list(tokens[context : self._read]))
    now = thoughts.text_of(self._tokenizer, list(tokens[context:]))
    if now.endswith(_BROKEN) and not last:
      return ''
    self._read = len(tokens)
    self._starts.append(self._read)
    return now[len(before) :]

  def _look_for_stop(self) -> None:
    places = [place for place in map(self._text.find, self._stops) if place >= 0]
    if places:
      self._text = self._text[: min(places)]
      self.is_over = True

  def _settled(self) -> str:
    """The text without an end that may be the beginning of a stop text or of a tag."""
    tags = (*self._tags.opening, *self._tags.closing) if self._tags else ()
    held = 0
    for word in (*self._stops, *tags):
      for length in range(min(len(word) - 1, len(self._text)), held, -1):
        if word.startswith(self._text[-length:]):
          held = length
          break
    return self._text[: len(self._text) - held]

  def _parted(self, text: str) -> Piece:
    if self._tags is None:
      return Piece(text)
    parts = thoughts.split(text, self._tags, start=self._start)
    return Piece(parts.answer, parts.thought)


def _beyond(sent: str, whole: str) -> str:
  """What follows what was sent; '' where a later tag has made something else of it."""
  return whole[len(sent) :] if whole.startswith(sent) else ''
