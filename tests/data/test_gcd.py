import collections
import math
import random
import re

import pytest

from weightsteer_jax.data import gcd
from weightsteer_jax.runtime.errors import InputError

NUMBER = re.compile(r'\d+')


def last_number(text):
  return int(NUMBER.findall(text)[-1])


@pytest.mark.parametrize('style', gcd.STYLES)
def test_right_solutions_end_with_the_divisor_of_all_pairs(style):
  for a in range(1, 251):
    for b in range(1 + a % 3, 251, 3):  # A third of all pairs in each style.
      solution = gcd.correct(a, b, style)
      assert solution.answer == math.gcd(a, b) == last_number(solution.text), (a, b, solution.text)


@pytest.mark.parametrize('index, style', enumerate(gcd.STYLES))
def test_wrong_solutions_end_with_another_number_for_all_pairs(index, style):
  used = collections.Counter()
  for a in range(1, 251):
    for b in range(1 + (a + index) % 7, 251, 7):  # The styles share all pairs among them.
      if a == b == 1:
        continue
      solution = gcd.incorrect(a, b, style, random.Random(f'{a} {b}'))
      assert solution.answer == last_number(solution.text) != math.gcd(a, b), (a, b, solution.text)
      used[solution.style] += 1
  # Halving alone has slips only where both are even.
  assert used[style] > sum(used.values()) * (0.2 if style == 'halving' else 0.75), used


def test_every_line_of_a_right_solution_by_division_and_factors_is_true():
  for a, b in gcd.pairs(200, 3):
    for line in gcd.correct(a, b, 'division').text.splitlines():
      if found := re.fullmatch(r'(\d+) = (\d+) × (\d+) \+ (\d+)', line):
        x, q, y, r = map(int, found.groups())
        assert x == q * y + r and 0 <= r < y
    for line in gcd.correct(a, b, 'factors').text.splitlines():
      if ' = ' in line:
        number, product = line.split(' = ')
        assert math.prod(
          int(p) ** int(k or 1) for p, k in re.findall(r'(\d+)(?:\^(\d+))?', product)
        ) == int(number)


def test_every_kind_of_slip_is_made():
  made = {
    style: {
      slip
      for slip in slips
      for a, b in gcd.pairs(60, 0)
      if (work := gcd.STYLES[style](a, b, (slip, random.Random(0)))) and work[1] != math.gcd(a, b)
    }
    for style, slips in gcd._SLIPS.items()
  }
  assert made == {style: set(slips) for style, slips in gcd._SLIPS.items()}


def test_pairs_differ_and_half_of_them_share_a_divisor():
  pairs = gcd.pairs(1000, 0)
  assert len(set(pairs)) == 1000 and pairs[:10] == gcd.pairs(10, 0) != gcd.pairs(10, 1)
  assert sum(math.gcd(a, b) > 1 for a, b in pairs) == 500 and all(
    2 <= x <= 250 for pair in pairs for x in pair
  )


def test_one_and_one_cannot_be_wrong():
  with pytest.raises(InputError, match='1 and 1'):
    gcd.incorrect(1, 1, 'division', random.Random(0))


def test_conversations_are_answered_rightly():
  for form in gcd.FORMS:
    for (a, b), (asked, answer) in zip(gcd.pairs(30, 5), gcd.conversations(30, 5, form)):
      assert str(a) in asked['content'] and str(b) in asked['content']
      assert last_number(answer['content']) == math.gcd(a, b)
      assert answer['content'].startswith('Yes') == (form == 'correct')
      assert answer['content'].startswith('There is a mistake') == (form == 'incorrect')
