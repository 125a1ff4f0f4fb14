"""A question to an OpenAI-compatible endpoint, repeated until an answer comes or hope is lost."""

import contextlib
import email.utils
import json
import math
import os
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.evaluation.judges.answers import Answer, Messages
from weightsteer_jax.runtime.errors import EndpointError, InputError
from weightsteer_jax.runtime.redaction import spellings

# HTTP statuses after which the same request may succeed later, as after any status from 500 on:
# timeout, conflict, too early, too many requests.
AGAIN = (408, 409, 425, 429)
# Seconds; an endpoint that asks for a longer wait is not waited for.
LONGEST_WAIT_S = 300.0
# Seconds; doubling from 1 s gets here with the seventh wait.
LONGEST_BACKOFF_S = 60.0
# English has about 4; a spend cap is better served by an estimate of too many tokens.
BYTES_PER_TOKEN = 3
# What a message costs beside its text: role and separators.
TOKENS_PER_MESSAGE = 8
# More tokens than a request can have; a larger count is no count, and its price no number.
MOST_TOKENS = 2**40
# Nats; float32 and bfloat16 round the logarithm of a probability near 1 up to such values.
ROUNDED_UP = 1e-4
# How servers name log-probabilities in a refusal.
LOGPROBS = re.compile(r'log[\s_-]*prob', re.IGNORECASE)


class Failed(Exception):
  """No answer came to this request; other requests may succeed.

  Attributes:
    retried: whether the request was made again and again.
    logprobs: whether the endpoint speaks of log-probabilities, for which the request asked.
  """

  def __init__(self, reason: str, *, retried: bool = False, logprobs: bool = False):
    super().__init__(reason)
    self.retried = retried
    self.logprobs = logprobs


class Refused(Exception):
  """The endpoint's own filter refused this request."""


class Stopped(Exception):
  """The asking was called off."""


class _Again(Exception):
  """The request may be made again, after `after` seconds if the endpoint named a wait.

  Attributes:
    logprobs: as of Failed.
  """

  def __init__(self, reason: str, after: float | None = None, *, logprobs: bool = False):
    super().__init__(reason)
    self.after = after
    self.logprobs = logprobs


