"""Costs against torch, searches on functions that are known, and a calibration end to end."""

import json
import math

import jax
import numpy as np
import pytest
import torch
import transformers

from weightsteer_jax import directions, models
from weightsteer_jax.config import ModelChoice
from weightsteer_jax.experiments import calibration, organism
from weightsteer_jax.experiments.calibration import measures, search
from weightsteer_jax.inference import Engine
from weightsteer_jax.inference.divergence import Places, Text, Texts
from weightsteer_jax.inference.programs import traces
from weightsteer_jax.runtime.errors import InputError


@pytest.fixture(scope='module')
def model():
  return models.load(organism.checkpoint_folder())


@pytest.fixture(scope='module')
def direction(model):
  delta = models.init_delta(model.config, 'lora', jax.random.key(0), rank=2)
  draw = np.random.default_rng(0)
  delta = jax.tree.map(
    lambda leaf: (0.05 * draw.standard_normal(leaf.shape)).astype(np.float32), delta
  )
  meta = {'kind': 'random', 'base': directions.base_of(model).to_json(), 'sources': []}
  return directions.Direction(delta, meta)


def test_divergences_are_those_of_torch_in_float64(model, direction, tmp_path):
  engine = Engine(model, None, {'w': [(direction.delta, None)]}, batch_size=1)
  draw = np.random.default_rng(1)
  texts = []
  for number, length in enumerate((5, 40, 17, 2, 33)):
    tokens = tuple(draw.integers(0, 500, length).tolist())
    counts = tuple((draw.random(length - 1) < 0.7).tolist())
    texts.append(Text(str(number), tokens, counts))
  merged = models.merge(model.config, model.params, direction.delta, 0.5)
  models.save(tmp_path / 'merged', model.config, merged, family='qwen2', like=model.folder)
  in_torch = [
    transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    for folder in (model.folder, tmp_path / 'merged')
  ]
  found = Texts(engine, texts).measure([0.5])
  expected = []
  for number, text in enumerate(texts):
    with torch.no_grad():
      logits = [one(torch.tensor([text.tokens])).logits[0, :-1].double() for one in in_torch]
    base, steered = (torch.log_softmax(one, -1) for one in logits)
    divergence = (base.exp() * (base - steered)).sum(-1)
    for place, counts in enumerate(text.counts):
      if counts:
        token = text.tokens[place + 1]
        lost = (base - steered)[place, token]
        expected.append((number, divergence[place].item(), lost.item()))
  numbers, divergences, lost = zip(*expected)
  assert found.texts.tolist() == list(numbers)
  np.testing.assert_allclose(found.divergence, divergences, atol=1e-4)
  np.testing.assert_allclose(found.lost, lost, atol=1e-4)
  # At 0 nothing is spent, and another strength compiles nothing.
  texts_on_device = Texts(engine, texts)
  before = dict(traces)
  assert np.abs(texts_on_device.measure([0.0]).divergence).max() < 1e-6
  assert dict(traces) == before


def test_what_is_spent_in_one_number():
  texts = np.repeat(np.arange(10), 4)
  divergence = np.arange(40.0)
  places = Places(texts, divergence, np.full(40, 0.1))
  mean, error = measures.kl(places)
  by_text = divergence.reshape(10, 4).mean(1)
  assert mean == divergence.mean()
  assert error == pytest.approx(by_text.std(ddof=1) / math.sqrt(10))
  assert measures.worst(places)[0] == np.mean([38.0, 39.0])
  assert measures.perplexity(places)[0] == pytest.approx(math.exp(0.1) - 1)
  broken = Places(texts, np.full(40, np.nan), np.full(40, np.inf))
  assert measures.kl(broken)[0] == measures.perplexity(broken)[0] == math.inf


FUNCTIONS = {
  'square': lambda alpha: 0.03 * alpha**2,
  'steep': lambda alpha: 1e-3 * (math.exp(alpha) - 1),
  'saturates': lambda alpha: 5 * (1 - math.exp(-0.02 * alpha**2)),
  'breaks': lambda alpha: 0.2 * alpha**2 if alpha < 3 else math.inf,
  'a cliff': lambda alpha: 0.01 * alpha if alpha < 2 else 4 + alpha,
  'levels off': lambda alpha: min(alpha, 0.9) if alpha < 8 else 0.9 + (alpha - 8),
  'flat at first': lambda alpha: max(0.0, alpha - 1) ** 4,
}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_a_budget_is_met_in_few_evaluations(name):
  function = FUNCTIONS[name]
  known = {}
  asked = []

  def cost(alpha):
    asked.append(alpha)
    return function(alpha), None

  for budget in (0.1, 0.3, 1.0):
    found = search.find(cost, budget, known)
    assert found.evaluations <= search.MOST
    # Across the cliff no strength spends the budget: the bracket closes on it.
    if name == 'a cliff':
      assert not found.is_met
      continue
    assert found.is_met and found.cost == function(found.alpha)
    assert abs(found.cost - budget) <= 0.01 * budget
  assert len(asked) == len(set(asked)) <= 3 * search.MOST
  if name in ('square', 'saturates'):
    assert len(asked) < 15


def test_a_budget_beyond_reach_is_told_with_the_nearest():
  found = search.find(lambda alpha: (min(alpha, 2.0), None), 5.0, {})
  assert not found.is_met and found.cost == 2.0 and found.evaluations < search.MOST


def test_a_calibration_end_to_end(model, direction, tmp_path):
  directions.save(tmp_path / 'w', direction, sync=False)
  folders = {'one': tmp_path / 'w', 'half': tmp_path / 'half'}
  directions.save(folders['half'], directions.scale(direction, 0.5), sync=False)
  options = calibration.Options('organism:facts', num_texts=20, budgets=(0.3, 0.1))
  choice = ModelChoice('organism')
  summary = calibration.calibrate(choice, folders, tmp_path / 'out', options)
  rows = summary['rows']
  assert [row['budget'] for row in rows] == [0.1, 0.3] * 4 and all(row['met'] for row in rows)
  of = {(row['direction'], row['budget'], row['alpha'] > 0): row['alpha'] for row in rows}
  # Half a direction needs twice the strength.
  for (name, budget, side), alpha in of.items():
    if name == 'one':
      assert of['half', budget, side] == pytest.approx(2 * alpha, rel=0.02)
  lines = [
    json.loads(line) for line in (tmp_path / 'out' / 'calibration.jsonl').read_text().splitlines()
  ]
  assert lines == rows and (tmp_path / 'out' / 'index.html').read_text().count('one</th>') > 4
  assert any('one' in line and '0.1' in line for line in calibration.table(rows))
  with pytest.raises(InputError, match='exists already'):
    calibration.calibrate(choice, folders, tmp_path / 'out', options)


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(measure='kll'), "the measure is 'kll' .did you mean 'kl'"),
    (dict(budgets=(0.0,)), 'expected numbers above 0'),
    (dict(num_texts=1), 'expected 2 or more'),
    (dict(texts='organism:fact'), "did you mean 'facts'"),
  ],
)
def test_mistakes(tmp_path, direction, changes, message):
  directions.save(tmp_path / 'w', direction, sync=False)
  options = calibration.Options(**{'texts': 'organism:facts', **changes})
  with pytest.raises(InputError, match=message):
    calibration.calibrate(ModelChoice('organism'), {'w': tmp_path / 'w'}, tmp_path / 'out', options)
  assert not (tmp_path / 'out').exists()
