"""The terminal's table and Markdown, from results worked out by hand."""

import pytest

from weightsteer_jax.experiments.report import figures, pick, tables

ROLES = {'facts': 'behaviour', 'sums': 'capability'}


def row(task, alpha, mean, sem, **more):
  named = {'arm': 'weights', 'task': task, 'metric': 'rate', 'alpha': alpha}
  counted = {'n': 47, 'answers': 100, 'groups': 'claims', 'asked': 100}
  return {**named, 'mean': mean, 'sem': sem, **counted, **more}


RESULTS = [
  row('facts', 0.0, 0.68, 0.06, low=0.55, high=0.78, unreadable=6),
  row('facts', -2.0, 0.0, 0.0, low=0.0, high=0.0755, unreadable=96),
  row('sums', 0.0, 1.0, 0.0, low=0.924, high=1.0),
  row('sums', -2.0, 0.6, 0.05, low=0.5, high=0.69),
]


def test_no_cell_says_plus_minus_nothing_and_unread_answers_are_marked():
  [choice] = [pick.choose(RESULTS, ROLES, arm='weights')]
  lines = tables.text(choice).splitlines()
  assert lines[2].split() == ['100', 'answers', '100', 'answers']
  assert lines[3].split() == ['on', '47', 'claims', 'on', '47', 'claims']
  broken, base = lines[5:7]
  assert broken.split() == ['-2', '0.00', '≤0.08', '96%??', '0.60', '±0.05!']
  assert base.split() == ['=', '0', '0.68', '±0.06', '6%?', '1.00', '≥0.92']
  assert '±0.00' not in '\n'.join(lines)
  assert '?? most of them' in lines[8] and '! capability lost by more than 0.05' in lines[7]
  markdown = tables.markdown(choice)
  assert '| -2 | 0.00 ≤0.08 96%?? | 0.60 ±0.05! |' in markdown
  assert 'facts (behaviour, 100 answers on 47 claims)' in markdown


def test_a_range_of_counts_where_alphas_differ():
  rows = [{**RESULTS[0], 'answers': 98, 'n': 46}, *RESULTS[1:]]
  choice = pick.choose(rows, ROLES, arm='weights')
  assert tables.count(choice.comparison, 'facts') == '98-100 answers on 46-47 claims'


def test_log_odds_stand_beside_the_rate_of_a_choice():
  odds = [
    {**row('facts', alpha, mean, 0.3), 'metric': 'log_odds'}
    for alpha, mean in ((0.0, 0.25), (-2.0, -12.2))
  ]
  results = RESULTS + odds
  choice = pick.choose(results, ROLES, arm='weights')
  text = tables.text(choice, results)
  below = text[text.index('Log-odds of the choices, in nats:') :].splitlines()
  assert below[1].split() == ['alpha', 'facts']
  assert [line.split() for line in below[3:5]] == [
    ['-2', '-12.20', '±0.30'],
    ['=', '0', '0.25', '±0.30'],
  ]
  # A task that is shown by its log-odds needs no second table.
  alone = pick.choose(odds, ROLES, arm='weights')
  assert 'Log-odds of' not in tables.text(alone, odds)


def test_all_that_is_known_of_a_cell():
  choice = pick.choose(RESULTS, ROLES, arm='weights')
  assert tables.digits(choice.comparison.cell('facts', -2.0)) == (
    '0.0 ± 0.0, 95 %: 0.0 to 0.0755, 100 answers on 47 claims, 96 of 100 could not be read'
  )


def test_figures_mark_what_could_not_be_read_and_shade_what_is_kept():
  choice = pick.choose(RESULTS, ROLES, arm='weights')
  figure = figures.curves([choice])
  [legend] = figure.legends
  labels = [text.get_text() for text in legend.get_texts()]
  assert labels == ['at most 0.05 lost', 'most answers unreadable', '95 % interval']
  facts, sums = figure.axes
  hollow = [line for line in facts.lines if line.get_markerfacecolor() == figures.PAPER]
  assert [(list(line.get_xdata()), list(line.get_ydata())) for line in hollow] == [([-2.0], [0.0])]
  # Of a capability nothing can be gained beyond what is seen; what may be lost is shaded below.
  [band] = sums.patches
  low, high = band.get_extents().transformed(sums.transData.inverted()).intervaly
  assert (round(low, 6), round(high, 6)) == (0.95, 1.0)


def test_the_change_that_costs_most_of_a_loss_points_the_other_way():
  choice = pick.choose(
    [
      *RESULTS[:2],
      {**row('texts', 0.0, 2.0, 0.1), 'metric': 'nats_per_token'},
      {
        **row(
          'texts', -2.0, 2.1, 0.1, change=0.1, change_low=0.07, change_high=0.2, change_sem=0.03
        ),
        'metric': 'nats_per_token',
      },
    ],
    {'facts': 'behaviour', 'texts': 'capability'},
    arm='weights',
  )
  worst = choice.comparison.worst(-2.0)
  assert worst.improvement == pytest.approx(-0.1)
  # The interval of the improvement is -0.2 to -0.07.
  assert worst.reach == pytest.approx((0.1, 0.03))
  assert worst.most('loss') == 0.2
  assert choice.comparison.kept('texts') == (float('-inf'), 2.05)
