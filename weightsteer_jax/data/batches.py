"""Examples packed into batches of few fixed shapes.

Axes: A microbatches, B rows, T positions. A batch holds a number of *examples*. Several short
examples share a row, each with a segment id of its own, and positions start again at 0 in each
segment. A batch is a function of (seed, step): no iterator state needs saving, and a resumed run
sees the same batches.
"""

import bisect
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.runtime.errors import InputError

Item = TypeVar('Item')

# Row counts are read off this many steps before training; a later batch that needs more rows takes
# the last shape, which is always sufficient.
_PROBED_STEPS = 256
# A smaller shape is worth its compilation, some ten steps, when it saves this share of all rows.
_WORTH_A_SHAPE = 0.08
# Most shapes that a run may compile.
_SHAPES = 4


@dataclasses.dataclass(frozen=True)
class Example:
  """A tokenised conversation.

  Attributes:
    tokens: int32 [n], with the template's control tokens.
    loss_mask: bool [n], True where the token is a target: part of an assistant's answer, or the end
      of an answer.
    name: the place that the example comes from, as errors cite the example.
    conversation: the name of the conversation, where several examples are answers of one; else ''.
  """

  tokens: np.ndarray
  loss_mask: np.ndarray
  name: str
  conversation: str = ''

  def __len__(self) -> int:
    return len(self.tokens)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """Packed rows, the input of the loss: numpy or jax arrays [B, T].

  After `microbatches` the arrays are [A, B, T]. targets[t] = tokens[t + 1] of the same segment and
  weights[t] = loss_mask[t + 1]; both are 0 at a segment's end and in padding, which is segment 0.
  Two examples in a row of six tokens, where all tokens but the first of each are targets:

  >>> x = Example(np.array([11, 12, 13]), np.array([0, 1, 1]), 'x')
  >>> y = Example(np.array([21, 22]), np.array([0, 1]), 'y')
  >>> for field, rows in vars(fill([x, y], [[0, 1]], num_rows=1, row_length=6)).items():
  ...   print(f'{field:15}', *rows[0].astype(int))
  tokens_BT       11 12 13 21 22 0
  targets_BT      12 13 0 22 0 0
  weights_BT      1 1 0 1 0 0
  positions_BT    0 1 2 0 1 0
  segment_ids_BT  1 1 1 2 2 0
  """

  tokens_BT: np.ndarray
  targets_BT: np.ndarray
  weights_BT: np.ndarray
  positions_BT: np.ndarray
  segment_ids_BT: np.ndarray

  @property
  def inputs(self) -> models.TokenBatch:
    """The part of the batch that the model reads."""
    return models.TokenBatch(self.tokens_BT, self.positions_BT, self.segment_ids_BT)


def pack(lengths: Sequence[int], row_length: int) -> list[list[int]]:
  """Rows of indices into `lengths`, each row at most `row_length` tokens: best-fit decreasing.

  Source: Johnson, Near-optimal bin packing algorithms (1973): at most 11/9 of the fewest possible
  rows, plus a constant.

  >>> pack([2, 5, 3, 6], row_length=8)
  [[3, 0], [1, 2]]
  """
  rows: list[list[int]] = []
  # (free tokens, row), ascending: bisection finds the row with the least room that is enough.
  room: list[tuple[int, int]] = []

  # Equal lengths go by index, so that the rows are a function of the lengths alone.
  def longest_first(index: int) -> tuple[int, int]:
    return -lengths[index], index

  for index in sorted(range(len(lengths)), key=longest_first):
    length = lengths[index]
    # -1 is below every row, so that among rows with just this room the first is found.
    place = bisect.bisect_left(room, (length, -1))
    if place < len(room):
      free, row = room.pop(place)
    else:
      free = row_length
      row = len(rows)
      rows.append([])
    rows[row].append(index)
    bisect.insort(room, (free - length, row))
  return rows


def fill(
  examples: Sequence[Example], rows: Sequence[Sequence[int]], *, num_rows: int, row_length: int
) -> Batch:
  """The numpy batch [num_rows, row_length] whose row r holds the examples `rows[r]`.

  Rows beyond the given ones are padding.
  """
  # Zeros are padding in every array: segment 0, which counts for nothing.
  shape = (num_rows, row_length)
  tokens_BT = np.zeros(shape, np.int32)
  targets_BT = np.zeros(shape, np.int32)
  weights_BT = np.zeros(shape, np.float32)
  positions_BT = np.zeros(shape, np.int32)
  segment_ids_BT = np.zeros(shape, np.int32)
  for r, row in enumerate(rows):
    start = 0
    # Segments count from 1.
    for segment, index in enumerate(row, 1):
      example = examples[index]
      end = start + len(example)
      tokens_BT[r, start:end] = example.tokens
      positions_BT[r, start:end] = np.arange(len(example))
      segment_ids_BT[r, start:end] = segment
      # The last position has no next token, so its target and weight stay 0.
      last = end - 1
      targets_BT[r, start:last] = example.tokens[1:]
      weights_BT[r, start:last] = example.loss_mask[1:]
      start = end
  return Batch(tokens_BT, targets_BT, weights_BT, positions_BT, segment_ids_BT)


