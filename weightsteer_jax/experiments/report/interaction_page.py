"""index.html of an interaction: the matrix of effects, cosines, and what projection left."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.experiments.report import markup
from weightsteer_jax.experiments.report.safe import escape
from weightsteer_jax.storage import files


def write(folder: pathlib.Path, summary: Mapping[str, Any]) -> None:
  """Writes index.html.

  Raises:
    OutputError: if the file cannot be written.
  """
  names = list(summary['directions'])
  lede = ''.join(f'<li>{escape(line)}</li>' for line in summary['verdict'])
  page = markup.document(
    'Interaction of directions',
    [
      f'<h1>{escape(" and ".join(names))}: what each moves, and all at once</h1>',
      f'<ul>{lede}</ul>',
      markup.section(
        'Effects',
        '<p>Change from the unsteered model with its standard error, paired by question. Beyond '
        'sum: the change of a mix less the changes of its parts.</p>',
        _effects(summary),
      ),
      markup.section(
        'Cosines', '<p>Over all parameters as one vector.</p>', _cosines(names, summary['cosines'])
      ),
      markup.section('Where it comes from', markup.folded_json('summary.json', summary)),
    ],
  )
  files.write_text(folder / 'index.html', page)


def _effects(summary: Mapping[str, Any]) -> str:
  tasks = list(dict.fromkeys(row['task'] for row in summary['effects']))
  cells = {(row['mix'], row['task']): row for row in summary['effects']}
  rows = []
  for mix in dict.fromkeys(row['mix'] for row in summary['effects']):
    values = []
    for task in tasks:
      row = cells[mix, task]
      if mix == 'base':
        values.append(f'{row["mean"]:.2f}' if row['mean'] is not None else '–')
      else:
        values.append(_change(row))
    rows.append(_row(mix, values))
  return markup.table(markup.column_heads(['mix', *tasks]), rows)


def _change(row: Mapping[str, Any]) -> str:
  if row['change'] is None:
    return '–'
  text = f'{row["change"]:+.2f} ± {row["change_sem"] or 0:.2f}'
  if row.get('beyond_sum') is not None:
    text += f' (beyond sum {row["beyond_sum"]:+.2f} ± {row["beyond_sum_sem"] or 0:.2f})'
  return text


def _cosines(names: Sequence[str], cosines: Sequence[Sequence[float]]) -> str:
  rows = []
  for name, line in zip(names, cosines):
    rows.append(_row(name, [f'{cosine:+.3f}' for cosine in line]))
  return markup.table(markup.column_heads(['', *names]), rows)


def _row(name: str, values: Sequence[str]) -> str:
  cells = ''.join(f'<td>{escape(value)}</td>' for value in values)
  return f'<tr><th scope="row" class="left">{escape(name)}</th>{cells}</tr>'
