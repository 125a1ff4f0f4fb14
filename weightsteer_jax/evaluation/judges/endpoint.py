"""A judge behind an OpenAI-compatible endpoint."""

import concurrent.futures
import json
import pathlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.evaluation.judges import client, expectation, purposes
from weightsteer_jax.evaluation.judges.answers import Answer, Answers, Messages, key_of
from weightsteer_jax.evaluation.judges.budget import Budget
from weightsteer_jax.evaluation.judges.requests import Judgement, JudgeRequest
from weightsteer_jax.runtime.errors import EndpointError, InputError

Parameters = Mapping[str, Any]
# Characters of a judge's answer that a judgement keeps; the cache has all.
SHOWN = 300


class Endpoint:
  """A judge that asks a model over HTTP; a repeated question costs nothing.

  Args:
    name: the judge's name, in judgements.
    options: the judge's section of the config, with the names of the environment variables for the
      address and the key.
    cache: the file of answers.
  """

  def __init__(self, name: str, options: config.EndpointJudge, *, cache: pathlib.Path):
    self.name = name
    self._options = options
    self._cache = cache
    self._words = ''

  def check(self, names: Iterable[str]) -> None:
    """Raises InputError if a purpose is unknown, or the environment has no key."""
    for name in names:
      purposes.purpose_of(name)
    # Making a client reads the environment and asks nothing.
    client.Client(self._options).close()

  def inputs(self) -> dict[str, Any]:
    """The judge's model and parameters, without the address: a model may move."""
    # The scale of 0 to 100 has all parameters, log-probabilities included.
    parameters = self._parameters(purposes.HUNDRED, True)
    return {'kind': 'endpoint', 'floor': self._options.floor, **parameters}

  def judge(self, requests: Iterable[JudgeRequest]) -> Generator[Judgement, None, None]:
    """The judgements, in the order of the answers.

    At most `concurrency` requests are under way at a time, and equal requests are asked once.
    Whatever is raised, finished judgements come before the error, and finished answers are kept.

    Raises:
      InputError: if a request cannot be put into words, a spend cap is reached, or the key, the
        model or the address is wrong.
      EndpointError: if request after request gets no answer.
      OutputError: if an answer could not be kept.
    """
    with Answers(self._cache) as answers:
      asking = _Asking(self._options, answers)
      try:
        yield from self._judge(asking, requests)
      finally:
        # Threads first: requests under way still write answers and spend tokens.
        asking.end()
        self._words = asking.words()

  def summary(self) -> str:
    """Requests, retries and spending, in words."""
    return self._words

  def _judge(self, asking: '_Asking', requests: Iterable[JudgeRequest]) -> Iterator[Judgement]:
    for request in requests:
      messages = purposes.messages(request)
      scale = purposes.PURPOSES[request.purpose].scale
      choices = [self._parameters(scale, False)]
      # Log-probabilities first, as long as the endpoint is not known to refuse them.
      if self._options.top_logprobs and scale is purposes.HUNDRED and asking.client.logprobs:
        choices.insert(0, self._parameters(scale, True))
      # An answer kept under either choice will do, the better choice first.
      kept = [asking.answers.get(messages, parameters) for parameters in choices]
      answer = next((answer for answer in kept if answer), None)
      if answer:
        asking.reused += 1
        yield self._judgement(request, answer)
        continue
      if asking.join(messages, choices[0], request):
        continue
      # Over the cap the loop goes on: requests under way may turn out cheaper than estimated.
      while asking.is_full() or (not asking.send(messages, choices, request) and asking.running):
        yield from self._finished(asking)
      # Nothing is under way, so the request was not sent, and no tokens will come back.
      if not asking.running:
        raise InputError(
          f"judge '{self.name}': the next request would pass the cap (spent: "
          f'{asking.budget.words()}); what was answered is kept: raise cost_cap or token_cap to '
          'continue'
        )
    while asking.running:
      yield from self._finished(asking)

  def _finished(self, asking: '_Asking') -> Iterator[Judgement]:
    """Judgements of the newly ended requests, at least one."""
    for outcome, served in asking.collect():
      for request in served:
        yield self._judgement(request, outcome)

  def _judgement(self, request: JudgeRequest, outcome: Answer | Exception) -> Judgement:
    score: float | None = None
    if isinstance(outcome, Exception):
      # A filter that refused would refuse again; anything else is asked again in the next run.
      status = 'refused' if isinstance(outcome, client.Refused) else 'failed'
      text = str(outcome)
    else:
      scale = purposes.PURPOSES[request.purpose].scale
      score, status = self._read(outcome, scale)
      text = outcome.text or outcome.refusal
      if outcome.fault:
        text = f'{outcome.fault}: {text}' if text else outcome.fault
    return Judgement(request.key, request.purpose, score, status, text[:SHOWN])

  def _read(self, answer: Answer, scale: purposes.Scale) -> tuple[float | None, str]:
    """(score, status) by the expectation over the likeliest numbers, else by the text."""
    if answer.refusal or answer.finish == 'content_filter':
      return None, 'refused'
    if answer.fault:
      return None, 'unparsable'
    # If the answer does not begin with a number, numbers among the likeliest tokens are chance.
    numbers = None
    if scale is purposes.HUNDRED and answer.text.strip()[:1].isdigit():
      numbers = expectation.number_tokens(answer.first)
    if numbers:
      score, _ = expectation.expectation(numbers, scale, self._options.floor)
      return score, 'unparsable' if score is None else 'ok'
    # No log-probabilities, or a tokenizer that splits numbers: the text decides.
    return purposes.parse(answer.text, scale, whole=answer.finish != 'length')

  def _parameters(self, scale: purposes.Scale, logprobs: bool) -> dict[str, Any]:
    options = self._options
    parameters = {
      'model': options.model,
      'temperature': options.temperature,
      'max_tokens': options.max_tokens,
    }
    # Only scores of 0 to 100 gain from an expectation over first tokens.
    if logprobs and options.top_logprobs and scale is purposes.HUNDRED:
      parameters |= {'logprobs': True, 'top_logprobs': options.top_logprobs}
    parameters |= json.loads(options.parameters or '{}')
    # A null in the config's parameters takes one of ours away.
    return {name: value for name, value in parameters.items() if value is not None}


