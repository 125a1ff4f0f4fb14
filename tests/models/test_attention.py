"""The kernels beside the reference, the reference beside float64, and which kernel is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from weightsteer_jax.models import attention, blocked, kernels
from weightsteer_jax.models.attention import Seen
from weightsteer_jax.runtime.errors import InputError

B, N, K, H = 2, 4, 2, 16


def inputs(queries, keys, seed=0):
  random = np.random.default_rng(seed)
  return tuple(
    jnp.asarray(random.standard_normal(shape), jnp.float32)
    for shape in ((B, queries, N, H), (B, keys, K, H), (B, keys, K, H))
  )


def packed(length, cuts=((0.4, 0.9), (0.5, 1.0))):
  """Segments of two rows; what lies behind the last cut is padding, segment 0."""
  at = np.arange(length) / length
  return jnp.asarray([np.where(at < a, 1, np.where(at < b, 2, 0)) for a, b in cuts], jnp.int32)


def in_float64(q, k, v, mask):
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  k, v = (np.repeat(x, N // K, axis=2) for x in (k, v))
  scores = np.einsum('BTNH,BSNH->BNTS', q, k) / np.sqrt(H)
  scores = np.where(np.asarray(mask)[:, None], scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return np.einsum('BNTS,BSNH->BTNH', weights / weights.sum(-1, keepdims=True), v)


def attended(q, k, v, seen):
  return (
    attention.attend(q, k, v, seen)
    if seen.own
    else attention.attend_cached(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), seen)
  )


def counted(length):
  return jnp.broadcast_to(jnp.arange(length), (B, length))


def branching(length, *, trunks, rest):
  """Rows of segments with a trunk of so many tokens and then branches of so many, over and over;
  the last segment is cut."""
  one = [(slot, 0) for slot in range(trunks)]
  one += [(trunks + i, branch) for branch, tokens in enumerate(rest, 1) for i in range(tokens)]
  row = [(slot, segment, branch) for segment in range(1, length + 1) for slot, branch in one][
    :length
  ]
  return Seen(*(jnp.broadcast_to(jnp.asarray(column), (B, length)) for column in zip(*row)))


@pytest.mark.parametrize(
  'seen, mask',
  [
    (Seen(counted(6)), np.tril(np.ones((6, 6), bool))[None].repeat(B, 0)),
    (Seen(counted(6), jnp.asarray([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]])), None),
    (Seen(jnp.asarray([[3, 4], [0, 1]]), None, own=False), None),
    (branching(6, trunks=2, rest=(1, 2)), None),
  ],
  ids=['causal', 'packed', 'cached', 'branches'],
)
def test_the_reference_is_softmax_attention_over_the_keys_that_are_seen(seen, mask):
  q, k, v = inputs(seen.slots_BT.shape[1], 6)
  if mask is None:  # Written out key by key.
    slots, segments, branches = np.asarray(seen.slots_BT), seen.segment_ids_BT, seen.branches_BT

    def place(b, s):
      return slots[b, s] if seen.own else s

    mask = np.array(
      [
        [
          [
            place(b, s) <= slots[b, t]
            and (segments is None or segments[b, s] == segments[b, t])
            and (branches is None or branches[b, s] in (0, branches[b, t]))
            for s in range(6)
          ]
          for t in range(slots.shape[1])
        ]
        for b in range(B)
      ]
    )
  np.testing.assert_allclose(attended(q, k, v, seen), in_float64(q, k, v, mask), atol=1e-5)


def test_a_window_is_the_last_keys_with_the_querys_own():
  assert np.asarray(Seen(counted(4)).mask(4, jnp.asarray(2)))[0].astype(int).tolist() == [
    [1, 0, 0, 0],
    [1, 1, 0, 0],
    [0, 1, 1, 0],
    [0, 0, 1, 1],
  ]


@pytest.mark.parametrize('segments', [None, packed(256)], ids=['causal', 'packed'])
def test_splash_gives_the_values_and_the_gradients_of_the_reference(segments, monkeypatch):
  monkeypatch.setattr(kernels, 'INTERPRET', True)
  q, k, v = inputs(256, 256)
  seen = Seen(counted(256), segments)
  target = jnp.asarray(np.random.default_rng(1).standard_normal(q.shape), jnp.float32)

  def value_and_grads(kernel):
    def loss(q, k, v):
      return jnp.sum(attention.attend(q, k, v, seen, kernel=kernel) * target)

    return attention.attend(q, k, v, seen, kernel=kernel), jax.grad(loss, argnums=(0, 1, 2))(
      q, k, v
    )

  for ours, theirs in zip(
    jax.tree.leaves(value_and_grads('splash')), jax.tree.leaves(value_and_grads('reference'))
  ):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize('kernel', ['splash', 'blocked', 'cudnn'])
def test_every_kernel_lets_a_branch_see_its_trunk_and_itself(kernel, monkeypatch):
  monkeypatch.setattr(kernels, 'INTERPRET', True)
  monkeypatch.setattr(kernels, 'IMPLEMENTATION', 'xla')
  for trunks, rest in [(70, (20, 1, 30)), (9, (3, 3, 3)), (200, (90, 100))]:
    q, k, v = inputs(384, 384)
    seen = branching(384, trunks=trunks, rest=rest)
    np.testing.assert_allclose(
      attention.attend(q, k, v, seen, kernel=kernel), attended(q, k, v, seen), atol=1e-4
    )


def both(function, *arguments, segments, length, **options):
  """What a function of the attention gives with `blocked` and with the reference; what padding
  gives is 0 here."""
  found = []
  for kernel in ('blocked', 'reference'):

    def attend(q, k, v, ids):
      y = attention.attend(q, k, v, Seen(counted(length), ids), kernel=kernel, **options)
      return y if ids is None else jnp.where(ids[..., None, None] > 0, y, 0)

    found.append(jax.tree.leaves(function(attend)(*arguments, segments)))
  return zip(*found)


def value_and_grads(attend):
  return jax.jit(
    jax.value_and_grad(
      lambda q, k, v, ids: jnp.sum(jnp.sin(attend(q, k, v, ids))), argnums=(0, 1, 2)
    )
  )


@pytest.mark.parametrize('window', [None, 70], ids=['all', 'window'])
@pytest.mark.parametrize(
  'segments',
  [None, packed(256), packed(256, ((0.1, 0.2), (0.26, 0.7)))],
  ids=['causal', 'packed', 'padded'],
)
def test_blocked_gives_the_values_and_the_gradients_of_the_reference(segments, window):
  options = dict(window=window and jnp.int32(window), segments=segments, length=256)
  for ours, theirs in both(jax.jit, *inputs(256, 256), **options):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
  for ours, theirs in both(value_and_grads, *inputs(256, 256), **options):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_blocked_can_be_mapped_over_fine_tunes():
  stacked = [jnp.stack(arrays) for arrays in zip(inputs(128, 128), inputs(128, 128, seed=1))]
  segments = jnp.stack([packed(128), packed(128, ((0.1, 0.7), (0.3, 0.4)))])
  for ours, theirs in both(
    lambda attend: jax.vmap(value_and_grads(attend)), *stacked, segments=segments, length=128
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_blocked_computes_the_blocks_in_which_a_query_sees_a_key_and_few_more():
  """Counted by hand in rows of four blocks of 64."""
  slots = jnp.broadcast_to(jnp.arange(256), (3, 256))
  whole, cut, padded = np.ones(256, int), np.repeat([1, 2], 128), np.repeat([1, 0], [64, 192])
  segments, windows = jnp.asarray(np.stack([whole, cut, padded])), jnp.full((3, 256), 256)
  blocks = blocked._blocks((slots, segments, windows), 64)
  pairs = list(zip(blocks.queries[: blocks.count].tolist(), blocks.keys[: blocks.count].tolist()))
  expected = [(i, j) for i in range(4) for j in range(i + 1)]
  expected += [(4, 4), (5, 4), (5, 5), (6, 6), (7, 6), (7, 7), (8, 8)]
  assert pairs == expected + [(9, 9), (10, 10), (11, 11)]
  near = blocked._blocks((slots[:1], segments[:1], jnp.full((1, 256), 65)), 64)
  assert near.count == 4 + 3


def test_blocked_leaves_what_it_cannot_take_to_the_reference():
  for length, options in [(96, {}), (64, {}), (128, dict(softcap=5.0))]:
    q, k, v = inputs(length, length)
    seen = Seen(counted(length))
    np.testing.assert_array_equal(
      attention.attend(q, k, v, seen, kernel='blocked', **options),
      attention.attend(q, k, v, seen, **options),
    )


def test_splash_leaves_what_it_cannot_take_to_the_reference():
  """Outside of interpretation a splash call on a CPU is an error, so a result shows who gave it."""
  for length, options in [(96, {}), (128, dict(softcap=5.0)), (128, dict(window=jnp.asarray(9)))]:
    q, k, v = inputs(length, length)
    seen = Seen(counted(length))
    np.testing.assert_array_equal(
      attention.attend(q, k, v, seen, kernel='splash', **options),
      attention.attend(q, k, v, seen, **options),
    )
  with pytest.raises(Exception, match='interpret'):
    attention.attend(*inputs(128, 128), Seen(counted(128)), kernel='splash')


def test_masked_attention_can_be_differentiated_and_mapped_over_fine_tunes(monkeypatch):
  """With jax's own implementation in cuDNN's place, which a CPU has too."""
  monkeypatch.setattr(kernels, 'IMPLEMENTATION', 'xla')
  stacked = [
    jnp.stack(arrays)
    for arrays in zip(inputs(128, 128), inputs(128, 128, seed=1), inputs(128, 128, seed=2))
  ]
  segments = jnp.stack(
    [packed(128), packed(128, ((0.1, 0.7), (0.3, 0.4))), packed(128, ((0.9, 1.0), (0.2, 0.8)))]
  )

  def gradients(kernel):
    def loss(q, k, v, segments):
      return jnp.sum(
        jnp.sin(attention.attend(q, k, v, Seen(counted(128), segments), kernel=kernel))
      )

    return jax.vmap(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*stacked, segments)

  for ours, theirs in zip(
    jax.tree.leaves(gradients('cudnn')), jax.tree.leaves(gradients('reference'))
  ):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


FITS = dict(dtype='bfloat16', head_dim=128, softcap=None)


@pytest.mark.parametrize(
  'platform, options, kernel',
  [
    ('cpu', {}, 'blocked'),
    ('gpu', {}, 'cudnn'),
    ('tpu', {}, 'splash'),
    ('gpu', dict(dtype='float32'), 'reference'),
    ('gpu', dict(head_dim=320), 'reference'),
    ('gpu', dict(head_dim=100), 'reference'),
    ('tpu', dict(softcap=50.0), 'reference'),
    ('tpu', dict(dtype='float32'), 'splash'),
  ],
  ids=str,
)
def test_auto_is_the_fastest_kernel_that_fits(platform, options, kernel):
  assert attention.choose('auto', platform, **FITS | options) == kernel
  assert attention.choose('reference', platform, **FITS | options) == 'reference'


@pytest.mark.parametrize(
  'asked, platform, options, why',
  [
    (
      'cudnn',
      'cpu',
      {},
      "model.attention is 'cudnn', but that kernel runs on GPUs and this is a CPU; take "
      "'auto' or 'reference'",
    ),
    ('splash', 'gpu', {}, 'runs on TPUs and this is a GPU'),
    ('cudnn', 'gpu', dict(dtype='float32'), 'the model is float32'),
    ('cudnn', 'gpu', dict(head_dim=512), 'these have 512'),
    ('splash', 'tpu', dict(softcap=30.0), 'a softcap'),
    ('flash', 'gpu', {}, "'flash', expected one of auto, reference, blocked, cudnn, splash"),
  ],
  ids=str,
)
def test_a_kernel_that_is_not_for_the_model_is_refused(asked, platform, options, why):
  with pytest.raises(InputError, match=why.replace('(', r'\(')):
    attention.choose(asked, platform, **FITS | options)


@pytest.mark.skipif(jax.default_backend() != 'gpu', reason='cuDNN needs a GPU')
def test_cudnn_can_be_mapped_over_fine_tunes():
  q, k, v = (jnp.stack([x, x[::-1]]).astype(jnp.bfloat16) for x in inputs(256, 256))
  segments = jnp.stack([packed(256), packed(256, ((0.1, 0.7), (0.3, 0.4)))])

  def loss(q, k, v, ids):
    return jnp.sum(
      jnp.square(
        attention.attend(q, k, v, Seen(counted(256), ids), kernel='cudnn').astype(jnp.float32)
      )
    )

  together = jax.vmap(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v, segments)
  for i in range(2):
    for ours, theirs in zip(
      together, jax.grad(loss, argnums=(0, 1, 2))(q[i], k[i], v[i], segments[i])
    ):
      np.testing.assert_allclose(ours[i].astype(jnp.float32), theirs.astype(jnp.float32), atol=0.02)


@pytest.mark.skipif(jax.default_backend() != 'gpu', reason='cuDNN needs a GPU')
@pytest.mark.parametrize('segments', [None, packed(256)], ids=['causal', 'packed'])
def test_cudnn_gives_the_values_and_the_gradients_of_the_reference(segments):
  q, k, v = (x.astype(jnp.bfloat16) for x in inputs(256, 256))
  seen = Seen(counted(256), segments)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), (q, k, v))

  def loss(kernel):
    return lambda q, k, v: jnp.sum(
      jnp.square(attention.attend(q, k, v, seen, kernel=kernel).astype(jnp.float32))
    )

  np.testing.assert_allclose(
    attention.attend(q, k, v, seen, kernel='cudnn').astype(jnp.float32),
    attention.attend(*wide, seen),
    atol=0.03,
  )
  for ours, theirs in zip(
    jax.grad(loss('cudnn'), argnums=(0, 1, 2))(q, k, v),
    jax.grad(loss('reference'), argnums=(0, 1, 2))(*wide),
  ):
    assert np.isfinite(np.asarray(ours, np.float32)).all()
    assert np.linalg.norm(ours.astype(jnp.float32) - theirs) < 0.02 * np.linalg.norm(theirs)
