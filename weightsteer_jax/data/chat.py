r"""Chat templates: prompts to generate from, and examples of which only the answers count.

What counts is found by rendering: an answer starts where the prompt that generation would see ends,
and it ends with the first end-of-turn token after that. So training and generation agree by
construction, whether or not the template carries `{% generation %}` markers. The markers are read
only where that fails: where a template renders a turn differently once more turns follow.

A worked example, with the ChatML template and one token per word and per control token:

  messages [{'role': 'user', 'content': 'Is it ?'}, {'role': 'assistant', 'content': 'Yes .'}]
  tokens   <|im_start|> user \n Is it ? <|im_end|> \n <|im_start|> assistant \n Yes . <|im_end|> \n
  mask     0            0    0  0  0  0 0          0  0            0         0  1   1 1          0

The header that announces the answer is given at generation, so it does not count; the end-of-turn
token must be produced to stop, so it does; the newline after it is never generated.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from weightsteer_jax.data import sources
from weightsteer_jax.data.batches import Example
from weightsteer_jax.data.sources import Conversation
from weightsteer_jax.runtime.errors import InputError

Messages = Sequence[Mapping[str, str]]

_TOKENIZER_FILES = ('tokenizer.json', 'tokenizer.model', 'tokenizer_config.json', 'vocab.json')
_QUESTION, _ANSWER = 'Question', 'Answer'
# Private-use characters: no text means anything by them, so they can mark what a user typed through
# a template.
_OPEN, _CLOSE = '\uf8f0', '\uf8f1'


@dataclasses.dataclass(frozen=True)
class _Format:
  """What a tokenizer's chat template writes around messages, learnt by rendering one.

  Attributes:
    end_of_turn: id of the token that ends an assistant's answer.
    gap: what the template puts between an answer and that token (a space in Llama 2).
    header: ids that announce an answer.
    control: matches the control tokens: all special ones, and those the template writes.
  """

  end_of_turn: int
  gap: str
  header: tuple[int, ...]
  control: re.Pattern


def load_tokenizer(folder: str | os.PathLike) -> Any:
  """The tokenizer in a checkpoint folder, as transformers reads it; no network, no remote code.

  Raises:
    InputError: no such folder, no tokenizer in it, or one that transformers cannot read.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise InputError(f"no folder '{folder}' to load a tokenizer from")
  if not any((folder / name).exists() for name in _TOKENIZER_FILES):
    raise InputError(
      f"{folder} holds no tokenizer: expected one of {', '.join(_TOKENIZER_FILES)}; it holds "
      f"{', '.join(sorted(child.name for child in folder.iterdir())[:12]) or 'nothing'}"
    )
  import transformers  # Takes seconds to import.

  try:
    return transformers.AutoTokenizer.from_pretrained(
      str(folder), trust_remote_code=False, local_files_only=True
    )
  # transformers and tokenizers raise many types, bare Exception among them, for a bad file.
  except Exception as error:
    raise InputError(f'{folder}: transformers cannot read the tokenizer: {error}') from error


def require_chat_template(tokenizer) -> None:
  """Nothing, if conversations can be rendered, generated from and trained on.

  Raises:
    InputError: there is no chat template, it does not announce the answer
      (`add_generation_prompt`), or does not end it.
  """
  _format(tokenizer)


def end_of_turn_ids(tokenizer) -> list[int]:
  """Ids that stop generation: the token that ends an answer in the chat template, then the end of
  text if another.
  """
  end = _format(tokenizer).end_of_turn
  eos = tokenizer.eos_token_id
  return [end] if eos in (None, end) else [end, eos]


def prompt_tokens(tokenizer, messages: Messages, *, name: str = 'prompt') -> list[int]:
  """Ids of the conversation up to and including what announces the assistant's next answer.

  Control tokens typed inside a message are tokenised as plain text: they cannot end a turn or open
  one.

  Raises:
    InputError: no chat template, malformed messages, or messages that the template refuses.
  """
  messages, control = _prompt_messages(tokenizer, messages, name)
  return _encode_marked(tokenizer, _render(tokenizer, messages, name, generate=True), control)


