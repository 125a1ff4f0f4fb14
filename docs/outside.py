"""A hook of mkdocs: files of the repository that a page links to are part of the site.

Pages link to `../configs/quickstart.png` and the like, as a reader of the repository needs it. The
site holds a copy of each such file under repository/; one that is not there is an error.
"""

import pathlib
import re

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

TOP = pathlib.Path(__file__).parents[1]
FOLDER = 'repository'
# The target of a link or an image that begins with ../, without an anchor.
LINK = re.compile(r'\]\((\.\./[^)#\s]+)')


def on_files(files, config):
  """Adds the files that pages link to."""
  for page in list(files.documentation_pages()):
    text = pathlib.Path(page.abs_src_path).read_text(encoding='utf-8')
    for target in LINK.findall(text):
      path = _outside(page, target)
      name = _name(path)
      if path and files.get_file_from_path(name) is None:
        files.append(File.generated(config, name, abs_src_path=str(path)))
  return files


def on_page_markdown(markdown, page, config, files):
  """Points links to the copies."""

  def at_copy(match):
    path = _outside(page.file, match[1])
    up = '../' * page.file.src_uri.count('/')
    return f']({up}{_name(path)}' if path else match[0]

  return LINK.sub(at_copy, markdown)


def _outside(page, target):
  """The file outside of docs/ that a page links to; None inside."""
  path = (pathlib.Path(page.abs_src_path).parent / target).resolve()
  if path.is_relative_to(TOP / 'docs'):
    return None
  if not path.is_file() or not path.is_relative_to(TOP):
    raise PluginError(f'{page.src_uri}: {target} is no file of the repository')
  return path


def _name(path):
  """The place of a file's copy in the site."""
  if path is None:
    return ''
  name = f'{FOLDER}/{path.relative_to(TOP).as_posix()}'
  # Shown as it is: a page would need the site's links inside.
  return f'{name}.txt' if path.suffix in ('.md', '.py') else name
