"""report/index.html: one file that shows a sweep to whoever opens it, offline, years later.

Everything is inside: figures as SVG, style, script, data. Nothing in it can reach out or run by
accident: the policy forbids every load, the one script is allowed by its hash, every text is
escaped, and the data's `<` never appears.
"""

import base64
import hashlib
import importlib.resources
from collections.abc import Sequence
from pathlib import Path

from weightsteer_jax.experiments.report import examples, figures, pick, sections, study, tables
from weightsteer_jax.experiments.report.examples import Survey
from weightsteer_jax.experiments.report.pick import Pick
from weightsteer_jax.experiments.report.safe import escape, script_json
from weightsteer_jax.experiments.report.study import Study
from weightsteer_jax.storage import files


def write(
  workdir: str | Path, *, behaviour: str | None = None, tolerance: float = pick.TOLERANCE
) -> Path:
  """Path of the `report/index.html` just written; beside it curves.png, tradeoff.png and table.md.

  Reads only files (see `study.read`). Run again, it replaces its own output, each file at once.

  Args:
    workdir: a run's folder.
    behaviour: the behaviour task whose movement the pick maximises; by default the mean of all.
    tolerance: how far a capability mean may move from the base.

  Raises:
    InputError, CorruptError: as `study.read` and `examples.count_rows`.
    OutputError: the report could not be written.
  """
  sweep = study.read(workdir)
  picks = pick.choose_all(sweep, behaviour=behaviour, tolerance=tolerance)
  survey = examples.count_rows(workdir, sweep.tasks)
  curves, tradeoff = figures.curves(picks), figures.tradeoff(picks)
  page = _page(
    sweep,
    picks,
    survey,
    figures.svg(curves, 'Every task against alpha'),
    figures.svg(tradeoff, 'Behaviour against capability'),
  )
  folder = sweep.workdir / 'report'
  table = '\n\n'.join(f'## {one.arm}\n\n{tables.markdown(one)}' for one in picks) + '\n'
  files.write_bytes(folder / 'curves.png', figures.png(curves))
  files.write_bytes(folder / 'tradeoff.png', figures.png(tradeoff))
  files.write_text(folder / 'table.md', table)
  files.write_text(folder / 'index.html', page)
  return folder / 'index.html'


def _page(sweep: Study, picks: Sequence[Pick], survey: Survey, curves: str, tradeoff: str) -> str:
  script, style = _asset('page.js'), _asset('page.css')
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  policy = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri "
    "'none'; form-action 'none'"
  )
  data = {
    'tasks': examples.payload(sweep.workdir, sweep.tasks, survey),
    'arms': survey.arms,
    'picked': {one.arm: list(one.alphas) for one in picks},
  }
  about = (
    f'<p class="about">{escape(str(sweep.config["description"]))}</p>'
    if sweep.config.get('description')
    else ''
  )
  title = escape(str(sweep.config.get('name') or sweep.workdir.resolve().name))
  parts = [sections.headline(one, several=len(picks) > 1) for one in picks]
  parts += [
    sections.results(sweep, picks),
    sections.charts(curves, tradeoff),
    sections.browser(),
    sections.accounting(sweep, survey),
    sections.origin(sweep),
  ]
  return f'''<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: sweep over alpha</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}: sweep over alpha</h1>
{about}{''.join(parts)}
</main>
<script type="application/json" id="data">{script_json(data)}</script>
<script>{script}</script>
</body>
</html>
'''


def _asset(name: str) -> str:
  return (
    importlib.resources.files('weightsteer_jax.experiments.report')
    .joinpath(name)
    .read_text(encoding='utf-8')
  )
