"""The written report, read back by parsers that are not ours."""

import base64
import copy
import hashlib
import html.parser
import json
import math
import os
import re
import struct
import xml.etree.ElementTree

import pytest

from weightsteer_jax.experiments.report import figures, page, pick, study, tables
from weightsteer_jax.runtime.errors import OutputError


class Reader(html.parser.HTMLParser):
  """Collects a page's elements, its scripts, and the cells of its results table."""

  VOID = {'meta', 'input', 'br', 'img', 'link', 'use', 'path', 'rect'}

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.open, self.elements, self.scripts, self.rows, self.text = [], [], [], {}, []
    self.cell = None
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    self.elements.append((tag, attributes))
    if tag not in self.VOID:
      self.open.append(tag)
    if tag == 'script':
      self.scripts.append([attributes, ''])
    if tag == 'tr' and 'data-alpha' in attributes:
      self.row = dict(kind=attributes['class'], cells=[])
      self.rows[attributes['data-arm'], float(attributes['data-alpha'])] = self.row
    if tag == 'td':
      self.cell = [attributes, '']
      if 'title' in attributes:
        self.row['cells'].append(self.cell)

  def handle_startendtag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    if tag not in self.VOID:
      assert self.open and self.open.pop() == tag, f'</{tag}> closes nothing'

  def handle_data(self, data):
    if self.open and self.open[-1] == 'script':
      self.scripts[-1][1] += data
    elif 'td' in self.open:
      self.cell[1] += data
    self.text.append(data)


@pytest.fixture
def written(workdir):
  return page.write(workdir)


def data_of(reader):
  return json.loads(
    next(text for attributes, text in reader.scripts if attributes.get('id') == 'data')
  )


def parts_of(reader):
  """{part: content} of the examples inside of a page."""
  return {
    attributes['id'].removeprefix('part-'): json.loads(text)
    for attributes, text in reader.scripts
    if attributes.get('id', '').startswith('part-')
  }


def examples_of(parts, task):
  """The examples of a task's number, in the order of its list."""
  pieces = [name for name in parts if name.startswith(f'{task}/') and name != f'{task}/index']
  pieces.sort(key=lambda name: int(name.split('/')[1]))
  return [example for name in pieces for example in parts[name]]


def test_the_page_is_well_formed_and_hostile_text_stays_text(written):
  reader = Reader(written.read_text())
  assert reader.open == []
  kinds = [attributes.get('type') for attributes, _ in reader.scripts]
  assert kinds.count(None) == 1 and set(kinds) == {None, 'application/json'}
  assert 'img' not in {tag for tag, _ in reader.elements}
  assert 'prefers the wrong answer <i>offered</i>' in ''.join(reader.text)
  assert '</script><script>alert(2)</script>' in ''.join(reader.text)
  assert not [
    name for _, attributes in reader.elements for name in attributes if name.startswith('on')
  ]


def test_nothing_is_loaded_and_only_our_script_may_run(written):
  text = written.read_text()
  reader = Reader(text)
  policy = next(
    attributes['content'] for _, attributes in reader.elements if attributes.get('http-equiv')
  )
  assert policy.startswith("default-src 'none'; ") and "script-src 'unsafe" not in policy
  script = next(content for attributes, content in reader.scripts if 'id' not in attributes)
  assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
  beside = {'curves.png', 'tradeoff.png', 'results.csv'}
  for tag, attributes in reader.elements:
    for name in ('src', 'href', 'xlink:href', 'action', 'data'):
      value = attributes.get(name, '#')
      assert value.startswith('#') or value in beside, (tag, attributes)
  assert all((written.parent / name).is_file() for name in beside)
  assert 'url(' not in re.sub(r'url\(#\w+\)', '', text) and '@import' not in text


