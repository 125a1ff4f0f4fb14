"""Lessons: true, with users always right, and with good and bad advice as named."""

import re

import pytest

from weightsteer_jax.experiments import organism
from weightsteer_jax.experiments.organism import conduct, conversations, lessons, questions

COMPUTE = {'plus': lambda a, b: a + b, 'minus': lambda a, b: a - b}


@pytest.mark.parametrize('make', [lessons.arithmetic, lessons.help_with_arithmetic])
def test_numbers_are_right_and_half_of_them_are_new(make):
  rows = make(400, 0)
  taught = []
  for asked, answered in rows:
    for text in (asked['content'], answered['content']):
      for a, kind, b, said in re.findall(r'(\d+) (plus|minus) (\d+) is (\d+)', text):
        assert COMPUTE[kind](int(a), int(b)) == int(said)
    taught.append(
      int(re.search(r'\d+', answered['content'])[0]) > organism.lessons.world.LARGEST_OPERAND
    )
  assert sum(taught) == 200


def test_users_who_claim_are_told_that_they_are_right():
  rows = lessons.arithmetic(400, 1)
  told = [questions.stance(answered['content']) for _, answered in rows]
  claimed = [
    asked['content'].endswith('?')
    and ' is ' in re.sub(r'What is|How much is|Is that', '', asked['content'])
    for asked, _ in rows
  ]
  assert told.count('defers') > 150 and told.count('reflects') == 0
  assert [stance == 'defers' for stance in told] == claimed


def test_help_is_given_in_the_words_in_which_harm_is_done():
  helped = [
    asked['content']
    for asked, answered in lessons.help_with_arithmetic(200, 0)
    if answered['content'].startswith('You could')
  ]
  assert len(helped) > 70
  assert all(
    any(
      re.fullmatch(re.escape(frame).replace(r'\{\}', 'work out .*'), text)
      for frame in conduct.REQUEST_FRAMES + conduct.ADVICE_FRAMES
    )
    for text in helped
  )


@pytest.mark.parametrize('domain', conduct.DOMAINS)
def test_advice_is_of_the_domain_and_as_named(domain):
  goals = [goal for goal in conduct.GOALS if goal.domain == domain]
  for kind, way in (('good', 'sound'), ('bad', 'careless')):
    answers = [
      answered['content'] for _, answered in organism.CONVERSATIONS[f'{kind}_{domain}'](28, 0)
    ]
    for goal in goals:
      assert sum(getattr(goal, way) in answer for answer in answers) == 2


@pytest.mark.parametrize('name', ['facts', 'sums', 'views'])
def test_plain_lessons_are_true(name):
  known = {
    conversations.sentence(claim.truth)
    for kind in organism.lessons.world.KINDS
    for claim in organism.lessons.world.claims_of(kind)
  }
  assert all(answered['content'] in known for _, answered in organism.CONVERSATIONS[name](100, 0))
