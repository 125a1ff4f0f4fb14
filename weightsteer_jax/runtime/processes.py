"""Several processes in one run: joining, speaking and agreeing (ending: see ending.py).

Every process runs the same program over the same shared workdir, and the devices of all processes
form one mesh. Process 0, the main process, alone writes files (except orbax's, written by all), and
holds the store of short messages behind jax's own coordination. All messages here go through the
store and never through devices: processes can speak while devices are busy or lost.
"""

import json
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

# The store, and the clusters that jax detects, have no public name.
from jax._src import clusters, distributed
from jax.experimental import multihost_utils

from weightsteer_jax.runtime import errors
from weightsteer_jax.runtime.errors import InputError, ProcessLost, WeightSteerError
from weightsteer_jax.runtime.messages import first_line

PyTree = Any

MODES = ('auto', 'on', 'off')
# A process without a heartbeat for so long counts as dead. A thread of jax's own sends the
# heartbeats, whatever Python does.
HEARTBEAT_SECONDS = 10
JOIN_SECONDS = 300
# jax's store takes no infinite timeout; this is four months.
FOREVER_MS = 10**10
# How long `see` waits for a file: network file systems look for new files only now and then.
SEEN_SECONDS = 30.0
# Our part of the store, which jax writes to as well.
_PREFIX = 'weightsteer/'

# Messages so far, by kind. All processes say the same kinds in the same order, so that the numbers
# agree.
_message_counts: dict[str, int] = {}
_thread = threading.local()
_joined = False


def join(
  mode: str = 'auto',
  *,
  coordinator: str = '',
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: float = JOIN_SECONDS,
) -> None:
  """Joins the other processes of the run; to be called before any device is used.

  Args:
    mode: 'on', 'off' or 'auto'. 'auto' joins where a cluster of several processes (TPU pod, Slurm,
      Open MPI, Kubernetes) is detected, or where the other arguments describe a cluster.
    coordinator: HOST:PORT of process 0, needed where no cluster is detected.
    num_processes: processes of the run, needed where no cluster is detected.
    process_id: number of this process, needed where no cluster is detected.
    timeout: seconds to wait for the others.

  Raises:
    InputError: if the arguments do not go together, or a cluster is needed and none is detected.
    ProcessLost: if the others did not come in time.
  """
  _, total = place(
    mode, coordinator=coordinator, num_processes=num_processes, process_id=process_id
  )
  if total == 1:
    return
  # ending.py ends the others after a failure, and preemption.py acts on SIGTERM, each with an exit
  # status of its own. jax would abort instead.
  jax.config.update('jax_enable_recoverability', True)
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      coordinator or None,
      num_processes,
      process_id,
      initialization_timeout=int(timeout),
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except RuntimeError as error:
    raise ProcessLost(f'{not_together()}. {first_line(error)}') from error
  global _joined
  _joined = True


def joined() -> bool:
  """Whether the processes have come together."""
  return _joined


def not_together() -> str:
  """The words of an error where the processes have not come together.

  Processes that cannot even connect are aborted by jax (see `ending.catch_abort`).
  """
  where = distributed.global_state.coordinator_address
  return (
    f'the processes of the run did not come together at {where}: start all of them, with the same '
    '--num_processes, and let that port through (on TPU it is 8482, of older versions of jax '
    '8476; JAX_COORDINATOR_PORT names another)'
  )


def place(
  mode: str = 'auto',
  *,
  coordinator: str = '',
  num_processes: int | None = None,
  process_id: int | None = None,
) -> tuple[int, int]:
  """(this process's number, processes of the run), without joining (arguments as of `join`).

  Raises:
    InputError: if the arguments do not go together, or a cluster is needed and none is detected.
  """
  _check_flags(mode, coordinator, num_processes, process_id)
  if mode == 'off':
    return 0, 1
  arguments = (coordinator or None, num_processes, process_id)
  number: int | None = None
  total: int | None = None
  if None in arguments:
    number, total = _detected()
    needed = mode == 'on' or arguments != (None, None, None)
    if total is None and needed and num_processes != 1:
      raise InputError(
        'no cluster was detected: give all of --coordinator=HOST:PORT, --num_processes=N and '
        '--process_id=I'
      )
  # A flag comes before what was detected.
  if process_id is not None:
    number = process_id
  if num_processes is not None:
    total = num_processes
  return number or 0, total or 1


