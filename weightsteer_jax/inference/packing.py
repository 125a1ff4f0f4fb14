"""Requests to score, packed into batches of few shapes: questions into rows, rows into batches (see
scoring.py).
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from weightsteer_jax import models
from weightsteer_jax.data.batches import pack, round_up, row_length_for
from weightsteer_jax.inference.arms import Arms, delta_sets
from weightsteer_jax.inference.requests import ScoreRequest, Tokens
from weightsteer_jax.inference.scoring import ScoreBatch
from weightsteer_jax.runtime.errors import InputError

# Indices of the deltas that a batch is computed with.
Active = tuple[int, ...]

ROW = 512  # tokens: shorter questions are all alike
MOST_ROW = 1024  # tokens of a row, unless a question is longer
MAX_SHAPES = 3
TARGETS_MULTIPLE = 32
SAMPLE = 2000  # questions by which a row's length is chosen


@dataclasses.dataclass(frozen=True)
class Question:
  """A prompt under given coefficients, with completions to score; each serves the requests with the
  given keys.
  """

  prompt: Tokens
  coefficients: tuple[float, ...]
  completions: tuple[Tokens, ...]
  keys: tuple[tuple[Any, ...], ...]

  @property
  def tokens(self) -> int:
    """That are computed: all but the last of each completion."""
    return len(self.prompt) + sum(len(completion) - 1 for completion in self.completions)

  @property
  def longest(self) -> int:
    """Positions of its longest text."""
    return len(self.prompt) + max(map(len, self.completions)) - 1


class Served(NamedTuple):
  """Where a completion's targets are in the [U, M] of its batch, and the keys of the requests that
  it answers.
  """

  keys: tuple[Any, ...]
  group: int
  targets: slice


def questions(
  requests: Sequence[ScoreRequest], arms: Arms, config: models.ModelConfig
) -> list[Question]:
  """The requests grouped by prompt and coefficients, each different completion once.

  Texts that a model rotates otherwise because they are long are questions of their own (see
  rope.py, 'longrope').

  Raises:
    InputError: an empty prompt or completion, or more tokens than the model has positions; names
      the request.
  """
  groups: dict[tuple, dict[Tokens, list]] = collections.defaultdict(
    lambda: collections.defaultdict(list)
  )
  for request in requests:
    if not request.prompt or not request.completion:
      which = 'prompt' if not request.prompt else 'completion'
      raise InputError(
        f'{request.cited}: the {which} has no tokens; its log-likelihood is not defined'
      )
    total = len(request.prompt) + len(request.completion) - 1
    if total > config.max_positions:
      raise InputError(
        f'{request.cited}: prompt and completion take {total} positions, the model has '
        f'{config.max_positions}; shorten them'
      )
    found = (
      request.prompt,
      arms.coefficients(request.arm, request.alpha),
      rotates_as_long(config, total),
    )
    groups[found][request.completion].append(request.key)
  return [
    Question(prompt, coefficients, tuple(members), tuple(map(tuple, members.values())))
    for (prompt, coefficients, _), members in groups.items()
  ]


def rotates_as_long(config: models.ModelConfig, positions: int) -> bool:
  """Whether a text of so many positions takes the long factors of 'longrope', if the model has such
  a rope.
  """
  return any(
    rope is not None and rope.kind == 'longrope' and positions > rope.original_max_positions
    for rope in (config.rope, config.local_rope)
  )


def batches(
  asked: Sequence[Question],
  config: models.ModelConfig,
  *,
  batch_size: int,
  compile_tokens: int,
  groups: int = 1,
) -> Iterator[tuple[Active, ScoreBatch, list[Served]]]:
  """Batches of few shapes, each with the deltas it needs, whose coefficients it holds, and whom it
  serves.

  Args:
    batch_size: completions to a batch, on average.
    compile_tokens: how many tokens are computed in the time that a compilation takes.
    groups: see ScoreBatch; the rows of a batch are a multiple of it.
  """
  active = delta_sets(question.coefficients for question in asked)
  alike = collections.defaultdict(list)
  for question in asked:
    pieces = _split(question, max(MOST_ROW, 2 * question.longest))
    alike[active[question.coefficients], rotates_as_long(config, question.longest)].extend(pieces)
  for (deltas, _), members in alike.items():
    members = [
      dataclasses.replace(question, coefficients=tuple(question.coefficients[i] for i in deltas))
      for question in members
    ]
    for some in _classes(members, config, compile_tokens):
      yield from ((deltas, *batch) for batch in _batches_of(some, config, batch_size, groups))


def alike(
  config: models.ModelConfig,
  *,
  prompts: int,
  prompt_tokens: int,
  completions: int,
  completion_tokens: int,
  groups: int = 1,
) -> ScoreBatch:
  """The numpy batch of so many random prompts of one length, with so many completions each, under
  one edit at 1.
  """
  draw = np.random.default_rng(0)

  def tokens(length):
    return tuple(draw.integers(0, config.vocab_size, length).tolist())

  asked = [
    Question(
      tokens(prompt_tokens),
      (1.0,),
      tuple(tokens(completion_tokens) for _ in range(completions)),
      ((),) * completions,
    )
    for _ in range(prompts)
  ]
  [(_, batch, _)] = batches(
    asked, config, batch_size=prompts * completions, compile_tokens=0, groups=groups
  )
  return batch


def _split(question: Question, tokens: int) -> Iterator[Question]:
  """The question in parts of at most so many tokens, each with the whole prompt."""
  start, used = 0, len(question.prompt)
  for stop, completion in enumerate(question.completions):
    if used + len(completion) - 1 > tokens:
      yield dataclasses.replace(
        question, completions=question.completions[start:stop], keys=question.keys[start:stop]
      )
      start, used = stop, len(question.prompt)
    used += len(completion) - 1
  yield dataclasses.replace(
    question, completions=question.completions[start:], keys=question.keys[start:]
  )


def _classes(
  questions: Sequence[Question], config: models.ModelConfig, compile_tokens: int
) -> list[list[Question]]:
  """The questions by length, apart where a program for shorter rows saves more of attention than it
  takes to compile.
  """
  by_size: dict[int, list[Question]] = collections.defaultdict(list)
  for question in questions:
    by_size[max(ROW, 1 << (question.tokens - 1).bit_length())].append(question)
  classes = sorted(by_size.items())

  def added(pair):
    (shorter, members), (longer, _) = pair
    return (
      sum(question.tokens for question in members) * (longer - shorter) * attention_share(config)
    )

  while len(classes) > 1:
    pairs = list(itertools.pairwise(classes))
    at = min(range(len(pairs)), key=lambda i: added(pairs[i]))
    if len(classes) <= MAX_SHAPES and added(pairs[at]) > compile_tokens:
      break
    (_, members), (longer, others) = pairs[at]
    classes[at : at + 2] = [(longer, members + others)]
  return [members for _, members in classes]


def attention_share(config: models.ModelConfig) -> float:
  """What attention adds to a token's computation for each token of its row, as a share of the
  layers' own products; nothing with a kernel that leaves out what is not seen.
  """
  if config.attention == 'blocked':
    return 0.0
  layer = 2 * config.width * (config.num_heads + config.num_kv_heads) * config.head_dim
  layer += 3 * config.width * config.mlp_width * max(1, config.experts_per_token)
  return 2 * config.num_heads * config.head_dim / layer


@dataclasses.dataclass(frozen=True)
class Plan:
  """How many batches there are of so many rows of so many tokens."""

  batches: int
  rows: int
  length: int


def plan(
  sizes: Sequence[int], length: int, at_once: float, groups: int
) -> tuple[Plan, list[list[int]]]:
  """Batches of about so many questions, of these sizes, in rows of that length; and which questions
  share a row.
  """
  rows = pack(sizes, length)
  count = math.ceil(len(rows) / round_up(math.ceil(at_once * len(rows) / len(sizes)), groups))
  return Plan(count, round_up(math.ceil(len(rows) / count), groups), length), rows


def _row_length(
  sizes: Sequence[int], config: models.ModelConfig, at_once: float, groups: int
) -> int:
  """The length with the least to compute, padding and attention included."""
  shortest = row_length_for(max(sizes))
  sample = sizes[:: -(-len(sizes) // SAMPLE)]

  def cost(length):
    found, _ = plan(sample, length, at_once, groups)
    return found.batches * found.rows * length * (1 + length * attention_share(config)), length

  most = min(MOST_ROW, at_once * sum(sizes) / len(sizes))  # No longer than a batch is large.
  lengths = itertools.accumulate(
    itertools.repeat(shortest), lambda length, _: row_length_for(length + 1)
  )
  return min({shortest, *itertools.takewhile(lambda length: length <= most, lengths)}, key=cost)


def _batches_of(
  questions: Sequence[Question], config: models.ModelConfig, batch_size: int, groups: int
) -> Iterator[tuple[ScoreBatch, list[Served]]]:
  sizes = [question.tokens for question in questions]
  at_once = batch_size * len(questions) / sum(len(question.completions) for question in questions)
  planned, rows = plan(sizes, _row_length(sizes, config, at_once, groups), at_once, groups)
  # Rows come in the order of their longest questions: dealt out in turns, batches are alike.
  dealt = [
    [rows[number :: planned.batches][group::groups] for group in range(groups)]
    for number in range(planned.batches)
  ]
  targets = [
    sum(
      len(completion)
      for row in group
      for index in row
      for completion in questions[index].completions
    )
    for batch in dealt
    for group in batch
  ]
  width = round_up(max(targets), TARGETS_MULTIPLE)
  reach = max(question.longest for question in questions)
  for batch in dealt:
    held = [[[questions[index] for index in row] for row in group] for group in batch]
    yield fill(held, planned.rows // groups, planned.length, width, reach)


def fill(
  held: Sequence[Sequence[Sequence[Question]]], rows: int, length: int, width: int, reach: int
) -> tuple[ScoreBatch, list[Served]]:
  """The numpy batch of questions, by group and row of the group: so many rows and targets of each
  group, padding included.
  """
  shape, edits = (
    (len(held) * rows, length),
    len(next(question for group in held for row in group for question in row).coefficients),
  )
  tokens, positions, questions, branches = (np.zeros(shape, np.int32) for _ in range(4))
  answers, coefficients = np.zeros(shape, bool), np.zeros((*shape, edits), np.float32)
  places, targets = (np.zeros((len(held), width), np.int32) for _ in range(2))
  served = []
  for u, group in enumerate(held):
    m = 0
    for r, row in enumerate(group):
      at, end = u * rows + r, 0
      for number, question in enumerate(row, 1):
        start, end = end, end + len(question.prompt)
        tokens[at, start:end], positions[at, start:end] = question.prompt, np.arange(end - start)
        begun, last = end, r * length + end - 1
        for branch, (completion, keys) in enumerate(zip(question.completions, question.keys), 1):
          start_of, end = end, end + len(completion) - 1
          tokens[at, start_of:end], branches[at, start_of:end] = completion[:-1], branch
          positions[at, start_of:end] = len(question.prompt) + np.arange(end - start_of)
          stop = m + len(completion)
          places[u, m:stop] = last, *range(r * length + start_of, r * length + end)
          targets[u, m:stop] = completion
          served.append(Served(keys, u, slice(m, stop)))
          m = stop
        questions[at, start:end], answers[at, begun - 1 : end], coefficients[at, start:end] = (
          number,
          True,
          question.coefficients,
        )
  return ScoreBatch(
    tokens, positions, questions, branches, answers, coefficients, places, targets, reach
  ), served
