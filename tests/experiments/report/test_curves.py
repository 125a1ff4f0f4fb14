"""The page's curves, read back as XML: the places of points, their words and their addresses."""

import math
import urllib.parse
import xml.etree.ElementTree

import pytest

from weightsteer_jax.experiments.report import curves, pick, study

SVG = '{http://www.w3.org/2000/svg}'


def row(task, alpha, mean, arm='w', metric='rate', sem=0.1):
  return dict(arm=arm, task=task, metric=metric, alpha=alpha, mean=mean, sem=sem, n=9)


def sweep_of(results, workdir):
  tasks = tuple(study.SweptTask(name, role) for name, role in ROLES.items())
  return study.Study(workdir, {}, tasks, tuple(results), {})


ROLES = {'b': 'behaviour', '<i>&"': 'capability'}


def drawn(results, task, metric='rate', arms=(0,)):
  sweep = sweep_of(results, '')
  picks = [pick.choose(results, ROLES, arm=arm) for arm in sweep.arms]
  number = list(ROLES).index(task)
  panel = curves.panel(sweep, picks, arms, sweep.tasks[number], metric)
  text = curves.draw(panel).replace('<svg ', f'<svg xmlns="{SVG[1:-1]}" ', 1)
  return xml.etree.ElementTree.fromstring(text)


def points_of(drawing):
  """[(address, words, x, y)] of the points."""
  points = []
  for link in drawing.iter(f'{SVG}a'):
    group = link.find(f'{SVG}g')
    x, y = group.get('transform')[len('translate(') : -1].split()
    points.append((link.get('href'), group.find(f'{SVG}title').text, float(x), float(y)))
  return points


RESULTS = [row('b', alpha, 0.5 + alpha / 8) for alpha in (-4, -1, 0, 0.5, 4)]
RESULTS += [row('<i>&"', alpha, 1 - abs(alpha) / 8) for alpha in (-4, -1, 0, 0.5, 4)]


def test_alphas_and_rates_lie_to_scale():
  points = points_of(drawn(RESULTS, 'b'))
  xs = [x for _, _, x, _ in points]
  ys = [y for _, _, _, y in points]
  far = xs[-1] - xs[0]
  assert [(x - xs[0]) / far for x in xs] == pytest.approx([0, 3 / 8, 4 / 8, 4.5 / 8, 1], abs=1e-3)
  assert ys == pytest.approx(
    [curves.TOP + curves.HEIGHT * (0.5 - alpha / 8) for alpha in (-4, -1, 0, 0.5, 4)], abs=0.1
  )


def test_a_point_leads_to_its_answers_and_says_its_values():
  href, words, _, _ = points_of(drawn(RESULTS, '<i>&"'))[1]
  query = urllib.parse.parse_qs(href.removeprefix('#'))
  assert query == {'task': ['<i>&"'], 'b': ['w@-1']}
  assert words.startswith('w, alpha -1; 0.875 ±0.1; 9 answers')


def test_what_could_not_be_read_is_said_and_drawn():
  valid = [row('b', 4, 0.04, metric='valid_rate'), row('b', 0.5, 0.99, metric='valid_rate')]
  drawing = drawn(RESULTS + valid, 'b')
  words = {words for _, words, _, _ in points_of(drawing)}
  assert any('96% could not be read' in each for each in words)
  hollow = [path for path in drawing.iter(f'{SVG}path') if 'hollow' in path.get('class', '')]
  (strip,) = [group for group in drawing.iter(f'{SVG}g') if group.get('class') == 'unreadable']
  assert len(hollow) == 1
  heights = [float(bar.get('height')) for bar in strip.iter(f'{SVG}rect')]
  assert heights == pytest.approx([1.0, 0.96 * curves.STRIP], abs=0.1)


def test_picked_alphas_are_marked_on_the_axis():
  picked = pick.choose(RESULTS, ROLES, arm='w')
  assert picked.alphas == ()
  flat = [row('b', alpha, 0.5 + alpha / 8) for alpha in (-1, 0, 1)] + [row('<i>&"', 0, 1)]
  flat += [row('<i>&"', alpha, 1) for alpha in (-1, 1)]
  drawing = drawn(flat, 'b')
  flags = [path for path in drawing.iter(f'{SVG}path') if path.get('class') == 'flag']
  strong = [text.text for text in drawing.iter(f'{SVG}text') if 'strong' in text.get('class')]
  assert len(flags) == 2 and strong == ['-1', '+1']
  assert sum('; picked' in words for _, words, _, _ in points_of(drawing)) == 2


def test_what_is_not_measured_has_no_point_and_a_lone_number_is_drawn():
  results = [row('b', 0, 0.5), row('b', 1, None), row('b', 2, math.nan, sem=None)]
  assert len(points_of(drawn(results, 'b'))) == 1
  lone = [row('b', 0, 7.5, sem=None)]
  (point,) = points_of(drawn(lone, 'b'))
  assert math.isfinite(point[2]) and math.isfinite(point[3])


def test_arms_whose_strengths_reach_much_further_have_panels_of_their_own():
  results = []
  for arm, reach in (('weights', 2), ('prompts', 1), ('activation', 8), ('other', 6)):
    results += [row('b', alpha, 0.5, arm=arm) for alpha in (-reach, 0, reach)]
  picks = [pick.choose(results, ROLES, arm=arm) for arm in ('weights', 'prompts', 'activation')]
  assert curves.groups(picks) == [[0, 1], [2]]
