"""LoRA that starts inside of the base (PiSSA, OLoRA, CorDA) against PEFT's own loading."""

import json

import numpy as np
import peft
import pytest
import torch
import transformers

from weightsteer_jax import directions
from weightsteer_jax.directions.adapters import rest
from weightsteer_jax.models import LowRank
from weightsteer_jax.runtime.errors import InputError

from . import oracle
from .test_between import assert_same_changes

STARTED = {
  'plain': dict(),
  'rslora': dict(use_rslora=True),
  'patterns': dict(rank_pattern={'q_proj': 2}, alpha_pattern={'layers.1.mlp.up_proj': 9}),
}


def merged(base, adapter):
  """{tensor: float64} of the base with the adapter, as PEFT loads and merges it in float32."""
  model = transformers.AutoModelForCausalLM.from_pretrained(base)
  model = peft.PeftModel.from_pretrained(model, adapter)
  for module in model.modules():
    # What PEFT computed on loading stays; the sum itself is taken in float64.
    if isinstance(module, peft.tuners.lora.LoraLayer):
      module.double()
  weights = model.double().merge_and_unload().state_dict()
  return {name: tensor.numpy() for name, tensor in weights.items()}


@pytest.mark.parametrize('start', ['pissa', 'olora'])
@pytest.mark.parametrize('options', STARTED.values(), ids=STARTED)
def test_two_adapters_with_one_start(untied, tmp_path, start, options):
  options = dict(init_lora_weights=start, r=3, lora_alpha=5) | options
  plus = oracle.make_adapter(tmp_path / 'plus', untied, seed=1, size=0.02, **options)
  minus = oracle.make_adapter(tmp_path / 'minus', untied, seed=2, size=0.02, **options)
  x, y = merged(untied, plus), merged(untied, minus)
  changes = {name: x[name] - y[name] for name in x if (x[name] != y[name]).any()}
  direction = directions.between(plus, minus)
  assert_same_changes(direction.delta, changes, tolerance=2e-6)
  # The start cancels out: nothing but the two pairs.
  ranks = [leaf.a.shape[-1] for leaf in oracle.leaves_of(direction.delta).values()]
  assert max(ranks) == 6


@pytest.mark.parametrize('start', ['pissa', 'olora'])
def test_one_adapter_is_taken_from_the_base_itself(untied, tmp_path, start):
  adapter = oracle.make_adapter(
    tmp_path / 'one', untied, seed=1, size=0.02, init_lora_weights=start, r=3, lora_alpha=5
  )
  tuned, base = merged(untied, adapter), oracle.torch_weights(untied)
  changes = {name: tuned[name] - base[name] for name in tuned}
  changes = {name: change for name, change in changes.items() if np.abs(change).max() > 1e-5}
  delta = directions.between(adapter).delta
  # PEFT takes the start out in float32, so its rest has the rounding of the whole weights.
  assert_same_changes(delta, changes, tolerance=1e-5)
  assert all(isinstance(leaf, LowRank) for leaf in oracle.leaves_of(delta).values())


def test_modules_and_ranks_that_differ_have_starts_of_their_own(untied, tmp_path):
  common = dict(init_lora_weights='pissa', size=0.02)
  plus = oracle.make_adapter(tmp_path / 'plus', untied, seed=1, r=3, **common)
  minus = oracle.make_adapter(
    tmp_path / 'minus',
    untied,
    seed=2,
    r=3,
    rank_pattern={'v_proj': 2},
    **common | dict(target_modules=['q_proj', 'v_proj', 'down_proj']),
  )
  x, y = merged(untied, plus), merged(untied, minus)
  changes = {name: x[name] - y[name] for name in x if np.abs(x[name] - y[name]).max() > 1e-5}
  delta = directions.between(plus, minus).delta
  assert_same_changes(delta, changes, tolerance=1e-5)
  ranks = {path: leaf.a.shape[-1] for path, leaf in oracle.leaves_of(delta).items()}
  assert ranks['layers/attn/q/kernel'] == 6
  assert ranks['layers/attn/v/kernel'] == 3 + 2 + 3 + 2
  assert ranks['layers/attn/k/kernel'] == 3 + 3


def corda(folder, base, seed, cache):
  """A CorDA adapter on a fixed sample, with the covariances cached in a file."""
  from peft.tuners.lora.config import CordaConfig
  from peft.tuners.lora.corda import preprocess_corda

  torch.manual_seed(seed)
  model = transformers.AutoModelForCausalLM.from_pretrained(base)
  config = peft.LoraConfig(
    r=3,
    lora_alpha=5,
    target_modules=['q_proj', 'down_proj'],
    init_lora_weights='corda',
    corda_config=CordaConfig(corda_method='kpm', cache_file=str(cache)),
  )
  preprocess_corda(model, config, run_model=lambda: model(torch.tensor(oracle.TOKENS[:1])))
  model = peft.get_peft_model(model, config)
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.requires_grad:
        parameter.add_(0.02 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  weights = model.double().merge_and_unload().state_dict()
  return {name: tensor.numpy() for name, tensor in weights.items()}


def test_two_corda_adapters_of_one_cache(untied, tmp_path):
  x = corda(tmp_path / 'plus', untied, 1, tmp_path / 'cache.pt')
  y = corda(tmp_path / 'minus', untied, 2, tmp_path / 'cache.pt')
  changes = {name: x[name] - y[name] for name in x if (x[name] != y[name]).any()}
  direction = directions.between(tmp_path / 'plus', tmp_path / 'minus', base=untied)
  assert_same_changes(direction.delta, changes, tolerance=1e-5)
  with pytest.raises(InputError, match="'corda'; its start comes from sample inputs"):
    directions.between(tmp_path / 'plus', base=untied)
  config = json.loads((tmp_path / 'minus' / 'adapter_config.json').read_text())
  config['corda_config']['cache_file'] = 'elsewhere.pt'
  (tmp_path / 'minus' / 'adapter_config.json').write_text(json.dumps(config))
  with pytest.raises(InputError, match='nothing says that they started from the same sample'):
    directions.between(tmp_path / 'plus', tmp_path / 'minus', base=untied)


@pytest.mark.parametrize(
  ('start', 'message'),
  [
    ('pissa_niter_4', 'randomised SVD, which differs from run to run.*PEFT itself draws another'),
    ('lora_ga', 'that is not in the file'),
    ('loftq', 'that is not in the file'),
    ('something new', 'that is not in the file'),
  ],
)
def test_starts_that_cannot_be_known_again_are_refused(adapters, untied, tmp_path, start, message):
  """Before the base is read: the path of the base does not exist."""
  folder = tmp_path / 'adapter'
  folder.mkdir()
  config = json.loads((adapters[0] / 'adapter_config.json').read_text())
  config |= {'init_lora_weights': start}
  (folder / 'adapter_config.json').write_text(json.dumps(config))
  with pytest.raises(InputError, match=f'{message}.*path_initial_model_for_weight_conversion'):
    directions.between(folder, adapters[1], base=tmp_path / 'nowhere')


def test_the_largest_part_of_wide_and_tall_weights():
  random = np.random.default_rng(0)
  for shape in ((6, 9), (9, 6)):
    weight = random.normal(size=shape)
    u, s, v = np.linalg.svd(weight, full_matrices=False)
    b, a = rest._largest(weight, 2)
    np.testing.assert_allclose(b @ a, (u[:, :2] * s[:2]) @ v[:2], atol=1e-12)
