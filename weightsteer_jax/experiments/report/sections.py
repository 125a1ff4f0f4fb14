"""The sections of the sweep's page, each a piece of HTML.

Every text from outside goes through `escape`.
"""

import shlex
from collections.abc import Sequence

from weightsteer_jax.experiments.report import (
  curves,
  exchange,
  facts,
  markup,
  results_table,
  tables,
  words,
)
from weightsteer_jax.experiments.report.beside import FOLDER, Placed
from weightsteer_jax.experiments.report.comparison import DEFAULT
from weightsteer_jax.experiments.report.examples import Counts, Survey
from weightsteer_jax.experiments.report.metrics import accounted, agreement, further, thoughts
from weightsteer_jax.experiments.report.pick import Pick, Side
from weightsteer_jax.experiments.report.safe import escape
from weightsteer_jax.experiments.report.study import (
  ROLES,
  Cell,
  Study,
  SweptTask,
  format_alpha,
  metric_of,
)
from weightsteer_jax.runtime.redaction import redact

PLURALS = {'behaviour': 'Behaviours', 'capability': 'Capabilities'}


def masthead(title: str, sweep: Study) -> str:
  """Name and description of the run, and on what it ran.

  Args:
    title: HTML of the run's name.
  """
  description = sweep.config.get('description')
  about = f'<p class="about">{escape(str(description))}</p>' if description else ''
  items = ''.join(f'<li>{escape(fact)}</li>' for fact in facts.of_run(sweep))
  return f'<header><h1>{title}</h1>{about}<ul class="facts">{items}</ul></header>'


def headlines(picks: Sequence[Pick]) -> str:
  """The outcome of every arm; several arms stand side by side."""
  several = len(picks) > 1
  outcomes = ''.join(headline(choice, several) for choice in picks)
  return f'<div class="arms">{outcomes}</div>' if several else outcomes


def headline(choice: Pick, several: bool) -> str:
  """The outcome of one arm: a sentence, three numbers, and the reasons in words.

  Args:
    several: whether the page shows several arms, each under a heading.
  """
  heading = f'<h2>{escape(choice.arm)}</h2>' if several else ''
  outcome = escape(_lede(choice))
  lede = f'<p class="lede">{outcome}</p>'
  reasons = ''.join(f'<p>{escape(sentence)}</p>' for sentence in choice.sentences)
  return f'<section>{heading}{lede}{_tiles(choice)}{reasons}</section>'


def _lede(choice: Pick) -> str:
  """The outcome of one arm in one sentence."""
  numbers = choice.comparison
  low = choice.negative
  high = choice.positive
  subject = words.subject(numbers)
  # Both sides lack an alpha for the same reason.
  if low.alpha is None or high.alpha is None:
    # The reason begins with 'No alpha is picked: '.
    return 'No operating point: ' + low.reason.split(': ', 1)[-1]
  if not choice.alphas:
    return f'No alpha moves {subject} while {words.kept(numbers.rule)}.'
  # A side on which nothing better was found stands at the base.
  start = f'alpha {format_alpha(low.alpha)}' if low.alpha else 'the base'
  end = format_alpha(high.alpha) if high.alpha else 'the base'
  cost = 'at a cost not measured'
  if numbers.capability:
    cost = f'while {words.kept(numbers.rule)}'
  return (
    f'Between {start} and {end}, {subject} moves from {low.behaviour.mean:.2f} to '
    f'{high.behaviour.mean:.2f}, {cost}.'
  )


def _tiles(choice: Pick) -> str:
  """Three numbers: the base, and the pick on each side of zero."""
  # Without a base there is nothing to compare with.
  if choice.negative.alpha is None:
    return ''
  numbers = choice.comparison
  at_base = numbers.behaviour_at(0.0)
  base = tables.format_cell(at_base)
  tiles = [
    _side_tile(choice.negative),
    _tile('Base, alpha 0', base, words.subject(numbers) + _unread(at_base)),
    _side_tile(choice.positive),
  ]
  return f'<ul class="tiles">{"".join(tiles)}</ul>'


