"""A server from its options: model and directions loaded, programs compiled, then opened."""

import contextlib
import dataclasses
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import uvicorn

from weightsteer_jax import directions, models
from weightsteer_jax.config import ModelChoice
from weightsteer_jax.interfaces.serving import app, loading
from weightsteer_jax.interfaces.serving.bodies import Served
from weightsteer_jax.interfaces.serving.counts import Counts
from weightsteer_jax.interfaces.serving.worker import Worker
from weightsteer_jax.runtime import ending, signals
from weightsteer_jax.runtime.errors import InputError, OutputError
from weightsteer_jax.runtime.progress import say

LOOPBACK = ('127.0.0.1', 'localhost', '::1')
# Seconds between two looks of the thread that winds the stall watchdog.
WIND_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class Options:
  """What is served, and how.

  Attributes:
    model: the model; see `config.ModelChoice`.
    directions: {name: folder}.
    name: the model's name to clients; '' is the last part of its source.
    host, port: where to listen; port 0 takes a free one.
    slots: answers that are generated together.
    max_length: positions of a prompt and its answer; 0 is the model's own, at most 2048.
    most_waiting: answers that wait in line.
    key_variable: variable of the environment with the key that clients show; '' asks for none.
    drain_seconds: how long answers may go on, and be read, after SIGTERM.
    warm: whether programs are compiled before the first request.
    mesh: see `config.Mesh.shape`.
  """

  model: ModelChoice
  directions: Mapping[str, str]
  name: str = ''
  host: str = '127.0.0.1'
  port: int = 8000
  slots: int = 16
  max_length: int = 0
  most_waiting: int = 256
  key_variable: str = ''
  drain_seconds: float = 60.0
  warm: bool = True
  mesh: str = 'auto'


class Server:
  """A server whose model is loaded.

  Raises:
    InputError: if an option, the model or a direction cannot be used; before weights are read
      wherever it can be known.
    OutputError: if the address is taken.
  """

  def __init__(self, options: Options):
    self._options = options
    key = _key(options.key_variable)
    # First, so that a taken address is not told after minutes.
    self.listener = _bound(options.host, options.port)
    loaded = loading.load(
      options.model,
      options.directions,
      name=options.name,
      slots=options.slots,
      max_length=options.max_length,
      mesh=options.mesh,
    )
    served, engine, live, steering = loaded
    _say(options, served, engine.config, steering)
    self.counts = Counts()
    self.worker = Worker(engine, live, most_waiting=options.most_waiting, counts=self.counts)
    self._live = live
    self.front = app.Front(self.worker, served, self.counts, key=key, started=int(time.time()))
    self._uvicorn: uvicorn.Server | None = None
    self.is_open = threading.Event()
    self.is_over = threading.Event()

  @property
  def url(self) -> str:
    """Where clients reach the server."""
    host, port = self.listener.getsockname()[:2]
    return f'http://{f"[{host}]" if ":" in host else host}:{port}'

  def warm(self) -> None:
    """Compiles the programs, so that no request waits for that."""
    started = time.monotonic()
    count = 0
    for _ in self._live.warm():
      ending.progress()
      count += 1
    say(f'{count} programs ready in {time.monotonic() - started:.0f} s')

  def run(self) -> None:
    """Serves until `stop`, then ends when all answers that were taken are given."""
    loopback = self._options.host in LOOPBACK
    web = app.make(self.front, self.counts, loopback=loopback)
    config = uvicorn.Config(web, log_level='warning', access_log=False, lifespan='off')
    server = _Uvicorn(config, self._opened)
    self._uvicorn = server
    self.worker.start()
    threading.Thread(target=self._wind, daemon=True).start()
    try:
      server.run(sockets=[self.listener])
    finally:
      self.is_over.set()
    if self.worker.failure:
      raise RuntimeError(self.worker.failure)

  def stop(self) -> None:
    """Takes no more, and ends when what was taken is answered; a second call ends at once."""
    if self.front.is_ending:
      if self._uvicorn:
        self._uvicorn.force_exit = True
      return
    self.front.is_ending = True
    threading.Thread(target=self._drain, daemon=True).start()

  def _opened(self) -> None:
    say(f'serving on {self.url}')
    self.is_open.set()

  def _drain(self) -> None:
    seconds = self._options.drain_seconds
    until = time.monotonic() + seconds
    in_time = self.worker.end(seconds)
    if not in_time:
      say(f'not every answer was over after {seconds:g} s')
    if not self._uvicorn:
      return
    # Clients read what is left of their answers in what is left of the time.
    left = until - time.monotonic() if in_time else 0
    self._uvicorn.config.timeout_graceful_shutdown = max(1, math.ceil(left))
    self._uvicorn.force_exit |= not in_time
    self._uvicorn.should_exit = True

  def _wind(self) -> None:
    """Winds the stall watchdog while the worker has nothing to do, or does it."""
    told = -1
    while not self.is_over.wait(WIND_SECONDS):
      is_idle = not (self.worker.running or self.worker.waiting)
      if is_idle or self.worker.turns != told:
        ending.progress()
      told = self.worker.turns
      # Requests would wait for ever.
      if self.worker.failure:
        self.stop()


