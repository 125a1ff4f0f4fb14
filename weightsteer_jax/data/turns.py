r"""Where the answers of a conversation stand in the text that a chat template makes of it.

An answer starts at the end of the prompt that generation would see. One text serves all answers of
a conversation, if the template renders every answer as it does where the conversation ends with it.
Templates of reasoning models do not: they drop the thoughts of earlier answers. Then each answer
has a text of its own, which ends with it:

  messages  user 'A ?', assistant '<think>a</think>B', user 'C ?', assistant '<think>c</think>D'
  texts     <|user|>A ?<|assistant|><think>a</think>B<|end|>
            <|user|>A ?<|assistant|>B<|end|><|user|>C ?<|assistant|><think>c</think>D<|end|>

Where the prompt itself opens the thought and the template drops thoughts from every answer
(DeepSeek-R1-Distill), the text is the prompt, and behind it what the model would generate: the
thought, the closing tag and the answer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from weightsteer_jax.data import templates, thoughts
from weightsteer_jax.data.templates import Messages
from weightsteer_jax.runtime.errors import InputError

Message = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Rendered:
  """A text that answers stand in.

  Attributes:
    ends: the end of each prompt, where an answer starts, and last the end of the text.
    learnt: whether each answer is to be learnt.
    name: how errors cite the text.
    conversation: the conversation's name, where other texts have answers of it too; '' where this
      text has all.
    emptied: whether an answer without a thought stands behind an empty one of ours.
  """

  text: str
  ends: list[int]
  learnt: tuple[bool, ...]
  name: str
  conversation: str = ''
  emptied: bool = False


def render_answers(tokenizer: Any, messages: Messages, name: str) -> list[Rendered]:
  """The texts in which the learnt answers of a conversation stand; [] if only markers can tell.

  Args:
    messages: checked, and an answer among them is to be learnt.

  Raises:
    InputError: if the template refuses the messages or drops a part of an answer, or a thought is
      opened and never closed.
  """
  chat = _Chat(tokenizer, messages, name)
  for index, message in enumerate(messages):
    _check_thought(message, index, chat.tags, name)
  whole = _whole(chat)
  if whole is not None:
    return [whole]
  learnt = [i for i in answers_of(messages) if is_learnt(messages[i])]
  rendered = []
  for number, index in enumerate(learnt, 1):
    one = _alone(chat, index)
    if one is None:
      return []
    if len(learnt) > 1:
      one = dataclasses.replace(one, name=f'{name}, answer {number}', conversation=name)
    rendered.append(one)
  return rendered


def answers_of(messages: Messages) -> list[int]:
  """The numbers of the assistant's messages."""
  return [i for i, message in enumerate(messages) if message['role'] == 'assistant']


def is_learnt(message: Message) -> bool:
  """Whether an assistant's message is to be learnt."""
  return message.get('weight', 1) == 1


class _Chat:
  """A conversation, and the texts that a chat template makes of its beginnings.

  Attributes:
    tags: the tags of thoughts that the tokenizer knows, or None.
  """

  def __init__(self, tokenizer: Any, messages: Messages, name: str):
    self.tokenizer = tokenizer
    self.messages = messages
    self.name = name
    self.tags = thoughts.tags_of(tokenizer)
    # {(number of messages, whether a prompt): text}: rendering is most of the time of encoding.
    self._texts: dict[tuple[int, bool], str] = {}

  def text(self, count: int) -> str:
    """The first messages, as a conversation that ends there."""
    return self._render(count, False)

  def prompt(self, count: int) -> str:
    """The first messages, and the header of the next answer behind them."""
    return self._render(count, True)

  def _render(self, count: int, generate: bool) -> str:
    key = (count, generate)
    if key not in self._texts:
      begun = self.messages[:count]
      self._texts[key] = templates.render(self.tokenizer, begun, self.name, generate=generate)
    return self._texts[key]


def _whole(chat: _Chat) -> Rendered | None:
  """One text for all answers, or None if the template renders an answer otherwise at the end."""
  answers = answers_of(chat.messages)
  text = chat.text(len(chat.messages))
  end_of_turn = templates.end_of_turn_text(chat.tokenizer)
  ends = []
  for index in answers:
    prompt = chat.prompt(index)
    if not text.startswith(prompt):
      return None
    ends.append(len(prompt))
    alone = chat.text(index + 1)
    end = alone.find(end_of_turn, len(prompt))
    if end < 0 or not text.startswith(alone[: end + len(end_of_turn)]):
      return None
  ends.append(len(text))
  for index, start, end in zip(answers, ends, ends[1:]):
    message = chat.messages[index]
    if not is_learnt(message):
      continue
    prompt = text[:start]
    answer = text[start:end]
    if not _shows(message, prompt, answer, chat.tags) or _unopened(prompt, answer, chat.tags):
      return None
  learnt = tuple(is_learnt(chat.messages[i]) for i in answers)
  return Rendered(text, ends, learnt, chat.name)


