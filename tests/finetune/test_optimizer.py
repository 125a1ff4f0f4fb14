"""The schedule against transformers', and what decays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from weightsteer_jax import models
from weightsteer_jax.finetune import optimizer
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError


@pytest.mark.parametrize('warmup,total', [(5, 20), (0, 7), (9, 4)])
def test_learning_rates_are_those_of_transformers(options, warmup, total):
  schedule = optimizer.schedule(options(warmup_steps=warmup), peak=0.3, total=total)
  adamw = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=0.3)
  theirs = transformers.get_linear_schedule_with_warmup(adamw, warmup, total)
  for step in range(total):
    np.testing.assert_allclose(schedule(jnp.int32(step)), theirs.get_last_lr()[0], rtol=1e-6)
    adamw.step()
    theirs.step()


def test_kernels_and_embeddings_decay_and_biases_and_norms_do_not(checkpoint):
  config = checkpoint('llama_biases').model.config
  full = tree.flatten(optimizer.decayed(models.init_delta(config, 'full', jax.random.key(0))))
  assert {path for path, decays in full.items() if decays} == {
    path for path in full if path.endswith(('kernel/value', 'embedding/value'))
  }
  assert sum(not decays for decays in full.values()) == 3 + 7, 'three norms and seven biases'
  lora = optimizer.decayed(models.init_delta(config, 'lora', jax.random.key(0), rank=2))
  assert all(tree.flatten(lora).values()) and len(tree.flatten(lora)) == 14
  with pytest.raises(InputError, match="no rule says whether 'layers/gate_factor/value' decays"):
    optimizer.decayed({'layers': {'gate_factor': models.Dense(jnp.zeros(2))}})
