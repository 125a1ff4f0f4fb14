"""Requests to score, packed into batches of few shapes: questions into rows, rows into batches.

What the arrays of a batch mean stands in scoring.py. Axes as in models/decoder.py.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from weightsteer_jax import models
from weightsteer_jax.data.batches import pack, round_up, row_length_for
from weightsteer_jax.inference.arms import Arms, delta_sets
from weightsteer_jax.inference.prefixes import Question, shared, split
from weightsteer_jax.inference.requests import ScoreRequest, Tokens, check_ids
from weightsteer_jax.inference.scoring import ScoreBatch
from weightsteer_jax.runtime.errors import InputError

# Indices of the deltas that a batch is computed with.
Active = tuple[int, ...]
# Questions of a batch, by group and by row of the group.
Grouped = Sequence[Sequence[Sequence[Question]]]

# Questions of up to this many tokens are all alike: attention is then a small part of the work.
ROW = 512
# Tokens of a row, unless a question is longer: attention costs more with each token of the row.
MOST_ROW = 1024
# Tokens of a row of questions that share a beginning, for kernels that hold no scores in memory:
# 'blocked' leaves out what no query sees, splash computes it.
MOST_SHARED = {'blocked': 8192, 'splash': 4096}
# Classes of questions by length, each with programs of its own.
MAX_SHAPES = 3
# What the number of a group's targets is rounded up to, for fewer different shapes.
TARGETS_MULTIPLE = 32
# Questions by which a row's length is chosen: each candidate length packs all of these questions.
SAMPLE = 2000


class Served(NamedTuple):
  """The place of a completion's targets in the [U, M] of a batch, and the requests for it.

  Attributes:
    keys: keys of the requests.
    group: the index along U.
    targets: the places along M.
  """

  keys: tuple[Hashable, ...]
  group: int
  targets: slice


def questions(
  requests: Sequence[ScoreRequest], arms: Arms, config: models.ModelConfig
) -> list[Question]:
  """The requests grouped by prompt and coefficients, each different completion once.

  Raises:
    InputError: if a prompt or a completion is empty or holds a token beyond the vocabulary, or if a
      request takes more positions than the model has; names the request.
  """
  groups: dict[tuple, dict[Tokens, list]] = collections.defaultdict(
    lambda: collections.defaultdict(list)
  )
  for request in requests:
    _check(request, config)
    coefficients = arms.coefficients(request.arm, request.alpha)
    total = len(request.prompt) + len(request.completion) - 1
    # Long texts are questions of their own where the model rotates them otherwise.
    is_long = rotates_as_long(config, total)
    keys_of = groups[request.prompt, coefficients, is_long]
    keys_of[request.completion].append(request.key)
  grouped = []
  # Dicts keep the order of the requests, and with it the batches.
  for (prompt, coefficients, _), keys_of in groups.items():
    completions = tuple(keys_of)
    keys = tuple(map(tuple, keys_of.values()))
    no_rests = ((),) * len(completions)
    grouped.append(Question(prompt, coefficients, completions, keys, no_rests))
  return grouped


def rotates_as_long(config: models.ModelConfig, positions: int) -> bool:
  """Whether a text of so many positions takes the long factors of a 'longrope' (see rope.py)."""
  for rope in (config.rope, config.local_rope):
    # A model may have no rotation, or none of its own in the layers with local attention.
    if rope is None or rope.kind != 'longrope':
      continue
    if positions > rope.original_max_positions:
      return True
  return False


def batches(
  asked: Sequence[Question],
  config: models.ModelConfig,
  *,
  batch_size: int,
  compile_tokens: int,
  groups: int = 1,
) -> Iterator[tuple[Active, ScoreBatch, list[Served]]]:
  """(deltas, batch, completions of the batch), in few shapes.

  A batch has a coefficient for each of its deltas and for no other.

  Args:
    batch_size: completions to a batch, on average.
    compile_tokens: tokens computed in the time of one compilation.
    groups: see ScoreBatch; the rows of a batch are a multiple of it.
  """
  deltas_of = delta_sets(question.coefficients for question in asked)
  by_program: dict[tuple[Active, bool], list[Question]] = collections.defaultdict(list)
  for question in asked:
    deltas = deltas_of[question.coefficients]
    coefficients = tuple(question.coefficients[i] for i in deltas)
    question = dataclasses.replace(question, coefficients=coefficients)
    # The longest text of a batch decides on the factors of the whole batch.
    is_long = rotates_as_long(config, question.longest)
    by_program[deltas, is_long].append(question)
  for (deltas, _), alone in by_program.items():
    members = _in_rows(alone, config, batch_size)
    for of_one_length in _classes(members, config, compile_tokens):
      for batch, served in _batches_of(of_one_length, config, batch_size, groups):
        yield deltas, batch, served


def random_batch(
  config: models.ModelConfig,
  *,
  prompts: int,
  prompt_tokens: int,
  completions: int,
  completion_tokens: int,
  groups: int = 1,
) -> ScoreBatch:
  """A numpy batch of random prompts and completions of fixed lengths, under one edit at alpha 1.

  For measuring and compiling the scoring program.

  Args:
    prompts: number of prompts.
    completions: number of completions of each prompt.
    groups: see ScoreBatch.
  """
  draw = np.random.default_rng(0)

  def tokens(length):
    ids = draw.integers(0, config.vocab_size, length)
    return tuple(ids.tolist())

  # Nobody waits for the scores.
  no_keys = ((),) * completions
  asked = []
  for _ in range(prompts):
    prompt = tokens(prompt_tokens)
    answers = tuple(tokens(completion_tokens) for _ in range(completions))
    asked.append(Question(prompt, (1.0,), answers, no_keys, no_keys))
  # One batch holds all: the unpacking fails if there are two.
  [(_, batch, _)] = batches(
    asked, config, batch_size=prompts * completions, compile_tokens=0, groups=groups
  )
  return batch


def attention_share(config: models.ModelConfig) -> float:
  """Attention's part of a token's computation, for each token of the row.

  The unit is the products of the layers' kernels.
  """
  # The blocked kernel leaves out the keys that no query sees.
  if config.attention == 'blocked':
    return 0.0
  # Queries and outputs have N heads, keys and values K; the MLP has three kernels, once for each
  # expert that a token goes to.
  heads = 2 * (config.num_heads + config.num_kv_heads)
  experts = max(1, config.experts_per_token)
  layer = heads * config.width * config.head_dim
  layer += 3 * experts * config.width * config.mlp_width
  # Each key of the row costs a product with the query, and a product of its weight and value.
  attention = 2 * config.num_heads * config.head_dim
  return attention / layer


@dataclasses.dataclass(frozen=True)
class Plan:
  """How many batches there are of so many rows of so many tokens."""

  batches: int
  rows: int
  length: int


def plan(
  sizes: Sequence[int], length: int, at_once: float, groups: int
) -> tuple[Plan, list[list[int]]]:
  """(batches of about `at_once` questions, the indices of the questions of each row).

  Args:
    sizes: tokens of each question.
    length: tokens of a row.
    groups: what the rows of a batch are a multiple of.
  """
  rows = pack(sizes, length)
  # First the number of batches, then the rows of each: the last batch is as full as others.
  wanted_rows = math.ceil(at_once * len(rows) / len(sizes))
  wanted_rows = round_up(wanted_rows, groups)
  count = math.ceil(len(rows) / wanted_rows)
  rows_of_each = math.ceil(len(rows) / count)
  rows_of_each = round_up(rows_of_each, groups)
  return Plan(count, rows_of_each, length), rows


def fill(
  held: Grouped, rows: int, length: int, width: int, reach: int
) -> tuple[ScoreBatch, list[Served]]:
  """(the numpy batch of questions, its completions).

  Args:
    held: the questions, by group and row of the group.
    rows: rows of a group, padding included.
    length: tokens of a row, padding included.
    width: targets of a group, padding included.
    reach: positions of the longest text.
  """
  # All questions of a batch have the same deltas. A group may be empty, the first one never is.
  edits = len(held[0][0][0].coefficients)
  # Zeros are padding: question 0 is none.
  shape = (len(held) * rows, length)
  batch = ScoreBatch(
    tokens_BT=np.zeros(shape, np.int32),
    positions_BT=np.zeros(shape, np.int32),
    questions_BT=np.zeros(shape, np.int32),
    branches_BT=np.zeros(shape, np.int32),
    answers_BT=np.zeros(shape, bool),
    coefficients_BTC=np.zeros((*shape, edits), np.float32),
    places_UM=np.zeros((len(held), width), np.int32),
    targets_UM=np.zeros((len(held), width), np.int32),
    reach=reach,
  )
  served = []
  for u, group in enumerate(held):
    # The next free place for a target of the group.
    m = 0
    for r, row in enumerate(group):
      # The next free token of the row.
      t = 0
      for number, question in enumerate(row, 1):
        b = u * rows + r
        places = _fill_question(batch, question, number, b, t)
        for keys, completion, places_m in zip(question.keys, question.completions, places):
          stop = m + len(completion)
          # Places are counted over the rows of the group.
          batch.places_UM[u, m:stop] = r * length + places_m
          batch.targets_UM[u, m:stop] = completion
          served.append(Served(keys, u, slice(m, stop)))
          m = stop
        t += question.tokens
  return batch, served


def _fill_question(
  batch: ScoreBatch, question: Question, number: int, b: int, start: int
) -> list[np.ndarray]:
  """Writes a question into row b; returns the predicting tokens of each completion.

  Args:
    number: the question's number in its row, from 1.
    start: the question's first token in the row.
  """
  prompt = len(question.prompt)
  trunk = start + prompt
  end = start + question.tokens
  # The trunk, branch 0, and all that it and the completions have in common.
  batch.tokens_BT[b, start:trunk] = question.prompt
  batch.positions_BT[b, start:trunk] = np.arange(prompt)
  batch.questions_BT[b, start:end] = number
  batch.coefficients_BTC[b, start:end] = question.coefficients
  # The paths, one behind the other; the positions of each go on from the trunk.
  places: dict[tuple[Tokens, Tokens], list[int]] = {}
  t = trunk
  for path in question.paths:
    if path in places:
      continue
    rest, fed = path
    stop = t + len(rest) + len(fed)
    batch.tokens_BT[b, t:stop] = rest + fed
    batch.positions_BT[b, t:stop] = prompt + np.arange(stop - t)
    batch.branches_BT[b, t:stop] = len(places) + 1
    # The first token is predicted by the prompt's last, each other token by the token before.
    predicting = t + len(rest) - 1 if rest else trunk - 1
    places[path] = [predicting, *range(t + len(rest), stop)]
    batch.answers_BT[b, places[path]] = True
    t = stop
  return [np.array(places[path]) for path in question.paths]


def _check(request: ScoreRequest, config: models.ModelConfig) -> None:
  if not request.prompt or not request.completion:
    which = 'prompt' if not request.prompt else 'completion'
    raise InputError(
      f'{request.cited}: the {which} has no tokens; its log-likelihood is not defined'
    )
  check_ids(request.cited, request.prompt, config.vocab_size)
  check_ids(request.cited, request.completion, config.vocab_size)
  total = len(request.prompt) + len(request.completion) - 1
  if total > config.max_positions:
    raise InputError(
      f'{request.cited}: prompt and completion take {total} positions, the model has '
      f'{config.max_positions}; shorten them'
    )


def _in_rows(
  asked: Sequence[Question], config: models.ModelConfig, batch_size: int
) -> list[Question]:
  """The questions, with what they share computed once, in parts that each fit a row."""
  # No more tokens than a batch has in which nothing is shared: memory stays as it was.
  tokens = sum(question.tokens for question in asked)
  completions = sum(len(question.completions) for question in asked)
  in_batch = int(batch_size * tokens / completions)
  most = max(MOST_ROW, min(_most_shared(config), in_batch))
  parts: list[Question] = []
  for question in shared(asked):
    # A part always has room for the prompt and any completion.
    parts.extend(split(question, max(most, 2 * question.longest)))
  return parts


def _most_shared(config: models.ModelConfig) -> int:
  """Tokens of a row of questions that share a beginning, at most."""
  # Calls that a kernel does not take are the reference's, which holds [T, T] scores.
  windowed = config.window is not None and config.attention != 'blocked'
  if windowed or config.score_softcap is not None:
    return MOST_ROW
  return MOST_SHARED.get(config.attention, MOST_ROW)


def _classes(
  questions: Sequence[Question], config: models.ModelConfig, compile_tokens: int
) -> list[list[Question]]:
  """The questions by length.

  Two lengths stay apart where a program for the shorter rows saves more of attention than it takes
  to compile.
  """
  by_size: dict[int, list[Question]] = collections.defaultdict(list)
  for question in questions:
    # A class for each power of two; `bit_length` of n - 1 is the logarithm of n, rounded up.
    power_of_two = 1 << (question.tokens - 1).bit_length()
    by_size[max(ROW, power_of_two)].append(question)
  # Merge neighbours, the cheapest pair first.
  classes = sorted(by_size.items())
  share = attention_share(config)
  while len(classes) > 1:
    # What merging each class with the next longer one would add, in tokens' computation.
    added = []
    for (shorter, members), (longer, _) in itertools.pairwise(classes):
      tokens = sum(question.tokens for question in members)
      more_keys = longer - shorter
      added.append(tokens * more_keys * share)
    at = min(range(len(added)), key=added.__getitem__)
    # Few enough, and even the cheapest merge costs more than a compilation.
    if len(classes) <= MAX_SHAPES and added[at] > compile_tokens:
      break
    _, members = classes.pop(at)
    longer, others = classes[at]
    classes[at] = (longer, members + others)
  return [members for _, members in classes]


def _row_length(
  sizes: Sequence[int], config: models.ModelConfig, at_once: float, groups: int
) -> int:
  """The length with the least to compute, padding and attention included."""
  # Every n-th size, so that the sample has the lengths of the whole.
  every = math.ceil(len(sizes) / SAMPLE)
  sample = sizes[::every]
  share = attention_share(config)

  def cost(length):
    planned, _ = plan(sample, length, at_once, groups)
    tokens = planned.batches * planned.rows * length
    work = tokens * (1 + length * share)
    # Of equal costs the shorter row.
    return work, length

  # The row must hold the longest question.
  shortest = row_length_for(max(sizes))
  # A row is no longer than a batch is large.
  most = min(MOST_ROW, at_once * sum(sizes) / len(sizes))
  candidates = {shortest}
  length = shortest
  while length <= most:
    candidates.add(length)
    length = row_length_for(length + 1)
  return min(candidates, key=cost)


def _batches_of(
  questions: Sequence[Question], config: models.ModelConfig, batch_size: int, groups: int
) -> Iterator[tuple[ScoreBatch, list[Served]]]:
  """The batches of questions with the same deltas, all of one shape."""
  sizes = [question.tokens for question in questions]
  # The batch size counts completions, the packing counts questions.
  completions = sum(len(question.completions) for question in questions)
  at_once = batch_size * len(questions) / completions
  length = _row_length(sizes, config, at_once, groups)
  planned, rows = plan(sizes, length, at_once, groups)
  # Rows come in the order of their longest questions: dealt out in turns, batches are alike.
  dealt: list[Grouped] = []
  for number in range(planned.batches):
    in_batch = []
    for row in rows[number :: planned.batches]:
      in_batch.append([questions[index] for index in row])
    dealt.append([in_batch[group::groups] for group in range(groups)])
  # The largest group and the longest text of all batches, for one shape and one program.
  most_targets = 0
  for grouped in dealt:
    most_targets = max(most_targets, *map(_num_targets, grouped))
  width = round_up(most_targets, TARGETS_MULTIPLE)
  reach = max(question.longest for question in questions)
  rows_of_group = planned.rows // groups
  for grouped in dealt:
    yield fill(grouped, rows_of_group, planned.length, width, reach)


def _num_targets(group: Sequence[Sequence[Question]]) -> int:
  total = 0
  for row in group:
    for question in row:
      total += sum(map(len, question.completions))
  return total
