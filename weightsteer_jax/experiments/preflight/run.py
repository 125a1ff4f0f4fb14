"""The programs of a plan compiled, one after the other, and the result of each."""

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
  """The result of compiling a program.

  Attributes:
    bytes: bytes on a device, by kind.
    peak: bytes at the fullest moment, by the compiler; what the compiler asked for where it gave
      up.
    fits: whether the peak is within the device's memory.
    error: the compiler's words where the compiler gave up, else ''.
    collectives: {kind: Moved}; see hlo.py.
    time: None where the device's speed is not known.
    seconds: time of compilation.
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
  """The results of the plan's programs, each as soon as compiled.

  Args:
    names: programs to compile; all by default.
  """
  for program in plan.programs:
    if not names or program.name in names:
      yield compile_one(program, plan.hardware)


def check_names(plan: RunPlan, names: Sequence[str]) -> None:
  """Raises InputError if a name is no program's of the plan."""
  known = [program.name for program in plan.programs]
  for name in names:
    if name not in known:
      raise InputError(
        f"--programs: no program '{name}'{did_you_mean(name, known)}; there are: {', '.join(known)}"
      )


def compile_one(program: Program, hardware: Hardware) -> Result:
  """The result of compiling a program; not fitting is a result, not an error."""
  start = time.monotonic()
  try:
    # In the mesh of the layout, as the run itself lowers.
    with program.layout.context():
      compiled = program.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    # The compiler's error for a program that cannot fit; others are real errors.
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return _too_large(program, str(error), time.monotonic() - start)
  seconds = time.monotonic() - start
  moved = hlo.collectives(compiled.as_text() or '')
  memory = compiled.memory_analysis()
  # jax allows for backends that tell nothing; CPU, GPU and TPU tell.
  assert memory is not None
  # Outputs in the place of arguments are counted among the arguments.
  fresh = max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
  needed = dataclasses.replace(program.args, activations=memory.temp_size_in_bytes + fresh)
  peak = needed.total
  # libtpu tells the peak for a pod; on local devices the sum of the parts stands for the peak.
  if hardware.name != 'local':
    peak = max(memory.peak_memory_in_bytes or 0, memory.argument_size_in_bytes)
  return Result(
    program.name,
    needed,
    peak,
    fits=peak <= hardware.memory,
    error='',
    work=program.work,
    collectives=moved,
    time=roofline.time(program.work, moved, hardware.chip) if hardware.chip else None,
    seconds=seconds,
  )


def _too_large(program: Program, message: str, seconds: float) -> Result:
  """The result where the compiler found no way to fit."""
  # The compiler's message is a page; the line about memory says what matters.
  lines = message.splitlines()
  error = next((line for line in lines if 'memory' in line.lower()), lines[0])
  # The compiler's size, as in 'Used 20.5G of 15.75G'; without one, the arguments alone.
  used = re.search(r'(?:Used|required[^(]*\()\s*([\d.]+)([KMG])', message)
  peak = program.args.total
  if used:
    unit = {'K': 2**10, 'M': 2**20, 'G': 2**30}[used[2]]
    peak = int(float(used[1]) * unit)
  needed = dataclasses.replace(program.args, activations=max(0, peak - program.args.total))
  return Result(
    program.name,
    needed,
    peak,
    fits=False,
    error=error.strip(),
    work=program.work,
    collectives={},
    time=None,
    seconds=seconds,
  )


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
