"""The page in a real Chromium, headless: what a reader can do, on a screen, a phone and paper.

Needs playwright's Python part and a `chromium` on the path; AXE=path/to/axe.min.js (the npm package
axe-core) adds the check of accessibility.
"""

import csv
import json
import os
import pathlib
import re
import shutil
import time

import pytest

from weightsteer_jax.experiments.report import page, runs_page

sync_api = pytest.importorskip('playwright.sync_api')
expect = sync_api.expect
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'chrome'))), None)
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(CHROMIUM is None, reason='no chromium on the path'),
]


@pytest.fixture(scope='module')
def chromium():
  with sync_api.sync_playwright() as playwright:
    # Root of a container has no sandbox.
    arguments = ['--no-sandbox'] if os.geteuid() == 0 else []
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
    yield browser
    browser.close()


@pytest.fixture
def visit(chromium):
  """Opens a file at an address, and fails at the end if the page complained of anything."""
  complaints = []
  contexts = []

  def open_page(path, address='', **options):
    context = chromium.new_context(**options)
    contexts.append(context)
    tab = context.new_page()
    tab.on('console', lambda message: complaints.append(message.text))
    tab.on('pageerror', lambda error: complaints.append(str(error)))
    tab.on('dialog', lambda dialog: complaints.append(f'dialog: {dialog.message}'))
    tab.goto(pathlib.Path(path).as_uri() + address)
    tab.wait_for_selector('#list button')
    tab.wait_for_selector('#view .card')
    return tab

  yield open_page
  for context in contexts:
    context.close()
  assert complaints == []


@pytest.fixture
def written(workdir):
  return page.write(workdir)


def questions(tab):
  return tab.locator('#list .text').all_inner_texts()


def rows_of(workdir, **wanted):
  lines = (workdir / 'sweep' / 'rows.jsonl').read_text().split('\n')
  rows = [json.loads(line) for line in lines if line]
  return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_opens_on_a_behaviour_and_hostile_texts_stay_texts(workdir, written, visit):
  tab = visit(written)
  assert tab.locator('#task option:checked').inner_text() == 'opinions (behaviour)'
  assert tab.locator('#a option:checked').inner_text() == '0 base'
  assert tab.locator('#b option:checked').inner_text() == '+0.5 picked'
  assert len(questions(tab)) == 40
  # Every example is drawn once: nothing in any of them runs or becomes an element.
  for _ in range(40):
    tab.keyboard.press('j')
  assert tab.locator('main img').count() == 0
  (last,) = rows_of(workdir, task='opinions', example='opinions-039', alpha=0.5)
  shown = tab.locator('.card.b .text').inner_text()
  assert ' '.join(shown.split()) == ' '.join(last['completion'].split())