class Client:
  """A client with the address and the key of the environment; several threads may share a client.

  The key appears in no result, error or output, whatever the endpoint writes.

  Attributes:
    retries: requests that had to be made again.
    stop: once set, waiting ends and `ask` raises Stopped.
    logprobs: whether the endpoint is still asked for log-probabilities.

  Raises:
    InputError: if the `openai` package is missing, or the environment has no key.
  """

  def __init__(self, options: config.EndpointJudge):
    # Here and not above: only judges behind endpoints need the package, an optional one.
    try:
      import openai
    except ImportError as error:
      raise InputError(
        "judges of the kind 'endpoint' need the openai client: pip install 'weightsteer_jax[judge]'"
      ) from error
    # A key pasted into a file of variables often brings a line end along.
    self._key = os.environ.get(options.key_variable, '').strip()
    if not self._key:
      raise InputError(
        f'the environment has no {options.key_variable}: set it to the key of the endpoint (any '
        'word, if it wants none), or name another variable in key_variable'
      )
    # The key goes into an HTTP header, and the error of a header that cannot be sent shows the key.
    if not (self._key.isascii() and self._key.isprintable()):
      raise InputError(
        f'what {options.key_variable} holds in the environment is no key: it has characters '
        'that none can have'
      )
    self._spellings = spellings(self._key)
    address = os.environ.get(options.url_variable, '').strip()
    if address and not address.startswith(('http://', 'https://')):
      raise InputError(
        f'the environment has {options.url_variable} = {self.scrub(address)!r}, expected an '
        'address such as http://localhost:8000/v1'
      )
    self._openai = openai
    self._options = options
    # Here and not above, as openai: the module needs the client's libraries.
    from weightsteer_jax.evaluation.judges import bounded

    self._bounded = bounded
    address = address or 'https://api.openai.com/v1'
    try:
      transport = bounded.Transport(
        address, timeout_s=options.timeout_s, connections=options.concurrency
      )
    # A proxy of an unknown kind, or of SOCKS without the package for it. The proxy may name a
    # password, so the message leaves the proxy out.
    except (ValueError, ImportError, RuntimeError):
      raise InputError(
        f'the proxy that the environment names for {self.scrub(address)} cannot be used: expected '
        'http://, https://, or socks5:// with the package socksio (HTTPS_PROXY, ALL_PROXY; '
        'NO_PROXY names hosts that need none)'
      ) from None
    self._client = openai.OpenAI(
      api_key=self._key,
      base_url=address,
      # `ask` repeats requests: the client's own retries would know neither `stop` nor the hold.
      max_retries=0,
      # A redirect would hand the questions to an address that nobody chose.
      http_client=openai.DefaultHttpxClient(
        transport=transport, follow_redirects=False, trust_env=False
      ),
    )
    self._lock = threading.Lock()
    # On the clock of time.monotonic: no thread asks before.
    self._hold_until = 0.0
    self.stop = threading.Event()
    self.retries = 0
    self.logprobs = True

  def close(self) -> None:
    """Closes the connections."""
    self._client.close()

  def scrub(self, text: str) -> str:
    """The text without the key, in whatever spelling."""
    return self._spellings.sub('[key]', text)

  def scrubbed(self, value: Any) -> Any:
    """A JSON value whose texts are without the key; names stay, for nothing keeps the names."""
    if isinstance(value, str):
      return self.scrub(value)
    if isinstance(value, list):
      return [self.scrubbed(inner) for inner in value]
    if isinstance(value, dict):
      return {name: self.scrubbed(inner) for name, inner in value.items()}
    return value

  def ask(self, messages: Messages, parameters: Mapping[str, Any]) -> Answer:
    """The endpoint's answer.

    Raises:
      Failed: if no answer came, after all retries.
      Refused: if the endpoint filters the request.
      Stopped: if `stop` is set.
      InputError: if no request can succeed: the key, the model or the address is wrong.
      EndpointError: if the account has no means left.
    """
    for attempt in range(self._options.retries + 1):
      self._wait_for_hold()
      try:
        return self._once(messages, parameters)
      except _Again as again:
        # Python forgets `again` at the end of the block.
        reason = str(again)
        logprobs = again.logprobs
        named_wait = again.after or 0.0
        if attempt == self._options.retries or named_wait > LONGEST_WAIT_S:
          break
        with self._lock:
          self.retries += 1
          # An endpoint that has too much to do is left alone by every thread.
          if named_wait:
            hold_until = time.monotonic() + named_wait
            self._hold_until = max(self._hold_until, hold_until)
        # Without a wait from the endpoint only this thread waits, longer after each failure. At
        # random, so that threads that failed together do not come back together.
        if again.after is None:
          doubled = self._options.backoff_s * 2.0**attempt
          backoff = min(doubled, LONGEST_BACKOFF_S)
          self._wait(backoff * random.uniform(0.5, 1.0))
    raise Failed(f'{reason} (asked {attempt + 1} times)', retried=True, logprobs=logprobs)

  def _wait_for_hold(self) -> None:
    """Waits until the endpoint may be asked."""
    # A little longer, at random, so that the threads do not ask all at once.
    while (left := self._hold_until - time.monotonic()) > 0:
      self._wait(left + random.uniform(0.0, self._options.backoff_s))
    # Raises if the asking was called off meanwhile.
    self._wait(0.0)

  def _wait(self, seconds: float) -> None:
    # On the event, not in `time.sleep`: a signal must not wait for the longest backoff.
    if seconds > 0:
      self.stop.wait(seconds)
    if self.stop.is_set():
      raise Stopped()

  def _once(self, messages: Messages, parameters: Mapping[str, Any]) -> Answer:
    try:
      # Raw, because the client takes a body of any shape for an answer; `_read` checks the body.
      # Parameters of other servers, which the client does not know, only pass in `extra_body`.
      raw = self._client.chat.completions.with_raw_response.create(
        messages=list(messages), extra_body=dict(parameters), model=parameters['model']
      )
      body = raw.http_response.text
    except self._openai.APIStatusError as error:
      # Here and below: the chain of errors would show the request, and the key in it.
      asked = bool(parameters.get('logprobs') or parameters.get('top_logprobs'))
      raise self._refusal_of(error, logprobs=asked) from None
    except self._openai.APIConnectionError as error:
      # The client only says 'Connection error.'; the cause says which.
      cause = error.__cause__
      if isinstance(error, self._openai.APITimeoutError):
        raise _Again(f'no answer within {self._options.timeout_s:g} s') from None
      if isinstance(cause, self._bounded.TooLarge):
        raise Failed(f'the answer is too large: {cause}') from None
      raise _Again(self.scrub(f'the connection failed: {cause or error}')) from None
    return self._read(body, messages)

  def _refusal_of(self, error: Any, *, logprobs: bool) -> Exception:
    """The error that an HTTP status means for this request, or for all requests.

    Args:
      logprobs: whether the request asked for log-probabilities.
    """
    status = error.status_code
    # The body is the endpoint's: a mapping, a text of a proxy in between, or nothing.
    body = error.body
    message = body.get('message') if isinstance(body, Mapping) else None
    said = self.scrub(f'{status}: {message or error.message}')[:300]
    if 300 <= status < 400:
      return Failed(self._redirect(status, error.response.headers.get('location', '')))
    # The whole body, because some servers name the parameter beside the message.
    logprobs = logprobs and bool(LOGPROBS.search(f'{body} {error.message}'))
    # OpenAI gives an empty account the status of too many requests, which would be repeated.
    if status == 429 and error.code == 'insufficient_quota':
      return EndpointError(
        f'the endpoint says that the account has no means left ({said}); what was answered is '
        'kept: start again to continue'
      )
    if status in AGAIN or status >= 500:
      return _Again(said, _retry_after(error.response.headers), logprobs=logprobs)
    # Whatever the status: OpenAI says 403 for models that reason, others 400, 404 or 422. If the
    # key is wrong as well, the request without log-probabilities will tell.
    if logprobs:
      return Failed(said, logprobs=True)
    # From here on repeating is in vain. Key, model and address are wrong for every request.
    if status in (401, 403):
      return InputError(f'the endpoint refuses the key in {self._options.key_variable} ({said})')
    if status == 404:
      return InputError(
        f"the endpoint has no model '{self._options.model}', or its address in "
        f'{self._options.url_variable} is wrong ({said})'
      )
    # The codes of Azure and of OpenAI.
    if error.code in ('content_filter', 'content_policy_violation'):
      return Refused(said)
    # Such as a prompt too long: only this request is wrong.
    return Failed(said)

  def _redirect(self, status: int, location: str) -> str:
    """What to say of a redirect: where it points, without what follows the host."""
    try:
      host = urllib.parse.urlsplit(location).netloc.rpartition('@')[2]
    except ValueError:
      host = ''
    where = self.scrub(host)[:100] or 'another path of the same host'
    return (
      f'{status}: the endpoint redirects to {where}, and redirects are not followed: if that is '
      f'where to ask, set {self._options.url_variable} to the address'
    )

  def _read(self, body: str, messages: Messages) -> Answer:
    try:
      # Before anything is read from the reply: an endpoint may repeat the key in any field.
      value = self.scrubbed(json.loads(body))
      choice = value['choices'][0]
      message = choice['message']
      # Null or missing where the answer is a refusal, or where a server knows no refusals.
      text = message.get('content') or ''
      refusal = message.get('refusal') or ''
      if not isinstance(text, str) or not isinstance(refusal, str):
        raise TypeError('the content is no text')
      first, fault = _first_tokens(choice.get('logprobs'))
      finish = str(choice.get('finish_reason') or 'stop')
    except RecursionError:
      # No proxy's page is of this kind, so asking again would only cost again.
      return Answer(
        text='',
        finish='stop',
        refusal='',
        first=(),
        tokens_in=estimate(messages),
        tokens_out=0,
        model='',
        fault='the JSON of the reply is nested too deeply',
      )
    # ArithmeticError: a number that is too large.
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
      # Overloaded proxies answer 200 with a page of HTML, which may pass.
      raise _Again(f'the answer is not of the protocol: {self.scrub(body)[:120]!r}') from None
    counted = _usage(value.get('usage'))
    tokens_in, tokens_out = counted or (estimate(messages), _tokens(text))
    return Answer(
      text=text,
      finish=finish,
      refusal=refusal,
      first=first,
      tokens_in=tokens_in,
      tokens_out=tokens_out,
      model=str(value.get('model') or ''),
      fault=fault,
    )