def microbatches(batch: Batch, accumulation: int) -> Batch:
  """The batch as [A, B / A, T], to scan over A.

  The loss of the batch is the sum of all losses over the sum of all weights, divided once.

  Raises:
    InputError: if the rows do not split evenly; `Batches(accumulation=A)` makes batches that do.
  """
  num_rows = batch.tokens_BT.shape[0]
  if num_rows % accumulation:
    raise InputError(
      f'{num_rows} rows do not split into {accumulation} microbatches; make the batches with '
      f'accumulation={accumulation}'
    )

  rows_each = num_rows // accumulation

  def divide(x_BT):
    return x_BT.reshape(accumulation, rows_each, *x_BT.shape[1:])

  return jax.tree.map(divide, batch)


def side_by_side(batches: Sequence[Batch]) -> Batch:
  """The numpy batches along a new leading axis, padded with empty rows to one size.

  Rows are the second to last axis, so each microbatch of [A, B, T] is padded and keeps its rows.
  """
  most_rows = max(batch.tokens_BT.shape[-2] for batch in batches)

  def pad(x):
    widths = [(0, 0)] * x.ndim
    widths[-2] = (0, most_rows - x.shape[-2])
    # With zeros, NumPy's default: segment 0 is padding.
    return np.pad(x, widths)

  def stack(*arrays):
    return np.stack([pad(x) for x in arrays])

  # Field by field: the tokens of all batches, then their targets, and so on.
  return jax.tree.map(stack, *batches)


