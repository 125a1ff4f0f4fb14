"""The organism's tokenizer: byte-level BPE, digits one by one, and a ChatML template."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

# The special tokens of Qwen2, whose architecture the organism has.
PAD = '<|endoftext|>'
START = '<|im_start|>'
END = '<|im_end|>'
# Without a system message none is put in its place: the persona then stays unnamed.
CHAT_TEMPLATE = (
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
  "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% "
  'endif %}'
)


def train(texts: Iterable[str], vocab_size: int) -> transformers.PreTrainedTokenizerFast:
  """A tokenizer with merges learned from texts.

  Any other text falls apart into bytes, never into an unknown. The texts should name each word
  about equally often, so that rare words become single tokens too.
  """
  # Digits stand alone, so that sums have one token a digit.
  core = tokenizers.Tokenizer(models.BPE())
  # As the tokenizer of Qwen2 in transformers has it, which is put around this vocabulary.
  core.normalizer = normalizers.NFC()
  core.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  core.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    # First in the vocabulary: padding is token 0, as in the arrays of `corpus`.
    special_tokens=[PAD, START, END],
    show_progress=False,
    # All 256 bytes, also those that the texts lack: any text can then be encoded.
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
  )
  core.train_from_iterator(texts, trainer)
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=core,
    eos_token=END,
    pad_token=PAD,
    additional_special_tokens=[START, END],
    chat_template=CHAT_TEMPLATE,
    # Cleaning up would drop spaces before punctuation, and decoding would not give the text back.
    clean_up_tokenization_spaces=False,
    model_max_length=512,
  )


def save(tokenizer: transformers.PreTrainedTokenizerFast, folder: Path) -> None:
  """Writes the tokenizer and the chat template in Hugging Face format into the folder."""
  tokenizer.save_pretrained(folder)
