"""Functions from files to directions and back: between two fine-tunes, and on to other programs."""

import pathlib
from typing import Any

from weightsteer_jax import directions
from weightsteer_jax.experiments import standalone
from weightsteer_jax.experiments.sources import folder_of
from weightsteer_jax.interfaces.python.boundary import integer, number, plain
from weightsteer_jax.interfaces.python.direction import SteeringDirection, load_direction, path_of
from weightsteer_jax.interfaces.python.model import SteeredModel
from weightsteer_jax.runtime.errors import InputError


@plain
def between(
  positive: str | pathlib.Path | None,
  negative: str | pathlib.Path | None = None,
  *,
  base: SteeredModel | str | pathlib.Path | None = None,
  allow_other_base: bool = False,
) -> SteeringDirection:
  """The direction that points from one fine-tune to another, or from its base to a fine-tune.

  Args:
    positive: the fine-tune with the behaviour: a run of ours, an adapter of PEFT or mlx-lm, or a
      Hugging Face checkpoint; None for the base itself.
    negative: the same kind, with the opposite behaviour; None for the base itself.
    base: the model that both were trained from: a folder, a hub id, 'organism', or a loaded model.
      None takes the model that the fine-tunes name.
    allow_other_base: go on where the sources name different bases of one architecture.

  Raises:
    InputError: if a source is missing or not supported, or the two do not go together.
    CorruptError: if a source was cut short or damaged.
  """
  sides = []
  for side, name in ((positive, 'positive'), (negative, 'negative')):
    sides.append(None if side is None else path_of(side, f'between (as {name})'))
  if base is not None and not isinstance(base, SteeredModel):
    path_of(base, 'between (as base)')
  held = directions.between(*sides, base=_base_source(base), allow_other_base=allow_other_base)
  words = [side.name if side else 'base' for side in sides]
  return SteeringDirection(held, ' to '.join(reversed(words)))


@plain
def export(
  direction: SteeringDirection | str | pathlib.Path,
  *,
  alpha: float,
  format: str,
  output: str | pathlib.Path,
  base: SteeredModel | str | pathlib.Path | None = None,
  dtype: str = '',
  rank: int = 0,
  target: str = '',
  compare_logits: str = 'auto',
  allow_other_base: bool = False,
) -> pathlib.Path:
  """The new folder with the base steered by alpha times the direction, for other programs.

  What is written is read back and compared with the direction applied unmerged before the folder
  gets its name; its README.md says how to load it.

  Args:
    direction: the direction, or a folder as for `load_direction`.
    alpha: the strength.
    format: 'hf' (a Hugging Face checkpoint), 'orbax', 'orbax-unmerged' (base and direction apart),
      'peft' (an adapter) or 'gguf' (an adapter of llama.cpp).
    output: folder to write; must not exist.
    base: the model to steer: loaded, or a folder, a hub id or 'organism'; None takes the model that
      the direction names.
    dtype: of merged weights, 'float32' or 'bfloat16'; '' is the base's. Merging into bfloat16 loses
      part of small changes, and the export says how much.
    rank: fold the direction's kernels to this rank, the error recorded; 0 leaves them exact.
    target: who must be able to load a PEFT adapter: 'peft', 'vllm' or 'llama.cpp'; '' is 'peft'.
    compare_logits: of 'hf', load base and export to compare their logits: 'auto' (up to 134M
      parameters), 'always' or 'never'.
    allow_other_base: steer another model of the same architecture than the direction's own base.

  Raises:
    InputError: if the output exists, the direction is of another model, or the format cannot hold
      the direction.
    OutputError: if what was read back differs, or the disk is full; nothing is left behind.
  """
  if not isinstance(direction, SteeringDirection):
    direction = load_direction(direction)
  if isinstance(base, SteeredModel) and base.strengths:
    raise InputError(f'export takes the base as it is, and adds the direction itself; got {base!r}')
  # A direction knows its base by the name that it was made under.
  chosen = direction.base if base is None else base
  if not chosen:
    raise InputError(f'{direction!r} does not name its base: pass it as base=')
  standalone.hand_over(
    direction.unwrapped,
    chosen.unsteered_model if isinstance(chosen, SteeredModel) else chosen,
    number(alpha, 'alpha'),
    format,
    path_of(output, 'export (as output)'),
    # The results of the run around the folder go into the model card.
    folder=direction.folder or '',
    allow_other_base=allow_other_base,
    logits=compare_logits,
    dtype=dtype,
    rank=integer(rank, 'rank'),
    target=target,
  )
  return pathlib.Path(output)


def _base_source(base: SteeredModel | str | pathlib.Path | None) -> Any:
  """The base as `directions.between` takes it."""
  if isinstance(base, SteeredModel):
    return base.unsteered_model
  return None if base is None else folder_of(base)
