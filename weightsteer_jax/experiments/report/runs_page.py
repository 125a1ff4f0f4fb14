"""index.html over many runs: what each came to, and their curves in the same panels."""

import dataclasses
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

from weightsteer_jax.experiments.report import curves, facts, markup, pick, study, tables, words
from weightsteer_jax.experiments.report.curves import Line, Panel
from weightsteer_jax.experiments.report.pick import Pick, Side
from weightsteer_jax.experiments.report.safe import escape
from weightsteer_jax.experiments.report.study import ROLES, Cell, Study, format_alpha, metric_of
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import files

# Values under the pointer; answers are in the runs' own pages.
SCRIPTS = ('elements.js', 'curves.js')
COLUMNS = ('run', 'arm', 'behaviour', 'below 0', 'base', 'above 0', 'cost', 'took')


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished run.

  Attributes:
    name: the config's name, or where several runs share it the folder's.
    href: address of the run's own page; None where there is none.
  """

  name: str
  sweep: Study
  picks: tuple[Pick, ...]
  href: str | None


def write(workdirs: Sequence[str | Path], output: str | Path) -> Path:
  """The path of the `index.html` just written into the folder `output`.

  Runs are picked by the rule of their own configs. Links to the runs' pages are relative, so that
  runs and index can be moved together.

  Raises:
    InputError: if there are no workdirs, a workdir comes twice, or as `study.read`.
    CorruptError: as `study.read`.
    OutputError: if the page cannot be written.
  """
  if not workdirs:
    raise InputError('there are no runs to show: name their workdirs, with commas between')
  folder = Path(output)
  seen = [Path(workdir).resolve() for workdir in workdirs]
  for workdir in seen:
    if seen.count(workdir) > 1:
      raise InputError(f'{workdir} is named twice; name each run once')
  runs = _named([_read(Path(workdir), folder) for workdir in workdirs])
  files.write_text(folder / 'index.html', _page(runs))
  return folder / 'index.html'


def _read(workdir: Path, output: Path) -> Run:
  sweep = study.read(workdir)
  picks = tuple(pick.choose_all(sweep, **pick.options_of(sweep.config)))
  page = workdir / 'report' / 'index.html'
  href = None
  if page.is_file():
    relative = os.path.relpath(page.resolve(), output.resolve())
    href = urllib.parse.quote(Path(relative).as_posix(), errors='replace')
  name = str(sweep.config.get('name') or workdir.resolve().name)
  return Run(name, sweep, picks, href)


def _named(runs: Sequence[Run]) -> list[Run]:
  """The runs, those that share a name named by their folders too."""
  names = [run.name for run in runs]
  named = []
  # Workdirs of one config are told apart by their folders.
  for run in runs:
    folder = run.sweep.workdir.resolve().name
    name = f'{run.name} ({folder})' if names.count(run.name) > 1 else run.name
    named.append(dataclasses.replace(run, name=name))
  return named


def _page(runs: Sequence[Run]) -> str:
  title = '1 run' if len(runs) == 1 else f'{len(runs)} runs'
  return markup.document(
    f'{title}: sweeps over alpha',
    [
      f'<header><h1>{title}</h1></header>',
      _outcomes(runs),
      _charts(runs),
      _origins(runs),
    ],
    scripts=SCRIPTS,
  )


def _outcomes(runs: Sequence[Run]) -> str:
  """A row for each arm of each run: what the picks move, and what they cost."""
  rows = []
  for run in runs:
    for choice in run.picks:
      rows.append(_row(run, choice))
  heads = ''.join(f'<th scope="col" class="left">{name}</th>' for name in COLUMNS)
  return markup.section(
    'Outcomes',
    '<p class="note">The picked alphas below and above 0 in bold; mean of the behaviour there and '
    'at the base. The cost is the change of the capability kept least at each pick.</p>',
    markup.table(f'<tr>{heads}</tr>', rows),
  )


def _row(run: Run, choice: Pick) -> str:
  numbers = choice.comparison
  name = escape(run.name)
  if run.href:
    name = f'<a href="{escape(run.href)}">{name}</a>'
  costs = [_cost(side) for side in (choice.negative, choice.positive)]
  said = '; '.join(dict.fromkeys(cost for cost in costs if cost))
  # Runs of earlier versions have no times.
  took = facts.seconds(run.sweep)
  cells = (
    escape(choice.arm),
    escape(words.subject(numbers)) if numbers.behaviour else '–',
    _picked(choice.negative),
    _value(numbers.behaviour_at(0.0)),
    _picked(choice.positive),
    escape(said) or '–',
    facts.duration(took) if took else '–',
  )
  content = ''.join(f'<td class="left">{cell}</td>' for cell in cells)
  return f'<tr><th scope="row" class="left">{name}</th>{content}</tr>'


def _cost(side: Side) -> str:
  """The capability kept least at a pick; '' without a pick or a capability."""
  if not side.alpha or side.worst is None:
    return ''
  return f'{side.worst.task} {side.worst.difference:+.2f}'


def _value(cell: Cell) -> str:
  """A mean with its error, and below the share of answers that could not be read."""
  unread = ''
  if cell.unreadable:
    unread = f'<small>{escape(tables.percent(cell.unread))} not read</small>'
  return f'<span class="whole">{escape(tables.format_cell(cell))}</span>{unread}'


def _picked(side: Side) -> str:
  # A side on which the base itself is best, or without a base, has no pick.
  if not side.alpha:
    return '–'
  return f'<b class="whole">{format_alpha(side.alpha)}</b><br>{_value(side.behaviour)}'


@dataclasses.dataclass(frozen=True)
class _Curve:
  """An arm of a run, with its number among all for its colour."""

  number: int
  name: str
  run: Run
  pick: Pick


def _charts(runs: Sequence[Run]) -> str:
  """A panel for each task and metric, with a line for each run that has it."""
  # A run's only arm needs no name.
  several_arms = any(len(run.picks) > 1 for run in runs)
  lines: list[_Curve] = []
  for run in runs:
    for choice in run.picks:
      name = f'{run.name}, {choice.arm}' if several_arms else run.name
      lines.append(_Curve(len(lines), name, run, choice))
  legend = ''.join(f'<li>{curves.key(line.number)} {escape(line.name)}</li>' for line in lines)
  groups = curves.groups([line.pick for line in lines])
  parts = [f'<ul class="legend">{legend}</ul>']
  for role, title in zip(ROLES, ('Behaviours', 'Capabilities')):
    for group in groups:
      members = [lines[number] for number in group]
      drawings = [_drawing(members, *shown) for shown in _shown(runs, role)]
      if any(drawings):
        names = '; '.join(member.name for member in members)
        of_runs = f': {escape(names)}' if len(groups) > 1 else ''
        parts.append(f'<h3>{title}{of_runs}</h3><div class="panels">{"".join(drawings)}</div>')
  return markup.section(
    'Every task against alpha',
    '<p class="note">Point at a value to read it; follow it to the answers behind it, in the page '
    'of its run. Bars are 95 % intervals, or standard errors in runs of earlier versions.</p>',
    *parts,
  )


def _shown(runs: Sequence[Run], role: str) -> list[tuple[str, str]]:
  """(task, metric) of every run in a role, each once, log-odds beside the rate of choices."""
  # A dictionary as an ordered set.
  shown: dict[tuple[str, str], None] = {}
  for run in runs:
    for task in run.sweep.tasks:
      if task.role == role:
        shown[task.name, metric_of(run.sweep.results, task.name)] = None
        shown[task.name, tables.BESIDE] = None
  return list(shown)


def _drawing(members: Sequence[_Curve], task: str, metric: str) -> str:
  """The panel of a task and metric; '' where no run has measured it."""
  lines = []
  for member in members:
    run = member.run
    points = curves.points_of(run.sweep, member.pick.arm, task, metric, page=run.href)
    if points:
      lines.append(Line(member.name, member.number, points, member.pick.alphas))
  if not lines:
    return ''
  drawing = curves.draw(Panel(f'{task}, {metric}', tuple(lines)))
  return (
    f'<figure class="panel"><h4>{escape(task)} <small>{escape(metric)}</small></h4>'
    f'{drawing}</figure>'
  )


def _origins(runs: Sequence[Run]) -> str:
  """On what each run ran, and where it lies."""
  items = []
  for run in runs:
    about = '; '.join(facts.of_run(run.sweep))
    folder = escape(str(run.sweep.workdir.resolve()))
    items.append(f'<li><b>{escape(run.name)}</b>: {escape(about)}<br><code>{folder}</code></li>')
  return markup.section('Where they come from', f'<ul>{"".join(items)}</ul>')
