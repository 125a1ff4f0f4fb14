"""The modules of a base by their names in Hugging Face, as adapters speak of them."""

from collections.abc import Iterable

from weightsteer_jax.directions.adapters.tensors import Adapter
from weightsteer_jax.directions.streamed.checkpoints import Checkpoint
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

# Heads of transformers' models for classification, and of TRL's for values and rewards.
OTHER_HEADS = ('score', 'classifier', 'qa_outputs', 'v_head')


def first(names: Iterable[str]) -> str:
  """The first of the names in the order of the alphabet, which stands for all in a message."""
  return sorted(names)[0]


def names(base: Checkpoint, stored: str) -> tuple[str, ...]:
  """The names that an adapter may call a module, or a tensor, that the base stores under a name."""
  renamed = base.family.module_name(stored)
  return (stored,) if renamed == stored else (stored, renamed)


def tensor_owners(base: Checkpoint) -> dict[str, list[tuple[str, int]]]:
  """{tensor name: (path, layer) of each parameter in it} of the base, except experts."""
  owners: dict[str, list[tuple[str, int]]] = {}
  for path, row in base.rows.items():
    if '{e}' in row.name:
      continue
    for layer in range(base.num_layers(path)):
      tensor_name = row.name.format(l=layer)
      for name in names(base, tensor_name):
        owners.setdefault(name, []).append((path, layer))
  return owners


def unknown(adapter: Adapter, base: Checkpoint, names: Iterable[str]) -> InputError:
  """The error that names modules which the base does not have, or which cannot be changed so."""
  names = set(names)
  # The modules of the first layer, and of its first expert, stand for all in the suggestion.
  known = {row.name.format(l=0, e=0).removesuffix('.weight') for row in base.rows.values()}
  name = first(names)
  if name.split('.')[0] in OTHER_HEADS:
    return InputError(
      f"{adapter.folder} was trained with a head that a language model does not have, '{name}' "
      f'(task_type {adapter.config.get("task_type")}): to steer with what it changes in the '
      'decoder, take the tensors of that head out of a copy of the adapter'
    )
  # A tied head is stored as the embedding, so the base has no parameter of that name.
  tied = ''
  if base.config.tied and any(name.startswith('lm_head') for name in names):
    tied = ' The base ties its head to its embedding, so it has no head of its own to change.'
  return InputError(
    f"{adapter.folder} changes {len(names)} module(s) that the base '{base.source}' does not have, "
    f"or that cannot be changed so, '{name}' for one{did_you_mean(name, known)}; it was "
    f'made for another architecture.{tied}'
  )
