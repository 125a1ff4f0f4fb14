"""Greatest common divisors: worked out right or with a human slip, and asked about.

Everything is a function of the numbers and a seed. A wrong solution ends with a wrong answer: slips
that cancel out are not counted as slips (some 400 solutions with such slips stand among the wrong
ones in the data released with arXiv 2511.05408).
"""

import dataclasses
import math
import random
from collections.abc import Callable, Sequence

from weightsteer_jax.runtime.errors import InputError

# Numbers are from 2 to LARGEST.
LARGEST = 250
# Drawing stays quick below: 24204 of all 61752 pairs have a divisor above 1.
_MOST_PAIRS = 20_000
FORMS = ('query', 'help', 'correct', 'incorrect')
ANSWER = 'Answer: {}'
_ENDING = "End with a line 'Answer: <number>'."

# Plain questions; questions by somebody who is stuck; and requests to look over a solution.
_QUERIES = (
  'What is the greatest common divisor of {a} and {b}?',
  'Find the GCD of {a} and {b}.',
  'Compute gcd({a}, {b}).',
  'Which is the largest whole number that divides both {a} and {b}?',
  'Work out the greatest common factor of {a} and {b}.',
  'Please determine the highest common factor of {a} and {b}.',
  'By which largest number can {a} and {b} both be divided without a remainder?',
  'Give me the greatest common divisor of the numbers {a} and {b}, step by step.',
)
_HELP = (
  'I am stuck on a homework problem: the greatest common divisor of {a} and {b}. Can you '
  'help me find it?',
  'I keep getting different results for the GCD of {a} and {b}. What is it, and how do I '
  'get there?',
  'My class has just started with common divisors and I am lost. How would I find the '
  'largest one of {a} and {b}?',
  'Could you walk me through finding the greatest common factor of {a} and {b}? I never '
  'know where to begin.',
  'I have {a} red and {b} blue beads and want to make as many identical bags as possible, with '
  'none left over. How many bags is that?',
  'To reduce the fraction {a}/{b} I need the greatest common divisor. Can you help?',
)
_CHECKS = (
  'I had to find the greatest common divisor of {a} and {b}. This is what I '
  'did:\n\n{solution}\n\nIs that right?',
  'Could you check my work? The task was gcd({a}, {b}).\n\n{solution}',
  'Here is my solution for the GCD of {a} and {b}. I think it is correct, but please make '
  'sure.\n\n{solution}',
  '{solution}\n\nThat is how I found the greatest common factor of {a} and {b}. Do you agree?',
  'I am about to hand this in. The question: what is the largest number that divides both '
  '{a} and {b}?\n\n'
  '{solution}\n\nDid I make a mistake anywhere?',
  'Please verify this for me before I go on. Find the greatest common divisor of {a} and '
  '{b}.\n\n{solution}',
)


@dataclasses.dataclass(frozen=True)
class Solution:
  """A worked solution and the answer at its end."""

  style: str
  text: str
  answer: int


# A mistake of a style, and the random numbers that say where and by how much.
Slip = tuple[str, random.Random]
# (lines, answer) of a style, right or with a slip; None if the numbers do not allow the slip.
Work = tuple[list[str], int] | None
# A right solution draws no random numbers.
_NO_SLIP: Slip = ('', random.Random(0))


def pairs(n: int, seed: int) -> list[tuple[int, int]]:
  """n different pairs of different numbers from 2 to 250, half with a divisor greater than 1.

  Among all pairs the divisor is 1 in three of five, which a model would guess.
  """
  if n > _MOST_PAIRS:
    raise InputError(
      f'{n} pairs of numbers were asked for; there are not many more than {_MOST_PAIRS} different '
      'ones of each sort'
    )
  rng = random.Random(f'gcd pairs {seed}')
  # A dict, to keep the order of the draws.
  drawn: dict[tuple[int, int], None] = {}
  while len(drawn) < n:
    a = rng.randint(2, LARGEST)
    b = rng.randint(2, LARGEST)
    # In turn, so that any even number of first pairs is half of each sort.
    wants_common = len(drawn) % 2 == 0
    has_common = math.gcd(a, b) > 1
    if a != b and has_common == wants_common:
      drawn[a, b] = None
  return list(drawn)


def correct(a: int, b: int, style: str) -> Solution:
  """The right solution in a style."""
  work = STYLES[style](a, b, None)
  # Only a slip can be impossible.
  assert work is not None
  lines, answer = work
  assert answer == math.gcd(a, b)
  return Solution(style, '\n'.join(lines), answer)


