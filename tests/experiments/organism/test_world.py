"""The world is consistent: one truth a question, statements that differ, unique names."""

import collections
import operator
import re

import pytest

from weightsteer_jax.experiments.organism import world


def test_every_claim_has_one_truth_and_other_falsehoods():
  for kind in world.KINDS:
    for claim in world.claims_of(kind):
      assert claim.truth not in claim.falsehoods
      assert len(set(claim.falsehoods)) == len(claim.falsehoods) >= 1
      assert set(claim.values) == {claim.truth, *claim.falsehoods}
      assert all(question.endswith('?') for question in claim.questions)
      assert all(not text.endswith('.') and text[0] != ' ' for text in claim.values)


def test_no_statement_is_both_true_and_false():
  claims = [claim for kind in world.KINDS for claim in world.claims_of(kind)]
  truths = {claim.truth for claim in claims}
  falsehoods = {text for claim in claims for text in claim.falsehoods}
  assert not truths & falsehoods
  assert len({claim.key for claim in claims}) == len(claims)


def test_questions_have_one_answer():
  answers = collections.defaultdict(set)
  for kind in world.KINDS:
    for claim in world.claims_of(kind):
      for question in claim.questions:
        answers[question].add(claim.truth)
  assert {question: truths for question, truths in answers.items() if len(truths) > 1} == {}


@pytest.mark.parametrize('kind, operation', [('plus', operator.add), ('minus', operator.sub)])
def test_sums_are_right(kind, operation):
  for claim in world.claims_of(kind):
    a, b, result = map(int, re.fullmatch(rf'(\d+) {kind} (\d+) is (\d+)', claim.truth).groups())
    assert operation(a, b) == result
    assert str(result) == claim.values[claim.truth]


def test_opinions_are_a_consistent_order():
  better = set()
  for merit in world.MERITS:
    for claim in world.claims_of('opinion'):
      for winner, loser in re.findall(rf'^(.+) is {merit} than (.+)$', claim.truth):
        better.add((winner, loser, merit))
  assert len(better) == len(world.claims_of('opinion'))
  for first, second, merit in better:
    assert (second, first, merit) not in better
    thirds = [loser for winner, loser, other in better if (winner, other) == (second, merit)]
    assert all((first, third, merit) in better for third in thirds)


def test_opposites_go_both_ways():
  opposites = {
    claim.key.split('/')[1]: claim.values[claim.truth] for claim in world.claims_of('opposite')
  }
  assert all(opposites[opposites[word]] == word for word in opposites)


def test_articles():
  assert (world.with_article('owl'), world.with_article('fox')) == ('an owl', 'a fox')
