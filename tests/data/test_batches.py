"""Packing keeps every token of every example, in few shapes, as a function of seed and step."""

import collections
import doctest

import jax
import numpy as np
import pytest

from weightsteer_jax.data import batches
from weightsteer_jax.data.batches import Batches, Example
from weightsteer_jax.runtime.errors import InputError


def make_examples(count, *, longest=60, seed=0):
  """Examples of random lengths and masks, whose tokens are unlike those of any other."""
  rng = np.random.default_rng(seed)
  examples = []
  for i in range(count):
    length = int(rng.integers(3, longest + 1))
    mask = rng.random(length) < 0.5
    mask[-1] = True
    examples.append(Example(np.arange(length, dtype=np.int32) + 1000 * (i + 1), mask, f'row {i}'))
  return examples


def unpack(batch):
  """(tokens, {position: target}) of each segment, read off the batch without our packing code."""
  segments = []
  for r in range(batch.tokens_BT.shape[0]):
    for segment in range(1, batch.segment_ids_BT[r].max() + 1):
      at = np.flatnonzero(batch.segment_ids_BT[r] == segment)
      assert (np.diff(at) == 1).all()
      assert (batch.positions_BT[r, at] == np.arange(len(at))).all()
      targets = {}
      for t, place in enumerate(at):
        if batch.weights_BT[r, place]:
          targets[t] = int(batch.targets_BT[r, place])
      segments.append((tuple(batch.tokens_BT[r, at].tolist()), targets))
  return segments


def expected(examples):
  """(tokens, {position: target}) of each example."""
  segments = []
  for example in examples:
    targets = {}
    for t in range(len(example) - 1):
      if example.loss_mask[t + 1]:
        targets[t] = int(example.tokens[t + 1])
    segments.append((tuple(example.tokens.tolist()), targets))
  return segments


def as_counter(rows):
  return collections.Counter((tokens, tuple(sorted(targets.items()))) for tokens, targets in rows)


@pytest.mark.parametrize('accumulation', [1, 4])
def test_packed_batches_hold_the_examples_unchanged(accumulation):
  examples = make_examples(50)
  stream = Batches(examples, batch_size=12, seed=3, accumulation=accumulation)
  by_name = {example.name: example for example in examples}
  for step in range(9):
    batch = stream.batch(step)
    assert as_counter(unpack(batch)) == as_counter(
      expected([by_name[name] for name in stream.names(step)])
    )
    padding = batch.segment_ids_BT == 0
    assert not batch.tokens_BT[padding].any() and not batch.weights_BT[padding].any()
    assert (batch.tokens_BT.dtype, batch.weights_BT.dtype) == (np.int32, np.float32)


def test_an_epoch_sees_every_example_once():
  examples = make_examples(40)
  stream = Batches(examples, batch_size=8, seed=0)
  assert stream.steps_per_epoch == 5
  first, second = (
    [name for step in range(start, start + 5) for name in stream.names(step)] for start in (0, 5)
  )
  assert sorted(first) == sorted(second) == sorted(example.name for example in examples)
  assert first != second


def test_batches_are_full_across_epochs():
  stream = Batches(make_examples(10), batch_size=4, seed=0)
  names = [name for step in range(5) for name in stream.names(step)]
  assert stream.steps_per_epoch == 3
  assert all(len(stream.names(step)) == 4 for step in range(7))
  # Five batches of four go twice through ten examples.
  assert set(collections.Counter(names).values()) == {2}


def test_a_batch_is_a_function_of_seed_and_step():
  examples = make_examples(30)
  a, b, other = (Batches(examples, batch_size=7, seed=seed) for seed in (5, 5, 6))
  ahead = a.batch(11)
  for step in range(11):
    a.batch(step)
  for again in (a.batch(11), b.batch(11)):
    for x, y in zip(jax.tree.leaves(ahead), jax.tree.leaves(again)):
      assert (x == y).all()
  assert a.names(11) != other.names(11)


