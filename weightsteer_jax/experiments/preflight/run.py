"""Compiling a plan's programs, one after the other, and what came of each."""

import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from weightsteer_jax.experiments.preflight import hlo, roofline
from weightsteer_jax.experiments.preflight.memory import Bytes
from weightsteer_jax.experiments.preflight.programs import Program, RunPlan
from weightsteer_jax.experiments.preflight.topology import Hardware
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean


@dataclasses.dataclass(frozen=True)
class Result:
  """What compiling a program told.

  Attributes:
    bytes: on a device, by kind. peak: bytes at the fullest moment, by the compiler; where it gave
      up, what it asked for.
    fits: whether that is within the device's memory. error: the compiler's words where it gave up,
      else ''.
    collectives: see hlo.py. time: None where the device's speed is not known. seconds: of
      compilation.
  """

  name: str
  bytes: Bytes
  peak: int
  fits: bool
  error: str
  work: roofline.Work
  collectives: dict[str, hlo.Moved]
  time: roofline.Time | None
  seconds: float


def check(plan: RunPlan, names: tuple[str, ...] = ()) -> Iterator[Result]:
  """The results of the plan's programs (of those names, if any), as they are compiled."""
  for program in plan.programs:
    if not names or program.name in names:
      yield compile_one(program, plan.hardware)


def check_names(plan: RunPlan, names: Sequence[str]) -> None:
  """Nothing, if the plan has programs of these names.

  Raises:
    InputError: it has not.
  """
  known = [program.name for program in plan.programs]
  for name in names:
    if name not in known:
      raise InputError(
        f"--programs: no program '{name}'{did_you_mean(name, known)}; there are: {', '.join(known)}"
      )


def compile_one(program: Program, hardware: Hardware) -> Result:
  """What compiling the program tells; not fitting is a result, not an error."""
  start = time.monotonic()
  try:
    with program.layout.context():
      compiled = program.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return _too_large(program, str(error), time.monotonic() - start)
  seconds = time.monotonic() - start
  memory = compiled.memory_analysis()
  moved = hlo.collectives(compiled.as_text())
  # What is aliased is counted among the arguments.
  fresh = max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
  needed = dataclasses.replace(program.args, activations=memory.temp_size_in_bytes + fresh)
  peak = (
    max(memory.peak_memory_in_bytes or 0, memory.argument_size_in_bytes)
    if hardware.name != 'local'
    else needed.total
  )
  clock = roofline.time(program.work, moved, hardware.chip) if hardware.chip else None
  return Result(
    program.name, needed, peak, peak <= hardware.memory, '', program.work, moved, clock, seconds
  )


def _too_large(program: Program, message: str, seconds: float) -> Result:
  """The result where the compiler found no way to fit; it says how much it would have needed."""
  line = next(
    (line for line in message.splitlines() if 'memory' in line.lower()), message.splitlines()[0]
  )
  used = re.search(r'(?:Used|required[^(]*\()\s*([\d.]+)([KMG])', message)
  peak = (
    int(float(used[1]) * {'K': 2**10, 'M': 2**20, 'G': 2**30}[used[2]])
    if used
    else program.args.total
  )
  needed = dataclasses.replace(program.args, activations=max(0, peak - program.args.total))
  return Result(program.name, needed, peak, False, line.strip(), program.work, {}, None, seconds)


def as_json(plan: RunPlan, result: Result) -> dict[str, Any]:
  """The result as JSON values."""
  return {
    'program': result.name,
    **dataclasses.asdict(result.bytes),
    'peak': result.peak,
    'memory': plan.hardware.memory,
    'fits': result.fits,
    'error': result.error,
    'flops': result.work.flops,
    'moved': result.work.moved,
    'tokens': result.work.tokens,
    'collectives': {kind: dataclasses.asdict(moved) for kind, moved in result.collectives.items()},
    'time': dataclasses.asdict(result.time) if result.time else None,
    'compile_seconds': round(result.seconds, 1),
  }