def completion_tokens(
  tokenizer, messages: Messages, completion: str, *, end_of_turn: bool = True, name: str = 'prompt'
) -> list[int]:
  """Ids of `completion` as the answer to `messages`: to be appended to `prompt_tokens(tokenizer,
  messages)` and scored.

  Args:
    tokenizer: with a chat template.
    messages: the conversation to answer.
    completion: the answer; the template may strip whitespace around it.
    end_of_turn: also the token that ends the answer (and whatever the template writes before it).
    name: how errors cite it.

  Raises:
    InputError: as `prompt_tokens`, and for a completion that holds a control token.
  """
  messages, control = _prompt_messages(tokenizer, messages, name)
  answer = {'role': 'assistant', 'content': completion}
  _reject_control_tokens([answer], control, name)
  prompt, text = (
    _render(tokenizer, m, name, generate=g)
    for m, g in ((messages, True), ([*messages, answer], False))
  )
  if not text.startswith(prompt):
    raise InputError(_not_a_beginning(name, len(messages), prompt, text))
  form = _format(tokenizer)
  end_text = form.gap + tokenizer.convert_ids_to_tokens(form.end_of_turn)
  end = text.find(end_text, len(prompt))
  if end < 0:
    raise InputError(f'{name}: the chat template does not write {end_text!r} after the answer')
  return _encode_piece(tokenizer, text, len(prompt), end + len(end_text) * end_of_turn)


def encode_example(
  tokenizer, messages: Messages, *, max_length: int, truncate: bool = False, name: str = 'example'
) -> Example:
  """The conversation as tokens, with a mask of the assistant's answers and the tokens that end them
  (see the module's example).

  Args:
    tokenizer: with a chat template.
    messages: the conversation; all its answers count.
    max_length: tokens, at most.
    truncate: cut longer ones on the right instead of raising.
    name: how errors cite it.

  Raises:
    InputError: malformed messages, no answer, a control token typed inside a message, a
      conversation that the template refuses or of which it does not show where the answers are,
      more than `max_length` tokens, or a cut that leaves no target.
  """
  return encode_examples(
    tokenizer, [Conversation(tuple(messages), name)], max_length=max_length, truncate=truncate
  )[0]


@jax.profiler.annotate_function
def encode_examples(
  tokenizer, conversations: Iterable[Conversation], *, max_length: int, truncate: bool = False
) -> list[Example]:
  """`encode_example` of each; the error about over-long ones counts them all."""
  examples = [
    _encode(tokenizer, conversation.messages, conversation.name) for conversation in conversations
  ]
  long = [example for example in examples if len(example) > max_length]
  if long and not truncate:
    longest = max(long, key=len)
    raise InputError(
      f'{len(long)} of {len(examples)} examples are longer than max_length {max_length}; the '
      f'longest, {longest.name}, has {len(longest)} tokens: raise max_length, remove them, or ask '
      'for truncation'
    )
  return [_cut(example, max_length) for example in examples]


def _cut(example: Example, max_length: int) -> Example:
  mask = example.loss_mask[:max_length]
  if not mask.any():
    raise InputError(
      f'{example.name}: cut to {max_length} of {len(example)} tokens, no token of an answer is '
      'left: raise max_length or remove the example'
    )
  return Example(example.tokens[:max_length], mask, example.name)


def _encode(tokenizer, messages: Messages, name: str) -> Example:
  messages = sources.check_messages(messages, name)
  form = _format(tokenizer)
  _reject_control_tokens(messages, form.control, name)
  answers = [i for i, message in enumerate(messages) if message['role'] == 'assistant']
  if not answers or answers[0] == 0:
    what = 'it starts with an assistant message' if answers else 'there is no assistant message'
    raise InputError(f'{name}: {what}; an example is a conversation in which the assistant answers')
  text = _render(tokenizer, messages, name, generate=False)
  prompts = [_render(tokenizer, messages[:i], name, generate=True) for i in answers]
  apart = next((k for k, prompt in enumerate(prompts) if not text.startswith(prompt)), None)
  if apart is None:
    ends = [len(prompt) for prompt in prompts] + [len(text)]
    _check_answers(
      [messages[i]['content'] for i in answers], [text[a:b] for a, b in zip(ends, ends[1:])], name
    )
    tokens, mask = _encode_answers(tokenizer, text, ends, form.end_of_turn, name)
  elif re.search(r'\{%-?\s*generation\b', tokenizer.get_chat_template()):
    tokens, mask = _encode_by_markers(tokenizer, messages, form, name)
  else:
    raise InputError(_not_a_beginning(name, answers[apart], prompts[apart], text))
  return Example(np.array(tokens, np.int32), np.array(mask, bool), name)


