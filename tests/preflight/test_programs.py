"""Bytes and operations of a tiny run's programs against the compiler's, and the verdict as a user gets it."""
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from weightsteer_jax import config as configs
from weightsteer_jax import models
from weightsteer_jax.preflight import programs, roofline, run as runs, topology

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = models.ModelConfig(vocab_size=96, num_layers=1, width=64, num_heads=4, num_kv_heads=2, head_dim=16, mlp_width=160,
                            norm_eps=1e-5, rope=models.Rope(1000.0, 'default', 1.0, 1.0, 1.0, 256), tied=False, qkv_bias=False,
                            o_bias=False, mlp_bias=False, activation='silu', max_positions=256)
RUN = configs.Run(name='x', finetune=configs.FineTune(kind='lora', rank=3, lora_alpha=6.0, learning_rates=(1e-2,), batch_size=4),
                  sweep=configs.Sweep(batch_size=8))


def test_arguments_by_kind_are_the_bytes_that_the_compiler_takes():
  plan = programs.plan(RUN, CONFIG, topology.target('local'), programs.Sizes(64, 32, 8, 16))
  for program in plan.programs:
    with program.layout.context():
      taken = program.lower().compile().memory_analysis().argument_size_in_bytes
    # What a program does not read (the head in a prefill, for one) is not passed.
    assert 0.75 * program.args.total <= taken <= program.args.total + 64, program.name
  step = plan.programs[0].args
  assert step.weights == sum(x.nbytes for x in jax.tree.leaves(models.init_params(CONFIG, jax.random.key(0))))
  assert 2 * step.deltas <= step.optimizer <= 2 * step.deltas + 64  # two moments


def test_operations_by_formula_are_the_compilers_where_nothing_loops():
  rows, tokens = 2, 128
  body, head = roofline.matmul_parameters(CONFIG)
  assert body == 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 160 and head == 96 * 64
  function = lambda params, x: models.logits(CONFIG, params, models.hidden(CONFIG, params, x)[0])
  shapes = models.abstract_params(CONFIG), jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
  counted = jax.jit(function).lower(*shapes).compile().cost_analysis()['flops']
  formula = 2 * (body + head) * rows * tokens + roofline.attention(CONFIG, rows, tokens, tokens)
  assert formula == pytest.approx(counted, rel=0.1) and formula < counted  # Norms and softmax are left out.


def preflight(tmp_path, *flags):
  command = [sys.executable, str(ROOT / 'launch' / 'preflight.py'), f'--config={ROOT}/configs/quickstart.py', *flags]
  return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300,
                        env=os.environ | {'JAX_PLATFORMS': 'cpu'})


def test_the_organism_fits_here(tmp_path):
  done = preflight(tmp_path, '--programs=decoding step', f'--json={tmp_path}/x.jsonl')
  assert done.returncode == 0 and 'FITS: local' in done.stdout + done.stderr
  row = json.loads((tmp_path / 'x.jsonl').read_text())
  assert row['program'] == 'decoding step' and row['fits'] and row['cache'] > 0 and row['collectives'] == {}


@pytest.mark.parametrize('flags, said', [(['--topology=v5e:3x3'], 'multiples of 2x2'), (['--mesh=1x3x1'], 'mesh')])
def test_what_cannot_be_is_refused_before_compiling(tmp_path, flags, said):
  done = preflight(tmp_path, *flags)
  assert done.returncode == 65 and said in done.stderr.strip().splitlines()[-1] and 'Traceback' not in done.stderr


def test_the_compilers_out_of_memory_error_is_a_result():
  program = programs.plan(RUN, CONFIG, topology.target('local'), programs.Sizes(64, 32, 8, 16)).programs[0]
  message = 'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded by 4.75G.'
  result = runs._too_large(program, message, 1.0)
  assert not result.fits and result.peak == int(20.5 * 2**30) and result.bytes.total == result.peak and 'hbm' in result.error


@pytest.mark.slow
def test_a_tiny_model_on_tpus_that_are_not_there(tmp_path):
  pytest.importorskip('libtpu')
  done = preflight(tmp_path, '--topology=v5e:2x2', '--mesh=1x2x2', '--programs=training step', f'--json={tmp_path}/x.jsonl')
  assert done.returncode == 0, done.stderr
  row = json.loads((tmp_path / 'x.jsonl').read_text())
  assert row['memory'] == 15.75 * 2**30 and row['collectives'] and 0 < row['time']['compute'] < 1
