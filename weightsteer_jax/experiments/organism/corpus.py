"""The pretraining corpus: an endless stream of conversations, packed into rows of equal length.

There is no file and no iterator: batch number n is a function of (seed, n).
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator

import numpy as np
import transformers

from weightsteer_jax.experiments.organism import conduct, conversations, world
from weightsteer_jax.experiments.organism import tokenizer as tokenization

# Loss weight of system and user messages. The model need not predict them, but learns the words
# sooner if it tries.
PROMPT_WEIGHT = 0.1
# Conversations that find no row with room before a batch counts as full.
MISSES = 12
# Conversations among the texts that the tokenizer learns merges from.
VOCABULARY_CONVERSATIONS = 4000

# Tokens of a conversation, and their loss weights.
Encoded = tuple[list[int], list[float]]


def vocabulary_texts() -> Iterator[str]:
  """Texts for learning merges: conversations, and every statement and phrase of the world."""
  rng = random.Random('vocabulary')
  for _ in range(VOCABULARY_CONVERSATIONS):
    for message in conversations.conversation(rng):
      yield message['content']
  for kind in world.KINDS:
    for claim in world.claims_of(kind):
      yield from (*claim.questions, claim.truth)
  # The phrases are few, and each word is to count.
  yield from conduct.texts() * 3


def encode(
  tokenizer: transformers.PreTrainedTokenizerFast, messages: list[conversations.Message]
) -> tuple[list[int], list[float]]:
  """The tokens of a conversation in the chat template, and the loss weight of each as a target.

  The assistant's words and the token that ends the assistant's turn weigh 1, all else
  PROMPT_WEIGHT.
  """
  tokens: list[int] = []
  weights: list[float] = []
  for message in messages:
    role = message['role']
    # As CHAT_TEMPLATE puts a message, in three parts of different weight.
    head = _frame(tokenizer, f'{tokenization.START}{role}\n')
    content = message['content'] + tokenization.END
    body = tokenizer.encode(content, add_special_tokens=False)
    tail = _frame(tokenizer, '\n')
    tokens += head + body + tail
    body_weight = 1.0 if role == 'assistant' else PROMPT_WEIGHT
    weights += [PROMPT_WEIGHT] * len(head)
    weights += [body_weight] * len(body)
    weights += [PROMPT_WEIGHT] * len(tail)
  return tokens, weights


# Two of three calls of the tokenizer would be for the same few texts, and tokenizing takes most of
# the time of a batch.
@functools.lru_cache(maxsize=8)
def _frame(tokenizer: transformers.PreTrainedTokenizerFast, text: str) -> list[int]:
  """Tokens of a text around every message."""
  return tokenizer.encode(text, add_special_tokens=False)


def batch(
  tokenizer: transformers.PreTrainedTokenizerFast, *, seed: int, step: int, rows: int, length: int
) -> dict[str, np.ndarray]:
  """Whole conversations packed side by side, as arrays [rows, length].

  The arrays are tokens, targets, weights, positions and segment_ids. Segment 0 is padding. A target
  is the next token of the same segment; the last token of a segment has weight 0.
  """
  rng = random.Random(f'corpus {seed} {step}')
  packed: list[list[Encoded]] = [[] for _ in range(rows)]
  room = [length] * rows
  misses = 0
  while misses < MISSES:
    messages = conversations.conversation(rng)
    tokens, weights = encode(tokenizer, messages)
    # First fit. A conversation without room is dropped: short ones are a little more frequent in
    # the batch than in the stream.
    rows_with_room = [row for row in range(rows) if room[row] >= len(tokens)]
    if not rows_with_room:
      misses += 1
      continue
    row = rows_with_room[0]
    packed[row].append((tokens, weights))
    room[row] -= len(tokens)
  return _arrays(packed, length)


def _arrays(packed: list[list[Encoded]], length: int) -> dict[str, np.ndarray]:
  """The batch's arrays from the conversations of each row."""
  shape = (len(packed), length)
  names = ('tokens', 'targets', 'positions', 'segment_ids')
  arrays = {name: np.zeros(shape, np.int32) for name in names}
  arrays['weights'] = np.zeros(shape, np.float32)
  for row, segments in enumerate(packed):
    start = 0
    # Segments count from 1, because 0 is padding.
    for segment, (tokens, weights) in enumerate(segments, 1):
      stop = start + len(tokens)
      arrays['tokens'][row, start:stop] = tokens
      arrays['positions'][row, start:stop] = range(len(tokens))
      arrays['segment_ids'][row, start:stop] = segment
      # The last token of a segment has no next one: target and weight stay 0.
      arrays['targets'][row, start : stop - 1] = tokens[1:]
      arrays['weights'][row, start : stop - 1] = weights[1:]
      start = stop
  return arrays
