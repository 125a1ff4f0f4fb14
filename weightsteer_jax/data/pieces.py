r"""Texts as token ids, piece by piece: no token reaches over the end of a piece.

Control tokens that a user typed are marked before a template renders them, so that they can be told
from the template's own.
"""

import re
import weakref
from collections.abc import Sequence
from typing import Any

from weightsteer_jax.runtime import json_text
from weightsteer_jax.runtime.errors import InputError

# {tokenizer: number of tokens}
_SIZES: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
# Private-use characters: no text means anything by them, so they can mark what a user typed through
# a template.
_OPEN = '\uf8f0'
_CLOSE = '\uf8f1'


def encode_pieces(
  tokenizer, texts: Sequence[str], ends: Sequence[Sequence[int]], control: re.Pattern
) -> list[list[list[int]]]:
  """The ids of each text's pieces: up to its first end, then from each end to the next.

  The ids are those of `encode_piece`, found with few calls of the tokenizer.

  Args:
    ends: the ends of each text's pieces, rising; the last is the text's own end.
    control: matches the texts of control tokens.
  """
  ids_of = _beginnings(tokenizer, texts, ends, control)
  encoded = []
  for text, stops in zip(texts, ends):
    starts = [0, *stops[:-1]]
    pieces = []
    for start, end in zip(starts, stops):
      before = ids_of[text[:start]]
      whole = ids_of[text[:end]]
      pieces.append(_continuation(tokenizer, before, whole, text[start:end]))
    encoded.append(pieces)
  return encoded


def _beginnings(
  tokenizer, texts: Sequence[str], ends: Sequence[Sequence[int]], control: re.Pattern
) -> dict[str, list[int]]:
  r"""{beginning of a text: ids} for every end of every text, and for '' too.

  A tokenizer first finds the added tokens in a text, and encodes what lies between two of them
  whatever stands around. So a beginning has the ids of its text as far as the beginning's last
  control token, and then those that its rest has behind that token: 'assistant\n' behind
  '<|im_start|>', the same in every chat.
  """
  ids_of = _encode_all(tokenizer, texts)
  # Tokenizers in Python split texts by rules of their own.
  cuts = getattr(tokenizer, 'is_fast', False)
  # {(control token, what follows): ids of both}
  tails: dict[tuple[str, str], list[int]] = {}
  left = []
  for text, stops in zip(texts, ends):
    for end in stops:
      beginning = text[:end]
      if beginning in ids_of:
        continue
      matches = list(control.finditer(beginning)) if cuts else []
      if not matches:
        left.append(beginning)
        continue
      last = matches[-1][0]
      tail = last, beginning[matches[-1].end() :]
      if tail not in tails:
        tails[tail] = encode_text(tokenizer, last + tail[1])
      before = _up_to(tokenizer, ids_of[text], text, last, beginning.count(last))
      # A control token that is not a single id here stands for nothing.
      if before and tails[tail][:1] == before[-1:]:
        ids_of[beginning] = before + tails[tail][1:]
      else:
        left.append(beginning)
  return ids_of | _encode_all(tokenizer, left) | {'': []}


def _up_to(tokenizer, ids: list[int], text: str, control: str, count: int) -> list[int]:
  """The ids of a text as far as the given number of a control token, or [] if unknown."""
  token = tokenizer.convert_tokens_to_ids(control)
  # With as many ids as there are in the text, the n-th id is the n-th in the text.
  if ids.count(token) != text.count(control):
    return []
  place = -1
  for _ in range(count):
    place = ids.index(token, place + 1)
  return ids[: place + 1]


def _encode_all(tokenizer, texts: Sequence[str]) -> dict[str, list[int]]:
  """{text: ids} of texts that are not empty, in one call of the tokenizer."""
  distinct = list(dict.fromkeys(filter(None, texts)))
  if not distinct:
    return {}
  for text in distinct:
    _refuse_half_pairs(text)
  encoded = tokenizer(
    distinct, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
  )
  return dict(zip(distinct, encoded['input_ids']))


def encode_piece(tokenizer, text: str, start: int, end: int) -> list[int]:
  """Ids of text[start:end] as a continuation of text[:start]: no token reaches over `start`."""
  before = encode_text(tokenizer, text[:start])
  whole = encode_text(tokenizer, text[:end])
  return _continuation(tokenizer, before, whole, text[start:end])


