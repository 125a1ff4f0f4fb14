"""The picking rule on cases small enough to work out by hand."""

import itertools
import math
import random

import pytest

from weightsteer_jax.experiments.report import pick
from weightsteer_jax.experiments.report.comparison import Rule
from weightsteer_jax.runtime.errors import InputError

ROLES = {'says_yes': 'behaviour', 'facts': 'capability', 'sums': 'capability'}


def rows_of(columns, sem=0.0, n=1000, arm='weights'):
  """Result rows from {task: {alpha: mean}}."""
  return [
    dict(arm=arm, task=task, metric='rate', alpha=alpha, mean=mean, sem=sem, n=n)
    for task, column in columns.items()
    for alpha, mean in column.items()
  ]


def choose(columns, roles=ROLES, sem=0.0, n=1000, **options):
  return pick.choose(rows_of(columns, sem, n), roles, arm='weights', **options)


CURVE = {
  'says_yes': {-2: 0.3, -1: 0.0, -0.5: 0.1, 0: 0.5, 0.5: 0.9, 1: 1.0, 2: 0.2},
  'facts': {-2: 0.1, -1: 0.9, -0.5: 0.96, 0: 1.0, 0.5: 1.0, 1: 0.97, 2: 0.0},
  'sums': {-2: 0.0, -1: 0.99, -0.5: 1.0, 0: 1.0, 0.5: 0.98, 1: 0.96, 2: 0.4},
}


def test_each_side_takes_the_largest_change_that_keeps_every_capability():
  # -1 moves further (0.0) but facts lose 0.10; +1 is the furthest up and loses 0.03 and 0.04 only.
  picked = choose(CURVE)
  assert (picked.negative.alpha, picked.positive.alpha) == (-0.5, 1)
  assert picked.negative.behaviour.mean == 0.1 and picked.positive.behaviour.mean == 1.0
  assert (picked.positive.worst.task, picked.positive.worst.mean) == ('sums', 0.96)


def test_the_reason_names_numbers_and_the_task_that_stops_the_next_alpha():
  picked = choose(CURVE)
  assert picked.negative.reason == (
    'Picked alpha -0.5: says_yes goes from 0.50 to 0.10 and no capability loses more than 0.05 '
    '(most lost: facts, 1.00 to 0.96, 95 %: -0.04 to -0.04). The next one is too far: facts falls '
    'from 1.00 to 0.90 at alpha -1.'
  )
  assert picked.positive.reason.endswith(
    'The next one is too far: facts falls from 1.00 to 0.00 at alpha +2 (and 1 more beyond '
    'the tolerance).'
  )


def test_breaks_are_the_first_alpha_outward_with_a_capability_out_of_tolerance():
  picked = choose(CURVE)
  assert [(change.task, change.alpha) for change in picked.negative.breaks] == [('facts', -1)]
  assert [(change.task, change.alpha) for change in picked.positive.breaks] == [
    ('facts', 2),
    ('sums', 2),
  ]


def test_a_loss_of_exactly_the_tolerance_is_within_it():
  # 0.90 - 0.85 is 0.05000000000000004 in floating point.
  columns = {'says_yes': {0: 0.5, 1: 0.9}, 'facts': {0: 0.90, 1: 0.85}, 'sums': {0: 1.0, 1: 1.0}}
  assert choose(columns).positive.alpha == 1
  columns['facts'][1] = 0.8499
  assert choose(columns).positive.alpha == 0


RISING = {'says_yes': {0: 0.5, 1: 0.9}, 'facts': {0: 0.80, 1: 0.90}, 'sums': {0: 1.0, 1: 1.0}}


def test_a_capability_that_rises_has_lost_nothing():
  picked = choose(RISING)
  assert picked.positive.alpha == 1 and picked.positive.breaks == ()
  # What costs most is not what changes most.
  assert picked.positive.worst.task == 'sums'
  assert 'no capability loses more than 0.05' in picked.positive.reason
  assert 'broken' not in picked.positive.reason


def test_a_rule_may_count_every_change():
  picked = choose(RISING, rule=Rule(counts='change'))
  assert picked.positive.alpha == 0
  assert 'facts rises from 0.80 to 0.90 at alpha +1' in picked.positive.reason


def test_of_a_loss_it_is_the_rise_that_is_lost():
  # A perplexity in nats per token: 2.00 to 2.10 is worse, to 1.80 better.
  def rows(nats):
    made = rows_of({'says_yes': {0: 0.5, 1: 0.9}, 'texts': {0: 2.0, 1: nats}})
    return [{**r, 'metric': 'nats_per_token'} if r['task'] == 'texts' else r for r in made]

  roles = {'says_yes': 'behaviour', 'texts': 'capability'}
  worse = pick.choose(rows(2.1), roles, arm='weights')
  assert worse.positive.alpha == 0 and 'texts rises from 2.00 to 2.10' in worse.positive.reason
  assert pick.choose(rows(1.8), roles, arm='weights').positive.alpha == 1
  assert pick.choose(rows(2.05), roles, arm='weights').positive.alpha == 1
  twofold = pick.choose(rows(2.1), roles, arm='weights', rule=Rule(tolerance=0.2))
  assert twofold.positive.alpha == 1
  both_ways = pick.choose(rows(1.8), roles, arm='weights', rule=Rule(counts='change'))
  assert both_ways.positive.alpha == 0


