"""A judge that is a checkpoint, run by our own engine.

Nothing is drawn: the score is the expectation over all answers on the purpose's scale, each with
the probability of the whole text.

  P(85) = p('85', <end of turn> | the judge's prompt)

The probability covers all tokens of the number as the tokenizer writes the number, '85' or '8' '5',
and the token that ends the answer. With the end token, 8 is not taken for the beginning of 85, nor
10 for the beginning of 100, however the tokenizer cuts numbers. Without the end token, a tokenizer
of single digits would count the first digit of 85 as an 8. Anything but a bare number (a sentence,
'85.') is not among the answers, and lowers the answers' total: under the floor, the judgement is
'unparsable'. YES or NO goes the same way, over the spellings of each; the score is then
P(yes) / (P(yes) + P(no)), the sigmoid of the log-odds in the judgement's text.
"""

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import chat
from weightsteer_jax.evaluation.judges import expectation, purposes
from weightsteer_jax.evaluation.judges.requests import Judgement, JudgeRequest
from weightsteer_jax.inference.engine import Engine
from weightsteer_jax.inference.requests import ScoreRequest, Tokens
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import NotFiniteError

# Requests that are tokenised and scored in one go: enough to fill the engine's batches, few enough
# that the first judgements come soon and that a stopped run loses little.
TOGETHER = 128


class LocalModel:
  """A judge with the probabilities of a model.

  Args:
    name: the judge's name, in judgements.
    options: the judge's section of the config.
    engine: makes the engine that holds the model; called for the digest of the weights, and when
      the first request comes.
  """

  def __init__(self, name: str, options: config.ModelJudge, *, engine: Callable[[], Engine]):
    self.name = name
    self._options = options
    # An engine is made when needed and let go afterwards: several local judges need not fit in
    # memory at once, and a check of names loads no checkpoint.
    self._make_engine = engine
    self._digest = ''
    self._judged = 0

  def check(self, names: Iterable[str]) -> None:
    """Raises InputError if a purpose is unknown; a model can judge for every purpose."""
    for name in names:
      purposes.purpose_of(name)

  def inputs(self) -> dict[str, Any]:
    """The hash of the model's weights, the floor, and what its chat template is told."""
    if not self._digest:
      self._digest = tree.digest(self._make_engine().params)
    inputs = {'kind': 'model', 'model': self._digest, 'floor': self._options.floor}
    # Only where there are some, so that earlier judgements keep their inputs.
    if self._options.chat_template_args:
      inputs['chat_template_args'] = dict(self._options.chat_template_args)
    return inputs

  def judge(self, requests: Iterable[JudgeRequest]) -> Generator[Judgement, None, None]:
    """The judgements, the shortest requests of each batch first.

    Raises:
      InputError: if a request cannot be put into words.
      NotFiniteError: if the judge's model is broken.
    """
    waiting = iter(requests)
    engine = None
    while batch := tuple(itertools.islice(waiting, TOGETHER)):
      if engine is None:
        engine = self._make_engine()
      yield from self._judge_batch(engine, batch)

  def summary(self) -> str:
    """The number of scored requests, in words."""
    return f'{self._judged} requests scored'

  def _judge_batch(self, engine: Engine, batch: Sequence[JudgeRequest]) -> Iterator[Judgement]:
    limit = engine.config.max_positions
    scored: list[ScoreRequest] = []
    # By the number of the request: {an answer's tokens: its text}, and log-likelihoods so far.
    answers: list[dict[Tokens, str]] = []
    logprobs: dict[int, dict[Tokens, float]] = {}
    for index, request in enumerate(batch):
      prompt, completions = self._tokens(engine.tokenizer, request)
      answers.append(completions)
      # The last token is predicted and takes no position.
      longest_answer = max(map(len, completions))
      longest = len(prompt) + longest_answer - 1
      # A request too long fails alone; the others of the batch are still judged.
      if longest > limit:
        reason = f'the prompt takes {longest} positions, the judge has {limit}'
        yield Judgement(request.key, request.purpose, None, 'failed', reason)
        continue
      logprobs[index] = {}
      name = str(request.key)
      for tokens in completions:
        scored.append(ScoreRequest((index, tokens), prompt, tokens, name=name))
    for result in engine.score(scored):
      index, tokens = result.key
      logprobs[index][tokens] = result.logprob
      # The request's last answer is scored; results of several requests come interleaved.
      if len(logprobs[index]) == len(answers[index]):
        yield self._judgement(batch[index], answers[index], logprobs.pop(index))

  def _tokens(self, tokenizer: Any, request: JudgeRequest) -> tuple[Tokens, dict[Tokens, str]]:
    """(the prompt, {an answer's tokens: its text})."""
    messages = purposes.messages(request)
    name = str(request.key)
    completions: dict[Tokens, str] = {}
    prompt: Tokens = ()
    for text in purposes.PURPOSES[request.purpose].scale.values:
      scored = chat.scored_tokens(tokenizer, messages, text, name=name)
      # Spellings that the tokenizer does not tell apart become one.
      completions[scored.completion] = text
      # The same for all: none of the answers holds a thought.
      prompt = scored.prompt
    return prompt, completions

  def _judgement(
    self, request: JudgeRequest, texts: dict[Tokens, str], logprobs: dict[Tokens, float]
  ) -> Judgement:
    if not all(math.isfinite(logprob) for logprob in logprobs.values()):
      raise NotFiniteError(
        f"judge '{self.name}': the log-likelihoods of its answers to {request.key} are not finite: "
        'that model is broken'
      )
    scale = purposes.PURPOSES[request.purpose].scale
    probabilities = {}
    for tokens, text in texts.items():
      probabilities[text] = math.exp(logprobs[tokens])
    score, total = expectation.expectation(probabilities, scale, self._options.floor)
    self._judged += 1
    said = f'all answers on the scale: p {total:.3g}'
    # Unlike the probability, log-odds still differ where the judge is almost sure.
    if not scale.is_number:
      log_odds = _log_odds(texts, logprobs, scale)
      said += f', log-odds of YES {log_odds:.3f} nats'
    status = 'unparsable' if score is None else 'ok'
    return Judgement(request.key, request.purpose, score, status, said)


def _log_odds(
  texts: dict[Tokens, str], logprobs: dict[Tokens, float], scale: purposes.Scale
) -> float:
  """log P(yes) - log P(no) in nats, where both are sums over spellings."""
  yes: list[float] = []
  no: list[float] = []
  for tokens, text in texts.items():
    spellings = yes if scale.values[text] == 1.0 else no
    spellings.append(logprobs[tokens])
  return _log_sum(yes) - _log_sum(no)


def _log_sum(logprobs: Sequence[float]) -> float:
  """The logarithm of the sum of probabilities."""
  # Relative to the largest, where small probabilities are not rounded to zero.
  largest = max(logprobs)
  relative = [math.exp(logprob - largest) for logprob in logprobs]
  return largest + math.log(math.fsum(relative))
