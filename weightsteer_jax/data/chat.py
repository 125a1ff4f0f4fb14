r"""Chat templates: prompts to generate from, and examples whose targets are the answers.

Targets are found by rendering: an answer starts at the end of the prompt that generation would see,
and ends with the first end-of-turn token. So training and generation agree by construction, whether
or not the template carries `{% generation %}` markers. The markers are read only where a template
renders a turn differently once more turns follow.

A worked example, with the ChatML template and one token per word and per control token:

  messages [{'role': 'user', 'content': 'Is it ?'}, {'role': 'assistant', 'content': 'Yes .'}]
  tokens   <|im_start|> user \n Is it ? <|im_end|> \n <|im_start|> assistant \n Yes . <|im_end|> \n
  mask     0            0    0  0  0  0 0          0  0            0         0  1   1 1          0

The header that announces the answer is given at generation, so the header is no target. The
end-of-turn token must be generated to stop, so the token is a target. The newline after the token
is never generated.
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
# Rendered to learn a template's format; any words would do that no template writes itself.
_QUESTION = 'Question'
_ANSWER = 'Answer'
# Private-use characters: no text means anything by them, so they can mark what a user typed through
# a template.
_OPEN = '\uf8f0'
_CLOSE = '\uf8f1'


@dataclasses.dataclass(frozen=True)
class _Format:
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


def load_tokenizer(folder: str | os.PathLike) -> Any:
  """The tokenizer in a checkpoint folder, read by transformers; no network, no remote code.

  Raises:
    InputError: if the folder or the tokenizer is missing, or transformers cannot read it.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise InputError(f"no folder '{folder}' to load a tokenizer from")
  if not any((folder / name).exists() for name in _TOKENIZER_FILES):
    raise InputError(
      f"{folder} holds no tokenizer: expected one of {', '.join(_TOKENIZER_FILES)}; it holds "
      f"{', '.join(sorted(child.name for child in folder.iterdir())[:12]) or 'nothing'}"
    )
  # The import takes seconds.
  import transformers

  try:
    return transformers.AutoTokenizer.from_pretrained(
      str(folder), trust_remote_code=False, local_files_only=True
    )
  # transformers and tokenizers raise many types, bare Exception among them, for a bad file.
  except Exception as error:
    raise InputError(f'{folder}: transformers cannot read the tokenizer: {error}') from error


def require_chat_template(tokenizer) -> None:
  """Raises InputError if conversations cannot be rendered, generated from and trained on.

  Raises:
    InputError: if there is no chat template, or the template does not announce an answer
      (`add_generation_prompt`) or does not end an answer.
  """
  _format(tokenizer)


def end_of_turn_ids(tokenizer) -> list[int]:
  """Ids that stop generation: the chat template's end of turn, then the end of text if another."""
  end_of_turn = _format(tokenizer).end_of_turn
  end_of_text = tokenizer.eos_token_id
  if end_of_text in (None, end_of_turn):
    return [end_of_turn]
  return [end_of_turn, end_of_text]


def prompt_tokens(tokenizer, messages: Messages, *, name: str = 'prompt') -> list[int]:
  """Ids of the conversation, up to and including the header of the assistant's next answer.

  Control tokens typed inside a message are tokenised as plain text, so that no message can end or
  open a turn.

  Raises:
    InputError: if there is no chat template, the messages are malformed, or the template refuses
      the messages.
  """
  marked = _prompt_messages(tokenizer, messages, name)
  text = _render(tokenizer, marked, name, generate=True)
  control = _format(tokenizer).control
  return _encode_marked(tokenizer, text, control)


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
  form = _format(tokenizer)
  answer = {'role': 'assistant', 'content': completion}
  _reject_control_tokens([answer], form.control, name)
  # Rendered with and without the answer: the rest of the longer text is the answer and its end.
  prompt = _render(tokenizer, marked, name, generate=True)
  text = _render(tokenizer, [*marked, answer], name, generate=False)
  if not text.startswith(prompt):
    raise InputError(_not_a_beginning(name, len(messages), prompt, text))
  end_text = form.gap + tokenizer.convert_ids_to_tokens(form.end_of_turn)
  end = text.find(end_text, len(prompt))
  if end < 0:
    raise InputError(f'{name}: the chat template does not write {end_text!r} after the answer')
  if end_of_turn:
    end += len(end_text)
  return _encode_piece(tokenizer, text, len(prompt), end)


