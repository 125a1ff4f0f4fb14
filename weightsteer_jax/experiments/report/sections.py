"""The page's sections, each a piece of HTML from what was measured. Every text from outside goes
through `escape`.
"""

import json
import math
import shlex
from collections.abc import Sequence
from typing import Any

from weightsteer_jax.experiments.report import tables, words
from weightsteer_jax.experiments.report.examples import Counts, Survey
from weightsteer_jax.experiments.report.metrics import accounted, agreement, further, scrolling
from weightsteer_jax.experiments.report.pick import TOLERANCE, Pick, Side
from weightsteer_jax.experiments.report.safe import escape, redact
from weightsteer_jax.experiments.report.study import ROLES, Cell, Study, format_alpha, metric_of


def headline(one: Pick, several: bool) -> str:
  """What was found for one arm: a sentence, three numbers, and the reasons in words."""
  name = f'<h3>{escape(one.arm)}</h3>' if several else ''
  reasons = ''.join(f'<p>{escape(sentence)}</p>' for sentence in one.sentences)
  return f'<section>{name}<p class="lede">{escape(_lede(one))}</p>{_tiles(one)}{reasons}</section>'


def _lede(one: Pick) -> str:
  """What was found, in one sentence."""
  numbers, low, high = one.comparison, one.negative, one.positive
  if low.alpha is None:
    return 'No operating point: ' + low.reason.split(': ', 1)[-1]
  if not one.alphas:
    return (
      f'No alpha moves {words.subject(numbers)} while capability stays within '
      f'{numbers.tolerance:g} of the base.'
    )
  span = ' and '.join(
    'the base' if side.alpha == 0 else format_alpha(side.alpha) for side in (low, high)
  )
  kept = f'with every capability within {numbers.tolerance:g} of the base'
  cost = kept if numbers.capability else 'at a cost not measured'
  return (
    f'Between {"alpha " if low.alpha else ""}{span}, {words.subject(numbers)} moves from '
    f'{low.behaviour.mean:.2f} to {high.behaviour.mean:.2f}, {cost}.'
  )


def _tiles(one: Pick) -> str:
  if one.negative.alpha is None:
    return ''
  base = one.comparison.behaviour_at(0.0)
  tiles = [
    _tile(one.negative),
    _stat('Base, alpha 0', tables.format_cell(base), words.subject(one.comparison), ''),
    _tile(one.positive),
  ]
  return f'<ul class="tiles">{"".join(tiles)}</ul>'


def _tile(side: Side) -> str:
  if not side.alpha:
    return ''
  worst = side.worst
  cost = (
    f'{worst.task} {worst.difference:+.2f}, the most of any capability'
    if worst
    else 'capability not measured'
  )
  return _stat(
    f'Picked alpha {format_alpha(side.alpha)}', tables.format_cell(side.behaviour), cost, ' picked'
  )


def _stat(name: str, value: str, note: str, kind: str) -> str:
  return (
    '<li '
    f'class="tile{kind}"><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(note)}</span></li>'
  )


def results(sweep: Study, picks: Sequence[Pick]) -> str:
  """The table of every arm, what the tasks measure, and the rows of results.jsonl as they are."""
  descriptions = ''.join(
    f'<li><b>{escape(task.name)}</b> ({escape(", ".join(filter(None, (task.role, task.kind))))}): '
    f'{escape(task.description or "no description")}</li>'
    for task in sweep.tasks
  )
  body = ''.join(
    (f'<h3>{escape(one.arm)}</h3>' if len(picks) > 1 else '') + _table(sweep, one) for one in picks
  )
  tolerance = max((one.comparison.tolerance for one in picks), default=TOLERANCE)
  return (
    '<section><h2>Results</h2><p class="note">Mean ± one standard error; n is the number of '
    f'examples. An exclamation mark: capability more than {tolerance:g} from the base. Point at a '
    f'number for all digits.</p>{body}<details><summary>What the tasks '
    f'measure</summary><ul>{descriptions}</ul></details>{further(sweep)}<details><summary>All '
    f'{len(sweep.results)} rows of results.jsonl</summary>{_all_rows(sweep)}</details></section>'
  )


