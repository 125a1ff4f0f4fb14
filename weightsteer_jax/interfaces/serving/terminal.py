"""A chat in the terminal: each message to the steered model, and to the base where asked."""

import sys
from collections.abc import Callable, Mapping

from weightsteer_jax.data import chat
from weightsteer_jax.inference import GenerateRequest, Sampling
from weightsteer_jax.inference.live import GOES_ON
from weightsteer_jax.interfaces.serving import typed
from weightsteer_jax.interfaces.serving.loading import Loaded
from weightsteer_jax.interfaces.serving.texts import Answer
from weightsteer_jax.runtime import ending, signals
from weightsteer_jax.runtime.errors import InputError

# Steps between two looks at a growing answer.
STEPS = 4
HELP = """\
/alpha                 the strengths
/alpha -0.5            strength of the one direction
/alpha calm=1,terse=0  strengths of several
/base                  the base's answer before each steered one; again: not
/system TEXT           another system prompt, in a new chat
/new                   a new chat
/again                 the last message again
Ctrl-C                 stops an answer; at the prompt it is the end
/quit                  the end; so is the end of input"""

Messages = list[dict[str, str]]


class Chat:
  """A chat with a loaded model.

  Args:
    write: takes text for the screen.
  """

  def __init__(
    self,
    loaded: Loaded,
    *,
    system: str = '',
    temperature: float = 0.0,
    seed: int = 0,
    most_tokens: int = 256,
    write: Callable[[str], object] = sys.stdout.write,
  ):
    self._loaded = loaded
    self._system = system
    self._sampling = Sampling(temperature)
    self._seed = seed
    self._most_tokens = most_tokens
    self._write = write
    self._alphas: dict[str, float] = dict.fromkeys(loaded.served.directions, 0.0)
    self._shows_base = False
    self._messages: Messages = []
    # The base has a conversation of its own: its answers are not the steered model's.
    self._of_base: Messages = []

  def set_alpha(self, text: str) -> None:
    """Sets the strengths: a number, or NAME=NUMBER,NAME=NUMBER.

    Raises:
      InputError: if there is no such direction, or a strength is no number.
    """
    self._alphas |= typed.alphas(text, self._loaded.served.directions)

  def run(self) -> None:
    """Talks until the input ends."""
    self._line(f'{self._loaded.served.name}{self._label()}; /help lists commands')
    while True:
      try:
        text = input('> ')
      except (EOFError, KeyboardInterrupt):
        # The shell's prompt begins a line.
        self._line('')
        return
      ending.progress()
      try:
        if not self.hear(text):
          return
      except InputError as error:
        self._line(f'error: {error}')

  def hear(self, text: str) -> bool:
    """Answers a message, or does what a command says; False at the end.

    Raises:
      InputError: if the message cannot be answered, or the command is unknown.
    """
    word, _, rest = text.strip().partition(' ')
    if not word:
      return True
    if not word.startswith('/'):
      self._say(text.strip())
    elif word == '/quit':
      return False
    elif word == '/alpha':
      if rest.strip():
        self.set_alpha(rest.strip())
      self._line(self._label().lstrip(', ') or 'no direction is loaded')
    elif word == '/base':
      self._shows_base = not self._shows_base
      self._line(f'the base is {"" if self._shows_base else "not "}asked too')
    elif word in ('/new', '/system'):
      self._system = rest if word == '/system' else self._system
      self._messages, self._of_base = [], []
    elif word == '/again':
      self._again()
    elif word == '/help':
      self._line(HELP)
    else:
      raise InputError(f"no command '{word}'; /help lists commands")
    return True

  def _say(self, text: str) -> None:
    asked = {'role': 'user', 'content': text}
    if self._shows_base:
      self._answer(self._of_base, asked, {}, 'base: ')
    self._answer(self._messages, asked, self._alphas, 'steered: ' if self._shows_base else '')

  def _again(self) -> None:
    if not self._messages:
      raise InputError('nothing was asked yet')
    asked = self._messages[-2]['content']
    del self._messages[-2:]
    del self._of_base[-2:]
    self._say(asked)

  def _answer(
    self, before: Messages, asked: dict[str, str], alphas: Mapping[str, float], title: str
  ) -> None:
    """Writes an answer as it grows, and puts it behind the conversation."""
    engine = self._loaded.engine
    live = self._loaded.live
    system = [{'role': 'system', 'content': self._system}] if self._system else []
    messages = [*system, *before, asked]
    prompt = tuple(chat.prompt_tokens(engine.tokenizer, messages, name='the chat'))
    room = live.max_length - len(prompt) + 1
    if room < 1:
      raise InputError(
        f'the chat has {len(prompt)} tokens, and {live.max_length} fit: /new begins another'
      )
    answer = Answer(engine.tokenizer, prompt, apart=True)
    limit = min(self._most_tokens, room)
    request = GenerateRequest(0, prompt, limit, sampling=self._sampling, seed=self._seed)
    coefficients = tuple(alphas.get(name, 0.0) for name in self._loaded.served.directions)
    live.admit([(request, coefficients)])
    self._write(title)
    finish = GOES_ON
    # An exception within a step could leave the cache behind that the step has used up.
    with signals.interruptible() as interrupted:
      try:
        while finish == GOES_ON and not interrupted.is_set():
          [told] = live.step(STEPS)
          finish = told.finish
          piece = answer.feed(told.tokens, last=finish != GOES_ON)
          self._write(piece.thought + piece.answer)
          sys.stdout.flush()
      finally:
        # The slot is free for the next message.
        live.cancel([0])
    marks = {
      GOES_ON: ' [stopped]',
      'length': ' [cut at the limit]',
      'not_finite': ' [the model broke here]',
    }
    self._line(marks.get(finish, ''))
    before += [asked, {'role': 'assistant', 'content': answer.whole().answer}]

  def _label(self) -> str:
    return ''.join(f', {name} {alpha:g}' for name, alpha in self._alphas.items())

  def _line(self, text: str) -> None:
    self._write(text + '\n')
