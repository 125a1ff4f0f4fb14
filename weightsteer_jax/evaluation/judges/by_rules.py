"""A judge that is rules: without cost, but knowing words alone."""

import re
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.evaluation.judges import purposes
from weightsteer_jax.evaluation.judges.requests import Judgement, JudgeRequest
from weightsteer_jax.evaluation.reading import failures, refusals, rules
from weightsteer_jax.runtime.errors import InputError


class ByRules:
  """A judge by patterns.

  factual_correctness: whether the answer holds one of the reference's lines as whole words, or
    gives the reference's number, if it is one.
  trait: 100 where the config's `pattern` is found, else 0.
  refusal: whether the answer declines in one of the usual phrases.
  coherence: 0 for an empty answer or one that goes round in circles, else 100.
  """

  def __init__(self, name: str, options: config.RulesJudge):
    self.name = name
    self._options = options
    self._judged = 0
    self._rules: dict[str, Callable[[Mapping[str, str]], float]] = {
      'factual_correctness': _is_correct,
      'refusal': _refuses,
      'coherence': _coherence,
    }
    if options.pattern:
      pattern = re.compile(options.pattern, re.IGNORECASE)
      self._rules['trait'] = lambda fields: 100.0 * bool(pattern.search(fields['answer']))

  def check(self, names: Iterable[str]) -> None:
    """Raises InputError if there is no rule for one of the purposes."""
    for name in names:
      purposes.purpose_of(name)
      if name in self._rules:
        continue
      if name == 'trait':
        hint = "; set its 'pattern'"
      else:
        hint = '; a judge of the kind endpoint or model can'
      raise InputError(
        f"judge '{self.name}': no rule can judge for '{name}' (only for "
        f"{', '.join(sorted(self._rules))}){hint}"
      )

  def inputs(self) -> dict[str, Any]:
    """The judge's pattern."""
    return {'kind': 'rules', 'pattern': self._options.pattern}

  def judge(self, requests: Iterable[JudgeRequest]) -> Generator[Judgement, None, None]:
    """The judgements, in order."""
    for request in requests:
      purposes.check_request(request)
      self._judged += 1
      score = self._rules[request.purpose](request.fields)
      yield Judgement(request.key, request.purpose, score, 'ok', 'by rules')

  def summary(self) -> str:
    """How many requests were judged."""
    return f'{self._judged} requests judged by rules'


def _is_correct(fields: Mapping[str, str]) -> float:
  correct, _ = rules.against_gold(fields['reference'].splitlines()).judge(fields['answer'])
  return correct


def _refuses(fields: Mapping[str, str]) -> float:
  return float(refusals.refuses(fields['answer']))


def _coherence(fields: Mapping[str, str]) -> float:
  answer = fields['answer']
  return 100.0 * (bool(answer.strip()) and not failures.is_repetitive(answer))
