"""A journal's lines: changed, lost, doubled, moved, or of an earlier version."""

import json
import logging

import pytest

from weightsteer_jax.evaluation import judging, rows
from weightsteer_jax.evaluation.rows import Rows
from weightsteer_jax.runtime.errors import CorruptError


def row(sample, **other):
  return {
    **dict(arm='weights', alpha=0.5, task='t', example='e', sample=sample),
    **dict(value=1.0, status='ok', completion='Ja \ud83d "x", "check": "y"}'),
    **other,
  }


@pytest.fixture
def path(tmp_path):
  """A file of five rows."""
  with Rows(tmp_path / 'rows.jsonl') as journal:
    for sample in range(5):
      journal.append(row(sample))
  return tmp_path / 'rows.jsonl'


def lines_of(path):
  return path.read_text().splitlines(keepends=True)


def old(path, *lines):
  """A file as earlier versions wrote it."""
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def read(path):
  return list(rows.read(path))


def test_rows_come_back_as_they_were(path):
  assert read(path) == [row(sample) for sample in range(5)]
  # Continued, the checks go on.
  with Rows(path) as journal:
    journal.append(row(5))
  assert read(path) == [row(sample) for sample in range(6)]


def test_every_changed_byte_of_a_line_is_noticed(path):
  content = path.read_bytes()
  begin, end = content.index(b'\n') + 1, content.index(b'\n', content.index(b'\n') + 1)
  for place in range(begin, end):
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(CorruptError, match=r'rows\.jsonl:[23]'):
      read(path)


@pytest.mark.parametrize(
  'lost, where',
  [([0], 1), ([1], 2), ([1, 2, 3], 2)],
)
def test_lost_lines_are_noticed_and_made_again(path, lost, where, caplog):
  lines = lines_of(path)
  path.write_text(''.join(line for i, line in enumerate(lines) if i not in lost))
  with pytest.raises(CorruptError, match=rf':{where} does not follow .*run the sweep again'):
    read(path)
  with caplog.at_level(logging.WARNING), Rows(path) as journal:
    assert len(journal.done) == 5 - len(lost)
    for sample in lost:
      journal.append(row(sample))
  assert 'removed, doubled or moved at 1 places' in caplog.text
  assert sorted(each['sample'] for each in read(path)) == [0, 1, 2, 3, 4]


def test_moved_lines_are_noticed(path):
  lines = lines_of(path)
  path.write_text(''.join([lines[1], lines[0], *lines[2:]]))
  with pytest.raises(CorruptError, match=':1 does not follow'):
    read(path)


def test_equal_doubles_are_left_out_and_others_named(path, tmp_path):
  lines = lines_of(path)
  path.write_text(''.join([*lines[:3], lines[1], *lines[3:]]))
  assert [each['sample'] for each in read(path)] == [0, 1, 2, 3, 4]
  # Keys that Python's hash does not tell apart.
  old(tmp_path / 'old.jsonl', row(0, alpha=-1.0), row(0, alpha=-2.0))
  assert len(read(tmp_path / 'old.jsonl')) == 2
  # As two runs of an earlier version left them.
  old(tmp_path / 'old.jsonl', row(0), row(0), row(1), row(1))
  assert len(read(tmp_path / 'old.jsonl')) == 2
  with Rows(tmp_path / 'old.jsonl') as journal:
    assert len(journal.done) == 2
    journal.append(row(2))
  assert len(read(tmp_path / 'old.jsonl')) == 3
  old(tmp_path / 'old.jsonl', row(0), row(0, value=0.0))
  for opened in (read, Rows):
    with pytest.raises(CorruptError, match=r":2: \('weights', 0.5, 't', 'e', 0\) is there twice"):
      opened(tmp_path / 'old.jsonl')


def test_files_of_earlier_versions_are_read_told_and_continued(tmp_path, capsys):
  path = tmp_path / 'old.jsonl'
  old(path, row(0), row(1))
  for _ in range(2):
    assert read(path) == [row(0), row(1)]
  assert capsys.readouterr().out == (
    f'{path}: 2 lines of an earlier version have no check, and are taken as they are\n'
  )
  with Rows(path) as journal:
    journal.append(row(2))
  assert len(read(path)) == 3
  # The new line holds the old ones too.
  path.write_text(path.read_text().replace('"sample": 1', '"sample": 7'))
  with pytest.raises(CorruptError, match=':3 does not follow'):
    read(path)
  path.write_text(lines_of(path)[2] + json.dumps(row(3)) + '\n')
  with pytest.raises(CorruptError):
    read(path)


@pytest.mark.parametrize(
  'change, said',
  [
    (dict(value=9.0), 'value is 9.0, and a rate lies between 0 and 1'),
    (dict(value=float('nan')), 'value is nan, and no number'),
    (dict(value='1'), "value is '1', and no number"),
    (dict(alpha='x'), "alpha is 'x', and no number"),
    (dict(example=['e']), r"example is \['e'\], and no name"),
    (dict(value=None, choices=['a', 'b']), 'value is null, and the status ok'),
    (dict(logprobs=[-1.0, float('inf')]), 'a log-probability is inf'),
  ],
)
def test_values_out_of_range_are_named(tmp_path, change, said):
  path = tmp_path / 'old.jsonl'
  old(path, row(0), row(1, **change))
  with pytest.raises(CorruptError, match=f':2: {said}; remove that line and run the sweep again'):
    read(path)


def test_a_loss_has_no_upper_bound(tmp_path):
  old(tmp_path / 'old.jsonl', {**row(0), 'value': 9.0, 'choices': ['a']} | {'completion': ''})
  with pytest.raises(CorruptError):
    read(tmp_path / 'old.jsonl')
  loss = {key: value for key, value in row(0).items() if key != 'completion'}
  old(tmp_path / 'old.jsonl', {**loss, 'value': 9.0, 'choices': ['a']})
  assert len(read(tmp_path / 'old.jsonl')) == 1


def test_a_null_that_drops_a_row_is_told(tmp_path, capsys):
  old(tmp_path / 'old.jsonl', row(0), row(1, value=None), row(2, value=None, task='judged'))
  assert len(read(tmp_path / 'old.jsonl')) == 3
  said = capsys.readouterr().out
  assert "1 rows of task 't' have no value (null), although" in said and 'judged' not in said


@pytest.mark.parametrize('score, status', [(101.0, 'ok'), (None, 'ok'), (50.0, 'failed')])
def test_a_judgement_out_of_range_is_named(tmp_path, score, status):
  line = dict(row(0), judge='gpt', purpose='trait', score=score, status=status, text='')
  (tmp_path / 'sweep').mkdir()
  old(tmp_path / 'sweep' / 'judgements.jsonl', line)
  with pytest.raises(CorruptError, match=r'judgements.jsonl:1: score is .*run the judges again'):
    judging.read(tmp_path)
