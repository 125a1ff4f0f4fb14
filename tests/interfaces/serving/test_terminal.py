"""A chat in the terminal, line by line."""

import signal

import pytest

from weightsteer_jax.config import ModelChoice
from weightsteer_jax.interfaces.serving import loading
from weightsteer_jax.interfaces.serving.terminal import Chat
from weightsteer_jax.runtime.errors import InputError

from .conftest import ASK

QUESTION = ASK[0]['content']


@pytest.fixture(scope='module')
def loaded(folders):
  return loading.load(ModelChoice('organism'), folders, slots=2)


@pytest.fixture
def talk(loaded):
  """(chat, what it has written since the last call)."""
  written = []
  chat = Chat(loaded, most_tokens=12, write=written.append)

  def said():
    text = ''.join(written)
    written.clear()
    return text

  return chat, said


def test_answers_are_the_servers(talk, client):
  chat, said = talk
  chat.set_alpha('calm=0.5,terse=-1')
  chat.hear(QUESTION)
  reply = client.chat.completions.create(
    model='organism@calm=0.5,terse=-1', messages=ASK, temperature=0, max_tokens=12
  )
  first = reply.choices[0].message.content
  assert said().startswith(first)
  chat.hear('Are you sure?')
  messages = [*ASK, {'role': 'assistant', 'content': first}]
  messages.append({'role': 'user', 'content': 'Are you sure?'})
  reply = client.chat.completions.create(
    model='organism@calm=0.5,terse=-1', messages=messages, temperature=0, max_tokens=12
  )
  assert said().startswith(reply.choices[0].message.content), 'the chat goes on'


def test_commands(talk):
  chat, said = talk
  chat.hear(QUESTION)
  base = said()
  chat.hear('/alpha calm=4')
  chat.hear('/alpha')
  assert said() == 'calm 4, terse 0\n' * 2
  chat.hear('/again')
  steered = said()
  assert steered != base
  chat.hear('/new')
  chat.hear('/base')
  said()
  chat.hear(QUESTION)
  assert said() == f'base: {base}steered: {steered}'
  assert chat.hear('') and not chat.hear('/quit')


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(talk, loaded, monkeypatch):
  chat, said = talk
  chat.hear(QUESTION)
  whole = said().rstrip()
  step = loaded.live.step

  def interrupted_step(steps):
    signal.raise_signal(signal.SIGINT)
    return step(steps)

  with monkeypatch.context() as patch:
    patch.setattr(loaded.live, 'step', interrupted_step)
    chat.hear('/again')
  stopped = said()
  assert stopped.endswith(' [stopped]\n') and stopped.removesuffix(' [stopped]\n') != whole
  assert whole.startswith(stopped.removesuffix(' [stopped]\n'))
  chat.hear('/again')
  assert said().rstrip() == whole


@pytest.mark.parametrize('end', [EOFError, KeyboardInterrupt])
def test_the_end_of_input_and_ctrl_c_at_the_prompt_end_the_chat(talk, monkeypatch, end):
  def asked(prompt):
    raise end

  monkeypatch.setattr('builtins.input', asked)
  chat, said = talk
  chat.run()
  assert said().endswith('\n\n')


@pytest.mark.parametrize(
  'line, message',
  [
    ('/alpha 1', 'there are calm, terse'),
    ('/alpha clam=1', "did you mean 'calm'"),
    ('/alpha calm=x', "'x' is no finite number"),
    ('/alpha calm=x', '^[^:]+: [^:]+$'),
    ('/alpha calm=1,calm=2', "'calm' is named twice"),
    ('/nope', "no command '/nope'"),
    ('/again', 'nothing was asked yet'),
    ('word ' * 600, 'and 512 fit: /new begins another'),
  ],
)
def test_mistakes_are_told_and_the_chat_goes_on(talk, line, message):
  chat, said = talk
  with pytest.raises(InputError, match=message):
    chat.hear(line)
  chat.hear(QUESTION)
  assert said()
