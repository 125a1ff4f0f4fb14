"""Pretraining end to end: PyTorch's loss, and a checkpoint for transformers."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers

from weightsteer_jax import models
from weightsteer_jax.experiments.organism import corpus, pretrain
from weightsteer_jax.runtime.errors import InputError

TINY = ['--steps=3', '--rows=2', '--length=128', '--width=16', '--num_layers=2', '--vocab_size=512']


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pretrain') / 'tiny'
  pretrain.main([f'--output={folder}', *TINY])
  return folder


def test_it_writes_a_checkpoint_that_transformers_loads(tiny):
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tiny)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
  assert theirs.config.model_type == 'qwen2' and theirs.config.tie_word_embeddings
  assert (
    theirs.generation_config.eos_token_id
    == tokenizer.eos_token_id
    == tokenizer.convert_tokens_to_ids('<|im_end|>')
  )
  assert theirs.generation_config.pad_token_id == tokenizer.pad_token_id
  assert '--steps=3' in (tiny / 'README.md').read_text()
  assert json.loads((tiny / 'config.json').read_text())['vocab_size'] == len(tokenizer)


def test_the_loss_is_that_of_each_conversation_alone(tiny):
  """Packed side by side and scored in one row, conversations must not see each other."""
  model = models.load(tiny)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tiny)
  batch = corpus.batch(tokenizer, seed=9, step=0, rows=2, length=256)
  total = 0.0
  for row in range(2):
    for segment in range(1, batch['segment_ids'][row].max() + 1):
      here = np.flatnonzero(batch['segment_ids'][row] == segment)
      tokens = torch.tensor(batch['tokens'][row, here])[None].long()
      logprobs = torch.log_softmax(theirs(tokens).logits[0].double(), -1)
      picked = logprobs[:-1].gather(1, tokens[0, 1:, None])[:, 0].detach().numpy()
      total -= (picked * batch['weights'][row, here[:-1]]).sum()
  ours = pretrain.loss(model.config, model.params, batch)
  np.testing.assert_allclose(ours, total / batch['weights'].sum(), rtol=1e-5)


@pytest.mark.slow
def test_training_learns():
  options = pretrain.Options(
    steps=12, rows=4, length=128, width=32, num_layers=2, learning_rate=1e-2, warmup=2
  )
  tokenizer = pretrain.tokenization.train(corpus.vocabulary_texts(), 1024)
  config, params = pretrain.train(options, tokenizer)
  fresh = models.init_params(config, jax.random.key(options.seed))
  batch = corpus.batch(tokenizer, seed=1, step=0, rows=8, length=128)
  before, after = pretrain.loss(config, fresh, batch), pretrain.loss(config, params, batch)
  assert after < before - 1.0


def test_an_existing_output_is_refused_before_any_work(tmp_path):
  (tmp_path / 'kept.txt').write_text('kept')
  with pytest.raises(InputError, match='exists already'):
    pretrain.main([f'--output={tmp_path}', *TINY])
  assert [path.name for path in tmp_path.iterdir()] == ['kept.txt']
