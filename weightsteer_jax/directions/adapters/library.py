"""Adapters of other kinds than LoRA, by PEFT's own code: LoHa, LoKr, VeRA, OFT, IA3 and more.

PEFT merges an adapter into a copy of one module in float64; the change is the merged weight minus
the base's. So additive kinds and multiplicative ones (OFT, BOFT, IA3, HRA) are one: a
change of this base's weights, exact at strength 1. PEFT's model stands on the mapped files of the
base, so that memory holds the adapter, and one module at a time.

This module alone uses torch and PEFT, which are the optional extra `peft`.
"""

import copy
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from weightsteer_jax.directions.adapters import modules
from weightsteer_jax.directions.adapters.config import LORA
from weightsteer_jax.directions.adapters.tensors import Adapter
from weightsteer_jax.directions.streamed import computed
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.models import Dense, stored
from weightsteer_jax.runtime.errors import InputError

# The prefix of PEFT's warning about tensors that the file does not hold.
MISSING = 'Found missing adapter keys'
NOUN = "PEFT's own code"


def changes(adapter: Adapter, base: Checkpoint) -> dict[str, Dense]:
  """{path: change} of an adapter; changes of weights are computed when read.

  Raises:
    InputError: if torch or PEFT are not installed, PEFT cannot load or merge the adapter, a tensor
      is missing in the file, or a module is not in the base.
  """
  before = _mapped(base)
  model = _load(adapter, base, before)
  computes: dict[str, Callable[[], np.ndarray]] = {}
  for module, layer in _tuned(model).items():
    name = f'{module}.weight'
    # A tied head is stored as the embedding.
    own = stored.EMBEDDING if base.config.tied and name == stored.HEAD else name
    if own not in before:
      raise modules.unknown(adapter, base, [module])
    computes[name] = functools.partial(_weight_change, adapter, module, layer, before[own])
  if base.config.tied:
    _untie(adapter, base, computes)
  for name, change in _bias_changes(adapter, model, before).items():
    computes[name] = functools.partial(np.array, change)
  unknown = set(computes) - set(before)
  if unknown:
    raise modules.unknown(adapter, base, unknown)
  return computed.leaves(base.config, base.family, computes, adapter.file)


def read_by(adapter: Adapter) -> dict[str, str]:
  """The entry of the provenance that names PEFT, where its code read the adapter."""
  return {} if adapter.config['peft_type'] == LORA else {'read_by': f'peft {version()}'}


def version() -> str:
  """PEFT's version."""
  peft, _ = _libraries()
  return peft.__version__


def _libraries() -> tuple[Any, Any]:
  """The modules peft and torch."""
  try:
    import peft
    import torch
  except ImportError as error:
    raise InputError(
      f"adapters of other kinds than LORA are read by {NOUN}, and '{error.name}' is not installed: "
      "pip install 'weightsteer_jax[peft]'"
    ) from error
  return peft, torch


def _mapped(base: Checkpoint) -> dict[str, Any]:
  """{name: tensor of torch, mapped from the file and not read} of the base."""
  from safetensors.torch import load_file

  tensors: dict[str, Any] = {}
  for path in stored.weight_files(base.folder):
    tensors |= load_file(path)
  return tensors


def _load(adapter: Adapter, base: Checkpoint, before: Mapping[str, Any]) -> Any:
  """PEFT's model on the mapped base.

  Raises:
    InputError: if PEFT raises an error, or warns of missing tensors.
  """
  peft, torch = _libraries()
  import transformers

  with torch.device('meta'):
    config = transformers.AutoConfig.from_pretrained(base.folder)
    model = transformers.AutoModelForCausalLM.from_config(config)
  model.load_state_dict(dict(before), strict=False, assign=True)
  model.tie_weights()
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    try:
      model = peft.PeftModel.from_pretrained(
        model, adapter.folder, torch_device='cpu', autocast_adapter_dtype=False
      )
    # Any error of the library is about this folder, which the user should read first.
    except Exception as error:
      raise _refused(adapter, 'load', error) from error
  missing = [str(warning.message) for warning in caught if MISSING in str(warning.message)]
  if missing:
    raise InputError(f'{adapter.folder} is not whole: {missing[0].splitlines()[0][:300]}')
  return model.base_model.model.eval()


def _refused(adapter: Adapter, verb: str, error: Exception) -> InputError:
  text = str(error).strip().splitlines() or [type(error).__name__]
  return InputError(
    f"{adapter.folder}: PEFT {version()} could not {verb} this {adapter.config['peft_type']} "
    f'adapter: {text[0][:300]}'
  )


def _tuned(model: Any) -> dict[str, Any]:
  """{module: wrapper} of every module that the adapter changes or replaces."""
  from peft.tuners.tuners_utils import BaseTunerLayer
  from peft.utils.other import AuxiliaryTrainingWrapper

  tuned: dict[str, Any] = {}
  for name, module in model.named_modules(remove_duplicate=False):
    inside = any(name.startswith(f'{outer}.') for outer in tuned)
    if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) and not inside:
      tuned[name] = module
  return tuned


def _merged(adapter: Adapter, module: str, layer: Any) -> Any:
  """A copy of a module in float64 with the adapter merged into it.

  Raises:
    InputError: if PEFT cannot merge this kind.
  """
  _, torch = _libraries()
  if hasattr(layer, 'modules_to_save'):
    return layer.modules_to_save[layer.active_adapters[0]]
  try:
    with torch.no_grad():
      merged = copy.deepcopy(layer).double()
      merged.merge()
    return merged.get_base_layer()
  except Exception as error:
    raise _refused(adapter, f"merge '{module}' of", error) from error


def _weight_change(adapter: Adapter, module: str, layer: Any, before: Any) -> np.ndarray:
  """The change of a module's weight, float32."""
  merged = _merged(adapter, module, layer).weight.detach().double()
  return (merged - before.double()).float().numpy()


def _untie(
  adapter: Adapter, base: Checkpoint, computes: dict[str, Callable[[], np.ndarray]]
) -> None:
  """Leaves the change of the embedding for both ends of a tied base.

  Raises:
    InputError: if the ends change differently, which a tied model cannot hold.
  """
  ends = [computes[name] for name in (stored.EMBEDDING, stored.HEAD) if name in computes]
  if not ends:
    return
  if len(ends) == 1 or not np.array_equal(ends[0](), ends[1]()):
    raise InputError(
      f"{adapter.folder}: the base '{base.source}' ties its head to its embedding, but the adapter "
      'changes the two differently. Train again with ensure_weight_tying=True where PEFT has it, '
      'or give the base separate matrices (tie_word_embeddings false and lm_head.weight saved as '
      'a copy of the embedding) and pass that as the base'
    )
  computes.pop(stored.HEAD)


def _bias_changes(adapter: Adapter, model: Any, before: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """{tensor: change} of the biases that the adapter changes.

  Some kinds change a module's bias with its weight, and PEFT can train all others beside.
  """
  after: dict[str, Any] = {}
  if adapter.config.get('bias') not in (None, 'none'):
    for module, layer in model.named_modules():
      after[f'{module}.bias'] = getattr(layer, 'bias', None)
  for module, layer in _tuned(model).items():
    after[f'{module}.bias'] = None
    if f'{module}.bias' in before:
      after[f'{module}.bias'] = _merged(adapter, module, layer).bias
  changed = {}
  for name, bias in after.items():
    if name in before and bias is not None:
      change = (bias.detach().double() - before[name].double()).float().numpy()
      if change.any():
        changed[name] = change
  return changed
