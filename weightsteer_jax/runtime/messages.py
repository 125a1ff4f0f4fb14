"""Words shared by messages: near names, lists cut short, first lines of errors, sizes."""

import difflib
from collections.abc import Iterable, Sequence


def nearest(name: str, options: Iterable[str], *, cutoff: float = 0.6) -> str | None:
  """The option nearest to a name in spelling, or None.

  Args:
    cutoff: the least likeness of an option to count, 0 to 1 (see difflib's `ratio`).
  """
  # Options may be keys of a user's data, which need not be text.
  near = difflib.get_close_matches(name, [str(option) for option in options], n=1, cutoff=cutoff)
  return near[0] if near else None


def did_you_mean(name: str, options: Iterable[str], *, cutoff: float = 0.6) -> str:
  """The words " (did you mean 'x'?)" for the nearest option, or ''.

  >>> did_you_mean('colour', ['color', 'size'])
  " (did you mean 'color'?)"
  """
  near = nearest(name, options, cutoff=cutoff)
  return '' if near is None else f" (did you mean '{near}'?)"


def listed(names: Sequence[str], limit: int) -> str:
  """The first names, and the number of further names.

  >>> listed(['a', 'b', 'c', 'd'], 2), listed(['a', 'b'], 2)
  ('a, b and 2 more', 'a, b')
  """
  more = f' and {len(names) - limit} more' if len(names) > limit else ''
  return ', '.join(names[:limit]) + more


def first_line(error: BaseException, limit: int | None = None) -> str:
  """The first line of an error's text, or the error's class if the text is empty.

  Args:
    limit: characters of the line to keep, with ' ...' in place of the rest.
  """
  text = str(error).strip()
  if not text:
    return type(error).__name__
  # Libraries put the reason first, and pages of context below.
  line = text.splitlines()[0]
  if limit is not None and len(line) > limit:
    return line[:limit] + ' ...'
  return line


def memory_size(num_bytes: float, digits: int = 1) -> str:
  """Bytes of memory in binary units, as in datasheets of devices.

  >>> memory_size(1.5 * 2**30), memory_size(2**20, digits=2)
  ('1.5 GiB', '1.00 MiB')
  """
  # From half a GiB on: '0.5 GiB' reads better than '512.0 MiB'.
  if num_bytes >= 2**29:
    return f'{num_bytes / 2**30:.{digits}f} GiB'
  return f'{num_bytes / 2**20:.{digits}f} MiB'


def file_size(num_bytes: float, digits: int = 1) -> str:
  """Bytes of files or of a network in decimal units, as in providers' bills.

  >>> file_size(1.5e6), file_size(2e9, digits=3)
  ('1.5 MB', '2.000 GB')
  """
  if num_bytes >= 1e9:
    return f'{num_bytes / 1e9:.{digits}f} GB'
  return f'{num_bytes / 1e6:.{digits}f} MB'
