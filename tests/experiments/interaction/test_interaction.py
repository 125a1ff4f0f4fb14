"""Mixes against numpy, effects against numbers worked by hand, and runs on one grid."""

import json

import jax
import numpy as np
import pytest

from weightsteer_jax import config as configs
from weightsteer_jax import directions, models
from weightsteer_jax.evaluation import intervals
from weightsteer_jax.experiments import interaction, organism
from weightsteer_jax.experiments.interaction import effects, mixes
from weightsteer_jax.runtime.errors import InputError


def test_a_mix_without_the_others_is_the_rest_of_least_squares():
  vectors_DK = np.random.default_rng(0).standard_normal((50, 3)) @ [
    [1, 0.5, 0],
    [0, 1, 0.3],
    [0, 0, 1],
  ]
  table = mixes.all_of({'a': 2.0, 'b': 1.0, 'c': 0.5}, vectors_DK.T @ vectors_DK)
  assert list(table)[:3] == ['a', 'b', 'c']
  assert table['a + c'] == (2.0, 0.0, 0.5)
  assert table['a + b + c'] == (2.0, 1.0, 0.5)
  for k, (name, alpha) in enumerate({'a': 2.0, 'b': 1.0, 'c': 0.5}.items()):
    others = np.delete(vectors_DK, k, axis=1)
    x = alpha * vectors_DK[:, k]
    rest = x - others @ np.linalg.lstsq(others, x, rcond=None)[0]
    got = vectors_DK @ np.array(table[f'{name}{mixes.WITHOUT}'])
    np.testing.assert_allclose(got, rest, atol=1e-10)


def test_what_goes_beyond_a_sum_is_paired_by_question():
  values = {
    'base': [0, 0, 1, 0],
    'a': [1, 0, 1, 0],
    'b': [0, 1, 1, 0],
    'a + b': [1, 1, 1, 1],
  }
  means = {
    name: intervals.estimate(list(zip('wxyz', map(float, row)))) for name, row in values.items()
  }
  rows = {row['mix']: row for row in effects.table({'task': means})}
  assert rows['a']['change'] == 0.25
  # By question: 1 1 1 1 + 0 0 1 0 - 1 0 1 0 - 0 1 1 0 = 0 0 0 1.
  each = np.array([0.0, 0.0, 0.0, 1.0])
  assert rows['a + b']['beyond_sum'] == pytest.approx(each.mean())
  assert rows['a + b']['beyond_sum_sem'] == pytest.approx(each.std(ddof=1) / 2)
  assert 'beyond_sum' not in rows['a']


def make_run(folder, name, seed, task):
  """A workdir of a run with a random direction of the embedded model and one behaviour."""
  c = configs.base_config()
  c.name = name
  c.model.source = 'organism'
  c.data.update(organism.SYCOPHANCY, num_questions=8)
  for each, role in ((task, 'behaviour'), ('truths', 'capability')):
    c.tasks[each] = configs.task(
      items=f'organism:{each}', role=role, kind='generate', n=4, max_new_tokens=4
    )
  folder.mkdir()
  record = configs.to_dict(configs.resolve(c))
  (folder / 'config.json').write_text(json.dumps(record))
  model = models.load(organism.checkpoint_folder())
  delta = models.init_delta(model.config, 'lora', jax.random.key(seed), rank=2, lora_alpha=2.0)
  random = np.random.default_rng(seed)
  delta = jax.tree.map(lambda x: (0.1 * random.standard_normal(x.shape)).astype(np.float32), delta)
  base = directions.base_of(model).to_json()
  meta = {'kind': 'test', 'base': base, 'sources': []}
  directions.save(folder / 'directions' / name, directions.Direction(delta, meta))
  return folder


def test_runs_that_do_not_go_together_are_told(tmp_path):
  with pytest.raises(InputError, match='two or more runs; got 1'):
    interaction.interact({'a': 1.0}, tmp_path / 'out')
  with pytest.raises(InputError, match='no workdir of a run'):
    interaction.interact({tmp_path / 'a': 1.0, tmp_path / 'b': 1.0}, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_two_runs_on_one_grid_go_on_where_they_stopped(tmp_path):
  runs = {
    make_run(tmp_path / 'x', 'x', 1, 'facts'): 1.0,
    make_run(tmp_path / 'y', 'y', 2, 'bad_choices'): 0.5,
  }
  summary = interaction.interact(runs, tmp_path / 'out')
  assert summary['behaviours'] == {'x': 'facts', 'y': 'bad_choices'}
  assert summary['capabilities'] == ['truths']
  assert list(summary['mixes']) == ['x', 'y', 'x + y', f'x{mixes.WITHOUT}', f'y{mixes.WITHOUT}']
  held = [directions.load(folder / 'directions' / folder.name) for folder in runs]
  assert summary['cosines'][0][1] == pytest.approx(directions.cosine(*held), abs=1e-6)
  # The base and five mixes of three tasks.
  assert len(summary['effects']) == 18
  page = (tmp_path / 'out' / 'index.html').read_text()
  assert 'x without the others' in page
  rows = (tmp_path / 'out' / 'sweep' / 'rows.jsonl').read_bytes()
  again = interaction.interact(runs, tmp_path / 'out')
  assert again['effects'] == summary['effects']
  assert (tmp_path / 'out' / 'sweep' / 'rows.jsonl').read_bytes() == rows