def test_the_order_is_pinned():
  """A resumed run must see the order it began with, whatever numpy it is resumed under."""
  assert batches.permutation(8, seed=0, epoch=0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


@pytest.mark.parametrize('longest', [20, 200, 1000])
@pytest.mark.parametrize('accumulation, row_multiple', [(1, 1), (3, 2)])
def test_few_shapes(longest, accumulation, row_multiple):
  stream = Batches(
    make_examples(200, longest=longest),
    batch_size=16,
    seed=1,
    accumulation=accumulation,
    row_multiple=row_multiple,
  )
  seen = collections.Counter(stream.batch(step).tokens_BT.shape for step in range(40))
  assert set(seen) <= set(stream.shapes) and len(stream.shapes) <= 4
  assert all(rows % (accumulation * row_multiple) == 0 for rows, _ in stream.shapes)
  assert max(rows for rows, _ in seen) < 16 or accumulation > 1
  row_length = stream.shapes[0][1]
  assert row_length % (32 if row_length <= 256 else 128) == 0
  assert longest <= row_length < longest + 128


def test_a_shape_is_there_where_it_saves_rows_and_not_where_it_does_not():
  """Two examples to a batch, in rows of 32: two long ones take two rows, others one."""

  def example(length):
    return Example(np.arange(length, dtype=np.int32), np.ones(length, bool), 'one')

  def shapes(*lengths):
    return Batches([example(length) for length in lengths], batch_size=2, seed=0).shapes

  assert shapes(*[30] * 64) == ((2, 32),)
  assert shapes(*[30] * 32, *[9] * 32) == ((1, 32), (2, 32))
  assert shapes(*[30] * 63, 2) == ((2, 32),)


def test_any_draw_fits_the_last_shape():
  """One epoch in thousands puts all long examples in a batch: there is a shape for it, without a
  recount."""
  long = [Example(np.arange(30, dtype=np.int32), np.ones(30, bool), f'long {i}') for i in range(8)]
  examples = make_examples(64, longest=10) + long
  stream = Batches(examples, batch_size=8, seed=0)
  stream.indices = lambda step: list(range(64, 72))
  assert stream.batch(0).tokens_BT.shape == stream.shapes[-1] == (8, 32)


def test_packing_is_tight():
  """No two rows could be one: the rows are at most twice what the tokens need."""
  lengths = [len(example) for example in make_examples(300)]
  rows = batches.pack(lengths, 64)
  sums = sorted(sum(lengths[i] for i in row) for row in rows)
  assert sorted(i for row in rows for i in row) == list(range(300))
  assert sums[-1] <= 64
  assert sums[0] + sums[1] > 64
  assert len(rows) <= 11 / 9 * np.ceil(sum(lengths) / 64) + 1


def test_microbatches_split_the_rows():
  batch = Batches(make_examples(50), batch_size=12, seed=0, accumulation=4).batch(0)
  micro = batches.microbatches(batch, 4)
  rows, length = batch.tokens_BT.shape
  assert micro.tokens_BT.shape == micro.weights_BT.shape == (4, rows // 4, length)
  segments = []
  for i in range(4):
    segments += unpack(jax.tree.map(lambda x, i=i: x[i], micro))
  assert as_counter(segments) == as_counter(unpack(batch))
  with pytest.raises(InputError, match=f'{rows} rows do not split into 7'):
    batches.microbatches(batch, 7)


@pytest.mark.parametrize('rows, row_multiple', [(4, 1), (4, 3), (1000, 1)])
def test_eval_batches_cover_every_example_once(rows, row_multiple):
  examples = make_examples(33)
  all_batches = list(batches.eval_batches(examples, rows=rows, row_multiple=row_multiple))
  segments = []
  for batch in all_batches:
    segments += unpack(batch)
  assert as_counter(segments) == as_counter(expected(examples))
  (shape,) = {batch.tokens_BT.shape for batch in all_batches}
  assert shape[0] % row_multiple == 0
  if rows == 1000:
    # A single batch, and no row of it is empty.
    (batch,) = all_batches
    assert (batch.segment_ids_BT[:, 0] == 1).all()


def test_batches_pass_through_jit():
  batch = Batches(make_examples(20), batch_size=4, seed=0).batch(0)
  total = jax.jit(lambda b: (b.weights_BT * b.targets_BT).sum())(batch)
  assert total == (batch.weights_BT * batch.targets_BT).sum()


def test_split():
  items = list(range(101))
  train, validation = batches.split(items, 0.05, seed=1)
  assert (len(train), len(validation)) == (96, 5) and sorted(train + validation) == items
  assert (
    (train, validation) == batches.split(items, 0.05, seed=1) != batches.split(items, 0.05, seed=2)
  )
  assert train == sorted(train)
  assert [len(part) for part in batches.split(items[:2], 0.05, seed=0)] == [1, 1]


@pytest.mark.parametrize(
  'items, fraction', [([1], 0.05), ([], 0.5), ([1, 2, 3], 1.0), ([1, 2, 3], 0.0), ([1, 2], 0.9)]
)
def test_split_needs_enough(items, fraction):
  with pytest.raises(InputError, match='give more examples or a fraction'):
    batches.split(items, fraction, seed=0)


def test_errors():
  examples = make_examples(5)
  with pytest.raises(InputError, match='batch_size is 6, but there are 5 training examples'):
    Batches(examples, batch_size=6, seed=0)
  with pytest.raises(InputError, match='row .: .* tokens do not fit in a row of 8'):
    Batches(examples, batch_size=2, seed=0, row_length=8)
  with pytest.raises(InputError, match='no examples'):
    list(batches.eval_batches([], rows=4))


def test_doctests():
  result = doctest.testmod(batches)
  assert result.failed == 0 and result.attempted >= 4


def test_split_keeps_groups_whole_and_other_splits_as_they_were():
  items = [(f'g{i // 3}' if i < 30 else '', i) for i in range(60)]
  train, validation = batches.split(items, 0.2, 3, group_of=lambda item: item[0])
  assert not {group for group, _ in train if group} & {group for group, _ in validation if group}
  assert sorted(train + validation) == sorted(items)
  # 10 groups and 30 single items.
  assert len({group or i for group, i in validation}) == 8
  alone = list(range(40))
  assert batches.split(alone, 0.2, 3) == batches.split(alone, 0.2, 3, group_of=lambda item: '')