def _side_tile(side: Side) -> str:
  # A side on which the base itself is best has no tile of its own.
  if not side.alpha:
    return ''
  cost = 'capability not measured'
  if side.worst:
    cost = f'{side.worst.task} {side.worst.difference:+.2f}'
    if side.worst.interval:
      cost += f' ({side.worst.interval})'
    cost += ', the capability kept least'
  name = f'Picked alpha {format_alpha(side.alpha)}'
  value = tables.format_cell(side.behaviour)
  return _tile(name, value, cost + _unread(side.behaviour), kind='tile picked')


def _unread(cell: Cell) -> str:
  """The share of answers that could not be read, behind a note; '' for none."""
  if not cell.unreadable:
    return ''
  beware = ', so the number says little' if cell.few else ''
  return f'; {tables.percent(cell.unread)} of the answers could not be read{beware}'


def _tile(name: str, value: str, note: str, *, kind: str = 'tile') -> str:
  return (
    f'<li class="{kind}"><span>{escape(name)}</span><b>{escape(value)}</b>'
    f'<span>{escape(note)}</span></li>'
  )


def results(sweep: Study, picks: Sequence[Pick]) -> str:
  """The table of every arm, the tasks in words, and the rows of results.jsonl."""
  descriptions = []
  for task in sweep.tasks:
    kinds = ', '.join(word for word in (task.role, task.kind) if word)
    about = escape(task.description or 'no description')
    descriptions.append(f'<li><b>{escape(task.name)}</b> ({escape(kinds)}): {about}</li>')
  arms = []
  for choice in picks:
    # The only arm of a page needs no heading.
    if len(picks) > 1:
      arms.append(f'<h3>{escape(choice.arm)}</h3>')
    arms.append(results_table.of_arm(sweep, choice))
  # All arms of a report have one rule.
  rule = picks[0].comparison.rule if picks else DEFAULT
  return markup.section(
    'Results',
    '<p class="note">Mean ± one standard error, clustered by question; where all answers are '
    'alike, the limit of the 95 % interval. Below stands the share of answers that could not be '
    f'read. An exclamation mark: {words.mark(rule)}. Point at a number for all digits; follow it '
    'to its answers.</p>',
    *arms,
    f'<p class="note">{escape(words.sweeps(sweep.results))}</p>',
    '<details><summary>What the tasks measure</summary>',
    f'<ul>{"".join(descriptions)}</ul></details>',
    further(sweep),
    f'<details><summary>All {len(sweep.results)} rows of results.jsonl</summary>',
    f'{_all_rows(sweep)}</details>',
  )


# Everything as written and nothing rounded, for checks and for programs that read the page.
def _all_rows(sweep: Study) -> str:
  keys = ('arm', 'task', 'metric', 'alpha', 'mean', 'sem', 'n', 'values')
  heads = ''.join(f'<th>{key}</th>' for key in keys)
  lines = []
  for row in sweep.results:
    cells = ''.join(f'<td>{escape(str(row.get(key)))}</td>' for key in keys)
    lines.append(f'<tr>{cells}</tr>')
  return markup.table(f'<tr>{heads}</tr>', lines, kind='rows')


def charts(sweep: Study, picks: Sequence[Pick]) -> str:
  """Every task against alpha, behaviours first, a drawing for each metric shown."""
  groups = curves.groups(picks)
  parts = [_arm_legend(picks)]
  for role in ROLES:
    tasks = [task for task in sweep.tasks if task.role == role]
    for arms in groups:
      drawings = [_drawings(sweep, picks, arms, task) for task in tasks]
      if not any(drawings):
        continue
      names = ', '.join(picks[number].arm for number in arms)
      of_arms = f': {escape(names)}' if len(groups) > 1 else ''
      parts.append(f'<h3>{PLURALS[role]}{of_arms}</h3>')
      parts.append(f'<div class="panels">{"".join(drawings)}</div>')
  return markup.section(
    'Every task against alpha',
    '<p class="note">Point at a value to read it; follow it to the answers behind it. Arrow keys '
    'go from point to point.</p>',
    *parts,
    '<p class="note">The same curves for slides: <a href="curves.png">curves.png</a>. All numbers: '
    '<a href="results.csv">results.csv</a>.</p>',
  )


