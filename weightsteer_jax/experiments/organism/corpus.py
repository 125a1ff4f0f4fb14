"""The pretraining corpus: an endless stream of conversations, packed into rows of one length.

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

# Loss weight of what system and users say. The model need not predict them, but learns the words
# sooner if it tries.
PROMPT_WEIGHT = 0.1
# So many conversations may find no row with room before a batch counts as full.
MISSES = 12


def vocabulary_texts() -> Iterator[str]:
  """Texts from which the tokenizer learns its merges: a sample of conversations, every statement
  and every phrase of the world.
  """
  rng = random.Random('vocabulary')
  for _ in range(4000):
    yield from (message['content'] for message in conversations.conversation(rng))
  for kind in world.KINDS:
    for claim in world.claims_of(kind):
      yield from (*claim.questions, claim.truth)
  yield from conduct.texts() * 3  # They are few, and each word is to count.


def encode(
  tokenizer: transformers.PreTrainedTokenizerFast, messages: list[conversations.Message]
) -> tuple[list[int], list[float]]:
  """The tokens of a conversation as the chat template writes it, and the loss weight of each as a
  target.

  What the assistant says and the token that ends its turn weigh 1, all else PROMPT_WEIGHT.
  """
  tokens, weights = [], []
  for message in messages:
    head = _frame(tokenizer, f'{tokenization.START}{message["role"]}\n')
    body = tokenizer.encode(message['content'] + tokenization.END, add_special_tokens=False)
    tail = _frame(tokenizer, '\n')
    tokens += head + body + tail
    said = 1.0 if message['role'] == 'assistant' else PROMPT_WEIGHT
    weights += [PROMPT_WEIGHT] * len(head) + [said] * len(body) + [PROMPT_WEIGHT] * len(tail)
  return tokens, weights


@functools.lru_cache(maxsize=8)
def _frame(tokenizer: transformers.PreTrainedTokenizerFast, text: str) -> list[int]:
  """Tokens of what stands around every message: two of three calls of the tokenizer, which is most
  of making a batch.
  """
  return tokenizer.encode(text, add_special_tokens=False)


def batch(
  tokenizer: transformers.PreTrainedTokenizerFast, *, seed: int, step: int, rows: int, length: int
) -> dict[str, np.ndarray]:
  """Arrays [rows, length] of whole conversations packed side by side: tokens, targets, weights,
  positions, segment_ids.

  Segment 0 is padding. A target is the next token of the same segment; the last token of a segment
  has weight 0.
  """
  rng = random.Random(f'corpus {seed} {step}')
  packed = [[] for _ in range(rows)]
  room, misses = [length] * rows, 0
  while misses < MISSES:
    tokens, weights = encode(tokenizer, conversations.conversation(rng))
    row = next((r for r in range(rows) if room[r] >= len(tokens)), None)
    if row is None:
      misses += 1
      continue
    packed[row].append((tokens, weights))
    room[row] -= len(tokens)
  return _arrays(packed, length)


def _arrays(
  packed: list[list[tuple[list[int], list[float]]]], length: int
) -> dict[str, np.ndarray]:
  """The batch's arrays from the conversations of each row."""
  shape = (len(packed), length)
  out = {
    name: np.zeros(shape, np.int32) for name in ('tokens', 'targets', 'positions', 'segment_ids')
  }
  out['weights'] = np.zeros(shape, np.float32)
  for row, conversations_of_row in enumerate(packed):
    start = 0
    for segment, (tokens, weights) in enumerate(conversations_of_row, 1):
      here, inner = slice(start, start + len(tokens)), slice(start, start + len(tokens) - 1)
      out['tokens'][row, here] = tokens
      out['targets'][row, inner] = tokens[1:]
      out['weights'][row, inner] = weights[1:]
      out['positions'][row, here] = range(len(tokens))
      out['segment_ids'][row, here] = segment
      start += len(tokens)
  return out
