"""Bytes of a program's arrays on one device, by kind."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Bytes:
  """Bytes on one device.

  Attributes:
    weights, deltas, optimizer, cache, batch: arguments of the program.
    activations: all else that the compiler needs.
  """

  weights: int = 0
  deltas: int = 0
  optimizer: int = 0
  cache: int = 0
  batch: int = 0
  activations: int = 0

  @property
  def total(self) -> int:
    """Sum of all kinds."""
    # Every field is bytes, so a field added later counts too.
    return sum(dataclasses.astuple(self))
