"""The figure of behaviour against capability, read back as XML."""

import xml.etree.ElementTree

import pytest

from weightsteer_jax.experiments.report import exchange, pick

SVG = '{http://www.w3.org/2000/svg}'
ROLES = {'b': 'behaviour', '<c>&"': 'capability', 'texts': 'capability'}


def row(task, alpha, mean, arm='w', metric='rate'):
  return dict(arm=arm, task=task, metric=metric, alpha=alpha, mean=mean, sem=0.01, n=9)


def drawn(results, arms=('w',), roles=ROLES):
  text = exchange.draw([pick.choose(results, roles, arm=arm) for arm in arms])
  return xml.etree.ElementTree.fromstring(text.replace('<svg ', f'<svg xmlns="{SVG[1:-1]}" ', 1))


def points_of(drawing):
  points = {}
  for link in drawing.iter(f'{SVG}a'):
    group = link.find(f'{SVG}g')
    x, y = group.get('transform')[len('translate(') : -1].split()
    words = group.find(f'{SVG}title').text
    points[link.get('data-alpha')] = (float(x), float(y), words, link.get('href'))
  return points


def results_of(changes, arm='w'):
  """A behaviour that moves with alpha, a rate and a loss of which {alpha: (rate, loss)}."""
  results = [row('b', alpha, 0.5 + alpha / 4, arm) for alpha in changes]
  results += [row('<c>&"', alpha, rate, arm) for alpha, (rate, _) in changes.items()]
  return results + [
    row('texts', alpha, loss, arm, 'nats_per_token') for alpha, (_, loss) in changes.items()
  ]


CHANGES = {-1.0: (0.7, 3.0), 0.0: (0.9, 3.0), 0.5: (0.9, 3.01), 1.0: (0.9, 3.5)}


def test_what_is_lost_lies_left_of_the_base_whatever_the_metric_is():
  points = points_of(drawn(results_of(CHANGES)))
  base = points['0.0'][0]
  # -0.2 of a rate, 0.01 and 0.5 nats more.
  distances = [(base - points[alpha][0]) / (base - points['1.0'][0]) for alpha in ('-1.0', '0.5')]
  assert distances == pytest.approx([0.2 / 0.5, 0.01 / 0.5], abs=0.01)
  heights = [points[alpha][1] for alpha in ('-1.0', '0.0', '1.0')]
  assert heights == sorted(heights, reverse=True)


def test_a_point_says_its_numbers_and_leads_to_the_answers():
  _, _, words, href = points_of(drawn(results_of(CHANGES)))['-1.0']
  assert words.startswith('w, alpha -1; b: 0.25; <c>&": -0.20')
  assert href == '#task=b&b=w%40-1'


def test_the_band_is_what_the_rule_admits():
  drawing = drawn(results_of(CHANGES))
  (band,) = [rect for rect in drawing.iter(f'{SVG}rect') if rect.get('class') == 'band']
  left = float(band.get('x'))
  points = points_of(drawing)
  kept = {alpha for alpha, (x, *_) in points.items() if x >= left}
  assert kept == {'0.0', '0.5'}


def test_labels_do_not_hide_each_other_and_the_base_has_one():
  results = results_of(CHANGES) + results_of(CHANGES, arm='v')
  drawing = drawn(results, arms=('w', 'v'))
  texts = [text for text in drawing.iter(f'{SVG}text') if text.text in ('base', '+1', '-1', '+0.5')]
  assert [text.text for text in texts].count('base') == 1
  places = [(text.get('x'), text.get('y')) for text in texts]
  assert len(places) == len(set(places))


def test_without_capability_there_is_no_figure():
  results = [row('b', alpha, 0.5) for alpha in (0, 1)]
  assert exchange.draw([pick.choose(results, {'b': 'behaviour'}, arm='w')]) == ''
