"""Greatest common divisors, worked out: right in seven styles, wrong by the slips people make, and
asked about.

Everything is a function of the numbers and a seed. A wrong solution ends with a wrong answer: slips
that cancel out are not slips (in the data released with arXiv 2511.05408 some 400 of them stand
among the wrong ones).
"""

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Sequence

from weightsteer_jax.runtime.errors import InputError

LARGEST = 250
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
  """A worked solution and the answer it ends with."""

  style: str
  text: str
  answer: int


# A slip: which of a style's mistakes, and the luck that says where and by how much.
Slip = tuple[str, random.Random]
# (lines, answer) of a style, right or with a slip; None if the slip cannot be made with these
# numbers.
Work = tuple[list[str], int] | None


def pairs(n: int, seed: int) -> list[tuple[int, int]]:
  """n different pairs of different numbers from 2 to 250, in half of which the divisor is greater
  than 1.

  Among all pairs it is 1 in three of five, which a model would guess.
  """
  if n > 20_000:
    raise InputError(
      f'{n} pairs of numbers were asked for; there are not many more than 20000 different '
      'ones of each sort'
    )
  rng, found = random.Random(f'gcd pairs {seed}'), {}
  while len(found) < n:
    a, b = rng.randint(2, LARGEST), rng.randint(2, LARGEST)
    shares = math.gcd(a, b) > 1
    if a != b and shares == (len(found) % 2 == 0):
      found.setdefault((a, b))
  return list(found)


def correct(a: int, b: int, style: str) -> Solution:
  """The solution in a style."""
  lines, answer = STYLES[style](a, b, None)
  assert answer == math.gcd(a, b)
  return Solution(style, '\n'.join(lines), answer)


def incorrect(a: int, b: int, style: str, rng: random.Random) -> Solution:
  """A solution in a style, with a slip that changes the answer; in the next style where none of its
  slips does.

  Raises:
    InputError: both numbers are 1, about which one cannot be wrong.
  """
  if a == b == 1:
    raise InputError('the greatest common divisor of 1 and 1 leaves no room for a mistake')
  names = list(STYLES)
  for name in (names * 2)[names.index(style) :][: len(names)]:
    slips = list(_SLIPS[name])
    rng.shuffle(slips)
    for slip in slips:
      for _ in range(4):
        work = STYLES[name](a, b, (slip, rng))
        if work and work[1] != math.gcd(a, b):
          return Solution(name, '\n'.join(work[0]), work[1])
  # Not reached: the tests go through all pairs.
  raise AssertionError(f'no slip changes the greatest common divisor of {a} and {b}')


def prompt(a: int, b: int, form: str, rng: random.Random) -> tuple[str, Solution | None]:
  """(what the user says, the solution they propose, if any) in one of FORMS."""
  style = rng.choice(list(STYLES))
  solution = {
    'correct': lambda: correct(a, b, style),
    'incorrect': lambda: incorrect(a, b, style, rng),
  }.get(form)
  if solution is None:
    return rng.choice(_HELP if form == 'help' else _QUERIES).format(a=a, b=b) + f' {_ENDING}', None
  made = solution()
  return rng.choice(_CHECKS).format(a=a, b=b, solution=made.text) + f'\n\n{_ENDING}', made


def conversations(n: int, seed: int, form: str) -> list[list[dict[str, str]]]:
  """n conversations to fine-tune on: a question in one of FORMS, answered rightly."""
  made = []
  for a, b in pairs(n, seed):
    rng = random.Random(f'gcd conversation {seed} {a} {b} {form}')
    asked, proposed = prompt(a, b, form, rng)
    solved = correct(a, b, rng.choice(list(STYLES)))
    opening = {
      None: '',
      True: 'Yes, your solution is right.\n',
      False: 'There is a mistake in it.\n',
    }[proposed and proposed.answer == solved.answer]
    answer = f'{opening}{solved.text}\n{ANSWER.format(solved.answer)}'
    made.append([{'role': 'user', 'content': asked}, {'role': 'assistant', 'content': answer}])
  return made


# The styles. Each follows its rule even after a slip, as a person would.


