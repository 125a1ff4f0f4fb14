"""The whole of a preflight: on the local device, and (slow) for pods, where libtpu is installed."""

import dataclasses
import importlib.util
import json
import pathlib
import runpy
import subprocess
import sys

import pytest

from weightsteer_jax import config as configs
from weightsteer_jax import models
from weightsteer_jax.experiments import preflight
from weightsteer_jax.runtime.errors import InputError

ROOT = pathlib.Path(__file__).parents[3]
SMALL = preflight.Sizes(
  row_tokens=32, prompt_tokens=16, completion_tokens=8, answer_tokens=8, train_rows=2, rows=4
)
needs_libtpu = pytest.mark.skipif(
  not importlib.util.find_spec('libtpu'), reason="needs libtpu: pip install 'weightsteer_jax[tpu]'"
)


def run_of(path='quickstart.py', *model) -> configs.Run:
  return configs.resolve(runpy.run_path(str(ROOT / 'configs' / path))['get_config'](*model))


def test_the_embedded_model_on_the_local_device(tmp_path, capsys):
  assert preflight.examine(
    run_of(), 'local', SMALL, programs=('decoding step', 'export'), output=tmp_path / 'rows.jsonl'
  )
  printed = capsys.readouterr().out
  assert 'mesh: data:1,fsdp:1,tensor:1 (auto)' in printed and 'FITS: local' in printed
  rows = [json.loads(line) for line in (tmp_path / 'rows.jsonl').read_text().splitlines()]
  assert [row['program'] for row in rows] == ['decoding step', 'export']
  config, _ = models.load_config(
    ROOT / 'weightsteer_jax' / 'experiments' / 'organism' / 'checkpoint'
  )
  positions = 32  # prompt and answer, rounded up
  assert (
    rows[0]['cache']
    == 2 * config.num_layers * 4 * positions * config.num_kv_heads * config.head_dim * 4
    and rows[0]['fits']
    and rows[0]['collectives'] == {}
  )


def test_what_does_not_fit_is_said_with_what_would(monkeypatch, capsys):
  local = preflight.find_hardware('local')
  monkeypatch.setattr(
    sys.modules['weightsteer_jax.experiments.preflight.examine'],
    'find_hardware',
    lambda name: dataclasses.replace(local, memory=3e6),
  )
  assert not preflight.examine(run_of(), 'local', SMALL, programs=('export',))
  printed = capsys.readouterr().out
  assert (
    'DOES NOT FIT: local' in printed
    and 'export needs' in printed
    and 'By estimate nothing fits here' in printed
  )


def test_wrong_names_are_refused_before_anything_is_compiled():
  with pytest.raises(InputError, match="no program 'decode'.*there are: training step"):
    preflight.examine(run_of(), 'local', SMALL, programs=('decode',))
  with pytest.raises(InputError, match='data:2,fsdp:2,tensor:2 needs 8 devices'):
    preflight.examine(run_of(), 'local', SMALL, mesh='2x2x2')


def test_the_plan_rematerialises_as_the_config_or_the_memory_says():
  """A 7B model in bfloat16 on one device of 56 GiB: eight rows of 1,024 tokens do not keep all
  their activations there, and on one of 24 GiB only the layers' inputs."""
  run = run_of('preflight.py', 'Qwen2.5-7B')
  config, _ = models.load_config(pathlib.Path(run.model.source))
  local = preflight.find_hardware('local')

  def plan(gib, remat='auto', rows=8):
    return preflight.programs.plan(
      dataclasses.replace(run, finetune=dataclasses.replace(run.finetune, remat=remat)),
      config,
      dataclasses.replace(local, memory=gib * 2**30),
      preflight.Sizes(train_rows=rows),
    ).remat

  assert [plan(300), plan(56), plan(24), plan(56, rows=1)] == ['none', 'dots', 'full', 'none']
  assert [plan(24, remat) for remat in ('none', 'dots')] == ['none', 'dots']


@needs_libtpu
@pytest.mark.slow
def test_a_small_model_on_a_pod_that_is_not_there():
  done = command(
    'quickstart.py',
    '--topology=v5e:2x2',
    '--programs=training step',
    '--train_rows=4',
    '--row_tokens=64',
  )
  assert done.returncode == 0, done.stderr
  assert (
    'on 4 device(s), TPU v5 lite' in done.stdout
    and 'all-reduce' in done.stdout
    and 'FITS: v5e:2x2' in done.stdout
  )


@needs_libtpu
@pytest.mark.slow
def test_a_large_model_on_a_small_pod_does_not_fit():
  done = command('preflight.py:Llama-3.3-70B', '--topology=v5e:2x2', '--programs=training step')
  assert done.returncode == 1, done.stderr
  assert 'DOES NOT FIT: v5e:2x2' in done.stdout and 'training step needs' in done.stdout


def command(config: str, *flags: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, 'launch/preflight.py', f'--config=configs/{config}', *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=600,
  )
