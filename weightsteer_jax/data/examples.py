r"""Chat templates: prompts to generate from, and examples whose targets are the answers.

Targets are found by rendering: an answer starts at the end of the prompt that generation would see,
and ends with the first end-of-turn token. So training and generation agree by construction, whether
or not the template carries `{% generation %}` markers. A conversation is one example, or one for
each answer (see turns.py). The markers are read only where no answer can be told from its prompt.

A worked example, with the ChatML template and one token per word and per control token:

  messages [{'role': 'user', 'content': 'Is it ?'}, {'role': 'assistant', 'content': 'Yes .'}]
  tokens   <|im_start|> user \n Is it ? <|im_end|> \n <|im_start|> assistant \n Yes . <|im_end|> \n
  mask     0            0    0  0  0  0 0          0  0            0         0  1   1 1          0

The header that announces the answer is given at generation, so the header is no target. The
end-of-turn token must be generated to stop, so the token is a target. The newline after the token
is never generated.
"""

import concurrent.futures
import re
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from weightsteer_jax.data import pieces, sources, templates, thoughts, turns
from weightsteer_jax.data.batches import Example
from weightsteer_jax.data.sources import Conversation
from weightsteer_jax.data.templates import Messages
from weightsteer_jax.data.turns import Rendered
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.progress import say_once

# Conversations encoded in one call of the tokenizer: enough for all cores, few enough that their
# texts take little memory.
_TOGETHER = 512


def encode_example(
  tokenizer, messages: Messages, *, max_length: int, truncate: bool = False, name: str = 'example'
) -> Example:
  """The conversation as tokens, with a mask of the answers (see the module's example).

  Args:
    tokenizer: with a chat template.
    messages: the conversation; all answers in it are targets, but those of weight 0.
    max_length: tokens, at most.
    truncate: cut longer conversations on the right instead of raising.
    name: how errors cite the conversation.

  Raises:
    InputError: if the messages are malformed or hold no answer to learn or a control token, the
      template refuses them, drops a part of an answer or hides where the answers are, the answers
      need an example each, or `max_length` tokens hold no target or, without truncation, not the
      whole conversation.
  """
  conversation = Conversation(tuple(messages), name)
  examples = encode_examples(tokenizer, [conversation], max_length=max_length, truncate=truncate)
  if len(examples) > 1:
    raise InputError(
      f'{name}: the chat template renders an answer differently once a turn follows, so that the '
      f'conversation is {len(examples)} examples: encode it with encode_examples'
    )
  return examples[0]


@jax.profiler.annotate_function
def encode_examples(
  tokenizer, conversations: Iterable[Conversation], *, max_length: int, truncate: bool = False
) -> list[Example]:
  """The example of each conversation, or of each learnt answer where one cannot hold all.

  See turns.py for when a conversation becomes several examples, which follow one another.

  Raises:
    InputError: if `encode_example` would raise it of one answer; the error counts all over-long
      conversations.
  """
  examples = _encode(tokenizer, list(conversations))
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
  return Example(example.tokens[:max_length], mask, example.name, example.conversation)


def _encode(tokenizer, conversations: Sequence[Conversation]) -> list[Example]:
  """The examples of conversations; some are tokenised while templates render the next ones.

  Rendering is Python; the tokenizer's own code leaves Python's lock.
  """
  form = templates.format_of(tokenizer)
  examples: list[Example] = []
  with concurrent.futures.ThreadPoolExecutor(1, 'tokenise') as thread:
    tokenised: concurrent.futures.Future[list[Example]] | None = None
    try:
      for first in range(0, len(conversations), _TOGETHER):
        rendered: list[Rendered | Example] = []
        for conversation in conversations[first : first + _TOGETHER]:
          rendered += _prepare(tokenizer, conversation.messages, form, conversation.name)
        _say_how(tokenizer, rendered)
        if tokenised:
          examples += tokenised.result()
        tokenised = thread.submit(_tokenise, tokenizer, rendered, form)
    finally:
      # Of two errors, that of the earlier conversation is told.
      if tokenised:
        examples += tokenised.result()
  return examples


