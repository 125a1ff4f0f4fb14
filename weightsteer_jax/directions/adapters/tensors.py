"""The tensors of an adapter, sorted by what they are.

PEFT saves whole modules (`modules_to_save`: embed_tokens and lm_head in the paper's recipe) under
plain names; state dicts written by hand keep `.modules_to_save.`. Names may also carry the name of
the adapter (`.default`) and the names of wrappers (`_orig_mod.` of a compiled model), which say
nothing.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from weightsteer_jax.directions.adapters import config as configs
from weightsteer_jax.directions.adapters import mlx
from weightsteer_jax.runtime.errors import InputError, NotFiniteError
from weightsteer_jax.runtime.messages import listed
from weightsteer_jax.storage import files, safetensors

PAIR = 'pair'
EXPERT_PAIR = 'expert_pair'
HEAD_PAIR = 'head_pair'
EMBEDDING_PAIR = 'embedding_pair'
LORA_BIAS = 'lora_bias'
MAGNITUDE = 'magnitude'
TOKEN_ROWS = 'token_rows'
ORIGINAL = 'original'
TABLE = 'table'
BASE_LAYER = 'base_layer'
WHOLE = 'whole'
EXPERT_WHOLE = 'expert_whole'


class TensorKind(NamedTuple):
  """A kind of tensor in the file of an adapter.

  Attributes:
    kind: the key in `Adapter.tensors`.
    pattern: regular expression of the names behind `base_model.model.`, with the groups `module`
      and `part`.
    name: the usual name behind `base_model.model.`, with '{m}' for the module and '{p}' for the
      part.
    parts: the parts that a module must have all together; empty if any will do.
  """

  kind: str
  pattern: str
  name: str = '{m}.{p}'
  parts: tuple[str, ...] = ()


# The adapter's name may stand in a tensor's name.
_ADAPTER = r'(?:\.[\w-]+)?'
_HEAD = r'(?P<module>lm_head)'
_TABLE = r'(?P<module>model\.embed_tokens|lm_head)'
_MODULE = r'(?P<module>.+)'
_PAIR = rf'\.lora_(?P<part>[AB]){_ADAPTER}\.weight'
# In the order of trial: a tensor is of the first kind that its name matches.
KINDS = (
  TensorKind(HEAD_PAIR, _HEAD + _PAIR, '{m}.lora_{p}.weight', ('A', 'B')),
  # Of one projection of one expert, or of a stack of all experts (see experts.py).
  TensorKind(
    EXPERT_PAIR,
    rf'(?P<module>.+\.experts(?:\.base_layer|\.\d+\.\w+)?){_PAIR}',
    '{m}.lora_{p}.weight',
    ('A', 'B'),
  ),
  TensorKind(PAIR, _MODULE + _PAIR, '{m}.lora_{p}.weight', ('A', 'B')),
  # PEFT keeps the factors of an embedding as parameters of their own, so they are no `.weight`.
  TensorKind(
    EMBEDDING_PAIR,
    rf'{_MODULE}\.lora_embedding_(?P<part>[AB]){_ADAPTER}',
    '{m}.lora_embedding_{p}',
    ('A', 'B'),
  ),
  TensorKind(LORA_BIAS, rf'{_MODULE}\.lora_B{_ADAPTER}\.(?P<part>bias)', '{m}.lora_B.{p}'),
  TensorKind(MAGNITUDE, rf'{_MODULE}\.(?P<part>lora_magnitude_vector).*'),
  # New values of the rows of single tokens (`trainable_token_indices`); not a difference.
  TensorKind(
    TOKEN_ROWS,
    rf'{_MODULE}\.token_adapter\.trainable_tokens_(?P<part>delta){_ADAPTER}',
    '{m}.token_adapter.trainable_tokens_{p}',
  ),
  # A stack of all experts of a layer, which is a parameter of no module of its own.
  TensorKind(
    EXPERT_WHOLE,
    rf'(?P<module>.+\.experts)(?:\.modules_to_save{_ADAPTER})?\.(?P<part>gate_up_proj|down_proj)',
  ),
  # The untouched copy that a wrapper keeps of a module.
  TensorKind(ORIGINAL, rf'{_MODULE}\.original_module\.(?P<part>.+)'),
  # A whole embedding or head, alone or below a LoRA or token rows.
  TensorKind(
    TABLE,
    rf'{_TABLE}(?:\.token_adapter)?(?:\.base_layer|\.modules_to_save{_ADAPTER})?'
    r'\.(?P<part>weight)',
  ),
  # The base's own tensor below a LoRA, such as a bias trained beside.
  TensorKind(BASE_LAYER, rf'{_MODULE}\.base_layer\.(?P<part>weight|bias)'),
  TensorKind(
    WHOLE,
    rf'(?P<module>(?:(?!\.lora_).)+?)(?:\.modules_to_save{_ADAPTER})?\.(?P<part>weight|bias)',
  ),
)
# What a model with a head calls its decoder.
DECODER = 'model'
# Wrappers of torch that put their own name into every name below: torch.compile, FSDP, activation
# checkpointing. No module of a supported family is called so.
WRAPPERS = ('_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module')


@dataclasses.dataclass(frozen=True)
class Adapter:
  """An adapter as saved.

  Attributes:
    folder: where the files are.
    config: the contents of adapter_config.json.
    tensors: {kind: {Hugging Face module name: {part: tensor}}}, float32, with every kind of KINDS.
      The factors of a pair are A [R, inputs] and B [outputs, R], those of an embedding A [R, V] and
      B [D, R].
  """

  folder: pathlib.Path
  config: Mapping[str, Any]
  tensors: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]

  @property
  def file(self) -> pathlib.Path:
    """The file of the tensors."""
    return self.folder / weights_name(self.config)

  def names(self) -> set[str]:
    """The names of all tensors, as usually written behind `base_model.model.`."""
    names: set[str] = set()
    for row in KINDS:
      for module, parts in self.tensors[row.kind].items():
        names.update(row.name.format(m=module, p=part) for part in parts)
    return names


def weights_name(config: Mapping[str, Any]) -> str:
  """The name of the file of the tensors, from the config as read."""
  return mlx.WEIGHTS if mlx.KEY in config else configs.WEIGHTS


def read(folder: pathlib.Path) -> Adapter:
  """The adapter in a folder; of other kinds than LoRA, the config alone (see library.py).

  Raises:
    InputError: if the adapter is of a kind or has a setting that is not read, is a pickle, or holds
      no tensors, a tensor twice, or half a pair.
    CorruptError: if a file was cut short.
    NotFiniteError: if a value is NaN or infinite.
  """
  config = configs.read_config(folder)
  tensors: dict[str, dict[str, dict[str, np.ndarray]]] = {row.kind: {} for row in KINDS}
  broken = []
  saved = _read_file(folder, weights_name(config))
  if not saved:
    raise InputError(
      f'{folder / weights_name(config)} holds no tensors. PEFT writes such a file when it is given '
      'the state_dict of a compiled or distributed model: save again from the model inside '
      "(model._orig_mod or model.module), without passing 'state_dict'"
    )
  if mlx.KEY in config:
    saved = mlx.peft_tensors(saved, config, folder)
  if config['peft_type'] != configs.LORA:
    saved = {}
  if _is_of_decoder(saved):
    saved = {f'{DECODER}.{_behind_wrappers(name)}': tensor for name, tensor in saved.items()}
    config = configs.below(DECODER, config)
  for name, tensor in saved.items():
    kind, module, part = recognise(name, folder)
    if kind == ORIGINAL:
      continue
    # Adapters may be saved in bfloat16 or float16; float32 holds every such value exactly.
    value = tensor.astype(np.float32)
    if not np.isfinite(value).all():
      broken.append(module)
    parts = tensors[kind].setdefault(module, {})
    # A resized embedding that is saved whole is in the file under two names.
    if part in parts and not np.array_equal(parts[part], value, equal_nan=True):
      raise InputError(
        f"{folder} holds '{module}.{part}' twice, with different values, '{name}' for one: save "
        'the adapter again from the model inside of its wrappers'
      )
    parts[part] = value
  for row in KINDS:
    halves = [module for module, parts in tensors[row.kind].items() if set(row.parts) - set(parts)]
    if halves:
      raise InputError(
        f'{folder}: the modules {listed(sorted(halves), 4)} have one of lora_A and lora_B, not both'
      )
  if broken:
    raise NotFiniteError(f'{folder}: NaN or infinite values in {listed(sorted(broken), 4)}')
  return Adapter(folder, config, tensors)


def recognise(name: str, folder: pathlib.Path) -> tuple[str, str, str]:
  """(kind, module, part) of a tensor's name in an adapter's file.

  >>> recognise('base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight', '.')
  ('pair', 'model.layers.0.mlp.up_proj', 'A')
  >>> recognise('base_model.model._orig_mod.lm_head.modules_to_save.default.weight', '.')
  ('table', 'lm_head', 'weight')

  Raises:
    InputError: if the name is of no kind that is read.
  """
  plain = _behind_wrappers(name)
  for row in KINDS:
    if match := re.fullmatch(row.pattern, plain):
      return row.kind, match['module'], match['part']
  raise InputError(f"{folder}: the tensor '{name}' is none that a plain LoRA adapter has")


def _behind_wrappers(name: str) -> str:
  """A tensor's name inside of the model that was trained."""
  # A distributed model puts its name in front, and PeftModel wraps a tuner, which wraps the model:
  # two levels of attributes in every name.
  plain = unwrapped(name).removeprefix('module.').removeprefix('base_model.model.')
  return plain.removeprefix('module.')


def _is_of_decoder(names: Iterable[str]) -> bool:
  """Whether the names are those of a decoder without head, which AutoModel makes."""
  parts = {_behind_wrappers(name).split('.')[0] for name in names}
  return bool(parts) and parts <= {'layers', 'embed_tokens', 'norm'}


def unwrapped(name: str) -> str:
  """A name without the names of wrappers.

  >>> unwrapped('_orig_mod.model.layers.0._orig_mod.mlp')
  'model.layers.0.mlp'
  """
  return '.'.join(part for part in name.split('.') if part not in WRAPPERS)


def _read_file(folder: pathlib.Path, name: str) -> dict[str, np.ndarray]:
  path = folder / name
  if not path.exists() and (folder / 'adapter_model.bin').exists():
    raise InputError(
      f'{folder} holds its weights as a pickle (adapter_model.bin), which can run code and is '
      "never loaded. Convert it where you trust it: load it with PEFT's "
      "PeftModel.from_pretrained, then save_pretrained('converted')"
    )
  if not path.exists():
    raise InputError(f'{folder} has a {configs.CONFIG} but no {name}{files.path_hint(path)}')
  return safetensors.read(path, remedy='copy or download it again')
