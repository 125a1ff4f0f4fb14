"""Where arrays lie, without devices: the letter tables on a 7B model, meshes as text, and axes that
do not divide."""

import jax
import pytest

from weightsteer_jax import models
from weightsteer_jax.runtime import sharding, tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.sharding import Layout

# Qwen2.5-7B's, by its config.json.
QWEN_7B = models.read_config(
  dict(
    model_type='qwen2',
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    hidden_act='silu',
    max_position_embeddings=32768,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    tie_word_embeddings=False,
  ),
  where='Qwen2.5-7B',
)


def mesh(data: int, fsdp: int, tensor: int) -> jax.sharding.AbstractMesh:
  return jax.sharding.AbstractMesh((data, fsdp, tensor), sharding.AXES)


def test_a_7b_model_on_four_by_four():
  """{path: (partition of each axis, shape on a device)}, word for word."""
  placed = tree.flatten(models.param_shardings(QWEN_7B, Layout(mesh(1, 4, 4))))
  shapes = {path: site.shape for path, site in models.sites(QWEN_7B).items()}
  assert {path: (tuple(at.spec), at.shard_shape(shapes[path])) for path, at in placed.items()} == {
    'embed/embedding': (('tensor', 'fsdp'), (38016, 896)),
    'final_norm/scale': (('fsdp',), (896,)),
    'layers/attn/k/bias': ((None, 'tensor', None), (28, 1, 128)),
    'layers/attn/k/kernel': ((None, 'fsdp', 'tensor', None), (28, 896, 1, 128)),
    'layers/attn/o/kernel': ((None, 'tensor', None, 'fsdp'), (28, 7, 128, 896)),
    'layers/attn/q/bias': ((None, 'tensor', None), (28, 7, 128)),
    'layers/attn/q/kernel': ((None, 'fsdp', 'tensor', None), (28, 896, 7, 128)),
    'layers/attn/v/bias': ((None, 'tensor', None), (28, 1, 128)),
    'layers/attn/v/kernel': ((None, 'fsdp', 'tensor', None), (28, 896, 1, 128)),
    'layers/attn_norm/scale': ((None, 'fsdp'), (28, 896)),
    'layers/mlp/down/kernel': ((None, 'tensor', 'fsdp'), (28, 4736, 896)),
    'layers/mlp/gate/kernel': ((None, 'fsdp', 'tensor'), (28, 896, 4736)),
    'layers/mlp/up/kernel': ((None, 'fsdp', 'tensor'), (28, 896, 4736)),
    'layers/mlp_norm/scale': ((None, 'fsdp'), (28, 896)),
    'lm_head/kernel': (('fsdp', 'tensor'), (896, 38016)),
  }


def test_the_factors_of_a_7b_direction_lie_as_their_kernels():
  delta = jax.eval_shape(
    lambda: models.init_delta(QWEN_7B, 'lora', jax.random.key(0), rank=16, lora_alpha=32.0)
  )
  placed = tree.flatten(models.delta_shardings(QWEN_7B, delta, Layout(mesh(1, 4, 4))))
  assert {
    path.removeprefix('layers/').replace('/kernel', ''): tuple(at.spec)
    for path, at in placed.items()
  } == {
    'attn/q/a': (None, 'fsdp', None),
    'attn/q/b': (None, None, 'tensor', None),
    'attn/k/a': (None, 'fsdp', None),
    'attn/k/b': (None, None, 'tensor', None),
    'attn/v/a': (None, 'fsdp', None),
    'attn/v/b': (None, None, 'tensor', None),
    'attn/o/a': (None, 'tensor', None, None),
    'attn/o/b': (None, None, 'fsdp'),
    'mlp/gate/a': (None, 'fsdp', None),
    'mlp/gate/b': (None, None, 'tensor'),
    'mlp/up/a': (None, 'fsdp', None),
    'mlp/up/b': (None, None, 'tensor'),
    'mlp/down/a': (None, 'tensor', None),
    'mlp/down/b': (None, None, 'fsdp'),
  }


def test_in_evaluation_weights_are_cut_by_tensor_alone_and_rows_by_both_others():
  layout = Layout(mesh(2, 2, 4), fsdp=False)
  placed = tree.flatten(models.param_shardings(QWEN_7B, layout))
  assert tuple(placed['layers/mlp/gate/kernel'].spec) == (None, None, 'tensor')
  assert tuple(placed['final_norm/scale'].spec) == (None,)
  assert tuple(layout.activations('BT', (8, 5), name='tokens').spec) == (('data', 'fsdp'), None)
  assert tuple(layout.activations('LBKSH', (28, 8, 4, 64, 128), name='cache').spec) == (
    None,
    ('data', 'fsdp'),
    'tensor',
    None,
    None,
  )
  assert layout.rows == 4


def test_an_axis_that_does_not_divide_is_named_with_what_would_or_stays_whole():
  with pytest.raises(InputError) as told:
    models.param_shardings(QWEN_7B, Layout(mesh(1, 2, 8)))
  assert (
    "'layers/attn/k/bias' of shape (28, 4, 128) (axes LKH): kv heads (K = 4) cannot be cut "
    "over tensor = 8"
  ) in str(told.value)
  assert 'Take tensor of 1, 2, 4' in str(
    told.value
  ) and '--config.mesh.indivisible=replicate' in str(told.value)
  kept = tree.flatten(
    models.param_shardings(QWEN_7B, Layout(mesh(1, 2, 8), indivisible='replicate'))
  )
  assert tuple(kept['layers/attn/k/kernel'].spec) == (None, 'fsdp', None, None)
  assert tuple(kept['layers/mlp/gate/kernel'].spec) == (None, 'fsdp', 'tensor')
  with pytest.raises(
    InputError,
    match=(
      r"'tokens' of shape \(6, 5\).*rows of the batch \(B = 6\) cannot be cut over data x "
      r"fsdp = 4"
    ),
  ):
    Layout(mesh(2, 2, 1)).activations('BT', (6, 5), name='tokens')


def test_as_many_letters_as_axes():
  with pytest.raises(InputError, match="'x' has shape \\(2, 3\\), but axes BTD"):
    Layout(mesh(1, 1, 1)).activations('BTD', (2, 3), name='x')
  with pytest.raises(ValueError, match='axes BT for an array of shape'):
    sharding.constrain(jax.numpy.zeros(3), 'BT')


def test_meshes_as_text():
  assert (
    sharding.parse('tensor:2,fsdp:4')
    == sharding.parse('1x4x2')
    == {'data': 1, 'fsdp': 4, 'tensor': 2}
  )
  assert sharding.describe(sharding.parse('2x1x1')) == 'data:2,fsdp:1,tensor:1'
  for text, at in (
    ('fsdpp:2', "'fsdpp:2' \\(did you mean 'fsdp'"),
    ('2x2', "'2x2'"),
    ('data:0', "'data:0'"),
    ('', "''"),
  ):
    with pytest.raises(InputError, match=f'is not understood at {at}'):
      sharding.parse(text)


def test_a_mesh_takes_all_devices():
  with pytest.raises(InputError, match='data:2,fsdp:2,tensor:1 needs 4 devices, there are 1'):
    sharding.make_mesh(sharding.parse('2x2x1'), jax.devices()[:1])