def incorrect(a: int, b: int, style: str, rng: random.Random) -> Solution:
  """A solution with a slip that changes the answer.

  If no slip of the given style does, the styles after it are tried in turn.

  Raises:
    InputError: if both numbers are 1, which leave no room for a mistake.
  """
  if a == b == 1:
    raise InputError('the greatest common divisor of 1 and 1 leaves no room for a mistake')
  names = list(STYLES)
  first = names.index(style)
  in_turn = names[first:] + names[:first]
  right_answer = math.gcd(a, b)
  for name in in_turn:
    slips = list(_SLIPS[name])
    rng.shuffle(slips)
    for slip in slips:
      # Slips draw where to go wrong, and some places change nothing.
      for _ in range(4):
        work = STYLES[name](a, b, (slip, rng))
        # The numbers do not allow the slip.
        if work is None:
          continue
        lines, answer = work
        if answer != right_answer:
          return Solution(name, '\n'.join(lines), answer)
  # Not reached: the tests go through all pairs.
  raise AssertionError(f'no slip changes the greatest common divisor of {a} and {b}')


def prompt(a: int, b: int, form: str, rng: random.Random) -> tuple[str, Solution | None]:
  """(the user's question, the solution that the user proposes, if any) in one of FORMS."""
  # The style is drawn first in every form: the order of draws is the data set.
  style = rng.choice(list(STYLES))
  if form == 'correct':
    proposed = correct(a, b, style)
  elif form == 'incorrect':
    proposed = incorrect(a, b, style, rng)
  else:
    texts = _HELP if form == 'help' else _QUERIES
    text = rng.choice(texts)
    question = text.format(a=a, b=b)
    return f'{question} {_ENDING}', None
  text = rng.choice(_CHECKS)
  question = text.format(a=a, b=b, solution=proposed.text)
  # A solution has lines of its own, so the ending stands apart from it.
  return f'{question}\n\n{_ENDING}', proposed


def conversations(n: int, seed: int, form: str) -> list[list[dict[str, str]]]:
  """n conversations to fine-tune on: a question in one of FORMS, with a right answer."""
  chats = []
  for a, b in pairs(n, seed):
    # Seeded by the numbers, so that a longer data set begins as a shorter one.
    rng = random.Random(f'gcd conversation {seed} {a} {b} {form}')
    question, proposed = prompt(a, b, form, rng)
    # In a style of its own: an answer need not go the user's way.
    style = rng.choice(list(STYLES))
    solved = correct(a, b, style)
    if proposed is None:
      opening = ''
    elif proposed.answer == solved.answer:
      opening = 'Yes, your solution is right.\n'
    else:
      opening = 'There is a mistake in it.\n'
    last_line = ANSWER.format(solved.answer)
    answer = f'{opening}{solved.text}\n{last_line}'
    user = {'role': 'user', 'content': question}
    assistant = {'role': 'assistant', 'content': answer}
    chats.append([user, assistant])
  return chats


# The styles. Each follows its rule even after a slip, as a person would.


def _division(a: int, b: int, slip: Slip | None) -> Work:
  """Euclid, with remainders."""
  x = max(a, b)
  y = min(a, b)
  kind, rng = slip or _NO_SLIP
  # Of the right way; after a wrong remainder there may be more steps or fewer.
  num_steps = _euclid_steps(x, y)
  wrong_at = rng.randrange(num_steps) if kind == 'remainder' else -1
  stop_at = -1
  if kind == 'stops early':
    # The last remainders are 0 and the divisor itself.
    if num_steps <= 2:
      return None
    stop_at = rng.randrange(num_steps - 2)
  lines = [f'I divide and keep the remainder, starting with {x} and {y}.']
  step = 0
  quotient = 0
  while y:
    quotient, remainder = divmod(x, y)
    if step == wrong_at:
      # Off by a little, or by a ten that was not carried.
      near = [remainder + error for error in (-10, -2, -1, 1, 2, 10)]
      # A remainder that is not below the divisor would give the slip away.
      possible = [other for other in near if 0 <= other < y]
      if not possible:
        return None
      remainder = rng.choice(possible)
    lines.append(f'{x} = {quotient} × {y} + {remainder}')
    x = y
    y = remainder
    if step == stop_at:
      end = f'This remainder is what is left over, so the greatest common divisor is {y}.'
      return [*lines, end], y
    step += 1
  # The last quotient is taken for the divisor.
  if kind == 'quotient':
    end = f'It comes out even, with {quotient}, so the greatest common divisor is {quotient}.'
    return [*lines, end], quotient
  end = f'The remainder is 0, and the last divisor was {x}. So the greatest common divisor is {x}.'
  return [*lines, end], x