def _table(sweep: Study, one: Pick) -> str:
  numbers = one.comparison
  groups = [
    (role, [task.name for task in sweep.tasks if task.role == role and task.name in numbers.table])
    for role in ROLES
  ]
  order = [(task, index == 0) for _, names in groups for index, task in enumerate(names)]
  roles = ''.join(
    f'<th colspan="{len(names)}" class="first-of-role">{role}</th>'
    for role, names in groups
    if names
  )
  heads = ''.join(
    f'<th{_first(first)} '
    f'scope="col">{escape(task)}<small>{escape(metric_of(sweep.results, task))}, '
    f'{tables.count(numbers, task)}</small></th>'
    for task, first in order
  )
  rows = []
  for alpha in numbers.alphas:
    mark = 'picked' if alpha in one.alphas else 'base' if alpha == 0 else ''
    outside = {change.task for change in numbers.broken(alpha)}
    row = ''.join(_cell(numbers.cell(task, alpha), task in outside, first) for task, first in order)
    note = f'<span class="mark">{mark}</span>' if mark else ''
    rows.append(
      f'<tr class="{mark}" data-arm="{escape(one.arm)}" data-alpha="{alpha!r}"><th '
      'scope="row" class="left">'
      f'{format_alpha(alpha)}{note}</th>{row}</tr>'
    )
  head = (
    f'<tr class="roles"><th></th>{roles}</tr><tr><th scope="col" '
    f'class="left">alpha</th>{heads}</tr>'
  )
  return scrolling('results', head, rows)


def _cell(cell: Cell, outside: bool, first: bool) -> str:
  classes = ' '.join(filter(None, ('outside' if outside else '', 'first-of-role' if first else '')))
  if not cell.measured:
    return f'<td class="{classes}" title="not measured">–</td>'
  sem = f' <span class="sem">±{cell.sem:.2f}</span>' if math.isfinite(cell.sem) else ''
  return (
    f'<td class="{classes}" title="{cell.mean!r} ± {cell.sem!r}, n = '
    f'{cell.n}">{cell.mean:.2f}{sem}</td>'
  )


def _first(first: bool) -> str:
  return ' class="first-of-role"' if first else ''


def _all_rows(sweep: Study) -> str:
  keys = ('arm', 'task', 'metric', 'alpha', 'mean', 'sem', 'n', 'values')
  heads = ''.join(f'<th>{key}</th>' for key in keys)
  cells = (
    ''.join(f'<td>{escape(str(row.get(key)))}</td>' for key in keys) for row in sweep.results
  )
  return scrolling('rows', f'<tr>{heads}</tr>', [f'<tr>{row}</tr>' for row in cells])


def charts(curves: str, tradeoff: str) -> str:
  """Both figures, given as SVG elements."""
  return f'''<section><h2>Every task against alpha</h2>
<figure>{curves}<figcaption>Behaviours above, capabilities below. Dashed lines and rings: the picked alphas. Shaded:
within tolerance of the base.</figcaption></figure>
<h2>Behaviour against capability</h2>
<figure class="narrow">{tradeoff}<figcaption>Each point is an alpha. To the left of the shaded band a capability is
lost; inside it, all are kept. The same figures are in curves.png and tradeoff.png.</figcaption></figure></section>'''