class _Asking:
  """The requests under way, in threads; only the thread that made the object may call methods.

  Attributes:
    running: {future of a question: the requests that get the answer}.
    sent: requests sent.
    reused: requests served by the answer to an equal request.
  """

  def __init__(self, options: config.EndpointJudge, answers: Answers):
    self._options = options
    self.answers = answers
    self.client = client.Client(options)
    self.budget = Budget(options, answers.tokens_in, answers.tokens_out)
    self.running: dict[concurrent.futures.Future, list[JudgeRequest]] = {}
    self.sent = 0
    self.reused = 0
    self._failed_in_a_row = 0
    # Whether any request in this run got an answer or a refusal.
    self._answered = False
    self._pool = concurrent.futures.ThreadPoolExecutor(
      options.concurrency, thread_name_prefix='judge'
    )
    # The same futures, by the question's hash.
    self._by_key: dict[str, concurrent.futures.Future] = {}

  def is_full(self) -> bool:
    """Whether as many requests are under way as the config allows."""
    return len(self.running) >= self._options.concurrency

  def join(self, messages: Messages, parameters: Parameters, request: JudgeRequest) -> bool:
    """Whether an equal question is under way; if so, the request shares the answer."""
    future = self._by_key.get(key_of(messages, parameters))
    if future is None:
      return False
    self.running[future].append(request)
    self.reused += 1
    return True

  def send(self, messages: Messages, choices: Sequence[Parameters], request: JudgeRequest) -> bool:
    """Whether the request was sent: not if a cap would be passed.

    Args:
      choices: parameters, then parameters to fall back to.
    """
    parameters = choices[0]
    # The config's own parameters may limit the answer under either name.
    longest = (
      parameters.get('max_tokens')
      or parameters.get('max_completion_tokens')
      or self._options.max_tokens
    )
    # The most that the request may cost; `_ask` settles with the tokens spent.
    reserved = client.estimate(messages), int(longest)
    if not self.budget.reserve(*reserved):
      return False
    future = self._pool.submit(self._ask, messages, choices, reserved)
    self.running[future] = [request]
    self._by_key[key_of(messages, parameters)] = future
    self.sent += 1
    return True

  def collect(self) -> list[tuple[Answer | Exception, list[JudgeRequest]]]:
    """(answer or failure, requests of the question) for each newly ended question, at least one.

    Raises:
      InputError: if no request can succeed: the key, the model or the address is wrong.
      EndpointError: if request after request gets no answer.
      OutputError: if an answer could not be kept.
    """
    done, _ = concurrent.futures.wait(self.running, return_when=concurrent.futures.FIRST_COMPLETED)
    # Equal questions from here on are in the cache, or are asked again if this one failed.
    self._by_key = {key: future for key, future in self._by_key.items() if future not in done}
    # `result` raises the errors that stop every request, such as a wrong key.
    outcomes = [(future.result(), self.running.pop(future)) for future in done]
    for outcome, _ in outcomes:
      failed = isinstance(outcome, client.Failed)
      self._answered = self._answered or not failed
      # A request that is wrong in itself says nothing about the next request, unless no request was
      # ever right.
      if failed and (outcome.retried or not self._answered):
        self._failed_in_a_row += 1
      else:
        self._failed_in_a_row = 0
    # Requests that are sent together fail together, so fewer than these prove nothing.
    if self._failed_in_a_row >= max(3, self._options.concurrency):
      raise EndpointError(
        f'the endpoint gave no answer to {self._failed_in_a_row} requests in a row, the last: '
        f'{outcomes[-1][0]}; what was answered is kept: start again to continue'
      )
    return outcomes

  def end(self) -> None:
    """Calls off waiting requests, and waits for requests being answered."""
    self.client.stop.set()
    self._pool.shutdown(wait=True, cancel_futures=True)
    self.client.close()

  def words(self) -> str:
    """The counts, as in '12 requests sent, 3 retries, 40 answers reused; in all ..'."""
    # Without them a score is what the text says, which is worth telling.
    refused = '' if self.client.logprobs else 'log-probabilities were refused; '
    return (
      f'{self.sent} requests sent, {self.client.retries} retries, {self.reused} answers reused; '
      f'{refused}in all {self.budget.words()}'
    )

  def _ask(
    self, messages: Messages, choices: Sequence[Parameters], reserved: tuple[int, int]
  ) -> Answer | Exception:
    """The answer, also kept; or the reason for no answer."""
    # Nothing is counted for a request without an answer.
    spent = (0, 0)
    try:
      parameters, answer = self._first_that_works(messages, choices)
      spent = answer.tokens_in, answer.tokens_out
      self.answers.add(messages, parameters, answer)
      return answer
    # Returned, not raised: other requests go on. Errors that stop every request are raised.
    except (client.Failed, client.Refused, client.Stopped) as reason:
      return reason
    finally:
      self.budget.settle(reserved, spent)

  def _first_that_works(
    self, messages: Messages, choices: Sequence[Parameters]
  ) -> tuple[Parameters, Answer]:
    """(parameters, answer) of the first choice that the endpoint takes."""
    *better, last = choices
    for parameters in better:
      # An endpoint that refused log-probabilities once is not asked for them again.
      if not self.client.logprobs:
        break
      try:
        return parameters, self.client.ask(messages, parameters)
      except client.Failed as reason:
        # Servers that lack log-probabilities refuse the request, and name the parameter.
        if not reason.logprobs:
          raise
        self.client.logprobs = False
    return last, self.client.ask(messages, last)
