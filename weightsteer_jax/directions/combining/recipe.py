"""What is to be combined and how, under mergekit's names.

  merge_method: ties
  models:
    - model: runs/calm
      parameters: {weight: 1.0, density: 0.3}
    - model: runs/terse
      parameters: {weight: [0.2, 1.0], density: 0.3}
  parameters: {normalize: true, lambda: 1.0}
  orthogonal_to: [runs/formal]
  layers: 4-11
  modules: [q_proj, down_proj]
  rank: 16

Source: mergekit 0.1.4, mergekit/config.py and merge_methods/generalized_task_arithmetic.py.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from weightsteer_jax.directions.combining import settings
from weightsteer_jax.directions.combining.settings import Setting
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

LINEAR = 'task_arithmetic'
# {method: (whether it normalises, whether it rescales, if nothing is said)}
METHODS = {
  LINEAR: (False, False),
  'ties': (True, False),
  'dare_linear': (False, True),
  'dare_ties': (False, True),
}
KEYS = (
  'merge_method',
  'models',
  'parameters',
  'orthogonal_to',
  'by_module',
  'layers',
  'modules',
  'rank',
)
TERM_KEYS = ('model', 'parameters')
TERM_PARAMETERS = ('weight', 'density')
PARAMETERS = ('normalize', 'rescale', 'lambda', 'seed')


@dataclasses.dataclass(frozen=True)
class Term:
  """A direction in a combination.

  Attributes:
    source: its folder: of a direction, of a run, or of an adapter.
    weight: what it is multiplied by.
    density: share of its elements that are kept, of methods that leave some out.
  """

  source: str
  weight: Setting = 1.0
  density: Setting = 1.0


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A combination.

  Attributes:
    method: a name in METHODS.
    normalize: whether sums are divided by the sum of the weights.
    rescale: whether what is kept is multiplied so that its sum of sizes is that of the whole.
    factor: multiplies the result (mergekit's lambda).
    seed: of the elements that DARE keeps.
    orthogonal_to: folders of directions that are projected out of the result.
    by_module: whether they are projected out of each layer of each module apart.
    layers: numbers of the layers that may change, from 0; None for all.
    modules: names of the modules that may change, as in a LoRA's targets; () for all.
    rank: the result's rank at most; 0 leaves the result exact.
  """

  terms: tuple[Term, ...]
  method: str = LINEAR
  normalize: bool = False
  rescale: bool = False
  factor: float = 1.0
  seed: int = 0
  orthogonal_to: tuple[str, ...] = ()
  by_module: bool = False
  layers: frozenset[int] | None = None
  modules: tuple[str, ...] = ()
  rank: int = 0

  def to_json(self) -> dict[str, Any]:
    """The recipe as JSON values, for the record."""
    record = dataclasses.asdict(self)
    return record | {'layers': None if self.layers is None else sorted(self.layers)}


def from_terms(text: str, **options: Any) -> Recipe:
  """The weighted sum in a line.

  >>> [(term.source, term.weight) for term in from_terms('runs/a:2,runs/b:-0.5,runs/c').terms]
  [('runs/a', 2.0), ('runs/b', -0.5), ('runs/c', 1.0)]

  Raises:
    InputError: if the line names no direction, or a weight is no finite number.
  """
  terms = []
  for part in filter(None, (part.strip() for part in text.split(','))):
    # Folders of other systems have colons too; a weight is behind the last.
    source, colon, number = part.rpartition(':')
    if not colon:
      terms.append(Term(part))
      continue
    try:
      weight = float(number)
    except ValueError:
      weight = math.nan
    if not source or not math.isfinite(weight):
      raise InputError(f'--terms: {part!r} is no FOLDER:WEIGHT, as in runs/calm:-0.5')
    terms.append(Term(source, weight))
  if not terms:
    raise InputError('--terms names no direction; as in --terms=runs/calm:1,runs/terse:-0.5')
  return Recipe(tuple(terms), **options)