def browser() -> str:
  """The frame that page.js fills with examples."""
  return '''<section id="browser"><h2>Examples</h2>
<p class="note">The same prompt at every alpha. Bars in the list: one per alpha, filled by its value; hatched where
there is none. Keys: <kbd>j</kbd> <kbd>k</kbd> next and previous example, <kbd>[</kbd> <kbd>]</kbd> task, <kbd>/</kbd>
search, <kbd>Esc</kbd> back. For choices, ✓ is the target, and the
probabilities are those of the whole texts, made to add up to one: a task scored per token or byte may rank them
otherwise.</p>
<noscript><p>Looking through examples needs JavaScript; all rows are in sweep/rows.jsonl.</p></noscript>
<div class="bar">
<label>Task<select id="task"></select></label>
<label>Arm<select id="arm"></select></label>
<label>Alphas<select id="alphas">
<option value="all">all</option><option value="picked">picked and base</option></select></label>
<label>Search<input id="search" type="search" placeholder="words in prompts or answers" autocomplete="off"></label>
<button type="button" id="previous" aria-label="Previous example">←</button>
<button type="button" id="next" aria-label="Next example">→</button>
</div>
<p class="note" id="count" aria-live="polite"></p>
<div class="browser"><div class="list" id="list"></div><div id="view"></div></div></section>'''


def accounting(sweep: Study, survey: Survey) -> str:
  """How many rows every number rests on, and what became of the others."""
  counts = survey.counts.values()
  total, ok = sum(count.total for count in counts), sum(count.statuses['ok'] for count in counts)
  empty = sum(count.without_value for count in counts)
  body = ''.join(
    (f'<h3>{escape(arm)}</h3>' if len(survey.arms) > 1 else '') + _counts_table(sweep, survey, arm)
    for arm in survey.arms
  )
  return (
    f'<section><h2>What failed</h2><p>{ok} of {total} rows are ok; {total - ok} are not; {empty} '
    'carry no value. Each cell: rows that are ok, of all rows, and what the others are. A row '
    f'without value enters no mean.</p>{body}{accounted(sweep)}{agreement(sweep)}</section>'
  )


def _counts_table(sweep: Study, survey: Survey, arm: str) -> str:
  alphas = sorted({alpha for name, _, alpha in survey.counts if name == arm})
  names = [
    task.name
    for task in sweep.tasks
    if any((arm, task.name, alpha) in survey.counts for alpha in alphas)
  ]
  heads = ''.join(f'<th scope="col">{format_alpha(alpha)}</th>' for alpha in alphas)
  rows = []
  for name in names:
    row = ''.join(_counts_cell(survey.counts.get((arm, name, alpha))) for alpha in alphas)
    rows.append(f'<tr><th scope="row" class="left">{escape(name)}</th>{row}</tr>')
  return scrolling('accounting', f'<tr><th scope="col" class="left">task</th>{heads}</tr>', rows)


def _counts_cell(count: Counts | None) -> str:
  if count is None:
    return '<td>–</td>'
  notes = [f'{number} {escape(status)}' for status, number in count.failed.items()]
  if count.without_value and not notes:
    notes = [f'{count.without_value} without value']
  kind = ' class="failing"' if notes else ''
  small = ''.join(f'<small>{note}</small>' for note in notes)
  return f'<td{kind}>{count.statuses["ok"]}/{count.total}{small}</td>'


def origin(sweep: Study) -> str:
  """The command that made the run, its config, and where its directions come from."""
  command = sweep.config.get('command') or ''
  command = command if isinstance(command, str) else shlex.join(map(str, command))
  again = (
    f'<pre>{escape(redact(command))}</pre>' if command else '<p>The config names no command.</p>'
  )
  config = {**sweep.config, **({'command': command} if command else {})}
  parts = [
    f'<section><h2>How to reproduce</h2>{again}<h2>Config and provenance</h2>',
    _json('config.json', config),
  ]
  parts += [
    _json(f'directions/{name}/direction.json', content)
    for name, content in sweep.directions.items()
  ]
  return ''.join(parts) + '</section>'


def _json(name: str, content: Any) -> str:
  shown = escape(json.dumps(redact(content), indent=2, ensure_ascii=False))
  return f'<details><summary>{escape(name)}</summary><pre>{shown}</pre></details>'
