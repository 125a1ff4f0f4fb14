"""report/index.html: a sweep in one file, to be opened offline, years later.

Figures, style, script and data all stand inside (see markup.py).
"""

from collections.abc import Sequence
from pathlib import Path

from weightsteer_jax.experiments.report import (
  examples,
  figures,
  markup,
  pick,
  sections,
  study,
  tables,
)
from weightsteer_jax.experiments.report.examples import Survey
from weightsteer_jax.experiments.report.pick import Pick
from weightsteer_jax.experiments.report.safe import escape
from weightsteer_jax.experiments.report.study import Study
from weightsteer_jax.storage import files


def write(
  workdir: str | Path, *, behaviour: str | None = None, tolerance: float = pick.TOLERANCE
) -> Path:
  """The path of the `report/index.html` just written.

  Beside the page stand curves.png, tradeoff.png and table.md. Only files of the workdir are read
  (see `study.read`). A second report replaces the first one, each file at once.

  Args:
    workdir: a run's folder.
    behaviour: the behaviour task whose movement the pick maximises; by default the mean of all.
    tolerance: how far a capability mean may move from the base.

  Raises:
    InputError, CorruptError: as `study.read` and `examples.count_rows`.
    OutputError: if the report cannot be written.
  """
  sweep = study.read(workdir)
  picks = pick.choose_all(sweep, behaviour=behaviour, tolerance=tolerance)
  # Everything is read before anything is written: a broken sweep leaves the old report whole.
  survey = examples.count_rows(workdir, sweep.tasks)
  curves = figures.curves(picks)
  tradeoff = figures.tradeoff(picks)
  page = _page(
    sweep,
    picks,
    survey,
    curves=figures.svg(curves, 'Every task against alpha'),
    tradeoff=figures.svg(tradeoff, 'Behaviour against capability'),
  )
  markdown = [f'## {choice.arm}\n\n{tables.markdown(choice)}' for choice in picks]
  folder = sweep.workdir / 'report'
  files.write_bytes(folder / 'curves.png', figures.png(curves))
  files.write_bytes(folder / 'tradeoff.png', figures.png(tradeoff))
  files.write_text(folder / 'table.md', '\n\n'.join(markdown) + '\n')
  # The page last: an index.html that is new has new files beside it.
  files.write_text(folder / 'index.html', page)
  return folder / 'index.html'


def _page(
  sweep: Study, picks: Sequence[Pick], survey: Survey, *, curves: str, tradeoff: str
) -> str:
  # Resolved, because '.' has no name.
  folder_name = sweep.workdir.resolve().name
  name = escape(str(sweep.config.get('name') or folder_name))
  title = f'{name}: sweep over alpha'
  description = sweep.config.get('description')
  about = f'<p class="about">{escape(str(description))}</p>' if description else ''
  # What page.js shows in the browser of examples; page.js reads the keys by name.
  data = {
    'tasks': examples.payload(sweep.workdir, sweep.tasks, survey),
    'arms': survey.arms,
    'picked': {choice.arm: list(choice.alphas) for choice in picks},
  }
  return markup.document(
    title,
    [
      f'<h1>{title}</h1>',
      about,
      *(sections.headline(choice, several=len(picks) > 1) for choice in picks),
      sections.results(sweep, picks),
      sections.charts(curves, tradeoff),
      sections.browser(),
      sections.thinking(sweep, survey),
      sections.accounting(sweep, survey),
      sections.origin(sweep),
    ],
    scripts=['page.js'],
    data=data,
  )
