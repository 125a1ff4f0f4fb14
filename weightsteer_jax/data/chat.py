"""Chats as token ids: prompts to generate from, completions to score, examples to train on."""

from weightsteer_jax.data import pieces, sources, templates
from weightsteer_jax.data.examples import encode_example, encode_examples
from weightsteer_jax.data.templates import (
  Messages,
  end_of_turn_ids,
  load_tokenizer,
  require_chat_template,
)
from weightsteer_jax.runtime.errors import InputError

__all__ = [
  'completion_tokens',
  'encode_example',
  'encode_examples',
  'end_of_turn_ids',
  'load_tokenizer',
  'prompt_tokens',
  'require_chat_template',
]


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


def completion_tokens(
  tokenizer, messages: Messages, completion: str, *, end_of_turn: bool = True, name: str = 'prompt'
) -> list[int]:
  """Ids of `completion` as the answer to `messages`, to be scored behind the prompt's ids.

  Args:
    tokenizer: with a chat template.
    messages: the conversation to answer.
    completion: the answer; the template may strip whitespace around the answer.
    end_of_turn: also the token that ends the answer, and the gap before the token.
    name: how errors cite the conversation.

  Raises:
    InputError: if `prompt_tokens` would raise it, or the completion holds a control token.
  """
  marked = _prompt_messages(tokenizer, messages, name)
  form = templates.format_of(tokenizer)
  answer = {'role': 'assistant', 'content': completion}
  templates.reject_control_tokens([answer], form.control, name)
  # Rendered with and without the answer: the rest of the longer text is the answer and its end.
  prompt = templates.render(tokenizer, marked, name, generate=True)
  text = templates.render(tokenizer, [*marked, answer], name, generate=False)
  if not text.startswith(prompt):
    raise InputError(templates.not_a_beginning(name, len(messages), prompt, text))
  end_text = form.gap + tokenizer.convert_ids_to_tokens(form.end_of_turn)
  end = text.find(end_text, len(prompt))
  if end < 0:
    raise InputError(f'{name}: the chat template does not write {end_text!r} after the answer')
  if end_of_turn:
    end += len(end_text)
  return pieces.encode_piece(tokenizer, text, len(prompt), end)


def _prompt_messages(tokenizer, messages: Messages, name: str) -> list[dict[str, str]]:
  """The checked messages of a prompt, with control tokens inside them marked."""
  control = templates.format_of(tokenizer).control
  messages = sources.check_messages(messages, name)
  if messages[-1]['role'] == 'assistant':
    raise InputError(
      f"{name}: a prompt must end with the user's turn, it ends with the assistant's"
    )
  # Marked before rendering: afterwards, typed tokens look like the template's own.
  marked = []
  for message in messages:
    content = pieces.mark(message['content'], control)
    marked.append({**message, 'content': content})
  return marked
