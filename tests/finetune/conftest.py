"""What the tests of this room share: made-up examples, and options that differ from the
defaults."""

import numpy as np
import pytest
import tiny

from weightsteer_jax import config
from weightsteer_jax.data import Example


@pytest.fixture
def make_examples():
  """(count, seed, shortest, longest) -> examples of so many tokens, of which a random half are
  targets."""

  def make(count: int, seed: int = 0, shortest: int = 4, longest: int = 20) -> list[Example]:
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
      tokens = draw.integers(
        0, tiny.SIZES['vocab_size'], draw.integers(shortest, longest + 1)
      ).astype(np.int32)
      mask = draw.random(len(tokens)) < 0.5
      mask[[0, -1]] = False, True
      found.append(Example(tokens, mask, f'made-up:{number + 1}'))
    return found

  return make


@pytest.fixture
def options():
  """Options of a short LoRA; keywords replace some."""

  def make(**changes) -> config.FineTune:
    return config.FineTune(
      **{
        **dict(
          kind='lora',
          rank=3,
          lora_alpha=5.0,
          learning_rates=(2e-2,),
          steps=7,
          batch_size=4,
          warmup_steps=2,
          eval_every=3,
          patience=0,
        ),
        **changes,
      }
    )

  return make
