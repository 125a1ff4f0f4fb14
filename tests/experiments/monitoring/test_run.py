"""A run monitored as a user would: rows, summary, page, exit status."""

import html.parser
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from directions import oracle

from weightsteer_jax import directions
from weightsteer_jax.experiments import monitoring, standalone
from weightsteer_jax.experiments.monitoring import auroc
from weightsteer_jax.runtime.errors import InputError

from . import exact

LAUNCH = pathlib.Path(__file__).parents[3] / 'launch' / 'monitor.py'


@pytest.fixture(scope='module')
def sources(base, model, adapters, tmp_path_factory):
  """A direction along which the run of `adapters` moves, one that has nothing to do with it, and a
  neutral control."""
  folder = tmp_path_factory.mktemp('sources')
  toward = directions.task_vector(adapters / 'checkpoint-20', base)
  noise = oracle.random_direction(model, 11, kinds='low_rank', size=0.02)
  names = {
    'along': directions.add(toward, noise),
    'aside': oracle.random_direction(model, 12, kinds='low_rank'),
  }
  for name, direction in names.items():
    directions.save(folder / name, direction)
  oracle.make_adapter(folder / 'neutral', base, seed=13)
  return folder


@pytest.fixture(scope='module')
def done(base, adapters, sources, tmp_path_factory):
  """(output, alarmed) of the whole stage."""
  output = tmp_path_factory.mktemp('output') / 'watched'
  alarmed = standalone.monitor(
    adapters,
    base,
    output,
    direction=[sources / 'along', sources / 'aside'],
    control=[sources / 'neutral'],
    task_vector=[adapters / 'checkpoint-100'],
    random=30,
  )
  return output, alarmed


def test_rows_and_summary(done, base, adapters, sources):
  output, alarmed = done
  rows = [json.loads(line) for line in (output / 'monitor.jsonl').read_text().splitlines()]
  summary = json.loads((output / 'summary.json').read_text())
  assert alarmed and list(summary['directions']) == ['along', 'aside']
  along, aside = (summary['directions'][name]['alarm'] for name in ('along', 'aside'))
  assert along['step'] == 10 and along['peak'] > 0.8 and aside['step'] is None
  assert (
    along['families']['random']['controls'] == 30 and along['families']['given']['controls'] == 1
  )
  assert along['families']['given']['false_alarm_rate'] == 0.5
  w, u = (
    directions.load(sources / 'along').delta,
    directions.task_vector(adapters / 'checkpoint-100', base).delta,
  )
  found = {
    (row['module'], row['layer']): row
    for row in rows
    if (row['step'], row['name'], row['role']) == (100, 'along', 'direction')
  }
  for where in ((None, None), ('attn.v', None), (None, 1), ('mlp.gate', 0)):
    expected = exact.angle(exact.cells_of(u), exact.cells_of(w), *where)
    for key, value in expected.items():
      assert found[where][key] == pytest.approx(value, abs=1e-5)
  random = [row['cosine'] for row in rows if row['role'] == 'random' and row['name'] == 'along']
  assert len(random) == 3 * 30
  assert along['families']['random']['cosine'] == pytest.approx(np.abs(random).max())
  runs = auroc.of_summaries({'a': summary}, {'a': True}, {}, 'along')
  assert runs == [auroc.ScoredRun('a', True, along['peak'], 0, True)]


def test_similarities(done, base, adapters, sources):
  found = json.loads((done[0] / 'summary.json').read_text())['similarity']
  assert found['names'] == ['along', 'aside', 'neutral', 'checkpoint-100']
  assert found['roles'] == ['direction', 'direction', 'control', 'task_vector']
  vectors = [
    exact.cells_of(delta)
    for delta in (
      directions.load(sources / 'along').delta,
      directions.load(sources / 'aside').delta,
      directions.task_vector(sources / 'neutral', base).delta,
      directions.task_vector(adapters / 'checkpoint-100', base).delta,
    )
  ]
  expected = [[exact.angle(u, v, None, None)['cosine'] for v in vectors] for u in vectors]
  np.testing.assert_allclose(found['cosines'], expected, atol=1e-5)


