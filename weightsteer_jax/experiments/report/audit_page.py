"""index.html of an audit, and the same in the terminal: modules, the comparison, directions."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.experiments.report import markup
from weightsteer_jax.experiments.report.safe import escape
from weightsteer_jax.storage import files

# What summary.json of an audit holds.
Summary = Mapping[str, Any]
# Columns of the table of modules: the key in the summary, and the head.
_COLUMNS = {
  'matrices': 'matrices',
  'norm': 'norm',
  'largest_singular_value': 'largest singular value',
  'stable_rank': 'stable rank',
  'effective_rank': 'effective rank',
  'entropy': 'entropy (nats)',
}


def write(folder: pathlib.Path, summary: Summary) -> None:
  """Writes index.html.

  Raises:
    OutputError: if the file cannot be written.
  """
  name = escape(pathlib.PurePath(summary['fine_tune']).name)
  headline = ' '.join(f'{line[0].upper()}{line[1:]}.' for line in lines(summary))
  sections = [
    f'<h1>{escape(summary["fine_tune"])}: the update audited</h1>',
    f'<p class="lede">{escape(headline)}</p>',
    _modules(summary),
    _comparison(summary),
    _directions(summary),
    markup.section('Where it comes from', markup.folded_json('summary.json', summary)),
  ]
  files.write_text(folder / 'index.html', markup.document(f'{name}: audited', sections))


def table(summary: Summary) -> list[str]:
  """The table of modules for a terminal, a line each."""
  rows = [['module', *_COLUMNS.values()], *_cells(summary)]
  widths = [max(map(len, column)) for column in zip(*rows)]
  told = []
  for first, *rest in rows:
    numbers = [cell.rjust(width) for cell, width in zip(rest, widths[1:])]
    told.append('  '.join([first.ljust(widths[0]), *numbers]))
  return told


def lines(summary: Summary) -> list[str]:
  """What came out, a sentence a line."""
  whole = summary['whole']
  told = [
    f'the update of {whole["matrices"]} matrices has norm {whole["norm"]:.4g}, mean stable rank '
    f'{whole["stable_rank"]:.3g} and mean effective rank {whole["effective_rank"]:.3g}'
  ]
  if whole['entropy_error'] > 0:
    told.append(
      'large matrices were sketched: the largest singular value is known to '
      f'{whole["largest_singular_value_error"]:.1g}, entropies to {whole["entropy_error"]:.2g} nats'
    )
  told.append(_verdict(summary['comparison']))
  monitored = summary['monitor'] or {'directions': {}}
  told += [_found(name, about['alarm']) for name, about in monitored['directions'].items()]
  return told


def _verdict(comparison: Mapping[str, Any] | None) -> str:
  if comparison is None:
    return 'no good fine-tunes to compare with: the numbers alone tell nothing good or bad'
  count = len(comparison['good'])
  verdict = 'OUT OF LINE with' if comparison['out_of_line'] else 'in line with'
  furthest = comparison['furthest'][0]
  return (
    f'{verdict} {count} good fine-tunes: distance {comparison["distance"]:.2f}, theirs '
    f'{min(comparison["good"].values()):.2f} to {max(comparison["good"].values()):.2f}, p = '
    f'{comparison["p_value"]:.3f} (false alarms: {comparison["false_alarm_rate"]:.3f}); furthest '
    f'out is the {furthest["number"]} of {_place(furthest)}, z = {furthest["z"]:+.1f}'
  )


def _found(name: str, alarm: Mapping[str, Any]) -> str:
  """What a direction found in the update."""
  if alarm['peak'] is None:
    return f'{name}: changes nothing that the update does'
  if alarm['threshold'] is None:
    return f'{name}: cosine {alarm["peak"]:+.4f}; no controls, so no threshold'
  verdict = 'no alarm' if alarm['step'] is None else 'ALARM'
  return f'{name}: {verdict}, cosine {alarm["peak"]:+.4f}, threshold {alarm["threshold"]:.4f}'


def _place(cell: Mapping[str, Any]) -> str:
  layer = '' if cell['layer'] is None else f', layer {cell["layer"]}'
  expert = '' if cell['expert'] is None else f', expert {cell["expert"]}'
  return f'{cell["module"]}{layer}{expert}'


def _cells(summary: Summary) -> list[list[str]]:
  """The cells of the table of modules, the whole last."""
  rows = []
  for name, about in [*summary['modules'].items(), ('all', summary['whole'])]:
    cells = [f'{about[key]:.4g}' if key in about else '–' for key in _COLUMNS]
    rows.append([name, *cells])
  return rows


def _modules(summary: Summary) -> str:
  return markup.section(
    'By kind of module',
    _table(['module', *_COLUMNS.values()], _cells(summary)),
    '<p>The norm is that of all matrices together; stable rank, effective rank and entropy are '
    'means over the matrices. Each matrix has a row in audit.csv, with its largest singular '
    'values.</p>',
  )


def _comparison(summary: Summary) -> str:
  comparison = summary['comparison']
  if comparison is None:
    return ''
  good = sorted(comparison['good'].items(), key=lambda entry: -entry[1])
  distances = [['this one', f'{comparison["distance"]:.3f}']]
  distances += [[pathlib.PurePath(name).name, f'{value:.3f}'] for name, value in good]
  furthest = []
  for cell in comparison['furthest']:
    furthest.append([_place(cell), cell['number'], f'{cell["z"]:+.2f}'])
  notes = ''.join(f'<p>{escape(note)}</p>' for note in summary['notes'])
  return markup.section(
    'Against the good fine-tunes',
    notes,
    '<p>The distance is the root mean squared z value over all matrices, of log norm, log stable '
    'rank and entropy; each fine-tune is measured against all others. In line does not mean '
    'harmless: spectra say that an update looks like the others, not what it does.</p>',
    _table(['fine-tune', 'distance'], distances),
    _table(['furthest out', 'number', 'z'], furthest),
  )


def _directions(summary: Summary) -> str:
  if not summary['monitor']:
    return ''
  items = []
  for name, about in summary['monitor']['directions'].items():
    items.append(f'<li>{escape(_found(name, about["alarm"]))}</li>')
  return markup.section('Along the directions', f'<ul>{"".join(items)}</ul>')


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines_of_table = []
  for first, *rest in rows:
    cells = ''.join(f'<td>{escape(cell)}</td>' for cell in rest)
    lines_of_table.append(f'<tr><th scope="row" class="left">{escape(first)}</th>{cells}</tr>')
  return markup.table(markup.column_heads(heads), lines_of_table)
