r"""Texts as token ids, piece by piece: no token reaches over the end of a piece.

Control tokens that a user typed are marked before a template renders them, so that they can be told
from the template's own.
"""

import re

# Private-use characters: no text means anything by them, so they can mark what a user typed through
# a template.
_OPEN = '\uf8f0'
_CLOSE = '\uf8f1'


def encode_piece(tokenizer, text: str, start: int, end: int) -> list[int]:
  """Ids of text[start:end] as a continuation of text[:start]: no token reaches over `start`."""
  before = encode_text(tokenizer, text[:start])
  whole = encode_text(tokenizer, text[:end])
  if whole[: len(before)] == before:
    return whole[len(before) :]
  # A token of the whole text reaches over `start`; generation would never produce that token.
  return encode_after(tokenizer, text[start:end])


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
  # The template writes the beginning-of-text token itself, where the model wants one.
  return tokenizer(text, add_special_tokens=False)['input_ids']


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