def read(path: str | pathlib.Path) -> Recipe:
  """The recipe in a YAML file; folders are relative to the current folder.

  Raises:
    InputError: if the file cannot be read, or a key or a value is none of a recipe's.
  """
  path = pathlib.Path(path)
  try:
    value = yaml.safe_load(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise InputError(f'no recipe at {path}') from None
  except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
    why = ' '.join(str(error).split())
    raise InputError(f'{path} is no YAML that can be read: {why}') from error
  return parse(value, str(path))


def parse(value: Any, where: str) -> Recipe:
  """The recipe in the values of a YAML file.

  Raises:
    InputError: if a key or a value is none of a recipe's.
  """
  value = _mapping(value, KEYS, where)
  method = value.get('merge_method', LINEAR)
  if method not in METHODS:
    raise InputError(
      f"{where}: merge_method is {method!r}{did_you_mean(str(method), METHODS)}; there are: "
      f'{", ".join(METHODS)}'
    )
  models = value.get('models')
  if not isinstance(models, list) or not models:
    raise InputError(f'{where}: models is {models!r:.40}, expected a list of {{model, parameters}}')
  terms = [_term(entry, method, f'{where}: models[{i}]') for i, entry in enumerate(models)]
  parameters = _mapping(value.get('parameters') or {}, PARAMETERS, f'{where}: parameters')
  normalize, rescale = METHODS[method]
  factor = parameters.get('lambda', 1.0)
  settings.check(factor, f'{where}: lambda')
  return Recipe(
    terms=tuple(terms),
    method=method,
    normalize=_flag(parameters, 'normalize', normalize, where),
    rescale=_flag(parameters, 'rescale', rescale, where),
    factor=float(factor),
    seed=_whole(parameters, 'seed', where, most=2**32 - 1),
    orthogonal_to=_names(value, 'orthogonal_to', where),
    by_module=_flag(value, 'by_module', False, where),
    layers=parse_layers(value.get('layers'), f'{where}: layers'),
    modules=_names(value, 'modules', where),
    rank=_whole(value, 'rank', where, most=2**20),
  )


def parse_layers(value: Any, where: str) -> frozenset[int] | None:
  """Numbers of layers, as in '0-3,8' or [0, 1, 8]; None for None.

  >>> sorted(parse_layers('0-3,8', 'layers'))
  [0, 1, 2, 3, 8]
  """
  if value is None or value == '':
    return None
  parts = value if isinstance(value, list) else str(value).split(',')
  layers: set[int] = set()
  for part in parts:
    match = re.fullmatch(r'\s*(\d{1,6})(?:-(\d{1,6}))?\s*', str(part))
    if not match:
      raise InputError(f"{where} is {value!r:.60}, expected numbers and ranges, as in '0-3,8'")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
      raise InputError(f'{where}: {part} ends before it begins')
    layers.update(range(first, last + 1))
  return frozenset(layers)


def _term(entry: Any, method: str, where: str) -> Term:
  entry = _mapping(entry, TERM_KEYS, where)
  source = entry.get('model')
  if not isinstance(source, str) or not source:
    raise InputError(f'{where}: model is {source!r:.40}, expected the folder of a direction')
  parameters = _mapping(entry.get('parameters') or {}, TERM_PARAMETERS, f'{where}: parameters')
  weight = parameters.get('weight', 1.0)
  density = parameters.get('density', 1.0)
  settings.check(weight, f'{where}: weight')
  settings.check(density, f'{where}: density', least=0.0, most=1.0)
  if method == LINEAR and 'density' in parameters:
    raise InputError(f'{where}: density has no meaning for {LINEAR}: take it out, or use ties')
  return Term(source, weight, density)


def _mapping(value: Any, known: Iterable[str], where: str) -> Mapping[str, Any]:
  known = tuple(known)
  if not isinstance(value, Mapping):
    raise InputError(f'{where} is {value!r:.40}, expected keys and values: {", ".join(known)}')
  for key in value:
    if key not in known:
      near = did_you_mean(str(key), known)
      raise InputError(f"{where}: unknown key '{key}'{near}; there are: {', '.join(known)}")
  return value


def _flag(value: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
  flag = value.get(key, default)
  if not isinstance(flag, bool):
    raise InputError(f'{where}: {key} is {flag!r:.40}, expected true or false')
  return flag


def _whole(value: Mapping[str, Any], key: str, where: str, *, most: int) -> int:
  number = value.get(key, 0)
  if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= most:
    raise InputError(f'{where}: {key} is {number!r:.40}, expected a whole number from 0 to {most}')
  return number


def _names(value: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
  names = value.get(key) or []
  names = [names] if isinstance(names, str) else names
  if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
    raise InputError(f'{where}: {key} is {names!r:.60}, expected a name or a list of names')
  return tuple(names)
