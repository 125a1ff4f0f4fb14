"""The table that a sweep gives: what came back at each strength."""

import html
from typing import Any

# Lines of a table that are shown, and characters of each.
MOST_LINES = 40
LINE_LENGTH = 100


class ByAlpha(dict[float, Any]):
  """{strength: what came back}: a dict in the order of the strengths, shown as a table.

  Of a single text in, each strength has one text (or number) out; of a list, a list in its order.

  >>> ByAlpha({-1.0: 'No.', 0.0: 'Yes, you are right.'})
  alpha
     -1  No.
      0  Yes, you are right.
  >>> ByAlpha({0.5: [-1.25, -3.5]})
  alpha
    0.5  [0] -1.25
         [1] -3.5
  """

  def __missing__(self, alpha: Any) -> Any:
    raise KeyError(f'{alpha}; the strengths are {", ".join(f"{key:g}" for key in self)}')

  def cells(self) -> list[tuple[str, str]]:
    """(strength, what came back) of each line of the table, as texts."""
    lines = []
    for alpha, value in self.items():
      if not isinstance(value, list):
        lines.append((f'{alpha:g}', _shown(value)))
        continue
      for i, one in enumerate(value):
        # A strength stands beside its first line alone.
        lines.append(('' if i else f'{alpha:g}', f'[{i}] {_shown(one)}'))
    return lines

  def __repr__(self) -> str:
    lines = self.cells()
    width = max([len('alpha'), *(len(alpha) for alpha, _ in lines)])
    shown = ['alpha'.rjust(width)]
    for alpha, text in lines[:MOST_LINES]:
      line = f'{alpha.rjust(width)}  {text}'
      shown.append(line if len(line) <= LINE_LENGTH else line[:LINE_LENGTH] + ' ...')
    if len(lines) > MOST_LINES:
      shown.append(f'... and {len(lines) - MOST_LINES} lines more')
    return '\n'.join(shown)

  def _repr_html_(self) -> str:
    """The table as a notebook shows it, texts in full."""
    rows = []
    for alpha, text in self.cells():
      cell = f'<td style="text-align: left; white-space: pre-wrap">{html.escape(text)}</td>'
      rows.append(f'<tr><th>{alpha}</th>{cell}</tr>')
    return f'<table><tr><th>alpha</th><th></th></tr>{"".join(rows)}</table>'


def _shown(value: Any) -> str:
  if isinstance(value, float):
    return f'{value:.6g}'
  # A text with several lines takes one of the table.
  return ' / '.join(line for line in str(value).splitlines() if line.strip())
