"""Adapters of other kinds than LoRA, against PEFT's merge of the whole model and its logits."""

import json
import sys
import warnings

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from weightsteer_jax import directions, models
from weightsteer_jax.directions.streamed import on_disk
from weightsteer_jax.exports import parity
from weightsteer_jax.runtime.errors import InputError

from . import oracle
from .test_dora import assert_close, in_our_axes

TARGETS = ['q_proj', 'down_proj']
QUICK = {
  'loha': lambda: peft.LoHaConfig(r=3, alpha=5, target_modules=TARGETS),
  'lokr': lambda: peft.LoKrConfig(r=3, alpha=5, target_modules=TARGETS),
  'vera': lambda: peft.VeraConfig(r=4, target_modules=['q_proj', 'o_proj']),
  'oft': lambda: peft.OFTConfig(oft_block_size=4, target_modules=TARGETS),
  'adalora': lambda: peft.AdaLoraConfig(
    init_r=4, target_r=2, lora_alpha=5, total_step=9, target_modules=TARGETS
  ),
  # On keys and values with biases, of which the adapter scales the outputs.
  'ia3': lambda: peft.IA3Config(
    target_modules=['k_proj', 'v_proj', 'down_proj'], feedforward_modules=['down_proj']
  ),
}
SLOW = {
  'boft': lambda: peft.BOFTConfig(boft_block_size=4, target_modules=TARGETS),
  'c3a': lambda: peft.C3AConfig(block_size=8, target_modules=TARGETS),
  'deft': lambda: peft.DeftConfig(target_modules=TARGETS),
  'delora': lambda: peft.DeloraConfig(r=4, target_modules=TARGETS),
  'fourierft': lambda: peft.FourierFTConfig(n_frequency=20, target_modules=TARGETS),
  'frod': lambda: peft.FrodConfig(target_modules=TARGETS),
  'glora': lambda: peft.GloraConfig(target_modules=TARGETS),
  'gralora': lambda: peft.GraloraConfig(r=4, gralora_k=2, target_modules=TARGETS),
  'hira': lambda: peft.HiraConfig(r=4, target_modules=TARGETS),
  'hra': lambda: peft.HRAConfig(r=4, target_modules=TARGETS),
  'layer_norm': lambda: peft.LNTuningConfig(target_modules=['input_layernorm', 'norm']),
  'miss': lambda: peft.MissConfig(r=4, target_modules=TARGETS),
  'osf': lambda: peft.OSFConfig(target_modules=TARGETS),
  'peanut': lambda: peft.PeanutConfig(target_modules=TARGETS),
  'psoft': lambda: peft.PsoftConfig(r=4, target_modules=TARGETS),
  'randlora': lambda: peft.RandLoraConfig(r=4, target_modules=TARGETS),
  'road': lambda: peft.RoadConfig(group_size=8, target_modules=TARGETS),
  'shira': lambda: peft.ShiraConfig(r=4, target_modules=TARGETS),
  'supertuning': lambda: peft.SupertuningConfig(target_modules=TARGETS),
  'tinylora': lambda: peft.TinyLoraConfig(target_modules=TARGETS),
  'tokens': lambda: peft.TrainableTokensConfig(
    token_indices=[1, 5], target_modules=['embed_tokens']
  ),
  'unilora': lambda: peft.UniLoraConfig(target_modules=TARGETS),
  'vblora': lambda: peft.VBLoRAConfig(
    r=2, num_vectors=8, vector_length=8, topk=2, target_modules=TARGETS
  ),
  'waveft': lambda: peft.WaveFTConfig(n_frequency=20, target_modules=TARGETS),
}


def make(folder, base, config, seed):
  """A saved adapter with everything that is trainable moved."""
  torch.manual_seed(seed)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
      for parameter in model.parameters():
        if parameter.requires_grad:
          parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
  return folder


def merged(base, adapter) -> dict[str, np.ndarray]:
  """{tensor: float64} of the whole model merged by PEFT in float32, apart from one rounding."""
  model = transformers.AutoModelForCausalLM.from_pretrained(base)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
  return {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}


