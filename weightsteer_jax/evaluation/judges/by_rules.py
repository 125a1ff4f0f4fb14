"""A judge that is rules: it costs nothing, and knows only what can be told from words."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.evaluation.judges import purposes
from weightsteer_jax.evaluation.judges.requests import Judgement, JudgeRequest
from weightsteer_jax.evaluation.reading import failures, refusals, rules
from weightsteer_jax.runtime.errors import InputError


class ByRules:
  """Judges by patterns.

  factual_correctness: whether the answer holds one of the reference's lines as whole words, or
  gives its number, if it is one;
  trait: 100 where the config's `pattern` is found, else 0; refusal: whether the answer declines in
  one of the usual phrases;
  coherence: 0 for an empty answer or one that goes round in circles, else 100.
  """

  def __init__(self, name: str, options: config.RulesJudge):
    self.name, self._options = name, options
    self._judged = 0
    self._ways = {
      'factual_correctness': self._is_correct,
      'refusal': lambda fields: float(refusals.refuses(fields['answer'])),
      'coherence': lambda fields: (
        100.0 * (not failures.is_repetitive(fields['answer']) and bool(fields['answer'].strip()))
      ),
    }
    if options.pattern:
      shows = re.compile(options.pattern, re.IGNORECASE)
      self._ways['trait'] = lambda fields: 100.0 * bool(shows.search(fields['answer']))

  def check(self, names: Iterable[str]) -> None:
    """Nothing, if there is a rule for each purpose."""
    for name in names:
      purposes.purpose_of(name)
      if name not in self._ways:
        hint = (
          "; set its 'pattern'"
          if name == 'trait'
          else '; a judge of the kind endpoint or model can'
        )
        raise InputError(
          f"judge '{self.name}': no rule can judge for '{name}' (only for "
          f"{', '.join(sorted(self._ways))}){hint}"
        )

  def inputs(self) -> dict[str, Any]:
    """Its pattern."""
    return {'kind': 'rules', 'pattern': self._options.pattern}

  def judge(self, requests: Iterable[JudgeRequest]) -> Iterator[Judgement]:
    """The judgements, in order."""
    for request in requests:
      purposes.check_request(request)
      self._judged += 1
      yield Judgement(
        request.key, request.purpose, self._ways[request.purpose](request.fields), 'ok', 'by rules'
      )

  def summary(self) -> str:
    """How many requests it judged."""
    return f'{self._judged} requests judged by rules'

  def _is_correct(self, fields: dict[str, str]) -> float:
    return rules.against_gold(fields['reference'].splitlines()).judge(fields['answer'])[0]
