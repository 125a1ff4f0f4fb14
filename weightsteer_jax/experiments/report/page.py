"""report/index.html: a sweep as a page to be opened offline, years later.

Figures, style and script all stand inside, and so do the examples, unless they are large: then
files beside the page hold them (see beside.py).
"""

from collections.abc import Sequence
from pathlib import Path

from weightsteer_jax.experiments.report import (
  beside,
  examples,
  figures,
  markup,
  parts,
  pick,
  sections,
  study,
  tables,
)
from weightsteer_jax.experiments.report.beside import Placed
from weightsteer_jax.experiments.report.comparison import DEFAULT, Rule
from weightsteer_jax.experiments.report.examples import Survey
from weightsteer_jax.experiments.report.judged import Scores
from weightsteer_jax.experiments.report.pick import Pick
from weightsteer_jax.experiments.report.safe import escape
from weightsteer_jax.experiments.report.study import Study
from weightsteer_jax.storage import files

# Files of assets/, later ones using earlier ones.
SCRIPTS = ('data.js', 'elements.js', 'view.js', 'list.js', 'curves.js', 'browser.js', 'main.js')


def write(workdir: str | Path, *, behaviour: str | None = None, rule: Rule = DEFAULT) -> Path:
  """The path of the `report/index.html` just written.

  Beside the page stand curves.png, tradeoff.png, table.md, results.csv, and where the examples are
  large a folder with them. Only files of the workdir are read (see `study.read`). A second report
  replaces the first one, each file at once.

  Args:
    workdir: a run's folder.
    behaviour: the behaviour task whose movement the pick maximises; by default the mean of all.
    rule: what an alpha may cost to be picked.

  Raises:
    InputError, CorruptError: as `study.read` and `examples.count_rows`.
    OutputError: if the report cannot be written.
  """
  sweep = study.read(workdir)
  picks = pick.choose_all(sweep, behaviour=behaviour, rule=rule)
  # Everything is read before anything is written: a broken sweep leaves the old report whole.
  survey = examples.count_rows(workdir, sweep.tasks)
  scores = Scores(workdir)
  folder = sweep.workdir / 'report'
  placed = beside.place(folder, parts.make(sweep, survey, scores))
  curves = figures.png(figures.curves(picks))
  tradeoff = figures.png(figures.tradeoff(picks))
  page = _page(sweep, picks, survey, scores, placed)
  markdown = [f'## {choice.arm}\n\n{tables.markdown(choice)}' for choice in picks]
  files.write_bytes(folder / 'curves.png', curves)
  files.write_bytes(folder / 'tradeoff.png', tradeoff)
  files.write_text(folder / 'table.md', '\n\n'.join(markdown) + '\n')
  files.write_text(folder / 'results.csv', tables.csv(sweep.results))
  # The page last: an index.html that is new has new files beside it.
  files.write_text(folder / 'index.html', page)
  beside.tidy(folder, placed)
  return folder / 'index.html'


def _page(
  sweep: Study,
  picks: Sequence[Pick],
  survey: Survey,
  scores: Scores,
  placed: Placed,
) -> str:
  # Resolved, because '.' has no name.
  folder_name = sweep.workdir.resolve().name
  title = escape(str(sweep.config.get('name') or folder_name))
  # What the scripts read, by these names.
  data = {
    'tasks': parts.about(sweep, survey, scores),
    'arms': survey.arms,
    'columns': parts.columns(survey),
    'picked': {choice.arm: list(choice.alphas) for choice in picks},
    'files': placed.beside,
  }
  return markup.document(
    f'{title}: sweep over alpha',
    [
      sections.masthead(title, sweep),
      sections.headlines(picks),
      sections.charts(sweep, picks),
      sections.browser(survey, placed),
      sections.tradeoff(picks),
      sections.results(sweep, picks),
      sections.thinking(sweep, survey),
      sections.accounting(sweep, survey),
      sections.origin(sweep),
    ],
    scripts=SCRIPTS,
    data=data,
    parts=placed.inside,
  )
