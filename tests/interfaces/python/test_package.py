import ast
import os
import pathlib
import subprocess
import sys

import pytest
import yaml

import weightsteer_jax as ws

TOP = pathlib.Path(__file__).parents[3]


def test_an_import_is_light_and_knows_its_names():
  program = """
import sys
import weightsteer_jax as ws
assert set(ws.__all__) <= set(dir(ws)) and 'TYPE_CHECKING' not in dir(ws)
assert not {'jax', 'numpy', 'transformers', 'flax'} & set(sys.modules)
ws.InputError
assert 'jax' not in sys.modules
try:
  ws.lod
except AttributeError as error:
  print(error)
from weightsteer_jax import models
"""
  ran = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True, cwd=TOP
  )
  assert ran.stdout == "module 'weightsteer_jax' has no attribute 'lod'\n"


def test_every_name_is_there_for_people_and_for_type_checkers():
  parsed = ast.parse((TOP / 'weightsteer_jax' / '__init__.py').read_text())
  checked = [node for node in parsed.body if isinstance(node, ast.If)][0]
  seen = [alias.name for node in checked.body for alias in node.names]
  assert sorted(seen) == sorted(ws.__all__)
  for name in ws.__all__:
    offered = getattr(ws, name)
    assert offered.__doc__ and callable(offered), name
  # A room of that name would take the function's place as soon as it is imported.
  assert not [name for name in ws.__all__ if (TOP / 'weightsteer_jax' / name).exists()]


def python_of_the_readme():
  """The first block of the README that begins with `import weightsteer_jax as ws`."""
  blocks = (TOP / 'README.md').read_text().split('```python\n')[1:]
  return next(
    block.split('```')[0] for block in blocks if block.startswith('import weightsteer_jax as ws')
  )


def test_the_readme_runs(run_workdir, capsys):
  exec(compile(python_of_the_readme(), 'README.md', 'exec'), {})
  said = capsys.readouterr().out
  assert 'alpha' in said and len(said.splitlines()) > 5


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
  """Finds the quickstart's direction first: some two minutes."""
  nbformat = pytest.importorskip('nbformat')
  nbclient = pytest.importorskip('nbclient')
  notebook = nbformat.read(TOP / 'docs' / 'notebooks' / 'steer.ipynb', as_version=4)
  client = nbclient.NotebookClient(
    notebook, timeout=900, resources={'metadata': {'path': str(tmp_path)}}
  )
  client.execute()
  outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
  assert any('image/png' in output.get('data', {}) for output in outputs)
  assert not [output for output in outputs if output.output_type == 'error']


def test_every_page_of_the_documentation_is_in_its_navigation():
  def pages(entry):
    if isinstance(entry, str):
      return [entry]
    children = entry if isinstance(entry, list) else list(entry.values())
    return [page for child in children for page in pages(child)]

  settings = yaml.safe_load((TOP / 'mkdocs.yml').read_text())
  there = sorted(path.relative_to(TOP / 'docs').as_posix() for path in TOP.glob('docs/**/*.md'))
  assert sorted(pages(settings['nav'])) == there, 'the nav of mkdocs.yml'


@pytest.mark.slow
def test_the_documentation_is_built_without_a_warning(tmp_path):
  pytest.importorskip('mkdocstrings')
  command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet']
  ran = subprocess.run(
    [*command, f'--site-dir={tmp_path / "site"}'],
    capture_output=True,
    text=True,
    cwd=TOP,
    env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'},
  )
  assert not ran.returncode, ran.stdout + ran.stderr
  api = (tmp_path / 'site' / 'api' / 'index.html').read_text()
  for name in ws.__all__:
    assert f'id="weightsteer_jax.{name}"' in api, name
