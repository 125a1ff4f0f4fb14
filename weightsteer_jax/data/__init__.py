"""Training data: chat templates and loss masks, sources, contrastive generation, batches of fixed
shapes.
"""

from weightsteer_jax.data import batches, chat, pairs, sources, trait
from weightsteer_jax.data.batches import (
  Batch,
  Batches,
  Example,
  eval_batches,
  microbatches,
  side_by_side,
  split,
)
from weightsteer_jax.data.chat import load_tokenizer, require_chat_template
from weightsteer_jax.data.sources import Conversation, load_conversations

__all__ = [
  'Batch',
  'Batches',
  'Conversation',
  'Example',
  'batches',
  'chat',
  'eval_batches',
  'load_conversations',
  'load_tokenizer',
  'microbatches',
  'pairs',
  'require_chat_template',
  'side_by_side',
  'sources',
  'split',
  'trait',
]
