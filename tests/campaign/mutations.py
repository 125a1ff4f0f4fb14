"""Small damages to JSON and to bytes, drawn from a seed: what a hand, a script or a disk does."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

# Values in place of another, of every type and beyond the usual sizes.
STRANGE = (
  None,
  True,
  0,
  -1,
  3.5,
  1e308,
  float('nan'),
  float('inf'),
  10**12,
  10**400,
  '',
  'x',
  '\ud800',
  '../..',
  [],
  [1],
  ['x', None],
  {},
  {'a': 1},
  {'': None},
)
DEEP = '[' * 100_000 + ']' * 100_000


def of_json(text: str, draw: random.Random) -> str:
  """A JSON text with one change: of a value, a name, or of the text itself."""
  value = json.loads(text)
  places = list(_places(value))
  kind = draw.choice(('value', 'value', 'value', 'value', 'lost', 'renamed', 'text', 'type'))
  if kind == 'text' or not places:
    return _of_text(text, draw)
  if kind == 'type':
    return json.dumps(draw.choice(STRANGE))
  path = draw.choice(places)
  changed = copy.deepcopy(value)
  owner = changed
  for step in path[:-1]:
    owner = owner[step]
  key = path[-1]
  if kind == 'value':
    owner[key] = draw.choice(STRANGE)
  elif isinstance(owner, dict) and kind == 'renamed':
    owner[f'{key}_'] = owner.pop(key)
  else:
    del owner[key]
  return json.dumps(changed)


def of_lines(text: str, draw: random.Random) -> str:
  """A jsonl text with one change in one of its lines, or a line lost, doubled or moved."""
  lines = text.splitlines()
  place = draw.randrange(len(lines))
  kind = draw.choice(('line', 'line', 'line', 'lost', 'doubled', 'moved', 'empty'))
  if kind == 'line':
    lines[place] = of_json(lines[place], draw)
  elif kind == 'lost':
    del lines[place]
  elif kind == 'doubled':
    lines.insert(place, lines[place])
  elif kind == 'moved':
    lines.append(lines.pop(place))
  else:
    lines = []
  return ''.join(line + '\n' for line in lines)


def of_bytes(content: bytes, draw: random.Random) -> bytes:
  """Bytes with a bit flipped, a part cut off or a part added."""
  place = draw.randrange(len(content))
  kind = draw.choice(('bit', 'bit', 'cut', 'added', 'empty'))
  if kind == 'bit':
    flipped = content[place] ^ (1 << draw.randrange(8))
    return content[:place] + bytes([flipped]) + content[place + 1 :]
  if kind == 'cut':
    return content[:place]
  if kind == 'added':
    return content[:place] + content[:7] + content[place:]
  return b''


def _of_text(text: str, draw: random.Random) -> str:
  place = draw.randrange(len(text))
  return draw.choice((text[:place], text[:place] + '"' + text[place:], '', DEEP, text + '}'))


def _places(value: Any, path: tuple = ()) -> Iterator[tuple]:
  """The paths of all values inside of a value."""
  items: Any = ()
  if isinstance(value, dict):
    items = value.items()
  elif isinstance(value, list):
    items = enumerate(value)
  for key, inner in items:
    yield (*path, key)
    yield from _places(inner, (*path, key))