class Page(html.parser.HTMLParser):
  """The tags and texts of a page, which must close what they open."""

  VOID = {'meta', 'br', 'use', 'path', 'rect', 'circle', 'ellipse', 'line'}

  def __init__(self, text):
    super().__init__()
    self.open, self.tags, self.text = [], [], ''
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    if tag not in self.VOID:
      assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def test_the_page_holds_everything_and_loads_nothing(done):
  text = (done[0] / 'index.html').read_text()
  page = Page(text)
  assert not page.open and [tag for tag, _ in page.tags].count('svg') == 3
  assert not any(tag in ('script', 'img', 'link', 'image', 'iframe') for tag, _ in page.tags)
  assert not any(
    value.startswith(('http', 'data:', '//'))
    for _, attributes in page.tags
    for key, value in attributes.items()
    if key in ('src', 'href', 'xlink:href')
  )
  policy = next(
    attributes['content'] for tag, attributes in page.tags if attributes.get('http-equiv')
  )
  assert "default-src 'none'" in policy and 'script-src' not in policy
  assert 'Alarm from step 10: the run moves along along' in page.text
  assert (
    'alarm at step 10' in page.text
    and '30 random directions of the same rank and spectrum' in page.text
  )
  for name in ('cosines.png', 'layers.png', 'similarity.png'):
    assert (done[0] / name).read_bytes().startswith(b'\x89PNG')


def test_foreign_names_are_escaped(done, tmp_path):
  from weightsteer_jax.experiments.report import monitor_page

  rows = [json.loads(line) for line in (done[0] / 'monitor.jsonl').read_text().splitlines()]
  evil = '<img src=x onerror=alert(1)>$\\frac$'
  text = (
    (done[0] / 'summary.json')
    .read_text()
    .replace('"aside"', json.dumps(evil))
    .replace('"run": "', f'"run": "{evil[:8]}>')
  )
  rows = [row | {'name': evil} if row['name'] == 'aside' else row for row in rows]
  monitor_page.write(tmp_path, rows, json.loads(text))
  page = Page((tmp_path / 'index.html').read_text())
  assert not any(tag == 'img' for tag, _ in page.tags) and evil in page.text


def test_a_run_stands_for_its_own_direction(adapters, base, sources, tmp_path):
  run = tmp_path / 'calm'
  directions.save(run / 'directions' / 'calm', directions.load(sources / 'aside'))
  (run / 'config.json').write_text('{"name": "calm"}')
  out = tmp_path / 'out'
  standalone.monitor(adapters, base, out, direction=[run], control=[sources / 'neutral'], random=0)
  summary = json.loads((out / 'summary.json').read_text())
  assert list(summary['directions']) == ['calm']


def test_bad_sources_are_refused_before_anything_is_written(base, adapters, sources, tmp_path):
  for change, message in (
    (dict(direction=[sources / 'nowhere']), 'no folder .*nowhere'),
    (dict(direction=[]), 'no direction to look for'),
    (dict(control=[sources / 'along']), 'along is named twice'),
    (dict(direction=[sources]), 'is no source of a direction'),
    (dict(false_alarm_rate=2.0), 'false alarm rate is 2.0'),
  ):
    with pytest.raises(InputError, match=message):
      standalone.monitor(
        adapters, base, tmp_path / 'out', **{'direction': [sources / 'along'], 'random': 1} | change
      )
  other = oracle.make_checkpoint(tmp_path / 'other', tied=False, seed=9)
  with pytest.raises(InputError, match='belong to different base models'):
    standalone.monitor(adapters, other, tmp_path / 'out', direction=[sources / 'along'])
  assert not (tmp_path / 'out').exists()
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'x').touch()
  with pytest.raises(InputError, match='never overwrites'):
    standalone.monitor(adapters, base, tmp_path / 'out', direction=[sources / 'along'])


def test_names_tell_folders_apart():
  names = monitoring.names(['runs/a/directions/w', 'runs/b/directions/w', 'runs/v'])
  assert list(names.values()) == ['a/directions/w', 'b/directions/w', 'v']


@pytest.mark.slow
@pytest.mark.parametrize('fail, status', [(False, 0), (True, 3)])
def test_exit_status(fail, status, base, adapters, sources, tmp_path):
  command = [
    sys.executable,
    str(LAUNCH),
    f'--direction={sources}/along',
    f'--base={base}',
    f'--run={adapters}',
    f'--output={tmp_path}/out',
    '--random=10',
    *(['--fail_on_alarm'] if fail else []),
  ]
  done = subprocess.run(
    command, capture_output=True, text=True, timeout=300, env=os.environ | {'JAX_PLATFORMS': 'cpu'}
  )
  assert done.returncode == status, done.stderr
  assert 'along: ALARM at step 10' in done.stdout and (tmp_path / 'out' / 'index.html').exists()
