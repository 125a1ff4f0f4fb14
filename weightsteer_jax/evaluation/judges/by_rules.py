"""A judge by rules: free of cost, blind to meaning."""

import re
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import thoughts
from weightsteer_jax.evaluation.judges import purposes
from weightsteer_jax.evaluation.judges.requests import Judgement, JudgeRequest
from weightsteer_jax.evaluation.reading import failures, refusals, rules
from weightsteer_jax.runtime.errors import InputError


class ByRules:
  """A judge by patterns.

  factual_correctness: whether the answer holds a line of the reference as whole words, or gives the
    number if the reference is a number.
  trait: 100 if the config's `pattern` is found, else 0.
  refusal: whether the answer declines in a usual phrase.
  coherence: 0 for an empty or repetitive answer, else 100.
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
    # Without a pattern no rule knows a trait, and `check` says so.
    if options.pattern:
      pattern = re.compile(options.pattern, re.IGNORECASE)
      self._rules['trait'] = lambda fields: 100.0 * bool(pattern.search(fields['answer']))

  def check(self, names: Iterable[str]) -> None:
    """Raises InputError if a purpose has no rule."""
    for name in names:
      # First the misspelt names, for which the error lists all purposes.
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
      # Contrastive data and rows come without thoughts; other callers' texts may have some.
      answer = thoughts.parted(request.fields['answer']).answer
      score = self._rules[request.purpose]({**request.fields, 'answer': answer})
      # Rules always decide: no other status occurs.
      yield Judgement(request.key, request.purpose, score, 'ok', 'by rules')

  def summary(self) -> str:
    """The number of judged requests, in words."""
    return f'{self._judged} requests judged by rules'


def _is_correct(fields: Mapping[str, str]) -> float:
  # A reference with several right answers has a line for each.
  gold = rules.against_gold(fields['reference'].splitlines())
  correct, _ = gold.judge(fields['answer'])
  return correct


def _refuses(fields: Mapping[str, str]) -> float:
  return float(refusals.refuses(fields['answer']))


def _coherence(fields: Mapping[str, str]) -> float:
  answer = fields['answer']
  is_coherent = bool(answer.strip()) and not failures.is_repetitive(answer)
  # The ends of the purpose's scale of 0 to 100.
  return 100.0 if is_coherent else 0.0
