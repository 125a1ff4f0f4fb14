"""Rules that judge a text without a model.

A rule set is a mapping; every rule in the mapping must hold:

  any      patterns; at least one is found
  none     patterns; none is found
  exact    texts; the answer equals one of the texts once both are normalised
  aliases  names; the answer holds a name as whole words once both are normalised
  number   the number that the answer gives (see `extract_number`)

A last rule decides whether the answer can be judged at all, not whether the answer is right:

  readable  patterns; every readable answer, right or wrong, matches at least one

Patterns are Python regular expressions, searched for anywhere, upper and lower case alike.
"""

import dataclasses
import math
import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.data import thoughts
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

NAMES = ('any', 'none', 'exact', 'aliases', 'number', 'readable')
# A number that is no part of a word or of a longer number. Commas count only before groups of three
# digits: '1,204' is a number, '1, 2' are two.
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

    Thoughts between tags are no part of the answer (see data/thoughts.py).

    >>> make({'any': ['yes'], 'none': ['not']}, 'here').judge('Well, YES.')
    (1.0, True)
    >>> make({'number': 3}, 'here').judge('three')
    (0.0, False)
    >>> rules = make({'any': ['yes'], 'readable': ['yes', 'no']}, 'here')
    >>> rules.judge('No.'), rules.judge('Well.')
    ((0.0, True), (0.0, False))
    >>> rules.judge('<think>Say yes?</think> No.')
    (0.0, True)
    """
    parts = thoughts.parted(text)
    # The model had not begun to answer.
    if parts.cut:
      return 0.0, False
    text = parts.answer
    readable = not self.readable or any(pattern.search(text) for pattern in self.readable)
    number = None
    if self.number is not None:
      number = extract_number(text)
      # A question for a number cannot be judged by an answer without a number.
      readable = readable and number is not None
    holds = self._holds(text, number)
    return float(holds), readable

  def _holds(self, text: str, number: float | None) -> bool:
    # Patterns see the text as the model wrote the text, with signs and accents.
    if self.any and not any(pattern.search(text) for pattern in self.any):
      return False
    if any(pattern.search(text) for pattern in self.none):
      return False
    plain = normalise(text)
    if self.exact and plain not in self.exact:
      return False
    # Spaces on both sides, so that an alias is found as whole words.
    spaced = f' {plain} '
    if self.aliases and not any(f' {alias} ' in spaced for alias in self.aliases):
      return False
    if self.number is None:
      return True
    return number is not None and is_same_number(number, self.number)


def make(rules: Any, where: str) -> Rules:
  """The compiled rules of an item.

  Raises:
    InputError: if a rule is unknown, a pattern is broken, a value has the wrong type, or no rule is
      given at all; names `where`.
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
  if number is not None:
    # Python counts True as the integer 1.
    if isinstance(number, bool) or not isinstance(number, (int, float)):
      raise InputError(f"{where}: the rule 'number' is {number!r}, expected a number")
    number = float(number)
  exact = _texts(rules, 'exact', where)
  aliases = _texts(rules, 'aliases', where)
  compiled = Rules(
    any=_patterns(rules, 'any', where),
    none=_patterns(rules, 'none', where),
    exact=frozenset(normalise(text) for text in exact),
    aliases=frozenset(normalise(text) for text in aliases),
    number=number,
    readable=_patterns(rules, 'readable', where),
  )
  # Names such as 'The' or '+' normalise to nothing, and nothing is found everywhere.
  if '' in compiled.aliases:
    raise InputError(
      f"{where}: the rule 'aliases' holds a name without a letter or digit, which every "
      "answer would have"
    )
  # Lists may be empty, and `readable` alone says nothing of right and wrong.
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
  no_ascii_signs = [c for c in letters if c not in string.punctuation]
  plain = ''.join(c for c in no_ascii_signs if not unicodedata.category(c).startswith('P'))
  # Articles go last: accents and signs no longer hide the ends of words.
  without_articles = re.sub(r'\b(a|an|the)\b', ' ', plain)
  return ' '.join(without_articles.split())


def extract_number(text: str) -> float | None:
  """The number after the last `####`, else the last number in the text, else None.

  Thousands may be set off by commas.

  >>> extract_number('3 apples and 4 pears make 7.'), extract_number('#### 1,204 (not 5)')
  (7.0, 1204.0)
  >>> extract_number('seven'), extract_number('$-3.50')
  (None, -3.5)
  """
  marked = _MARKED.findall(text)
  searched = marked[-1] if marked else text
  numbers = _NUMBER.findall(searched)
  if not numbers:
    return None
  # The last number: reasoning comes before the result.
  return float(numbers[-1].replace(',', ''))


def is_same_number(number: float, gold: float) -> bool:
  """Whether two numbers agree up to rounding."""
  # Far tighter than an answer's rounding: only the binary form of decimals may differ.
  return math.isclose(number, gold, rel_tol=1e-9, abs_tol=1e-9)


def against_gold(golds: Sequence[str]) -> Rules:
  """The rules of a known answer: the number if the answer is a number, else the names.

  >>> against_gold(['42']).judge('That makes 42.')
  (1.0, True)
  >>> against_gold(['Mount Everest', 'Everest']).judge('It is the Everest, I think.')
  (1.0, True)

  Raises:
    InputError: if no gold answer is given, or a gold answer has no letter or digit.
  """
  where = f'gold answers {list(golds)!r:.80}'
  # Several gold answers are names of one thing, even if a name looks like a number.
  if len(golds) == 1 and _NUMBER.fullmatch(golds[0].strip()):
    return make({'number': extract_number(golds[0])}, where)
  return make({'aliases': list(golds)}, where)


def _texts(rules: Mapping[str, Any], name: str, where: str) -> Sequence[str]:
  texts = rules.get(name) or []
  # A text is a sequence of characters, and would pass for a list of texts.
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
      # Patterns are the user's: the error must name the pattern, not show our stack.
      raise InputError(
        f"{where}: the rule '{name}' holds {text!r}, which is no regular expression: {error}"
      ) from error
  return tuple(compiled)
