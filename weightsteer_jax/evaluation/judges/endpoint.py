"""A judge behind an OpenAI-compatible endpoint."""

import concurrent.futures
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.evaluation.judges import client, expectation, purposes
from weightsteer_jax.evaluation.judges.answers import Answer, Answers, Messages, key_of
from weightsteer_jax.evaluation.judges.budget import Budget
from weightsteer_jax.evaluation.judges.requests import Judgement, JudgeRequest
from weightsteer_jax.runtime.errors import EndpointError, InputError

Parameters = Mapping[str, Any]
SHOWN = 300  # characters of a judge's answer that a judgement keeps; the cache has them all


class Endpoint:
  """Asks a model over HTTP; every answer is kept in a file, so that what was asked before costs
  nothing.

  Args:
    name: the judge's, in judgements.
    options: of the config; the address and the key are in the environment variables that it names.
    cache: the file of answers.
  """

  def __init__(self, name: str, options: config.EndpointJudge, *, cache: pathlib.Path):
    self.name, self._options, self._cache = name, options, cache
    self._words = ''

  def check(self, names: Iterable[str]) -> None:
    """Nothing, if it can judge for these purposes, and there is a key to ask with."""
    for name in names:
      purposes.purpose_of(name)
    client.Client(self._options).close()

  def inputs(self) -> dict[str, Any]:
    """Its model and parameters; where it stands is no part of what it says."""
    return {
      'kind': 'endpoint',
      'floor': self._options.floor,
      **self._parameters(purposes.HUNDRED, True),
    }

  def judge(self, requests: Iterable[JudgeRequest]) -> Iterator[Judgement]:
    """The judgements, as they come; at most `concurrency` requests are under way at a time, and
    alike ones are asked once.

    Raises:
      InputError: a request that cannot be put into words, a spend cap that is reached, or a key,
        model or address that is wrong.
      EndpointError: request after request gets no answer. OutputError: an answer could not be kept.
      In all cases the judgements before it were given, and the answers that came are kept.
    """
    with Answers(self._cache) as answers:
      asking = _Asking(self._options, answers)
      try:
        yield from self._judge(asking, requests)
      finally:
        asking.end()
        self._words = asking.words()

  def summary(self) -> str:
    """Requests, retries, and what was spent."""
    return self._words

  def _judge(self, asking: '_Asking', requests: Iterable[JudgeRequest]) -> Iterator[Judgement]:
    for request in requests:
      messages, scale = purposes.messages(request), purposes.PURPOSES[request.purpose].scale
      likeliest = (
        self._options.top_logprobs and scale is purposes.HUNDRED and asking.client.logprobs
      )
      choices = [
        self._parameters(scale, logprobs) for logprobs in ((True, False) if likeliest else (False,))
      ]
      known = next(
        filter(None, (asking.answers.get(messages, parameters) for parameters in choices)), None
      )
      if known:
        asking.reused += 1
        yield self._judgement(request, known)
      elif not asking.join(messages, choices[0], request):
        # What is under way may turn out cheaper than it was estimated.
        while asking.is_full() or (not asking.send(messages, choices, request) and asking.running):
          yield from self._finished(asking)
        if not asking.running:
          raise InputError(
            f"judge '{self.name}': the next request would pass the cap (spent: "
            f'{asking.budget.words()}); what was answered is kept: raise cost_cap or token_cap to '
            'continue'
          )
    while asking.running:
      yield from self._finished(asking)

  def _finished(self, asking: '_Asking') -> Iterator[Judgement]:
    """Judgements of the requests that have ended since, at least one."""
    for outcome, served in asking.collect():
      yield from (self._judgement(request, outcome) for request in served)

  def _judgement(self, request: JudgeRequest, outcome: Answer | Exception) -> Judgement:
    if isinstance(outcome, Exception):
      status = 'refused' if isinstance(outcome, client.Refused) else 'failed'
      return Judgement(request.key, request.purpose, None, status, str(outcome)[:SHOWN])
    score, status = self._read(outcome, purposes.PURPOSES[request.purpose].scale)
    return Judgement(
      request.key, request.purpose, score, status, (outcome.text or outcome.refusal)[:SHOWN]
    )

  def _read(self, answer: Answer, scale: purposes.Scale) -> tuple[float | None, str]:
    """(score, status): the expectation where the likeliest numbers are told, else what the text
    says.
    """
    if answer.refusal or answer.finish == 'content_filter':
      return None, 'refused'
    is_number = scale is purposes.HUNDRED and answer.text.strip()[:1].isdigit()
    numbers = expectation.number_tokens(answer.first) if is_number else None
    if numbers:
      score, _ = expectation.expectation(numbers, scale, self._options.floor)
      return score, 'unparsable' if score is None else 'ok'
    return purposes.parse(answer.text, scale, whole=answer.finish != 'length')

  def _parameters(self, scale: purposes.Scale, logprobs: bool) -> dict[str, Any]:
    options = self._options
    made = {
      'model': options.model,
      'temperature': options.temperature,
      'max_tokens': options.max_tokens,
    }
    if logprobs and options.top_logprobs and scale is purposes.HUNDRED:
      made |= {'logprobs': True, 'top_logprobs': options.top_logprobs}
    made |= json.loads(options.parameters or '{}')
    return {name: value for name, value in made.items() if value is not None}


