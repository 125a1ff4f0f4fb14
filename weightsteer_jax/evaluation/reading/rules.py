"""Rules that judge a text without a model.

A rule set is a mapping; every rule in it must hold:

  any     patterns of which at least one is found        none    patterns of which none is found
  exact   texts, one of which the answer equals once both are normalised
  aliases names, one of which the answer holds as whole words once both are normalised
  number  the number the answer gives (see `extract_number`)

and one says nothing of the answer's worth, but whether there is something to judge:

  readable   patterns of which at least one is found in any answer that is one, be it right or wrong

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
_NUMBER = re.compile(r'(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w])')
_MARKED = re.compile(r'####\s*\$?\s*(\S+)')


@dataclasses.dataclass(frozen=True)
class Rules:
  """Compiled rules; an empty `any`, `exact` or `aliases` asks for nothing."""

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
    holds = (not self.any or any(pattern.search(text) for pattern in self.any)) and not any(
      pattern.search(text) for pattern in self.none
    )
    holds = holds and (not self.exact or normalise(text) in self.exact)
    holds = holds and (
      not self.aliases or any(f' {alias} ' in f' {normalise(text)} ' for alias in self.aliases)
    )
    holds = holds and (
      self.number is None or (number is not None and is_same_number(number, self.number))
    )
    read = not self.readable or any(pattern.search(text) for pattern in self.readable)
    return float(holds), read and (self.number is None or number is not None)


def make(rules: Any, where: str) -> Rules:
  """The compiled rules of an item.

  Raises:
    InputError: an unknown rule, a broken pattern, a value of the wrong type, or no rule at all;
      names `where`.
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
  made = Rules(
    _patterns(rules, 'any', where),
    _patterns(rules, 'none', where),
    frozenset(map(normalise, _texts(rules, 'exact', where))),
    _aliases(rules, where),
    None if number is None else float(number),
    _patterns(rules, 'readable', where),
  )
  if made == Rules(readable=made.readable):
    raise InputError(f"{where}: the rules in 'match' are all empty: every answer would pass")
  return made


def normalise(text: str) -> str:
  """The text in lower case, without accents, punctuation, articles and repeated spaces.

  >>> normalise('  The  Café, in Paris! ')
  'cafe in paris'

  Source: SQuAD's answer normalisation (arXiv 1606.05250), and accents removed.
  """
  plain = ''.join(
    c for c in unicodedata.normalize('NFKD', text.lower()) if not unicodedata.combining(c)
  )
  plain = ''.join(
    c for c in plain if c not in string.punctuation and not unicodedata.category(c).startswith('P')
  )
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', plain).split())


def extract_number(text: str) -> float | None:
  """The number after the last `####`, else the last number in the text, else None; thousands may be
  set off by commas.

  >>> [extract_number(text) for text in ('3 apples and 4 pears make 7.', '#### 1,204 (not 5)', 'seven', '$-3.50')]
  [7.0, 1204.0, None, -3.5]
  """
  marked = _MARKED.findall(text)
  found = _NUMBER.findall(marked[-1] if marked else text)
  return float(found[-1].replace(',', '')) if found else None


def is_same_number(number: float, gold: float) -> bool:
  """Whether two numbers agree up to rounding."""
  return math.isclose(number, gold, rel_tol=1e-9, abs_tol=1e-9)


def against_gold(golds: Sequence[str]) -> Rules:
  """The rules of an answer that is known: its number where it is one, else its names.

  >>> against_gold(['42']).judge('That makes 42.'), against_gold(['Mount Everest', 'Everest']).judge('It is the Everest, I think.')
  ((1.0, True), (1.0, True))

  Raises:
    InputError: no gold answer, or one without a letter or digit.
  """
  whole = len(golds) == 1 and _NUMBER.fullmatch(golds[0].strip())
  return make(
    {'number': extract_number(golds[0])} if whole else {'aliases': list(golds)},
    f'gold answers {list(golds)!r:.80}',
  )


def _aliases(rules: Mapping[str, Any], where: str) -> frozenset[str]:
  found = frozenset(map(normalise, _texts(rules, 'aliases', where)))
  if '' in found:
    raise InputError(
      f"{where}: the rule 'aliases' holds a name without a letter or digit, which every "
      "answer would have"
    )
  return found


def _texts(rules: Mapping[str, Any], name: str, where: str) -> Sequence[str]:
  texts = rules.get(name) or []
  if (
    isinstance(texts, str)
    or not isinstance(texts, Sequence)
    or not all(isinstance(text, str) for text in texts)
  ):
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
