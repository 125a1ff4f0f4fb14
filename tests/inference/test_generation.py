import dataclasses

import numpy as np
import pytest
import tiny
import torch

from weightsteer_jax import models
from weightsteer_jax.inference import Engine, GenerateRequest, Sampling, generation
from weightsteer_jax.runtime.errors import InputError

# What a compiler could break: see tests/README.md.
pytestmark = pytest.mark.optimised


PROMPTS = (1, 3, 40, 17, 16, 5, 33, 2, 60, 9, 21)
WARM = Sampling(temperature=1.0)


def by_key(results):
  return {result.key: result for result in results}


def torch_continuation(model, prompt, new, stops):
  with torch.no_grad():
    tokens = torch.tensor([prompt])
    # Without a mask, transformers takes a token 0 in the prompt for padding.
    out = model.generate(
      tokens,
      attention_mask=torch.ones_like(tokens),
      max_new_tokens=new,
      do_sample=False,
      eos_token_id=list(stops) or None,
      pad_token_id=0,
    )
  tokens = tuple(out[0, len(prompt) :].tolist())
  return (tokens[:-1], 'stop') if tokens[-1] in stops else (tokens, 'length')


@pytest.fixture
def requests(random_tokens):
  """Greedy requests of mixed prompts, limits, arms and alphas: more than there are slots."""
  variants = [('base', 0.0), ('weights', 0.5), ('other', -1.0), ('both', 1.0)]
  return [
    GenerateRequest((i, arm), random_tokens(length), 3 + 5 * (i % 4), arm, alpha, example=str(i))
    for i, length in enumerate(PROMPTS)
    for arm, alpha in variants
  ]


@pytest.mark.parametrize('apart', [False, True], ids=['scanned', 'taken apart'])
def test_greedy_tokens_are_those_of_merged_weights_in_torch(
  engine_of, torch_model, requests, apart, monkeypatch
):
  monkeypatch.setattr(generation, 'takes_apart', lambda *_: apart)  # As on a GPU, or not.
  stops = range(200, 240)
  results = by_key(engine_of(8, stops).generate(requests))
  assert set(results) == {request.key for request in requests}
  for request in requests:
    expected = torch_continuation(
      torch_model(request.arm, request.alpha), request.prompt, request.max_new_tokens, stops
    )
    assert (results[request.key].tokens, results[request.key].finish) == expected, request.key
  finishes = [result.finish for result in results.values()]
  assert finishes.count('stop') >= 5 and finishes.count('length') >= 5


@pytest.mark.parametrize('sampling', [WARM, Sampling(0.7, top_k=20, top_p=0.9)])
def test_sampled_tokens_do_not_depend_on_batch_slot_or_order(engine_of, requests, sampling):
  requests = [dataclasses.replace(request, sampling=sampling, seed=3) for request in requests]
  expected = by_key(engine_of(16, range(200, 220)).generate(requests))
  shuffled = [requests[i] for i in np.random.default_rng(0).permutation(len(requests))]
  assert by_key(engine_of(3, range(200, 220)).generate(shuffled)) == expected


def test_seed_example_and_sample_each_change_what_is_drawn(engine_of, random_tokens):
  base = GenerateRequest(0, random_tokens(6), 12, sampling=WARM, seed=1, example='a', sample=0)
  requests = [
    base,
    *(
      dataclasses.replace(base, key=i + 1, **change)
      for i, change in enumerate([dict(seed=2), dict(example='b'), dict(sample=1)])
    ),
  ]
  assert len({result.tokens for result in engine_of().generate(requests)}) == 4


def test_draws_follow_the_softmax(engine_of, torch_model, random_tokens):
  prompt, n = random_tokens(6), 3000
  requests = [
    GenerateRequest(i, prompt, 1, sampling=Sampling(2.0), example='x', sample=i) for i in range(n)
  ]
  drawn = np.bincount(
    [result.tokens[0] for result in engine_of(128).generate(requests)], minlength=303
  )
  with torch.no_grad():
    expected = (
      n
      * torch.softmax(
        torch_model()(torch.tensor([prompt])).logits[0, -1].double() / 2.0, -1
      ).numpy()
    )
  # Chi-square over the cells that expect 5 or more and one for the rest; its mean is k - 1 and its
  # deviation sqrt(2 (k
  # - 1)).
  large = expected >= 5
  cells = [(drawn[large], expected[large]), ([drawn[~large].sum()], [expected[~large].sum()])]
  chi = sum(np.sum((np.asarray(d) - e) ** 2 / e) for d, e in cells)
  freedom = large.sum()
  assert freedom > 10 and abs(chi - freedom) < 4 * np.sqrt(2 * freedom)


def test_alpha_per_row_equals_alpha_per_batch(engine_of, requests):
  mixed = by_key(engine_of(8).generate(requests))
  for arm in ('base', 'weights', 'other', 'both'):
    members = [request for request in requests if request.arm == arm]
    assert by_key(engine_of(8).generate(members)) == {
      request.key: mixed[request.key] for request in members
    }


