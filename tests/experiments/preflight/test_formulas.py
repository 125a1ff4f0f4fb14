"""Bytes and operations by formula, against arrays, the compiler's own count, and numbers worked out
by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from meshes import CONFIG
from runtime.test_sharding import QWEN_7B, mesh

from weightsteer_jax import config as configs
from weightsteer_jax import models
from weightsteer_jax.experiments.preflight import memory, report, roofline
from weightsteer_jax.experiments.preflight.hlo import Moved
from weightsteer_jax.experiments.preflight.topology import CHIPS
from weightsteer_jax.runtime import sharding
from weightsteer_jax.runtime.sharding import Layout

ONE_LAYER = dataclasses.replace(CONFIG, num_layers=1, width=64, mlp_width=256, vocab_size=512)


def weights(config, layout):
  return sharding.placed(
    models.abstract_params(config, jnp.bfloat16), models.param_shardings(config, layout)
  )


def test_bytes_of_a_device_are_those_of_its_shards():
  """7,615,616,512 parameters of two bytes; of the 16 shards of each array only norms and biases are
  less than a 16th."""
  assert sharding.bytes_on_device(weights(QWEN_7B, Layout(mesh(1, 1, 1)))) == 2 * 7_615_616_512
  cut = sharding.bytes_on_device(weights(QWEN_7B, Layout(mesh(1, 4, 4))))
  assert 0 < cut - 2 * 7_615_616_512 / 16 < 2e5
  layout = sharding.single()
  params = jax.device_put(
    models.init_params(CONFIG, jax.random.key(0), jnp.bfloat16),
    models.param_shardings(CONFIG, layout),
  )
  assert sharding.bytes_on_device(params) == sum(x.nbytes for x in jax.tree.leaves(params))


def test_operations_of_a_forward_pass_are_the_compilers():
  """Of one layer, whose scan the compiler counts in full. It counts norms, softmax and rope beside
  the products."""
  config, rows, tokens = ONE_LAYER, 2, 64
  params = models.abstract_params(config)

  def forward(params, tokens_BT):
    return models.logits(
      config, params, models.hidden(config, params, models.TokenBatch(tokens_BT))[0]
    )

  compiled = (
    jax.jit(forward).lower(params, jax.ShapeDtypeStruct((rows, tokens), jnp.int32)).compile()
  )
  work = roofline.forward(
    config,
    {},
    sharding.single(),
    memory.Bytes(weights=10),
    rows=(rows,),
    tokens=(tokens,),
    keys=(tokens,),
    heads=(rows * tokens,),
  )
  assert work.flops == pytest.approx(compiled.cost_analysis()['flops'], rel=0.06)
  assert work.moved == 10 and work.tokens == rows * tokens


def test_operations_of_a_training_step_by_hand():
  """LoRA of rank 16 on a 7B model: 6.5 billion parameters in the layers and 0.5 in the head."""
  assert roofline.matmul_parameters(QWEN_7B) == (
    28 * (3584 * 128 * (28 + 4 + 4) + 28 * 128 * 3584 + 3 * 3584 * 18944),
    152064 * 3584,
  )
  delta = jax.eval_shape(
    lambda: models.init_delta(QWEN_7B, 'lora', jax.random.key(0), rank=16, lora_alpha=32.0)
  )

  def step(remat):
    return roofline.train_step(
      QWEN_7B,
      delta,
      Layout(mesh(1, 1, 1)),
      memory.Bytes(),
      microbatches=1,
      rows=1,
      tokens=1000,
      remat=remat,
      trains_dense=False,
    )

  body, head = roofline.matmul_parameters(QWEN_7B)
  attention = 4 * 28 * 1000 * 1000 * 28 * 128
  lora = 40_370_176
  assert step('none').flops == 2 * (2 * body * 1000 + attention) + 6 * lora * 1000 + 4 * head * 1000
  assert step('full').flops - step('none').flops == 2 * body * 1000 + attention + 2 * lora * 1000
  assert step('dots').flops - step('none').flops == attention + 2 * lora * 1000


def test_operations_of_a_merge_by_hand():
  """The products a b of every matrix, experts included: 2 I R O operations a matrix."""
  config = dataclasses.replace(
    CONFIG, qkv_bias=False, num_experts=5, experts_per_token=3, normalise_choices=True
  )
  delta = jax.eval_shape(
    lambda: models.init_delta(config, 'lora', jax.random.key(0), rank=3, lora_alpha=6.0)
  )
  # A direction may also have a low-rank head, which is outside the stack.
  delta['lm_head'] = {'kernel': models.LowRank(jnp.zeros((32, 3)), jnp.zeros((3, 96)))}
  work = roofline.merge(config, delta, sharding.single(), memory.Bytes(weights=10, deltas=4))
  # Width 32; heads of 4, of which queries have 16, keys and values 8; MLP of width 40.
  attention = 32 * 16 * 4 + 2 * 32 * 8 * 4 + 16 * 4 * 32
  experts = 5 * 3 * 32 * 40
  assert work.flops == 2 * 3 * (2 * (attention + experts) + 32 * 96)
  assert work.moved == 2 * 10 + 4


def test_the_longest_resource_is_the_estimate():
  time = roofline.time(
    roofline.Work(197e12, 819e9 / 2, 1), {'all-gather': Moved(1, int(400e9))}, CHIPS['v5e']
  )
  assert (time.compute, time.memory, time.links) == (1.0, 0.5, 2.0)
  assert time.estimate == 2.0 and time.bound == 'links'


def test_the_first_change_of_a_fine_tune():
  """Against one projection with inputs of size 1, in float64: the first step of AdamW by hand."""
  config = configs.base_config()
  config.data.positive = config.data.negative = 'x.jsonl'
  config.finetune.update(kind='lora', rank=32, lora_alpha=16.0, learning_rates=(1e-5, 3e-5))
  assert report.first_change(configs.resolve(config)) == []
  config.model.dtype = 'bfloat16'
  [line] = report.first_change(configs.resolve(config))
  rng = np.random.default_rng(0)
  x_TD = rng.standard_normal((500, 576))
  a_DR = rng.uniform(-1, 1, (576, 32)) / 576**0.5
  b_RF = 1e-5 * rng.choice([-1, 1], (32, 300))
  size = (16 / 32 * x_TD @ a_DR @ b_RF).std()
  assert size == pytest.approx(1.63e-5, rel=0.03)
  assert 'learning rate 1e-05 changes outputs by about 2e-05 of their size' in line
