"""Combinations in Python, against arithmetic on directions and the command's."""

import subprocess
import sys

import pytest

import weightsteer_jax as ws


def test_a_weighted_sum_is_that_of_arithmetic(v, w, direction_folder):
  total = ws.combine({v: 2, w: -0.5})
  plain = 2 * v - 0.5 * w
  assert (total - plain).norm() < 1e-5 * plain.norm()
  assert (ws.combine({direction_folder(1): 2, direction_folder(2): -0.5}) - plain).norm() < 1e-4
  # All of v's share in w is gone.
  rest = ws.combine({w: 1}, orthogonal_to=v)
  assert abs(rest.cosine(v)) < 1e-5 and (rest - (w - w.project(v))).norm() < 1e-4 * w.norm()
  some = ws.combine({v: 1}, layers='1-2', modules=['q_proj'])
  assert 0 < some.norm() < v.norm() and some.cosine(v) == pytest.approx(
    some.norm() / v.norm(), 1e-4
  )


def test_a_recipe_says_what_arguments_say(v, w, direction_folder, tmp_path):
  recipe = tmp_path / 'recipe.yaml'
  recipe.write_text(f"""
    merge_method: dare_ties
    models:
      - {{model: {direction_folder(1)}, parameters: {{weight: 1, density: 0.5}}}}
      - {{model: {direction_folder(2)}, parameters: {{weight: [0, 2], density: 0.5}}}}
    parameters: {{seed: 4}}
  """)
  by_file = ws.combine(recipe)
  by_hand = ws.combine({v: 1, w: [0, 2]}, method='dare_ties', density=0.5, seed=4)
  assert (by_file - by_hand).norm() == 0
  command = ['combine', f'--recipe={recipe}', f'--output={tmp_path / "out"}']
  done = subprocess.run(
    [sys.executable, '-m', 'weightsteer_jax', *command],
    capture_output=True,
    text=True,
    check=True,
    cwd=tmp_path,
  )
  assert 'dare_ties is' in done.stdout and 'cosine with' in done.stdout
  assert (ws.load_direction(tmp_path / 'out') - by_hand).norm() == 0


def test_a_merge_steers_a_model(v, w):
  merged = ws.combine({v: 1, w: 1}, method='ties', density=0.5)
  model = ws.load('organism')
  plain = model.logprob('The sky is', ' blue')
  assert model.steer(merged, 0.3).logprob('The sky is', ' blue') != plain


def test_mistakes(v, w):
  with pytest.raises(ws.InputError, match="merge_method is 'tie' .did you mean 'ties'"):
    ws.combine({v: 1}, method='tie')
  with pytest.raises(ws.InputError, match='combine takes {direction: weight}'):
    ws.combine([v, w])
  with pytest.raises(ws.InputError, match='weight is .much., expected a finite number'):
    ws.combine({v: 'much'})
