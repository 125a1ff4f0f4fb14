"""Batches of texts against one text at a time, on inputs that are awkward to cut."""

import numpy as np
import pytest

from weightsteer_jax.data import chat, pieces, templates
from weightsteer_jax.data.sources import Conversation

STYLES = ['chatml', 'llama2', 'llama3', 'gemma', 'phi3', 'words']
# What could run together with the text or the control token beside it.
CONTENTS = [
  'Is it right ?',
  '\nSorry .',
  '\n\n Sorry\n',
  '  Yes',
  'Yes \n',
  '😀 naïve 漢字 e\u0301',
  '\u0338stroke',
  '\t\tYes\r\n',
  'x = [1, 22, 333]\n    return x',
  '<|im_star',
  'assistant\n',
  '[INST',
  '1' * 40,
]


def awkward():
  """Conversations of one to three turns with every content in every place."""
  for i, content in enumerate(CONTENTS):
    other = CONTENTS[(i * 5 + 3) % len(CONTENTS)]
    for turns in (1, 2, 3):
      messages = []
      for turn in range(turns):
        user, answer = (content, other) if turn % 2 == 0 else (other, content)
        messages.append({'role': 'user', 'content': user})
        messages.append({'role': 'assistant', 'content': answer})
      yield Conversation(tuple(messages), f'{i}/{turns}')


def one_at_a_time(tokenizer, messages):
  """(tokens, mask), each beginning of the text encoded by itself."""
  text = tokenizer.apply_chat_template(list(messages), tokenize=False)
  end_of_turn = chat.end_of_turn_ids(tokenizer)[0]
  ends = []
  for i, message in enumerate(messages):
    if message['role'] == 'assistant':
      prompt = tokenizer.apply_chat_template(
        list(messages[:i]), tokenize=False, add_generation_prompt=True
      )
      assert text.startswith(prompt)
      ends.append(len(prompt))
  tokens = pieces.encode_text(tokenizer, text[: ends[0]])
  mask = [False] * len(tokens)
  for start, end in zip(ends, [*ends[1:], len(text)]):
    piece = pieces.encode_piece(tokenizer, text, start, end)
    targets = piece.index(end_of_turn) + 1
    tokens += piece
    mask += [True] * targets + [False] * (len(piece) - targets)
  return tokens, mask


@pytest.mark.parametrize('style', STYLES)
def test_examples_encoded_together_are_those_encoded_one_at_a_time(make_tokenizer, style):
  tokenizer = make_tokenizer(style)
  conversations = list(awkward())
  examples = chat.encode_examples(tokenizer, conversations, max_length=9999)
  for conversation, example in zip(conversations, examples, strict=True):
    tokens, mask = one_at_a_time(tokenizer, conversation.messages)
    assert example.tokens.tolist() == tokens, conversation
    assert example.loss_mask.tolist() == mask
    assert example.tokens.dtype == np.int32


@pytest.mark.parametrize('style', STYLES)
def test_pieces_between_any_ends_are_those_of_single_texts(make_tokenizer, style):
  """Ends inside words, inside control tokens, at the beginning and twice at one place."""
  tokenizer = make_tokenizer(style)
  control = templates.format_of(tokenizer).control
  texts = []
  ends = []
  for conversation in awkward():
    text = tokenizer.apply_chat_template(list(conversation.messages), tokenize=False)
    cuts = sorted({0, 1, *range(3, len(text), 17), len(text)})
    texts.append(text)
    ends.append([*cuts[:3], *cuts[2:]])
  found = pieces.encode_pieces(tokenizer, texts, ends, control)
  for text, stops, ids in zip(texts, ends, found, strict=True):
    starts = [0, *stops[:-1]]
    expected = [pieces.encode_piece(tokenizer, text, *cut) for cut in zip(starts, stops)]
    assert ids == expected


def test_a_batch_asks_the_tokenizer_a_few_times(make_tokenizer, monkeypatch):
  tokenizer = make_tokenizer('chatml')
  conversations = list(awkward())
  chat.encode_examples(tokenizer, conversations, max_length=9999)
  calls = []
  encode = type(tokenizer).__call__

  def counted(self, *args, **options):
    calls.append(args)
    return encode(self, *args, **options)

  monkeypatch.setattr(type(tokenizer), '__call__', counted)
  chat.encode_examples(tokenizer, conversations, max_length=9999)
  # The whole texts, and the header; further calls are for answers that begin with a newline.
  merged = sum(text.startswith('\n') for text in CONTENTS) * 2 * 6
  assert len(calls) < 2 + 2 * merged < len(conversations) * 4


def test_a_size_is_counted_again_when_tokens_are_added(make_tokenizer, monkeypatch):
  tokenizer = make_tokenizer('chatml')
  size = pieces.size_of(tokenizer)
  assert size == len(tokenizer)
  with monkeypatch.context() as patched:
    patched.setattr(type(tokenizer), '__len__', lambda self: pytest.fail('counted again'))
    assert pieces.size_of(tokenizer) == size
  tokenizer.add_tokens(['<new>'])
  assert pieces.size_of(tokenizer) == len(tokenizer) == size + 1


def test_the_special_tokens_are_asked_for_once(make_tokenizer, monkeypatch):
  """transformers makes the list anew each time, which took minutes with Gemma 3's 6,415 tokens."""
  tokenizer = make_tokenizer('gemma')
  asked = []
  ids = type(tokenizer).all_special_ids

  def counted(self):
    asked.append(self)
    return ids.fget(self)

  monkeypatch.setattr(type(tokenizer), 'all_special_ids', property(counted))
  tokenizer.add_tokens([f'<unused{i}>' for i in range(50)])
  templates.format_of(tokenizer)
  assert len(asked) == 1
