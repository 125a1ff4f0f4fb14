"""HTML shared by all pages: the page around the sections, figures, tables, and folded JSON.

A page is self-contained: style, script, figures and data stand inside. The policy forbids every
load and every script but the page's own, so nothing can reach out or run by accident. Texts are
HTML already; whoever calls has put foreign text through `safe.escape`.
"""

import base64
import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from typing import Any

from weightsteer_jax.experiments.report.safe import escape, redact, script_json


def document(
  title: str,
  sections: Sequence[str],
  *,
  scripts: Sequence[str] = (),
  data: Any = None,
) -> str:
  """A whole page, the same skeleton for all reports.

  Args:
    title: HTML of the browser's title.
    sections: HTML of the body, from the heading on; empty texts leave no trace.
    scripts: files of this folder to run, as 'page.js'.
    data: JSON for the scripts to read, in the element `data`.
  """
  # One style for all pages.
  style = _asset('page.css')
  programs = [_asset(name) for name in scripts]
  body = '\n'.join(section for section in sections if section)
  elements = []
  # Data first: scripts run where they stand and read the data.
  if data is not None:
    elements.append(f'<script type="application/json" id="data">{script_json(data)}</script>\n')
  for program in programs:
    elements.append(f'<script>{program}</script>\n')
  # The policy stands before anything that could load or run.
  return (
    '<!doctype html>\n'
    '<html lang="en">\n'
    '<head>\n'
    '<meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{_policy(programs)}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{title}</title>\n'
    f'<style>{style}</style>\n'
    '</head>\n'
    '<body>\n'
    f'<main>\n{body}\n</main>\n'
    f'{"".join(elements)}'
    '</body>\n'
    '</html>\n'
  )


def section(title: str, *parts: str) -> str:
  """A section with a heading."""
  return f'<section><h2>{title}</h2>{"".join(parts)}</section>'


def figure(drawing: str, caption: str = '', *, narrow: bool = False) -> str:
  """A figure from an SVG element and a caption."""
  kind = ' class="narrow"' if narrow else ''
  below = f'<figcaption>{caption}</figcaption>' if caption else ''
  return f'<figure{kind}>{drawing}{below}</figure>'


def table(head: str, rows: Sequence[str], *, kind: str = '') -> str:
  """A table, scrolled sideways on its own in a narrow window.

  Args:
    head: HTML of the rows at the top.
    rows: HTML of the other rows.
    kind: class of the table in page.css.
  """
  attribute = f' class="{kind}"' if kind else ''
  return (
    f'<div class="scroll"><table{attribute}><thead>{head}</thead>'
    f'<tbody>{"".join(rows)}</tbody></table></div>'
  )


def column_heads(names: Sequence[str]) -> str:
  """A row of column heads, aligned left; the names are escaped."""
  cells = ''.join(f'<th scope="col" class="left">{escape(name)}</th>' for name in names)
  return f'<tr>{cells}</tr>'


def folded_json(name: str, content: Any) -> str:
  """JSON under a name, folded away and without secrets."""
  # Redacted before it is text: keys say what is a secret.
  text = json.dumps(redact(content), indent=2, ensure_ascii=False)
  return f'<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>'


def _policy(programs: Sequence[str]) -> str:
  """The content security policy of a page that runs these scripts and nothing else."""
  # Figures carry style attributes, so style is allowed wherever it stands; it can load nothing.
  rules = ["default-src 'none'", "style-src 'unsafe-inline'"]
  if programs:
    digests = [hashlib.sha256(program.encode()).digest() for program in programs]
    allowed = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    rules.append(f'script-src {" ".join(allowed)}')
  # default-src does not cover these two.
  rules += ["base-uri 'none'", "form-action 'none'"]
  return '; '.join(rules)


def _asset(name: str) -> str:
  # Through importlib: the package may be installed as a zip.
  folder = importlib.resources.files('weightsteer_jax.experiments.report')
  return folder.joinpath(name).read_text(encoding='utf-8')
