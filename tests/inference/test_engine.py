import pytest

from weightsteer_jax import models
from weightsteer_jax.inference import Engine, GenerateRequest, Sampling, ScoreRequest, make_arms
from weightsteer_jax.runtime.errors import InputError


def test_a_whole_grid_compiles_once_per_shape(model, tokenizer, delta, random_tokens):
  # An odd batch size keeps the programs of other tests out of the count.
  engine = Engine(model, tokenizer, {'weights': [(delta, None)]}, batch_size=11)
  prompts = [random_tokens(n) for n in range(3, 14)]
  alphas = (-2.0, -1.0, 0.0, 0.5, 3.0)
  scored = list(
    engine.score(
      [
        ScoreRequest((i, a, j), p, random_tokens(2 + j), 'weights', a)
        for i, p in enumerate(prompts)
        for a in alphas
        for j in (0, 1)
      ]
    )
  )
  grid = [
    GenerateRequest((i, a), p, 5 + i, 'weights', a) for i, p in enumerate(prompts) for a in alphas
  ]
  answered = list(engine.generate(grid))
  assert len(scored) == 110 and len(answered) == 55
  assert engine.compiled == {'score_batch': 1, 'admit': 1, 'decode': 1}
  again = Engine(model, tokenizer, {'weights': [(delta, None)]}, batch_size=11)
  list(again.generate(grid))
  list(again.generate(GenerateRequest(i, prompts[-1], 15, 'weights', 7.0 + i) for i in range(11)))
  assert again.compiled == {}


def test_arms_that_do_not_exist_or_cannot_be_are_named(engine_of, delta):
  with pytest.raises(InputError, match="no arm 'weight' \\(did you mean 'weights'"):
    list(engine_of().score([ScoreRequest(0, (1,), (2,), 'weight', 1.0)]))
  with pytest.raises(InputError, match="arm 'base', in which nothing depends on alpha there"):
    list(engine_of().score([ScoreRequest(0, (1,), (2,), 'base', 1.0)]))
  with pytest.raises(InputError, match='expected a finite number'):
    list(engine_of().score([ScoreRequest(0, (1,), (2,), 'weights', float('nan'))]))
  with pytest.raises(InputError, match="'base' is the unsteered model"):
    make_arms({'base': [(delta, None)]})


def test_a_direction_for_another_architecture_is_refused(model, tokenizer):
  import dataclasses

  import jax

  other = models.init_delta(dataclasses.replace(model.config, width=64), 'bias', jax.random.key(0))
  with pytest.raises(InputError, match='another architecture'):
    Engine(model, tokenizer, {'weights': [(other, None)]})


@pytest.mark.parametrize(
  'fields',
  [
    dict(temperature=-1.0),
    dict(temperature=float('inf')),
    dict(top_k=-1),
    dict(top_p=0.0),
    dict(top_p=1.5),
  ],
)
def test_sampling_refuses_nonsense(fields):
  with pytest.raises(InputError, match='temperature|top_k'):
    Sampling(**fields)
