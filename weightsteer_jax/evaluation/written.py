"""The results as files: results.jsonl, and the same rows as results.csv and results.parquet."""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.storage import files

Result = Mapping[str, Any]
# The columns in order, with their types in a parquet file; csv has an empty field for null.
COLUMNS = {
  'arm': 'string',
  'task': 'string',
  'metric': 'string',
  'alpha': 'double',
  'mean': 'double',
  'sem': 'double',
  'low': 'double',
  'high': 'double',
  'change': 'double',
  'change_sem': 'double',
  'change_low': 'double',
  'change_high': 'double',
  'answers': 'int64',
  'clusters': 'int64',
  'groups': 'string',
  'unreadable': 'int64',
  'asked': 'int64',
  'grid': 'int64',
  'swept': 'string',
  'n': 'int64',
  'values': 'int64',
}


def write(folder: pathlib.Path, results: Sequence[Result]) -> None:
  """Writes the three files, results.jsonl last, each in one piece.

  Raises:
    OutputError: if a file could not be written.
  """
  files.write_text(folder / 'results.csv', as_csv(results))
  files.write_bytes(folder / 'results.parquet', as_parquet(results))
  # The file that everything here reads: where it is new, the others are.
  files.write_jsonl(folder / 'results.jsonl', results)


def as_csv(results: Sequence[Result]) -> str:
  """The results as comma-separated values, a head first, all digits kept."""
  text = io.StringIO()
  writer = csv.DictWriter(text, list(COLUMNS), restval='', lineterminator='\n')
  writer.writeheader()
  writer.writerows(results)
  return text.getvalue()


def as_parquet(results: Sequence[Result]) -> bytes:
  """The results as a parquet file of typed columns."""
  # pyarrow comes with datasets; it takes a while to import, and is needed here alone.
  import pyarrow
  from pyarrow import parquet

  columns = {}
  for name, kind in COLUMNS.items():
    values = [result.get(name) for result in results]
    columns[name] = pyarrow.array(values, pyarrow.type_for_alias(kind))
  buffer = io.BytesIO()
  parquet.write_table(pyarrow.table(columns), buffer)
  return buffer.getvalue()
