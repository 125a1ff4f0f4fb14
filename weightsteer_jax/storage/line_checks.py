"""Checks in the lines of a journal: a line that was changed, lost or doubled is noticed.

The last key of a line, `check`, has 16 hex digits: a digest of the bytes before the key, and a
running digest of all lines up to this one. Files of earlier versions have no checks; lines added to
such a file later have checks, which hold the lines before them too.
"""

import hashlib
from collections.abc import Callable, Hashable
from typing import Any

from weightsteer_jax.runtime import progress
from weightsteer_jax.runtime.errors import CorruptError

KEY = 'check'
# Hex digits of each of the two digests. A chance of 2^-32 that damage goes unnoticed.
DIGITS = 8
# The end of a line around its check. Bytes, not values: a digest of bytes takes a tenth of the time
# of reading JSON, a digest of values more than that time.
_BEFORE = f', "{KEY}": "'.encode()
_AFTER = b'"}\n'
_END = len(_BEFORE) + 2 * DIGITS + len(_AFTER)

Line = dict[str, Any]


def _short(content: bytes) -> bytes:
  return hashlib.blake2b(content, digest_size=DIGITS // 2).hexdigest().encode()


def strip(text: bytes) -> bytes:
  """The bytes that a line's digest is of: without its end, and without its check."""
  if text[-_END:].startswith(_BEFORE):
    return text[:-_END]
  return text.removesuffix(b'\n').removesuffix(b'}')


class Chain:
  """The lines of a file so far, in order; says what is wrong with the next line.

  Args:
    again: the program that makes the lines, in an error's words.
    key: line -> key, where a line that comes twice is left out; None where a later line replaces an
      earlier line of its key.
    mends: whether lost, doubled or moved lines are counted in `gaps`, and are no error.

  Attributes:
    gaps: places where lines were lost, doubled or moved.
    unchecked: lines without a check.
  """

  def __init__(
    self, again: str, *, key: Callable[[Line], Hashable] | None = None, mends: bool = False
  ):
    self.gaps = 0
    self.unchecked = 0
    self._again = again
    self._key = key
    self._mends = mends
    self._running = b''
    self._has_checks = False
    # {hash of a key's words: digest}, as numbers: names of a million rows would fill the memory.
    self._digests: dict[int, int] = {}

  def checked(self, head: bytes) -> bytes:
    """A line to be written next.

    Args:
      head: a JSON object without its last bracket.
    """
    own = _short(head)
    return head + _BEFORE + own + _short(self._running + own) + _AFTER

  def advance(self, text: bytes) -> None:
    """Says that a line of `checked` was written."""
    self._running = text[-DIGITS - len(_AFTER) : -len(_AFTER)]
    self._has_checks = True

  def take(self, text: bytes, line: Line, where: str) -> bool:
    """Whether a line counts; takes the check out of the line.

    Args:
      text: the line in the file.
      line: the same, as JSON.
      where: the line in an error's words.

    Raises:
      CorruptError: if the line was changed, or has a key of a line before it and other content; if
        lines before it are missing, unless they are mended.
    """
    remedy = f'remove that line and run {self._again} again'
    head = strip(text)
    own = _short(head)
    check = line.pop(KEY, None)
    if check is None and self._has_checks:
      raise CorruptError(
        f"{where} has no '{KEY}', as the lines before it have: it was changed after it was "
        f'written; {remedy}'
      )
    said = text[len(head) + len(_BEFORE) : -len(_AFTER)]
    if check is not None and said[:DIGITS] != own:
      raise CorruptError(
        f'{where} was changed after it was written: its content does not fit its check; {remedy}'
      )
    if self._is_double(line, own, where):
      return False
    self._running = _short(self._running + own)
    if check is None:
      self.unchecked += 1
      return True
    self._has_checks = True
    if said[DIGITS:] != self._running:
      self._notice_gap(where)
      # The lines that follow are held to this one.
      self._running = said[DIGITS:]
    return True

  def tell(self, path: Any) -> None:
    """Says once that lines have no check."""
    if self.unchecked:
      progress.say_once(
        f'{path}: {self.unchecked} lines of an earlier version have no check, and are taken as '
        'they are'
      )

  def _is_double(self, line: Line, own: bytes, where: str) -> bool:
    if self._key is None:
      return False
    key = self._key(line)
    # Of the words, since -1.0 and -2.0 have one hash.
    name = hash(repr(key))
    known = self._digests.get(name)
    if known is None:
      self._digests[name] = int(own, 16)
      return False
    if known == int(own, 16):
      return True
    # A named tuple is shown as a plain one.
    shown = tuple(key) if isinstance(key, tuple) else key
    raise CorruptError(
      f'{where}: {shown} is there twice, with unlike content: two runs wrote to the file at once; '
      'move it away and start again'
    )

  def _notice_gap(self, where: str) -> None:
    self.gaps += 1
    if not self._mends:
      raise CorruptError(
        f'{where} does not follow the line before it: lines were removed, doubled or moved there; '
        f'run {self._again} again, which makes what is missing'
      )
