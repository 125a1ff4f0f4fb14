"""What a compiled program sends between devices, read off its HLO, loops counted as often as they
run.
"""

import collections
import dataclasses
import math
import re

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{$')
_COLLECTIVE = re.compile(
  r'= (.+?) '
  r'(all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast)'
  r'(-start)?\('
)
_ARRAY = re.compile(r'([a-z]+)(\d*)\w*\[([\d,]*)\]')
_CALLED = re.compile(
  r'(?:calls|to_apply|branch_computations|true_computation|false_computation)=\{?((?:%?[\w.-]+(?:, '
  r')?)+)\}?'
)
_NOTED_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_COMPARED = re.compile(r'compare\((?:\S+ )?%([\w.-]+), (?:\S+ )?%([\w.-]+)\), direction=LT')


@dataclasses.dataclass(frozen=True)
class Moved:
  """Of one kind of collective: how often it runs, and bytes that a device sends for all of them."""

  count: int
  sent: int


def collectives(text: str) -> dict[str, Moved]:
  """{kind: Moved} of a program's text after compilation.

  A loop's collectives count as often as it runs: its trip count as the compiler notes it, or else
  the constant that its condition compares with; a loop that runs until something happens counts
  once. What the compiler overlaps with computation stands in several places under one channel,
  inner loops included, and counts as the outermost of them.
  """
  computations, entry = _split(text)
  found: dict[str, tuple[int, str, int]] = {}  # {channel: (times, kind, bytes of one)}
  stack = [(entry, 1)]
  while stack:
    name, times = stack.pop()
    for line in computations.get(name, ()):
      if ' while(' in line:
        condition, body = (
          re.search(rf'{part}=%?([\w.-]+)', line)[1] for part in ('condition', 'body')
        )
        stack.append(
          (body, times * _trips(line, computations.get(condition, []), computations.get(body, [])))
        )
      elif match := _COLLECTIVE.search(line):
        channel, operation = (
          re.search(pattern, line) for pattern in (r'channel_id=(\d+)', r'op_name="([^"]*)"')
        )
        # What shard_map sends stands under one channel all together, so a channel alone does not
        # tell two apart.
        key = (
          f'{match[2]} {channel[1]} {operation and operation[1]}' if channel else f'{name} {line}'
        )
        one = times, match[2], _sent(match[2], line, match[1], started=bool(match[3]))
        found[key] = min(found.get(key, one), one)
      else:
        stack += [
          (called.lstrip('%'), times)
          for group in _CALLED.findall(line)
          for called in group.split(', ')
        ]
  moved = collections.defaultdict(lambda: (0, 0))
  for times, kind, size in found.values():
    moved[kind] = moved[kind][0] + times, moved[kind][1] + times * size
  return {kind: Moved(*moved[kind]) for kind in sorted(moved)}


def _split(text: str) -> tuple[dict[str, list[str]], str]:
  """({computation: lines}, name of the first to run)."""
  computations, name, entry = {}, '', ''
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      name = match[2]
      computations[name] = []
      entry = name if match[1] else entry
    elif name:
      computations[name].append(line)
  return computations, entry


def _trips(line: str, condition: list[str], body: list[str]) -> int:
  """How often a loop runs: as noted, or (limit - 0) / step of the counter that its condition
  compares with a constant.
  """
  if noted := _NOTED_TRIPS.search(line):
    return int(noted[1])
  limits, steps = _constants(condition), _constants(body)
  compared = [match for each in condition if (match := _COMPARED.search(each))]
  if len(compared) != 1 or compared[0][2] not in limits:
    return 1
  index = next(
    (
      match[1]
      for each in condition
      if (match := re.search(rf'%{re.escape(compared[0][1])} = .*index=(\d+)', each))
    ),
    '',
  )
  results = next(
    (
      re.findall(r'%([\w.-]+)', each.split(' tuple(')[1])
      for each in body
      if 'ROOT' in each and ' tuple(' in each
    ),
    [],
  )
  if not index or int(index) >= len(results):
    return limits[compared[0][2]]
  added = next(
    (
      match[1]
      for each in body
      if (match := re.search(rf'%{re.escape(results[int(index)])} = .* add\(.*%([\w.-]+)\)', each))
    ),
    '',
  )
  return max(1, limits[compared[0][2]] // steps.get(added, 1))


def _constants(lines: list[str]) -> dict[str, int]:
  found = (re.search(r'%([\w.-]+) = [su]32\[\]\S* constant\((\d+)\)', each) for each in lines)
  return {match[1]: int(match[2]) for match in found if match}


def _sent(kind: str, line: str, result: str, *, started: bool) -> int:
  """Bytes a device sends of a collective among n: (n - 1) / n of the whole, twice that where all
  get a sum.
  """
  sizes = [_size(match) for match in _ARRAY.finditer(re.sub(r'\{[^{}]*\}', '', result))]
  n = _group(line)
  if kind == 'collective-permute':
    return sizes[0]
  if (
    started and kind == 'all-gather'
  ):  # What is started gives back its inputs too, which are the smaller.
    size = max(sizes)
  else:
    size = sum(sizes)
  if kind == 'reduce-scatter':
    return size * (n - 1)
  return size * (n - 1) // n * (2 if kind == 'all-reduce' else 1)


def _size(match: re.Match) -> int:
  bits = int(match[2] or 8)
  return math.prod(int(n) for n in match[3].split(',') if n) * max(bits, 8) // 8


def _group(line: str) -> int:
  """Devices that take part together."""
  if match := re.search(r'replica_groups=\[(\d+),(\d+)\]<=', line):
    return int(match[2])
  if match := re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', line):
    axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
    return math.prod(axes[name] for name in re.findall(r"'(\w+)'", match[2]))
  if match := re.search(r'replica_groups=\{\{([\d,]*)\}', line):
    return len(match[1].split(','))
  return 1