def _continuation(tokenizer, before: list[int], whole: list[int], piece: str) -> list[int]:
  """Ids of a piece, from those of the text before the piece and of the text with the piece."""
  if whole[: len(before)] == before:
    return whole[len(before) :]
  # A token of the whole text reaches into the piece; generation would never produce that token.
  return encode_after(tokenizer, piece)


def encode_pair(tokenizer, prompt: str, completion: str) -> tuple[list[int], list[int], bool]:
  """(ids of a raw prompt, ids of the completion behind it, whether they are those of the whole).

  Blanks at the prompt's end belong to the completion. The completion has what the whole text's
  tokens have beyond as many as the prompt has alone. Where a token of the whole text reaches over
  the prompt's end, the two together are not the whole text's tokens.

  Source: EleutherAI/lm-evaluation-harness 0.4.13, lm_eval/api/model.py, TemplateLM._encode_pair.
  """
  bare = prompt.rstrip()
  before = encode_text(tokenizer, bare)
  whole = encode_text(tokenizer, prompt + completion)
  return before, whole[len(before) :], whole[: len(before)] == before


def encode_after(tokenizer, piece: str) -> list[int]:
  """Ids of a piece from inside a text."""
  # Behind a newline, as sentencepiece puts a blank before a text's first word.
  newline = encode_text(tokenizer, '\n')
  whole = encode_text(tokenizer, '\n' + piece)
  if whole[: len(newline)] == newline:
    return whole[len(newline) :]
  return encode_text(tokenizer, piece)


def encode_text(tokenizer, text: str) -> list[int]:
  """Ids of a text as it stands, without the tokens that a tokenizer adds around texts."""
  if not text:
    return []
  _refuse_half_pairs(text)
  # The template writes the beginning-of-text token itself, where the model wants one.
  return tokenizer(text, add_special_tokens=False)['input_ids']


def _refuse_half_pairs(text: str) -> None:
  """Raises InputError for half a surrogate pair, of which tokenizers say nothing clear."""
  place = json_text.half_pair(text)
  if place >= 0:
    raise InputError(
      f'the text {text[max(place - 20, 0) : place]!r}.. goes on with half a surrogate pair '
      f'({text[place]!r}), which no tokenizer reads: mend it'
    )


def longest_token(tokenizer) -> int:
  """Characters of the longest token."""
  return max(map(len, tokenizer.get_vocab()))


def size_of(tokenizer) -> int:
  """The number of a tokenizer's tokens, which changes when tokens are added."""
  size = _SIZES.get(tokenizer)
  # A known size is tried by the first id beyond it: counting takes 0.3 ms with Gemma 3's 6,415
  # added tokens. Tokenizers in Python raise for such an id, and count fast.
  if size is not None and tokenizer.is_fast and tokenizer.convert_ids_to_tokens(size) is None:
    return size
  size = len(tokenizer)
  _SIZES[tokenizer] = size
  return size


def mark(content: str, control: re.Pattern) -> str:
  """The content, with marks around its control tokens that `encode_marked` understands."""
  if not control.search(content):
    return content
  # Marks that the user typed would pair up with ours.
  plain = content.replace(_OPEN, '').replace(_CLOSE, '')
  return control.sub(lambda match: _OPEN + match[0] + _CLOSE, plain)


def encode_marked(tokenizer, text: str, control: re.Pattern) -> list[int]:
  """Ids of a rendered text in which marked control tokens are plain text."""
  if _OPEN not in text:
    return encode_text(tokenizer, text)
  ids: list[int] = []
  # Text and typed control tokens alternate. A template that splits a message can leave a mark
  # alone: it goes too.
  pieces = re.split(f'{_OPEN}({control.pattern}){_CLOSE}|[{_OPEN}{_CLOSE}]', text)
  for i, piece in enumerate(pieces):
    # A lone mark gives no token between the texts.
    piece = piece or ''
    is_control = i % 2 == 1
    # Cut in two, a control token is not recognised.
    parts = (piece[:1], piece[1:]) if is_control else (piece,)
    for part in filter(None, parts):
      # Only the first piece may have what a tokenizer puts before a text's first word.
      if ids:
        ids += encode_after(tokenizer, part)
      else:
        ids += encode_text(tokenizer, part)
  return ids