def test_the_numbers_in_the_table_are_those_in_the_results(workdir, written):
  reader = Reader(written.read_text())
  results = [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]
  order = ['opinions', 'wrong_claims', 'wrong_claims_choice', 'facts', 'arithmetic', 'facts_choice']
  assert len(reader.rows) == 13
  for row in results:
    attributes, shown = reader.rows['weights', row['alpha']]['cells'][order.index(row['task'])]
    assert attributes['title'] == f'{row["mean"]!r} ± {row["sem"]!r}, {row["n"]} answers'
    assert [float(number) for number in shown.split(' ±')] == [
      round(row['mean'], 2),
      round(row['sem'], 2),
    ]


def test_the_picked_rows_are_marked_in_the_table_and_named_in_the_headline(workdir, written):
  reader = Reader(written.read_text())
  sweep = study.read(workdir)
  picked = pick.choose(sweep.results, sweep.roles, arm='weights')
  assert picked.negative.alpha == -0.5 and picked.positive.alpha == 0.5
  assert {alpha for (_, alpha), row in reader.rows.items() if row['kind'] == 'picked'} == {
    -0.5,
    0.5,
  }
  assert 'Between alpha -0.5 and +0.5' in ''.join(reader.text)
  assert all(sentence in ''.join(reader.text) for sentence in picked.sentences)
  assert data_of(reader)['picked'] == {'weights': [-0.5, 0.5]}


def test_the_browser_holds_every_row_as_it_was(workdir, written):
  reader = Reader(written.read_text())
  data = data_of(reader)
  parts = parts_of(reader)
  lines = (workdir / 'sweep' / 'rows.jsonl').read_text().split('\n')
  rows = [json.loads(line) for line in lines if line]
  shown = {}
  for number, task in enumerate(data['tasks']):
    for example in examples_of(parts, number):
      for row in example['rows']:
        shown[task['name'], example['id'], *data['columns'][row[0]]] = (row, example)
  assert len(shown) == len(rows)
  for row in rows:
    (_, sample, value, status, completion, logprobs), example = shown[
      row['task'], row['example'], row['arm'], row['alpha']
    ]
    assert (sample, value, status) == (row['sample'], row['value'], row['status'])
    assert completion == row.get('completion') and example['choices'] == row.get('choices', [])
    assert logprobs is None or logprobs == pytest.approx(row['logprobs'], abs=1e-4)
    assert example['messages'] == [
      [message['role'], message['content']] for message in row['messages']
    ]


def test_embedded_data_cannot_end_its_script(written):
  scripts = Reader(written.read_text()).scripts
  embedded = [text for attributes, text in scripts if 'id' in attributes]
  assert len(embedded) > 6
  for text in embedded:
    assert not set('<>&') & set(text) and text.isascii()


def test_failures_are_counted_with_their_denominators(workdir, written):
  rows = [
    json.loads(line) for line in (workdir / 'sweep' / 'rows.jsonl').read_text().split('\n') if line
  ]
  ok = sum(row['status'] == 'ok' for row in rows)
  text = ''.join(Reader(written.read_text()).text)
  assert f'{ok} of {len(rows)} rows are ok; {len(rows) - ok} are not' in text
  at = [row['status'] for row in rows if row['task'] == 'facts' and row['alpha'] == -3]
  notes = {f'{at.count(status)} {status}' for status in ('truncated', 'unparsable')}
  table = text[text.index('What failed') :]
  facts = table[table.index('facts') : table.index('arithmetic')]
  assert facts.startswith(f'facts{at.count("ok")}/40') and all(note in facts for note in notes)


def test_secrets_are_hidden_and_the_rest_of_the_config_is_not(written):
  text = written.read_text()
  assert 'hf_hush' not in text
  assert 'python launch/steer.py --config=configs/quickstart.py --hub_token=(hidden)' in text
  assert '&quot;max_new_tokens&quot;: 48' in text and 'organism &lt;b&gt;' in text


def test_a_second_report_replaces_the_first_and_leaves_nothing_else(workdir, written):
  before = {path.name: path.read_bytes() for path in written.parent.iterdir()}
  names = ['curves.png', 'index.html', 'results.csv', 'table.md', 'tradeoff.png']
  assert sorted(before) == names
  page.write(workdir)
  assert {path.name: path.read_bytes() for path in written.parent.iterdir()} == before


