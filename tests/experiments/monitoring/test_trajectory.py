"""Runs of every kind, found and read, or refused by name."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from directions import oracle
from safetensors.numpy import load_file

from weightsteer_jax import finetune
from weightsteer_jax.config import FineTune
from weightsteer_jax.data import Example
from weightsteer_jax.directions.between import open_base
from weightsteer_jax.experiments.monitoring import hook, measure, trajectory
from weightsteer_jax.experiments.monitoring.changes import Held
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import CorruptError, InputError
from weightsteer_jax.storage import checkpoint
from weightsteer_jax.storage import sealed as seals

from . import exact

OPTIONS = FineTune(
  kind='lora_embeddings',
  rank=2,
  lora_alpha=6.0,
  learning_rates=(0.02,),
  steps=4,
  batch_size=2,
  warmup_steps=1,
  eval_every=2,
  patience=0,
)


def examples(count, seed):
  draw = np.random.default_rng(seed)
  return [
    Example(draw.integers(0, 40, 8).astype(np.int32), np.arange(8) > 3, f'{seed}:{i}')
    for i in range(count)
  ]


def train(model, folder, options=OPTIONS, **others):
  return finetune.run(
    model, examples(4, 1), examples(2, 2), options, workdir=folder, progress=False, **others
  )


@pytest.fixture(scope='module')
def direction(model):
  return oracle.random_direction(model, 3)


@pytest.fixture(scope='module')
def watched(model, direction, tmp_path_factory):
  """(workdir, result) of a fine-tune of ours that was watched for a direction at every second
  step."""
  folder = tmp_path_factory.mktemp('ours') / 'run'
  watch = hook.watch({'w': direction.delta}, model.config, every=2)
  result = train(model, folder, watch=watch)
  return folder, result


@pytest.fixture
def opened(base):
  with open_base((), base) as found:
    yield found


def angles(step, run, opened, direction, **options):
  with trajectory.open_change(step, run, opened, **options) as change:
    return measure.measure(change, {'w': Held(direction.delta)})['w']


def test_training_states_of_ours(watched, opened, direction):
  folder, result = watched
  steps = trajectory.find(folder)
  assert [(one.step, one.kind) for one in steps] == [(2, 'state'), (4, 'state')]
  best = next(one for one in steps if one.step == result.step)
  exact.assert_angles(
    angles(best, folder, opened, direction),
    exact.cells_of(result.delta),
    exact.cells_of(direction.delta),
  )


def test_what_training_logged_is_what_its_checkpoints_say(watched, opened, direction):
  folder, _ = watched
  rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  logged = {row['step']: row for row in rows if 'monitor/w/cosine' in row}
  assert list(logged) == [2, 4] and all('train_loss' in row for row in logged.values())
  for one in trajectory.find(folder):
    whole = angles(one, folder, opened, direction).whole
    for key in ('cosine', 'alpha', 'null_std'):
      assert logged[one.step][f'monitor/w/{key}'] == pytest.approx(
        getattr(whole, key), rel=1e-4, abs=1e-7
      )


def test_watching_changes_nothing(watched, model, tmp_path):
  unwatched = train(model, tmp_path / 'run')
  jax.tree.map(np.testing.assert_array_equal, unwatched.delta, watched[1].delta)


def test_kept_adapters_of_ours(watched, model, opened, direction, tmp_path):
  """Adapters of single steps are read where they are; where there is none, the training state is.
  Both say the same."""
  kept = train(
    model, tmp_path / 'run', options=dataclasses.replace(OPTIONS, keep_steps=True)
  ).folder.parent
  adapters, states = trajectory.find(kept), trajectory.find(watched[0])
  assert [(one.step, one.kind) for one in adapters] == [(2, 'run'), (4, 'run')]
  for one, other in zip(adapters, states):
    found, expected = (
      vars(angles(*args, opened, direction).whole) for args in ((one, kept), (other, watched[0]))
    )
    assert found == pytest.approx(expected, rel=1e-6)
  shutil.rmtree(kept / 'steps' / '0.02' / '4')
  assert [(one.step, one.kind) for one in trajectory.find(kept)] == [(2, 'run'), (4, 'state')]


def test_peft_adapters_against_torch(base, adapters, opened, direction):
  steps = trajectory.find(adapters)
  assert [(one.step, one.kind) for one in steps] == [(10, 'peft'), (20, 'peft'), (100, 'peft')]
  before, w = oracle.torch_weights(base), oracle.dense_in_torch_axes(direction.delta)
  for one in steps:
    after = oracle.torch_weights(base, one.folder)
    change = {name: after[name] - before[name] for name in after}
    measured = {
      (module, layer): angle
      for module, layer, angle in angles(one, adapters, opened, direction).angles()
    }
    for module, kind in (('attn.q', 'self_attn.q_proj'), ('mlp.down', 'mlp.down_proj')):
      for layer in range(2):
        name = f'model.layers.{layer}.{kind}.weight'
        u, v = change[name].ravel(), w[name].ravel()
        assert measured[module, layer].cosine == pytest.approx(
          u @ v / np.linalg.norm(u) / np.linalg.norm(v), abs=1e-5
        )
        assert measured[module, layer].projection == pytest.approx(
          u @ v / np.linalg.norm(v), abs=1e-5
        )
    whole = sum(change[name].ravel() @ w[name].ravel() for name in w)
    lengths = [np.sqrt(sum(np.sum(x**2) for x in side.values())) for side in (change, w)]
    assert measured[None, None].cosine == pytest.approx(whole / np.prod(lengths), abs=1e-5)


def test_hugging_face_checkpoints_and_revisions(base, opened, direction, tmp_path):
  run, cache = tmp_path / 'run', tmp_path / 'models--org--name'
  (cache / 'refs').mkdir(parents=True)
  for step in (5, 50):
    folder = oracle.make_checkpoint(
      run / f'checkpoint-{step}', tied=False, seed=0, moved=step / 1000
    )
    shutil.copytree(folder, cache / 'snapshots' / f'commit{step}')
    (cache / 'refs' / f'step-{step}').write_text(f'commit{step}')
  (cache / 'refs' / 'main').write_text('commit50')
  (run / 'runs').mkdir()
  for folder in (run, cache):
    steps = trajectory.find(folder)
    assert [(one.step, one.kind) for one in steps] == [(5, 'checkpoint'), (50, 'checkpoint')]
  ours, theirs = (
    load_file(base / 'model.safetensors'),
    load_file(steps[1].folder / 'model.safetensors'),
  )
  norm = np.sqrt(sum(np.sum((theirs[name].astype(np.float64) - ours[name]) ** 2) for name in ours))
  assert angles(steps[1], cache, opened, direction).whole.norm == pytest.approx(norm, rel=1e-5)


def test_no_checkpoints(tmp_path, watched):
  with pytest.raises(InputError, match='no training run at'):
    trajectory.find(tmp_path / 'nowhere')
  (tmp_path / 'notes.txt').write_text('')
  with pytest.raises(
    InputError,
    match=r'(?s)holds no checkpoints. Looked for: .*adapter_config.json.*It holds: notes.txt',
  ):
    trajectory.find(tmp_path)
  shutil.copytree(watched[0], tmp_path / 'finetune' / 'positive')
  with pytest.raises(
    InputError, match='folder of several fine-tunes: name one, .*finetune/positive'
  ):
    trajectory.find(tmp_path)


def test_steps_and_learning_rates_must_be_clear(adapters, watched, tmp_path):
  twice = shutil.copytree(adapters, tmp_path / 'twice')
  shutil.copytree(twice / 'checkpoint-20', twice / 'copy-20')
  with pytest.raises(InputError, match='several checkpoints of step 20: checkpoint-20, copy-20'):
    trajectory.find(twice)
  rates = shutil.copytree(watched[0], tmp_path / 'rates')
  shutil.copytree(rates / 'checkpoints' / '0.02', rates / 'checkpoints' / '1e-05')
  assert trajectory.find(rates)[0].folder.parent.name == '0.02'
  assert trajectory.find(rates, learning_rate=1e-5)[0].folder.parent.name == '1e-05'
  with pytest.raises(InputError, match='0.02, 1e-05, not 3; choose one with --learning_rate'):
    trajectory.find(rates, learning_rate=3.0)
  shutil.rmtree(rates / 'adapter')
  with pytest.raises(InputError, match='0.02, 1e-05; choose one'):
    trajectory.find(rates)


def test_another_base_is_refused(watched, direction, tmp_path):
  other = oracle.make_checkpoint(tmp_path / 'other', tied=False, seed=9)
  wide = oracle.make_checkpoint(tmp_path / 'wide', tied=False, width=32)
  folder = watched[0]
  with open_base((), other) as opened:
    with pytest.raises(InputError, match='belong to different base models'):
      angles(trajectory.find(folder)[0], folder, opened, direction)
    assert angles(
      trajectory.find(folder)[0], folder, opened, direction, allow_other_base=True
    ).whole.cosine
  with (
    open_base((), wide) as opened,
    pytest.raises(InputError, match='different architectures: width 16 / 32'),
  ):
    angles(trajectory.find(folder)[0], folder, opened, direction)


def test_a_damaged_checkpoint_is_found_by_its_fingerprint(watched, opened, direction, tmp_path):
  """A flipped value in the saved arrays, whose sizes and marker are as before."""
  folder = shutil.copytree(watched[0], tmp_path / 'run')
  one = trajectory.find(folder)[0]
  path = one.folder
  held = checkpoint.restore(path, tree.unflatten(checkpoint.verify(path)))
  arrays = {name: np.array(value) for name, value in tree.flatten(held).items()}
  arrays['delta/layers/attn/q/kernel/a'].flat[0] += 1e-3
  marker = (path / checkpoint.MARKER).read_text()
  shutil.rmtree(path)
  checkpoint.save(path, tree.unflatten(arrays), metadata={})
  changed = json.loads((path / checkpoint.MARKER).read_text())
  sealed = json.loads(marker) | {'files': changed['files']}
  sealed.pop('seal')
  (path / checkpoint.MARKER).write_text(json.dumps(seals.sealed(sealed)))
  with pytest.raises(
    CorruptError, match='does not match its fingerprints at delta/layers/attn/q/kernel/a'
  ):
    angles(one, folder, opened, direction)