def _alone(chat: _Chat, index: int) -> Rendered | None:
  """The text that ends with an answer, or None if the answer cannot be told from its prompt."""
  tags = chat.tags
  message = chat.messages[index]
  prompt = chat.prompt(index)
  text = chat.text(index + 1)
  answer = text[len(prompt) :] if text.startswith(prompt) else None
  if answer is not None and _shows(message, prompt, answer, tags):
    if tags and _unopened(prompt, answer, tags):
      raise InputError(
        f'{chat.name}: message {index} (assistant) closes a thought that neither the message nor '
        f'the prompt opens ({message["content"]!r:.60}): begin it with {tags.opening[0]}'
      )
    return Rendered(text, [len(prompt), len(text)], (True,), chat.name)
  thought = _thought_of(message, tags)
  if behind := _behind_opened(message, prompt, text, tags):
    text = prompt + behind
    emptied = not thought and not _is_closed(prompt, tags)
    return Rendered(text, [len(prompt), len(text)], (True,), chat.name, emptied=emptied)
  # Templates that know the tags and not the field show a thought as the model would write it.
  template = str(chat.tokenizer.chat_template)
  if tags and 'reasoning_content' in message and tags.closing[0] in template:
    spelt = _spelt(message, tags)
    begun = [*chat.messages[:index], spelt]
    shown = templates.render(chat.tokenizer, begun, chat.name, generate=False)
    if shown.startswith(prompt) and _shows(spelt, prompt, shown[len(prompt) :], tags):
      return Rendered(shown, [len(prompt), len(shown)], (True,), chat.name)
  # Otherwise the template frames the conversation in another way once it goes on.
  is_dropped = thought and (_is_closed(prompt, tags) or _squeezed(thought) not in _squeezed(text))
  if answer is not None or is_dropped:
    raise InputError(_dropped(message, index, prompt, answer, tags, chat.name))
  return None


def _is_closed(prompt: str, tags: thoughts.Tags | None) -> bool:
  """Whether the prompt has closed an empty thought."""
  return tags is not None and thoughts.start_behind(prompt, tags) == 'behind'


def _behind_opened(message: Message, prompt: str, text: str, tags: thoughts.Tags | None) -> str:
  r"""What a model would generate behind a prompt with tags that the template drops afterwards.

  '' if the prompt ends with no tags, or the template renders the answer otherwise too.

  >>> message = {'role': 'assistant', 'content': 'B', 'reasoning_content': 'a'}
  >>> _behind_opened(message, 'A ?<think>\n', 'A ?B<|end|>', thoughts.THINK)
  'a\n</think>\n\nB<|end|>'
  """
  if tags is None:
    return ''
  bare, _ = thoughts.closed(prompt, tags)
  thought = _thought_of(message, tags)
  answer = {'role': 'assistant', 'content': thoughts.split(message['content'], tags).answer}
  rest = text[len(bare) :].lstrip()
  # Some templates write an empty thought of their own before the answer.
  rest = rest[len(thoughts.empty_at(rest, 0, tags)) :]
  if bare == prompt or not text.startswith(bare) or not _shows(answer, bare, rest, None):
    return ''
  if _is_closed(prompt, tags):
    # There is no place for another thought.
    return '' if thought else rest
  if 'reasoning_content' not in message and tags.within(message['content']):
    # A template that keeps the content has rendered the thought too.
    if tags.within(rest):
      return _without_opening(rest, tags)
    # As it stands in the data, blank lines included.
    opened = _without_opening(message['content'], tags)
    closing = next(tag for tag in tags.closing if tag in opened)
    head, _, tail = opened.rpartition(closing)
    blanks = tail[: len(tail) - len(tail.lstrip())]
    return head + closing + blanks + rest
  return f'{thought}\n{tags.closing[0]}\n\n{rest}'