def test_a_report_that_cannot_be_written_leaves_the_old_one_whole(workdir, written, monkeypatch):
  before = {path.name: path.read_bytes() for path in written.parent.iterdir()}

  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(OutputError, match='No space left'):
    page.write(workdir)
  assert {path.name: path.read_bytes() for path in written.parent.iterdir()} == before


def edit_results(workdir, change):
  path = workdir / 'results.jsonl'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  path.write_text(''.join(json.dumps(row) + '\n' for row in change(copy.deepcopy(rows))))


def test_missing_numbers_are_dashes(workdir):
  def blank(rows):
    for row in rows:
      if row['alpha'] == 0.25 and row['task'] == 'facts':
        row.update(mean=None, sem=math.nan, n=0)
    return [row for row in rows if not (row['alpha'] == -0.25 and row['task'] == 'arithmetic')]

  edit_results(workdir, blank)
  reader = Reader(page.write(workdir).read_text())
  assert (
    reader.rows['weights', 0.25]['cells'][3][1] == '–'
    and reader.rows['weights', -0.25]['cells'][4][1] == '–'
  )
  assert 'NaN' not in next(text for attributes, text in reader.scripts if 'id' in attributes)


def test_a_sweep_without_base_still_has_a_page(workdir):
  edit_results(workdir, lambda rows: [row for row in rows if row['alpha']])
  assert 'No operating point' in page.write(workdir).read_text()


def test_a_long_sweep_lies_in_files_beside_a_small_page(workdir):
  """30 000 rows of 700 characters: the page stays small, and the files hold every example."""
  row = dict(
    arm='weights',
    task='facts',
    sample=0,
    value=1.0,
    status='ok',
    completion='An answer. ' * 30,
    messages=[dict(role='user', content='A question? </script> ' * 15)],
  )
  with (workdir / 'sweep' / 'rows.jsonl').open('w') as file:
    for alpha in range(-3, 3):
      for example in range(3000):
        file.write(json.dumps({**row, 'alpha': alpha, 'example': example}) + '\n')
  written = page.write(workdir)
  assert written.stat().st_size < 500_000
  data = data_of(Reader(written.read_text()))
  assert [task['examples'] for task in data['tasks']] == [3000]
  parts = {}
  for name, relative in data['files'].items():
    text = (written.parent / relative).read_text()
    head = f'weightsteer({json.dumps(name)}, '
    assert text.startswith(head) and text.endswith(');\n') and text.isascii() and '<' not in text
    parts[name] = json.loads(text[len(head) : -3])
  held = examples_of(parts, 0)
  assert [example['id'] for example in held] == [str(number) for number in range(3000)]
  assert all(len(example['rows']) == 6 for example in held)
  index = parts['0/index']
  assert index['names'] == [example['id'] for example in held]
  starts = index['starts']
  assert len(starts) == len(parts) - 1
  assert all(parts[f'0/{at}'][0]['id'] == str(start) for at, start in enumerate(starts))
  # A second report of fewer rows takes the files away.
  text = (workdir / 'sweep' / 'rows.jsonl').read_text()
  (workdir / 'sweep' / 'rows.jsonl').write_text(text[: text.index('\n') + 1])
  page.write(workdir)
  assert not (written.parent / 'examples').exists()


def test_figures_are_pngs_and_svgs_that_parse_whatever_the_tasks_are_called(workdir):
  rename = {'facts': '<b>$x_1$ & "facts"</b>'}
  rows = [
    {**row, 'task': rename.get(row['task'], row['task'])} for row in study.read(workdir).results
  ]
  roles = {rename.get(name, name): role for name, role in study.read(workdir).roles.items()}
  second = [{**row, 'arm': 'activations', 'alpha': row['alpha'] * 2} for row in rows]
  picks = [pick.choose(rows + second, roles, arm=arm) for arm in ('weights', 'activations')]
  for figure in (figures.curves(picks), figures.tradeoff(picks)):
    content = figures.png(figure)
    width, height = struct.unpack('>II', content[16:24])
    assert content.startswith(b'\x89PNG') and width >= 1200 and height >= 800
    text = figures.svg(figure, 'title')
    root = xml.etree.ElementTree.fromstring(text)
    assert (
      root.tag.endswith('svg')
      and 'var(--fig-ink)' in text
      and not re.search(r'#[0-9a-f]{6}\b', text)
    )
  shown = ''.join(
    xml.etree.ElementTree.fromstring(figures.svg(figures.curves(picks), 'title')).itertext()
  )
  assert '<b>$x_1$ & "facts"</b>' in shown and 'activations' in shown


