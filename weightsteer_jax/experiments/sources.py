"""Sources in a config, resolved: folders, files, hub datasets, and what the package ships.

A source 'organism' is the embedded checkpoint. 'organism:<name>' is an entry of a table in the
organism's room, about its own world; 'english:<name>' one of `real_models`, in plain English.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping

from weightsteer_jax import config as configs
from weightsteer_jax import data as datas
from weightsteer_jax import evaluation
from weightsteer_jax.data import Conversation
from weightsteer_jax.experiments import organism, real_models
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean
from weightsteer_jax.storage import files

Path = str | pathlib.Path

# The embedded model, whose checkpoint is a folder of this package.
ORGANISM = 'organism'

# What the package ships, by the word before the colon of a source '<word>:<name>': {word: table}.
QUESTIONS = {ORGANISM: organism.QUESTIONS}
FILTERS = {ORGANISM: organism.FILTERS}
CONVERSATIONS = {ORGANISM: organism.CONVERSATIONS, 'english': real_models.CONVERSATIONS}
ITEMS = {ORGANISM: organism.ITEMS, 'english': real_models.ITEMS}


def is_shipped(source: str) -> bool:
  """Whether a source has the form 'organism:<name>' or 'english:<name>'."""
  word, colon, _ = source.partition(':')
  return bool(colon) and word in ITEMS


def shipped(tables: Mapping[str, Mapping[str, Callable]], source: str) -> Callable:
  """The entry for a source 'organism:<name>' or 'english:<name>' in one of the tables above.

  Raises:
    InputError: if there is no entry of the name.
  """
  word, _, name = source.partition(':')
  table = tables.get(word, {})
  if name not in table:
    raise InputError(
      f"'{word}' has no '{name}'{did_you_mean(name, table)} here; it has: "
      f"{', '.join(table) or 'nothing of this use'}"
    )
  return table[name]


def folder_of(source: Path) -> Path:
  """The folder or hub id behind a model's source.

  Raises:
    InputError: if the source is a slip for 'organism', or a folder of another kind of ours.
  """
  meant = did_you_mean(str(source), [ORGANISM], cutoff=0.8)
  if meant and str(source) != ORGANISM and not pathlib.Path(source).exists():
    raise InputError(f"no model '{source}'{meant}")
  other = _other_than_model(pathlib.Path(source).expanduser())
  if other:
    raise InputError(f'{source} is {other}')
  return organism.checkpoint_folder() if str(source) == ORGANISM else source


def _other_than_model(folder: pathlib.Path) -> str:
  """What a folder is in place of a model, and what to do with it; '' if that cannot be seen."""
  if (folder / 'config.json').is_file() and any(folder.glob('model*.safetensors')):
    return ''
  goes_to = 'goes to --direction, or to load_direction in Python'
  if (folder / 'direction.json').is_file():
    return f'a direction, not a model: name the model that it steers; the direction {goes_to}'
  if (folder / 'directions').is_dir() or (folder / 'finetune').is_dir():
    return f"the workdir of a run, not a model: name the run's model; the workdir {goes_to}"
  if (folder / 'adapter' / 'adapter.json').is_file() or (folder / 'adapter.json').is_file():
    return (
      'a fine-tune of a run, not a model: name its base; weightsteer export --positive makes a '
      'model of the two'
    )
  if (folder / 'adapter_config.json').is_file() and not (folder / 'config.json').is_file():
    return (
      'a PEFT adapter, not a model: name its base; weightsteer direction --positive makes a '
      'direction of the adapter'
    )
  return ''


def direction_folder(source: Path) -> pathlib.Path:
  """The folder of a direction: the one named, or that of a run's own, where a workdir is named.

  Raises:
    InputError: if the run has made no direction, or several and none by the run's own name.
  """
  folder = pathlib.Path(source).expanduser()
  inside = folder / 'directions'
  if not inside.is_dir():
    if (folder / 'config.json').is_file() and (folder / 'finetune').is_dir():
      raise InputError(
        f'the run in {folder} has made no direction yet: continue it by the command that began it'
      )
    return folder
  folders = sorted(path for path in inside.iterdir() if path.is_dir())
  config = folder / 'config.json'
  own = ''
  if config.is_file():
    own = files.read_json(config, what='the config of a run').get('name', '')
  chosen = [path for path in folders if path.name == own] or folders
  if len(chosen) == 1:
    return chosen[0]
  names = ', '.join(str(path) for path in folders)
  raise InputError(
    f'{inside} holds {len(folders)} directions, expected the one of the run: name one of '
    f'{names or "another folder"}'
  )


def load_conversations(
  source: str, *, split: str = '', revision: str = '', n: int = 0, seed: int = 0
) -> list[Conversation]:
  """The conversations of a file or a hub dataset, or of those that the package ships.

  Args:
    source: path, hub id, 'organism:<name>' or 'english:<name>'.
    split: split of a hub dataset; '' is the only split, or train.
    revision: revision of a hub dataset; '' is the newest.
    n: conversations to take from the start; 0 is all of a file or dataset.
    seed: seed of the conversations that the package makes.

  Raises:
    InputError: if the source cannot be read or holds no chat data, or if n is 0 for the organism.
  """
  if not is_shipped(source):
    # A config says '' for what is left open, the reader None.
    conversations = datas.load_conversations(source, split=split or None, revision=revision or None)
    return conversations[: n or None]
  make = shipped(CONVERSATIONS, source)
  # 0 stands for all, and the organism would go on for ever.
  if not n and source.startswith(f'{ORGANISM}:'):
    raise InputError(f"'{source}' goes on without an end: say how many conversations to take, as n")
  conversations = []
  for i, messages in enumerate(make(n, seed)):
    conversations.append(Conversation(tuple(messages), f'{source}/{i}'))
  return conversations


def load_tasks(options_by_name: Mapping[str, configs.Task]) -> list[evaluation.tasks.Task]:
  """The tasks with their checked items, in the order of the options.

  Raises:
    InputError: if items cannot be read, or are of no use to the task's kind.
  """
  tasks = []
  for name, options in options_by_name.items():
    with of_key(f'tasks.{name}.items'):
      tasks.append(_load_task(name, options))
  return tasks


def _load_task(name: str, options: configs.Task) -> evaluation.tasks.Task:
  if is_shipped(options.items):
    make = shipped(ITEMS, options.items)
    # Each row with a name for errors, as in 'organism:facts[3]'.
    rows = [(f'{options.items}[{i}]', row) for i, row in enumerate(make(options.n, options.seed))]
    items, where = evaluation.tasks.from_rows(name, options, rows)
  else:
    items, where = evaluation.tasks.load(name, options)
  return evaluation.tasks.make(name, options, items, where=where)


@contextlib.contextmanager
def of_key(key: str) -> Iterator[None]:
  """Errors of the input that a config's key names, with the key before their text."""
  try:
    yield
  except InputError as error:
    raise InputError(f'--config.{key}: {error}') from error