def index() -> int:
  """This process's number, from 0."""
  return distributed.global_state.process_id


def count() -> int:
  """The number of processes of the run; 1 within `on_main`."""
  return 1 if getattr(_thread, 'alone', False) else distributed.global_state.num_processes


def is_main() -> bool:
  """Whether this process writes files and talks to the user."""
  return index() == 0


def name(process: int) -> str:
  """The name of a process, as in 'process 1 of 4'."""
  return f'process {process} of {distributed.global_state.num_processes}'


def barrier(label: str) -> None:
  """Waits until all processes are here.

  Raises:
    ProcessLost: if a process is gone.
  """
  if count() > 1:
    key = _next_key(f'barrier/{label}')
    _ask(lambda client: client.wait_at_barrier(key, FOREVER_MS))


def broadcast(value: Any = None) -> Any:
  """The JSON value of process 0, on every process."""
  if count() == 1:
    return value
  key = _next_key('broadcast')
  if is_main():
    put(key, value)
  return wait_for(key)


def gather(value: Any) -> list[Any]:
  """The JSON values of all processes, by process number."""
  if count() == 1:
    return [value]
  key = _next_key('gather')
  put(f'{key}/{index()}', value)
  return [wait_for(f'{key}/{process}') for process in range(count())]


def agree(value: Any, *, what: str) -> None:
  """Raises InputError, on every process, if the processes hold different JSON values.

  The error lists the processes that differ from process 0, and the differences.
  """
  # Host names, since a process's number does not say which machine to look at.
  reports = gather([socket.gethostname(), value])
  expected = reports[0][1]
  differing = []
  for process, (host, got) in enumerate(reports):
    if got != expected:
      differing.append(f'  {name(process)} on {host}: {_difference(expected, got)}')
  if differing:
    first = f'{what} must be the same on every process, but differs from process 0 on:'
    raise InputError('\n'.join([first, *differing]))


def share(folder: pathlib.Path, *, what: str) -> None:
  """Checks that all processes see the same folder; process 0 makes a missing folder.

  Raises:
    InputError: on every process, if a process does not see what process 0 writes.
    OutputError: if the folder cannot be written.
  """
  if count() == 1:
    return
  # A new name each time: a folder of another host may hold the marker of an earlier run.
  marker = folder / broadcast(f'.shared-{secrets.token_hex(8)}')
  was_missing = on_main(lambda: _make_marker(marker))
  try:
    see(marker)
    seen = True
  except InputError:
    seen = False
  # The marker stays until all have looked.
  missing = []
  for process, (host, sees) in enumerate(gather([socket.gethostname(), seen])):
    if not sees:
      missing.append(f'{name(process)} on {host}')

  def remove_marker() -> None:
    marker.unlink(missing_ok=True)
    if was_missing:
      marker.parent.rmdir()

  on_main(remove_marker)
  if missing:
    raise InputError(
      f'{what} {folder.absolute()} is not shared: {", ".join(missing)} cannot see what process 0 '
      'wrote there. Name a folder on a file system that every process mounts'
    )


def see(path: pathlib.Path, size: int | None = None) -> None:
  """Waits until this process sees a file of process 0; file systems of a network lag.

  Args:
    size: bytes of the whole file, None for any size.

  Raises:
    InputError: if the file does not come within SEEN_SECONDS.
  """
  deadline = time.monotonic() + SEEN_SECONDS
  while count() > 1 and not (path.exists() and size in (None, path.stat().st_size)):
    if time.monotonic() > deadline:
      raise InputError(
        f'{path} was written by process 0, but is not seen as such on {socket.gethostname()}: the '
        'workdir must be on a file system that every process mounts'
      )
    time.sleep(0.5)


def on_main(action: Callable[[], Any]) -> Any:
  """The JSON value of an action, run by process 0 while the others wait for the value.

  The action runs as in a single process: barriers and messages within do nothing.

  Raises:
    WeightSteerError: on every process, if the action raised the error on process 0.
  """
  if count() == 1:
    return action()
  key = _next_key('on_main')
  if not is_main():
    outcome = wait_for(key)
    # errors.py holds every class that a message can name.
    if 'error' in outcome:
      raise getattr(errors, outcome['error'])(outcome['message'])
    return outcome['value']
  # For this thread only: other threads of this process go on speaking to the other processes.
  _thread.alone = True
  try:
    value = action()
  except WeightSteerError as error:
    # Any other error ends this process, which tells the others (see `ending.fail`).
    put(key, {'error': type(error).__name__, 'message': str(error)})
    raise
  finally:
    _thread.alone = False
  put(key, {'value': value})
  return value