def estimate(messages: Messages) -> int:
  """The messages' size in tokens, estimated rather too high."""
  return sum(_tokens(message['content']) + TOKENS_PER_MESSAGE for message in messages)


def _tokens(text: str) -> int:
  # Half of a surrogate pair, which a model can write, has no code in UTF-8.
  size = len(text.encode('utf-8', 'backslashreplace'))
  return math.ceil(size / BYTES_PER_TOKEN)


def _retry_after(headers: Mapping[str, str]) -> float | None:
  """Seconds to wait by the headers: from milliseconds, from seconds, or until a date."""
  # OpenAI's own header, which is finer than the standard's seconds.
  milliseconds = headers.get('retry-after-ms') or ''
  with contextlib.suppress(ValueError):
    return _seconds(float(milliseconds) / 1000.0)
  value = headers.get('retry-after') or ''
  with contextlib.suppress(ValueError):
    return _seconds(float(value))
  # HTTP's dates are those of email; a TypeError is what older Pythons raise for other texts.
  with contextlib.suppress(TypeError, ValueError):
    date = email.utils.parsedate_to_datetime(value)
    return _seconds(date.timestamp() - time.time())
  return None


def _seconds(value: float) -> float | None:
  # `float` reads 'inf' and 'nan' too, and a date may have passed.
  return max(value, 0.0) if math.isfinite(value) else None


