"""Whether an adapter is whole: the tensors that its config and the base ask for, by PEFT's rules.

Source: peft.tuners.tuners_utils (`check_target_module_exists`, `_maybe_include_all_linear_layers`),
peft.tuners.lora.model (`_add_targets_to_tie`, `_add_modules_to_save_to_tie`), peft.utils.other
(`_set_trainable`, `set_additional_trainable_modules`), PEFT 0.21.2.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from weightsteer_jax import models
from weightsteer_jax.directions.adapters import config as configs
from weightsteer_jax.directions.adapters import modules, tensors
from weightsteer_jax.directions.adapters.experts import STACKS
from weightsteer_jax.directions.adapters.tensors import Adapter
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.models import stored
from weightsteer_jax.models.families import TensorRow
from weightsteer_jax.models.stored import EMBEDDING, HEAD
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import listed

ALL_LINEAR = 'all-linear'
EMBED_TOKENS = EMBEDDING.removesuffix('.weight')
LM_HEAD = HEAD.removesuffix('.weight')
# PEFT knows embeddings and heads by the last part of their names.
TABLE_NAMES = ('embed_tokens', 'lm_head')


def check(adapter: Adapter, base: Checkpoint) -> None:
  """Raises InputError if the file does not hold what the adapter's config asks for.

  Raises:
    InputError: if a tensor is missing, or a LoRA is at a module that the config does not name; the
      text has the first names and their number.
  """
  there = adapter.names()
  asked = expected(adapter.config, base) | expected_of_experts(adapter, base)
  # Under one of its names is enough.
  missing = sorted(name for name in asked if there.isdisjoint(modules.names(base, name)))
  if missing:
    raise InputError(
      f'{adapter.folder} is not whole: of the {len(asked)} tensors that its config asks for on the '
      f"base '{base.source}', {len(missing)} are not in {configs.WEIGHTS}: {listed(missing, 3)}. "
      'Copy it again, or save it again from the model inside of its wrappers (torch.compile, DDP, '
      'FSDP)'
    )
  pairs = set()
  for kind in (tensors.PAIR, tensors.HEAD_PAIR):
    pairs |= {f'{module}.lora_A.weight' for module in adapter.tensors[kind]}
  # Routers are named by their parameter, or by their module before transformers 5.
  routers = {f'{name}.lora_A.weight' for names in _routers(base) for name in names}
  unasked = sorted(pairs - asked - routers)
  # PEFT leaves such tensors out when it loads the adapter, and says nothing.
  if unasked and adapter.config.get('target_modules'):
    raise InputError(
      f'{adapter.folder} has a LoRA at {len(unasked)} module(s) that its config does not name: '
      f'{listed(unasked, 3)}. PEFT would leave them out: correct target_modules, '
      'layers_to_transform or exclude_modules in its config'
    )


def expected(config: Mapping[str, Any], base: Checkpoint) -> set[str]:
  """The names of the tensors that PEFT saves, as `Adapter.names` gives them, except of experts.

  Biases are named alike whether they lie below a LoRA or not.
  """
  names = _tensor_names(base)
  targets = {module for module in _linear_modules(base) if is_target(config, module)}
  if is_target(config, EMBED_TOKENS):
    targets.add(EMBED_TOKENS)
  to_save = config.get('modules_to_save') or []
  saved = {name for name in names if _is_saved(name, to_save)}
  # PEFT takes both ends of tied embeddings, whichever is named.
  if base.config.tied and config.get('ensure_weight_tying'):
    if _names_table(to_save):
      saved |= {EMBEDDING, HEAD}
      targets -= {EMBED_TOKENS, LM_HEAD}
    elif _names_table(config.get('target_modules') or []):
      targets |= {EMBED_TOKENS, LM_HEAD}
  bias = config.get('bias') or 'none'
  for name in names:
    module, _, part = name.rpartition('.')
    if part == 'bias' and (bias == 'all' or (bias == 'lora_only' and module in targets)):
      saved.add(name)
  for module in targets:
    pair = 'lora_embedding_{p}' if module == EMBED_TOKENS else 'lora_{p}.weight'
    saved |= {f'{module}.{pair.format(p=part)}' for part in 'AB'}
    if config.get('use_dora'):
      saved.add(f'{module}.lora_magnitude_vector')
    if config.get('lora_bias'):
      saved.add(f'{module}.lora_B.bias')
  for module in _modules_of_token_rows(config, tied=base.config.tied):
    saved.add(f'{module}.token_adapter.trainable_tokens_delta')
  return saved


def expected_of_experts(adapter: Adapter, base: Checkpoint) -> set[str]:
  """The names of the tensors that PEFT saves of experts and routers, as the file calls them.

  With transformers 5 these are targets by their parameters, before that by their modules.
  """
  config = adapter.config
  parameters = config.get('target_parameters') or []
  targets = config.get('target_modules') or []
  asked: set[tuple[str, ...]] = set()
  if parameters:
    for names in _routers(base):
      if any(_is_named(parameters, f'{name}.weight') for name in names):
        asked.add(names)
    asked |= _stacks(base, parameters)
  # A pattern may match projections of experts, which are no modules since transformers 5.
  elif not isinstance(targets, str):
    for names in _routers(base) | _single_experts(base):
      if any(is_target(config, name) for name in names):
        asked.add(names)
  there = {*adapter.tensors[tensors.EXPERT_PAIR], *adapter.tensors[tensors.PAIR]}
  pairs = set()
  for names in asked:
    # Under one of its names is enough.
    module = next((name for name in names if name in there), names[0])
    pairs |= {f'{module}.lora_A.weight', f'{module}.lora_B.weight'}
  return pairs


def is_target(config: Mapping[str, Any], module: str) -> bool:
  """Whether PEFT puts a LoRA at a linear module or embedding of the base."""
  excluded = config.get('exclude_modules') or []
  if _is_named(excluded, module):
    return False
  for name in config.get('modules_to_save') or []:
    if configs.matches(rf'(^|.*\.){name}($|\..*)', module):
      return False
  targets = config.get('target_modules') or []
  # All linear modules are asked about, so all but the head are meant.
  if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
    return module not in (EMBED_TOKENS, LM_HEAD)
  if not _is_named(targets, module):
    return False
  # PEFT honours the layers only where the end of a name stands in a list.
  if isinstance(targets, str) or module in map(tensors.unwrapped, targets):
    return True
  return _in_layers(config, module)


def _is_named(names: str | Sequence[str], module: str) -> bool:
  """Whether a regular expression matches the whole name, or a list has the end of the name."""
  if isinstance(names, str):
    return configs.matches(names, module, whole=True) is not None
  return any(f'.{module}'.endswith(f'.{tensors.unwrapped(name)}') for name in names)


def _in_layers(config: Mapping[str, Any], module: str) -> bool:
  """Whether the module's layer is among `layers_to_transform`, where that is set."""
  layers = config.get('layers_to_transform')
  if layers is None or layers == []:
    return True
  patterns = config.get('layers_pattern') or []
  if isinstance(patterns, str):
    patterns = [patterns]
  # Without a pattern, the first number in the name that stands behind two other parts.
  expressions = [rf'(?:^|.*?\.){pattern}\.(?P<layer>\d+)\.' for pattern in patterns]
  for expression in expressions or [r'.*?\.[^.]*\.(?P<layer>\d+)\.']:
    if match := configs.matches(expression, module):
      wanted = [layers] if isinstance(layers, int) else layers
      return int(match['layer']) in wanted
  return False


