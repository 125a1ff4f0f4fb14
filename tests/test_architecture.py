"""The architecture as the code has it: the way of imports, names in use, letters of einsums.

Everything here is read off the source, so a new file is held to the same rules without being named.
"""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1] / 'weightsteer_jax'
PACKAGE = ROOT.name
# The seam to PEFT, which an optional extra brings with torch.
PEFT_LIBRARY = 'directions/adapters/library.py'
# Libraries that only some rooms may import, so that each can be replaced or be absent.
ONLY_IN = {
  'orbax': ('storage/checkpoint.py',),
  'transformers': ('data', 'models', 'experiments/organism', PEFT_LIBRARY),
  'datasets': ('data',),
  'gguf': ('models/gguf/file.py',),
  'absl.flags': ('interfaces/cli',),
  'absl.app': ('interfaces/cli',),
  'torch': (PEFT_LIBRARY,),
  'peft': (PEFT_LIBRARY,),
}

# Rooms whose files are the rows of a table in the code.
TABLES = ('models/families/__init__.py', 'evaluation/tasks/__init__.py')


def module_name(path: pathlib.Path) -> str:
  """The dotted name of a file of the package; a package's `__init__` has its folder's name."""
  parts = (PACKAGE, *path.relative_to(ROOT).with_suffix('').parts)
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


SOURCES = {module_name(path): path for path in sorted(ROOT.rglob('*.py'))}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}
FILES = {name: path.relative_to(ROOT).as_posix() for name, path in SOURCES.items()}


def imports(name: str) -> set[str]:
  """The modules of any package that a module imports, also inside of its functions."""
  found = set()
  for node in ast.walk(TREES[name]):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      members = {f'{node.module}.{alias.name}' for alias in node.names}
      found |= {member if member in SOURCES else node.module for member in members}
      if not node.module.startswith(PACKAGE):
        found |= members
  return found


def own_imports(name: str) -> set[str]:
  """The modules of this package that a module imports."""
  return {other for other in imports(name) if other in SOURCES and other != name}


def rooms() -> list[str]:
  """The rooms in the order of the map in the package's docstring."""
  return re.findall(r'^  (\w+)/ ', ast.get_docstring(TREES[PACKAGE]), re.MULTILINE)


def room_of(name: str) -> str:
  return name.split('.')[1]


def test_the_map_names_every_room():
  folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != '__pycache__'}
  assert set(rooms()) == folders
  assert len([path for path in ROOT.iterdir() if path.name != '__pycache__']) <= 15


def test_every_room_names_its_files():
  missing = []
  for name, tree in TREES.items():
    folder = SOURCES[name].parent
    if SOURCES[name].name != '__init__.py' or name == PACKAGE or FILES[name] in TABLES:
      continue
    said = ast.get_docstring(tree) or ''
    members = [
      path for path in folder.iterdir() if path.suffix == '.py' or (path / '__init__.py').exists()
    ]
    for path in members:
      shown = path.name if path.suffix == '.py' else f'{path.name}/'
      if not path.name.startswith('__') and shown not in said:
        missing.append(f'{FILES[name]}: {shown}')
  assert not missing, 'the docstring of a room does not name these files: ' + ', '.join(missing)


def test_imports_only_go_to_rooms_before():
  order = rooms()
  wrong = [
    f'{FILES[name]} imports {other}'
    for name in SOURCES
    if name not in (PACKAGE, f'{PACKAGE}.__main__')
    for other in own_imports(name)
    if other != PACKAGE and order.index(room_of(other)) > order.index(room_of(name))
  ]
  assert not wrong, '\n'.join(wrong)


def test_no_modules_import_each_other_in_a_circle():
  finished = set()

  def visit(name: str, path: tuple[str, ...]) -> None:
    assert name not in path, ' -> '.join((*path[path.index(name) :], name))
    if name not in finished:
      for other in sorted(own_imports(name)):
        visit(other, (*path, name))
      finished.add(name)

  # A package's `__init__` hands on names of its members: they import one another, never it.
  for name in SOURCES:
    if SOURCES[name].name != '__init__.py':
      visit(name, ())


@pytest.mark.parametrize('library', ONLY_IN)
def test_a_library_is_imported_only_where_it_may_be(library):
  places = ONLY_IN[library]
  users = [
    FILES[name]
    for name in SOURCES
    if any(other == library or other.startswith(f'{library}.') for other in imports(name))
  ]
  assert [user for user in users if not user.startswith(places)] == [] if places else users == []


def is_private(name: str) -> bool:
  return name.startswith('_') and not name.startswith('__')


def test_no_private_name_is_used_across_modules():
  wrong = []
  for name, tree in TREES.items():
    aliases = set()
    for node in ast.walk(tree):
      if isinstance(node, ast.ImportFrom) and (node.module or '').startswith(PACKAGE):
        wrong += [f'{FILES[name]}: {alias.name}' for alias in node.names if is_private(alias.name)]
        aliases |= {alias.asname or alias.name for alias in node.names}
    wrong += [
      f'{FILES[name]}: {node.value.id}.{node.attr}'
      for node in ast.walk(tree)
      if isinstance(node, ast.Attribute)
      and is_private(node.attr)
      and isinstance(node.value, ast.Name)
      and node.value.id in aliases
      and node.value.id[0].islower()
    ]
  assert not wrong, '\n'.join(wrong)


SUFFIX = re.compile(r'_([A-Z]+)$')


def suffix(node: ast.expr) -> str:
  """The axis letters of an array by its name, or '' where the name has none."""
  if isinstance(node, ast.Subscript):
    return ''
  name = (
    node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ''
  )
  letters = SUFFIX.search(name)
  return letters[1] if letters and name != name.upper() else ''


def einsums() -> list[tuple[str, ast.Call, str, ast.expr | None]]:
  """(file and line, call, its subscripts, what it is assigned to) of every einsum."""
  found = []
  for name, tree in TREES.items():
    targets = {
      id(node.value): node.targets[0]
      for node in ast.walk(tree)
      if isinstance(node, ast.Assign) and len(node.targets) == 1
    }
    for node in ast.walk(tree):
      if isinstance(node, ast.Call) and 'einsum' in ast.unparse(node.func):
        first = node.args[0] if node.args else None
        if isinstance(first, ast.Constant) and '->' in str(first.value):
          where = f'{FILES[name]}:{node.lineno}'
          found.append((where, node, first.value.replace(' ', ''), targets.get(id(node))))
  return found


def test_einsum_letters_are_those_of_their_arrays():
  wrong, named = [], 0
  for where, call, subscripts, target in einsums():
    inputs, output = subscripts.split('->')
    terms = list(zip(call.args[1:], inputs.split(',')))
    if target is not None:
      terms.append((target, output))
    for node, term in terms:
      letters = suffix(node)
      named += bool(letters)
      if letters and letters != term.replace('...', ''):
        wrong.append(f'{where}: {ast.unparse(node)} stands for {term}')
  assert named > 10, 'hardly any array carries its axes in its name'
  assert not wrong, '\n'.join(wrong)


def test_every_axis_letter_is_in_the_alphabet():
  legend = ast.get_docstring(TREES[f'{PACKAGE}.models.decoder']).split('A digit')[0]
  alphabet = set(re.findall(r'(?:^|\s)([A-Z])(?= )', legend))
  unknown = {
    f'{FILES[name]}: {node.id}'
    for name, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.Name) and set(suffix(node)) - alphabet
  }
  assert len(alphabet) > 15 and not unknown, ', '.join(sorted(unknown))
