"""The tensors of an adapter, sorted by what they are.

PEFT saves whole modules (`modules_to_save`: embed_tokens and lm_head in the paper's recipe) under
plain names; state dicts written by hand keep `.modules_to_save.`. Names may also carry the name of
the adapter (`.default`), which says nothing.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from weightsteer_jax.directions.adapters import config as configs
from weightsteer_jax.runtime.errors import InputError, NotFiniteError
from weightsteer_jax.runtime.messages import listed
from weightsteer_jax.storage import files, safetensors

PAIR = 'pair'
EXPERT_PAIR = 'expert_pair'
EMBEDDING_PAIR = 'embedding_pair'
MAGNITUDE = 'magnitude'
ORIGINAL = 'original'
BASE_LAYER = 'base_layer'
WHOLE = 'whole'


class TensorKind(NamedTuple):
  """A kind of tensor in the file of an adapter.

  Attributes:
    kind: the key in `Adapter.tensors`.
    pattern: regular expression of the names behind `base_model.model.`, with the groups `module`
      and `part`.
    parts: the parts that a module must have all together; empty if any will do.
  """

  kind: str
  pattern: str
  parts: tuple[str, ...] = ()


# The adapter's name may stand in a tensor's name.
_ADAPTER = r'(?:\.[\w-]+)?'
# In the order of trial: a tensor is of the first kind that its name matches.
KINDS = (
  # Of one projection of one expert, or of a stack of all experts (see experts.py).
  TensorKind(
    EXPERT_PAIR,
    r'(?P<module>.+\.experts(?:\.base_layer|\.\d+\.\w+)?)'
    rf'\.lora_(?P<part>[AB]){_ADAPTER}\.weight',
    ('A', 'B'),
  ),
  TensorKind(PAIR, rf'(?P<module>.+)\.lora_(?P<part>[AB]){_ADAPTER}\.weight', ('A', 'B')),
  # PEFT keeps the factors of an embedding as parameters of their own, so they are no `.weight`.
  TensorKind(
    EMBEDDING_PAIR, rf'(?P<module>.+)\.lora_embedding_(?P<part>[AB]){_ADAPTER}', ('A', 'B')
  ),
  TensorKind(MAGNITUDE, r'(?P<module>.+)\.(?P<part>lora_magnitude_vector).*'),
  # The untouched copy that a wrapper keeps of a module.
  TensorKind(ORIGINAL, r'(?P<module>.+)\.original_module\.(?P<part>.+)'),
  # The base's own tensor below a LoRA: of an embedding or head, or a bias trained beside.
  TensorKind(BASE_LAYER, r'(?P<module>.+)\.base_layer\.(?P<part>weight|bias)'),
  TensorKind(
    WHOLE,
    r'(?P<module>(?:(?!\.lora_).)+?)'
    rf'(?:\.modules_to_save{_ADAPTER})?\.(?P<part>weight|bias)',
  ),
)


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


def read(folder: pathlib.Path) -> Adapter:
  """The adapter in a folder.

  Raises:
    InputError: if the adapter is no plain LoRA, has a setting that is not read, or is a pickle.
    CorruptError: if a file was cut short.
    NotFiniteError: if a value is NaN or infinite.
  """
  config = configs.read_config(folder)
  tensors: dict[str, dict[str, dict[str, np.ndarray]]] = {row.kind: {} for row in KINDS}
  broken = []
  for name, tensor in _read_file(folder).items():
    kind, module, part = recognise(name, folder)
    if kind == ORIGINAL:
      continue
    # Adapters may be saved in bfloat16 or float16; float32 holds every such value exactly.
    value = tensor.astype(np.float32)
    if not np.isfinite(value).all():
      broken.append(module)
    tensors[kind].setdefault(module, {})[part] = value
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
  >>> recognise('base_model.model.lm_head.modules_to_save.default.weight', '.')
  ('whole', 'lm_head', 'weight')

  Raises:
    InputError: if the name is of no kind that is read.
  """
  # PeftModel wraps a tuner, which wraps the model: two levels of attributes in every name.
  plain = name.removeprefix('base_model.model.')
  for row in KINDS:
    if match := re.fullmatch(row.pattern, plain):
      return row.kind, match['module'], match['part']
  raise InputError(f"{folder}: the tensor '{name}' is none that a plain LoRA adapter has")


def _read_file(folder: pathlib.Path) -> dict[str, np.ndarray]:
  path = folder / configs.WEIGHTS
  if not path.exists() and (folder / 'adapter_model.bin').exists():
    raise InputError(
      f'{folder} holds its weights as a pickle (adapter_model.bin), which can run code and is '
      "never loaded. Convert it where you trust it: load it with PEFT's "
      "PeftModel.from_pretrained, then save_pretrained('converted')"
    )
  if not path.exists():
    raise InputError(
      f'{folder} has a {configs.CONFIG} but no {configs.WEIGHTS}{files.path_hint(path)}'
    )
  return safetensors.read(path, remedy='copy or download it again')
