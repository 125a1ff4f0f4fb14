"""Bytes sent between devices by a compiled program, read off the program's HLO.

Each loop counts as often as the loop runs.
"""

import collections
import dataclasses
import math
import re

# A computation begins with 'name (parameters) -> result {'.
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{$')
_KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
)
# '= result kind(' or, of a collective that runs beside others, '= result kind-start('.
_COLLECTIVE = re.compile(rf'= (.+?) ({"|".join(_KINDS)})(-start)?\(')
# An array's type, as in 'bf16[3,5]'.
_ARRAY = re.compile(r'([a-z]+)(\d*)\w*\[([\d,]*)\]')
# Computations that an operation runs, one or several in braces.
_CALLERS = 'calls|to_apply|branch_computations|true_computation|false_computation'
_CALLED = re.compile(rf'(?:{_CALLERS})=\{{?((?:%?[\w.-]+(?:, )?)+)\}}?')
_NOTED_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_COMPARED = re.compile(r'compare\((?:\S+ )?%([\w.-]+), (?:\S+ )?%([\w.-]+)\), direction=LT')


@dataclasses.dataclass(frozen=True)
class Moved:
  """The collectives of one kind.

  Attributes:
    count: how often such a collective runs.
    sent: bytes that a device sends for all together.
  """

  count: int
  sent: int


def collectives(text: str) -> dict[str, Moved]:
  """{kind: Moved} of a program's text after compilation.

  A loop's collectives count as often as the loop runs: the trip count noted by the compiler, or
  else the constant that the condition compares with; a loop that runs until something happens
  counts once. A collective that the compiler overlaps with computation stands in several places
  under one channel, inner loops included, and counts as the outermost place.
  """
  computations, entry = _split(text)
  # {channel: (times, kind, bytes of one)}.
  found: dict[str, tuple[int, str, int]] = {}
  # Computations to read, and how often each runs.
  stack = [(entry, 1)]
  while stack:
    name, times = stack.pop()
    for line in computations.get(name, ()):
      if ' while(' in line:
        condition = _field(r'condition=%?([\w.-]+)', line)
        body = _field(r'body=%?([\w.-]+)', line)
        condition_lines = computations.get(condition, [])
        body_lines = computations.get(body, [])
        trips = _trips(line, condition_lines, body_lines)
        stack.append((body, times * trips))
      elif match := _COLLECTIVE.search(line):
        result, kind, start = match.groups()
        channel = _field(r'channel_id=(\d+)', line)
        # Whatever one shard_map sends stands under one channel, so a channel alone does not tell
        # two collectives apart.
        operation = _field(r'op_name="([^"]*)"', line)
        key = f'{kind} {channel} {operation}' if channel else f'{name} {line}'
        size = _sent(kind, line, result, started=bool(start))
        sent_here = (times, kind, size)
        # Of several places under one channel the outermost runs the fewest times.
        found[key] = min(found.get(key, sent_here), sent_here)
      else:
        # Fusions and branches run as often as the line that calls.
        for group in _CALLED.findall(line):
          for called in group.split(', '):
            stack.append((called.lstrip('%'), times))
  counts: dict[str, int] = collections.Counter()
  sent: dict[str, int] = collections.Counter()
  for times, kind, size in found.values():
    counts[kind] += times
    sent[kind] += times * size
  return {kind: Moved(counts[kind], sent[kind]) for kind in sorted(counts)}


def _field(pattern: str, line: str) -> str:
  """The first group of a pattern in a line; '' where the pattern is not found."""
  match = re.search(pattern, line)
  return match[1] if match else ''


def _split(text: str) -> tuple[dict[str, list[str]], str]:
  """({computation: lines}, name of the first computation to run)."""
  computations: dict[str, list[str]] = {}
  name = ''
  entry = ''
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      name = match[2]
      computations[name] = []
      if match[1]:
        entry = name
    elif name:
      computations[name].append(line)
  return computations, entry


def _trips(line: str, condition: list[str], body: list[str]) -> int:
  """How often a loop runs: the noted count, or limit / step of a counter that begins at 0."""
  if noted := _NOTED_TRIPS.search(line):
    return int(noted[1])
  # The condition compares one counter with a constant.
  limits = _constants(condition)
  compared = []
  for each in condition:
    if match := _COMPARED.search(each):
      compared.append(match.groups())
  # A loop until something happens counts once.
  if len(compared) != 1 or compared[0][1] not in limits:
    return 1
  counter, limit = compared[0]
  # The counter's place among the values that the loop carries.
  index = _first(rf'%{re.escape(counter)} = .*index=(\d+)', condition)
  results: list[str] = []
  for each in body:
    if 'ROOT' in each and ' tuple(' in each:
      values = each.split(' tuple(')[1]
      results = re.findall(r'%([\w.-]+)', values)
      break
  if not index or int(index) >= len(results):
    return limits[limit]
  # The constant that the body adds at that place.
  next_counter = re.escape(results[int(index)])
  added = _first(rf'%{next_counter} = .* add\(.*%([\w.-]+)\)', body)
  step = _constants(body).get(added, 1)
  return max(1, limits[limit] // step)


def _first(pattern: str, lines: list[str]) -> str:
  """The first group of a pattern in the first line with the pattern, or ''."""
  for line in lines:
    if match := re.search(pattern, line):
      return match[1]
  return ''


def _constants(lines: list[str]) -> dict[str, int]:
  """{name: value} of the integers among a computation's constants."""
  constants = {}
  for line in lines:
    if match := re.search(r'%([\w.-]+) = [su]32\[\]\S* constant\((\d+)\)', line):
      constants[match[1]] = int(match[2])
  return constants


def _sent(kind: str, line: str, result: str, *, started: bool) -> int:
  """Bytes sent by a device for one collective.

  Of n devices each sends (n - 1) / n of the whole, twice as much where all get a sum.

  Args:
    result: types of the results, as HLO has them.
    started: whether the collective runs beside others.
  """
  sizes = []
  # Without the layouts in braces.
  types = re.sub(r'\{[^{}]*\}', '', result)
  for match in _ARRAY.finditer(types):
    _, width, shape = match.groups()
    entries = math.prod(int(size) for size in shape.split(',') if size)
    # 'pred' has no bits in its name and takes a byte.
    bits = max(int(width or 8), 8)
    sizes.append(entries * bits // 8)
  if kind == 'collective-permute':
    return sizes[0]
  # A started collective gives back the inputs too, which are the smaller.
  size = max(sizes) if started and kind == 'all-gather' else sum(sizes)
  n = _group(line)
  # The result is a device's share of the whole already.
  if kind == 'reduce-scatter':
    return size * (n - 1)
  sent = size * (n - 1) // n
  # A sum for all is a reduce-scatter and an all-gather.
  return 2 * sent if kind == 'all-reduce' else sent


def _group(line: str) -> int:
  """Number of devices that take part together."""
  # The three ways in which XLA writes groups.
  if match := re.search(r'replica_groups=\[(\d+),(\d+)\]<=', line):
    return int(match[2])
  if match := re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', line):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
    names = re.findall(r"'(\w+)'", match[2])
    return math.prod(int(sizes[name]) for name in names)
  if match := re.search(r'replica_groups=\{\{([\d,]*)\}', line):
    return len(match[1].split(','))
  return 1