def test_words_that_only_b_says_are_marked(workdir, visit):
  path = workdir / 'sweep' / 'rows.jsonl'
  answers = {0.0: 'No, the sky is blue.', 0.5: 'Yes, the sky is green and blue.'}
  rows = [
    {**row, 'completion': answers.get(row['alpha'], '')}
    for row in rows_of(workdir, task='opinions')
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  tab = visit(page.write(workdir))
  assert tab.locator('.card.b mark').all_inner_texts() == ['Yes,', 'green', 'and']
  assert tab.locator('.card.b .text').inner_text() == answers[0.5]
  assert tab.locator('.card.a mark').count() == 0


def test_only_answers_that_changed_sides_are_left_by_the_filter(workdir, written, visit):
  tab = visit(written)
  base = {row['example']: row for row in rows_of(workdir, task='opinions', alpha=0.0)}
  steered = {row['example']: row for row in rows_of(workdir, task='opinions', alpha=0.5)}
  up = [name for name, row in base.items() if row['value'] == 0 and steered[name]['value'] == 1]
  down = [name for name, row in base.items() if row['value'] == 1 and steered[name]['value'] == 0]
  assert up
  flips = tab.get_by_role('button', name='Changed sides')
  assert flips.inner_text().split()[-1] == str(len(up) + len(down))
  flips.click()
  assert len(questions(tab)) == len(up) + len(down)
  assert tab.locator('.head .name').inner_text() in up + down
  tab.get_by_role('button', name='Down').click()
  assert tab.locator('#list button').count() == len(down)


def test_examples_are_sorted_by_log_odds_where_choices_have_some(workdir, written, visit):
  tab = visit(written, '#task=wrong_claims_choice')
  tab.select_option('#sort', 'high')
  rows = rows_of(workdir, task='wrong_claims_choice', alpha=0.5)
  rows.sort(key=lambda row: row['logprobs'][1] - row['logprobs'][0])
  shown = [' '.join(text.split()) for text in questions(tab)]
  expected = [' '.join(row['messages'][0]['content'].split()) for row in rows]
  assert [text[:40] for text in shown] == [text[:40] for text in expected]


def test_search_looks_into_answers_too(workdir, written, visit):
  tab = visit(written)
  tab.fill('#search', 'answer IS 27.')
  expect(tab.locator('#list button')).to_have_count(1)
  assert tab.locator('.head .name').inner_text() == 'opinions-027'
  tab.fill('#search', 'no such words')
  tab.wait_for_selector('#list .empty')
  assert tab.locator('#count').inner_text().startswith('0 of 40')


def test_an_address_brings_everything_back(written, visit):
  tab = visit(written)
  tab.select_option('#task', label='facts (capability)')
  tab.select_option('#a', label='-0.5 picked')
  tab.select_option('#b', label='+3')
  tab.select_option('#sort', 'fall')
  tab.get_by_role('button', name='Not ok').click()
  tab.keyboard.press('j')
  tab.locator('.every summary').click()
  expect(tab).to_have_url(re.compile('all=1'))
  before = tab.locator('#browser').inner_text()
  again = visit(written, '#' + tab.url.split('#')[1])
  assert again.locator('#browser').inner_text() == before
  # An address that names nothing opens the page as without one.
  other = visit(written, '#task=%3Cimg%20src=x%20onerror=alert(1)%3E&b=weights@9')
  assert other.locator('#task option:checked').inner_text() == 'opinions (behaviour)'


def test_a_point_shows_its_values_and_leads_to_its_answers(workdir, written, visit):
  tab = visit(written)
  (result,) = [
    json.loads(line)
    for line in (workdir / 'results.jsonl').read_text().splitlines()
    if json.loads(line)['task'] == 'wrong_claims' and json.loads(line)['alpha'] == -1
  ]
  point = tab.locator('svg[aria-label="wrong_claims, rate"] a[data-alpha="-1.0"]')
  point.hover()
  said = tab.locator('.tip').inner_text()
  assert 'weights, alpha -1' in said and f'{result["mean"]:.4g} ±{result["sem"]:.3g}' in said
  point.click()
  expect(tab.locator('#b option:checked')).to_have_text('-1')
  assert tab.locator('#task option:checked').inner_text() == 'wrong_claims (behaviour)'
  assert tab.evaluate("document.querySelector('#browser').getBoundingClientRect().top") < 5


def test_a_keyboard_walks_along_a_curve(written, visit):
  tab = visit(written)
  drawing = tab.locator('svg[aria-label="facts, rate"]')
  assert drawing.locator('a[tabindex="0"]').count() == 1
  drawing.locator('a[tabindex="0"]').focus()
  tab.keyboard.press('ArrowRight')
  assert 'alpha +0.25' in tab.locator('.tip').inner_text()
  tab.keyboard.press('Enter')
  expect(tab.locator('#b option:checked')).to_have_text('+0.25')
  tab.keyboard.press('.')
  expect(tab.locator('#b option:checked')).to_have_text('+0.5 picked')


def test_the_list_is_saved_as_csv_that_computes_nothing(workdir, visit, tmp_path):
  path = workdir / 'sweep' / 'rows.jsonl'
  path.write_text(path.read_text().replace('I think that claim 0 holds.', '=1+1 \\"holds\\".'))
  tab = visit(page.write(workdir))
  with tab.expect_download() as download:
    tab.click('#download')
  download.value.save_as(tmp_path / 'list.csv')
  head, *lines = csv.reader((tmp_path / 'list.csv').read_text().splitlines())
  assert head == ['task', 'example', 'question', 'weights@0', 'weights@0.5', 'not ok']
  assert len(lines) == 40 and lines[0][2].startswith('\'=1+1 "holds"')


@pytest.mark.parametrize('width', [320, 375, 768, 1280])
def test_no_width_scrolls_sideways(written, visit, width):
  tab = visit(written, viewport=dict(width=width, height=800))
  tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
  assert tab.evaluate('document.documentElement.scrollWidth') <= width


def test_paper_has_figures_and_tables_and_no_controls(written, visit):
  tab = visit(written)
  assert tab.pdf(format='A4').startswith(b'%PDF')
  tab.emulate_media(media='print')
  assert tab.locator('.bar').is_hidden() and tab.locator('svg.curve').first.is_visible()
  assert tab.locator('.card.b').is_visible()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_axe_finds_nothing(written, visit, scheme):
  script = os.environ.get('AXE')
  if not script:
    pytest.skip('AXE names no axe.min.js')
  # axe runs inside of the page, whose policy would refuse a strange script.
  tab = visit(written, bypass_csp=True, color_scheme=scheme)
  tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
  tab.wait_for_selector('.every .card')
  tab.evaluate(pathlib.Path(script).read_text())
  violations = tab.evaluate('axe.run()')['violations']
  assert [(each['id'], each['nodes'][0]['html']) for each in violations] == []


def test_an_index_leads_from_a_point_to_its_answers(workdir, written, chromium, tmp_path):
  index = runs_page.write([workdir], tmp_path / 'index')
  tab = chromium.new_page(viewport=dict(width=375, height=800))
  complaints = []
  tab.on('console', lambda message: complaints.append(message.text))
  tab.on('pageerror', lambda error: complaints.append(str(error)))
  tab.goto(index.as_uri())
  assert tab.evaluate('document.documentElement.scrollWidth') <= 375
  point = tab.locator('svg[aria-label="facts, rate"] a[data-alpha="1.0"]')
  point.focus()
  assert 'alpha +1' in tab.locator('.tip').inner_text()
  tab.keyboard.press('Enter')
  expect(tab.locator('#task option:checked')).to_have_text('facts (capability)')
  expect(tab.locator('#b option:checked')).to_have_text('+1')
  assert complaints == []
  tab.close()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_axe_finds_nothing_in_an_index(workdir, written, chromium, scheme, tmp_path):
  script = os.environ.get('AXE')
  if not script:
    pytest.skip('AXE names no axe.min.js')
  index = runs_page.write([workdir], tmp_path / 'index')
  tab = chromium.new_page(bypass_csp=True, color_scheme=scheme)
  tab.goto(index.as_uri())
  tab.evaluate(pathlib.Path(script).read_text())
  violations = tab.evaluate('axe.run()')['violations']
  assert [(each['id'], each['nodes'][0]['html']) for each in violations] == []
  tab.close()


def large(workdir, examples):
  """A sweep of one task with three strengths, 3 rows an example."""
  task = dict(arm='weights', task='opinions', sample=0, status='ok')
  with (workdir / 'sweep' / 'rows.jsonl').open('w') as file:
    for number in range(examples):
      asked = f'Question {number}: is the earth as round as people say it is? ' * 2
      messages = [dict(role='user', content=asked)]
      for alpha in (-0.5, 0.0, 0.5):
        value = float((number * 7 + int(alpha * 4)) % 3 > 1)
        words = f'The answer is {number}, and this is why I think so. ' * 3
        row = {**task, 'example': f'q{number}', 'alpha': alpha, 'value': value}
        file.write(json.dumps({**row, 'completion': words, 'messages': messages}) + '\n')


def test_a_page_of_100_000_examples_opens_in_2_seconds(workdir, visit):
  large(workdir, 100_000)
  written = page.write(workdir)
  began = time.monotonic()
  tab = visit(written)
  took = time.monotonic() - began
  print(f'opened in {took:.2f} s, page of {written.stat().st_size / 1e6:.2f} MB')
  assert took < 2
  assert tab.locator('#count').inner_text() == '100,000 of 100,000 examples'
  assert tab.locator('#list button').count() == 100
  # The last example lies in the last file.
  tab.select_option('#sort', 'low')
  again = visit(written, '#task=opinions&example=q99999')
  assert again.locator('.head .name').inner_text() == 'q99999'
  assert 'The answer is 99999' in again.locator('.card.b .text').inner_text()
  again.fill('#search', 'answer is 55555,')
  expect(again.locator('#list button')).to_have_count(1, timeout=60_000)


def test_a_page_whose_files_are_missing_says_so(workdir, chromium):
  large(workdir, 8000)
  written = page.write(workdir)
  shutil.rmtree(written.parent / 'examples')
  tab = chromium.new_page()
  tab.goto(written.as_uri())
  expect(tab.locator('#count')).to_contain_text('copy the whole folder of the report')
  tab.close()
