"""Ways to the same result, timed in turns on one machine, in one run.

The sides take turns, so that what the machine does beside them meets all alike; the first round
warms up and is where the results are compared. Ratios are taken round by round, and told as a
median with the least and the most.
"""

import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from weightsteer_jax.storage.versions import versions

RESULTS = pathlib.Path(__file__).parent / 'results'
PACKAGES = (
  'weightsteer_jax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'numpy',
  'torch',
  'transformers',
  'peft',
)
OURS = 'ours'


def in_turns(
  sides: Mapping[str, Callable[[], Any]],
  *,
  repeats: int = 5,
  shares: Mapping[str, float] = {},
  same: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
  """What each side took, and how many times as long as 'ours' the others did.

  Args:
    sides: {name: what is timed}; one is 'ours'. Each returns its result when it is there, not when
      it is dispatched.
    repeats: rounds after the one that warms up.
    shares: {name: which share of the work a side does, where all of it would take too long}; its
      times are those of all.
    same: says, from {name: result} of the first round, how far the results agree; raises if they do
      not.
  Returns:
    {'first_seconds': {side: of the round that warms up}, 'seconds': {side: {median, min, max,
    all}},
     'ratio': {side: {median, min, max}}, 'same': ...}.
  """
  begun = {name: timed(side) for name, side in sides.items()}
  agreement = same({name: result for name, (_, result) in begun.items()}) if same else None
  seconds: dict[str, list[float]] = {name: [] for name in sides}
  for round_ in range(repeats):
    for name in list(sides)[:: -1 if round_ % 2 else 1]:
      seconds[name].append(timed(sides[name])[0] / shares.get(name, 1.0))
      print(
        f'  round {round_ + 1} of {repeats}: {name} {seconds[name][-1]:.3f} s',
        file=sys.stderr,
        flush=True,
      )
  record = {
    'repeats': repeats,
    'first_seconds': {name: float(f'{took:.4g}') for name, (took, _) in begun.items()},
    'seconds': {name: spread(times) | {'all': _rounded(times)} for name, times in seconds.items()},
    'ratio': {
      name: spread([x / ours for x, ours in zip(times, seconds[OURS])])
      for name, times in seconds.items()
      if name != OURS
    },
  }
  return (
    record
    | ({'shares_timed': dict(shares)} if shares else {})
    | ({'same': agreement} if agreement is not None else {})
  )


def timed(side: Callable[[], Any]) -> tuple[float, Any]:
  """(seconds, result)."""
  started = time.perf_counter()
  result = side()
  return time.perf_counter() - started, result


def spread(values: list[float]) -> dict[str, float]:
  """{median, min, max}, four digits."""
  return {
    name: float(f'{of(values):.4g}')
    for name, of in (('median', statistics.median), ('min', min), ('max', max))
  }


def machine() -> dict[str, Any]:
  """Where and with what something was measured, and the command that did it."""
  import jax

  return {
    'command': ' '.join(['python', *sys.argv]),
    'cores': os.cpu_count(),
    'processor': _processor(),
    'load_before': [round(x, 2) for x in os.getloadavg()],
    'device': jax.devices()[0].device_kind,
    'python': platform.python_version(),
    'versions': versions(*PACKAGES),
    'date': time.strftime('%Y-%m-%d'),
  }


def save(name: str, record: Mapping[str, Any]) -> pathlib.Path:
  """Writes results/<name>.json, over what an earlier run left there."""
  RESULTS.mkdir(exist_ok=True)
  path = RESULTS / f'{name}.json'
  path.write_text(json.dumps(record, indent=1) + '\n')
  print(json.dumps(record['result'] if 'result' in record else record, indent=1), flush=True)
  return path


def _rounded(times: list[float]) -> list[float]:
  return [float(f'{x:.4g}') for x in times]


def _processor() -> str:
  lines = (
    pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    if os.path.exists('/proc/cpuinfo')
    else []
  )
  return next(
    (line.split(':')[1].strip() for line in lines if line.startswith('model name')),
    platform.processor(),
  )