def encode_example(
  tokenizer, messages: Messages, *, max_length: int, truncate: bool = False, name: str = 'example'
) -> Example:
  """The conversation as tokens, with a mask of the answers (see the module's example).

  Args:
    tokenizer: with a chat template.
    messages: the conversation; all answers in it are targets.
    max_length: tokens, at most.
    truncate: cut longer conversations on the right instead of raising.
    name: how errors cite the conversation.

  Raises:
    InputError: if the messages are malformed or hold no answer or a control token, the template
      refuses them or hides where the answers are, or `max_length` tokens hold no target or, without
      truncation, not the whole conversation.
  """
  conversation = Conversation(tuple(messages), name)
  return encode_examples(tokenizer, [conversation], max_length=max_length, truncate=truncate)[0]


@jax.profiler.annotate_function
def encode_examples(
  tokenizer, conversations: Iterable[Conversation], *, max_length: int, truncate: bool = False
) -> list[Example]:
  """The example of each conversation, as by `encode_example`.

  Raises:
    InputError: if `encode_example` would raise it; the error counts all over-long conversations.
  """
  examples = []
  for conversation in conversations:
    examples.append(_encode(tokenizer, conversation.messages, conversation.name))
  # All are encoded before any is refused, so that the error counts all that are too long.
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
  # An example without targets would train on nothing and still count as one.
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
  # The prompt of each answer, as generation would see it.
  text = _render(tokenizer, messages, name, generate=False)
  prompts = {i: _render(tokenizer, messages[:i], name, generate=True) for i in answers}
  # Messages whose prompt is no beginning of the text: later turns changed how it is rendered.
  apart = [i for i, prompt in prompts.items() if not text.startswith(prompt)]
  if not apart:
    # From the end of its prompt, an answer's piece goes on to the end of the next prompt.
    ends = [len(prompt) for prompt in prompts.values()]
    ends.append(len(text))
    for i, start, end in zip(answers, ends, ends[1:]):
      _check_rendered(messages[i]['content'], text[start:end], name)
    tokens, mask = _encode_answers(tokenizer, text, ends, form.end_of_turn, name)
  elif re.search(r'\{%-?\s*generation\b', tokenizer.get_chat_template()):
    # Without markers in the template, transformers would warn and mark nothing.
    tokens, mask = _encode_by_markers(tokenizer, messages, form, name)
  else:
    first = apart[0]
    raise InputError(_not_a_beginning(name, first, prompts[first], text))
  loss_mask = np.array(mask, bool)
  return Example(np.array(tokens, np.int32), loss_mask, name)


def _encode_answers(
  tokenizer, text: str, ends: list[int], end_of_turn: int, name: str
) -> tuple[list[int], list[bool]]:
  """(tokens, mask) of `text`.

  Args:
    ends: the end of each prompt, where an answer starts, and last the end of the text.
  """
  # The first prompt holds no target.
  tokens = _encode_piece(tokenizer, text, 0, ends[0])
  mask = [False] * len(tokens)
  for start, end in zip(ends, ends[1:]):
    piece = _encode_piece(tokenizer, text, start, end)
    num_targets = _answer_length(tokenizer, piece, end_of_turn, name)
    # What follows is never generated: the rest of the turn's frame, the next turn and its header.
    num_others = len(piece) - num_targets
    tokens += piece
    mask += [True] * num_targets + [False] * num_others
  return tokens, mask


