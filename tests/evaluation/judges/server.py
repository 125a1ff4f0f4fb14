"""A server that speaks /v1/chat/completions, and misbehaves on request: each answer is (or comes
of) a function of the request.

  python tests/evaluation/judges/server.py PORT [ANSWER]

serves ANSWER to everybody, for trying a judge by hand.
"""

import collections
import contextlib
import http.server
import json
import socket
import sys
import threading
import time


class Server:
  """The server and what it has seen.

  Attributes:
    answer: called with the body of each request and how often this body came before; see the
      functions below for what it may return.
    bodies: of the requests so far. headers: of the same. most: requests that were under way at a
      time, at most.
  """

  def __init__(self, answer, *, slow=0.0, port=0):
    self.answer, self.slow = answer, slow
    self.bodies, self.headers, self.times, self.most = [], [], [], 0
    self._now, self._lock, self._seen = 0, threading.Lock(), collections.Counter()
    self._server = http.server.ThreadingHTTPServer(('127.0.0.1', port), self._handler())
    self._server.daemon_threads = True
    self.url = f'http://127.0.0.1:{self._server.server_port}/v1'

  def __enter__(self):
    threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
    return self

  def __exit__(self, *_):
    self._server.shutdown()
    self._server.server_close()

  def _handler(outer):
    class Handler(http.server.BaseHTTPRequestHandler):
      protocol_version = 'HTTP/1.1'

      def log_message(self, *_):
        pass

      def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        with outer._lock:
          outer._now += 1
          outer.most = max(outer.most, outer._now)
          outer.bodies.append(body)
          outer.headers.append(dict(self.headers))
          outer.times.append(time.monotonic())
          key = json.dumps(body)
          before, outer._seen[key] = outer._seen[key], outer._seen[key] + 1
        try:
          time.sleep(outer.slow)
          # A proxy is given the whole address.
          assert self.path.endswith('/v1/chat/completions'), self.path
          with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            outer.answer(body, before)(self)
        finally:
          with outer._lock:
            outer._now -= 1

    return Handler


def send(status, content, headers=()):
  """Sends bytes with that status."""

  def answer(handler):
    handler.send_response(status)
    handler.send_header('Content-Type', 'application/json')
    handler.send_header('Content-Length', str(len(content)))
    for name, value in dict(headers).items():
      handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)

  return answer


def says(text, *, first=(), finish='stop', refusal=None, usage=(100, 2)):
  """An answer of the protocol; `first` are (token, log-probability) pairs."""
  choice = {
    'index': 0,
    'finish_reason': finish,
    'message': {'role': 'assistant', 'content': text, 'refusal': refusal},
  }
  if first:
    top = [{'token': token, 'logprob': logprob, 'bytes': None} for token, logprob in first]
    choice['logprobs'] = {'content': [{**top[0], 'top_logprobs': top}]}
  value = {
    'id': 'x',
    'object': 'chat.completion',
    'created': 1,
    'model': 'judge-of-the-server',
    'choices': [choice],
  }
  if usage:
    value['usage'] = dict(
      prompt_tokens=usage[0], completion_tokens=usage[1], total_tokens=sum(usage)
    )
  return send(200, json.dumps(value).encode())


def fails(status, message='no', *, code=None, **headers):
  """An error of the protocol; underscores of header names are dashes."""
  body = {'error': {'message': message, 'type': 'error', 'code': code}}
  return send(
    status,
    json.dumps(body).encode(),
    {name.replace('_', '-'): value for name, value in headers.items()},
  )


def hangs(seconds):
  """No answer for so long."""
  return lambda handler: time.sleep(seconds)


def breaks_off(handler):
  """Half an answer; then the connection is closed."""
  whole = b'{"choices": [{"message": {"content": "85"'
  handler.send_response(200)
  handler.send_header('Content-Type', 'application/json')
  handler.send_header('Content-Length', str(2 * len(whole)))
  handler.end_headers()
  handler.wfile.write(whole)
  handler.wfile.flush()
  handler.close_connection = True
  handler.connection.shutdown(socket.SHUT_RDWR)


def drips(whole, seconds, *, headers=False):
  """A byte at a time, of the body or already of the headers, for so long; then the rest."""

  def answer(handler):
    handler.send_response(200)
    handler.send_header('Content-Length', str(len(whole) + 1000))
    end = time.monotonic() + seconds
    sent = 0
    if headers:
      handler.flush_headers()
      handler.wfile.write(b'X-Slow: ')
    else:
      handler.end_headers()
    while time.monotonic() < end:
      handler.wfile.write(b' ')
      handler.wfile.flush()
      sent += 1
      time.sleep(0.02)
    handler.wfile.write(b'\r\n\r\n' if headers else b'')
    handler.wfile.write(b' ' * (1000 if headers else 1000 - sent) + whole)

  return answer


if __name__ == '__main__':
  with Server(
    lambda body, before: says(sys.argv[2] if len(sys.argv) > 2 else '70'), port=int(sys.argv[1])
  ) as running:
    print(running.url, flush=True)
    threading.Event().wait()
