"""The page of a study of watched fine-tunes: which were caught, how well each direction tells them
apart, how similar all are; offline.
"""

import importlib.resources
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weightsteer_jax.experiments.report import figures, monitor_figures
from weightsteer_jax.experiments.report.monitor_page import POLICY
from weightsteer_jax.experiments.report.safe import escape
from weightsteer_jax.storage import files

if TYPE_CHECKING:
  from matplotlib.figure import Figure

Study = Mapping[str, Any]
MISALIGNED, OTHER = figures.ARM_COLOURS[1], figures.ARM_COLOURS[0]


def write(path: pathlib.Path, study: Study, *, title: str) -> None:
  """Writes the page, and watched-cosines.png and watched-similarity.png beside it.

  Args:
    study: see monitor_study.py.

  Raises:
    OutputError: they could not be written.
  """
  drawn = {
    'watched-cosines': cosines(study),
    'watched-similarity': monitor_figures.similarity(study),
  }
  for name, figure in drawn.items():
    files.write_bytes(path.parent / f'{name}.png', figures.png(figure))
  files.write_text(
    path, _page(study, {name: figures.svg(figure, name) for name, figure in drawn.items()}, title)
  )


def lines(study: Study) -> list[str]:
  """What each direction is worth, in one line."""
  return [
    _line(name, worth['auroc'], worth['detections']) for name, worth in study['worth'].items()
  ]


@figures.styled
def cosines(study: Study) -> 'Figure':
  """A panel per direction: the cosine of every fine-tune's update over its steps, by what is known
  of it, with alarms ringed.
  """
  from matplotlib.figure import Figure
  from matplotlib.lines import Line2D

  names = study['directions']
  columns = min(len(names), 3)
  rows = math.ceil(len(names) / columns)
  figure = Figure(figsize=(max(4.0 * columns, 6.4), 3.0 * rows + 0.7), layout='constrained')
  grid = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes, name in zip(grid, names):
    for run in study['runs']:
      _draw(axes, run['directions'][name], MISALIGNED if run['misaligned'] else OTHER)
    axes.axhline(0, color=figures.GRID, linewidth=0.8, zorder=0.4)
    axes.grid(axis='y')
    axes.set_title(name)
    axes.set_xlabel('step')
  for axes in grid[len(names) :]:
    axes.set_axis_off()
  for row in range(rows):
    grid[row * columns].set_ylabel('cosine with the update')
  handles = [
    Line2D([], [], color=MISALIGNED, marker='o', markersize=4, label='misaligned'),
    Line2D([], [], color=OTHER, marker='s', markersize=4, label='not misaligned'),
    Line2D([], [], color=figures.MUTED, label='first alarm', **figures.RING),
  ]
  figure.legend(
    handles=handles, loc='outside upper left', ncols=3, fontsize=8, labelcolor=figures.INK
  )
  return figure


def _draw(axes, found: Mapping[str, Any], colour: str) -> None:
  points = sorted(
    (int(step), value) for step, value in found['cosines'].items() if value is not None
  )
  marker = 'o' if colour == MISALIGNED else 's'
  axes.plot(
    [step for step, _ in points],
    [value for _, value in points],
    color=colour,
    linewidth=1.0,
    marker=marker,
    markersize=2.6,
  )
  if found['step'] is not None:
    axes.plot(
      [found['step']], [dict(points)[found['step']]], markeredgecolor=figures.MUTED, **figures.RING
    )


def _line(name: str, auroc: Mapping[str, Any], found: Mapping[str, Any]) -> str:
  low, high = auroc['interval']
  over_seeds = auroc['seed_standard_error']
  seeds = (
    ''
    if over_seeds is None
    else f', standard error over {auroc["num_seeds"]} seeds {over_seeds:.3f}'
  )
  bad, good = auroc['num_misaligned'], auroc['num_others']
  return (
    f'{name}: AUROC {auroc["value"]:.3f} (95% interval {low:.3f} to {high:.3f}{seeds}); '
    f'{len(found["caught"])} of {bad} misaligned fine-tunes caught, {len(found["false_alarms"])} '
    f'false alarms in {good}'
  )


def _page(study: Study, drawn: Mapping[str, str], title: str) -> str:
  style = (
    importlib.resources.files('weightsteer_jax.experiments.report')
    .joinpath('page.css')
    .read_text(encoding='utf-8')
  )
  said = ''.join(f'<li>{escape(line)}</li>' for line in lines(study))
  return f'''<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}: watched fine-tunes</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{escape(title)}: {len(study['runs'])} fine-tunes watched</h1>
<ul>{said}</ul>
<section><h2>Over the steps</h2><figure>{drawn['watched-cosines']}<figcaption>Cosine of the angle between all that a fine-tune had changed
and the direction. An alarm is the first cosine above what the controls reach; thresholds are in each fine-tune's monitor/summary.json.
</figcaption></figure></section>
<section><h2>Each kind of fine-tune</h2>{_table(study)}<p>Rates are those of the untouched model and of the fine-tuned ones, means over
seeds; cosines are the largest of a fine-tune's steps, means over seeds; in brackets the seeds that set off the alarm.</p></section>
<section><h2>How similar directions and updates are</h2><figure class="narrow">{drawn['watched-similarity']}<figcaption>Updates are those
of the first seed.</figcaption></figure></section>
</main>
</body>
</html>
'''


def _table(study: Study) -> str:
  tasks, directions = list(study['base']), study['directions']
  heads = ('fine-tune', 'misaligned', *tasks, *directions)
  base = [
    'base',
    '',
    *(_rate(study['base'][task]['mean']) for task in tasks),
    *('' for _ in directions),
  ]
  groups: dict[str, list[Mapping[str, Any]]] = {}
  for run in study['runs']:
    groups.setdefault(run['name'], []).append(run)
  body = ''.join(
    map(
      _cells, [base, *(_of_group(name, runs, tasks, directions) for name, runs in groups.items())]
    )
  )
  head = ''.join(f'<th scope="col" class="left">{escape(name)}</th>' for name in heads)
  return (
    f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
  )


def _of_group(
  name: str, runs: Sequence[Mapping[str, Any]], tasks: Sequence[str], directions: Sequence[str]
) -> list[str]:
  rates = [_rate(_mean([run['rates'][task]['mean'] for run in runs])) for task in tasks]
  found = []
  for direction in directions:
    about = [run['directions'][direction] for run in runs]
    found.append(
      f'{_mean([one["peak"] for one in about]):+.3f} '
      f'({sum(one["step"] is not None for one in about)} of {len(runs)})'
    )
  return [name, 'yes' if runs[0]['misaligned'] else 'no', *rates, *found]


def _cells(row: Sequence[str]) -> str:
  first, *others = row
  return (
    f'<tr><th scope="row" class="left">{escape(first)}</th>'
    + ''.join(f'<td>{escape(cell)}</td>' for cell in others)
    + '</tr>'
  )


def _mean(values: Sequence[float | None]) -> float | None:
  known = [value for value in values if value is not None]
  return sum(known) / len(known) if known else None


def _rate(value: float | None) -> str:
  return '–' if value is None else f'{value:.2f}'
