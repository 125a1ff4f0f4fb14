"""SHA-256 in hex digits: of text, of bytes in pieces, and of files."""

import hashlib
import pathlib
from collections.abc import Iterable

# Hex digits of a whole SHA-256.
DIGITS = 64
# Hex digits that name a model, a set of weights or a data set: among 10^6 such names the chance
# that any two share their 64 bits is below 10^-7.
SHORT = 16


def of_text(text: str, digits: int = DIGITS) -> str:
  """The first hex digits of the SHA-256 of a text in UTF-8.

  >>> of_text('abc', digits=8)
  'ba7816bf'
  """
  return hashlib.sha256(text.encode()).hexdigest()[:digits]


def of_chunks(chunks: Iterable[bytes]) -> str:
  """The SHA-256 of bytes in pieces."""
  sha = hashlib.sha256()
  for chunk in chunks:
    sha.update(chunk)
  return sha.hexdigest()


def of_file(path: pathlib.Path) -> str:
  """The SHA-256 of a file, read in pieces."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
