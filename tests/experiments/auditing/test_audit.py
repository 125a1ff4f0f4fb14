"""A fine-tune audited as a user would: numbers, comparison, page, refusals, exit status."""

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from directions import oracle

from weightsteer_jax import directions
from weightsteer_jax.directions.spectra import Spectrum
from weightsteer_jax.experiments import auditing, standalone
from weightsteer_jax.experiments.auditing import reference
from weightsteer_jax.experiments.auditing.update import Update
from weightsteer_jax.runtime.errors import InputError

LAUNCH = pathlib.Path(__file__).parents[3] / 'launch' / 'audit.py'


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return oracle.make_checkpoint(tmp_path_factory.mktemp('models') / 'base', tied=False)


@pytest.fixture(scope='module')
def tunes(base, tmp_path_factory):
  """Adapters of PEFT: four alike, one much larger, one of another rank."""
  folder = tmp_path_factory.mktemp('tunes')
  for seed in range(4):
    oracle.make_adapter(folder / 'good' / str(seed), base, seed=seed, size=0.05)
  oracle.make_adapter(folder / 'alike', base, seed=9, size=0.05)
  oracle.make_adapter(folder / 'large', base, seed=10, size=0.4)
  oracle.make_adapter(folder / 'rank', base, seed=11, r=2)
  return folder


def audited(fine_tune, base, output, **options):
  """(whether alarmed, summary, rows) of an audit."""
  alarmed = standalone.audit(fine_tune, base, output, **options)
  summary = json.loads((output / 'summary.json').read_text())
  rows = list(csv.DictReader((output / 'audit.csv').read_text().splitlines()))
  return alarmed, summary, rows


def test_numbers_are_those_of_the_merged_weights(base, tunes, tmp_path):
  alarmed, summary, rows = audited(tunes / 'alike', base, tmp_path / 'out')
  before = oracle.torch_weights(base)
  after = oracle.torch_weights(base, tunes / 'alike')
  row = {(row['module'], row['layer']): row for row in rows}
  for module, name in (('attn.o', 'self_attn.o_proj'), ('mlp.up', 'mlp.up_proj')):
    tensor = f'model.layers.1.{name}.weight'
    values = np.linalg.svd(after[tensor] - before[tensor], compute_uv=False)
    found = row[module, '1']
    assert float(found['norm']) == pytest.approx(np.linalg.norm(values), rel=1e-5)
    assert float(found['stable_rank']) == pytest.approx(
      np.sum(values**2) / values[0] ** 2, rel=1e-5
    )
    assert float(found['singular_value_3']) == pytest.approx(values[2], rel=1e-4)
    # Rank 3.
    assert found['singular_value_4'] == ''
  assert not alarmed and summary['comparison'] is None and summary['monitor'] is None
  assert summary['method']['rank'] == [3] and summary['whole']['matrices'] == 14
  assert '<h1>' in (tmp_path / 'out' / 'index.html').read_text()


def test_full_checkpoint_as_its_difference(base, tmp_path):
  tuned = oracle.make_checkpoint(tmp_path / 'tuned', tied=False, moved=0.01)
  _, summary, rows = audited(tuned, base, tmp_path / 'out')
  before = oracle.torch_weights(base)
  after = oracle.torch_weights(tuned)
  tensor = 'model.layers.0.mlp.down_proj.weight'
  values = np.linalg.svd(after[tensor] - before[tensor], compute_uv=False)
  (row,) = [row for row in rows if (row['module'], row['layer']) == ('mlp.down', '0')]
  assert float(row['singular_value_1']) == pytest.approx(values[0], rel=1e-4)
  squares = sum(np.sum((after[name] - before[name]) ** 2) for name in before)
  assert summary['whole']['norm'] == pytest.approx(np.sqrt(squares), rel=1e-4)
  assert summary['method']['kind'] == 'full'


def test_against_good_ones(base, tunes, tmp_path):
  alarmed, summary, rows = audited(tunes / 'large', base, tmp_path / 'a', good=[tunes / 'good'])
  comparison = summary['comparison']
  assert alarmed and comparison['out_of_line'] and len(comparison['good']) == 4
  # No p value below one in five, of four good ones and the audited.
  assert comparison['p_value'] == comparison['false_alarm_rate'] == pytest.approx(0.2)
  assert float(rows[0]['z_log_norm']) > 3
  assert 'OUT OF LINE' in (tmp_path / 'a' / 'index.html').read_text()
  good = [tunes / 'good' / str(seed) for seed in range(3)]
  alarmed, summary, _ = audited(tunes / 'alike', base, tmp_path / 'b', good=good)
  worst = max(summary['comparison']['good'].values())
  assert alarmed == (summary['comparison']['distance'] > worst)