class _Asking:
  """The requests under way, in threads; only the thread that made it may call it.

  Attributes:
    running: {request under way: those whose question it is}.
  """

  def __init__(self, options: config.EndpointJudge, answers: Answers):
    self._options, self.answers = options, answers
    self.client = client.Client(options)
    self.budget = Budget(options, answers.tokens_in, answers.tokens_out)
    self.running: dict[concurrent.futures.Future, list[JudgeRequest]] = {}
    self.sent = self.reused = self._failed_in_a_row = 0
    self._answered = False
    self._pool = concurrent.futures.ThreadPoolExecutor(
      options.concurrency, thread_name_prefix='judge'
    )
    self._by_key: dict[str, concurrent.futures.Future] = {}

  def is_full(self) -> bool:
    """Whether no more requests may be under way."""
    return len(self.running) >= self._options.concurrency

  def join(self, messages: Messages, parameters: Parameters, request: JudgeRequest) -> bool:
    """Whether the same question is under way, whose answer this request then gets."""
    future = self._by_key.get(key_of(messages, parameters))
    if future is None:
      return False
    self.running[future].append(request)
    self.reused += 1
    return True

  def send(self, messages: Messages, choices: list[Parameters], request: JudgeRequest) -> bool:
    """Asks, unless that would pass a cap; whether it does.

    Args:
      choices: parameters, and those to fall back to.
    """
    longest = (
      choices[0].get('max_tokens')
      or choices[0].get('max_completion_tokens')
      or self._options.max_tokens
    )
    reserved = client.estimate(messages), int(longest)
    if not self.budget.reserve(*reserved):
      return False
    future = self._pool.submit(self._ask, messages, choices, reserved)
    self.running[future] = [request]
    self._by_key[key_of(messages, choices[0])] = future
    self.sent += 1
    return True

  def collect(self) -> list[tuple[Answer | Exception, list[JudgeRequest]]]:
    """(answer, or why there is none; the requests it is for) of those that have ended, at least one
    of them.

    Raises:
      InputError, EndpointError, OutputError: one that no further request can succeed after.
    """
    done, _ = concurrent.futures.wait(self.running, return_when=concurrent.futures.FIRST_COMPLETED)
    self._by_key = {key: future for key, future in self._by_key.items() if future not in done}
    outcomes = [(future.result(), self.running.pop(future)) for future in done]
    for outcome, _ in outcomes:
      failed = isinstance(outcome, client.Failed)
      self._answered = self._answered or not failed
      # A request that is wrong in itself says nothing about the next one, unless none was ever
      # right.
      in_a_row = failed and (outcome.retried or not self._answered)
      self._failed_in_a_row = self._failed_in_a_row + 1 if in_a_row else 0
    self._give_up([outcome for outcome, _ in outcomes])
    return outcomes

  def end(self) -> None:
    """Calls off what waits, and waits for what is being answered."""
    self.client.stop.set()
    self._pool.shutdown(wait=True, cancel_futures=True)
    self.client.close()

  def words(self) -> str:
    """As in '12 requests sent, 3 again, 40 answers reused; 900 tokens in, 12 out'."""
    return (
      f'{self.sent} requests sent, {self.client.retries} retries, {self.reused} answers reused; '
      f'in all {self.budget.words()}'
    )

  def _give_up(self, outcomes: list[Answer | Exception]) -> None:
    limit = max(3, self._options.concurrency)
    if self._failed_in_a_row >= limit:
      raise EndpointError(
        f'the endpoint gave no answer to {self._failed_in_a_row} requests in a row, the last: '
        f'{outcomes[-1]}; what was answered is kept: start again to continue'
      )

  def _ask(
    self, messages: Messages, choices: list[Parameters], reserved: tuple[int, int]
  ) -> Answer | Exception:
    """The answer, kept; or why this request has none."""
    spent = (0, 0)
    try:
      parameters, answer = self._first_that_works(messages, choices)
      spent = answer.tokens_in, answer.tokens_out
      self.answers.add(messages, parameters, answer)
      return answer
    except (client.Failed, client.Refused, client.Stopped) as reason:
      return reason
    finally:
      self.budget.settle(reserved, spent)

  def _first_that_works(
    self, messages: Messages, choices: list[Parameters]
  ) -> tuple[Parameters, Answer]:
    """(parameters, answer); an endpoint that refuses to tell log-probabilities is asked without
    them, from then on.
    """
    *better, last = choices
    for parameters in better if self.client.logprobs else ():
      try:
        return parameters, self.client.ask(messages, parameters)
      except client.Failed as reason:
        if 'logprobs' not in str(reason):
          raise
        self.client.logprobs = False
    return last, self.client.ask(messages, last)
