"""Merges by mergekit and by us of the same small checkpoints, and the largest difference.

See mergekit_parity.sh. The base has random weights in Llama's shapes; two fine-tunes are the base
with LoRA adapters of rank 4 merged in float32.
"""

import pathlib
import sys

import numpy as np
import torch
import transformers
from mergekit.architecture import WeightInfo
from mergekit.common import ImmutableMap, ModelReference
from mergekit.config import ConditionalParameter, evaluate_setting
from mergekit.io.tasks import GatherTensors
from mergekit.merge_methods import generalized_task_arithmetic, registry
from mergekit.sparsify import rescaled_masked_tensor

from weightsteer_jax import directions, models
from weightsteer_jax.directions import combining
from weightsteer_jax.directions.combining import sparse
from weightsteer_jax.directions.streamed import computed

LAYERS = 4
CASES = (
  ('task_arithmetic', {}, [0.3, 1.0], 1.0),
  ('task_arithmetic', {'normalize': True, 'lambda': 0.7}, 2.0, 1.0),
  ('ties', {}, 1.0, 0.3),
  (
    'ties',
    {'normalize': False, 'lambda': 1.3},
    [{'filter': 'mlp', 'value': 2.0}, {'value': 0.5}],
    0.6,
  ),
  ('dare_linear', {}, 1.0, 0.5),
  ('dare_ties', {'rescale': False}, -0.7, 0.5),
)


def main(folder: pathlib.Path) -> None:
  """Prints a line for each case; exits with 1 if a difference is above 1e-6."""
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=96,
    hidden_size=48,
    intermediate_size=64,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
  )
  base = transformers.LlamaForCausalLM(config)
  base.save_pretrained(folder / 'base')
  names = {}
  for seed in (1, 2):
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    torch.manual_seed(seed)
    for name, tensor in state.items():
      if tensor.ndim == 2 and 'proj' in name:
        tensor += 0.05 * torch.randn(tensor.shape[0], 4) @ torch.randn(4, tensor.shape[1])
    tuned = transformers.LlamaForCausalLM(config)
    tuned.load_state_dict(state)
    tuned.save_pretrained(folder / f'tuned{seed}')
    names[seed] = state
  ours = [directions.task_vector(folder / f'tuned{seed}', folder / 'base') for seed in (1, 2)]
  model = models.load(folder / 'base')
  worst = 0.0
  for number, (method, parameters, weight, density) in enumerate(CASES):
    term = {'weight': weight, **({} if method == 'task_arithmetic' else {'density': density})}
    recipe = combining.parse(
      {
        'merge_method': method,
        'models': [
          {'model': 'one', 'parameters': term},
          {'model': 'two', 'parameters': term | {'weight': 1.0}},
        ],
        'parameters': parameters,
      },
      'recipe',
    )
    combined = combining.combine(ours, recipe)
    merged = models.merge(model.config, model.params, computed.in_memory(combined.delta), 1.0)
    models.save(folder / f'ours{number}', model.config, merged, family='llama')
    got = transformers.LlamaForCausalLM.from_pretrained(folder / f'ours{number}').state_dict()
    largest = 0.0
    for name, tensor in base.state_dict().items():
      expected = theirs(name, tensor, [names[1][name], names[2][name]], recipe, parameters)
      largest = max(largest, float((got[name] - expected).abs().max()))
    print(f'{method:16} {parameters!s:36} weight {weight!s:60.60} largest difference {largest:.1e}')
    worst = max(worst, largest)
  sys.exit(worst > 1e-6)


def theirs(name, base, tuned, recipe, parameters):
  """mergekit's merge of a tensor, by the task that it makes of a recipe."""
  method = registry.REGISTERED_MERGE_METHODS[recipe.method]
  layer = next((int(part) for part in name.split('.') if part.isdecimal()), None)
  depth = 0.0 if layer is None else layer / (LAYERS - 1)
  of_base = ModelReference.model_validate('base')
  tensors = {of_base: base}
  settings = {}
  for place, (term, tensor) in enumerate(zip(recipe.terms, tuned)):
    model = ModelReference.model_validate(f'tuned{place}')
    tensors[model] = tensor
    settings[model] = ImmutableMap(
      {
        'weight': evaluate_setting(name, conditions(term.weight), depth),
        'density': evaluate_setting(name, term.density, depth),
      }
    )
  places = iter(range(len(tuned)))

  def by_our_masks(tensor, density, method, rescale_norm=None, **_):
    mask = sparse.drawn(tensor.numel(), density, recipe.seed, f'{next(places)} {name}')
    mask = torch.tensor(np.asarray(mask)).reshape(tensor.shape)
    return rescaled_masked_tensor(tensor, mask.to(tensor.dtype), rescale_norm)

  own = generalized_task_arithmetic.sparsify
  if recipe.method.startswith('dare'):
    generalized_task_arithmetic.sparsify = by_our_masks
  try:
    return run(method, tensors, settings, recipe, parameters, of_base, name)
  finally:
    generalized_task_arithmetic.sparsify = own


def conditions(setting):
  """A setting with mergekit's own entries for filters."""
  if isinstance(setting, list) and isinstance(setting[0], dict):
    return [ConditionalParameter(**entry) for entry in setting]
  return setting


def run(method, tensors, settings, recipe, parameters, of_base, name):
  """The merge of a tensor."""
  task = method.make_task(
    output_weight=WeightInfo(name=name),
    tensors=GatherTensors(weight_info=ImmutableMap({})),
    base_model=of_base,
    parameters=ImmutableMap(
      {
        'int8_mask': False,
        'normalize': recipe.normalize,
        'rescale': recipe.rescale,
        'lambda': parameters.get('lambda', 1.0),
      }
    ),
    tensor_parameters=ImmutableMap(settings),
  )
  return task.execute(tensors=dict(tensors))


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
