"""Training against torch: transformers' model, PEFT's LoRA, torch's AdamW, transformers' schedule
and decay groups."""

import copy

import jax
import numpy as np
import peft
import pytest
import tiny
import torch
import transformers

from weightsteer_jax import models
from weightsteer_jax.data import batches
from weightsteer_jax.finetune import optimizer
from weightsteer_jax.finetune import step as steps
from weightsteer_jax.runtime import tree

# What a compiler could break: see tests/README.md.
pytestmark = pytest.mark.optimised


STEPS = 6
TARGETS = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']


def test_lora_trains_as_peft_does(checkpoint, options, make_examples):
  case = checkpoint('qwen2')
  chosen = options(weight_decay=0.2, clip_norm=0.5)
  delta = tiny.randomised(
    models.init_delta(case.model.config, 'lora', jax.random.key(0), rank=3, lora_alpha=5.0)
  )
  wrapped = peft.get_peft_model(copy.deepcopy(case.torch_model), _lora(r=3, lora_alpha=5))
  _copy_factors(delta, wrapped)
  ours, theirs = _train_both(case, chosen, delta, wrapped, make_examples)
  for path, leaf in tree.flatten(ours, models.is_delta_leaf).items():
    for layer in range(case.model.config.num_layers):
      a, b = _factors(wrapped, path, layer)
      np.testing.assert_allclose(
        _matrix_a(leaf, layer), a.detach(), rtol=1e-4, atol=2e-5, err_msg=path
      )
      np.testing.assert_allclose(
        _matrix_b(leaf, layer), b.detach(), rtol=1e-4, atol=2e-5, err_msg=path
      )


@pytest.mark.parametrize('name', ['qwen2', 'llama32_tied'])
def test_lora_with_embeddings_trains_as_torch_does(checkpoint, options, make_examples, name):
  """Untied, PEFT's modules_to_save; tied, the table that torch shares between both ends. No decay:
  see optimizer.py."""
  case = checkpoint(name)
  tied = case.model.config.tied
  delta = models.init_delta(
    case.model.config, 'lora_embeddings', jax.random.key(0), rank=3, lora_alpha=5.0
  )
  delta = tree.unflatten(
    {
      path: leaf if isinstance(leaf, models.Dense) else tiny.randomised(leaf)
      for path, leaf in tree.flatten(delta, models.is_delta_leaf).items()
    }
  )
  wrapped = peft.get_peft_model(
    copy.deepcopy(case.torch_model),
    _lora(r=3, lora_alpha=5, modules_to_save=None if tied else ['embed_tokens', 'lm_head']),
  )
  _copy_factors(delta, wrapped)
  if tied:
    wrapped.get_input_embeddings().weight.requires_grad_(True)
  ours, _ = _train_both(case, options(weight_decay=0.0), delta, wrapped, make_examples)
  merged = models.merge(case.model.config, case.model.params, ours, 1.0)
  trained = {name: p.detach().numpy() for name, p in wrapped.named_parameters() if p.requires_grad}
  embedding = next(value for name, value in trained.items() if 'embed_tokens' in name)
  np.testing.assert_allclose(merged['embed']['embedding'], embedding, rtol=1e-4, atol=2e-5)
  assert np.abs(embedding - np.asarray(case.model.params['embed']['embedding'])).max() > 1e-2
  if not tied:
    head = next(value for name, value in trained.items() if 'lm_head' in name)
    np.testing.assert_allclose(merged['lm_head']['kernel'], head.T, rtol=1e-4, atol=2e-5)
  assert ('lm_head' in ours) is not tied


def test_bias_trains_as_torch_does_and_does_not_decay(checkpoint, options, make_examples):
  case = checkpoint('llama_biases')
  delta = models.init_delta(case.model.config, 'bias', jax.random.key(0))
  model = copy.deepcopy(case.torch_model)
  for name, parameter in model.named_parameters():
    parameter.requires_grad_(name.endswith('mlp.down_proj.bias'))
  ours, _ = _train_both(
    case, options(kind='bias', weight_decay=0.5, clip_norm=0.3), delta, model, make_examples
  )
  merged = models.merge(case.model.config, case.model.params, ours, 1.0)['layers']['mlp']['down'][
    'bias'
  ]
  theirs = np.stack([layer.mlp.down_proj.bias.detach().numpy() for layer in model.model.layers])
  np.testing.assert_allclose(merged, theirs, rtol=1e-4, atol=2e-5)


