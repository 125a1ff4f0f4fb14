"""The loss against torch's cross-entropy with Hugging Face labels."""

import jax
import numpy as np
import pytest
import torch

from weightsteer_jax import models
from weightsteer_jax.data import batches
from weightsteer_jax.finetune import step as steps


@pytest.mark.parametrize(
  'rows', [[[0], [1], [2], [3], [4]], [[0, 3], [4, 1], [2]]], ids=['padded', 'packed']
)
def test_sum_and_count_equal_those_of_cross_entropy_on_labels(checkpoint, make_examples, rows):
  case = checkpoint('llama3')
  examples = make_examples(5, seed=3)
  batch = batches.fill(examples, rows, num_rows=6, row_length=40)
  delta = models.init_delta(case.model.config, 'bias', jax.random.key(0))
  total, count = steps.eval_loss_fn(case.model.config)(delta, case.model.params, batch)
  losses = [_torch_losses(case, example) for example in examples]
  assert count == sum(map(len, losses)) > 0
  np.testing.assert_allclose(total, np.concatenate(losses).sum(), rtol=1e-5)


def _torch_losses(case, example) -> np.ndarray:
  """Loss of each labelled token of one example, alone in its row."""
  ids = torch.as_tensor(example.tokens, dtype=torch.long)
  labels = torch.where(torch.as_tensor(example.loss_mask), ids, -100)
  with torch.no_grad():
    logits = case.torch_model(ids[None]).logits[0]
  losses = torch.nn.functional.cross_entropy(
    logits[:-1], labels[1:], ignore_index=-100, reduction='none'
  )
  return losses[labels[1:] != -100].numpy()
