"""Limits of chat templates, which come with a model and are programs in jinja's sandbox.

The sandbox keeps a template from files and from Python's insides. It does not keep it from taking
for ever, from writing without end, or from errors of any kind. Here a rendering has a limit of time
and of length, and whatever fails in it is the template's error.

A rendering that takes too long gets an exception from another thread. Python delivers it between
two steps of the template; a single step that takes for ever, such as the product of a text and a
huge number, is stopped by the memory alone.
"""

import contextlib
import ctypes
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

# Seconds of one rendering. Those of real templates take milliseconds, a conversation of 100,000
# words included.
SECONDS = 10.0
# Characters of a text: so many, and so many for each character of the conversation.
CHARACTERS = 1_000_000
TIMES = 20
# Seconds between two looks at the renderings that are under way.
_LOOK_SECONDS = 0.5


class _TooSlow(BaseException):
  """Raised in a thread whose rendering takes too long; nothing in between is to catch it."""


class _Watch:
  """A thread that ends renderings beyond their time."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    # {thread: when its rendering is to be over}
    self._until: dict[int, float] = {}
    self._thread: threading.Thread | None = None

  @contextlib.contextmanager
  def limit(self, seconds: float) -> Iterator[None]:
    """A block that gets _TooSlow once it takes longer."""
    thread = threading.get_ident()
    with self._lock:
      self._until[thread] = time.monotonic() + seconds
      if self._thread is None:
        self._thread = threading.Thread(target=self._look, name='template limits', daemon=True)
        self._thread.start()
    try:
      yield
    finally:
      # Under the lock, so that no exception is sent to a thread whose rendering is over.
      with self._lock:
        is_late = self._until.pop(thread, None) is None
      if is_late:
        # Sent, and perhaps not here yet: it must not arrive in what comes next.
        self._take(thread)

  def _look(self) -> None:
    while True:
      time.sleep(_LOOK_SECONDS)
      with self._lock:
        now = time.monotonic()
        for thread in [thread for thread, until in self._until.items() if until < now]:
          del self._until[thread]
          _send(thread, _TooSlow)

  def _take(self, thread: int) -> None:
    """Takes back an exception that was sent to this thread and has not arrived."""
    _send(thread, None)


def _send(thread: int, error: type[BaseException] | None) -> None:
  """Raises an exception in a thread; None takes back one that has not arrived."""
  sent = None if error is None else ctypes.py_object(error)
  ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), sent)


_WATCH = _Watch()


def limited(tokenizer: Any) -> Any:
  """The tokenizer, whose `apply_chat_template` has the limits.

  It raises jinja2.TemplateError for whatever fails in a template.
  """
  tokenizer.apply_chat_template = _limited(tokenizer.apply_chat_template)
  return tokenizer


def _limited(render: Callable[..., Any]) -> Callable[..., Any]:
  @functools.wraps(render)
  def bounded(conversation: Any, *args: Any, **kwargs: Any) -> Any:
    import jinja2

    try:
      with _WATCH.limit(SECONDS):
        rendered = render(conversation, *args, **kwargs)
    except jinja2.TemplateError:
      raise
    except _TooSlow:
      raise jinja2.TemplateError(f'it takes more than {SECONDS:g} s') from None
    # Faults of the template's own: a sum of a list and a number, a macro without end, ..
    except Exception as error:
      raise jinja2.TemplateError(f'{type(error).__name__}: {error}') from error
    most = CHARACTERS + TIMES * _length(conversation)
    if isinstance(rendered, str) and len(rendered) > most:
      written = f'{len(rendered):,} characters'
      raise jinja2.TemplateError(f'it writes {written}, expected {most:,} at most')
    return rendered

  return bounded


def _length(conversation: Any) -> int:
  """Characters of a conversation's texts."""
  if isinstance(conversation, str):
    return len(conversation)
  if isinstance(conversation, dict):
    return sum(map(_length, conversation.values()))
  if isinstance(conversation, (list, tuple)):
    return sum(map(_length, conversation))
  return 0
