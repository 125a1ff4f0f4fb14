"""The route over merged bfloat16 checkpoints, against the same route walked in torch."""

import numpy as np
import torch

from weightsteer_jax import directions, finetune

from . import oracle


def routes_by_torch(base, positive, negative):
  """(exact difference, difference of the sides merged into a bfloat16 base and rounded), flat,
  float64."""
  weights, plus, minus = (
    oracle.torch_weights(base, adapter) for adapter in (None, positive, negative)
  )
  exact, rounded = [], []
  for name, weight in weights.items():
    coarse = torch.tensor(weight).float().bfloat16().float()
    merged = [
      (coarse + torch.tensor(side[name] - weight).float()).bfloat16().double()
      for side in (plus, minus)
    ]
    rounded.append((merged[0] - merged[1]).numpy().ravel())
    exact.append((plus[name] - minus[name]).ravel())
  return np.concatenate(exact), np.concatenate(rounded)


def test_the_bfloat16_route_is_measured_as_torch_walks_it(untied, tmp_path):
  whole = ['embed_tokens', 'lm_head']
  for size, low, high in ((0.0003, 0.1, 0.95), (0.3, 0.99, 1.0)):
    sides = [
      oracle.make_adapter(
        tmp_path / f'{name}{size}', untied, seed=seed, size=size, modules_to_save=whole
      )
      for name, seed in (('p', 1), ('n', 2))
    ]
    exact, rounded = routes_by_torch(untied, *sides)
    cosine = exact @ rounded / np.linalg.norm(exact) / np.linalg.norm(rounded)
    measured = directions.between(*sides, compare_bfloat16=True).meta['bfloat16_route']
    assert abs(measured['cosine'] - cosine) < 1e-3
    assert abs(measured['norm_ratio'] - np.linalg.norm(rounded) / np.linalg.norm(exact)) < 1e-2
    assert low < measured['cosine'] < high


def test_runs_of_ours_find_their_base_again(untied_model, tmp_path):
  for name, seed in (('p', 1), ('n', 2)):
    delta = oracle.random_direction(untied_model, seed, size=0.3).delta
    finetune.save_adapter(
      tmp_path / name / 'adapter', delta, finetune.adapter.describe_base(untied_model)
    )
  measured = directions.between(tmp_path / 'p', tmp_path / 'n', compare_bfloat16=True).meta[
    'bfloat16_route'
  ]
  assert 0.99 < measured['cosine'] <= 1.0 and set(measured['cosines']) >= {
    'embed/embedding',
    'layers/mlp/up/kernel',
  }