def fetch(tree: PyTree) -> PyTree:
  """The arrays as NumPy's on every process, wherever their parts lie."""

  def whole(x: Any) -> Any:
    # Only arrays that no process holds whole need the devices to exchange anything.
    if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
      return multihost_utils.process_allgather(x, tiled=True)
    return jax.device_get(x)

  return jax.tree.map(whole, tree)


def put(key: str, value: Any) -> bool:
  """Puts a JSON value into the store under a new key; False if the key is taken."""
  try:
    _ask(lambda client: client.key_value_set(_PREFIX + key, json.dumps(value)))
    return True
  except KeyError:
    return False


def wait_for(key: str) -> Any:
  """The JSON value under a key of the store, as soon as a process has put the value.

  Raises:
    ProcessLost: if process 0, the holder of the store, is gone.
  """
  return json.loads(_ask(lambda client: client.blocking_key_value_get(_PREFIX + key, FOREVER_MS)))


def alive() -> set[int]:
  """The living processes, once all of them have asked.

  A dead process counts as alive until a heartbeat is overdue.

  Raises:
    ProcessLost: if process 0 is gone.
  """
  everyone = list(range(distributed.global_state.num_processes))
  return set(_ask(lambda client: client.get_live_nodes(everyone)))


def _ask(request: Callable[[Any], Any]) -> Any:
  """The store's answer to a request, a function of jax's client."""
  try:
    return request(distributed.global_state.client)
  except RuntimeError as error:
    # jax's client has one class of error for all that can happen.
    if 'ALREADY_EXISTS' in str(error):
      raise KeyError(str(error)) from error
    raise ProcessLost(f'another process of the run is gone: {first_line(error)}') from error


def _next_key(kind: str) -> str:
  _message_counts[kind] = _message_counts.get(kind, 0) + 1
  return f'{kind}/{_message_counts[kind]}'


def _check_flags(
  mode: str, coordinator: str, num_processes: int | None, process_id: int | None
) -> None:
  if mode not in MODES:
    raise InputError(f"--distributed={mode}: expected one of {', '.join(MODES)}")
  if mode == 'off' and (coordinator or num_processes is not None or process_id is not None):
    raise InputError(
      '--distributed=off, but --coordinator, --num_processes or --process_id is given: '
      'leave them out'
    )
  if coordinator and not coordinator.rpartition(':')[2].isdigit():
    raise InputError(
      f"--coordinator={coordinator}: expected HOST:PORT, the address of process 0 and a "
      "free port there"
    )
  if num_processes is not None and num_processes < 1:
    raise InputError(f'--num_processes={num_processes}: expected 1 or more')
  # Without the number of processes, any process number is in range.
  if process_id is not None and not 0 <= process_id < (num_processes or process_id + 1):
    raise InputError(
      f'--process_id={process_id}: expected 0 to {(num_processes or 1) - 1}, another one for each '
      'process'
    )


def _detected() -> tuple[int | None, int | None]:
  """(this process's number, processes) of a cluster detected by jax, or (None, None)."""
  # As jax.distributed.initialize finds it: the first environment that is there.
  for cluster in clusters.ClusterEnv._cluster_types:
    if not cluster.opt_in_only_method and cluster.is_env_present():
      return int(cluster.get_process_id()), int(cluster.get_process_count())
  return None, None


def _difference(expected: Any, got: Any) -> str:
  if not isinstance(expected, dict) or not isinstance(got, dict):
    return f'{got!r}, not {expected!r}'
  parts = []
  for key in {**expected, **got}:
    if expected.get(key) != got.get(key):
      parts.append(f'{key} is {got.get(key)!r}, not {expected.get(key)!r}')
  return '; '.join(parts)


def _make_marker(marker: pathlib.Path) -> bool:
  """Whether the folder of the marker had to be made."""
  was_missing = not marker.parent.exists()
  try:
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
  except OSError as error:
    raise errors.OutputError(
      f'{marker.parent} cannot be written: {error.strerror or error}'
    ) from error
  return was_missing
