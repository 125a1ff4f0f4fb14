"""What a run says, in a file of its workdir."""

import re

import pytest

from weightsteer_jax.runtime import ending, log, progress
from weightsteer_jax.runtime.errors import InputError


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
  monkeypatch.setattr(log, '_path', None)
  monkeypatch.setattr(log, '_kept', [])


def said(path):
  """The lines without their times, each of which is an ISO time with a zone."""
  lines = path.read_text().splitlines()
  for line in lines:
    assert re.match(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d ', line)
  return [line[26:] for line in lines]


def test_lines_of_before_and_after_the_file_is_known(tmp_path, capsys):
  progress.say('model: tiny')
  log.write_to(tmp_path / 'log.txt')
  progress.say('a table\nof two lines')
  assert said(tmp_path / 'log.txt') == ['model: tiny', 'a table', 'of two lines']
  assert capsys.readouterr().out == 'model: tiny\na table\nof two lines\n'


def test_a_run_that_goes_on_appends(tmp_path):
  for line in ('first', 'second'):
    log.write_to(tmp_path / 'log.txt')
    progress.say(line)
  assert said(tmp_path / 'log.txt') == ['first', 'second']


def test_errors_are_logged(tmp_path, capsys):
  log.write_to(tmp_path / 'log.txt')
  assert ending.fail(InputError('no such file')) == 65
  try:
    raise ZeroDivisionError('a fault of ours')
  except ZeroDivisionError as error:
    assert ending.fail(error) == 1
  lines = said(tmp_path / 'log.txt')
  assert lines[0] == 'error: no such file'
  assert lines[1] == 'Traceback (most recent call last):'
  assert lines[-1] == 'error: ZeroDivisionError: a fault of ours'


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path, capsys):
  log.write_to(tmp_path / 'nowhere' / 'log.txt')
  progress.say('said')
  assert capsys.readouterr().out == 'said\n'


def test_no_secret_reaches_the_log(tmp_path, capsys):
  log.write_to(tmp_path / 'log.txt')
  ending.fail(InputError('--api_key=word-of-a-key: no such host; Authorization: Bearer abcdefgh12'))
  [line] = said(tmp_path / 'log.txt')
  assert 'word-of-a-key' not in line and 'abcdefgh12' not in line and 'no such host' in line