def _drawings(sweep: Study, picks: Sequence[Pick], arms: Sequence[int], task: SweptTask) -> str:
  """The drawings of one task: its own metric, and log-odds beside a rate of choices."""
  plotted = metric_of(sweep.results, task.name)
  metrics = dict.fromkeys((plotted, tables.BESIDE))
  parts = []
  for metric in metrics:
    panel = curves.panel(sweep, picks, arms, task, metric)
    if panel is None:
      continue
    about = escape(task.description) if metric == plotted else 'the same choices, in nats'
    parts.append(
      f'<figure class="panel"><h4>{escape(task.name)} <small>{escape(metric)}</small></h4>'
      f'{curves.draw(panel)}<figcaption>{about}</figcaption></figure>'
    )
  return ''.join(parts)


def _arm_legend(picks: Sequence[Pick]) -> str:
  """What the marks of the drawings mean."""
  items = []
  for number, choice in enumerate(picks if len(picks) > 1 else ()):
    items.append(f'<li>{curves.key(number)} {escape(choice.arm)}</li>')
  if any(choice.alphas for choice in picks):
    items.append('<li><span class="sign">◯ ▴</span> picked alpha</li>')
  if any(choice.comparison.capability for choice in picks):
    shaded = words.shaded(picks[0].comparison.rule)
    items.append(f'<li><span class="sign swatch"></span> {shaded}</li>')
  bars = words.bars([choice.comparison for choice in picks])
  items.append(f'<li><span class="sign">│</span> {bars}</li>')
  cells = [
    cell
    for choice in picks
    for column in choice.comparison.table.values()
    for cell in column.values()
  ]
  if any(cell.few for cell in cells):
    items.append('<li><span class="sign">○</span> most answers could not be read</li>')
  return f'<ul class="legend">{"".join(items)}</ul>'


def tradeoff(picks: Sequence[Pick]) -> str:
  """The figure of behaviour against capability; '' where one of the two was not measured."""
  drawing = exchange.draw(picks)
  if not drawing:
    return ''
  return markup.section(
    'Behaviour against capability',
    _arm_legend(picks),
    markup.figure(
      drawing,
      'Each point is an alpha. To the left of the shaded band a capability is lost; inside it, '
      'all are kept. The same figure for slides: <a href="tradeoff.png">tradeoff.png</a>.',
      narrow=True,
    ),
  )


def browser(survey: Survey, placed: Placed) -> str:
  """The frame for the examples, filled by the scripts."""
  rows = sum(count.total for count in survey.counts.values())
  examples = sum(len(places) for places in survey.places.values())
  where = 'inside of this page'
  if placed.beside:
    where = (
      f'in {len(placed.beside)} files beside this page ({FOLDER}/, {placed.size / 1e6:.0f} MB), '
      'each read when it is looked at'
    )
  # The scripts find the elements by their ids.
  return f"""<section id="browser"><h2>Answers</h2>
<p class="note">All {examples:,} examples, {rows:,} answers, {where}. Choose two strengths to
compare the answers to the same question. Each answer has its value in the task, as 1 where it does
what the task describes and 0 where it does not. ✓ marks the target of a choice; its probabilities
are those of the whole texts, made to add up to one, so a task scored per token or byte may rank
them otherwise.</p>
<noscript><p>Looking through answers needs JavaScript; all rows are in sweep/rows.jsonl.</p>
</noscript>
<div class="bar">
<label>Task<select id="task"></select></label>
<div class="ab"><label>A<select id="a"></select></label>
<button type="button" id="swap" aria-label="Swap A and B">⇄</button>
<label>B<select id="b"></select></label></div>
<label>Order<select id="sort"></select></label>
<label>Search<input id="search" type="search" placeholder="words in questions or answers"
autocomplete="off"></label>
</div>
<p class="note" id="about"></p>
<div class="filters" id="filters" role="group" aria-label="Filter"></div>
<p class="note tally"><span id="count" aria-live="polite"></span>
<button type="button" id="download">Save as csv</button></p>
<div class="browser">
<div><div class="list" id="list"></div><div class="pager" id="pager"></div></div>
<div id="view"></div></div>
<p class="note keys">Keys: <kbd>j</kbd> <kbd>k</kbd> next and previous example, <kbd>,</kbd>
<kbd>.</kbd> strength of B down and up, <kbd>[</kbd> <kbd>]</kbd> task, <kbd>/</kbd> search,
<kbd>Esc</kbd> back. The address of this page always leads to what is shown.</p></section>"""


