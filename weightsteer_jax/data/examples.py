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
import re
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from weightsteer_jax.data import pieces, sources, templates
from weightsteer_jax.data.batches import Example
from weightsteer_jax.data.sources import Conversation
from weightsteer_jax.data.templates import Messages
from weightsteer_jax.runtime.errors import InputError

# Conversations encoded in one call of the tokenizer: enough for all cores, few enough that their
# texts take little memory.
_TOGETHER = 1024


@dataclasses.dataclass(frozen=True)
class _Rendered:
  """A conversation as text.

  Attributes:
    ends: the end of each prompt, where an answer starts, and last the end of the text.
  """

  text: str
  ends: list[int]


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
  conversations = list(conversations)
  examples = []
  for first in range(0, len(conversations), _TOGETHER):
    examples += _encode(tokenizer, conversations[first : first + _TOGETHER])
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


def _encode(tokenizer, conversations: Sequence[Conversation]) -> list[Example]:
  form = templates.format_of(tokenizer)
  prepared = []
  # Texts to encode together, and the ends of their pieces.
  texts = []
  ends = []
  for conversation in conversations:
    one = _prepare(tokenizer, conversation.messages, form, conversation.name)
    prepared.append(one)
    if isinstance(one, _Rendered):
      texts.append(one.text)
      ends.append(one.ends)
  encoded = iter(pieces.encode_pieces(tokenizer, texts, ends, form.control))
  examples = []
  for conversation, one in zip(conversations, prepared):
    if isinstance(one, _Rendered):
      tokens, mask = _masked(tokenizer, next(encoded), form.end_of_turn, conversation.name)
    else:
      tokens, mask = one
    loss_mask = np.array(mask, bool)
    examples.append(Example(np.array(tokens, np.int32), loss_mask, conversation.name))
  return examples


def _prepare(
  tokenizer, messages: Messages, form: templates.Format, name: str
) -> _Rendered | tuple[list[int], list[bool]]:
  """The rendered conversation, or (tokens, mask) where markers must tell the answers."""
  messages = sources.check_messages(messages, name)
  templates.reject_control_tokens(messages, form.control, name)
  answers = [i for i, message in enumerate(messages) if message['role'] == 'assistant']
  if not answers or answers[0] == 0:
    what = 'it starts with an assistant message' if answers else 'there is no assistant message'
    raise InputError(f'{name}: {what}; an example is a conversation in which the assistant answers')
  # The prompt of each answer, as generation would see it.
  text = templates.render(tokenizer, messages, name, generate=False)
  prompts = {i: templates.render(tokenizer, messages[:i], name, generate=True) for i in answers}
  # Messages whose prompt is no beginning of the text: later turns changed how it is rendered.
  apart = [i for i, prompt in prompts.items() if not text.startswith(prompt)]
  if not apart:
    # From the end of its prompt, an answer's piece goes on to the end of the next prompt.
    ends = [len(prompt) for prompt in prompts.values()]
    ends.append(len(text))
    for i, start, end in zip(answers, ends, ends[1:]):
      _check_rendered(messages[i]['content'], text[start:end], name)
    return _Rendered(text, ends)
  if re.search(r'\{%-?\s*generation\b', tokenizer.get_chat_template()):
    # Without markers in the template, transformers would warn and mark nothing.
    return _encode_by_markers(tokenizer, messages, form, name)
  first = apart[0]
  raise InputError(templates.not_a_beginning(name, first, prompts[first], text))


def _masked(
  tokenizer, encoded: Sequence[list[int]], end_of_turn: int, name: str
) -> tuple[list[int], list[bool]]:
  """(tokens, mask) of the first prompt and the pieces behind it, each of which starts an answer."""
  prompt, *answers = encoded
  # The first prompt holds no target.
  tokens = list(prompt)
  mask = [False] * len(tokens)
  for piece in answers:
    num_targets = _answer_length(tokenizer, piece, end_of_turn, name)
    # What follows is never generated: the rest of the turn's frame, the next turn and its header.
    num_others = len(piece) - num_targets
    tokens += piece
    mask += [True] * num_targets + [False] * num_others
  return tokens, mask


def _encode_by_markers(
  tokenizer, messages: Messages, form: templates.Format, name: str
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
