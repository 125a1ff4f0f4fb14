"""Chats as token ids: prompts to generate from, completions to score, examples to train on."""

import dataclasses
import re
from typing import Any

from weightsteer_jax.data import pieces, sources, templates, thoughts
from weightsteer_jax.data.examples import encode_example, encode_examples
from weightsteer_jax.data.templates import (
  Messages,
  end_of_turn_ids,
  load_tokenizer,
  require_chat_template,
)
from weightsteer_jax.runtime.errors import InputError

__all__ = [
  'EMPTY_THOUGHT',
  'Scored',
  'encode_example',
  'encode_examples',
  'end_of_turn_ids',
  'load_tokenizer',
  'prompt_tokens',
  'require_chat_template',
  'scored_tokens',
]

# What `Scored.behind` says of a thought that is closed before anything was thought.
EMPTY_THOUGHT = 'an empty thought'


def prompt_tokens(tokenizer, messages: Messages, *, name: str = 'prompt') -> list[int]:
  """Ids of the conversation, up to and including the header of the assistant's next answer.

  Control tokens typed inside a message are tokenised as plain text, so that no message can end or
  open a turn.

  Raises:
    InputError: if there is no chat template, the messages are malformed, or the template refuses
      the messages.
  """
  marked = _prompt_messages(tokenizer, messages, name)
  text = templates.render(tokenizer, marked, name, generate=True)
  control = templates.format_of(tokenizer).control
  return pieces.encode_marked(tokenizer, text, control)


@dataclasses.dataclass(frozen=True)
class Scored:
  """A completion as tokens, and the tokens that it is scored behind.

  Attributes:
    prompt: ids of the conversation, the header of the answer and an empty thought included.
    completion: ids to be scored.
    behind: EMPTY_THOUGHT if one was put before the completion; '' if generation's own prompt stands
      there.
  """

  prompt: tuple[int, ...]
  completion: tuple[int, ...]
  behind: str = ''


def scored_tokens(
  tokenizer, messages: Messages, completion: str, *, end_of_turn: bool = True, name: str = 'prompt'
) -> Scored:
  r"""`completion` as the answer to `messages`, and what it is scored behind.

  A completion with a thought in it is the text that a model would generate: it is scored as it
  stands, behind the prompt of generation. Any other completion is an answer. Where a model would
  think first, by its template, an answer is scored behind an empty thought, which is a part of the
  prompt and never scored:

    template            prompt of generation      scored behind
    none knows tags     assistant\n               assistant\n
    hybrid, thinking    assistant\n               assistant\n<think>\n\n</think>\n\n
    hybrid, not so      assistant\n<think>\n\n</think>\n\n                (the same)
    opens the thought   assistant\n<think>\n      assistant\n<think>\n\n</think>\n\n

  Args:
    tokenizer: with a chat template.
    messages: the conversation to answer.
    completion: the answer; the template may strip whitespace around the answer.
    end_of_turn: also score the token that ends the answer, and the gap before the token.
    name: how errors cite the conversation.

  Raises:
    InputError: if `prompt_tokens` would raise it, the completion holds a control token, or the
      completion holds a thought where the prompt has closed an empty one.
  """
  marked = _prompt_messages(tokenizer, messages, name)
  form = templates.format_of(tokenizer)
  tags = thoughts.tags_of(tokenizer)
  generated = templates.render(tokenizer, marked, name, generate=True)
  message = {'role': 'assistant', 'content': completion}
  templates.reject_control_tokens([message], form.control, name, tags)
  end_text = form.gap + tokenizer.convert_ids_to_tokens(form.end_of_turn)
  behind = ''
  if tags is not None and tags.within(completion):
    prompt = generated
    answer = _behind_prompt(completion, prompt, tags, name)
  else:
    rendered = templates.render(tokenizer, [*marked, message], name, generate=False)
    prompt, behind, start = _before_answer(generated, rendered, tags)
    if start < 0:
      raise InputError(templates.not_a_beginning(name, len(messages), generated, rendered))
    end = rendered.find(end_text, start)
    if end < 0:
      raise InputError(f'{name}: the chat template does not write {end_text!r} after the answer')
    answer = rendered[start:end]
  text = prompt + answer
  if end_of_turn:
    text += end_text
  return Scored(
    prompt=tuple(pieces.encode_marked(tokenizer, prompt, form.control)),
    completion=tuple(pieces.encode_piece(tokenizer, text, len(prompt), len(text))),
    behind=behind,
  )


def _before_answer(
  generated: str, rendered: str, tags: thoughts.Tags | None
) -> tuple[str, str, int]:
  """(what an answer is scored behind, `Scored.behind`, the answer's start in the rendered text).

  Args:
    generated: the prompt of generation.
    rendered: the conversation with the answer; the start is -1 if it does not begin as the prompt.
  """
  if rendered.startswith(generated):
    start = len(generated)
    block = thoughts.empty_at(rendered, start, tags) if tags else ''
    # Written by the template between the prompt and the answer, and no part of either.
    return generated + block, EMPTY_THOUGHT if block else '', start + len(block)
  if tags is None:
    return generated, '', -1
  # Templates that drop or rewrite thoughts in rendered answers do not begin with the prompt's tags.
  bare, closed = thoughts.closed(generated, tags)
  if not rendered.startswith(bare):
    return generated, '', -1
  # The empty thought as the template writes it comes before one of our making.
  block = thoughts.empty_at(rendered, len(bare), tags)
  if block:
    closed = bare + block
  behind = EMPTY_THOUGHT if closed != generated else ''
  return closed, behind, len(bare) + len(block)


def _behind_prompt(completion: str, prompt: str, tags: thoughts.Tags, name: str) -> str:
  """A completion with a thought in it, as it goes on from the prompt of generation.

  Raises:
    InputError: if the prompt has closed an empty thought.
  """
  match thoughts.start_behind(prompt, tags):
    case 'behind':
      raise InputError(
        f'{name}: the completion {completion!r:.60} holds a thought, and the prompt of the chat '
        'template has closed an empty one: let the model think, or score the answer alone'
      )
    case 'inside' if completion.lstrip().startswith(tags.opening):
      # Opened by the prompt already.
      opening = next(tag for tag in tags.opening if completion.lstrip().startswith(tag))
      rest = completion.lstrip().removeprefix(opening)
      return rest.removeprefix('\n') if prompt.endswith('\n') else rest
  return completion


def _prompt_messages(tokenizer, messages: Messages, name: str) -> list[dict[str, Any]]:
  """The checked messages of a prompt, with control tokens inside them marked."""
  control = templates.format_of(tokenizer).control
  messages = sources.check_messages(messages, name)
  if messages[-1]['role'] == 'assistant':
    raise InputError(
      f"{name}: a prompt must end with the user's turn, it ends with the assistant's"
    )
  tags = thoughts.tags_of(tokenizer)
  # Marked before rendering: afterwards, typed tokens look like the template's own.
  marked = []
  for message in messages:
    texts = {}
    for key in ('content', 'reasoning_content'):
      if key in message:
        # An assistant's tags are its own, and a template finds them only unmarked.
        own = tags if message['role'] == 'assistant' else None
        texts[key] = _marked(message[key], control, own)
    marked.append(dict(message) | texts)
  return marked


def _marked(text: str, control: re.Pattern, tags: thoughts.Tags | None) -> str:
  if tags is None:
    return pieces.mark(text, control)
  parts = tags.parts(text)
  # Texts and tags alternate.
  for i in range(0, len(parts), 2):
    parts[i] = pieces.mark(parts[i], control)
  return ''.join(parts)
