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
  for index, message in enumerate(messages):
    _check_thought(tokenizer, message, index, name)
  whole = _whole(tokenizer, messages, name)
  if whole is not None:
    return [whole]
  learnt = [i for i in answers_of(messages) if is_learnt(messages[i])]
  rendered = []
  for number, index in enumerate(learnt, 1):
    one = _alone(tokenizer, messages, index, name)
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


def _whole(tokenizer: Any, messages: Messages, name: str) -> Rendered | None:
  """One text for all answers, or None if the template renders an answer otherwise at the end."""
  answers = answers_of(messages)
  text = templates.render(tokenizer, messages, name, generate=False)
  end_of_turn = templates.end_of_turn_text(tokenizer)
  ends = []
  for index in answers:
    prompt = templates.render(tokenizer, messages[:index], name, generate=True)
    if not text.startswith(prompt):
      return None
    ends.append(len(prompt))
    # Of the last message, the text is the one that ends with it.
    if index + 1 < len(messages):
      alone = templates.render(tokenizer, messages[: index + 1], name, generate=False)
      end = alone.find(end_of_turn, len(prompt))
      if end < 0 or not text.startswith(alone[: end + len(end_of_turn)]):
        return None
  ends.append(len(text))
  tags = thoughts.tags_of(tokenizer)
  for index, start, end in zip(answers, ends, ends[1:]):
    message = messages[index]
    if not is_learnt(message):
      continue
    piece = text[start:end]
    if not _shows(message, text[:start], piece, tags) or _unopened(text[:start], piece, tags):
      return None
  learnt = tuple(is_learnt(messages[i]) for i in answers)
  return Rendered(text, ends, learnt, name)


def _alone(tokenizer: Any, messages: Messages, index: int, name: str) -> Rendered | None:
  """The text that ends with an answer, or None if the answer cannot be told from its prompt."""
  tags = thoughts.tags_of(tokenizer)
  message = messages[index]
  before = messages[:index]
  prompt = templates.render(tokenizer, before, name, generate=True)
  text = templates.render(tokenizer, [*before, message], name, generate=False)
  if text.startswith(prompt) and _shows(message, prompt, text[len(prompt) :], tags):
    if tags and _unopened(prompt, text[len(prompt) :], tags):
      raise InputError(
        f'{name}: message {index} (assistant) closes a thought that neither the message nor the '
        f'prompt opens ({message["content"]!r:.60}): begin it with {tags.opening[0]}'
      )
    return Rendered(text, [len(prompt), len(text)], (True,), name)
  behind = _behind_opened(message, prompt, text, tags)
  if tags and behind:
    return Rendered(
      prompt + behind,
      [len(prompt), len(prompt) + len(behind)],
      (True,),
      name,
      emptied=thoughts.start_behind(prompt, tags) == 'inside' and not _thought_of(message, tags),
    )
  # Templates that know the tags and not the field show a thought as the model would write it.
  if tags and 'reasoning_content' in message and tags.closing[0] in str(tokenizer.chat_template):
    spelt = _spelt(message, tags)
    shown = templates.render(tokenizer, [*before, spelt], name, generate=False)
    if shown.startswith(prompt) and _shows(spelt, prompt, shown[len(prompt) :], tags):
      return Rendered(shown, [len(prompt), len(shown)], (True,), name)
  # A thought that the template would show elsewhere is told apart from a conversation that it would
  # frame otherwise.
  if _thought_of(message, tags) or text.startswith(prompt):
    raise InputError(_dropped(message, index, prompt, text, tags, name))
  return None


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
  if thoughts.start_behind(prompt, tags) == 'behind':
    # The prompt has closed the thought: there is no place for another.
    return '' if thought else rest
  if 'reasoning_content' not in message and tags.within(message['content']):
    # A template that keeps the content has rendered the thought too.
    if tags.within(rest):
      return _without_opening(rest, tags)
    # As it stands in the data, blank lines included.
    opened = _without_opening(message['content'], tags)
    closing = next(tag for tag in tags.closing if tag in opened)
    head, _, answer_text = opened.rpartition(closing)
    blanks = answer_text[: len(answer_text) - len(answer_text.lstrip())]
    return head + closing + blanks + rest
  return f'{thought}\n{tags.closing[0]}\n\n{rest}'


def _shows(message: Message, prompt: str, rendered: str, tags: thoughts.Tags | None) -> bool:
  """Whether a rendered answer holds the whole message.

  Templates strip and add whitespace; all else of an answer must be there to be learnt.
  """
  got = _squeezed(rendered)
  content = message['content']
  # The prompt may have opened the thought that the content opens.
  if tags and thoughts.start_behind(prompt, tags) == 'inside':
    content = _without_opening(content, tags)
  expected = [_squeezed(message.get('reasoning_content', '')), _squeezed(content)]
  at = 0
  for part in expected:
    at = got.find(part, at)
    if at < 0:
      return False
    at += len(part)
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


def _check_thought(tokenizer: Any, message: Message, index: int, name: str) -> None:
  """Raises InputError if a message holds a thought that is cut, or two thoughts."""
  if message['role'] != 'assistant' or not is_learnt(message):
    return
  tags = thoughts.tags_of(tokenizer)
  content = message['content']
  thought = message.get('reasoning_content', '')
  parts = thoughts.split(content, tags) if tags else thoughts.parted(content)
  last_opened = max((content.rfind(tag) for tag in tags.opening), default=-1) if tags else -1
  last_closed = max((content.rfind(tag) for tag in tags.closing), default=-1) if tags else -1
  if parts.cut or last_opened > last_closed:
    raise InputError(
      f'{name}: message {index} (assistant) opens a thought and never closes it ({content!r:.60}): '
      'a thought that was cut is no answer to learn; remove the row'
    )
  if thought and tags and (tags.within(thought) or tags.within(content)):
    raise InputError(
      f'{name}: message {index} (assistant) has a thought in a field of its own, and tags of '
      'thoughts in the text: keep one of the two'
    )


def _dropped(
  message: Message,
  index: int,
  prompt: str,
  text: str,
  tags: thoughts.Tags | None,
  name: str,
) -> str:
  """What to say of an answer that the template does not render whole."""
  rendered = text[len(prompt) :]
  thought = _thought_of(message, tags)
  if not thought:
    return (
      f'{name}: the chat template drops or rewrites part of the answer {message["content"]!r:.60} '
      f'(it renders {rendered!r:.60}): train on answers that it renders whole'
    )
  # What another prompt would show says nothing about this one.
  shown = f' (it renders {rendered!r:.60})' if text.startswith(prompt) else ''
  way = 'take the thoughts out of the data, or use a chat template that shows them'
  if tags and thoughts.start_behind(prompt, tags) == 'behind':
    way = (
      'its prompt closes an empty thought: let it think (chat_template_args, as in '
      "enable_thinking), or take the thoughts out of the data"
    )
  elif 'reasoning_content' in message:
    way += '; some show them in the content alone, between the tags that the model writes'
  return (
    f'{name}: the chat template drops the thought of message {index}, {thought!r:.60}{shown}: {way}'
  )
