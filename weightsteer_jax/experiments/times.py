"""How long the stages of a run took, when, and on what: times.jsonl of the workdir.

A stage enters its line once it has finished. A run that was interrupted has a line for each start
that came to the end of a stage, so the sum is what the finished work has cost at least.
"""

import datetime
import functools
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from weightsteer_jax.experiments.experiment import Experiment
from weightsteer_jax.runtime import processes
from weightsteer_jax.storage import files

P = ParamSpec('P')
T = TypeVar('T')
Stage = Callable[Concatenate[Experiment, P], T]

NAME = 'times.jsonl'


def kept(stage: Stage[P, T]) -> Stage[P, T]:
  """The stage, which holds the workdir, and enters how long it took into times.jsonl.

  A line has the stage's name, beginning (UTC), seconds and devices.
  """

  @functools.wraps(stage)
  def timed(experiment: Experiment, *args: P.args, **kwargs: P.kwargs) -> T:
    with experiment.held():
      return measured(experiment, *args, **kwargs)

  def measured(experiment: Experiment, *args: P.args, **kwargs: P.kwargs) -> T:
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    clock = time.monotonic()
    result = stage(experiment, *args, **kwargs)
    line = {
      'stage': stage.__name__,
      'began': began,
      'seconds': round(time.monotonic() - clock, 2),
      'device': device(experiment),
    }
    processes.on_main(lambda: files.append_json(experiment.workdir / NAME, line))
    return result

  return timed


def device(experiment: Experiment) -> str:
  """The devices of a run in words, as in '8 x TPU v5 lite'."""
  devices: list[Any] = list(experiment.layouts.train.mesh.devices.flat)
  kind = getattr(devices[0], 'device_kind', devices[0].platform)
  return f'{len(devices)} x {kind}'