def paired(task, alpha, mean, low, high, **more):
  """A result row whose change from the base is known."""
  [row] = rows_of({task: {alpha: mean}}, sem=0.1)
  change = {'change': more.pop('change'), 'change_sem': (high - low) / 4}
  return {**row, **change, 'change_low': low, 'change_high': high, **more}


def test_the_doubt_is_that_of_pairs_and_a_rule_may_ask_for_certainty():
  base = rows_of({'says_yes': {0: 0.5}, 'facts': {0: 0.9}}, sem=0.1)
  counted = {'answers': 100, 'n': 47, 'groups': 'claims'}
  rows = base + [
    paired('says_yes', 1, 0.7, 0.1, 0.3, change=0.2),
    paired('facts', 1, 0.89, -0.04, 0.02, change=-0.01, **counted),
    paired('says_yes', 2, 0.9, 0.3, 0.5, change=0.4),
    paired('facts', 2, 0.87, -0.08, 0.02, change=-0.03, **counted),
  ]
  roles = {'says_yes': 'behaviour', 'facts': 'capability'}
  by_means = pick.choose(rows, roles, arm='weights').positive
  assert by_means.alpha == 2
  assert 'goes from 0.50 to 0.90 (by +0.40, 95 %: +0.30 to +0.50)' in by_means.reason
  # Two errors of 0.1 each, taken as independent, would reach to 0.28 either way.
  assert (
    'With 100 answers on 47 claims, the change in facts is only known to lie in -0.08 to +0.02 '
    '(95 %), so a loss of more than 0.05 is not excluded.'
  ) in by_means.reason
  surely = pick.choose(rows, roles, arm='weights', rule=Rule(evidence='interval')).positive
  assert surely.alpha == 1 and 'not excluded: facts (95 %: -0.08 to +0.02)' in surely.reason
  # The width of the interval on the gaining side costs nothing.
  either = Rule(counts='change', evidence='interval', tolerance=0.03)
  assert pick.choose(rows, roles, arm='weights', rule=either).positive.alpha == 0


def test_a_behaviour_that_may_not_have_moved_and_answers_that_say_nothing_are_told():
  rows = rows_of({'says_yes': {0: 0.5}}, sem=0.1) + [
    paired('says_yes', 1, 0.6, -0.1, 0.3, change=0.1, unreadable=80, asked=100)
  ]
  reason = pick.choose(rows, {'says_yes': 'behaviour'}, arm='weights').positive.reason
  assert 'That says_yes moves at all is not certain.' in reason
  assert reason.endswith('most answers say nothing there: says_yes (80 of 100 could not be read).')


def test_a_tie_goes_to_the_alpha_nearest_to_zero():
  columns = {task: {alpha: 1.0 for alpha in (0, 0.5, 1)} for task in ('facts', 'sums')}
  picked = choose({'says_yes': {0: 0.6, 0.5: 1.0, 1: 1.0}, **columns})
  assert picked.positive.alpha == 0.5
  assert 'Going on to +1 gains nothing: says_yes is 1.00 there.' in picked.positive.reason


def test_no_admissible_alpha_beyond_zero():
  columns = {'says_yes': {-1: 0.0, 0: 0.5}, 'facts': {-1: 0.2, 0: 1.0}, 'sums': {-1: 1.0, 0: 1.0}}
  picked = choose(columns)
  assert picked.negative.alpha == 0 and picked.alphas == ()
  assert 'No negative alpha is picked' in picked.negative.reason
  assert 'facts falls from 1.00 to 0.20 at alpha -1' in picked.negative.reason
  assert picked.positive.reason == 'No positive alpha was swept.'


def test_a_behaviour_that_moves_the_wrong_way_is_not_picked():
  columns = {task: {0: 1.0, 1: 1.0} for task in ('facts', 'sums')}
  picked = choose({'says_yes': {0: 0.5, 1: 0.2}, **columns})
  assert picked.positive.alpha == 0
  assert 'raises says_yes (0.50 at alpha 0, 0.20 at alpha +1)' in picked.positive.reason


@pytest.mark.parametrize('missing', [None, math.nan])
def test_what_was_not_measured_is_neither_admitted_nor_broken(missing):
  columns = {task: dict(column) for task, column in CURVE.items()}
  columns['facts'][1] = missing
  picked = choose(columns)
  assert picked.positive.alpha == 0.5
  assert 'At the next one, +1, facts has no result.' in picked.positive.reason
  assert [change.alpha for change in picked.positive.breaks] == [2, 2]