def test_distance_worked_by_hand():
  """Rank 1: stable rank is 1 and entropy 0 in all, so that norms alone count."""

  def update(log_norm):
    value = float(np.exp(log_norm))
    spectrum = Spectrum(np.array([value]), value**2, 1)
    return Update(pathlib.Path(str(log_norm)), {('m', 0, None): spectrum}, {}, {})

  good = [update(n) for n in range(3)]
  # Mean 1, variance 1, and the mean of three is itself uncertain: 4 / sqrt(1 + 1/3); the other two
  # numbers are 0.
  distance = reference.distance_from(update(5), good)
  assert distance == pytest.approx(4 / np.sqrt(4 / 3) / np.sqrt(3))
  with pytest.raises(InputError, match='all alike'):
    reference.distance_from(update(5), [update(1)] * 3)
  comparison = reference.compare(update(5), good)
  assert comparison.p_value == 0.25 and comparison.furthest[0][1] == 'log norm'


def test_with_a_direction_what_monitor_says(base, tunes, tmp_path):
  directions.save(tmp_path / 'along', directions.task_vector(tunes / 'alike', base))
  alarmed, summary, _ = audited(
    tunes / 'alike', base, tmp_path / 'out', direction=[tmp_path / 'along'], random=20
  )
  alarm = summary['monitor']['directions']['along']['alarm']
  assert alarmed and alarm['peak'] == pytest.approx(1, abs=1e-5)


def test_refusals_are_early_and_name_the_thing(base, tunes, tmp_path):
  good = tunes / 'good'
  cases = [
    ({'good': [good / '0', good / '1']}, 'at least 3'),
    ({'good': [good, good / '0']}, 'named twice'),
    ({'good': [tmp_path / 'none']}, 'no folder'),
    ({'good': [tmp_path]}, 'is no fine-tune and holds none'),
    ({'good': [good, tunes / 'rank']}, r'rank 3 / 2.*AUC.*--allow_other_method'),
    ({'good': [good, tunes / 'alike']}, 'cannot be one of the good ones'),
    ({'false_alarm_rate': 2.0}, 'false alarm rate is 2.0'),
  ]
  for options, words in cases:
    with pytest.raises(InputError, match=words):
      standalone.audit(tunes / 'alike', base, tmp_path / 'out', **options)
    assert not (tmp_path / 'out').exists()


def test_copies_have_no_spread(base, tunes, tmp_path):
  for name in 'abc':
    shutil.copytree(tunes / 'good' / '0', tmp_path / name)
  with pytest.raises(InputError, match='all alike'):
    standalone.audit(
      tunes / 'alike', base, tmp_path / 'out', good=[tmp_path / name for name in 'abc']
    )


def test_training_that_differs_is_told(base, tunes, tmp_path, capsys):
  for seed in range(3):
    shutil.copytree(tunes / 'good' / str(seed), tmp_path / 'good' / str(seed))
  shutil.copytree(tunes / 'alike', tmp_path / 'alike')
  for folder, steps in ((tmp_path / 'good' / '0', 10), (tmp_path / 'alike', 20)):
    (folder / 'trainer_state.json').write_text(json.dumps({'global_step': steps}))
  _, summary, _ = audited(tmp_path / 'alike', base, tmp_path / 'out', good=[tmp_path / 'good'])
  assert summary['notes'] == ['the good ones were trained otherwise: step 20 / 10']


def test_worth_leaves_out_the_fine_tune_or_its_data(base, tunes):
  folders = {str(seed): tunes / 'good' / str(seed) for seed in range(4)}
  folders |= {'alike': tunes / 'alike', 'large': tunes / 'large'}
  misaligned = {name: name == 'large' for name in folders}
  worth = auditing.worth(
    folders,
    misaligned,
    dict.fromkeys(folders, 0),
    {name: 'same' if name in '01' else name for name in folders},
    base,
  )
  assert worth['itself']['auroc']['value'] == worth['its data']['auroc']['value'] == 1
  assert worth['itself']['distances']['2'] == worth['its data']['distances']['2']
  assert worth['itself']['distances']['0'] != worth['its data']['distances']['0']


def test_exit_status_is_for_programs(base, tunes, tmp_path):
  command = [sys.executable, str(LAUNCH), str(tunes / 'large'), f'--base={base}']
  command += [f'--good={tunes / "good" / "0"},{tunes / "good" / "1"},{tunes / "good" / "2"}']
  command += [f'--output={tmp_path / "out"}', '--fail_on_alarm']
  done = subprocess.run(
    command, capture_output=True, text=True, env=os.environ | {'JAX_PLATFORMS': 'cpu'}, check=False
  )
  assert done.returncode == 3, done.stderr
  assert 'OUT OF LINE' in done.stdout
