"""index.html of a monitored run: figures, the threshold, and the origin of the threshold."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.experiments.report import figures, markup, monitor_figures
from weightsteer_jax.experiments.report.safe import escape
from weightsteer_jax.storage import files

Row = Mapping[str, Any]
# The families of controls in summary.json, in words.
FAMILIES = {'random': 'random directions of the same rank and spectrum', 'given': 'given controls'}


def write(folder: pathlib.Path, rows: Sequence[Row], summary: Mapping[str, Any]) -> None:
  """Writes index.html, and cosines.png, layers.png and similarity.png beside.

  Raises:
    OutputError: if a file cannot be written.
  """
  drawn = {
    'cosines': monitor_figures.cosines(rows, summary),
    'layers': monitor_figures.layers(rows, summary),
    'similarity': monitor_figures.similarity(summary),
  }
  # PNGs for slides and papers; the page itself has the vectors.
  for name, figure in drawn.items():
    files.write_bytes(folder / f'{name}.png', figures.png(figure))
  drawings = {name: figures.svg(figure, name) for name, figure in drawn.items()}
  files.write_text(folder / 'index.html', _page(summary, drawings))


def lines(summary: Mapping[str, Any]) -> list[str]:
  """A line for each direction: the alarm, the peak and the threshold."""
  return [_line(name, about['alarm']) for name, about in summary['directions'].items()]


def _line(name: str, alarm: Mapping[str, Any]) -> str:
  # No step had a cosine: all updates were zero, or the direction is.
  if alarm['peak'] is None:
    return f'{name}: the run changed nothing that the direction does'
  peak = f'largest cosine {alarm["peak"]:+.4f} at step {alarm["peak_step"]}'
  if alarm['threshold'] is None:
    return f'{name}: {peak}; no controls, so no threshold'
  limit = f'the threshold {alarm["threshold"]:.4f}'
  if alarm['step'] is None:
    return f'{name}: no alarm; {peak}, {limit}'
  return f'{name}: ALARM at step {alarm["step"]}; {peak}, {limit}'


def _page(summary: Mapping[str, Any], drawings: Mapping[str, str]) -> str:
  run = str(summary['run'])
  return markup.document(
    f'{escape(pathlib.PurePath(run).name)}: monitored',
    [
      f'<h1>{escape(run)}: updates against directions in weight space</h1>',
      f'<p class="lede">{escape(_headline(summary))}</p>',
      _table(summary),
      markup.section(
        'Over the steps',
        markup.figure(
          drawings['cosines'],
          'Cosine of the angle between all that the run had changed of '
          f'{escape(str(summary["base"]))} and the direction, over the whole parameter vector.',
        ),
      ),
      markup.section(
        'Where in the model',
        markup.figure(
          drawings['layers'],
          'The same of the last checkpoint, in each kind of module and each layer by itself. '
          'Blank: one of the two changes nothing there. Projections, multiples of the direction, '
          'and what random directions would give are in monitor.jsonl, for all steps.',
        ),
      ),
      markup.section(
        'How similar the directions are', markup.figure(drawings['similarity'], narrow=True)
      ),
      _threshold(summary),
      # The similarities are the figure above; as numbers they would fill screens.
      markup.section(
        'Where it comes from',
        markup.folded_json('summary.json', {**summary, 'similarity': '(above)'}),
      ),
    ],
  )


def _headline(summary: Mapping[str, Any]) -> str:
  """The outcome in one sentence: an alarm with the first step, or no alarm."""
  alarm_steps = {}
  for name, about in summary['directions'].items():
    if about['alarm']['step'] is not None:
      alarm_steps[name] = about['alarm']['step']
  if not alarm_steps:
    return f'No alarm in {len(summary["steps"])} checkpoints'
  # The earliest alarm of all directions: from there on the run is suspect.
  first = min(alarm_steps.values())
  return f'Alarm from step {first}: the run moves along {", ".join(alarm_steps)}'


def _table(summary: Mapping[str, Any]) -> str:
  """A row for each direction: alarm, largest cosine, threshold and p values."""
  columns = (
    'direction',
    'alarm at step',
    'largest cosine',
    'at step',
    'threshold',
    'p, random',
    'p, given',
  )
  rows = []
  for name, about in summary['directions'].items():
    alarm = about['alarm']
    values = [
      alarm['step'],
      _number(alarm['peak']),
      alarm['peak_step'],
      _number(alarm['threshold']),
    ]
    # A family without controls has no p value.
    values += [_number(alarm['p_values'].get(family)) for family in FAMILIES]
    texts = ['–' if value is None else escape(str(value)) for value in values]
    cells = ''.join(f'<td>{text}</td>' for text in texts)
    kind = '' if alarm['step'] is None else ' class="picked"'
    rows.append(f'<tr{kind}><th scope="row" class="left">{escape(name)}</th>{cells}</tr>')
  return markup.table(markup.column_heads(columns), rows)


def _threshold(summary: Mapping[str, Any]) -> str:
  # A threshold for each family of controls, because families need not be alike.
  items = []
  for name, about in summary['directions'].items():
    for family, threshold in about['alarm']['families'].items():
      items.append(
        f'<li>{escape(name)}, {threshold["controls"]} {FAMILIES[family]}: '
        f'{threshold["cosine"]:.4f}, at most {threshold["false_alarm_rate"]:.3g} false alarms a '
        'run</li>'
      )
  thresholds = '<p>There were no controls, and so there is no threshold.</p>'
  if items:
    thresholds = f'<ul>{"".join(items)}</ul>'
  return markup.section(
    'The threshold',
    '<p>Of each control, the largest absolute cosine over all steps; the threshold is the one '
    'that a direction like the controls would exceed in at most '
    f'{summary["false_alarm_rate"]:g} of all runs, or, where there are too few controls for that '
    'rate, the largest. An alarm is a cosine above the thresholds of all families.</p>',
    thresholds,
  )


def _number(value: float | None) -> str | None:
  return None if value is None else f'{value:.4f}'