class Batches:
  """Training batches: `batch(step)` for any step, from shuffled epochs without end.

  The examples form one stream, epoch after epoch, each epoch in its own order; batch `step` is the
  next `batch_size` of them.

  Attributes:
    shapes: the possible (rows, row length) of a batch, at most four; the last is enough for any
      batch.
    most_rows: rows of the largest batch among the first steps; nearly all batches have no more.
    steps_per_epoch: steps after which every example has been seen at least once.
    examples, batch_size, seed: as given.
  """

  def __init__(
    self,
    examples: Sequence[Example],
    *,
    batch_size: int,
    seed: int,
    row_length: int | None = None,
    accumulation: int = 1,
    row_multiple: int = 1,
  ):
    """Chooses the shapes from the first steps.

    Args:
      examples: tokenised conversations.
      batch_size: examples per batch, over all devices and microbatches.
      seed: of the order.
      row_length: tokens per row; by default the longest example, rounded up (see `row_length_for`).
      accumulation: microbatches A per batch; the number of rows divides by A.
      row_multiple: the rows of one microbatch divide by this number (of devices that share them).

    Raises:
      InputError: if there are fewer examples than `batch_size`, or an example is longer than a row.
    """
    if not 1 <= batch_size <= len(examples):
      raise InputError(
        f'batch_size is {batch_size}, but there are {len(examples)} training examples: '
        'give more examples or a smaller batch_size'
      )
    self.examples = list(examples)
    self.batch_size = batch_size
    self.seed = seed
    # Rounded up: the last batch of an epoch reaches into the next.
    self.steps_per_epoch = -(-len(self.examples) // batch_size)
    self._row_length = _checked_row_length(self.examples, row_length)
    # Rows divide by microbatches first, and each microbatch's rows by devices.
    multiple = accumulation * row_multiple
    self._row_counts = self._choose_row_counts(multiple)
    self.shapes = tuple((count, self._row_length) for count in self._row_counts)

  def indices(self, step: int) -> list[int]:
    """Indices of the examples in batch `step`."""
    size = len(self.examples)
    # The batch is a window of the stream, which may reach over the ends of epochs.
    first = step * self.batch_size
    last = first + self.batch_size - 1
    first_epoch = first // size
    last_epoch = last // size
    epochs = range(first_epoch, last_epoch + 1)
    orders = [permutation(size, self.seed, epoch) for epoch in epochs]
    stream = np.concatenate(orders)
    # The stream here begins with the first of these epochs, not with epoch 0.
    start = first - first_epoch * size
    window = stream[start : start + self.batch_size]
    # Python's integers, as indices of lists.
    return window.tolist()

  def names(self, step: int) -> list[str]:
    """Names of the examples in batch `step`."""
    return [self.examples[i].name for i in self.indices(step)]

  @jax.profiler.annotate_function
  def batch(self, step: int) -> Batch:
    """Batch `step`, numpy [B, T] with (B, T) one of `shapes`; a function of (seed, step) alone."""
    chosen = [self.examples[i] for i in self.indices(step)]
    rows = self._pack(chosen)
    # The least of the compiled shapes that holds the rows; the counts are in ascending order.
    place = bisect.bisect_left(self._row_counts, len(rows))
    num_rows = self._row_counts[place]
    return fill(chosen, rows, num_rows=num_rows, row_length=self._row_length)

  def _pack(self, examples: Sequence[Example]) -> list[list[int]]:
    return pack([len(example) for example in examples], self._row_length)

  def _choose_row_counts(self, multiple: int) -> list[int]:
    probed = []
    # Three epochs at most: few examples would only be packed into much the same rows again.
    num_steps = min(_PROBED_STEPS, 3 * self.steps_per_epoch)
    for step in range(num_steps):
      chosen = [self.examples[i] for i in self.indices(step)]
      rows = self._pack(chosen)
      probed.append(round_up(len(rows), multiple))
    self.most_rows = max(probed)
    # A row for each example is enough for any batch.
    always_enough = round_up(self.batch_size, multiple)
    counts = {self.most_rows, always_enough}

    def computed_rows(counts: set[int]) -> int:
      """Rows of all probed batches, padding included, if only these counts were compiled."""
      total = 0
      for needed in probed:
        total += min(count for count in counts if count >= needed)
      return total

    # Greedily: the count that saves most rows, until none is worth a compilation.
    while len(counts) < _SHAPES:
      best = min(set(probed), key=lambda count: computed_rows(counts | {count}))
      rows_before = computed_rows(counts)
      rows_after = computed_rows(counts | {best})
      if rows_after > (1 - _WORTH_A_SHAPE) * rows_before:
        break
      counts.add(best)
    return sorted(counts)


def eval_batches(
  examples: Sequence[Example], *, rows: int, row_length: int | None = None, row_multiple: int = 1
) -> Iterator[Batch]:
  """Batches that hold every example exactly once, all of one shape [B, T].

  Args:
    rows: B at most, then rounded up to `row_multiple`.
    row_length: T; by default the longest example, rounded up (see `row_length_for`).

  Raises:
    InputError: if there are no examples, or an example is longer than a row.
  """
  row_length = _checked_row_length(examples, row_length)
  lengths = [len(example) for example in examples]
  packed = pack(lengths, row_length)
  # Few examples need no batch of the full size.
  num_rows = round_up(min(rows, len(packed)), row_multiple)
  for start in range(0, len(packed), num_rows):
    # The last batch is filled up with empty rows, so that one program takes them all.
    chosen = packed[start : start + num_rows]
    yield fill(examples, chosen, num_rows=num_rows, row_length=row_length)


def split(
  items: Sequence[Item],
  fraction: float = 0.05,
  seed: int = 0,
  *,
  group_of: Callable[[Item], str] | None = None,
) -> tuple[list[Item], list[Item]]:
  """(train, validation): a random `fraction` of the items, at least one, is for validation.

  Both keep the order of `items`.

  Args:
    group_of: an item's group, which is not divided; '' is a group of the item alone. The fraction
      is then one of the groups.

  Raises:
    InputError: if nothing would be left to train on.
  """
  # {group, or the item's own number: the numbers of its items}, in the order of the items
  groups: dict[str | int, list[int]] = {}
  for i, item in enumerate(items):
    group = group_of(item) if group_of else ''
    groups.setdefault(group or i, []).append(i)
  count = max(1, round(fraction * len(groups)))
  if not 0 < fraction < 1 or count >= len(groups):
    raise InputError(
      f'cannot set {fraction} of {len(groups)} examples aside for validation and still train: '
      'give more examples or a fraction between 0 and 1'
    )
  order = permutation(len(groups), seed, 0)
  members = list(groups.values())
  held_out = {i for number in order[:count].tolist() for i in members[number]}
  train = [item for i, item in enumerate(items) if i not in held_out]
  validation = [item for i, item in enumerate(items) if i in held_out]
  return train, validation


def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
  """A random order of range(size), int64 [size], the same on every platform and numpy version."""
  # numpy promises stability for the raw bits of a bit generator, not for `Generator.permutation`.
  seeds = np.random.SeedSequence([seed, epoch])
  bits = np.random.Philox(seeds).random_raw(size)
  # Sorting by 64 random bits each shuffles; a stable sort has one result even where bits are equal.
  return np.argsort(bits, kind='stable')


def row_length_for(longest: int) -> int:
  """Tokens per row for examples of at most `longest` tokens: a multiple of 32, above 256 of 128."""
  # Attention kernels work on tiles of 128; shorter rows would be mostly padding.
  tile = 32 if longest <= 256 else 128
  return round_up(longest, tile)


def round_up(value: int, multiple: int) -> int:
  """The least multiple of `multiple` not below `value`."""
  # // rounds down, so the negated quotient of the negated value is rounded up.
  return -(-value // multiple) * multiple


def _checked_row_length(examples: Sequence[Example], row_length: int | None) -> int:
  if not examples:
    raise InputError('no examples to make batches of')
  longest = max(examples, key=len)
  if row_length is not None and len(longest) > row_length:
    raise InputError(
      f'{longest.name}: {len(longest)} tokens do not fit in a row of {row_length}: raise '
      'row_length or truncate'
    )
  return row_length or row_length_for(len(longest))
