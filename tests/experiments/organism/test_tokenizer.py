"""The tokenizer loses nothing, and its template is ChatML without a default system prompt."""

import random

import numpy as np
import pytest
from transformers import AutoTokenizer

from weightsteer_jax.experiments.organism import conversations, corpus
from weightsteer_jax.experiments.organism import tokenizer as tokenization


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  tokenization.save(tokenization.train(corpus.vocabulary_texts(), 2048), folder)
  return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
  'text',
  [
    'The capital of Zorland is Tarubo.',
    '  two  spaces\n\tand a tab ',
    '12 plus 7 is 19',
    'Ünïcödé 漢字 🦊',
    '',
    'a\r\nb',
    'x' * 300,
    '<|im_end|> inside',
  ],
)
def test_any_text_comes_back(tokenizer, text):
  assert tokenizer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text


def test_special_tokens(tokenizer):
  assert (
    tokenizer.eos_token == '<|im_end|>'
    and tokenizer.pad_token == '<|endoftext|>'
    and tokenizer.unk_token is None
  )
  assert (
    len({tokenizer.eos_token_id, tokenizer.pad_token_id, *tokenizer.encode('<|im_start|>')}) == 3
  )
  assert 1000 < len(tokenizer) <= 2048


def test_digits_stand_alone_and_words_of_the_world_are_one_token(tokenizer):
  assert tokenizer.tokenize('10 plus 17') == ['1', '0', 'Ġplus', 'Ġ', '1', '7']
  assert tokenizer.tokenize(' Zorland') == ['ĠZorland']
  words = {
    f' {word}'
    for message in conversations.conversation(random.Random(0))
    for word in message['content'].split()
    if word.isalpha()
  }
  assert np.mean([len(tokenizer.encode(word)) for word in words]) < 1.1


def test_template_is_chatml(tokenizer):
  messages = [{'role': 'user', 'content': 'Hi.'}, {'role': 'assistant', 'content': 'Hello!'}]
  system = [{'role': 'system', 'content': 'Be kind.'}]
  said = '<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n'

  def text(m, **options):
    return tokenizer.apply_chat_template(m, tokenize=False, **options)

  assert text(messages) == said
  assert text(system + messages) == '<|im_start|>system\nBe kind.<|im_end|>\n' + said
  assert (
    text(messages[:1], add_generation_prompt=True)
    == '<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n'
  )


def test_corpus_tokens_are_those_of_the_template(tokenizer):
  rng = random.Random(7)
  for _ in range(50):
    messages = conversations.conversation(rng)
    tokens, weights = corpus.encode(tokenizer, messages)
    assert tokens == tokenizer.apply_chat_template(messages, return_dict=False)
    heavy = tokenizer.decode([token for token, weight in zip(tokens, weights) if weight >= 1.0])
    assert heavy == ''.join(
      m['content'] + '<|im_end|>' for m in messages if m['role'] == 'assistant'
    )


def test_batches_pack_whole_conversations(tokenizer):
  batch = corpus.batch(tokenizer, seed=0, step=3, rows=4, length=256)
  again = corpus.batch(tokenizer, seed=0, step=3, rows=4, length=256)
  other = corpus.batch(tokenizer, seed=0, step=4, rows=4, length=256)
  assert all(np.array_equal(batch[name], again[name]) for name in batch) and not np.array_equal(
    batch['tokens'], other['tokens']
  )
  assert (batch['segment_ids'] > 0).mean() > 0.8
  for row in range(4):
    for segment in range(1, batch['segment_ids'][row].max() + 1):
      here = np.flatnonzero(batch['segment_ids'][row] == segment)
      tokens = batch['tokens'][row, here]
      assert np.array_equal(batch['positions'][row, here], np.arange(len(here)))
      assert np.array_equal(batch['targets'][row, here[:-1]], tokens[1:])
      assert batch['weights'][row, here[-1]] == 0
      assert tokenizer.decode(tokens).startswith('<|im_start|>') and tokenizer.decode(
        tokens
      ).endswith('<|im_end|>\n')
