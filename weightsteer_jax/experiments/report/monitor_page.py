"""index.html of a monitored run: what was seen, the figures, the threshold and where it comes from,
offline.
"""

import importlib.resources
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.experiments.report import figures, monitor_figures
from weightsteer_jax.experiments.report.safe import escape, redact
from weightsteer_jax.storage import files

Row = Mapping[str, Any]
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
FAMILIES = {'random': 'random directions of the same rank and spectrum', 'given': 'given controls'}


def write(folder: pathlib.Path, rows: Sequence[Row], summary: Mapping[str, Any]) -> None:
  """Writes index.html, and cosines.png, layers.png and similarity.png beside it.

  Raises:
    OutputError: they could not be written.
  """
  drawn = {
    'cosines': monitor_figures.cosines(rows, summary),
    'layers': monitor_figures.layers(rows, summary),
    'similarity': monitor_figures.similarity(summary),
  }
  for name, figure in drawn.items():
    files.write_bytes(folder / f'{name}.png', figures.png(figure))
  inside = {name: figures.svg(figure, name) for name, figure in drawn.items()}
  files.write_text(folder / 'index.html', _page(summary, inside))


def lines(summary: Mapping[str, Any]) -> list[str]:
  """What is said of each direction in one line."""
  return [_line(name, found['alarm']) for name, found in summary['directions'].items()]


def _line(name: str, alarm: Mapping[str, Any]) -> str:
  if alarm['peak'] is None:
    return f'{name}: the run changed nothing that the direction does'
  peak = f'largest cosine {alarm["peak"]:+.4f} at step {alarm["peak_step"]}'
  if alarm['threshold'] is None:
    return f'{name}: {peak}; no controls, so no threshold'
  limit = f'the threshold {alarm["threshold"]:.4f}'
  if alarm['step'] is None:
    return f'{name}: no alarm; {peak}, {limit}'
  return f'{name}: ALARM at step {alarm["step"]}; {peak}, {limit}'


def _page(summary: Mapping[str, Any], drawn: Mapping[str, str]) -> str:
  style = (
    importlib.resources.files('weightsteer_jax.experiments.report')
    .joinpath('page.css')
    .read_text(encoding='utf-8')
  )
  alarmed = [
    name for name, found in summary['directions'].items() if found['alarm']['step'] is not None
  ]
  first = min((summary['directions'][name]['alarm']['step'] for name in alarmed), default=None)
  headline = (
    f'Alarm from step {first}: the run moves along {", ".join(alarmed)}'
    if alarmed
    else f'No alarm in {len(summary["steps"])} checkpoints'
  )
  return f'''<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(pathlib.PurePath(summary['run']).name)}: monitored</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{escape(str(summary['run']))}: updates against directions in weight space</h1>
<p class="lede">{escape(headline)}</p>
{_table(summary)}
<section><h2>Over the steps</h2><figure>{drawn['cosines']}<figcaption>Cosine of the angle between all that the run had
changed of {escape(str(summary['base']))} and the direction, over the whole parameter vector.</figcaption></figure>
</section>
<section><h2>Where in the model</h2><figure>{drawn['layers']}<figcaption>The same of the last checkpoint, in each
kind of module and each layer by itself. Blank: one of the two changes nothing there. Projections, multiples of the
direction, and what random directions would give are in monitor.jsonl, for all steps.</figcaption></figure></section>
<section><h2>How similar the directions are</h2><figure class="narrow">{drawn['similarity']}</figure></section>
{_threshold(summary)}
<section><h2>Where it comes from</h2>{_details('summary.json', {**summary, 'similarity': '(above)'})}</section>
</main>
</body>
</html>
'''


def _table(summary: Mapping[str, Any]) -> str:
  heads = (
    'direction',
    'alarm at step',
    'largest cosine',
    'at step',
    'threshold',
    'p, random',
    'p, given',
  )
  body = []
  for name, found in summary['directions'].items():
    alarm = found['alarm']
    cells = (
      alarm['step'],
      _number(alarm['peak']),
      alarm['peak_step'],
      _number(alarm['threshold']),
      *(_number(alarm['p_values'].get(family)) for family in FAMILIES),
    )
    cells = ''.join(f'<td>{"–" if cell is None else escape(str(cell))}</td>' for cell in cells)
    kind = '' if alarm['step'] is None else ' class="picked"'
    body.append(f'<tr{kind}><th scope="row" class="left">{escape(name)}</th>{cells}</tr>')
  head = ''.join(f'<th scope="col" class="left">{head}</th>' for head in heads)
  return (
    '<div '
    f'class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
  )


def _threshold(summary: Mapping[str, Any]) -> str:
  items = []
  for name, found in summary['directions'].items():
    for family, one in found['alarm']['families'].items():
      items.append(
        f'<li>{escape(name)}, {one["controls"]} {FAMILIES[family]}: {one["cosine"]:.4f}, at most '
        f'{one["false_alarm_rate"]:.3g} false alarms a run</li>'
      )
  said = (
    f'<ul>{"".join(items)}</ul>'
    if items
    else '<p>There were no controls, and so there is no threshold.</p>'
  )
  return f'''<section><h2>The threshold</h2><p>Of each control, the largest absolute cosine over all steps; the
threshold is the one that a direction like the controls would exceed in at most {summary['false_alarm_rate']:g} of all runs, or,
where there are too few controls for that rate, the largest. An alarm is a cosine above the thresholds of all
families.</p>{said}</section>'''


def _number(value: float | None) -> str | None:
  return None if value is None else f'{value:.4f}'


def _details(name: str, content: Any) -> str:
  shown = escape(json.dumps(redact(content), indent=2, ensure_ascii=False))
  return f'<details><summary>{escape(name)}</summary><pre>{shown}</pre></details>'
