import json

import pytest

from weightsteer_jax.data import tables
from weightsteer_jax.runtime.errors import InputError


def test_a_csv_file_with_a_byte_order_mark_and_newlines_in_quotes(tmp_path):
  path = tmp_path / 'questions.csv'
  path.write_bytes(
    '\ufeffQuestion,Best Answer\n"Is it,\nreally?","Yes, it is"\nWhy?,Because\n'.encode()
  )
  rows = tables.read(path)
  assert [row for _, row in rows] == [
    {'Question': 'Is it,\nreally?', 'Best Answer': 'Yes, it is'},
    {'Question': 'Why?', 'Best Answer': 'Because'},
  ]
  assert rows[1][0] == f'{path}:4'
  assert tables.find(rows[0][1], ('best_answer',), 'here') == 'Yes, it is'


@pytest.mark.parametrize(
  'name, content',
  [
    ('a.jsonl', '{"x": 1}\n\n{"x": 2}\n'),
    ('a.json', '[{"x": 1}, {"x": 2}]'),
    ('a.tsv', 'x\n1\n2\n'),
  ],
)
def test_formats_give_the_same_rows(tmp_path, name, content):
  (tmp_path / name).write_text(content)
  assert [int(row['x']) for _, row in tables.read(str(tmp_path / name))] == [1, 2]


def test_one_object_is_one_row_and_columns_are_renamed(tmp_path):
  (tmp_path / 'trait.json').write_text(json.dumps({'questions': ['a', 'b']}))
  [(where, row)] = tables.read(tmp_path / 'trait.json', columns=('items=questions',))
  assert row['items'] == ['a', 'b'] and where.endswith('trait.json[0]')


def test_what_is_wrong_is_named(tmp_path):
  path = tmp_path / 'rows.csv'
  path.write_text('x,y\n1,2\n3\n')
  with pytest.raises(
    InputError, match='rows.csv:3: the row has other columns than the header line, which has 2'
  ):
    tables.read(path)
  path.write_text('question,y\n1,2\n')
  with pytest.raises(InputError, match="no column 'qestion' \\(did you mean 'question'"):
    tables.read(path, columns=('x=qestion',))
  with pytest.raises(
    InputError,
    match="rows.csv:2: no column 'answer' or 'gold'; it has: question, y. Name it with columns",
  ):
    tables.find(tables.read(path)[0][1], ('answer', 'gold'), f'{path}:2')
  path.write_text('question\n')
  with pytest.raises(InputError, match='holds no rows'):
    tables.read(path)
  with pytest.raises(InputError, match="no file .*did you mean '.*rows.csv'"):
    tables.read(tmp_path / 'row.csv')
  (tmp_path / 'c.jsonl').write_text('3\n')
  with pytest.raises(InputError, match='c.jsonl:1: a row must be an object, it is a int'):
    tables.read(tmp_path / 'c.jsonl')