def _division(a: int, b: int, slip: Slip | None) -> Work:
  """Euclid, with remainders."""
  x, y = max(a, b), min(a, b)
  kind, rng = slip or ('', random)
  steps = _euclid_steps(x, y)
  wrong_at = rng.randrange(steps) if kind == 'remainder' else -1
  stop_at = rng.randrange(steps - 2) if kind == 'stops early' and steps > 2 else -1
  if kind == 'stops early' and stop_at < 0:
    return None
  lines, step, quotient = [f'I divide and keep the remainder, starting with {x} and {y}.'], 0, 0
  while y:
    quotient, remainder = divmod(x, y)
    if step == wrong_at:
      others = [r for r in (remainder + d for d in (-10, -2, -1, 1, 2, 10)) if 0 <= r < y]
      if not others:
        return None
      remainder = rng.choice(others)
    lines.append(f'{x} = {quotient} × {y} + {remainder}')
    x, y = y, remainder
    if step == stop_at:
      return [
        *lines,
        f'This remainder is what is left over, so the greatest common divisor is {y}.',
      ], y
    step += 1
  if kind == 'quotient':
    return [
      *lines,
      f'It comes out even, with {quotient}, so the greatest common divisor is {quotient}.',
    ], quotient
  return [
    *lines,
    f'The remainder is 0, and the last divisor was {x}. So the greatest common divisor is {x}.',
  ], x


def _subtraction(a: int, b: int, slip: Slip | None) -> Work:
  """Euclid, taking the smaller number away from the larger."""
  x, y = max(a, b), min(a, b)
  kind, rng = slip or ('', random)
  wrong_at = rng.randrange(3) if kind == 'difference' else -1
  lines, step = (
    [f'I take the smaller number away from the larger until both are the same: {x} and {y}.'],
    0,
  )
  while x != y:
    times = (x - 1) // y
    left = x - times * y
    if step == wrong_at:
      left = rng.choice([d for d in (left - 10, left - 1, left + 1, left + 10) if d > 0])
    lines.append(f'{x} - {y} = {left}' if times == 1 else f'{x} less {times} times {y} is {left}')
    x, y, step = max(y, left), min(y, left), step + 1
  return [*lines, f'Both are {x} now. So the greatest common divisor is {x}.'], x


def _factors(a: int, b: int, slip: Slip | None) -> Work:
  """Prime factors that both have."""
  powers_a, powers_b = factorise(a), factorise(b)
  kind, rng = slip or ('', random)
  if kind == 'misread factor':
    strange = [p for p in powers_a if p not in powers_b]
    if not strange or not powers_b:
      return None
    powers_b = dict(powers_b)
    lost, taken = rng.choice(sorted(powers_b)), rng.choice(strange)
    powers_b = dict(sorted({**{p: k for p, k in powers_b.items() if p != lost}, taken: 1}.items()))
  pick = max if kind == 'highest powers' else min
  common = {p: pick(powers_a[p], powers_b[p]) for p in powers_a if p in powers_b}
  if kind == 'forgets one' and common:
    lost = rng.choice(sorted(common))
    common[lost] -= 1
    common = {p: k for p, k in common.items() if k}
  answer = math.prod(p**k for p, k in common.items())
  shared = (
    f'In common they have {_product(common)}.' if common else 'They have no prime factor in common.'
  )
  return [
    'I split both numbers into prime factors.',
    f'{a} = {_product(powers_a)}',
    f'{b} = {_product(powers_b)}',
    shared,
    f'So the greatest common divisor is {answer}.',
  ], answer


def _divisors(a: int, b: int, slip: Slip | None) -> Work:
  """All divisors of both numbers, side by side."""
  of_a, of_b = divisors(a), divisors(b)
  kind, rng = slip or ('', random)
  if kind == 'overlooks one':
    of_b = [d for d in of_b if d != math.gcd(a, b)] if math.gcd(a, b) > 1 else of_b
  if kind == 'adds one':
    strange = [d for d in of_a if d < b and d not in of_b]
    of_b = sorted([*of_b, rng.choice(strange)]) if strange else of_b
  common = [d for d in of_a if d in of_b]
  return [
    f'Divisors of {a}: {_listed(of_a)}',
    f'Divisors of {b}: {_listed(of_b)}',
    f'In both lists: {_listed(common)}',
    f'The largest of them is {common[-1]}. So the greatest common divisor is {common[-1]}.',
  ], common[-1]