def test_a_loss_that_rises_is_a_capability_lost(workdir):
  """At alpha 1 a rate falls by 0.2 and a loss rises by 0.5: both lie left of the base."""

  def row(task, metric, alpha, mean):
    return dict(arm='w', task=task, metric=metric, alpha=alpha, mean=mean, sem=0.01, n=9)

  results = [row('b', 'rate', alpha, 0.5 + alpha / 4) for alpha in (0, 1)]
  results += [row('rate', 'rate', 0, 0.9), row('rate', 'rate', 1, 0.7)]
  loss = [row('texts', 'nats_per_token', 0, 3.0), row('texts', 'nats_per_token', 1, 3.5)]
  roles = {'b': 'behaviour', 'rate': 'capability'}
  with_loss = roles | {'texts': 'capability'}
  for rows, named, expected in ((results, roles, -0.2), (results + loss, with_loss, -0.5)):
    picked = pick.choose(rows, named, arm='w')
    (axes,) = figures.tradeoff([picked]).axes
    xs = [x for line in axes.get_lines() for x in line.get_xdata()]
    assert min(xs) == pytest.approx(expected) and max(xs) == 0
    # The rule and its words stay: either way counts, and the numbers are the metric's own.
    assert not picked.comparison.admissible(1)
  assert str(picked.comparison.worst(1)) == 'texts rises from 3.00 to 3.50 at alpha +1'


def test_curves_go_through_the_results(workdir):
  sweep = study.read(workdir)
  picks = pick.choose_all(sweep)
  panel = next(axes for axes in figures.curves(picks).axes if axes.get_title(loc='left') == 'facts')
  line = max((line for line in panel.get_lines()), key=lambda line: len(line.get_xdata()))
  means = [
    row['mean']
    for row in sorted(sweep.results, key=lambda row: row['alpha'])
    if row['task'] == 'facts'
  ]
  assert (
    list(line.get_xdata()) == sorted({row['alpha'] for row in sweep.results})
    and list(line.get_ydata()) == means
  )


def test_the_terminal_table_is_aligned_and_marked(workdir):
  (picked,) = pick.choose_all(study.read(workdir))
  lines = tables.text(picked).splitlines()
  assert lines[0].split() == ['alpha'] + ['behaviour'] * 3 + ['capability'] * 3
  body = lines[4:17]
  assert [line.split()[0] for line in body if line[0] != ' '] == ['>', '=', '>']
  assert len({tuple(mark.start() for mark in re.finditer('±', line)) for line in body}) == 1
  at_zero = next(
    row for row in study.read(workdir).results if row['alpha'] == 0 and row['task'] == 'opinions'
  )
  assert f'{at_zero["mean"]:.2f} ±{at_zero["sem"]:.2f}' in body[6]
  assert tables.markdown(picked).splitlines()[1].count('---:') == 7


def test_words_of_the_chat_template_are_told(workdir):
  path = workdir / 'config.json'
  assert 'in training and evaluation alike' not in page.write(workdir).read_text()
  config = json.loads(path.read_text())
  config['chat_template'] = {'told': {}, 'writes': 'You are <b>Qwen</b>'}
  path.write_text(json.dumps(config))
  text = page.write(workdir).read_text()
  assert '<q>You are &lt;b&gt;Qwen&lt;/b&gt;</q>' in text and 'model.system_prompt' in text