def _is_saved(name: str, to_save: Collection[str]) -> bool:
  """Whether a tensor is of a module in `modules_to_save`, or of a module inside of it."""
  ends = tuple(to_save)
  module = name
  while '.' in module:
    module = module.rpartition('.')[0]
    # PEFT compares the ends of names, without a dot before: 'norm' is 'input_layernorm' too.
    if module.endswith(ends):
      return True
  return False


def _names_table(names: str | Collection[str]) -> bool:
  if isinstance(names, str):
    return any(configs.matches(names, table, whole=True) for table in TABLE_NAMES)
  return any(name.split('.')[-1] in TABLE_NAMES for name in names)


def _modules_of_token_rows(config: Mapping[str, Any], *, tied: bool) -> list[str]:
  named = config.get('trainable_token_indices') or {}
  if isinstance(named, list):
    return [EMBED_TOKENS]
  indices = {}
  for module in (EMBED_TOKENS, LM_HEAD):
    for key, tokens in named.items():
      if module.endswith(key):
        indices[module] = tokens
  # A tied head with the tokens of its embedding follows the embedding.
  if tied and indices.get(LM_HEAD) == indices.get(EMBED_TOKENS):
    indices.pop(LM_HEAD, None)
  return list(indices)


def _stacks(base: Checkpoint, parameters: Sequence[str]) -> set[tuple[str, ...]]:
  """The wrappers of stacked experts, each by its names; a second lies inside of the first."""
  stacks = set()
  for names in _single_experts(base):
    containers = tuple(name.split('.experts.')[0] + '.experts' for name in names)
    named = set()
    for parameter in STACKS:
      if any(_is_named(parameters, f'{container}.{parameter}') for container in containers):
        named.add(parameter)
    if named:
      stacks.add(containers)
    if len(named) > 1:
      stacks.add(tuple(f'{container}.base_layer' for container in containers))
  return stacks


def _single_experts(base: Checkpoint) -> set[tuple[str, ...]]:
  """The modules of the projections of single experts, each by its names."""
  return _modules_of(base, [row for row in base.rows.values() if '{e}' in row.name])


def _routers(base: Checkpoint) -> set[tuple[str, ...]]:
  return _modules_of(base, [row for path, row in base.rows.items() if 'router' in path])


def _modules_of(base: Checkpoint, rows: Iterable[TensorRow]) -> set[tuple[str, ...]]:
  """The names of each module of a kernel."""
  found = set()
  for row in rows:
    for name in stored.stored_names(row, base.config).values():
      found.add(modules.names(base, name.removesuffix('.weight')))
  return found


def _tensor_names(base: Checkpoint) -> set[str]:
  """The names of the base's tensors, a tied head among them, except experts."""
  names = {HEAD} if base.config.tied else set()
  for row in base.rows.values():
    if '{e}' not in row.name:
      names.update(stored.stored_names(row, base.config).values())
  return names


def _linear_modules(base: Checkpoint) -> set[str]:
  """The modules with a kernel, except experts and their router."""
  modules_there = {LM_HEAD} if base.config.tied else set()
  sites = models.sites(base.config)
  for path, row in base.rows.items():
    if not sites[path].inputs or '{e}' in row.name or 'router' in path:
      continue
    for name in stored.stored_names(row, base.config).values():
      modules_there.add(name.removesuffix('.weight'))
  return modules_there