def _shows(message: Message, prompt: str, rendered: str, tags: thoughts.Tags | None) -> bool:
  """Whether a rendered answer holds the whole message.

  Templates strip and add whitespace; all else of an answer must be there to be learnt.
  """
  # An empty thought before the thought would be learnt with it.
  if tags and thoughts.empty_at(rendered, 0, tags) and _thought_of(message, tags):
    return False
  got = _squeezed(rendered)
  content = message['content']
  # The prompt may have opened the thought that the content opens.
  if tags and thoughts.start_behind(prompt, tags) == 'inside':
    content = _without_opening(content, tags)
  expected = [_squeezed(message.get('reasoning_content', '')), _squeezed(content)]
  # One after the other.
  end = 0
  for part in expected:
    start = got.find(part, end)
    if start < 0:
      return False
    end = start + len(part)
  return True


def _unopened(prompt: str, rendered: str, tags: thoughts.Tags | None) -> bool:
  """Whether a thought is closed behind the prompt that nothing has opened."""
  if tags is None or thoughts.start_behind(prompt, tags) == 'inside':
    return False
  # Texts and tags alternate.
  first = tags.parts(rendered)[1:2]
  return bool(first) and first[0] in tags.closing


def _squeezed(text: str) -> str:
  return ''.join(text.split())


def _without_opening(content: str, tags: thoughts.Tags) -> str:
  """A content without the tag that opens the thought, and the newline behind the tag."""
  start = content.lstrip()
  for tag in tags.opening:
    if start.startswith(tag):
      return start.removeprefix(tag).removeprefix('\n')
  return content


def _thought_of(message: Message, tags: thoughts.Tags | None) -> str:
  """The thought of a message, in a field of its own or between tags; '' for none."""
  if 'reasoning_content' in message:
    return message['reasoning_content'].strip()
  if tags is None:
    return thoughts.parted(message['content']).thought
  return thoughts.split(message['content'], tags).thought


def _spelt(message: Message, tags: thoughts.Tags) -> dict[str, Any]:
  """The message with its thought between tags in the content."""
  thought = message['reasoning_content'].strip()
  text = f'{tags.opening[0]}\n{thought}\n{tags.closing[0]}\n\n{message["content"]}'
  return {'role': message['role'], 'content': text}


def _check_thought(message: Message, index: int, tags: thoughts.Tags | None, name: str) -> None:
  """Raises InputError if a message holds a thought that is cut, or two thoughts."""
  if message['role'] != 'assistant' or not is_learnt(message):
    return
  where = f'{name}: message {index} (assistant)'
  content = message['content']
  parts = thoughts.split(content, tags) if tags else thoughts.parted(content)
  is_cut = parts.cut
  if tags is not None:
    # A later thought may be cut too, behind an answer.
    seen = [part for part in tags.parts(content) if part in (*tags.opening, *tags.closing)]
    is_cut = is_cut or (bool(seen) and seen[-1] in tags.opening)
  if is_cut:
    raise InputError(
      f'{where} opens a thought and never closes it ({content!r:.60}): a thought that was cut is '
      'no answer to learn; remove the row'
    )
  if not parts.answer.strip():
    raise InputError(f'{where} has a thought and no answer ({content!r:.60}): remove the row')
  thought = message.get('reasoning_content')
  if thought and tags and (tags.within(thought) or tags.within(content)):
    raise InputError(
      f'{where} has a thought in a field of its own, and tags of thoughts in the text: keep one '
      'of the two'
    )


def _dropped(
  message: Message,
  index: int,
  prompt: str,
  answer: str | None,
  tags: thoughts.Tags | None,
  name: str,
) -> str:
  """What to say of an answer that the template does not render whole.

  Args:
    answer: the rendered answer; None if it does not stand behind the prompt.
  """
  thought = _thought_of(message, tags)
  # What another prompt would show says nothing about this one.
  shown = '' if answer is None else f' (it renders {answer!r:.60})'
  if not thought:
    return (
      f'{name}: the chat template drops or rewrites part of the answer {message["content"]!r:.60}'
      f'{shown}: train on answers that it renders whole'
    )
  way = 'take the thoughts out of the data, or use a chat template that shows them'
  if _is_closed(prompt, tags):
    way = (
      'its prompt closes an empty thought: let it think (chat_template_args, as in '
      'enable_thinking), or take the thoughts out of the data'
    )
  elif 'reasoning_content' in message:
    way += '; some show them in the content alone, between the tags that the model writes'
  return (
    f'{name}: the chat template drops the thought of message {index}, {thought!r:.60}{shown}: {way}'
  )
