import numpy as np
import pytest

import weightsteer_jax as ws
from weightsteer_jax import models
from weightsteer_jax.runtime import tree


def flat(direction):
  """The whole change as one float64 vector."""
  parts = []
  for _, leaf in sorted(tree.flatten(direction.unwrapped.delta, models.is_delta_leaf).items()):
    # [L, inputs..., R] and [L, R, outputs...]; a layer's change is one product.
    for a, b in zip(np.float64(leaf.a), np.float64(leaf.b) * leaf.scale):
      rank = a.shape[-1]
      parts.append((a.reshape(-1, rank) @ b.reshape(rank, -1)).ravel())
  return np.concatenate(parts)


def test_arithmetic_is_that_of_vectors(v, w):
  x, y = flat(v), flat(w)
  for direction, expected in (
    (v + w, x + y),
    (2 * v - w, 2 * x - y),
    (-v, -x),
    (v / 4, x / 4),
    (np.float32(0.5) * w, y / 2),
    (sum([v, w, v]), 2 * x + y),
    (v.project(w), (x @ y) / (y @ y) * y),
  ):
    np.testing.assert_allclose(flat(direction), expected, rtol=1e-5, atol=1e-6)
    assert direction.norm() == pytest.approx(np.linalg.norm(expected), rel=1e-5)
  cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
  assert v.cosine(w) == pytest.approx(cosine, abs=1e-6)
  assert v.dot(w) == pytest.approx(x @ y, rel=1e-4, abs=1e-4)
  assert (v - v.project(w)).cosine(w) == pytest.approx(0, abs=1e-5)


def test_names_and_lines_say_how_a_direction_was_computed(v, w):
  assert repr(v).startswith('SteeringDirection(random1, norm ') and '\n' not in repr(v)
  assert repr(v).endswith('kernels of rank 3, base organism)')
  assert (2 * v - w / 2).name == '2 * random1 - random2 / 2'
  assert (-(v + w)).name == '-(random1 + random2)' and (+v) is v
  assert 'a combination + ' in sum([v] * 20).name


def test_what_is_saved_is_read_again(v, w, tmp_path):
  folder = (2 * v - w).save(tmp_path / 'mixed')
  again = ws.load_direction(folder)
  np.testing.assert_array_equal(flat(again), flat(2 * v - w))
  assert again.name == 'mixed' and again.meta['kind'] == 'difference'
  with pytest.raises(ws.InputError, match='mixed.* exists'):
    v.save(folder)


def test_what_cannot_be_added_is_refused(v):
  for wrong in (
    lambda: v + 1,
    lambda: v * 'a',
    lambda: v * v,
    lambda: 1 / v,
    lambda: v * True,
    lambda: v - None,
  ):
    with pytest.raises(TypeError, match='SteeringDirection'):
      wrong()
  for call, message in (
    (lambda: v / 0, 'a direction is divided by a number other than 0'),
    (lambda: v * float('inf'), 'the factor of a direction is a finite number; got inf'),
    (lambda: v.cosine('w'), "cosine takes a direction; got str 'w'"),
    (lambda: v.dot(3), 'dot takes a direction; got int 3'),
    (lambda: v.save(''), "save takes a folder; got str ''"),
  ):
    with pytest.raises(ws.InputError, match=message):
      call()


def test_a_run_gives_its_own_direction(run_workdir, v, tmp_path, direction_folder):
  assert ws.load_direction('runs/quickstart').dot(v) == pytest.approx(v.dot(v))
  inside = run_workdir / 'directions'
  (inside / 'quickstart-other').symlink_to(direction_folder(2))
  with pytest.raises(ws.InputError, match='holds 2 directions.*name one of .*quickstart-other'):
    ws.load_direction(run_workdir)
  (run_workdir / 'config.json').write_text('{"name": "quickstart"}')
  assert ws.load_direction(run_workdir).dot(v) == pytest.approx(v.dot(v))
  unfinished = tmp_path / 'unfinished'
  (unfinished / 'finetune').mkdir(parents=True)
  (unfinished / 'config.json').write_text('{}')
  with pytest.raises(ws.InputError, match='has made no direction yet'):
    ws.load_direction(unfinished)
  with pytest.raises(ws.InputError, match="did you mean '.*unfinished'"):
    ws.load_direction(tmp_path / 'unfinishd')
  with pytest.raises(ws.InputError, match='load_direction takes a folder; got None'):
    ws.load_direction(None)


def test_an_adapter_that_was_exported_is_the_direction_again(v, model, tmp_path, capsys):
  folder = ws.export(v, alpha=-2, format='peft', output=tmp_path / 'adapter', base=model)
  said = capsys.readouterr().out
  assert 'logits differ by at most ' in said and 'its README.md says how to load it' in said
  again = ws.between(folder, base=model)
  np.testing.assert_allclose(flat(again), -2 * flat(v), rtol=1e-4, atol=1e-6)
  assert again.name == 'base to adapter'
  # Two sides, and the base by its name.
  (-v).save(tmp_path / 'minus')
  both = ws.between(folder, None, base='organism')
  assert both.cosine(v) == pytest.approx(-1, abs=1e-5)


def test_what_cannot_be_handed_on_is_told(v, model, tmp_path):
  options = dict(alpha=1, format='peft', output=tmp_path / 'adapter')
  for wrong, message in (
    (lambda: ws.export(v, **options, base=model.steer(v, 1)), 'export takes the base as it is'),
    (lambda: ws.export(v, **{**options, 'format': 'peff'}), "did you mean 'peft'"),
    (lambda: ws.export(v, **{**options, 'alpha': 'x'}), "alpha is a number; got str 'x'"),
    (lambda: ws.export(3, **options), 'load_direction takes a folder; got int 3'),
    (lambda: ws.between([1]), r'between \(as positive\) takes a folder; got list \[1\]'),
    (lambda: ws.between(None), 'needs a fine-tune: pass positive, negative or both'),
  ):
    with pytest.raises(ws.InputError, match=message):
      wrong()
  assert not (tmp_path / 'adapter').exists()
