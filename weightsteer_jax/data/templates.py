"""Tokenizers, and the format that a chat template gives to messages, learnt by rendering some."""

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsteer_jax.data import bindings, pieces, template_limits, thoughts, tokenizer_file
from weightsteer_jax.runtime import signals
from weightsteer_jax.runtime.errors import InputError

Messages = Sequence[Mapping[str, Any]]

_TOKENIZER_FILES = ('tokenizer.json', 'tokenizer.model', 'tokenizer_config.json', 'vocab.json')
# Rendered to learn a template's format; any words would do that no template writes itself.
_QUESTION = 'Question'
_NO_SYSTEM_TURN = (
  "it has no system turn; put the text into the first question (in a run, model.system_role='user' "
  'does so)'
)
_ANSWER = 'Answer'


@dataclasses.dataclass(frozen=True)
class Format:
  """The format that a chat template gives to messages, learnt by rendering some.

  Attributes:
    end_of_turn: id of the token that ends an assistant's answer.
    gap: text between an answer and the end-of-turn token (a space in Llama 2).
    header: ids that announce an answer.
    control: matches the control tokens: all special tokens, and added tokens in the template.
  """

  end_of_turn: int
  gap: str
  header: tuple[int, ...]
  control: re.Pattern


def load_tokenizer(
  folder: str | os.PathLike,
  *,
  choice: str = 'auto',
  template_args: Mapping[str, Any] | None = None,
  date: str = '',
  system_prompt: str = '',
  system_role: str = 'system',
) -> Any:
  """The tokenizer in a checkpoint folder, read by transformers; no network, no remote code.

  Args:
    choice: whose rules count, 'auto' or 'file'; see tokenizer_file.py.
    template_args: variables that the chat template is told wherever it renders, see bindings.py.
    date: the day that a dated chat template is told, as in 2026-12-01; '' is the present day.
    system_prompt: put before conversations without a system prompt; '' leaves them alone.
    system_role: 'system', or 'user' to put system prompts before the first question.

  Raises:
    InputError: if the folder or the tokenizer is missing, transformers cannot read it, or the chat
      template does not take the arguments.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise InputError(f"no folder '{folder}' to load a tokenizer from")
  if not any((folder / name).exists() for name in _TOKENIZER_FILES):
    raise InputError(
      f"{folder} holds no tokenizer: expected one of {', '.join(_TOKENIZER_FILES)}; it holds "
      f"{', '.join(sorted(child.name for child in folder.iterdir())[:12]) or 'nothing'}"
    )
  tokenizer = tokenizer_file.load(folder, choice)
  signals.check()
  bound = bindings.bind(
    tokenizer,
    template_args or {},
    date,
    system_prompt=system_prompt,
    system_role=system_role,
  )
  return template_limits.limited(bound)


def require_chat_template(tokenizer) -> None:
  """Raises InputError if conversations cannot be rendered, generated from and trained on.

  Raises:
    InputError: if there is no chat template, or the template does not announce an answer
      (`add_generation_prompt`) or does not end an answer.
  """
  format_of(tokenizer)


def end_of_turn_ids(tokenizer) -> list[int]:
  """Ids that stop generation: the chat template's end of turn, then the end of text if another."""
  end_of_turn = format_of(tokenizer).end_of_turn
  end_of_text = tokenizer.eos_token_id
  if end_of_text in (None, end_of_turn):
    return [end_of_turn]
  return [end_of_turn, end_of_text]


def end_of_turn_text(tokenizer) -> str:
  """The text of the token that ends an answer."""
  return tokenizer.convert_ids_to_tokens(format_of(tokenizer).end_of_turn)


def format_of(tokenizer) -> Format:
  """The format that the chat template of a tokenizer gives to messages.

  Raises:
    InputError: if `require_chat_template` would raise it.
  """
  if not getattr(tokenizer, 'chat_template', None):
    raise InputError(
      f"the tokenizer '{tokenizer.name_or_path}' has no chat template: use an instruct model's "
      'tokenizer, or put a chat_template.jinja beside it'
    )
  return _learn_format(tokenizer, str(tokenizer.chat_template), pieces.size_of(tokenizer))


# The template and the vocabulary's size are arguments so that a changed tokenizer is learnt again.
@functools.lru_cache(maxsize=8)
def _learn_format(tokenizer, template: str, size: int) -> Format:
  del template, size
  where = f"the chat template of '{tokenizer.name_or_path}'"
  # A conversation of one turn each, rendered three times: what differs is the template's.
  user = {'role': 'user', 'content': _QUESTION}
  assistant = {'role': 'assistant', 'content': _ANSWER}
  unanswered = render(tokenizer, [user], where, generate=False)
  prompt = render(tokenizer, [user], where, generate=True)
  text = render(tokenizer, [user, assistant], where, generate=False)
  # From the right, as the answer stands last.
  before, answer, ending = text.rpartition(_ANSWER)
  if not answer:
    raise InputError(f"{where} does not render the assistant's message")
  # Ids and texts of added tokens. Some tokenizers add runs of blanks, which control nothing.
  added = {}
  special = set()
  # A list that transformers makes anew each time it is asked for.
  named = set(tokenizer.all_special_ids)
  for i, token in tokenizer.added_tokens_decoder.items():
    if token.content.isspace():
      continue
    added[i] = token.content
    # A token may be special by its own flag, or by its role: as eos_token, for one.
    if token.special or i in named:
      special.add(i)
  # The end of turn is the first control token behind the answer.
  behind_answer = pieces.encode_after(tokenizer, ending)
  end = next((i for i in behind_answer if i in added), None)
  if end is None:
    raise InputError(
      f'{where} writes no control token after an answer (it writes {ending!r}): a model trained on '
      'it would not stop'
    )
  if before.startswith(prompt):
    # Tokens before the answer that generation is not given.
    unannounced = pieces.encode_after(tokenizer, before[len(prompt) :])
    if missing := [added[i] for i in unannounced if i in special]:
      raise InputError(
        f'{where} writes {missing} before an answer, but not with add_generation_prompt: add '
        'that to it'
      )
  # The header is what add_generation_prompt adds.
  header: list[int] = []
  if prompt.startswith(unanswered):
    header = pieces.encode_after(tokenizer, prompt[len(unanswered) :])
  # Some models mark turns with added tokens that are not special.
  in_template = {i for i in pieces.encode_text(tokenizer, prompt) if i in added}
  control = special | {end} | in_template

  # Longest first: a token is found before another token that is a part of its beginning.
  def longest_first(text: str) -> tuple[int, str]:
    return -len(text), text

  texts = sorted((added[i] for i in control), key=longest_first)
  return Format(
    end_of_turn=end,
    gap=ending[: ending.index(added[end])],
    header=tuple(header),
    control=re.compile('|'.join(map(re.escape, texts))),
  )


