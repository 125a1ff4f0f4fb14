import json

import pytest

from weightsteer_jax.runtime.errors import CorruptError, InputError
from weightsteer_jax.storage import sealed

PLAIN = sealed.Manifest('box', 'box.json', 'pack the box again', format=2, tensors='box.bin')


def write(folder, **record):
  folder.mkdir(exist_ok=True)
  (folder / 'box.bin').write_bytes(b'x')
  return PLAIN.write(folder, record)


def rewrite(folder, record):
  (folder / 'box.json').write_text(json.dumps(record))


def test_what_is_written_is_read_and_an_old_seal_is_replaced(tmp_path):
  written = write(tmp_path, content=[1, 2])
  assert written == PLAIN.read(tmp_path) == sealed.sealed({'content': [1, 2], 'format': 2})
  again = write(tmp_path, **{**written, 'content': []})
  assert again['seal'] != written['seal'] and PLAIN.read(tmp_path)['content'] == []


def test_a_folder_that_is_not_there_or_was_cut_short(tmp_path):
  write(tmp_path / 'there')
  with pytest.raises(InputError, match=r"no box at .*did you mean '.*there'"):
    PLAIN.read(tmp_path / 'thera')
  (tmp_path / 'there' / 'box.json').unlink()
  with pytest.raises(CorruptError, match='cut short.*pack the box again'):
    PLAIN.read(tmp_path / 'there')
  (tmp_path / 'there' / 'box.bin').unlink()
  with pytest.raises(InputError, match='holds no box .box.json and box.bin.'):
    PLAIN.read(tmp_path / 'there')


@pytest.mark.parametrize('change', [{'content': 2}, {'format': 3}, {'seal': 'f' * 64}])
def test_a_change_under_the_seal_is_damage_even_of_the_format(tmp_path, change):
  rewrite(tmp_path, write(tmp_path, content=1) | change)
  with pytest.raises(CorruptError, match='changed or damaged'):
    PLAIN.read(tmp_path)


@pytest.mark.parametrize('content', ['[]', '3', '{}', '{"format": 2}'])
def test_json_that_is_no_manifest_is_damage(tmp_path, content):
  write(tmp_path)
  (tmp_path / 'box.json').write_text(content)
  with pytest.raises(CorruptError, match='changed or damaged'):
    PLAIN.read(tmp_path)


def test_another_format_is_named_beside_the_one_that_is_read(tmp_path):
  write(tmp_path)
  rewrite(tmp_path, sealed.sealed({'format': 7}))
  with pytest.raises(InputError, match='is of format 7; this version reads each box of format 2$'):
    PLAIN.read(tmp_path)


def test_where_a_format_has_no_seal_the_number_says_whether_one_is_due(tmp_path):
  mixed = sealed.Manifest(
    'box', 'box.json', 'pack it', format=2, earlier_formats=(1,), unsealed_formats=(1,)
  )
  rewrite(tmp_path, {'format': 1})
  assert mixed.read(tmp_path) == {'format': 1}
  rewrite(tmp_path, {'format': 2})
  with pytest.raises(CorruptError, match='changed or damaged'):
    mixed.read(tmp_path)
  rewrite(tmp_path, {'format': 3})
  with pytest.raises(InputError, match='of format 3; this version .* of format 2 or earlier'):
    mixed.read(tmp_path)


def test_what_a_manifest_lacks_is_named(tmp_path):
  needy = sealed.Manifest('box', 'box.json', 'pack it', needs=('content', 'weight'))
  rewrite(tmp_path, sealed.sealed({'weight': 1}))
  with pytest.raises(CorruptError, match='lacks content; pack it'):
    needy.read(tmp_path)


def test_tensors_that_differ_are_named(tmp_path):
  PLAIN.check_fingerprints(tmp_path, {'a': '1'}, {'a': '1'})
  for got in ({'a': '1'}, {'a': '1', 'b': '3'}, {'a': '1', 'b': '2', 'c': None}):
    with pytest.raises(CorruptError, match='fingerprints at [bc]: .*pack the box again'):
      PLAIN.check_fingerprints(tmp_path, {'a': '1', 'b': '2'}, got)
