"""Rules that judge a text without a model.

A rule set is a mapping; every rule in the mapping must hold:

  any      patterns of which at least one is found
  none     patterns of which none is found
  exact    texts, one of which the answer equals once both are normalised
  aliases  names, one of which the answer holds as whole words once both are normalised
  number   the number the answer gives (see `extract_number`)

A last rule says nothing of the answer's worth, but whether there is something to judge:

  readable  patterns of which at least one is found in every readable answer, right or wrong

Patterns are Python regular expressions, searched for anywhere, upper and lower case alike.
"""

import dataclasses
import math
import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

NAMES = ('any', 'none', 'exact', 'aliases', 'number', 'readable')
# A number that is no part of a word or of a longer number.
_NUMBER = re.compile(r'(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w])')
# How GSM8K's answers end.
_MARKED = re.compile(r'####\s*\$?\s*(\S+)')


@dataclasses.dataclass(frozen=True)
class Rules:
  """Compiled rules; an empty `any`, `exact` or `aliases` holds for every text."""

  any: tuple[re.Pattern, ...] = ()
  none: tuple[re.Pattern, ...] = ()
  exact: frozenset[str] = frozenset()
  aliases: frozenset[str] = frozenset()
  number: float | None = None
  readable: tuple[re.Pattern, ...] = ()

  def judge(self, text: str) -> tuple[float, bool]:
    """(1.0 if every rule holds, else 0.0; whether an answer could be read).

    >>> make({'any': ['yes'], 'none': ['not']}, 'here').judge('Well, YES.')
    (1.0, True)
    >>> make({'number': 3}, 'here').judge('three')
    (0.0, False)
    >>> rules = make({'any': ['yes'], 'readable': ['yes', 'no']}, 'here')
    >>> rules.judge('No.'), rules.judge('Well.')
    ((0.0, True), (0.0, False))
    """
    number = extract_number(text) if self.number is not None else None
    readable = not self.readable or any(pattern.search(text) for pattern in self.readable)
    if self.number is not None and number is None:
      readable = False
    return float(self._holds(text, number)), readable

  def _holds(self, text: str, number: float | None) -> bool:
    if self.any and not any(pattern.search(text) for pattern in self.any):
      return False
    if any(pattern.search(text) for pattern in self.none):
      return False
    plain = normalise(text)
    if self.exact and plain not in self.exact:
      return False
    # Spaces on both sides, so that an alias is found as whole words.
    if self.aliases and not any(f' {alias} ' in f' {plain} ' for alias in self.aliases):
      return False
    if self.number is None:
      return True
    return number is not None and is_same_number(number, self.number)


def make(rules: Any, where: str) -> Rules:
  """The compiled rules of an item.

  Raises:
    InputError: if a rule is unknown, a pattern is broken, a value has the wrong type, or there is
      no rule at all; names `where`.
  """
  if not isinstance(rules, Mapping) or not rules:
    raise InputError(
      f"{where}: 'match' is {rules!r:.80}, expected an object with one or more of: "
      f"{', '.join(NAMES)}"
    )
  for name in rules:
    if name not in NAMES:
      raise InputError(
        f"{where}: unknown rule '{name}' in 'match'{did_you_mean(name, NAMES)}; there "
        f"are: {', '.join(NAMES)}"
      )
  number = rules.get('number')
  if number is not None and (isinstance(number, bool) or not isinstance(number, (int, float))):
    raise InputError(f"{where}: the rule 'number' is {number!r}, expected a number")
  compiled = Rules(
    any=_patterns(rules, 'any', where),
    none=_patterns(rules, 'none', where),
    exact=frozenset(normalise(text) for text in _texts(rules, 'exact', where)),
    aliases=frozenset(normalise(text) for text in _texts(rules, 'aliases', where)),
    number=None if number is None else float(number),
    readable=_patterns(rules, 'readable', where),
  )
  if '' in compiled.aliases:
    raise InputError(
      f"{where}: the rule 'aliases' holds a name without a letter or digit, which every "
      "answer would have"
    )
  if compiled == Rules(readable=compiled.readable):
    raise InputError(f"{where}: the rules in 'match' are all empty: every answer would pass")
  return compiled


def normalise(text: str) -> str:
  """The text in lower case, without accents, punctuation, articles and repeated spaces.

  >>> normalise('  The  Café, in Paris! ')
  'cafe in paris'

  Source: SQuAD's answer normalisation (arXiv 1606.05250), and accents removed.
  """
  # NFKD sets accents apart from their letters.
  decomposed = unicodedata.normalize('NFKD', text.lower())
  letters = [c for c in decomposed if not unicodedata.combining(c)]
  # `string.punctuation` holds signs such as $ and +, which unicode counts as symbols.
  plain = ''.join(
    c
    for c in letters
    if c not in string.punctuation and not unicodedata.category(c).startswith('P')
  )
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', plain).split())


def extract_number(text: str) -> float | None:
  """The number after the last `####`, else the last number in the text, else None.

  Thousands may be set off by commas.

  >>> extract_number('3 apples and 4 pears make 7.'), extract_number('#### 1,204 (not 5)')
  (7.0, 1204.0)
  >>> extract_number('seven'), extract_number('$-3.50')
  (None, -3.5)
  """
  marked = _MARKED.findall(text)
  numbers = _NUMBER.findall(marked[-1] if marked else text)
  return float(numbers[-1].replace(',', '')) if numbers else None


def is_same_number(number: float, gold: float) -> bool:
  """Whether two numbers agree up to rounding."""
  return math.isclose(number, gold, rel_tol=1e-9, abs_tol=1e-9)


def against_gold(golds: Sequence[str]) -> Rules:
  """The rules of a known answer: the number if the answer is one, else the names.

  >>> against_gold(['42']).judge('That makes 42.')
  (1.0, True)
  >>> against_gold(['Mount Everest', 'Everest']).judge('It is the Everest, I think.')
  (1.0, True)

  Raises:
    InputError: if there is no gold answer, or one has no letter or digit.
  """
  is_number = len(golds) == 1 and _NUMBER.fullmatch(golds[0].strip())
  rules = {'number': extract_number(golds[0])} if is_number else {'aliases': list(golds)}
  return make(rules, f'gold answers {list(golds)!r:.80}')


def _texts(rules: Mapping[str, Any], name: str, where: str) -> Sequence[str]:
  texts = rules.get(name) or []
  is_list = isinstance(texts, Sequence) and not isinstance(texts, str)
  if not is_list or not all(isinstance(text, str) for text in texts):
    raise InputError(f"{where}: the rule '{name}' is {texts!r:.80}, expected a list of texts")
  return texts


def _patterns(rules: Mapping[str, Any], name: str, where: str) -> tuple[re.Pattern, ...]:
  compiled = []
  for text in _texts(rules, name, where):
    try:
      compiled.append(re.compile(text, re.IGNORECASE))
    except re.error as error:
      raise InputError(
        f"{where}: the rule '{name}' holds {text!r}, which is no regular expression: {error}"
      ) from error
  return tuple(compiled)
