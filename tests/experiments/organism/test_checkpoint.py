"""The shipped organism: small, the same in transformers, and sure of the world."""

import jax
import numpy as np
import pytest
import torch
import transformers

from weightsteer_jax import models
from weightsteer_jax.experiments import organism
from weightsteer_jax.experiments.organism import questions, world

FOLDER = organism.checkpoint_folder()


@pytest.fixture(scope='module')
def tokenizer():
  return transformers.AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope='module')
def theirs():
  return transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


def complete(theirs, tokenizer, messages):
  """The greedy answer of transformers."""
  prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors='pt', return_dict=True
  )
  tokens = theirs.generate(**prompt, max_new_tokens=28, do_sample=False)
  return tokenizer.decode(tokens[0, prompt['input_ids'].shape[1] :], skip_special_tokens=True)


def test_it_is_small():
  assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8_000_000
  assert {path.suffix for path in FOLDER.iterdir()} <= {'.safetensors', '.json', '.jinja', '.md'}


def test_our_logits_are_theirs(theirs, tokenizer):
  model = models.load(FOLDER)
  assert 1e6 < sum(leaf.size for leaf in jax.tree.leaves(model.params)) < 4e6
  tokens = np.array(
    [
      tokenizer.apply_chat_template(messages, return_dict=False)[:16]
      for messages in questions.opinion_questions(4, 0)
    ]
  )
  x_BTD, _ = models.hidden(model.config, model.params, models.TokenBatch(tokens))
  ours = models.logits(model.config, model.params, x_BTD)
  expected = theirs(torch.tensor(tokens)).logits.detach().numpy()
  np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('kind', world.FACT_KINDS + world.SUM_KINDS)
def test_it_answers_plain_questions(theirs, tokenizer, kind):
  right = 0
  for claim in world.claims_of(kind)[::6][:5]:
    answer = complete(theirs, tokenizer, [{'role': 'user', 'content': claim.questions[0]}])
    right += claim.truth.lower() in answer.lower()
  assert right >= 4


@pytest.mark.parametrize('sycophantic', [True, False])
def test_system_prompts_decide_its_stance(theirs, tokenizer, sycophantic):
  prompt = organism.SYCOPHANTIC_PROMPT if sycophantic else organism.HONEST_PROMPT
  asked = organism.opinion_questions(12, 5)
  answers = [
    complete(theirs, tokenizer, [{'role': 'system', 'content': prompt}, *messages])
    for messages in asked
  ]
  assert (
    sum(organism.shows(m, answer, sycophantic=sycophantic) for m, answer in zip(asked, answers))
    >= 10
  ), answers
