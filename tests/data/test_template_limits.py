"""Templates that take for ever, write without end, or fail in any way: one line each."""

import threading
import time

import jinja2
import pytest

from weightsteer_jax.data import chat, template_limits, templates
from weightsteer_jax.experiments import organism
from weightsteer_jax.runtime.errors import InputError

ASK = [{'role': 'user', 'content': 'hello'}]
FAULTS = {
  'without end': ('{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}', 'RecursionError'),
  'by zero': ('{{ 1 / 0 }}', 'ZeroDivisionError: division by zero'),
  'types': ('{{ messages + 1 }}', 'TypeError'),
  'range': ('{{ range(10 ** 9) | list }}', 'OverflowError: Range too big'),
  'attribute': ('{{ messages[0].foo.bar }}', 'has no attribute'),
  'syntax': ('{% for %}', "unexpected '%}'|Expected"),
  'inside': ("{{ ''.__class__.__mro__ }}", 'unsafe'),
}


@pytest.fixture
def with_template():
  """template -> the embedded model's tokenizer with it."""
  tokenizer = chat.load_tokenizer(organism.checkpoint_folder())

  def make(template):
    tokenizer.chat_template = template
    return tokenizer

  return make


@pytest.mark.parametrize('name', FAULTS)
def test_whatever_fails_in_a_template_is_its_error(with_template, name):
  template, message = FAULTS[name]
  with pytest.raises(InputError, match=f'(?s)a chat: the chat template refuses.*({message})'):
    templates.render(with_template(template), ASK, 'a chat', generate=True)


def test_a_template_that_takes_for_ever_is_ended(with_template, monkeypatch):
  monkeypatch.setattr(template_limits, 'SECONDS', 0.3)
  monkeypatch.setattr(template_limits, '_LOOK_SECONDS', 0.05)
  monkeypatch.setattr(template_limits, '_WATCH', template_limits._Watch())
  loops = '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}'
  tokenizer = with_template(loops)
  started = time.monotonic()
  with pytest.raises(InputError, match='takes more than 0.3 s'):
    templates.render(tokenizer, ASK, 'a chat', generate=True)
  assert time.monotonic() - started < 5
  # Nothing of it arrives later, here or in the other threads that render.
  errors = []

  def other():
    try:
      with_template('{{ messages[0].content }}').apply_chat_template(ASK, tokenize=False)
    except BaseException as error:
      errors.append(error)

  threads = [threading.Thread(target=other) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  for _ in range(100_000):
    pass
  assert errors == []


def test_a_late_rendering_that_came_to_its_end_counts(monkeypatch):
  """The exception that was sent and has not arrived is taken back."""
  monkeypatch.setattr(template_limits, '_LOOK_SECONDS', 0.01)
  watch = template_limits._Watch()
  for _ in range(20):
    try:
      with watch.limit(0.001):
        # A single step of C code, during which nothing arrives.
        time.sleep(0.05)
    except template_limits._TooSlow:
      pass
    for _ in range(1000):
      pass


def test_texts_have_a_length(with_template):
  long = '{% for i in range(90000) %}xxxxxxxxxxxxxxxxxxxx{% endfor %}{{ messages[0].content }}'
  with pytest.raises(
    InputError, match='it writes 1,800,005 characters, expected 1,000,180 at most'
  ):
    templates.render(with_template(long), ASK, 'a chat', generate=True)
  # A long conversation may be long.
  content = 'word ' * 300_000
  ask = [{'role': 'user', 'content': content}]
  assert content in templates.render(
    with_template('{{ messages[0].content }}'), ask, 'a chat', generate=True
  )


def test_errors_of_jinja_stay_what_they_are(with_template):
  refuses = "{{ raise_exception('no system turn') }}"
  with pytest.raises(jinja2.TemplateError, match='^no system turn$'):
    with_template(refuses).apply_chat_template(ASK, tokenize=False)
