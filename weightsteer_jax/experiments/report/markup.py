"""HTML shared by all pages: the page around the sections, figures, tables, and folded JSON.

A page holds style, script and figures itself. The policy forbids every load and every script but
the page's own and the files that these ask for, so nothing can reach out or run by accident. Texts
are HTML already; whoever calls has put foreign text through `safe.escape`.
"""

import base64
import hashlib
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.experiments.report.safe import escape, script_json
from weightsteer_jax.runtime.redaction import redact


def document(
  title: str,
  sections: Sequence[str],
  *,
  scripts: Sequence[str] = (),
  data: Any = None,
  parts: Mapping[str, str] | None = None,
) -> str:
  """A whole page, the same skeleton for all reports.

  Args:
    title: HTML of the browser's title.
    sections: HTML of the body, from the heading on; empty texts leave no trace.
    scripts: files of assets/ to run as one script, in order.
    data: JSON for the script to read, in the element `data`.
    parts: {name: JSON from `safe.script_json`} in elements `part-<name>`, parsed when wanted.
  """
  # One style for all pages.
  style = _asset('page.css')
  body = '\n'.join(section for section in sections if section)
  elements = []
  # Data first: scripts run where they stand and read the data.
  if data is not None:
    elements.append(_json_element('data', script_json(data)))
  for name, text in (parts or {}).items():
    elements.append(_json_element(f'part-{name}', text))
  program = ''
  if scripts:
    # One function around all files: their names stay out of the browser's own.
    files = '\n'.join(_asset(name) for name in scripts)
    program = f"'use strict';\n(() => {{\n{files}}})();\n"
    elements.append(f'<script>{program}</script>\n')
  # The policy stands before anything that could load or run.
  return (
    '<!doctype html>\n'
    '<html lang="en">\n'
    '<head>\n'
    '<meta charset="utf-8">\n'
    f'<meta http-equiv="Content-Security-Policy" content="{_policy(program)}">\n'
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


def _json_element(name: str, text: str) -> str:
  return f'<script type="application/json" id="{escape(name)}">{text}</script>\n'


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
  # In the order of the tab key, so that a keyboard can scroll what is wider than the window.
  return (
    f'<div class="scroll" tabindex="0"><table{attribute}><thead>{head}</thead>'
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
  # A keyboard scrolls only what it can reach.
  content = f'<pre tabindex="0">{escape(text)}</pre>'
  return f'<details><summary>{escape(name)}</summary>{content}</details>'


def _policy(program: str) -> str:
  """The content security policy of a page that runs this script and nothing else."""
  # Figures carry style attributes, so style is allowed wherever it stands; it can load nothing.
  rules = ["default-src 'none'", "style-src 'unsafe-inline'"]
  if program:
    digest = hashlib.sha256(program.encode()).digest()
    allowed = base64.b64encode(digest).decode()
    # strict-dynamic: what the script itself adds may run too, the files with parts of the examples.
    # A script in the markup, as a hostile text would be, may not.
    rules.append(f"script-src 'sha256-{allowed}' 'strict-dynamic'")
  # default-src does not cover these two.
  rules += ["base-uri 'none'", "form-action 'none'"]
  return '; '.join(rules)


def _asset(name: str) -> str:
  # Through importlib: the package may be installed as a zip.
  folder = importlib.resources.files('weightsteer_jax.experiments.report')
  return folder.joinpath('assets', name).read_text(encoding='utf-8')