def serve(options: Options) -> None:
  """Serves until SIGTERM or SIGINT."""
  server = Server(options)
  if options.warm:
    server.warm()
  signal.signal(signal.SIGINT, lambda *_: server.stop())
  threading.Thread(target=_stop_when_asked, args=(server,), daemon=True).start()
  server.run()
  say('all answers were given; ended')


def _stop_when_asked(server: Server) -> None:
  """Stops the server at SIGTERM; a second one ends the process (see signals.py)."""
  if signals.wait():
    signals.finish()
    server.stop()


class _Uvicorn(uvicorn.Server):
  """uvicorn without handlers of signals: the server itself says when to end.

  Args:
    opened: called once connections are taken.
  """

  def __init__(self, config: uvicorn.Config, opened: Callable[[], None]):
    super().__init__(config)
    self._opened = opened

  async def startup(self, sockets: list[socket.socket] | None = None) -> None:
    """Begins to listen."""
    await super().startup(sockets)
    self._opened()

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    yield


def _key(variable: str) -> str:
  if not variable:
    return ''
  key = os.environ.get(variable, '')
  if not key:
    raise InputError(
      f'--api_key_variable={variable}: the environment has no such variable, or it is empty; it '
      'holds the key that clients must show'
    )
  return key


def _bound(host: str, port: int) -> socket.socket:
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  bound = socket.socket(family, socket.SOCK_STREAM)
  bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    bound.bind((host, port))
  except OSError as error:
    bound.close()
    raise OutputError(
      f'{host}:{port} cannot be listened on: {error.strerror or error}; name another --port, or 0 '
      'for any that is free'
    ) from error
  bound.set_inheritable(True)
  return bound


def _say(
  options: Options,
  served: Served,
  config: models.ModelConfig,
  steering: Mapping[str, directions.Direction],
) -> None:
  itemsize = 2 if options.model.dtype == 'bfloat16' else 4
  per_position = 2 * config.num_layers * config.num_kv_heads * config.head_dim * itemsize
  cache = options.slots * served.max_length * per_position / 2**20
  say(
    f"model '{served.name}' ({options.model.source}, {options.model.dtype}): {options.slots} slots "
    f'of at most {served.max_length} tokens, a cache of up to {cache:.0f} MiB'
  )
  for name, direction in steering.items():
    say(f"direction '{name}': {options.directions[name]}, norm {direction.meta['norm']:.4g}")
  if not steering:
    say('no direction: every strength is 0; --direction=NAME=FOLDER adds one')
  if options.host not in LOOPBACK and not options.key_variable:
    say(
      f'warning: {options.host} may be reached from other machines, and no key is asked for: set '
      '--api_key_variable'
    )
