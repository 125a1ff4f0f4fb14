"""Texts in, texts out: what a caller passes as rows, and what came back as texts."""

from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.inference.rows import Row
from weightsteer_jax.interfaces.python.boundary import described
from weightsteer_jax.runtime.errors import InputError

# A conversation: {'role': ..., 'content': ...} of each turn.
Messages = Sequence[Mapping[str, str]]
# Raw texts, and questions or conversations, one or many.
Texts = str | Sequence[str]
Chats = str | Messages | Sequence[str | Messages]


class Text(str):
  """A generated text: a `str`, with what is known of how it came about.

  Attributes:
    finish: 'stop' (the model ended it), 'length' (max_new_tokens came first) or 'not_finite' (the
      model broke: logits with NaN or infinity).
    tokens: number of tokens generated.
    thought: the thought of a reasoning model, without its tags; None where the model's chat
      template knows no thoughts.
    answer: the text without its thought; the whole text where there are no thoughts.
  """

  finish: str
  tokens: int
  thought: str | None
  answer: str


def text_of(columns: Mapping[str, Any]) -> Text:
  """The text in the columns of `inference.generate_rows`."""
  text = Text(columns['completion'])
  text.finish = columns['finish']
  text.tokens = columns['tokens']
  text.thought = columns.get('thought')
  text.answer = columns.get('answer', str(text))
  return text


def prompt_rows(prompts: Any) -> tuple[list[Row], bool]:
  """(the rows of raw prompts, whether it was a single one).

  Raises:
    InputError: if a prompt is no text.
  """
  if isinstance(prompts, str):
    return [('the prompt', {'prompt': prompts})], True
  if is_messages(prompts):
    raise InputError('generate continues raw texts; of messages, chat gives the answer')
  texts = listed(prompts, 'generate takes a text or a list of texts')
  rows: list[Row] = []
  for i, text in enumerate(texts):
    if not isinstance(text, str):
      raise InputError(f'prompts[{i}] is a text; got {described(text)}')
    rows.append((f'prompts[{i}]', {'prompt': text}))
  return rows, False


def chat_rows(chats: Any) -> tuple[list[Row], bool]:
  """(the rows of conversations to answer, whether it was a single one).

  Args:
    chats: a question, a conversation (list of messages), or a list of either.

  Raises:
    InputError: if an entry is neither.
  """
  if isinstance(chats, str) or is_messages(chats):
    return [('the conversation', {'messages': _messages(chats, 'the conversation')})], True
  takes = 'chat takes a question, a list of messages, or a list of either'
  rows: list[Row] = []
  for i, chat in enumerate(listed(chats, takes)):
    where = f'conversations[{i}]'
    rows.append((where, {'messages': _messages(chat, where)}))
  return rows, False


def scored_rows(prompts: Any, completions: Any) -> tuple[list[Row], bool]:
  """(the rows of completions to score, whether it was a single one).

  Args:
    prompts: a raw text, a conversation, or a list of either.
    completions: a text, or a list of texts. One prompt goes with many completions, one completion
      with many prompts, and lists pair by pair.

  Raises:
    InputError: if an entry is of another type, or two lists are not of one length.
  """
  takes = 'logprob takes a prompt and a completion, or lists of them'
  one_prompt = isinstance(prompts, str) or is_messages(prompts)
  one_completion = isinstance(completions, str)
  all_prompts = [prompts] if one_prompt else listed(prompts, takes)
  all_completions = [completions] if one_completion else listed(completions, takes)
  if one_prompt:
    all_prompts = all_prompts * len(all_completions)
  if one_completion:
    all_completions = all_completions * len(all_prompts)
  if len(all_prompts) != len(all_completions):
    raise InputError(
      f'logprob pairs prompts with completions; got {len(all_prompts)} prompts and '
      f'{len(all_completions)} completions'
    )
  single = one_prompt and one_completion
  rows: list[Row] = []
  for i, (prompt, completion) in enumerate(zip(all_prompts, all_completions)):
    where = 'the completion' if single else f'completions[{i}]'
    if not isinstance(completion, str):
      raise InputError(f'{where} is a text; got {described(completion)}')
    row: dict[str, Any] = {'completion': completion}
    if isinstance(prompt, str):
      row['prompt'] = prompt
    else:
      row['messages'] = _messages(prompt, 'the prompt' if single else f'prompts[{i}]')
    rows.append((where, row))
  return rows, single


def is_messages(value: Any) -> bool:
  """Whether the value is one conversation: a list that begins with a message."""
  return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], Mapping)


def listed(value: Any, takes: str) -> list[Any]:
  """The entries of a list, a tuple or the like; of a Series or an array too.

  Args:
    takes: what the caller takes, for the error.

  Raises:
    InputError: if the value has no entries: a number, a text, a mapping.
  """
  if value is None or isinstance(value, (str, bytes, Mapping)) or not hasattr(value, '__iter__'):
    raise InputError(f'{takes}; got {described(value)}')
  return list(value)


def _messages(chat: Any, where: str) -> Messages:
  if isinstance(chat, str):
    return [{'role': 'user', 'content': chat}]
  if not is_messages(chat):
    raise InputError(
      f"{where} is a question, or a list of messages {{'role': ..., 'content': ...}}; got "
      f'{described(chat)}'
    )
  return list(chat)