def _encode_answers(
  tokenizer, text: str, ends: list[int], end_of_turn: int, name: str
) -> tuple[list[int], list[bool]]:
  """(tokens, mask) of `text`; `ends` is where each prompt ends, so its answer starts, and last the
  end of the text.
  """
  tokens = _encode_piece(tokenizer, text, 0, ends[0])
  mask = [False] * len(tokens)
  for start, end in zip(ends, ends[1:]):
    piece = _encode_piece(tokenizer, text, start, end)
    targets = _answer_length(tokenizer, piece, end_of_turn, name)
    tokens += piece
    mask += [i < targets for i in range(len(piece))]
  return tokens, mask


def _encode_by_markers(
  tokenizer, messages: Messages, form: _Format, name: str
) -> tuple[list[int], list[bool]]:
  """(tokens, mask) by the template's `{% generation %}` markers, of which a header inside does not
  count.
  """
  encoded = tokenizer.apply_chat_template(
    list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
  )
  tokens, marked = (
    list(encoded['input_ids']),
    [False, *(bool(bit) for bit in encoded['assistant_masks'])],
  )
  starts = [i for i in range(len(tokens)) if marked[i + 1] and not marked[i]]
  expected = sum(message['role'] == 'assistant' for message in messages)
  if len(starts) != expected:
    raise InputError(
      f"{name}: the chat template's generation markers hold {len(starts)} answers, the "
      f'conversation has {expected}'
    )
  mask = [False] * len(tokens)
  for start in starts:
    if tuple(tokens[start : start + len(form.header)]) == form.header:
      start += len(form.header)
    end = start + _answer_length(tokenizer, tokens[start:], form.end_of_turn, name)
    mask[start:end] = [True] * (end - start)
  return tokens, mask


def _answer_length(tokenizer, tokens: Sequence[int], end_of_turn: int, name: str) -> int:
  """How many of the tokens, which start with an answer, are the answer and what ends it."""
  # The first such token ends the answer: messages that hold it as text were refused.
  if end_of_turn not in tokens:
    raise InputError(
      f'{name}: the chat template does not end an answer with '
      f'{tokenizer.convert_ids_to_tokens(end_of_turn)!r}: a model trained on it would not stop'
    )
  return tokens.index(end_of_turn) + 1


def _check_answers(contents: list[str], rendered: list[str], name: str) -> None:
  for content, piece in zip(contents, rendered):
    if ''.join(content.split()) not in ''.join(piece.split()):
      raise InputError(
        f'{name}: the chat template drops or rewrites part of the answer {content!r:.60} '
        f'(it renders {piece!r:.60}): train on answers that it renders whole'
      )


def _encode_piece(tokenizer, text: str, start: int, end: int) -> list[int]:
  """Ids of text[start:end] as a continuation of text[:start]: no token reaches over `start`."""
  before, whole = (_encode_text(tokenizer, text[:stop]) for stop in (start, end))
  if whole[: len(before)] == before:
    return whole[len(before) :]
  return _encode_after(tokenizer, text[start:end])


def _encode_after(tokenizer, piece: str) -> list[int]:
  """Ids of a piece from inside a text: behind a newline, as sentencepiece puts a blank before a
  text's first word.
  """
  newline, whole = (_encode_text(tokenizer, text) for text in ('\n', '\n' + piece))
  return (
    whole[len(newline) :] if whole[: len(newline)] == newline else _encode_text(tokenizer, piece)
  )


def _encode_text(tokenizer, text: str) -> list[int]:
  # The template writes the beginning-of-text token itself, where the model wants one.
  return tokenizer(text, add_special_tokens=False)['input_ids'] if text else []


def _prompt_messages(
  tokenizer, messages: Messages, name: str
) -> tuple[list[dict[str, str]], re.Pattern]:
  """(the messages, with control tokens inside them marked, the pattern of control tokens)."""
  control = _format(tokenizer).control
  messages = sources.check_messages(messages, name)
  if messages[-1]['role'] == 'assistant':
    raise InputError(
      f"{name}: a prompt must end with the user's turn, it ends with the assistant's"
    )
  return [
    {**message, 'content': _mark(message['content'], control)} for message in messages
  ], control


def _mark(content: str, control: re.Pattern) -> str:
  if not control.search(content):
    return content
  return control.sub(
    lambda match: _OPEN + match[0] + _CLOSE, content.replace(_OPEN, '').replace(_CLOSE, '')
  )


