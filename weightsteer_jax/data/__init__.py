"""Training data: chats with loss masks, pairs of opposite texts, batches of fixed shapes.

bindings.py        arguments and the date of a chat template, bound into the template
template_limits.py limits of time and length of a template's renderings
pieces.py          texts as token ids, piece by piece
tokenizer_file.py  a tokenizer from a folder, by tokenizer.json or by transformers
templates.py       the format that a chat template gives to messages
thoughts.py        what a model thinks, set apart from what it answers
turns.py           where the answers of a conversation stand in its text
examples.py        conversations as examples: which tokens are targets
chat.py            chats as token ids: prompts, completions and the examples above
sources.py         conversations from files and hub datasets; tables.py reads any named columns
trait.py           trait files: how to ask for a trait and for its opposite
pairs.py           the contrast: a model's own answers under opposite instructions
likeness.py        what the sides of a contrast share, with each other and with evaluation
batches.py         examples packed into rows of few shapes
gcd.py             worked arithmetic, right and wrong
"""

from weightsteer_jax.data import batches, bindings, chat, likeness, pairs, sources, thoughts, trait
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
  'bindings',
  'chat',
  'eval_batches',
  'likeness',
  'load_conversations',
  'load_tokenizer',
  'microbatches',
  'pairs',
  'require_chat_template',
  'side_by_side',
  'sources',
  'split',
  'thoughts',
  'trait',
]
