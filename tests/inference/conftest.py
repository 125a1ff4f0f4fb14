"""A tiny random model that torch can run too, a direction for it, and a tokenizer with a chat
template."""

import jax
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as token_models

from weightsteer_jax import models
from weightsteer_jax.inference import Engine

CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% "
  "endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = [
  'user assistant system',
  'What is the capital of France? I think it is Paris.',
  'Yes, you are right.',
  'No, that is wrong.',
  'one two 3 4',
]


def make_tokenizer():
  tokenizer = Tokenizer(token_models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
  )
  tokenizer.train_from_iterator(TEXT * 4, trainer)
  tokenizer.add_special_tokens(['<|endoftext|>', '<|im_start|>', '<|im_end|>'])
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    chat_template=CHATML,
    bos_token='<|endoftext|>',
    eos_token='<|im_end|>',
  )


@pytest.fixture(scope='session')
def tokenizer():
  return make_tokenizer()


@pytest.fixture(scope='session')
def spaced_tokenizer(tokenizer):
  """kind -> a tokenizer whose words begin with their blank, in the manner of sentencepiece.

  'prepended' is a normalizer's as in Llama 2, 'unigram' one of T5's kind, and 'first' as Llama 2's
  non-legacy form. A vocabulary is that of the model at most.
  """

  def make(kind):
    core = Tokenizer(token_models.BPE(unk_token='<unk>'))
    options = dict(
      vocab_size=len(tokenizer), special_tokens=['<unk>', '<s>', '</s>'], show_progress=False
    )
    trainer = trainers.BpeTrainer(**options)
    if kind == 'prepended':
      core.normalizer = normalizers.Sequence(
        [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
      )
      core.pre_tokenizer = pre_tokenizers.Split('▁', 'merged_with_next')
    elif kind == 'unigram':
      core = Tokenizer(token_models.Unigram())
      trainer = trainers.UnigramTrainer(unk_token='<unk>', **options)
      core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='always')
    else:
      core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first')
    core.train_from_iterator(TEXT * 4, trainer)
    return transformers.PreTrainedTokenizerFast(
      tokenizer_object=core, bos_token='<s>', eos_token='</s>', unk_token='<unk>'
    )

  return make


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory, tokenizer):
  """A checkpoint folder, its weights large enough to make every token matter."""
  torch.manual_seed(0)
  config = transformers.Qwen2Config(
    vocab_size=len(tokenizer),
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    tie_word_embeddings=True,
    initializer_range=0.3,
  )
  folder = tmp_path_factory.mktemp('checkpoint')
  transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
  tokenizer.save_pretrained(folder)
  return folder


@pytest.fixture(scope='session')
def model(checkpoint):
  return models.load(checkpoint)


def random_delta(config, seed, size=0.2):
  """A delta of every kind of leaf, all of it different from zero."""
  delta = models.init_delta(config, 'lora_embeddings', jax.random.key(seed), rank=3)
  leaves, structure = jax.tree.flatten(delta)
  keys = jax.random.split(jax.random.key(seed + 100), len(leaves))
  return jax.tree.unflatten(
    structure, [size * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
  )


@pytest.fixture(scope='session')
def delta(model):
  return random_delta(model.config, 1)


@pytest.fixture(scope='session')
def other_delta(model):
  return random_delta(model.config, 2)


@pytest.fixture(scope='session')
def engine_of(model, tokenizer, delta, other_delta):
  """batch_size, stop_ids -> an engine with the arms 'weights', 'other' and 'both' ('other' fixed at
  1 beside the steered 'weights')."""
  arms = {
    'weights': [(delta, None)],
    'other': [(other_delta, None)],
    'both': [(other_delta, 1.0), (delta, None)],
  }
  return lambda batch_size=8, stop_ids=(): Engine(
    model, tokenizer, arms, batch_size=batch_size, stop_ids=stop_ids
  )


@pytest.fixture(scope='session')
def torch_model(model, checkpoint, delta, other_delta, tmp_path_factory):
  """arm, alpha -> the model in torch, the arm merged into its weights."""
  made = {}

  def make(arm='base', alpha=0.0):
    if (arm, alpha) not in made:
      params = model.params
      for part, strength in {
        'base': [],
        'weights': [(delta, alpha)],
        'other': [(other_delta, alpha)],
        'both': [(other_delta, 1.0), (delta, alpha)],
      }[arm]:
        params = models.merge(model.config, params, part, strength)
      folder = tmp_path_factory.mktemp('merged') / 'model'
      models.save(folder, model.config, params, family='qwen2', like=checkpoint)
      made[arm, alpha] = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
      ).eval()
    return made[arm, alpha]

  return make


@pytest.fixture
def random_tokens(model):
  draw = np.random.default_rng(7)
  return lambda length: tuple(draw.integers(0, model.config.vocab_size, length).tolist())
