"""Processes as a cluster starts them: N of one program, each with its devices, joined over a free
port."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).parent.parent.parent


@dataclasses.dataclass
class Group:
  """The running processes of one program, and where each writes what it says."""

  processes: list[subprocess.Popen]
  logs: list[pathlib.Path]
  ended: dict[int, float] = dataclasses.field(default_factory=dict)

  def wait(self, timeout: float = 120.0) -> list[int]:
    """The exit statuses of all; whoever is not done in time is killed, and the test fails."""
    deadline = time.monotonic() + timeout
    while any(process.poll() is None for process in self.processes):
      now = time.monotonic()
      for i, process in enumerate(self.processes):
        if process.poll() is not None:
          self.ended.setdefault(i, now)
      if now > deadline:
        self.kill()
        raise AssertionError(f'not done in {timeout:.0f} s\n{self.said()}')
      time.sleep(0.05)
    for i in range(len(self.processes)):
      self.ended.setdefault(i, time.monotonic())
    return [process.returncode for process in self.processes]

  def apart(self) -> float:
    """Seconds between the end of the first process and that of the last."""
    return max(self.ended.values()) - min(self.ended.values())

  def kill(self) -> None:
    """Kills whoever is left."""
    for process in self.processes:
      if process.poll() is None:
        process.kill()
        process.wait()

  def output(self, index: int) -> str:
    """What one process has said so far."""
    return self.logs[index].read_text(errors='replace')

  def said(self) -> str:
    """What all have said, for a failing test to show."""
    return '\n'.join(
      f'--- process {i}, exit status {process.returncode}\n{self.output(i)[-6000:]}'
      for i, process in enumerate(self.processes)
    )

  def wait_until(self, happened, timeout: float = 120.0) -> None:
    """Returns when `happened()` is true; fails if the processes end before, or it takes too
    long."""
    deadline = time.monotonic() + timeout
    while not happened():
      if time.monotonic() > deadline or all(
        process.poll() is not None for process in self.processes
      ):
        self.kill()
        raise AssertionError(f'what was waited for did not happen\n{self.said()}')
      time.sleep(0.05)


def start(
  count: int,
  program: pathlib.Path,
  *args: str,
  logs: pathlib.Path,
  devices: int = 2,
  env: Mapping[str, str] = {},
) -> Group:
  """`count` processes of a program that takes the launchers' flags; one alone is started without
  them."""
  logs.mkdir(parents=True, exist_ok=True)
  port = free_port()
  path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
  # Programs are small, and compile twice as fast without optimisation.
  env = (
    os.environ
    | {
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': str(devices),
      'PYTHONPATH': path,
      'XLA_FLAGS': f"{os.environ['XLA_FLAGS']} --xla_backend_optimization_level=0",
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      'HF_HUB_OFFLINE': '1',
      'TOKENIZERS_PARALLELISM': 'false',
      'PYTHONUNBUFFERED': '1',
    }
    | env
  )
  group = Group([], [logs / f'process{i}.log' for i in range(count)])
  for i in range(count):
    flags = (
      [f'--coordinator=127.0.0.1:{port}', f'--num_processes={count}', f'--process_id={i}']
      if count > 1
      else []
    )
    command = [sys.executable, str(program), *args, *flags]
    with open(group.logs[i], 'w') as log:
      group.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=env))
  return group


def free_port() -> int:
  """A port of this machine that nobody listens on."""
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]