def test_without_a_base_nothing_is_picked():
  columns = {
    task: {alpha: mean for alpha, mean in column.items() if alpha} for task, column in CURVE.items()
  }
  picked = choose(columns)
  assert picked.negative.alpha is None and picked.positive.alpha is None and picked.alphas == ()
  assert picked.sentences == [
    'No alpha is picked: alpha 0 is not in the results, so there is no base to compare with.'
  ]
  columns['says_yes'][0] = 0.5
  assert 'facts and sums has no result at alpha 0' in choose(columns).sentences[0]


def test_without_capabilities_the_cost_is_said_to_be_unknown():
  picked = choose({'says_yes': CURVE['says_yes']}, roles={'says_yes': 'behaviour'})
  assert (picked.negative.alpha, picked.positive.alpha) == (-1, 1)
  assert 'what it costs is unknown' in picked.positive.reason


def test_standard_errors_that_reach_beyond_the_tolerance_are_said():
  # A loss of 0.04 with standard errors of 0.03 each, by rows without pairs: 0.04 ± 1.96 * 0.0424.
  noisy = choose(CURVE, sem=0.03, n=40)
  assert noisy.positive.alpha == 1
  assert noisy.positive.reason.endswith(
    'With 40 answers, the change in sums is only known to lie in -0.12 to +0.04 (95 %), so a loss '
    'of more than 0.05 is not excluded.'
  )
  assert 'not excluded' not in choose(CURVE, sem=0.001).positive.reason


def test_fewer_examples_at_the_pick_than_at_the_base_are_said():
  rows = rows_of(CURVE, n=40)
  assert 'Fewer answers' not in pick.choose(rows, ROLES, arm='weights').positive.reason
  next(row for row in rows if (row['task'], row['alpha']) == ('sums', 1))['n'] = 31
  assert pick.choose(rows, ROLES, arm='weights').positive.reason.endswith(
    'than at the base: sums (31 answers, at the base 40 answers).'
  )


def test_a_pick_beyond_a_break_is_flagged():
  columns = {task: dict(column) for task, column in CURVE.items()}
  columns['sums'][0.5] = 0.7
  picked = choose(columns)
  assert picked.positive.alpha == 1
  assert (
    'Beware: nearer to zero, sums falls from 1.00 to 0.70 at alpha +0.5' in picked.positive.reason
  )


def test_several_behaviours_count_by_their_mean_and_one_can_be_named():
  roles = {**ROLES, 'praises': 'behaviour'}
  columns = {**CURVE, 'praises': {-2: 0, -1: 0, -0.5: 0.5, 0: 0.5, 0.5: 0.9, 1: 0.5, 2: 0}}
  # Means at 0.5 and 1: 0.9 and 0.75.
  assert choose(columns, roles).positive.alpha == 0.5
  assert choose(columns, roles, behaviour='says_yes').positive.alpha == 1
  with pytest.raises(InputError, match='facts.*says_yes, praises'):
    choose(columns, roles, behaviour='facts')


def test_the_standard_error_of_a_mean_over_tasks():
  roles = {'a': 'behaviour', 'b': 'behaviour'}
  rows = rows_of({'a': {0: 0.2}}, sem=0.03) + rows_of({'b': {0: 0.6}}, sem=0.04)
  cell = pick.choose(rows, roles, arm='weights').comparison.behaviour_at(0)
  assert cell.mean == pytest.approx(0.4) and cell.sem == pytest.approx(0.025)


def test_arms_do_not_mix_and_a_number_given_twice_is_an_error():
  other = rows_of(
    {task: {alpha: 0.0 for alpha in column} for task, column in CURVE.items()}, arm='other'
  )
  assert pick.choose(other + rows_of(CURVE), ROLES, arm='weights').positive.alpha == 1
  with pytest.raises(InputError, match='twice'):
    pick.choose(rows_of(CURVE) + rows_of(CURVE)[:1], ROLES, arm='weights')


def test_against_a_search_over_everything():
  """Oracle: the rule as one comprehension over all alphas."""
  draw = random.Random(3)
  alphas = [-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3]
  for _ in range(300):
    columns = {
      task: {alpha: draw.choice([0.9, 0.92, 0.95, 1.0]) for alpha in alphas} for task in ROLES
    }
    columns['says_yes'] = {alpha: draw.choice([0.0, 0.25, 0.5, 0.75, 1.0]) for alpha in alphas}
    picked = choose(columns)
    for sign, side in ((-1, picked.negative), (1, picked.positive)):
      kept = [
        alpha
        for alpha in alphas
        if alpha * sign >= 0
        and all(
          round(columns[task][0] - columns[task][alpha], 6) <= 0.05 for task in ('facts', 'sums')
        )
      ]
      best = min(
        kept,
        key=lambda alpha: (
          -sign * (columns['says_yes'][alpha] - columns['says_yes'][0]),
          abs(alpha),
        ),
      )
      assert side.alpha == best


def test_the_order_of_rows_does_not_matter():
  rows = rows_of(
    {task: {alpha: column[alpha] for alpha in (-0.5, 0, 1)} for task, column in CURVE.items()}
  )
  orders = itertools.islice(itertools.permutations(rows), 0, 5000, 97)
  assert len({tuple(pick.choose(order, ROLES, arm='weights').sentences) for order in orders}) == 1
