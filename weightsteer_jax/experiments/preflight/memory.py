"""Bytes of a program's arrays on one device, by what they are."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Bytes:
  """Of one device: what goes into a program by kind, and what the compiler needs beside it
  (`activations`).
  """

  weights: int = 0
  deltas: int = 0
  optimizer: int = 0
  cache: int = 0
  batch: int = 0
  activations: int = 0

  @property
  def total(self) -> int:
    return sum(dataclasses.astuple(self))