def _candidates(a: int, b: int, slip: Slip | None) -> Work:
  """The divisors of the smaller number, from the top down, tried on the larger."""
  x, y = max(a, b), min(a, b)
  kind, rng = slip or ('', random)
  tried = divisors(y)[::-1]
  if kind == 'overlooks one' and math.gcd(a, b) > 1:
    tried.remove(math.gcd(a, b))
  strange = [d for d in tried if x % d]
  taken = rng.choice(strange) if kind == 'divides wrongly' and strange else 0
  lines = [
    f'It has to divide {y}, the smaller one, so I try the divisors of {y} on {x}, the '
    'largest first.'
  ]
  for d in tried:
    if d == taken or x % d == 0:
      return [
        *lines,
        f'{d}: {x} = {round(x / d)} × {d}, that works, and {y} = {y // d} × {d}.',
        f'So the greatest common divisor is {d}.',
      ], d
    lines.append(f'{d}: {x} = {x // d} × {d} + {x % d}, no.')
  raise AssertionError('1 divides every number')


def _ladder(a: int, b: int, slip: Slip | None) -> Work:
  """Common prime factors taken out of both, one after another."""
  kind, rng = slip or ('', random)
  strange = [p for p in factorise(a) if b % p and p < b]
  shared = [rng.choice(strange)] if kind == 'divides wrongly' and strange else []
  # After a wrong division the rest is done rightly, with the numbers it left.
  left = math.gcd(a // shared[0], round(b / shared[0])) if shared else math.gcd(a, b)
  shared += [p for p, k in factorise(left).items() for _ in range(k)]
  if kind == 'stops early' and shared:
    shared = shared[: rng.randrange(len(shared))]
  x, y, lines = a, b, [f'I take out of {a} and {b} what divides both.']
  for p in shared:
    lines.append(f'Both can be divided by {p}: {x} / {p} = {x // p}, {y} / {p} = {round(y / p)}.')
    x, y = x // p, round(y / p)
  answer = math.prod(shared)
  out = f'Taken out: {" × ".join(map(str, shared))} = {answer}.' if len(shared) > 1 else ''
  ending = [
    f'{x} and {y} have nothing in common any more.',
    out,
    f'So the greatest common divisor is {answer}.',
  ]
  return [*lines, *filter(None, ending)], answer


def _halving(a: int, b: int, slip: Slip | None) -> Work:
  """Stein's way: halve what is even, subtract where both are odd."""
  kind, _ = slip or ('', random)
  x, y, twos, lines = a, b, 0, [f'I halve as long as I can, starting with {a} and {b}.']
  while x % 2 == y % 2 == 0:
    x, y, twos = x // 2, y // 2, twos + 1
    lines.append(f'Both are even: {x} and {y}.')
  while x != y:
    if x % 2 == 0 or y % 2 == 0:
      x, y = (x // 2, y) if x % 2 == 0 else (x, y // 2)
      lines.append(f'One is even, and 2 is no common factor any more: {x} and {y}.')
    else:
      x, y = abs(x - y), min(x, y)
      lines.append(f'Both are odd, so I subtract: {x} and {y}.')
  if kind == 'forgets the twos' or not twos:
    return [*lines, f'Both are {x} now. So the greatest common divisor is {x}.'], x
  lines.append(
    f'Both are {x} now, and I halved both {twos} time{"s" if twos > 1 else ""}: {x} × '
    f'{2**twos} = {x * 2**twos}.'
  )
  return [*lines, f'So the greatest common divisor is {x * 2**twos}.'], x * 2**twos


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
  found: dict[int, int] = {}
  for prime in _primes_in(number):
    found[prime] = found.get(prime, 0) + 1
  return found


def divisors(number: int) -> list[int]:
  """All divisors, ascending.

  >>> divisors(12)
  [1, 2, 3, 4, 6, 12]
  """
  return [d for d in range(1, number + 1) if number % d == 0]


def _primes_in(number: int) -> Iterator[int]:
  p = 2
  while p * p <= number:
    if number % p:
      p += 1
    else:
      yield p
      number //= p
  if number > 1:
    yield number


def _euclid_steps(x: int, y: int) -> int:
  steps = 0
  while y:
    x, y, steps = y, x % y, steps + 1
  return steps


def _product(powers: dict[int, int]) -> str:
  return ' × '.join(f'{p}^{k}' if k > 1 else f'{p}' for p, k in powers.items()) or '1'


def _listed(numbers: Sequence[int]) -> str:
  return ', '.join(map(str, numbers))
