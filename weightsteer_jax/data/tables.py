"""Rows with named columns from csv, tsv, json, jsonl and txt files and from hub datasets."""

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsteer_jax.data import sources
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean
from weightsteer_jax.storage import files

# (place, as errors cite it; {column: value})
Row = tuple[str, Mapping[str, Any]]


def read(
  source: str | os.PathLike, *, split: str = '', revision: str = '', columns: Sequence[str] = ()
) -> list[Row]:
  """The rows of a file or a hub dataset, each with the place that errors cite.

  The format follows from the file's ending. A csv file has a header line; a json file is a list of
  objects, or a single object, which is one row. The paragraphs of a txt file, between empty lines,
  are rows with a column `text`. A byte-order mark is dropped.

  Args:
    split: of a hub dataset, several with commas between them; '' is the only split, or `train`.
      Each row then has a column `split`. Of a file, the split is ignored.
    revision: of a hub dataset. Of a file, the revision is ignored.
    columns: 'ours=theirs': each row gets `ours` as another name of its column `theirs`.

  Raises:
    InputError: if the source is missing, broken or empty, or lacks a renamed column.
  """
  if not sources.is_path(source):
    rows: list[Row] = []
    for part in split.split(','):
      # A config says '' for what is left open, the hub's reader None.
      name = part.strip() or None
      dataset = sources.hub_rows(str(source), name, revision or None)
      for i, row in enumerate(dataset):
        where = f'{source}[{part}:{i}]'
        # A column `split` of the dataset's own wins.
        rows.append((where, {'split': part, **row}))
  else:
    path = Path(source).expanduser()
    # A file of any other ending is read as jsonl, and the error names the line that is none.
    read_file = _FORMATS.get(path.suffix, _read_jsonl)
    rows = read_file(path)
  if not rows:
    raise InputError(f'{source} holds no rows')
  return [(where, _renamed(row, columns, where)) for where, row in rows]


def find(row: Mapping[str, Any], names: Sequence[str], where: str, *, default: Any = None) -> Any:
  """The row's value in the first named column that is not empty.

  Upper case, spaces and dashes in names do not matter.

  >>> find({'Best Answer': 'yes'}, ('answer', 'best_answer'), 'here')
  'yes'

  Raises:
    InputError: if no named column is filled, and no default is given.
  """
  values = {_plain(str(column)): value for column, value in row.items()}
  for name in names:
    value = values.get(_plain(name))
    # Zero and False are values, so the comparison is with what an empty cell is read as.
    if value not in (None, '', []):
      return value
  if default is not None:
    return default
  columns = [str(column) for column in row]
  # Any of the names would do, so the hints are about the first.
  hint = did_you_mean(names[0], columns)
  accepted = ' or '.join(repr(name) for name in names)
  raise InputError(
    f"{where}: no column {accepted}{hint}; it has: {', '.join(columns)}. Name it with "
    f"columns=('{names[0]}=<theirs>',)"
  )


def text(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
  """The text that `find` finds, without space around it.

  Raises:
    InputError: if no named column is filled, or the value is no text.
  """
  value = find(row, names, where)
  if not isinstance(value, str) or not value.strip():
    raise InputError(f"{where}: '{names[0]}' is {value!r:.60}, expected a text")
  return value.strip()


def _plain(name: str) -> str:
  # 'Best Answer', 'best-answer' and 'best_answer' are the same name.
  lower = name.strip().lower()
  return re.sub(r'[\s_-]+', '_', lower)


def _renamed(row: Any, columns: Sequence[str], where: str) -> Mapping[str, Any]:
  if not isinstance(row, Mapping):
    raise InputError(f'{where}: a row must be an object, it is a {type(row).__name__}')
  # At the first '=': a column of the source may have the sign in its name.
  pairs = [pair.split('=', 1) for pair in columns]
  renamed = {}
  for ours, theirs in pairs:
    if theirs not in row:
      hint = did_you_mean(theirs, list(row))
      raise InputError(f"{where}: no column '{theirs}'{hint}; it has: {', '.join(row)}")
    renamed[ours] = row[theirs]
  return {**row, **renamed}


def _read_csv(path: Path) -> list[Row]:
  sources.check_file(path)
  # Newlines inside quotes belong to the csv reader; line_num is where a row ends.
  delimiter = '\t' if path.suffix == '.tsv' else ','
  with path.open(encoding='utf-8-sig', newline='') as lines:
    try:
      reader = csv.DictReader(lines, delimiter=delimiter)
      rows: list[Row] = [(f'{path}:{reader.line_num}', row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
      raise InputError(f'{path} is no csv file in UTF-8: {error}') from error
  for where, row in rows:
    # DictReader puts cells beyond the header under None, and None in place of missing cells.
    if None in row or None in row.values():
      raise InputError(
        f'{where}: the row has other columns than the header line, which has '
        f'{len(reader.fieldnames or ())}'
      )
  return rows


def _read_json(path: Path) -> list[Row]:
  sources.check_file(path)
  value = files.read_json(path, what='a table')
  # A single object is a table of one row; `_renamed` refuses rows that are no objects.
  rows = value if isinstance(value, list) else [value]
  return [(f'{path}[{i}]', row) for i, row in enumerate(rows)]


def _read_jsonl(path: Path) -> list[Row]:
  return [(f'{path}:{line}', row) for line, row in sources.read_jsonl(path)]


def _read_txt(path: Path) -> list[Row]:
  sources.check_file(path)
  try:
    text = path.read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as error:
    raise InputError(f'{path} is not UTF-8 text ({error.reason}): convert it first') from error
  # Lines of a paragraph stay as they are: their ends are a part of the text.
  paragraphs = [part.strip() for part in re.split(r'\n\s*\n', text)]
  whole = [paragraph for paragraph in paragraphs if paragraph]
  return [(f'{path}, paragraph {i}', {'text': text}) for i, text in enumerate(whole, start=1)]


_FORMATS = {'.csv': _read_csv, '.tsv': _read_csv, '.json': _read_json, '.txt': _read_txt}
