"""The web application: OpenAI's paths over a worker.

POST /v1/chat/completions, /v1/completions
GET  /v1/models, /health, /metrics, /
"""

import asyncio
import dataclasses
import functools
import hmac
import json
import math
import pathlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from starlette import applications, concurrency, responses, routing
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from weightsteer_jax.data import thoughts
from weightsteer_jax.inference.requests import Tokens
from weightsteer_jax.inference.tops import Place
from weightsteer_jax.interfaces.serving import bodies, strengths
from weightsteer_jax.interfaces.serving.bodies import Asked, Served
from weightsteer_jax.interfaces.serving.counts import Counts
from weightsteer_jax.interfaces.serving.refusals import Refusal
from weightsteer_jax.interfaces.serving.replies import Choice, Replies
from weightsteer_jax.interfaces.serving.texts import Answer
from weightsteer_jax.interfaces.serving.worker import Ended, Event, Full, Job, Worker
from weightsteer_jax.runtime import json_text

# Bytes of a request's body: more text than any context holds.
MOST_BYTES = 16 * 2**20
# Seconds between two looks at whether a client is still there.
LOOK_SECONDS = 0.5
# A full line is asked again after so many seconds, at least and at most.
RETRY_SECONDS = (1, 60)
# Names of this machine: a page of another site cannot reach a server under any other.
LOOPBACK = ('localhost', '127.0.0.1', '[::1]')
# What may be half a surrogate pair in JSON's escapes.
SURROGATE = re.compile(r'\\u[dD][89a-fA-F]')
BROKEN = 'the model broke at this strength: its logits are not finite'


