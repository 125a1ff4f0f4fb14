"""Damage to an export, a direction, an adapter or a checkpoint is found, and named."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from directions import oracle

from weightsteer_jax import config, directions, finetune
from weightsteer_jax.experiments import experiment
from weightsteer_jax.exports import FORMATS, export, verify
from weightsteer_jax.runtime.errors import CorruptError, InputError
from weightsteer_jax.storage import checkpoint

LAUNCH = pathlib.Path(__file__).parent.parent.parent / 'launch' / 'export.py'
MARKERS = {
  **dict.fromkeys(FORMATS, 'provenance.json'),
  'direction': 'direction.json',
  'adapter': 'adapter.json',
  'checkpoint': checkpoint.MARKER,
}


@pytest.fixture(scope='module')
def written(untied_model, tmp_path_factory):
  """{kind: folder} of everything to verify."""
  folder = tmp_path_factory.mktemp('written')
  direction = oracle.random_direction(untied_model, 3, size=0.05)
  for format in FORMATS:
    # llama.cpp takes no whole embeddings, which are folded for it.
    rank = 8 if format == 'gguf' else 0
    export(direction, untied_model, 1.0, format, folder / format, rank=rank)
  directions.save(folder / 'direction', direction)
  finetune.save_adapter(folder / 'adapter', direction.delta, {'kind': 'test'})
  noise = (
    np.random.default_rng(0).standard_normal(4000).astype(np.float32)
  )  # So that most of the bytes are data.
  checkpoint.save(
    folder / 'checkpoint', {'x': {'y': noise}, 'z': np.ones(3, np.int32)}, metadata={}
  )
  return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def copied(written, tmp_path):
  """kind -> a fresh copy of its folder."""

  def copy(kind):
    target = tmp_path / kind
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(written[kind], target)

  return copy


def run(*flags):
  """The finished launcher."""
  return subprocess.run(
    [sys.executable, str(LAUNCH), *flags], capture_output=True, text=True, timeout=200
  )


def files_of(folder):
  return sorted(path for path in folder.rglob('*') if path.is_file())


def flip(path, at=0.5):
  data = bytearray(path.read_bytes())
  data[int(at * (len(data) - 1))] ^= 4
  path.write_bytes(data)


@pytest.mark.parametrize('kind', MARKERS)
def test_what_is_whole_is_said_to_be(written, kind):
  found = verify(written[kind])
  assert found.kind == (kind if kind not in FORMATS else 'export') and found.unlisted == ()


@pytest.mark.parametrize('format', FORMATS)
def test_a_bit_in_any_file_of_an_export_is_found_and_named(copied, format):
  folder = copied(format)
  for path in files_of(folder):
    if not path.stat().st_size:
      continue
    before = path.read_bytes()
    flip(path)
    with pytest.raises(CorruptError) as error:
      verify(folder)
    assert path.name in str(error.value), path
    path.write_bytes(before)
  verify(folder)


@pytest.mark.parametrize('format', FORMATS)
def test_any_missing_file_of_an_export_is_named(copied, format):
  folder = copied(format)
  for path in files_of(folder):
    path.rename(folder.parent / 'aside')
    with pytest.raises(CorruptError) as error:
      verify(folder)
    assert path.name in str(error.value), path
    (folder.parent / 'aside').rename(path)


@pytest.mark.parametrize('kind', MARKERS)
def test_a_folder_copied_without_its_marker_is_no_finished_one(copied, kind):
  folder = copied(kind)
  (folder / MARKERS[kind]).unlink()
  with pytest.raises(CorruptError, match='written last'):
    verify(folder)


@pytest.mark.parametrize(
  'kind, file, named',
  [
    ('direction', 'direction.safetensors', 'fingerprints at'),
    ('adapter', 'adapter.safetensors', 'fingerprints at'),
    ('direction', 'direction.json', 'direction.json'),
    ('adapter', 'adapter.json', 'adapter.json'),
    ('checkpoint', checkpoint.MARKER, checkpoint.MARKER),
  ],
)
def test_a_bit_in_a_direction_an_adapter_or_a_marker(copied, kind, file, named):
  folder = copied(kind)
  flip(folder / file, at=0.9)
  with pytest.raises(CorruptError, match=named):
    verify(folder)


@pytest.mark.parametrize('at', [0.3, 0.7])
def test_a_bit_in_the_data_of_a_checkpoint(copied, at):
  folder = copied('checkpoint')
  flip(max(files_of(folder), key=lambda path: path.stat().st_size), at)
  with pytest.raises(CorruptError, match='checkpoint'):
    verify(folder)


@pytest.mark.parametrize(
  'read',
  [
    lambda folder, base: experiment.load_model(config.ModelChoice(str(folder))),
    lambda folder, base: directions.task_vector(folder, base),
  ],
  ids=['model', 'task vector'],
)
def test_an_export_is_checked_when_it_is_read_as_a_checkpoint(copied, untied, read):
  folder = copied('hf')
  (folder / 'README.md').write_text('A card is there to be edited.')
  read(folder, untied)
  flip(folder / 'model.safetensors', at=0.9)
  with pytest.raises(CorruptError, match='changed: model.safetensors'):
    read(folder, untied)


def test_files_of_others_are_told_and_not_held_against_it(copied):
  folder = copied('peft')
  (folder / 'notes.txt').write_text('mine')
  assert verify(folder).unlisted == ('notes.txt',)


def test_no_such_folder_is_an_input_error(written):
  with pytest.raises(InputError, match="did you mean '.*direction'"):
    verify(written['direction'].with_name('directio'))


def test_the_launcher_verifies_with_exit_status_71(copied):
  folder = copied('orbax')
  done = run(f'--verify={folder}')
  assert done.returncode == 0 and 'export, whole' in done.stdout, done.stderr
  provenance = json.loads((folder / 'provenance.json').read_text())
  shutil.rmtree(folder / 'params' / 'state')
  done = run(f'--verify={folder}')
  assert (
    done.returncode == 71
    and 'missing: params/state' in done.stderr
    and 'Traceback' not in done.stderr
  )
  assert any(name.startswith('params/state/') for name in provenance['files'])


def test_the_launcher_refuses_flags_that_do_not_go_together(tmp_path):
  done = run('--format=hf', f'--verify={tmp_path}')
  assert done.returncode == 65 and '--format' in done.stderr
  done = run('--format=hf', '--alpha=1')
  assert done.returncode == 65 and '--direction, --base, --output must be given' in done.stderr
  done = run('--format=hf', '--alpha=1', '--direction=x', '--positive=p', '--negative=n')
  assert done.returncode == 65 and 'give the one or the others' in done.stderr