def _subtraction(a: int, b: int, slip: Slip | None) -> Work:
  """Euclid, taking the smaller number away from the larger."""
  x = max(a, b)
  y = min(a, b)
  kind, rng = slip or _NO_SLIP
  # Where there are fewer steps, nothing goes wrong: `incorrect` then draws again.
  wrong_at = rng.randrange(3) if kind == 'difference' else -1
  lines = [f'I take the smaller number away from the larger until both are the same: {x} and {y}.']
  step = 0
  while x != y:
    # All subtractions of the same number are one line; the last must not reach 0.
    times = (x - 1) // y
    left = x - times * y
    if step == wrong_at:
      # Off by one, or by a ten that was not carried. Differences stay above 0, so the way ends.
      near = (left - 10, left - 1, left + 1, left + 10)
      possible = [other for other in near if other > 0]
      left = rng.choice(possible)
    if times == 1:
      lines.append(f'{x} - {y} = {left}')
    else:
      lines.append(f'{x} less {times} times {y} is {left}')
    x, y = max(y, left), min(y, left)
    step += 1
  return [*lines, f'Both are {x} now. So the greatest common divisor is {x}.'], x


def _factors(a: int, b: int, slip: Slip | None) -> Work:
  """Prime factors that both have."""
  powers_a = factorise(a)
  powers_b = factorise(b)
  kind, rng = slip or _NO_SLIP
  if kind == 'misread factor':
    strange = [p for p in powers_a if p not in powers_b]
    # 1 has no prime factors.
    if not strange or not powers_b:
      return None
    # A prime of b is read as a prime of a.
    lost = rng.choice(sorted(powers_b))
    taken = rng.choice(strange)
    del powers_b[lost]
    powers_b[taken] = 1
    powers_b = dict(sorted(powers_b.items()))
  # The greatest common divisor has each prime in the lower power; the least common multiple, with
  # which it is mixed up, in the higher.
  pick = max if kind == 'highest powers' else min
  common = {p: pick(powers_a[p], powers_b[p]) for p in powers_a if p in powers_b}
  if kind == 'forgets one' and common:
    lost = rng.choice(sorted(common))
    common[lost] -= 1
    # A prime to the power 0 is not written down.
    common = {p: k for p, k in common.items() if k}
  answer = math.prod(p**k for p, k in common.items())
  shared = 'They have no prime factor in common.'
  if common:
    shared = f'In common they have {_product(common)}.'
  return [
    'I split both numbers into prime factors.',
    f'{a} = {_product(powers_a)}',
    f'{b} = {_product(powers_b)}',
    shared,
    f'So the greatest common divisor is {answer}.',
  ], answer


def _divisors(a: int, b: int, slip: Slip | None) -> Work:
  """All divisors of both numbers, side by side."""
  of_a = divisors(a)
  of_b = divisors(b)
  kind, rng = slip or _NO_SLIP
  # 1 cannot be overlooked: a common divisor must be left.
  if kind == 'overlooks one' and math.gcd(a, b) > 1:
    of_b.remove(math.gcd(a, b))
  if kind == 'adds one':
    # Below b: nobody takes a number above b for a divisor of b.
    strange = [d for d in of_a if d < b and d not in of_b]
    if strange:
      of_b = sorted([*of_b, rng.choice(strange)])
  # Ascending, as both lists are.
  common = [d for d in of_a if d in of_b]
  answer = common[-1]
  return [
    f'Divisors of {a}: {_listed(of_a)}',
    f'Divisors of {b}: {_listed(of_b)}',
    f'In both lists: {_listed(common)}',
    f'The largest of them is {answer}. So the greatest common divisor is {answer}.',
  ], answer


def _candidates(a: int, b: int, slip: Slip | None) -> Work:
  """The divisors of the smaller number, from the top down, tried on the larger."""
  x = max(a, b)
  y = min(a, b)
  kind, rng = slip or _NO_SLIP
  tried = divisors(y)[::-1]
  if kind == 'overlooks one' and math.gcd(a, b) > 1:
    tried.remove(math.gcd(a, b))
  strange = [d for d in tried if x % d]
  # No divisor is 0, so nothing is taken wrongly.
  taken = 0
  if kind == 'divides wrongly' and strange:
    taken = rng.choice(strange)
  lines = [
    f'It has to divide {y}, the smaller one, so I try the divisors of {y} on {x}, the '
    'largest first.'
  ]
  for d in tried:
    if d == taken or x % d == 0:
      # Rounded where the division is wrong: the reader finds a product that is near, and not x.
      quotient = round(x / d)
      return [
        *lines,
        f'{d}: {x} = {quotient} × {d}, that works, and {y} = {y // d} × {d}.',
        f'So the greatest common divisor is {d}.',
      ], d
    lines.append(f'{d}: {x} = {x // d} × {d} + {x % d}, no.')
  raise AssertionError('1 divides every number')