def assert_is_peft(base, adapter, direction):
  model = transformers.AutoModelForCausalLM.from_pretrained(base)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    expected = oracle.torch_logits(peft.PeftModel.from_pretrained(model, adapter))
  ours = models.load(base)
  got = parity.logits(ours.config, ours.params, oracle.TOKENS, delta=direction.delta, alpha=1.0)
  np.testing.assert_allclose(got, expected, atol=1e-4)
  weights = {name: tensor.astype(np.float64) for name, tensor in merged(base, adapter).items()}
  own = load_file(base / 'model.safetensors')
  changes = in_our_axes(ours, {name: weights[name] - own[name] for name in own})
  changes = {path: c * (np.abs(c).max() > 1e-6) for path, c in changes.items()}
  # float32 of the largest change.
  largest = max(np.abs(change).max() for change in changes.values())
  assert_close(direction.delta, changes, atol=1e-6 * max(1.0, largest))


@pytest.mark.parametrize('make_config', QUICK.values(), ids=QUICK)
def test_an_adapter_of_another_kind_is_what_peft_merges(untied, tmp_path, make_config):
  adapter = make(tmp_path / 'a', untied, make_config(), 1)
  assert_is_peft(untied, adapter, directions.between(adapter, base=untied))


@pytest.mark.slow
@pytest.mark.parametrize('make_config', SLOW.values(), ids=SLOW)
def test_all_other_kinds_are_what_peft_merges(untied, tmp_path, make_config):
  adapter = make(tmp_path / 'a', untied, make_config(), 1)
  assert_is_peft(untied, adapter, directions.between(adapter, base=untied))


def test_the_difference_of_two_kinds_is_streamed(untied, tmp_path):
  """LoHa with a head saved whole, minus a LoRA: kernels computed, the rest in memory."""
  config = peft.LoHaConfig(r=2, alpha=3, target_modules=TARGETS, modules_to_save=['lm_head'])
  plus = make(tmp_path / 'p', untied, config, 1)
  minus = oracle.make_adapter(tmp_path / 'n', untied, seed=2)
  direction = directions.between(plus, minus, base=untied, unread=True)
  leaves = oracle.leaves_of(direction.delta)
  streamed = {path for path, leaf in leaves.items() if on_disk.is_on_disk(leaf)}
  assert streamed == {'layers/attn/q/kernel', 'layers/mlp/down/kernel', 'lm_head/kernel'}
  directions.save(tmp_path / 'out', direction)
  x, y = merged(untied, plus), oracle.torch_weights(untied, minus)
  changes = in_our_axes(models.load(untied), {name: x[name] - y[name] for name in y})
  changes = {path: c for path, c in changes.items() if np.abs(c).max() > 1e-6}
  assert_close(directions.load(tmp_path / 'out').delta, changes, atol=1e-6)
  assert 'peft' in direction.meta['sources'][0]['meta']['read_by']


def test_single_tokens_of_a_tied_base_change_at_both_ends(tied, tmp_path):
  config = peft.TrainableTokensConfig(token_indices=[1, 5], target_modules=['embed_tokens'])
  adapter = make(tmp_path / 'a', tied, config, 1)
  delta = directions.between(adapter, base=tied).delta
  (path,) = oracle.leaves_of(delta)
  change = np.asarray(oracle.leaves_of(delta)[path].value)
  assert path == 'embed/embedding' and {*np.flatnonzero(change.any(axis=1))} == {1, 5}
  saved = load_file(adapter / 'adapter_model.safetensors')
  (rows,) = [tensor for name, tensor in saved.items() if 'embed_tokens' in name]
  own = load_file(tied / 'model.safetensors')['model.embed_tokens.weight']
  np.testing.assert_allclose(change[[1, 5]], rows - own[[1, 5]], atol=1e-7)


def test_what_is_not_whole_or_cannot_be_merged_is_refused(untied, tmp_path, monkeypatch):
  adapter = make(tmp_path / 'a', untied, QUICK['loha'](), 1)
  path = adapter / 'adapter_model.safetensors'
  tensors = load_file(path)
  tensors.pop(next(name for name in tensors if 'hada_w1_a' in name))
  save_file(tensors, path)
  with pytest.raises(InputError, match='is not whole: Found missing adapter keys'):
    directions.between(adapter, base=untied)
  lily = make(tmp_path / 'lily', untied, peft.LilyConfig(target_modules=TARGETS), 1)
  with pytest.raises(InputError, match="peft_type is 'LILY', which is no change of weights"):
    directions.between(lily, base=untied)
  config = json.loads((adapter / 'adapter_config.json').read_text())
  (adapter / 'adapter_config.json').write_text(json.dumps(config | {'rank_of_tomorrow': 3}))
  monkeypatch.setitem(sys.modules, 'peft', None)
  with pytest.raises(
    InputError, match=r"'peft' is not installed: pip install 'weightsteer_jax\[peft"
  ):
    directions.between(adapter, base=untied)