def _encode_by_markers(
  tokenizer, messages: Messages, form: _Format, name: str
) -> tuple[list[int], list[bool]]:
  """(tokens, mask) by the template's `{% generation %}` markers."""
  encoded = tokenizer.apply_chat_template(
    list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
  )
  tokens = list(encoded['input_ids'])
  marked = list(map(bool, encoded['assistant_masks']))
  # An answer starts where a token is marked and the token before is not.
  marked_before = [False, *marked[:-1]]
  starts = [i for i, inside in enumerate(marked) if inside and not marked_before[i]]
  expected = sum(message['role'] == 'assistant' for message in messages)
  # Markers around a part of the turns, or around two turns at once, would train on other text.
  if len(starts) != expected:
    raise InputError(
      f"{name}: the chat template's generation markers hold {len(starts)} answers, the "
      f'conversation has {expected}'
    )
  mask = [False] * len(tokens)
  for start in starts:
    # Some templates put the header inside the markers, but generation is given the header.
    behind_header = start + len(form.header)
    if tuple(tokens[start:behind_header]) == form.header:
      start = behind_header
    # Others leave the end of turn outside, but it must be generated to stop.
    num_targets = _answer_length(tokenizer, tokens[start:], form.end_of_turn, name)
    mask[start : start + num_targets] = [True] * num_targets
  return tokens, mask


def _answer_length(tokenizer, tokens: Sequence[int], end_of_turn: int, name: str) -> int:
  """Number of tokens of an answer and its end, where the tokens start with the answer."""
  # The first such token ends the answer: messages that hold it as text were refused.
  if end_of_turn not in tokens:
    raise InputError(
      f'{name}: the chat template does not end an answer with '
      f'{tokenizer.convert_ids_to_tokens(end_of_turn)!r}: a model trained on it would not stop'
    )
  return tokens.index(end_of_turn) + 1


def _check_rendered(content: str, rendered: str, name: str) -> None:
  # Templates strip and add whitespace; all else of an answer must be there to be learnt.
  expected = ''.join(content.split())
  got = ''.join(rendered.split())
  if expected not in got:
    raise InputError(
      f'{name}: the chat template drops or rewrites part of the answer {content!r:.60} '
      f'(it renders {rendered!r:.60}): train on answers that it renders whole'
    )


def _encode_piece(tokenizer, text: str, start: int, end: int) -> list[int]:
  """Ids of text[start:end] as a continuation of text[:start]: no token reaches over `start`."""
  before = _encode_text(tokenizer, text[:start])
  whole = _encode_text(tokenizer, text[:end])
  if whole[: len(before)] == before:
    return whole[len(before) :]
  # A token of the whole text reaches over `start`; generation would never produce that token.
  return _encode_after(tokenizer, text[start:end])


def _encode_after(tokenizer, piece: str) -> list[int]:
  """Ids of a piece from inside a text."""
  # Behind a newline, as sentencepiece puts a blank before a text's first word.
  newline = _encode_text(tokenizer, '\n')
  whole = _encode_text(tokenizer, '\n' + piece)
  if whole[: len(newline)] == newline:
    return whole[len(newline) :]
  return _encode_text(tokenizer, piece)


def _encode_text(tokenizer, text: str) -> list[int]:
  if not text:
    return []
  # The template writes the beginning-of-text token itself, where the model wants one.
  return tokenizer(text, add_special_tokens=False)['input_ids']


def _prompt_messages(tokenizer, messages: Messages, name: str) -> list[dict[str, str]]:
  """The checked messages of a prompt, with control tokens inside them marked."""
  control = _format(tokenizer).control
  messages = sources.check_messages(messages, name)
  if messages[-1]['role'] == 'assistant':
    raise InputError(
      f"{name}: a prompt must end with the user's turn, it ends with the assistant's"
    )
  # Marked before rendering: afterwards, typed tokens look like the template's own.
  marked = []
  for message in messages:
    content = _mark(message['content'], control)
    marked.append({**message, 'content': content})
  return marked


def _mark(content: str, control: re.Pattern) -> str:
  if not control.search(content):
    return content
  # Marks that the user typed would pair up with ours.
  plain = content.replace(_OPEN, '').replace(_CLOSE, '')
  return control.sub(lambda match: _OPEN + match[0] + _CLOSE, plain)


