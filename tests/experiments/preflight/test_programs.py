"""Bytes of a tiny run's programs by kind, against what the compiler takes."""

import jax

from weightsteer_jax import config as configs
from weightsteer_jax import models
from weightsteer_jax.experiments.preflight import programs, topology

CONFIG = models.ModelConfig(
  vocab_size=96,
  num_layers=1,
  width=64,
  num_heads=4,
  num_kv_heads=2,
  head_dim=16,
  mlp_width=160,
  norm_eps=1e-5,
  rope=models.Rope(1000.0, 'default', 1.0, 1.0, 1.0, 256),
  tied=False,
  qkv_bias=False,
  o_bias=False,
  mlp_bias=False,
  activation='silu',
  max_positions=256,
)
RUN = configs.Run(
  name='x',
  finetune=configs.FineTune(
    kind='lora', rank=3, lora_alpha=6.0, learning_rates=(1e-2,), batch_size=4
  ),
  sweep=configs.Sweep(batch_size=8),
)


def test_arguments_by_kind_are_the_bytes_that_the_compiler_takes():
  plan = programs.plan(RUN, CONFIG, topology.find_hardware('local'), programs.Sizes(64, 32, 8, 16))
  for program in plan.programs:
    with program.layout.context():
      taken = program.lower().compile().memory_analysis().argument_size_in_bytes
    # What a program does not read (the head in a prefill, for one) is not passed.
    assert 0.75 * program.args.total <= taken <= program.args.total + 64, program.name
  step = plan.programs[0].args
  assert step.weights == sum(
    x.nbytes for x in jax.tree.leaves(models.init_params(CONFIG, jax.random.key(0)))
  )
  assert 2 * step.deltas <= step.optimizer <= 2 * step.deltas + 64  # two moments
