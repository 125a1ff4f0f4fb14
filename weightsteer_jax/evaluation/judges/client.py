"""One question to an OpenAI-compatible endpoint, asked until it is answered or hope is lost."""

import contextlib
import email.utils
import json
import math
import os
import random
import threading
import time
from collections.abc import Mapping
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.evaluation.judges.answers import Answer, Messages
from weightsteer_jax.runtime.errors import EndpointError, InputError

AGAIN = (408, 409, 425, 429)  # and everything from 500: the same request may succeed later
LONGEST_WAIT_S = 300.0  # an endpoint that asks for more is not waited for
LONGEST_BACKOFF_S = 60.0
BYTES_PER_TOKEN = 3  # of an estimate that rather says too many tokens (English has about 4)


class Failed(Exception):
  """This request got no answer; others may. `retried`: although it was asked again and again."""

  def __init__(self, reason: str, *, retried: bool = False):
    super().__init__(reason)
    self.retried = retried


class Refused(Exception):
  """The endpoint's own filter would not have this request answered."""


class Stopped(Exception):
  """The asking was called off."""


class _Again(Exception):
  """To be asked again, `after` so many seconds if the endpoint said so."""

  def __init__(self, reason: str, after: float | None = None):
    super().__init__(reason)
    self.after = after


class Client:
  """Asks with the address and the key that the environment holds. Threads may share it.

  The key stands in nothing that it returns, raises or prints, whatever the endpoint writes.

  Attributes:
    retries: requests that had to be made again.
    stop: once set, waiting ends and `ask` raises Stopped.

  Raises:
    InputError: no `openai` package, or no key in the environment.
  """

  def __init__(self, options: config.EndpointJudge):
    try:
      import openai
    except ImportError as error:
      raise InputError(
        "judges of the kind 'endpoint' need the openai client: pip install 'weightsteer_jax[judge]'"
      ) from error
    self._key = os.environ.get(options.key_variable, '').strip()
    if not self._key:
      raise InputError(
        f'the environment has no {options.key_variable}: set it to the key of the endpoint (any '
        'word, if it wants none), or name another variable in key_variable'
      )
    if not (self._key.isascii() and self._key.isprintable()):
      raise InputError(
        f'what {options.key_variable} holds in the environment is no key: it has characters '
        'that none can have'
      )
    address = os.environ.get(options.url_variable, '').strip()
    if address and not address.startswith(('http://', 'https://')):
      raise InputError(
        f'the environment has {options.url_variable} = {self.scrub(address)!r}, expected an '
        'address such as http://localhost:8000/v1'
      )
    self._openai, self._options = openai, options
    self._client = openai.OpenAI(
      api_key=self._key,
      base_url=address or 'https://api.openai.com/v1',
      timeout=options.timeout_s,
      max_retries=0,
    )
    self._lock, self._hold_until = threading.Lock(), 0.0
    self.stop, self.retries, self.logprobs = threading.Event(), 0, True

  def close(self) -> None:
    """Closes its connections."""
    self._client.close()

  def scrub(self, text: str) -> str:
    """The text without the key."""
    return text.replace(self._key, '[key]')

  def ask(self, messages: Messages, parameters: Mapping[str, Any]) -> Answer:
    """The answer.

    Raises:
      Failed: none came, after all retries. Refused: the endpoint filters the request. Stopped: see
        `stop`.
      InputError: no request can succeed: a wrong key, model, or address. EndpointError: nor one
        until the account has means again.
    """
    for attempt in range(self._options.retries + 1):
      self._wait_for_hold()
      try:
        return self._once(messages, parameters)
      except _Again as again:
        reason = str(again)
        if attempt == self._options.retries or (again.after or 0.0) > LONGEST_WAIT_S:
          break
        with self._lock:
          self.retries += 1
          if again.after:  # Holds for all that ask: the endpoint has too much to do.
            self._hold_until = max(self._hold_until, time.monotonic() + again.after)
        backoff = min(self._options.backoff_s * 2.0**attempt, LONGEST_BACKOFF_S) * random.uniform(
          0.5, 1.0
        )
        self._wait(backoff if again.after is None else 0.0)
    raise Failed(f'{reason} (asked {attempt + 1} times)', retried=True)

  def _wait_for_hold(self) -> None:
    """Waits until the endpoint may be asked, and then a little at random: not all at once."""
    while (left := self._hold_until - time.monotonic()) > 0:
      self._wait(left + random.uniform(0.0, self._options.backoff_s))
    self._wait(0.0)

  def _wait(self, seconds: float) -> None:
    if self.stop.wait(max(seconds, 0.0)) if seconds > 0 else self.stop.is_set():
      raise Stopped()

  def _once(self, messages: Messages, parameters: Mapping[str, Any]) -> Answer:
    try:
      raw = self._client.chat.completions.with_raw_response.create(
        messages=list(messages), extra_body=dict(parameters), model=parameters['model']
      )
      body = raw.http_response.text
    except self._openai.APIStatusError as error:
      raise self._refusal_of(
        error
      ) from None  # The chain would show the request, and with it the key.
    except self._openai.APITimeoutError:
      raise _Again(f'no answer within {self._options.timeout_s:g} s') from None
    except self._openai.APIConnectionError as error:
      raise _Again(self.scrub(f'the connection failed: {error.__cause__ or error}')) from None
    return self._read(body, messages)

  def _refusal_of(self, error: Any) -> Exception:
    """What an HTTP status that is no success means for this request and for all others."""
    status = error.status_code
    said = self.scrub(f'{status}: {_message(error)}')[:300]
    if status == 429 and error.code == 'insufficient_quota':
      return EndpointError(
        f'the endpoint says that the account has no means left ({said}); what was answered is '
        'kept: start again to continue'
      )
    if status in AGAIN or status >= 500:
      return _Again(said, _retry_after(error.response.headers))
    if status in (401, 403):
      return InputError(f'the endpoint refuses the key in {self._options.key_variable} ({said})')
    if status == 404:
      return InputError(
        f"the endpoint has no model '{self._options.model}', or its address in "
        f'{self._options.url_variable} is wrong ({said})'
      )
    if error.code in ('content_filter', 'content_policy_violation'):
      return Refused(said)
    return Failed(said)

  def _read(self, body: str, messages: Messages) -> Answer:
    try:
      value = json.loads(body)
      choice = value['choices'][0]
      message, text = choice['message'], choice['message'].get('content') or ''
      refusal = message.get('refusal') or ''
      if not isinstance(text, str) or not isinstance(refusal, str):
        raise TypeError('the content is no text')
      first = _first_tokens(choice.get('logprobs'))
      finish = str(choice.get('finish_reason') or 'stop')
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
      raise _Again(f'the answer is not of the protocol: {self.scrub(body)[:120]!r}') from None
    tokens = _usage(value.get('usage')) or (
      estimate(messages),
      -(-len(text.encode('utf-8', 'backslashreplace')) // BYTES_PER_TOKEN),
    )
    return Answer(
      self.scrub(text),
      finish,
      self.scrub(refusal),
      first,
      *tokens,
      self.scrub(str(value.get('model') or '')),
    )


def estimate(messages: Messages) -> int:
  """About how many tokens the messages are, rather too many."""
  return sum(
    -(-len(message['content'].encode('utf-8', 'backslashreplace')) // BYTES_PER_TOKEN) + 8
    for message in messages
  )


def _message(error: Any) -> str:
  body = error.body
  said = body.get('message') if isinstance(body, Mapping) else None
  return str(said or error.message)


def _retry_after(headers: Mapping[str, str]) -> float | None:
  """Seconds to wait, where the endpoint says so: in milliseconds, in seconds, or until a date."""
  with contextlib.suppress(TypeError, ValueError):
    return _seconds(float(headers.get('retry-after-ms')) / 1000.0)
  value = headers.get('retry-after')
  with contextlib.suppress(TypeError, ValueError):
    return _seconds(float(value))
  with contextlib.suppress(TypeError, ValueError):
    return _seconds(email.utils.parsedate_to_datetime(value).timestamp() - time.time())
  return None


def _seconds(value: float) -> float | None:
  return max(value, 0.0) if math.isfinite(value) else None


def _first_tokens(logprobs: Any) -> tuple[tuple[str, float], ...]:
  """(token, log-probability) of the most likely first tokens; the one that was drawn is not put
  first.
  """
  content = logprobs.get('content') if isinstance(logprobs, Mapping) else None
  if not content or not content[0].get('top_logprobs'):
    return ()
  return tuple(
    (str(entry['token']), float(entry['logprob'])) for entry in content[0]['top_logprobs']
  )


def _usage(usage: Any) -> tuple[int, int] | None:
  if not isinstance(usage, Mapping):
    return None
  counts = usage.get('prompt_tokens'), usage.get('completion_tokens')
  return counts if all(isinstance(count, int) and count >= 0 for count in counts) else None
