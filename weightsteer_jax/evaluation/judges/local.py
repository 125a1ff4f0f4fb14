"""A judge that is a checkpoint, run by our own engine.

Nothing is drawn: the judge's score is the expectation over everything it may answer on the
purpose's scale, each answer with the probability of its whole text.

  P(85) = p('85', <end of turn> | the judge's prompt)

The probability is that of all tokens of the number as the tokenizer writes it, '85' or '8' '5', and
of the token that ends the answer. With the end, 8 is not taken for the beginning of 85, nor 10 for
that of 100, however the tokenizer cuts numbers; without it, a tokenizer that writes one digit at a
time would count the first digit of 85 as an 8. What the judge would say beside a bare number (a
sentence, '85.') is not among the answers, and lowers their total: under the floor, the judgement is
'unparsable'. YES or NO goes the same way, over their spellings; the score is then P(yes) / (P(yes)
+ P(no)), which is the sigmoid of the log-odds that the judgement's text gives.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import chat
from weightsteer_jax.evaluation.judges import expectation, purposes
from weightsteer_jax.evaluation.judges.requests import Judgement, JudgeRequest
from weightsteer_jax.inference.engine import Engine
from weightsteer_jax.inference.requests import ScoreRequest, Tokens
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import NotFiniteError

TOGETHER = 128  # requests that are tokenised and scored in one go


class LocalModel:
  """A judge with the probabilities of a model.

  Args:
    name: the judge's, in judgements.
    options: of the config.
    engine: makes the engine that holds the model. An engine is asked for when the first request
      comes, and let go with the last, so that several local judges need not fit in memory at once.
  """

  def __init__(self, name: str, options: config.ModelJudge, *, engine: Callable[[], Engine]):
    self.name, self._options, self._make = name, options, engine
    self._digest = ''
    self._judged = 0

  def check(self, names: Iterable[str]) -> None:
    """Nothing, if these are purposes."""
    for name in names:
      purposes.purpose_of(name)

  def inputs(self) -> dict[str, Any]:
    """Its weights, and the floor."""
    self._digest = self._digest or tree.digest(self._make().params)
    return {'kind': 'model', 'model': self._digest, 'floor': self._options.floor}

  def judge(self, requests: Iterable[JudgeRequest]) -> Iterator[Judgement]:
    """The judgements, the shortest of each batch of requests first.

    Raises:
      InputError: a request that cannot be put into words. NotFiniteError: the judge itself is
        broken.
    """
    engine = None
    for batch in _batched(requests, TOGETHER):
      engine = engine or self._make()
      yield from self._judge_batch(engine, batch)

  def summary(self) -> str:
    """How many requests it scored."""
    return f'{self._judged} requests scored'

  def _judge_batch(self, engine: Engine, batch: Sequence[JudgeRequest]) -> Iterator[Judgement]:
    scored, limit, answers, left = [], engine.config.max_positions, [], {}
    for index, request in enumerate(batch):
      prompt, completions = self._tokens(engine.tokenizer, request)
      longest = len(prompt) + max(map(len, completions)) - 1
      if longest > limit:
        yield Judgement(
          request.key,
          request.purpose,
          None,
          'failed',
          f'the prompt takes {longest} positions, the judge has {limit}',
        )
      scored += (
        []
        if longest > limit
        else [
          ScoreRequest((index, tokens), prompt, tokens, name=str(request.key))
          for tokens in completions
        ]
      )
      answers.append(completions)
      left[index] = dict.fromkeys(completions)
    for result in engine.score(scored):
      index, tokens = result.key
      left[index][tokens] = result.logprob
      if None not in left[index].values():
        yield self._judgement(batch[index], answers[index], left.pop(index))

  def _tokens(self, tokenizer: Any, request: JudgeRequest) -> tuple[Tokens, dict[Tokens, str]]:
    """(the prompt, {an answer's tokens: its text}); spellings that the tokenizer does not tell
    apart are one.
    """
    messages = purposes.messages(request)
    name = str(request.key)
    texts = purposes.PURPOSES[request.purpose].scale.values
    found = {
      tuple(chat.completion_tokens(tokenizer, messages, text, name=name)): text for text in texts
    }
    return tuple(chat.prompt_tokens(tokenizer, messages, name=name)), found

  def _judgement(
    self, request: JudgeRequest, texts: dict[Tokens, str], logprobs: dict[Tokens, float]
  ) -> Judgement:
    if not all(math.isfinite(value) for value in logprobs.values()):
      raise NotFiniteError(
        f"judge '{self.name}': the log-likelihoods of its answers to {request.key} are not finite: "
        'that model is broken'
      )
    scale = purposes.PURPOSES[request.purpose].scale
    score, total = expectation.expectation(
      {text: math.exp(logprobs[tokens]) for tokens, text in texts.items()},
      scale,
      self._options.floor,
    )
    self._judged += 1
    odds = (
      '' if scale.is_number else f', log-odds of YES {_log_odds(texts, logprobs, scale):.3f} nats'
    )
    said = f'all answers on the scale: p {total:.3g}{odds}'
    return Judgement(
      request.key, request.purpose, score, 'unparsable' if score is None else 'ok', said
    )


def _log_odds(
  texts: dict[Tokens, str], logprobs: dict[Tokens, float], scale: purposes.Scale
) -> float:
  """log P(yes) - log P(no), each over its spellings; the sums are taken in logarithms, where small
  ones are not zero.
  """
  sides = [
    [logprobs[tokens] for tokens, text in texts.items() if scale.values[text] == value]
    for value in (1.0, 0.0)
  ]
  yes, no = (
    max(side) + math.log(math.fsum(math.exp(x - max(side)) for x in side)) for side in sides
  )
  return yes - no


def _batched(requests: Iterable[JudgeRequest], size: int) -> Iterator[tuple[JudgeRequest, ...]]:
  waiting = iter(requests)
  while batch := tuple(itertools.islice(waiting, size)):
    yield batch