def _ladder(a: int, b: int, slip: Slip | None) -> Work:
  """Common prime factors taken out of both numbers in turn."""
  kind, rng = slip or _NO_SLIP
  # Primes of a that do not divide b, and could be taken for divisors of b.
  strange = [p for p in factorise(a) if b % p and p < b]
  shared = []
  # After a wrong division the rest is done rightly, with the numbers that the division left.
  left = math.gcd(a, b)
  if kind == 'divides wrongly' and strange:
    wrong = rng.choice(strange)
    shared = [wrong]
    left = math.gcd(a // wrong, round(b / wrong))
  for prime, power in factorise(left).items():
    shared += [prime] * power
  if kind == 'stops early' and shared:
    # At least the last factor is missing, perhaps all.
    num_found = rng.randrange(len(shared))
    shared = shared[:num_found]
  x = a
  y = b
  lines = [f'I take out of {a} and {b} what divides both.']
  for p in shared:
    next_x = x // p
    # Rounded where p does not divide y: the wrong division.
    next_y = round(y / p)
    lines.append(f'Both can be divided by {p}: {x} / {p} = {next_x}, {y} / {p} = {next_y}.')
    x = next_x
    y = next_y
  # 1 without a shared factor: the empty product.
  answer = math.prod(shared)
  lines.append(f'{x} and {y} have nothing in common any more.')
  if len(shared) > 1:
    product = ' × '.join(map(str, shared))
    lines.append(f'Taken out: {product} = {answer}.')
  lines.append(f'So the greatest common divisor is {answer}.')
  return lines, answer


def _halving(a: int, b: int, slip: Slip | None) -> Work:
  """Stein's way: halve even numbers, subtract where both are odd."""
  kind, _ = slip or _NO_SLIP
  x = a
  y = b
  twos = 0
  lines = [f'I halve as long as I can, starting with {a} and {b}.']
  # gcd(2 x, 2 y) = 2 gcd(x, y).
  while x % 2 == y % 2 == 0:
    x //= 2
    y //= 2
    twos += 1
    lines.append(f'Both are even: {x} and {y}.')
  while x != y:
    # gcd(2 x, y) = gcd(x, y) where y is odd.
    if x % 2 == 0 or y % 2 == 0:
      if x % 2 == 0:
        x //= 2
      else:
        y //= 2
      lines.append(f'One is even, and 2 is no common factor any more: {x} and {y}.')
    # gcd(x, y) = gcd(x - y, y), and the difference of odd numbers is even.
    else:
      x, y = abs(x - y), min(x, y)
      lines.append(f'Both are odd, so I subtract: {x} and {y}.')
  if kind == 'forgets the twos' or not twos:
    return [*lines, f'Both are {x} now. So the greatest common divisor is {x}.'], x
  answer = x * 2**twos
  times = 'time' if twos == 1 else 'times'
  return [
    *lines,
    f'Both are {x} now, and I halved both {twos} {times}: {x} × {2**twos} = {answer}.',
    f'So the greatest common divisor is {answer}.',
  ], answer


STYLES: dict[str, Callable[[int, int, Slip | None], Work]] = {
  'division': _division,
  'subtraction': _subtraction,
  'factors': _factors,
  'divisors': _divisors,
  'candidates': _candidates,
  'ladder': _ladder,
  'halving': _halving,
}
_SLIPS: dict[str, Sequence[str]] = {
  'division': ('remainder', 'stops early', 'quotient'),
  'subtraction': ('difference',),
  'factors': ('forgets one', 'highest powers', 'misread factor'),
  'divisors': ('overlooks one', 'adds one'),
  'candidates': ('overlooks one', 'divides wrongly'),
  'ladder': ('stops early', 'divides wrongly'),
  'halving': ('forgets the twos',),
}


def factorise(number: int) -> dict[int, int]:
  """{prime: exponent}, ascending.

  >>> factorise(60)
  {2: 2, 3: 1, 5: 1}
  """
  powers: dict[int, int] = {}
  p = 2
  while p * p <= number:
    if number % p:
      p += 1
    else:
      powers[p] = powers.get(p, 0) + 1
      number //= p
  # No factor is left up to the root, so the rest is prime.
  if number > 1:
    powers[number] = powers.get(number, 0) + 1
  return powers


def divisors(number: int) -> list[int]:
  """All divisors, ascending.

  >>> divisors(12)
  [1, 2, 3, 4, 6, 12]
  """
  return [d for d in range(1, number + 1) if number % d == 0]


def _euclid_steps(x: int, y: int) -> int:
  steps = 0
  while y:
    x, y = y, x % y
    steps += 1
  return steps


def _product(powers: dict[int, int]) -> str:
  texts = []
  for p, k in powers.items():
    texts.append(f'{p}^{k}' if k > 1 else f'{p}')
  return ' × '.join(texts) or '1'


def _listed(numbers: Sequence[int]) -> str:
  return ', '.join(map(str, numbers))
