"""Pages drawn from finished runs: one run's anew, and an index over several."""

import html.parser
import json
import shutil
import subprocess
import sys
import urllib.parse

import pytest

from weightsteer_jax.experiments.report import page, redraw, runs_page
from weightsteer_jax.runtime.errors import InputError


class Links(html.parser.HTMLParser):
  """The addresses in a page, and its text."""

  def __init__(self, text):
    super().__init__()
    self.links, self.text = [], ''
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    if tag == 'a':
      self.links.append(dict(attributes)['href'])

  def handle_data(self, data):
    self.text += data


@pytest.fixture
def runs(workdir, tmp_path):
  """Two runs of one name, the second without a page and with a hostile task of its own."""
  page.write(workdir)
  other = tmp_path / 'a second #1'
  shutil.copytree(workdir, other, ignore=shutil.ignore_patterns('report'))
  config = json.loads((other / 'config.json').read_text())
  config['tasks'][0]['name'] = '<script>alert(1)</script>'
  (other / 'config.json').write_text(json.dumps(config))
  for name in ('results.jsonl', 'sweep/rows.jsonl'):
    text = (other / name).read_text()
    (other / name).write_text(text.replace('"opinions"', '"<script>alert(1)</script>"'))
  return [workdir, other]


def test_an_index_has_every_run_and_links_to_pages_that_are_there(runs, tmp_path):
  written = runs_page.write(runs, tmp_path / 'index')
  read = Links(written.read_text())
  assert read.text.count('quickstart (run)') >= 2 and 'quickstart (a second #1)' in read.text
  assert 'alert(1)' in read.text and '<script>alert' not in written.read_text()
  # Points of the first run lead to its page; the second has none.
  targets = {link.split('#')[0] for link in read.links}
  assert targets == {'../run/report/index.html'}
  query = urllib.parse.parse_qs(read.links[-1].split('#')[1])
  assert query['b'][0].startswith('weights@')
  page.write(runs[1])
  again = Links(runs_page.write(runs, tmp_path / 'index').read_text())
  targets = {urllib.parse.unquote(link.split('#')[0]) for link in again.links}
  assert targets == {'../run/report/index.html', '../a second #1/report/index.html'}
  assert all((tmp_path / 'index' / target).is_file() for target in targets)


def test_runs_that_are_none_or_twice_are_refused(runs, tmp_path):
  with pytest.raises(InputError, match='no runs'):
    runs_page.write([], tmp_path / 'index')
  with pytest.raises(InputError, match='named twice'):
    runs_page.write([runs[0], runs[0]], tmp_path / 'index')
  with pytest.raises(InputError, match='nowhere'):
    runs_page.write([runs[0], tmp_path / 'nowhere'], tmp_path / 'index')
  assert not (tmp_path / 'index').exists()


def test_a_page_is_drawn_anew_by_the_rule_of_its_config(workdir, capsys):
  config = json.loads((workdir / 'config.json').read_text())
  config['sweep'] = dict(pick_by='opinions', tolerance=0.5)
  (workdir / 'config.json').write_text(json.dumps(config))
  written = redraw.one(workdir)
  said = capsys.readouterr().out
  assert 'opinions goes from' in said and '0.5' in said and str(written) in said
  assert 'opinions moves from' in written.read_text()


def report(*args):
  return subprocess.run(
    [sys.executable, '-m', 'weightsteer_jax', 'report', *map(str, args)],
    capture_output=True,
    text=True,
  )


@pytest.mark.slow
def test_the_command_draws_both_and_says_what_is_missing(runs, tmp_path):
  done = report(f'--workdir={runs[0]}')
  assert done.returncode == 0 and 'report: ' in done.stdout, done.stderr
  done = report(f'--runs={runs[0]},{runs[1]}', f'--output={tmp_path / "index"}')
  assert done.returncode == 0 and (tmp_path / 'index' / 'index.html').is_file(), done.stderr
  assert f'weightsteer report --workdir={runs[1]} makes one' in done.stdout
  for wrong in ([], [f'--workdir={runs[0]}', '--output=x'], [f'--runs={runs[0]}']):
    done = report(*wrong)
    assert done.returncode == 65 and done.stderr.startswith('error: ')