# The page runs its own script alone, and speaks to this server alone.
PAGE_POLICY = (
  "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE = pathlib.Path(__file__).parent / 'page'
PAGE_FILES = {'/': 'index.html', '/page.css': 'page.css', '/page.js': 'page.js'}


class Front:
  """What the handlers share.

  Args:
    key: what a client has to show; '' where nothing is asked for.
    started: seconds since the epoch at which the server began, for the list of models.
  """

  def __init__(self, worker: Worker, served: Served, counts: Counts, *, key: str, started: int):
    self._worker = worker
    self._served = served
    self._counts = counts
    self._key = key
    self._started = started
    self.is_ending = False

  async def chat(self, request: Request) -> responses.Response:
    """POST /v1/chat/completions."""
    return await self._answer(request, bodies.read_chat)

  async def completion(self, request: Request) -> responses.Response:
    """POST /v1/completions."""
    return await self._answer(request, bodies.read_completion)

  async def models(self, request: Request) -> responses.Response:
    """GET /v1/models: the model, and its name under each direction at strength 1."""
    self._check_key(request)
    names = [self._served.name]
    for direction in self._served.directions:
      names.append(f'{self._served.name}{strengths.AT}{direction}{strengths.IS}1')
    shared = {'object': 'model', 'created': self._started, 'owned_by': 'weightsteer_jax'}
    data = [{'id': name, **shared, 'max_model_len': self._served.max_length} for name in names]
    return responses.JSONResponse({'object': 'list', 'data': data})

  async def health(self, request: Request) -> responses.Response:
    """GET /health: 200 while requests are answered."""
    if self._worker.failure or self.is_ending:
      reason = self._worker.failure or 'ending'
      return responses.JSONResponse({'status': reason}, status_code=503)
    return responses.JSONResponse({'status': 'ok'})

  async def page(self, request: Request) -> responses.Response:
    """GET / and the files of the page, which chats with the base and the steered model."""
    policy = {'Content-Security-Policy': PAGE_POLICY, 'X-Content-Type-Options': 'nosniff'}
    return responses.FileResponse(PAGE / PAGE_FILES[request.url.path], headers=policy)

  async def metrics(self, request: Request) -> responses.Response:
    """GET /metrics, for Prometheus."""
    self._check_key(request)
    text = self._counts.text(waiting=self._worker.waiting, running=self._worker.running)
    return responses.PlainTextResponse(text, media_type='text/plain; version=0.0.4')

  def _check_key(self, request: Request) -> None:
    if not self._key:
      return
    scheme, _, shown = request.headers.get('authorization', '').partition(' ')
    right = hmac.compare_digest(shown.strip().encode(), self._key.encode())
    if scheme.lower() != 'bearer' or not right:
      raise Refusal(
        'the key is missing or wrong: send it as Authorization: Bearer KEY',
        status=401,
        code='invalid_api_key',
      )

  async def _answer(
    self, request: Request, read: Callable[[Any, Served], Asked]
  ) -> responses.Response:
    self._check_key(request)
    if self.is_ending:
      raise Refusal('the server is ending: ask again later, or another one', status=503)
    body = await _body(request)
    # Templates and tokenizers take their time.
    asked = await concurrency.run_in_threadpool(read, body, self._served)
    running = _Running(asked, self._worker, self._counts, self._served.stop_ids)
    running.begin()
    self._counts.prompt_tokens += sum(map(len, asked.prompts))
    if asked.stream:
      return _Stream(running)
    return responses.JSONResponse(await running.whole(request))


class _Running:
  """One request on its way: its answers, and what came of them."""

  def __init__(self, asked: Asked, worker: Worker, counts: Counts, stop_ids: Sequence[int]):
    self._asked = asked
    self._stop_ids = stop_ids
    self._worker = worker
    self._counts = counts
    self._replies = Replies(asked)
    self._loop = asyncio.get_running_loop()
    self._came: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
    self._prompts = [prompt for prompt in asked.prompts for _ in range(asked.n)]
    self._jobs: dict[int, Job] = {}
    self._finished: list[Choice] = []

  def begin(self) -> None:
    """Puts the answers into the line.

    Raises:
      Refusal: if the line is full, or the server takes no more.
    """
    asked = self._asked
    for index, prompt in enumerate(self._prompts):
      limit = asked.limits[index // asked.n]
      wants_places = asked.tops is not None
      if not limit and not wants_places:
        self._came.put_nowait((index, Event(finish='length')))
        continue
      answer = Answer(asked.tokenizer, prompt, stops=asked.stops, apart=asked.is_chat)
      self._jobs[index] = Job(
        prompt,
        asked.coefficients,
        limit,
        asked.sampling,
        asked.seed,
        index % asked.n,
        answer,
        self._teller(index),
        # Log-probabilities are known at the end, and sent with their text.
        streams=asked.stream and not wants_places,
        scored=functools.partial(self._scored_tokens, index) if wants_places else None,
      )
    try:
      self._worker.submit(list(self._jobs.values()))
    except Full:
      seconds = self._seconds_to_wait()
      raise Refusal(
        f'the line is full; ask again in {seconds} s',
        status=429,
        code='queue_full',
        headers={'Retry-After': str(seconds)},
      ) from None
    except Ended as error:
      raise Refusal(str(error), status=503) from None

  async def whole(self, request: Request) -> dict[str, Any]:
    """The reply, once all answers are over.

    Raises:
      Refusal: if there is none.
    """
    looked = time.monotonic()
    try:
      while len(self._finished) < len(self._prompts):
        # Also where answers come faster than that.
        if time.monotonic() - looked > LOOK_SECONDS:
          looked = time.monotonic()
          if await request.is_disconnected():
            raise Refusal('the client went away', status=499)
        try:
          index, event = await asyncio.wait_for(self._next(), LOOK_SECONDS)
        except TimeoutError:
          continue
        if event.finish:
          self._finished.append(self._choice(index, event))
      return self._replies.whole(sorted(self._finished, key=lambda choice: choice.index))
    finally:
      self.give_up()

  async def stream(self) -> AsyncIterator[str]:
    """Server-sent events, as answers grow."""
    try:
      for opening in self._replies.openings(self._prompts):
        yield _event(opening)
      while len(self._finished) < len(self._prompts):
        index, event = await self._next()
        if not event.finish:
          yield _event(self._replies.piece(index, event.piece))
          continue
        choice = self._choice(index, event)
        self._finished.append(choice)
        yield _event(self._replies.closing(choice, event.piece))
      if self._asked.include_usage:
        yield _event(self._replies.usage_chunk(self._finished))
      yield 'data: [DONE]\n\n'
    # The head of the reply is gone: what is left is to say it in the stream.
    except Refusal as refusal:
      yield _event(refusal.body())

  def give_up(self) -> None:
    """Drops the answers that are not over."""
    over = {choice.index for choice in self._finished}
    left = [job for index, job in self._jobs.items() if index not in over]
    if left:
      self._worker.drop(left)

  async def _next(self) -> tuple[int, Event]:
    """The next event.

    Raises:
      Refusal: if there will be no answer.
    """
    index, event = await self._came.get()
    if event.error:
      raise Refusal(f'the server failed: {event.error}', status=500)
    if event.finish == 'not_finite':
      raise Refusal(BROKEN, status=422, code='not_finite')
    return index, event

  def _choice(self, index: int, event: Event) -> Choice:
    """The finished answer.

    Raises:
      Refusal: if a log-probability is not finite.
    """
    choice = Choice(
      index=index,
      text=event.text,
      whole=event.whole,
      tokens=self._shown_tokens(event),
      counted=len(event.tokens),
      finish=event.finish,
      prompt=self._prompts[index],
    )
    if event.places is None:
      return choice
    if not all(math.isfinite(place.logprob) for place in event.places):
      raise Refusal(BROKEN, status=422, code='not_finite')
    return self._with_places(choice, event)

  def _shown_tokens(self, event: Event) -> Tokens:
    """The tokens of the text; a stop text has cut some of them."""
    if event.finish == 'stop' and self._asked.stops:
      return self._tokens_of(event.text, event.tokens)
    return event.tokens

  def _tokens_of(self, text: str, tokens: Tokens) -> Tokens:
    """The first tokens, as many as a text has that a stop text has cut."""
    low = 0
    high = len(tokens)
    while low < high:
      middle = (low + high) // 2
      if len(thoughts.text_of(self._asked.tokenizer, list(tokens[:middle]))) < len(text):
        low = middle + 1
      else:
        high = middle
    return tokens[:low]

  def _scored_tokens(self, index: int, event: Event) -> Tokens:
    # In the older interface a stop token is the last of the tokens; which one, its place tells.
    stop = tuple(self._stop_ids[:1]) if self._shows_stop(event) else ()
    return (*self._prompts[index], *self._shown_tokens(event), *stop)

  def _shows_stop(self, event: Event) -> bool:
    return not self._asked.is_chat and event.by_token

  def _with_places(self, choice: Choice, event: Event) -> Choice:
    """The choice with its places, and with its stop token where that is shown."""
    tokens = choice.tokens
    places = list(event.places or ())
    if self._shows_stop(event):
      last = places[-1]
      # The likeliest of them, which a greedy answer has met.
      likely = [(logprob, token) for token, logprob in last.tops if token in self._stop_ids]
      logprob, stop = max(likely, default=(last.logprob, self._stop_ids[0]))
      places[-1] = Place(logprob, last.tops)
      tokens = (*tokens, stop)
    shown = [Place(one.logprob, one.tops[: self._asked.tops]) for one in places]
    return dataclasses.replace(choice, tokens=tokens, places=shown)

  def _teller(self, index: int) -> Callable[[Event], None]:
    def tell(event: Event) -> None:
      self._loop.call_soon_threadsafe(self._came.put_nowait, (index, event))

    return tell

  def _seconds_to_wait(self) -> int:
    """Seconds until some answers ahead are over, by those before."""
    least, most = RETRY_SECONDS
    return max(least, min(most, math.ceil(self._counts.answers.mean)))


class _Stream(responses.StreamingResponse):
  """A request's events, given up where the client is gone, be it before the first of them."""

  def __init__(self, running: _Running):
    headers = {'Cache-Control': 'no-cache'}
    super().__init__(running.stream(), media_type='text/event-stream', headers=headers)
    self._running = running

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Sends the events."""
    try:
      await super().__call__(scope, receive, send)
    finally:
      self._running.give_up()


def _event(value: dict[str, Any]) -> str:
  return f'data: {json.dumps(value, ensure_ascii=False)}\n\n'


async def _body(request: Request) -> Any:
  """The JSON of a body.

  Raises:
    Refusal: if it is none, or too long.
  """
  # A page of another site may send a form, but no JSON, without asking first.
  if request.headers.get('content-type', '').partition(';')[0].strip() != 'application/json':
    raise Refusal('send the body as Content-Type: application/json', status=415)
  size = 0
  parts = []
  async for part in request.stream():
    size += len(part)
    if size > MOST_BYTES:
      raise Refusal(f'the body is longer than {MOST_BYTES >> 20} MiB', status=413)
    parts.append(part)

  try:
    text = b''.join(parts).decode()
    body = json_text.parse(text, finite=True)
  except ValueError as error:
    raise Refusal(f'the body is no JSON: {error}') from error
  # It can be neither tokenized nor sent back.
  if SURROGATE.search(text) and json_text.half_pair(json.dumps(body, ensure_ascii=False)) >= 0:
    raise Refusal('the body has half a surrogate pair, which is no text')
  return body


def make(front: Front, counts: Counts, *, loopback: bool) -> applications.Starlette:
  """The application.

  Args:
    loopback: whether it is reached under names of this machine alone.
  """

  def counted(
    handler: Callable[[Request], Awaitable[responses.Response]],
  ) -> Callable[[Request], Awaitable[responses.Response]]:
    async def handle(request: Request) -> responses.Response:
      try:
        response = await handler(request)
      except Refusal as refusal:
        response = responses.JSONResponse(
          refusal.body(), status_code=refusal.status, headers=refusal.headers
        )
      counts.replied(request.url.path, response.status_code)
      return response

    return handle

  routes = [
    routing.Route('/v1/chat/completions', counted(front.chat), methods=['POST']),
    routing.Route('/v1/completions', counted(front.completion), methods=['POST']),
    routing.Route('/v1/models', counted(front.models)),
    routing.Route('/health', counted(front.health)),
    routing.Route('/metrics', counted(front.metrics)),
    *(routing.Route(path, counted(front.page)) for path in PAGE_FILES),
  ]
  middleware = []
  if loopback:
    middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK)))
  return applications.Starlette(
    routes=routes,
    middleware=middleware,
    exception_handlers={HTTPException: _http_error, Exception: _fault},
  )


async def _http_error(request: Request, error: Exception) -> responses.Response:
  """Errors of Starlette itself, such as a path that is not there."""
  assert isinstance(error, HTTPException)
  path = request.url.path
  hint = ''
  if error.status_code == 404:
    there = ', '.join(route.path for route in request.app.routes)
    near = f'; did you mean /v1{path}?' if f'/v1{path}' in there else ''
    hint = f'{near}; there are {there}'
  refusal = Refusal(f'{request.method} {path}: {error.detail}{hint}', status=error.status_code)
  return responses.JSONResponse(refusal.body(), status_code=refusal.status)


async def _fault(request: Request, error: Exception) -> responses.Response:
  """A fault of ours; Starlette raises it again, so that it is logged."""
  refusal = Refusal(f'a fault of the server: {type(error).__name__}', status=500)
  return responses.JSONResponse(refusal.body(), status_code=500)
