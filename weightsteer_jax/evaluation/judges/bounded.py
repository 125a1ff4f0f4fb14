"""HTTP to one address within bounds: a deadline for the whole request, and caps of bytes.

The time-outs of httpx2 are for each read, and its bodies have no end but the server's. This
transport counts below HTTP, where bytes leave the socket, so that headers that drip and chunks
without end are bounded too.

Only judges behind endpoints import this module: httpx2 and httpcore2 come with the openai client.
"""

import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any

import httpcore2
import httpx2

# Bytes of a reply, headers included, as they come over the wire. An answer of 10,000 tokens with 20
# rivals each takes about 20 MB.
MOST_ON_THE_WIRE = 32 * 2**20
# Bytes of a body after unpacking; gzip makes up to a thousand of one.
MOST_UNPACKED = 32 * 2**20

# The errors of a connection that breaks, or of what came over it.
BROKEN = (
  httpcore2.NetworkError,
  httpcore2.ProtocolError,
  httpcore2.ProxyError,
  httpcore2.UnsupportedProtocol,
)


class Late(httpx2.TimeoutException):
  """The deadline of the request has passed."""


class TooLarge(httpx2.TransportError):
  """The reply has more bytes than a judge's answer can have."""


class _Bounds(threading.local):
  """The bounds of the request that this thread has under way.

  Attributes:
    deadline: on the clock of time.monotonic.
    received: bytes so far.
  """

  deadline = 0.0
  received = 0

  def left(self) -> float:
    """Seconds until the deadline.

    Raises:
      Late: if there are none.
    """
    left = self.deadline - time.monotonic()
    if left <= 0:
      raise Late('the time is up')
    return left

  def count(self, data: bytes) -> bytes:
    """The data.

    Raises:
      TooLarge: if there are more bytes than a reply may have.
    """
    self.received += len(data)
    if self.received > MOST_ON_THE_WIRE:
      raise TooLarge(f'more than {MOST_ON_THE_WIRE} bytes')
    return data


class _Stream(httpcore2.NetworkStream):
  """A connection each of whose steps ends at the deadline."""

  def __init__(self, stream: httpcore2.NetworkStream, bounds: _Bounds):
    self._stream = stream
    self._bounds = bounds

  def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
    data = _until_late(lambda: self._stream.read(max_bytes, self._bounds.left()))
    return self._bounds.count(data)

  def write(self, buffer: bytes, timeout: float | None = None) -> None:
    # The library below writes in steps with a time-out each; a question is a few of these.
    _until_late(lambda: self._stream.write(buffer, self._bounds.left()))

  def close(self) -> None:
    self._stream.close()

  def start_tls(
    self,
    ssl_context: ssl.SSLContext,
    server_hostname: str | None = None,
    timeout: float | None = None,
  ) -> httpcore2.NetworkStream:
    left = self._bounds.left()
    secured = _until_late(lambda: self._stream.start_tls(ssl_context, server_hostname, left))
    return _Stream(secured, self._bounds)

  def get_extra_info(self, info: str) -> Any:
    return self._stream.get_extra_info(info)


class _Backend(httpcore2.NetworkBackend):
  """Makes connections whose every step ends at the deadline."""

  def __init__(self, bounds: _Bounds):
    self._backend = httpcore2.SyncBackend()
    self._bounds = bounds

  def connect_tcp(
    self,
    host: str,
    port: int,
    timeout: float | None = None,
    local_address: str | None = None,
    socket_options: Iterable[Any] | None = None,
  ) -> httpcore2.NetworkStream:
    left = self._bounds.left()
    stream = _until_late(
      lambda: self._backend.connect_tcp(host, port, left, local_address, socket_options)
    )
    return _Stream(stream, self._bounds)

  def sleep(self, seconds: float) -> None:
    self._backend.sleep(min(seconds, self._bounds.left()))


def _until_late(step: Callable[[], Any]) -> Any:
  # Every step has all the time that is left, so a step that runs out of time has reached the end.
  try:
    return step()
  except httpcore2.TimeoutException:
    raise Late('the time is up') from None


class Transport(httpx2.BaseTransport):
  """A transport to one address, through the proxy that the environment names for it.

  Args:
    address: the address of all requests.
    timeout_s: seconds for a request, from the connection to the last byte of the reply.
    connections: requests under way at a time, at most.
  """

  def __init__(self, address: str, *, timeout_s: float, connections: int):
    self._timeout_s = timeout_s
    self._bounds = _Bounds()
    common: dict[str, Any] = dict(
      # Reads SSL_CERT_FILE and SSL_CERT_DIR, as httpx2 does by itself.
      ssl_context=httpx2.create_ssl_context(),
      max_connections=connections,
      network_backend=_Backend(self._bounds),
    )
    self._pool: httpcore2.ConnectionPool
    proxy = proxy_of(address)
    if not proxy:
      self._pool = httpcore2.ConnectionPool(**common)
      return
    url = httpx2.Proxy(proxy)
    kind = httpcore2.SOCKSProxy if url.url.scheme.startswith('socks') else httpcore2.HTTPProxy
    self._pool = kind(proxy_url=str(url.url), proxy_auth=url.raw_auth, **common)

  def handle_request(self, request: httpx2.Request) -> httpx2.Response:
    """The response with its whole body, unpacked.

    Raises:
      Late: if the deadline passes.
      TooLarge: if the reply has too many bytes, packed or unpacked.
      httpx2.TransportError: if the connection or the protocol breaks.
    """
    self._bounds.deadline = time.monotonic() + self._timeout_s
    self._bounds.received = 0
    url = request.url
    target = httpcore2.URL(
      scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )
    question = httpcore2.Request(
      request.method,
      target,
      headers=request.headers.raw,
      content=request.stream,
      # Waiting for a free connection ends at the deadline as well.
      extensions={'timeout': {'pool': self._timeout_s}},
    )
    try:
      packed = self._pool.handle_request(question)
      try:
        body = self._unpacked(packed)
      finally:
        packed.close()
    except httpcore2.PoolTimeout:
      raise Late('the time is up') from None
    # The client above only knows the errors of httpx2.
    except BROKEN as error:
      raise httpx2.TransportError(str(error) or type(error).__name__) from error
    headers = httpx2.Headers(packed.headers)
    # The body is unpacked and whole: these two would have it unpacked again, or its size doubted.
    for name in ('content-encoding', 'content-length', 'transfer-encoding'):
      headers.pop(name, None)
    return httpx2.Response(packed.status, headers=headers, content=body)

  def close(self) -> None:
    """Closes the connections."""
    self._pool.close()

  def _unpacked(self, packed: httpcore2.Response) -> bytes:
    # httpx2 unpacks in pieces of a megabyte at most, so a small reply cannot fill the memory.
    response = httpx2.Response(packed.status, headers=packed.headers, content=packed.iter_stream())
    body = bytearray()
    for piece in response.iter_bytes():
      body += piece
      if len(body) > MOST_UNPACKED:
        raise TooLarge(f'more than {MOST_UNPACKED} bytes after unpacking')
      # Raises once the deadline has passed: unpacking takes time too.
      self._bounds.left()
    return bytes(body)


def proxy_of(address: str) -> str:
  """The proxy that the environment names for an address; '' for none."""
  parts = urllib.parse.urlsplit(address)
  if urllib.request.proxy_bypass(parts.hostname or ''):
    return ''
  proxies = urllib.request.getproxies()
  proxy = proxies.get(parts.scheme) or proxies.get('all') or ''
  # 'proxy:3128' is common, and means HTTP.
  return proxy if not proxy or '://' in proxy else f'http://{proxy}'
