"""index.html of a calibration: the strengths by budget, and every cost behind them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.experiments.report import markup
from weightsteer_jax.experiments.report.safe import escape
from weightsteer_jax.storage import files

# What a budget is of, in words.
WORDS = {
  'kl': 'mean KL from the base, nats a token',
  'worst': 'KL from the base, mean over the worst 5 % of tokens, nats',
  'perplexity': "perplexity by the base's, less 1",
}


def write(
  folder: pathlib.Path, summary: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]
) -> None:
  """Writes index.html.

  Raises:
    OutputError: if the file cannot be written.
  """
  words = WORDS[summary['measure']]
  about = (
    f'<p>{escape(summary["model"])}; {escape(words)}, on {summary["num_texts"]} texts '
    f'({summary["num_tokens"]} tokens) of {escape(summary["texts"])}. Errors are standard errors '
    'by the text.</p>'
  )
  heads = ['direction', 'budget', 'alpha', 'spent', 'evaluations', '']
  rows = [_row(row) for row in summary['rows']]
  all_heads = ['direction', 'alpha', 'spent']
  costs = [_cells(row['direction'], [f'{row["alpha"]:+.4f}', _spent(row)]) for row in evaluations]
  page = markup.document(
    'Strengths at equal budgets',
    [
      '<h1>Strengths at equal budgets</h1>',
      markup.section('Budgets', about, markup.table(markup.column_heads(heads), rows)),
      markup.section(
        'Every cost that was computed', markup.table(markup.column_heads(all_heads), costs)
      ),
      markup.section('Where it comes from', markup.folded_json('summary.json', summary)),
    ],
  )
  files.write_text(folder / 'index.html', page)


def _row(row: Mapping[str, Any]) -> str:
  note = '' if row['met'] else 'not met: the nearest'
  values = [f'{row["budget"]:g}', f'{row["alpha"]:+.4f}', _spent(row)]
  return _cells(row['direction'], [*values, str(row['evaluations']), note])


def _spent(row: Mapping[str, Any]) -> str:
  if row['spent'] is None:
    return 'broken'
  error = '' if row['sem'] is None else f' ± {row["sem"]:.2g}'
  return f'{row["spent"]:.4g}{error}'


def _cells(name: str, values: Sequence[str]) -> str:
  cells = ''.join(f'<td>{escape(value)}</td>' for value in values)
  return f'<tr><th scope="row" class="left">{escape(name)}</th>{cells}</tr>'
