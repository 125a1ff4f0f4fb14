"""Requests to a model, row by row, and their results."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from weightsteer_jax.runtime.errors import InputError

# Token ids of one text; a tuple, so that equal texts can be keys of a dict.
Tokens = tuple[int, ...]


def check_ids(name: str, tokens: Sequence[int], vocab_size: int) -> None:
  """Raises InputError if a token is beyond the model's vocabulary, and so has no embedding."""
  highest = max(tokens, default=0)
  if highest >= vocab_size:
    raise InputError(
      f"{name}: the tokenizer gives token {highest}, and the model's vocabulary ends at "
      f"{vocab_size - 1}: use the model's own tokenizer, or resize the model's embeddings to the "
      'tokenizer'
    )


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is chosen: the temperature, then the top k, then the top p of what is left.

  Attributes:
    temperature: 0 is greedy: the most likely token, the lowest id on a tie.
    top_k: the most likely tokens to choose among; 0 is all.
    top_p: the smallest set of most likely tokens that holds this probability.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    # NaN fails every comparison, so the condition is what must hold.
    # Devices divide by float32, and take what is below its least normal number for 0.
    held = 2.0**-126 <= self.temperature <= 3.4e38
    if self.temperature != 0 and not held:
      raise InputError(
        f'the temperature is {self.temperature}, expected 0 (greedy) or more, as float32 holds it: '
        '1.2e-38 to 3.4e38'
      )
    if not 0 <= self.top_k < 2**31 or not 0 < self.top_p <= 1:
      raise InputError(
        f'top_k is {self.top_k} (expected 0 to 2^31 - 1), top_p is {self.top_p} (expected above '
        '0, at most 1)'
      )

  @property
  def mode(self) -> str:
    """'greedy', 'sampled' or 'filtered': what a program must be able to do (see sampling.py)."""
    # The likeliest token is in every top k and top p.
    if self.temperature == 0:
      return 'greedy'
    if self.top_k or self.top_p < 1:
      return 'filtered'
    return 'sampled'


@dataclasses.dataclass(frozen=True)
class ScoreRequest:
  """How likely is `completion` after `prompt`, under `arm` at strength `alpha`?

  Attributes:
    key: names the request in the result.
    name: how errors cite the request; '' cites the key.
  """

  key: Hashable
  prompt: Tokens
  completion: Tokens
  arm: str = 'base'
  alpha: float = 0.0
  name: str = ''

  @property
  def cited(self) -> str:
    """How errors cite the request."""
    return self.name or str(self.key)


@dataclasses.dataclass(frozen=True)
class ScoreResult:
  """The log-likelihood of a completion.

  Attributes:
    key: key of the request.
    logprob: nats, summed over the completion's tokens; NaN or infinite where the model broke.
    tokens: number of tokens of the completion.
    is_greedy: whether every token of the completion is the most likely one in its place.
  """

  key: Any
  logprob: float
  tokens: int
  is_greedy: bool


@dataclasses.dataclass(frozen=True)
class GenerateRequest:
  """Continue `prompt` under `arm` at strength `alpha`.

  What is drawn depends on (seed, example, sample) and the step alone: not on the batch, the slot, a
  restart, the arm or alpha. So two alphas meet the same luck, and their difference is less noisy
  than two independent draws.

  Attributes:
    key: names the request in the result.
    max_new_tokens: length limit of the answer, tokens.
    sampling: how each token is chosen.
    seed, example, sample: what the row's draws depend on; `example` is a name.
    name: how errors cite the request; '' cites the key.
    until: tokens so far -> whether the answer is over, for instance because a stop text has
      appeared. Asked after every few tokens (generation.UNTIL_EVERY), so that the result may have
      some tokens too many.
  """

  key: Hashable
  prompt: Tokens
  max_new_tokens: int
  arm: str = 'base'
  alpha: float = 0.0
  sampling: Sampling = Sampling()
  seed: int = 0
  example: str = ''
  sample: int = 0
  name: str = ''
  until: Callable[[Tokens], bool] | None = None

  @property
  def cited(self) -> str:
    """How errors cite the request."""
    return self.name or str(self.key)


@dataclasses.dataclass(frozen=True)
class GenerateResult:
  """A continuation.

  Attributes:
    key: key of the request.
    tokens: the answer, without the stop token that ended it.
    finish: 'stop' (a stop token, or `until` was true), 'length' (max_new_tokens) or 'not_finite'
      (the model broke: logits with NaN or infinity).
  """

  key: Any
  tokens: Tokens
  finish: str