def test_full_trains_as_torch_does(checkpoint, options, make_examples, tmp_path):
  """Every parameter, compared through the checkpoint we write; no weight decay: see
  optimizer.py."""
  case = checkpoint('llama32_tied')
  delta = models.init_delta(case.model.config, 'full', jax.random.key(0))
  model = copy.deepcopy(case.torch_model)
  ours, _ = _train_both(case, options(kind='full', weight_decay=0.0), delta, model, make_examples)
  models.save(
    tmp_path / 'merged',
    case.model.config,
    models.merge(case.model.config, case.model.params, ours, 1.0),
    family=case.family,
    like=case.folder,
  )
  saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'merged').state_dict()
  for name, parameter in model.state_dict().items():
    np.testing.assert_allclose(saved[name], parameter, rtol=1e-4, atol=5e-5, err_msg=name)


def _train_both(case, options, delta, model, make_examples):
  """(our delta, torch's model) after the same steps; losses, gradient norms and learning rates are
  compared each."""
  recipe = optimizer.adamw(options)
  state = steps.TrainState(delta, optimizer.transformation(recipe).init(delta), np.int32(0))
  train_step = steps.train_step_fn(case.model.config, recipe)
  schedule = optimizer.schedule(options, peak=options.learning_rates[0], total=STEPS)
  torch_step = _torch_trainer(model, options)
  norms = []
  for number in range(STEPS):
    examples = make_examples(3, seed=number)
    batch = batches.fill(examples, [[0], [1], [2]], num_rows=3, row_length=20)
    state, metrics = train_step(
      state, case.model.params, batches.microbatches(batch, 1), schedule, 0
    )
    loss, norm, rate = torch_step(examples)
    np.testing.assert_allclose(metrics['train_loss'], loss, rtol=1e-4)
    np.testing.assert_allclose(metrics['grad_norm'], norm, rtol=1e-3)
    np.testing.assert_allclose(metrics['learning_rate'], rate, rtol=1e-6)
    assert metrics['finite']
    norms.append(norm)
  assert max(norms) > options.clip_norm, 'clipping was never active'
  return state.delta, model


def _torch_trainer(model, options):
  """examples -> (loss, gradient norm, learning rate) of one step as the Hugging Face trainer takes
  it."""
  model.train()
  decaying = set(transformers.Trainer.get_decay_parameter_names(None, model))
  trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
  groups = [
    {
      'params': [p for name, p in trained.items() if name in decaying],
      'weight_decay': options.weight_decay,
    },
    {'params': [p for name, p in trained.items() if name not in decaying], 'weight_decay': 0.0},
  ]
  adamw = torch.optim.AdamW(
    [group for group in groups if group['params']],
    lr=options.learning_rates[0],
    betas=(options.beta1, options.beta2),
    eps=options.epsilon,
  )
  schedule = transformers.get_linear_schedule_with_warmup(adamw, options.warmup_steps, STEPS)

  def step(examples):
    ids, attention, labels = (
      torch.zeros(3, 20, dtype=torch.long),
      torch.zeros(3, 20, dtype=torch.long),
      torch.full((3, 20), -100),
    )
    for row, example in enumerate(examples):
      n = len(example)
      ids[row, :n], attention[row, :n] = torch.as_tensor(example.tokens), 1
      labels[row, :n] = torch.where(torch.as_tensor(example.loss_mask), ids[row, :n], -100)
    loss = model(input_ids=ids, attention_mask=attention, labels=labels).loss
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), options.clip_norm)
    rate = schedule.get_last_lr()[0]
    adamw.step()
    schedule.step()
    adamw.zero_grad()
    return loss.item(), norm.item(), rate

  return step


def _lora(**options):
  return peft.LoraConfig(target_modules=TARGETS, lora_dropout=0.0, task_type='CAUSAL_LM', **options)


def _factors(wrapped, path, layer):
  """PEFT's lora_A and lora_B weights of the projection at one of our paths."""
  _, room, name, _ = path.split('/')
  block = wrapped.base_model.model.model.layers[layer]
  module = getattr({'attn': block.self_attn, 'mlp': block.mlp}[room], f'{name}_proj')
  return module.lora_A['default'].weight, module.lora_B['default'].weight


def _matrix_a(leaf, layer):
  """Our factor a [L, inputs..., R] of a layer as PEFT's [R, inputs]."""
  a = np.asarray(leaf.a[layer])
  return a.reshape(-1, a.shape[-1]).T


def _matrix_b(leaf, layer):
  """Our factor b [L, R, outputs...] of a layer as PEFT's [outputs, R]."""
  b = np.asarray(leaf.b[layer])
  return b.reshape(b.shape[0], -1).T


def _copy_factors(delta, wrapped):
  for path, leaf in tree.flatten(delta, models.is_delta_leaf).items():
    if isinstance(leaf, models.LowRank):
      for layer in range(leaf.a.shape[0]):
        a, b = _factors(wrapped, path, layer)
        a.data.copy_(torch.as_tensor(_matrix_a(leaf, layer)))
        b.data.copy_(torch.as_tensor(_matrix_b(leaf, layer)))