def accounting(sweep: Study, survey: Survey) -> str:
  """Counts of rows behind every number, and of rows that failed."""
  # A figure without its failures would look better than the sweep was.
  counts = survey.counts.values()
  total = sum(count.total for count in counts)
  ok = sum(count.statuses['ok'] for count in counts)
  empty = sum(count.without_value for count in counts)
  arms = []
  for arm in survey.arms:
    if len(survey.arms) > 1:
      arms.append(f'<h3>{escape(arm)}</h3>')
    arms.append(_counts_table(sweep, survey, arm))
  return markup.section(
    'What failed',
    f'<p>{ok} of {total} rows are ok; {total - ok} are not; {empty} carry no value. Each cell: '
    'rows that are ok, of all rows, and what the others are. A row without value enters no '
    'mean.</p>',
    *arms,
    _folded('Shares of answers by what happened to them', accounted(sweep)),
    agreement(sweep),
  )


def _folded(summary: str, content: str) -> str:
  return f'<details><summary>{summary}</summary>{content}</details>' if content else ''


def thinking(sweep: Study, survey: Survey) -> str:
  """What became of thoughts; '' where no model thinks."""
  content = thoughts(sweep, survey)
  return markup.section('Thoughts', content) if content else ''


def _counts_table(sweep: Study, survey: Survey, arm: str) -> str:
  alphas = sorted({alpha for name, _, alpha in survey.counts if name == arm})
  heads = ''.join(f'<th scope="col">{format_alpha(alpha)}</th>' for alpha in alphas)
  rows = []
  for task in sweep.tasks:
    counts = [survey.counts.get((arm, task.name, alpha)) for alpha in alphas]
    if any(counts):
      cells = ''.join(_counts_cell(count) for count in counts)
      rows.append(f'<tr><th scope="row" class="left">{escape(task.name)}</th>{cells}</tr>')
  head = f'<tr><th scope="col" class="left">task</th>{heads}</tr>'
  return markup.table(head, rows, kind='accounting')


def _counts_cell(count: Counts | None) -> str:
  if count is None:
    return '<td>–</td>'
  notes = [f'{number} {escape(status)}' for status, number in count.failed.items()]
  # Rows that failed carry no value either; they are told once.
  if count.without_value and not notes:
    notes = [f'{count.without_value} without value']
  kind = ' class="failing"' if notes else ''
  small = ''.join(f'<small>{note}</small>' for note in notes)
  return f'<td{kind}>{count.statuses["ok"]}/{count.total}{small}</td>'


def origin(sweep: Study) -> str:
  """The run's command, the config, and the provenance of the directions."""
  config = sweep.config
  again = '<p>The config names no command.</p>'
  command = config.get('command')
  if command:
    # One text and not a list, so that what follows a secret's flag is hidden.
    text = command if isinstance(command, str) else shlex.join(map(str, command))
    config = {**config, 'command': text}
    again = f'<pre tabindex="0">{escape(redact(text))}</pre>'
  # Workdirs of earlier versions have no such entry.
  writes = (config.get('chat_template') or {}).get('writes')
  if isinstance(writes, str) and writes:
    again += (
      '<p>In front of questions without a system prompt, in training and evaluation alike, the '
      f'chat template stood: <q>{escape(redact(writes))}</q>. The keys <code>model.system_prompt'
      '</code> and <code>model.chat_template_args</code> change that.</p>'
    )
  files = [markup.folded_json('config.json', config)]
  for name, content in sweep.directions.items():
    files.append(markup.folded_json(f'directions/{name}/direction.json', content))
  return markup.section('How to reproduce', again, '<h2>Config and provenance</h2>', *files)