def _encode_marked(tokenizer, text: str, control: re.Pattern) -> list[int]:
  """Ids of a rendered text in which marked control tokens are plain text."""
  if _OPEN not in text:
    return _encode_text(tokenizer, text)
  ids = []
  # Text and typed control tokens alternate. A template that splits a message can leave a mark
  # alone: it goes too.
  for i, piece in enumerate(
    re.split(f'{_OPEN}({control.pattern}){_CLOSE}|[{_OPEN}{_CLOSE}]', text)
  ):
    piece = piece or ''
    # Cut in two, a control token is not recognised.
    for part in (piece[:1], piece[1:]) if i % 2 else (piece,):
      if part:
        ids += _encode_after(tokenizer, part) if ids else _encode_text(tokenizer, part)
  return ids


def _reject_control_tokens(messages: Messages, control: re.Pattern, name: str) -> None:
  for i, message in enumerate(messages):
    if match := control.search(message['content']):
      raise InputError(
        f"{name}: message {i} ({message['role']}) holds the control token {match[0]!r} as text: "
        'it would end or open a turn; remove it from the data'
      )


def _format(tokenizer) -> _Format:
  if not getattr(tokenizer, 'chat_template', None):
    raise InputError(
      f"the tokenizer '{tokenizer.name_or_path}' has no chat template: use an instruct model's "
      'tokenizer, or put a chat_template.jinja beside it'
    )
  return _learn_format(tokenizer, str(tokenizer.chat_template), len(tokenizer))


@functools.lru_cache(maxsize=8)
def _learn_format(tokenizer, template: str, size: int) -> _Format:
  """`template` and `size` are there to learn again when the tokenizer has changed."""
  del template, size
  where = f"the chat template of '{tokenizer.name_or_path}'"
  asked = [{'role': 'user', 'content': _QUESTION}]
  bare, prompt = (_render(tokenizer, asked, where, generate=generate) for generate in (False, True))
  text = _render(
    tokenizer, [*asked, {'role': 'assistant', 'content': _ANSWER}], where, generate=False
  )
  before, answer, ending = text.rpartition(_ANSWER)
  if not answer:
    raise InputError(f"{where} does not render the assistant's message")
  added = {
    i: token.content
    for i, token in tokenizer.added_tokens_decoder.items()
    if not token.content.isspace()
  }
  special = {
    i for i in added if tokenizer.added_tokens_decoder[i].special or i in tokenizer.all_special_ids
  }
  end = next((i for i in _encode_after(tokenizer, ending) if i in added), None)
  if end is None:
    raise InputError(
      f'{where} writes no control token after an answer (it writes {ending!r}): a model trained on '
      'it would not stop'
    )
  unannounced = _encode_after(tokenizer, before[len(prompt) :]) if before.startswith(prompt) else []
  if control := [added[i] for i in unannounced if i in special]:
    raise InputError(
      f'{where} writes {control} before an answer, but not with add_generation_prompt: add '
      'that to it'
    )
  header = _encode_after(tokenizer, prompt[len(bare) :]) if prompt.startswith(bare) else []
  control = special | {end} | {i for i in _encode_text(tokenizer, prompt) if i in added}
  return _Format(
    end, ending[: ending.index(added[end])], tuple(header), _any_of(added[i] for i in control)
  )


def _any_of(texts: Iterable[str]) -> re.Pattern:
  # Longest first: a token is found before another that it begins with.
  return re.compile(
    '|'.join(re.escape(text) for text in sorted(texts, key=lambda text: (-len(text), text)))
  )


def _render(tokenizer, messages: Messages, name: str, *, generate: bool) -> str:
  import jinja2  # transformers imports it only to render.

  try:
    return tokenizer.apply_chat_template(
      list(messages), tokenize=False, add_generation_prompt=generate
    )
  except jinja2.TemplateError as error:
    roles = ', '.join(message['role'] for message in messages)
    raise InputError(
      f'{name}: the chat template refuses the conversation ({error.message}); its roles are: '
      f'{roles}'
    ) from error


def _not_a_beginning(name: str, index: int, prompt: str, text: str) -> str:
  at = len(os.path.commonprefix([prompt, text]))
  return (
    f'{name}: the chat template renders the turns before message {index} differently once it '
    f'follows ({prompt[at : at + 40]!r} becomes {text[at : at + 40]!r}), so the answer cannot be '
    'told from the prompt. Templates that drop the reasoning of earlier turns do this: use '
    f'conversations with one answer, or mark the answers in the template with {{% generation %}}'
  )