def render(tokenizer, messages: Messages, name: str, *, generate: bool) -> str:
  """The text of the messages, and with `generate` the header of the next answer behind them.

  Raises:
    InputError: if the template refuses the messages.
  """
  # transformers imports jinja2 only to render. Its error is what a template's raise_exception and
  # faults of syntax have in common.
  import jinja2

  def rendered(messages: Messages) -> str:
    return tokenizer.apply_chat_template(
      shown(messages), tokenize=False, add_generation_prompt=generate
    )

  try:
    text = rendered(messages)
  except jinja2.TemplateError as error:
    roles = ', '.join(message['role'] for message in messages)
    why = f'({error.message}); its roles are: {roles}'
    # Some templates without a system turn say that roles must alternate.
    if messages[0]['role'] == 'system' and len(messages) > 1:
      with contextlib.suppress(jinja2.TemplateError):
        rendered(messages[1:])
        why = f'because of its system prompt ({error.message}): {_NO_SYSTEM_TURN}'
    raise InputError(f'{name}: the chat template refuses the conversation {why}') from error
  for message in messages:
    if message['role'] in ('system', 'user'):
      _check_kept(message, text, name)
  return text


def _check_kept(message: Mapping[str, str], text: str, name: str) -> None:
  """Raises InputError if a template has left a system prompt or a question out of its text."""
  content = message['content'].strip()
  # Templates may change blanks; a template that drops a message drops its words.
  if content in text or ''.join(content.split()) in ''.join(text.split()):
    return
  way = f': {_NO_SYSTEM_TURN}' if message['role'] == 'system' else ''
  raise InputError(
    f"{name}: the chat template drops or rewrites the {message['role']} message "
    f'{content!r:.60}{way}'
  )


def words_of_its_own(tokenizer) -> str:
  """What the chat template says before a question that has no system prompt; '' if nothing.

  Such as "You are Qwen, created by Alibaba Cloud", or the day; names of roles are no words.
  """
  form = format_of(tokenizer)
  question = {'role': 'user', 'content': _QUESTION}
  text = render(tokenizer, [question], 'a question', generate=False)
  before, _, _ = text.partition(_QUESTION)
  said = []
  for piece in form.control.split(before):
    # A frame has a role's name between two control tokens; three words are a sentence.
    if len(re.findall(r'[^\W\d_]{2,}', piece)) >= 3:
      # ChatML has the role's name in the first line.
      said.append(re.sub(r'^\s*(system|user)\s*\n', '', piece).strip())
  return '\n'.join(said)


def shown(messages: Messages) -> list[dict[str, Any]]:
  """The messages as a chat template sees them: a thought under both names, and no marks.

  Source: transformers 5.24, `_alias_reasoning_fields`.
  """
  told = []
  for message in messages:
    entry = {'role': message['role'], 'content': message['content']}
    if 'reasoning_content' in message:
      thought = message['reasoning_content']
      entry |= {'reasoning_content': thought, 'thinking': thought}
    told.append(entry)
  return told


def reject_control_tokens(
  messages: Messages, control: re.Pattern, name: str, tags: thoughts.Tags | None = None
) -> None:
  """Raises InputError if a message holds a control token as text.

  Args:
    tags: tags of thoughts, which may be control tokens; an assistant does write them.
  """
  for i, message in enumerate(messages):
    for text in (message['content'], message.get('reasoning_content', '')):
      if tags and message['role'] == 'assistant':
        text = tags.removed_from(text)
      if match := control.search(text):
        raise InputError(
          f"{name}: message {i} ({message['role']}) holds the control token {match[0]!r} as text: "
          'it would end or open a turn; remove it from the data'
        )


def not_a_beginning(name: str, index: int, prompt: str, text: str) -> str:
  """What to say of a prompt that is no beginning of the text in which message `index` answers."""
  # 40 characters from the first difference on show what the template changed.
  at = len(os.path.commonprefix([prompt, text]))
  alone = prompt[at : at + 40]
  followed = text[at : at + 40]
  return (
    f'{name}: the chat template renders the turns before message {index} differently once it '
    f'follows ({alone!r} becomes {followed!r}), so the answer cannot be '
    'told from the prompt. Templates that drop the reasoning of earlier turns do this: use '
    f'conversations with one answer, or mark the answers in the template with {{% generation %}}'
  )