def _first_tokens(logprobs: Any) -> tuple[tuple[tuple[str, float], ...], str]:
  """(token, log-probability in nats) of the most likely first tokens, and what is wrong with them.

  Tokens without usable log-probabilities are left out altogether.
  """
  # Null where none were asked for; some servers leave the list of tokens or of rivals empty.
  content = logprobs.get('content') if isinstance(logprobs, Mapping) else None
  if not content or not content[0].get('top_logprobs'):
    return (), ''
  entries = content[0]['top_logprobs']
  first = []
  for entry in entries:
    logprob = float(entry['logprob'])
    # JSON as Python reads it has NaN and infinities.
    if not math.isfinite(logprob) or logprob > ROUNDED_UP:
      return (), f'{logprob} is no log-probability'
    first.append((str(entry['token']), min(logprob, 0.0)))
  return tuple(first), ''


def _usage(usage: Any) -> tuple[int, int] | None:
  """(tokens in, tokens out) as the endpoint counts; None without usable counts."""
  if not isinstance(usage, Mapping):
    return None
  tokens_in = usage.get('prompt_tokens')
  tokens_out = usage.get('completion_tokens')
  if not isinstance(tokens_in, int) or not isinstance(tokens_out, int):
    return None
  # A negative count would give back budget.
  if not (0 <= tokens_in <= MOST_TOKENS and 0 <= tokens_out <= MOST_TOKENS):
    return None
  return tokens_in, tokens_out
