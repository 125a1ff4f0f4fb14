"""Questions, and what several of them begin with: computed once for a row, not once a question.

A shared beginning is the trunk of a tree, and what each question has beyond is a branch of its own,
as completions are. So rows need no cache, and every attention kernel takes them.
"""

import bisect
import collections
import dataclasses
import itertools
import math
from collections.abc import Hashable, Iterator, Sequence

from weightsteer_jax.inference.requests import Tokens

# The part of a question's tokens that sharing must save: less is not worth the longer rows.
SAVING = 0.25


@dataclasses.dataclass(frozen=True)
class Question:
  """A prompt under given coefficients, with completions to score; or several with one beginning.

  Attributes:
    prompt: what all completions are behind.
    coefficients: one per delta.
    completions: all different, unless their rests are.
    keys: for each completion, the keys of the requests for it.
    rests: for each completion, what its prompt has beyond `prompt`; all empty, or none is.
  """

  prompt: Tokens
  coefficients: tuple[float, ...]
  completions: tuple[Tokens, ...]
  keys: tuple[tuple[Hashable, ...], ...]
  rests: tuple[Tokens, ...]

  @property
  def paths(self) -> list[tuple[Tokens, Tokens]]:
    """For each completion what it is fed behind `prompt`: (rest, completion but its last token).

    Completions with equal paths, as letters have, are computed as one.
    """
    # A completion's last token is only predicted, never fed.
    return [(rest, completion[:-1]) for rest, completion in zip(self.rests, self.completions)]

  @property
  def tokens(self) -> int:
    """Tokens fed to the model: the prompt, and every different path once."""
    return len(self.prompt) + _fed(self.paths)

  @property
  def longest(self) -> int:
    """Positions of the longest text."""
    return len(self.prompt) + max(map(_length, self.paths))

  def part(self, start: int, stop: int | None) -> 'Question':
    """The question with some of its completions."""
    return dataclasses.replace(
      self,
      completions=self.completions[start:stop],
      keys=self.keys[start:stop],
      rests=self.rests[start:stop],
    )


def shared(asked: Sequence[Question]) -> list[Question]:
  """The questions, those with a long common beginning as one; coefficients are kept apart.

  Sorted by their tokens, the questions below each node of a trie are neighbours. A question joins
  the one before where that saves tokens, also at the price of a shorter trunk.
  """
  by_coefficients: dict[tuple[float, ...], list[int]] = collections.defaultdict(list)
  for index, question in enumerate(asked):
    by_coefficients[question.coefficients].append(index)
  families: list[list[int]] = []
  trunks = []
  for indices in by_coefficients.values():
    ordered = sorted(indices, key=lambda index: asked[index].prompt)
    for members, trunk in _families(asked, ordered):
      families.append(sorted(members))
      trunks.append(trunk)
  # In the order of the first of each, whatever their tokens.
  order = sorted(range(len(families)), key=families.__getitem__)
  return [_joined([asked[index] for index in families[i]], trunks[i]) for i in order]


def split(question: Question, tokens: int) -> Iterator[Question]:
  """The question in even parts of at most so many tokens, each with the whole prompt."""
  room = tokens - len(question.prompt)
  fed = _fed(question.paths)
  # Parts alike are of one shape.
  enough = fed / math.ceil(fed / room) if fed else 0
  start = 0
  used = 0
  held: set[tuple[Tokens, Tokens]] = set()
  for stop, path in enumerate(question.paths):
    more = _length(path)
    # Nothing more to feed goes with what is there.
    if path in held or not more:
      continue
    # `tokens` hold the prompt and any path: the first of a part always has room.
    if held and (used >= enough or used + more > room):
      yield question.part(start, stop)
      start = stop
      used = 0
      held = set()
    held.add(path)
    used += more
  yield question.part(start, None)


def _families(asked: Sequence[Question], ordered: Sequence[int]) -> Iterator[tuple[list[int], int]]:
  """(indices of questions that share a trunk, its length in tokens), of neighbours in order."""
  members = [ordered[0]]
  trunk = len(asked[ordered[0]].prompt)
  total = asked[ordered[0]].tokens
  # Paths of the members, by which a shorter trunk makes them longer.
  paths = _branches(asked[ordered[0]])
  for before, index in itertools.pairwise(ordered):
    question = asked[index]
    common = _common(asked[before].prompt, question.prompt)
    # The last token of a prompt predicts, and so belongs to the branch.
    shortest = min(len(asked[before].prompt), len(question.prompt))
    common = min(common, trunk, shortest - 1)
    branches = _branches(question)
    own = branches * (len(question.prompt) - common) + question.tokens - len(question.prompt)
    # What the trunk loses, each path has to hold.
    joined = total + (paths - 1) * (trunk - common) + own
    if common > 0 and joined <= total + (1 - SAVING) * question.tokens:
      members.append(index)
      total = joined
      paths += branches
      trunk = common
      continue
    yield members, trunk
    members, trunk, total, paths = [index], len(question.prompt), question.tokens, branches
  yield members, trunk


def _joined(members: Sequence[Question], trunk: int) -> Question:
  if len(members) == 1:
    return members[0]
  completions: list[Tokens] = []
  keys: list[tuple[Hashable, ...]] = []
  rests: list[Tokens] = []
  for question in members:
    completions += question.completions
    keys += question.keys
    rests += [question.prompt[trunk:]] * len(question.completions)
  first = members[0]
  return Question(
    first.prompt[:trunk], first.coefficients, tuple(completions), tuple(keys), tuple(rests)
  )


def _branches(question: Question) -> int:
  return len(set(question.paths))


def _common(a: Tokens, b: Tokens) -> int:
  """Tokens that both begin with.

  >>> _common((1, 2, 3), (1, 2, 4, 5)), _common((1,), (1, 2)), _common((1,), (2,))
  (2, 1, 0)
  """
  # Slices are compared in C: a search by halves is faster than a walk in Python.
  lengths = range(1, min(len(a), len(b)) + 1)
  return bisect.bisect_left(lengths, True, key=lambda length: a[:length] != b[:length])


def _fed(paths: Sequence[tuple[Tokens, Tokens]]) -> int:
  return sum(map(_length, set(paths)))


def _length(path: tuple[Tokens, Tokens]) -> int:
  rest, fed = path
  return len(rest) + len(fed)
