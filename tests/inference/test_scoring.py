import numpy as np
import pytest
import torch

from weightsteer_jax.inference import ScoreRequest
from weightsteer_jax.runtime.errors import InputError

# What a compiler could break: see tests/README.md.
pytestmark = pytest.mark.optimised


LENGTHS = [(1, 1), (2, 9), (17, 1), (40, 3), (33, 20), (5, 5), (90, 30), (60, 2)]


def by_key(results):
  return {result.key: result for result in results}


def requests_of(random_tokens, variants):
  made = []
  for i, (prompt, completion) in enumerate(LENGTHS):
    tokens = random_tokens(prompt), random_tokens(completion)
    made += [ScoreRequest((i, arm, alpha), *tokens, arm, alpha) for arm, alpha in variants]
  return made


def torch_scores(model, request):
  tokens = torch.tensor([request.prompt + request.completion])
  with torch.no_grad():
    logprobs = torch.log_softmax(model(tokens).logits[0, len(request.prompt) - 1 : -1].double(), -1)
  target = torch.tensor(request.completion)
  return logprobs[torch.arange(len(target)), target].sum().item(), bool(
    (logprobs.argmax(-1) == target).all()
  )


def test_scores_of_every_arm_and_alpha_in_one_batch_are_those_of_merged_weights_in_torch(
  engine_of, torch_model, random_tokens
):
  variants = [('base', 0.0), ('weights', -1.0), ('weights', 0.5), ('other', 2.0), ('both', 0.25)]
  requests = requests_of(random_tokens, variants)
  results = by_key(engine_of().score(requests))
  assert set(results) == {request.key for request in requests}
  for request in requests:
    expected, _ = torch_scores(torch_model(request.arm, request.alpha), request)
    assert results[request.key].tokens == len(request.completion)
    np.testing.assert_allclose(results[request.key].logprob, expected, rtol=1e-5, atol=1e-4)


def test_the_most_likely_completion_is_greedy_and_others_are_not(
  engine_of, torch_model, random_tokens
):
  prompt = random_tokens(12)
  with torch.no_grad():
    tokens = torch.tensor([prompt])
    out = torch_model().generate(
      tokens,
      attention_mask=torch.ones_like(tokens),
      max_new_tokens=6,
      do_sample=False,
      eos_token_id=None,
      pad_token_id=0,
    )
  best = tuple(out[0, len(prompt) :].tolist())
  wrong = best[:-1] + ((best[-1] + 1) % 300,)
  results = by_key(
    engine_of().score([ScoreRequest('best', prompt, best), ScoreRequest('wrong', prompt, wrong)])
  )
  assert results['best'].is_greedy and not results['wrong'].is_greedy


def test_scores_do_not_depend_on_what_else_is_in_the_batch(engine_of, random_tokens):
  requests = requests_of(random_tokens, [('base', 0.0), ('weights', 1.0), ('other', -0.5)])
  together = by_key(engine_of(16).score(requests))
  for request in (requests[3], requests[13]):
    [alone] = engine_of(1).score([request])
    np.testing.assert_allclose(
      alone.logprob, together[request.key].logprob, rtol=0, atol=1e-5 * len(request.completion)
    )


def test_choices_of_one_prompt_share_its_computation_and_each_gets_its_own_score(
  engine_of, torch_model, random_tokens
):
  prompt = random_tokens(30)
  requests = [
    ScoreRequest(i, prompt, random_tokens(n), 'weights', 0.5) for i, n in enumerate((3, 1, 7, 7, 2))
  ]
  engine = engine_of(4)
  results = by_key(engine.score(requests))
  for request in requests:
    np.testing.assert_allclose(
      results[request.key].logprob,
      torch_scores(torch_model('weights', 0.5), request)[0],
      rtol=1e-5,
      atol=1e-4,
    )


def test_the_base_is_computed_once_for_all_arms_and_bit_for_bit_unsteered(
  engine_of, model, tokenizer, random_tokens
):
  from weightsteer_jax.inference import Engine, packing

  request = [
    ScoreRequest(arm, random_tokens(9), random_tokens(4), arm, 0.0)
    for arm in ('base', 'weights', 'other')
  ]
  request = [
    ScoreRequest(r.key, request[0].prompt, request[0].completion, r.arm, 0.0) for r in request
  ]
  engine = engine_of(8)
  assert len(packing.questions(request, engine.arms, engine.config)) == 1
  scores = {result.logprob for result in engine.score(request)}
  bare = Engine(model, tokenizer, {}, batch_size=8)
  assert scores == {
    result.logprob
    for result in bare.score([ScoreRequest(0, request[0].prompt, request[0].completion)])
  }


@pytest.mark.parametrize(
  'prompt, completion, message',
  [
    ((), (1,), 'the prompt has no tokens'),
    ((1,), (), 'the completion has no tokens'),
    ((1,) * 100, (2,) * 40, '139 positions, the model has 128'),
  ],
)
def test_what_cannot_be_scored_is_named(engine_of, prompt, completion, message):
  with pytest.raises(InputError, match=f'row 7: .*{message}'):
    list(engine_of().score([ScoreRequest('row 7', prompt, completion)]))


def test_the_longest_sequence_the_model_has_positions_for_is_scored(
  engine_of, torch_model, random_tokens
):
  request = ScoreRequest(0, random_tokens(70), random_tokens(59))
  [result] = engine_of().score([request])
  np.testing.assert_allclose(
    result.logprob, torch_scores(torch_model(), request)[0], rtol=1e-5, atol=1e-4
  )