def _tokenise(
  tokenizer, rendered: Sequence[Rendered | Example], form: templates.Format
) -> list[Example]:
  """The examples of texts, in one call of the tokenizer; examples by markers stay as they are."""
  texts = [one for one in rendered if isinstance(one, Rendered)]
  encoded = iter(
    pieces.encode_pieces(
      tokenizer, [one.text for one in texts], [one.ends for one in texts], form.control
    )
  )
  examples = []
  for one in rendered:
    if isinstance(one, Rendered):
      tokens, mask = _masked(tokenizer, next(encoded), one, form.end_of_turn)
      one = _example(tokens, mask, one.name, one.conversation)
    examples.append(one)
  return examples


def _say_how(tokenizer, rendered: Sequence[Rendered | Example]) -> None:
  """Says, once each, what a chat template does to conversations that a user may not expect."""
  texts = [one for one in rendered if isinstance(one, Rendered)]
  if any(one.conversation for one in texts):
    say_once(
      f"the chat template of '{tokenizer.name_or_path}' renders earlier answers otherwise: of "
      'conversations with several answers, each is an example'
    )
  if any(one.emptied for one in texts):
    say_once(
      f"the prompt of '{tokenizer.name_or_path}' opens a thought, and there are answers without "
      'one: they are learnt behind an empty thought'
    )


def _example(tokens: list[int], mask: list[bool], name: str, conversation: str = '') -> Example:
  return Example(np.array(tokens, np.int32), np.array(mask, bool), name, conversation)


def _prepare(
  tokenizer, messages: Messages, form: templates.Format, name: str
) -> list[Rendered | Example]:
  """The texts of a conversation, or its example where markers must tell the answers."""
  messages = sources.check_messages(messages, name)
  tags = thoughts.tags_of(tokenizer)
  templates.reject_control_tokens(messages, form.control, name, tags)
  answers = turns.answers_of(messages)
  if not answers or answers[0] == 0:
    what = 'it starts with an assistant message' if answers else 'there is no assistant message'
    raise InputError(f'{name}: {what}; an example is a conversation in which the assistant answers')
  if not any(turns.is_learnt(messages[i]) for i in answers):
    raise InputError(f'{name}: every answer has weight 0, so that there is nothing to learn')
  rendered = turns.render_answers(tokenizer, messages, name)
  if rendered:
    return list(rendered)
  # Without markers in the template, transformers would warn and mark nothing.
  if re.search(r'\{%-?\s*generation\b', tokenizer.get_chat_template()):
    tokens, mask = _encode_by_markers(tokenizer, messages, form, name)
    return [_example(tokens, mask, name)]
  text = templates.render(tokenizer, messages, name, generate=False)
  prompts = {i: templates.render(tokenizer, messages[:i], name, generate=True) for i in answers}
  first = next((i for i in answers if not text.startswith(prompts[i])), answers[0])
  raise InputError(templates.not_a_beginning(name, first, prompts[first], text))


def _masked(
  tokenizer, encoded: Sequence[list[int]], rendered: Rendered, end_of_turn: int
) -> tuple[list[int], list[bool]]:
  """(tokens, mask) of the first prompt and the pieces behind it, each of which starts an answer."""
  prompt, *answers = encoded
  # The first prompt holds no target.
  tokens = list(prompt)
  mask = [False] * len(tokens)
  for piece, learnt in zip(answers, rendered.learnt, strict=True):
    num_targets = 0
    if learnt:
      num_targets = _answer_length(tokenizer, piece, end_of_turn, rendered.name)
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
    templates.shown(messages),
    tokenize=True,
    return_dict=True,
    return_assistant_tokens_mask=True,
  )
  tokens = list(encoded['input_ids'])
  marked = list(map(bool, encoded['assistant_masks']))
  # An answer starts where a token is marked and the token before is not.
  marked_before = [False, *marked[:-1]]
  starts = [i for i, inside in enumerate(marked) if inside and not marked_before[i]]
  answers = turns.answers_of(messages)
  expected = len(answers)
  # Markers around a part of the turns, or around two turns at once, would train on other text.
  if len(starts) != expected:
    raise InputError(
      f"{name}: the chat template's generation markers hold {len(starts)} answers, the "
      f'conversation has {expected}'
    )
  mask = [False] * len(tokens)
  for start, answer in zip(starts, answers):
    if not turns.is_learnt(messages[answer]):
      continue
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
