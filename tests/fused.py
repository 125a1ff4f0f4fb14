"""A Llama whose q, k and v, and whose gate and up, lie in one stored tensor each, as in some
families' checkpoints."""

import dataclasses

import numpy as np

from weightsteer_jax.models import families
from weightsteer_jax.models.families.family import TensorRow

# {tensor: {tensor of a plain Llama that it holds: axes of the blocks before it, and after it}}, in
# their order.
TENSORS = {
  'self_attn.qkv_proj': {
    'self_attn.q_proj': ((), ('K H', 'K H')),
    'self_attn.k_proj': (('N H',), ('K H',)),
    'self_attn.v_proj': (('N H', 'K H'), ()),
  },
  'mlp.gate_up_proj': {'mlp.gate_proj': ((), ('F',)), 'mlp.up_proj': (('F',), ())},
}


def family() -> families.Family:
  """Llama with its tensors stored so."""
  llama = families.FAMILIES['llama']
  return dataclasses.replace(llama, tensors=tuple(map(_row, llama.tensors)))


def tensors(plain: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors of a plain Llama checkpoint as this one stores them."""
  fused = dict(plain)
  for name, parts in TENSORS.items():
    first = next(iter(parts))
    for own in [own for own in plain if f'.{first}.' in own]:
      blocks = [fused.pop(own.replace(first, part)) for part in parts]
      fused[own.replace(first, name)] = np.concatenate(blocks)
  return fused


def _row(row: TensorRow) -> TensorRow:
  for name, parts in TENSORS.items():
    for part, blocks in parts.items():
      if f'.{part}.' in row.name:
        return TensorRow(row.path, row.name.replace(part, name), row.pattern, *blocks)
  return row
