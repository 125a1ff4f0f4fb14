"""Questions that begin alike: what is shared, and that each text scores as it does alone."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from weightsteer_jax import models
from weightsteer_jax.inference import AnswerOnly, Engine, ScoreRequest, packing, prefixes
from weightsteer_jax.inference.prefixes import Question

FAMILIES = ('llama3', 'gemma2', 'gemma3', 'mistral', 'phi3_short', 'mixtral')


def question(prompt, *completions, alpha=1.0, key=None):
  keys = tuple(((key, i),) for i in range(len(completions)))
  return Question(tuple(prompt), (alpha,), completions, keys, ((),) * len(completions))


def few_shot(draw, blocks=(24,), items=6, rest=5, completions=((1,) * 4, (3, 1))):
  """Requests behind few-shot blocks, nested: [((block, item, completion), prompt, completion)]."""

  def tokens(length):
    return tuple(draw.integers(0, 89, length).tolist())

  head, made = tokens(4), []
  for b, length in enumerate(blocks):
    block = head + tokens(length)
    for i in range(items):
      prompt = block + tokens(rest + i % 3)
      for c, n in enumerate(completions[i % len(completions)]):
        made.append(((b, i, c), prompt, tokens(n)))
  return made


@pytest.mark.parametrize('name', FAMILIES)
def test_every_text_behind_a_shared_prefix_gets_the_score_that_torch_gives_it_alone(tmp_path, name):
  """With windows shorter than the prefix, softcaps, experts and every rope."""
  found = tiny.make(tmp_path, **tiny.CASES[name])
  made = few_shot(np.random.default_rng(1), blocks=(20, 25))
  engine = Engine(found.model, None, {}, batch_size=8)
  requests = [ScoreRequest(key, prompt, completion) for key, prompt, completion in made]
  results = {result.key: result.logprob for result in engine.score(requests)}
  assert set(results) == {key for key, *_ in made}
  for key, prompt, completion in made:
    logits = found.torch_logits(np.array([prompt + completion[:-1]]))[0, len(prompt) - 1 :]
    logits = logits.astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = logprobs[np.arange(len(completion)), completion].sum()
    np.testing.assert_allclose(results[key], expected, rtol=1e-5, atol=1e-4, err_msg=f'{key}')


@pytest.mark.parametrize('kernel', ['reference', 'blocked'])
def test_scores_are_those_of_rows_that_share_nothing(monkeypatch, tmp_path, kernel):
  """At every alpha, and for a delta that leaves prompts alone."""
  found = tiny.make(tmp_path, **tiny.CASES['llama3'])
  config = dataclasses.replace(found.model.config, attention=kernel, max_positions=512)
  model = dataclasses.replace(found.model, config=config)
  draw = np.random.default_rng(2)
  delta = tiny_delta(found.model.params, draw)
  arms = {'weights': [(delta, None)], 'answers': [(AnswerOnly(delta), None)]}
  requests = []
  for key, prompt, completion in few_shot(draw, blocks=(150,), items=9):
    for arm, alpha in [('base', 0.0), ('weights', -1.0), ('weights', 1.0), ('answers', 1.0)]:
      requests.append(ScoreRequest((*key, arm, alpha), prompt, completion, arm, alpha))

  def scores():
    engine = Engine(model, None, arms)
    return {result.key: result.logprob for result in engine.score(requests)}

  together = scores()
  monkeypatch.setattr(packing, 'shared', list)
  alone = scores()
  assert set(together) == set(alone)
  for key, expected in alone.items():
    np.testing.assert_allclose(together[key], expected, rtol=0, atol=2e-5, err_msg=f'{key}')
  steered = [alone[key] for key in alone if key[-1] == 1.0 and key[-2] == 'weights']
  based = [alone[key] for key in alone if key[-2] == 'base']
  assert np.abs(np.subtract(steered, based)).max() > 1e-2, 'the delta changes something'


def tiny_delta(params, draw):
  def dense(x):
    return models.Dense((0.02 * draw.standard_normal(x.shape)).astype(np.float32))

  return {'layers': jax.tree.map(dense, params['layers'])}


def test_a_prefix_is_computed_once_and_paths_alike_are_one():
  """A prefix 0 to 9; two letters after 20 are one branch, one of two answers after 30 feeds 5."""
  head = tuple(range(10))
  asked = [question((*head, 20), (1,), (2,)), question((*head, 30, 31), (3,), (5, 6))]
  [joined] = prefixes.shared(asked)
  assert joined.prompt == head and joined.rests == ((20,), (20,), (30, 31), (30, 31))
  assert joined.tokens == 10 + 1 + 2 + 3 and joined.longest == 13


def test_neighbours_in_the_trie_share_their_own_longer_prefix():
  bos = (0,)
  first, second = (*bos, *range(100, 140)), (*bos, *range(200, 240))
  asked = [question((*block, i), (1,)) for i in range(5) for block in (first, second)]
  trunks = [one.prompt for one in prefixes.shared(asked)]
  assert trunks == [first, second], 'a common first token is not worth a longer row'
  assert prefixes.shared(asked[:1]) == asked[:1]


def test_other_coefficients_share_nothing():
  asked = [question((1, 2, 3, 4, i), (1,), alpha=alpha) for i in (5, 6) for alpha in (0.5, 1.0)]
  joined = prefixes.shared(asked)
  assert [one.coefficients for one in joined] == [(0.5,), (1.0,)]


def test_a_prompt_that_another_begins_with_keeps_its_last_token():
  [joined] = prefixes.shared([question(range(9), (1,)), question(range(12), (2,))])
  assert joined.prompt == tuple(range(8)) and joined.rests == ((8,), (8, 9, 10, 11))


def test_parts_are_even_and_hold_every_key_once():
  asked = [question((*range(50), 100 + i), (1,), (2, 3), key=i) for i in range(40)]
  [joined] = prefixes.shared(asked)
  parts = list(prefixes.split(joined, 100))
  assert all(part.tokens <= 100 for part in parts)
  assert max(part.tokens for part in parts) - min(part.tokens for part in parts[:-1]) <= 3
  keys = [key for part in parts for keys in part.keys for key in keys]
  assert sorted(keys) == [(i, c) for i in range(40) for c in range(2)]
