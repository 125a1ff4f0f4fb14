"""The shape of a mesh as text, for configs and flags: no jax is needed to read one."""

import re

from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

AXES = ('data', 'fsdp', 'tensor')
# What to do with an axis that does not divide: refuse it, or leave it whole on every device.
INDIVISIBLE = ('error', 'replicate')


def parse(text: str) -> dict[str, int]:
  """{axis: size} of a mesh given as text; absent axes have size 1.

  >>> parse('fsdp:4,tensor:2'), parse('1x4x2')
  ({'data': 1, 'fsdp': 4, 'tensor': 2}, {'data': 1, 'fsdp': 4, 'tensor': 2})

  Raises:
    InputError: if the text describes no mesh.
  """
  shape = dict.fromkeys(AXES, 1)
  # The short form becomes the long form.
  if re.fullmatch(r'\d+x\d+x\d+', text):
    text = ','.join(f'{axis}:{size}' for axis, size in zip(AXES, text.split('x')))
  for part in text.split(','):
    match = re.fullmatch(r'\s*([a-z]+)\s*[:=]\s*(\d+)\s*', part)
    if not match or match[1] not in AXES or int(match[2]) < 1:
      near = did_you_mean(match[1], AXES) if match else ''
      raise InputError(
        f"the mesh '{text}' is not understood at '{part}'{near}: expected 'auto', sizes of data, "
        "fsdp and tensor as in 'data:1,fsdp:4,tensor:2', or all three as in '1x4x2'"
      )
    shape[match[1]] = int(match[2])
  return shape


def describe(shape: dict[str, int]) -> str:
  """The mesh's shape as text for `parse`."""
  return ','.join(f'{axis}:{shape[axis]}' for axis in AXES)