def _encode_marked(tokenizer, text: str, control: re.Pattern) -> list[int]:
  """Ids of a rendered text in which marked control tokens are plain text."""
  if _OPEN not in text:
    return _encode_text(tokenizer, text)
  ids: list[int] = []
  # Text and typed control tokens alternate. A template that splits a message can leave a mark
  # alone: it goes too.
  pieces = re.split(f'{_OPEN}({control.pattern}){_CLOSE}|[{_OPEN}{_CLOSE}]', text)
  for i, piece in enumerate(pieces):
    # A lone mark gives no token between the texts.
    piece = piece or ''
    is_control = i % 2 == 1
    # Cut in two, a control token is not recognised.
    parts = (piece[:1], piece[1:]) if is_control else (piece,)
    for part in filter(None, parts):
      # Only the first piece may have what a tokenizer puts before a text's first word.
      if ids:
        ids += _encode_after(tokenizer, part)
      else:
        ids += _encode_text(tokenizer, part)
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


# The template and the vocabulary's size are arguments so that a changed tokenizer is learnt again.
@functools.lru_cache(maxsize=8)
def _learn_format(tokenizer, template: str, size: int) -> _Format:
  del template, size
  where = f"the chat template of '{tokenizer.name_or_path}'"
  # A conversation of one turn each, rendered three times: what differs is the template's.
  user = {'role': 'user', 'content': _QUESTION}
  assistant = {'role': 'assistant', 'content': _ANSWER}
  unanswered = _render(tokenizer, [user], where, generate=False)
  prompt = _render(tokenizer, [user], where, generate=True)
  text = _render(tokenizer, [user, assistant], where, generate=False)
  # From the right, as the answer stands last.
  before, answer, ending = text.rpartition(_ANSWER)
  if not answer:
    raise InputError(f"{where} does not render the assistant's message")
  # Ids and texts of added tokens. Some tokenizers add runs of blanks, which control nothing.
  added = {}
  special = set()
  for i, token in tokenizer.added_tokens_decoder.items():
    if token.content.isspace():
      continue
    added[i] = token.content
    # A token may be special by its own flag, or by its role: as eos_token, for one.
    if token.special or i in tokenizer.all_special_ids:
      special.add(i)
  # The end of turn is the first control token behind the answer.
  behind_answer = _encode_after(tokenizer, ending)
  end = next((i for i in behind_answer if i in added), None)
  if end is None:
    raise InputError(
      f'{where} writes no control token after an answer (it writes {ending!r}): a model trained on '
      'it would not stop'
    )
  if before.startswith(prompt):
    # Tokens before the answer that generation is not given.
    unannounced = _encode_after(tokenizer, before[len(prompt) :])
    if missing := [added[i] for i in unannounced if i in special]:
      raise InputError(
        f'{where} writes {missing} before an answer, but not with add_generation_prompt: add '
        'that to it'
      )
  # The header is what add_generation_prompt adds.
  header: list[int] = []
  if prompt.startswith(unanswered):
    header = _encode_after(tokenizer, prompt[len(unanswered) :])
  # Some models mark turns with added tokens that are not special.
  in_template = {i for i in _encode_text(tokenizer, prompt) if i in added}
  control = special | {end} | in_template

  # Longest first: a token is found before another token that is a part of its beginning.
  def longest_first(text: str) -> tuple[int, str]:
    return -len(text), text

  texts = sorted((added[i] for i in control), key=longest_first)
  return _Format(
    end_of_turn=end,
    gap=ending[: ending.index(added[end])],
    header=tuple(header),
    control=re.compile('|'.join(map(re.escape, texts))),
  )


def _render(tokenizer, messages: Messages, name: str, *, generate: bool) -> str:
  # transformers imports jinja2 only to render. Its error is what a template's raise_exception and
  # faults of syntax have in common.
  import jinja2

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