def test_teacher_forced_logits_make_the_same_choices(engine_of, model, delta, requests):
  members = [request for request in requests if request.arm == 'weights']
  results = by_key(engine_of(8).generate(members))
  edits = (models.Edit(delta, np.full(len(members), 0.5, np.float32)),)
  tokens = np.zeros((len(members), 96), np.int32)
  for row, request in enumerate(members):
    whole = request.prompt + results[request.key].tokens
    tokens[row, : len(whole)] = whole
  x, _ = models.hidden(model.config, model.params, models.TokenBatch(tokens), edits=edits)
  best = np.argmax(models.logits(model.config, model.params, x, edits=edits), -1)
  for row, request in enumerate(members):
    start, answer = len(request.prompt) - 1, results[request.key].tokens
    assert tuple(best[row, start : start + len(answer)].tolist()) == answer


def test_equal_rows_are_computed_once(engine_of, random_tokens):
  from weightsteer_jax.inference import generation

  prompt, engine = random_tokens(5), engine_of()
  greedy = [
    GenerateRequest((arm, i), prompt, 4, arm, 0.0, sample=i)
    for arm in ('base', 'weights')
    for i in range(3)
  ]
  assert (
    len(generation.continuations(greedy, engine.arms, engine.config)) == 1
    and len(list(engine.generate(greedy))) == 6
  )
  drawn = [dataclasses.replace(request, sampling=WARM) for request in greedy]
  assert len(generation.continuations(drawn, engine.arms, engine.config)) == 3


def test_a_prompt_is_read_as_the_beginning_of_all_that_it_grows_to(
  tokenizer, random_tokens, tmp_path
):
  """With longrope, whose factors go by the length: 12 tokens are within the original context of 30,
  with the answer 40 are not. transformers, given all of them at once, says the same of each."""
  fields = tiny.CASES['phi3_short'] | dict(
    vocab_size=len(tokenizer), original_max_position_embeddings=30
  )
  case = tiny.make(tmp_path, **fields)
  prompt, new = random_tokens(12), 28
  (result,) = Engine(case.model, tokenizer, {}, batch_size=2).generate(
    [GenerateRequest(0, prompt, new)]
  )
  assert len(result.tokens) == new
  logits = case.torch_logits([[*prompt, *result.tokens]])[0]
  assert tuple(logits[len(prompt) - 1 : -1].argmax(axis=-1).tolist()) == result.tokens


def test_the_model_breaking_is_said(model, tokenizer, random_tokens):
  import jax

  huge = jax.tree.map(
    lambda x: x + 1e30, models.init_delta(model.config, 'lora', jax.random.key(0), rank=1)
  )
  engine = Engine(model, tokenizer, {'weights': [(huge, None)]}, batch_size=4)
  prompts = random_tokens(4), random_tokens(7)
  results = by_key(
    engine.generate(
      [
        GenerateRequest((i, a), p, 3, 'weights', a)
        for i, p in enumerate(prompts)
        for a in (0.0, 1e30)
      ]
    )
  )
  assert [results[i, a].finish for i in range(2) for a in (0.0, 1e30)] == [
    'length',
    'not_finite',
  ] * 2


@pytest.mark.parametrize(
  'prompt, new, message',
  [((), 3, 'a prompt of 0 tokens'), ((1,), 0, '0 to generate'), ((1,) * 100, 30, '129 positions')],
)
def test_what_cannot_be_generated_is_named(engine_of, prompt, new, message):
  with pytest.raises(InputError, match=f'row 7: .*{message}'):
    list(engine_of().generate([GenerateRequest('row 7', prompt, new)]))


def test_a_row_whose_request_says_that_it_is_over_makes_room_and_changes_no_other(
  engine_of, random_tokens
):
  plain = [
    GenerateRequest(
      (i, alpha), random_tokens(5 + 4 * i), 50, 'weights', alpha, sampling, example=str(i)
    )
    for i, sampling in enumerate([Sampling(), Sampling(), WARM, WARM, WARM])
    for alpha in (0.0, 0.5)
  ]
  expected = by_key(engine_of(4).generate(plain))
  looked = []

  def over(key):
    return lambda tokens: looked.append(key) or len(tokens) >= 16 * (1 + key[0])

  asked = [
    dataclasses.replace(request, until=over(request.key)) for request in plain if request.key[0] < 4
  ]
  found = by_key(engine_of(4).generate(asked + plain[-2:]))
  assert {key: result.tokens for key, result in found.items()} == {
    key: result.tokens[: 16 * (1 + key[0])] if key[0] < 3 else result.tokens
    for key, result in expected.items()
  }
  assert all(result.finish == ('stop' if key[0] < 3 else 'length') for key, result in found.items())
  assert all(
    looked.count(key) == [1, 2, 3, 4, 0][key[0]] for key in found
  )  # After 16, 32, 48 and 50 tokens.
