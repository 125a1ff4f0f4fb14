"""Which rows of a workdir are one set of results, and which sweep each comes from."""

import dataclasses
import json

import pytest

from weightsteer_jax.evaluation import grids, metrics, rows
from weightsteer_jax.evaluation.grids import Grid
from weightsteer_jax.runtime.errors import CorruptError

INPUTS = {'model': 'm', "items of task 'facts'": 'i', "direction of arm 'w'": [['d', None]]}


def make_rows(alphas, examples=4, task='facts', arm='w'):
  return [
    dict(arm=arm, alpha=alpha, task=task, example=f'q{i}', sample=0, value=1.0, status='ok')
    for alpha in alphas
    for i in range(examples)
  ]


def write(workdir, made, plan=INPUTS):
  folder = workdir / 'sweep'
  folder.mkdir(exist_ok=True)
  (folder / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in made))
  (folder / 'plan.json').write_text(json.dumps({'inputs': plan}))


def swept(workdir, alphas, *, tasks=('facts',), inputs=INPUTS, ends=True):
  number = grids.begin(workdir, Grid(0, {'w': alphas}, tasks, inputs, command=f'sweep {alphas}'))
  if ends:
    grids.finish(workdir, number)
  return number


def origins_of(workdir):
  found = {}
  for result in metrics.write(workdir):
    found[result['task'], result['alpha']] = result['grid']
  return found


def test_a_second_sweep_adds_its_strengths_and_each_result_says_where_it_is_from(tmp_path):
  write(tmp_path, make_rows([-1.0, 0.0, 0.5, 1.0]))
  assert swept(tmp_path, [-1.0, 0.0, 1.0]) == 1
  assert swept(tmp_path, [0.0, 0.5]) == 2
  # The same sweep again is no third one.
  assert swept(tmp_path, [-1.0, 0.0, 1.0]) == 1
  found = {('facts', -1.0): 1, ('facts', 0.0): 1, ('facts', 0.5): 2, ('facts', 1.0): 1}
  assert origins_of(tmp_path) == found
  first, second = grids.read(tmp_path)
  assert (first.command, second.command) == ('sweep [-1.0, 0.0, 1.0]', 'sweep [0.0, 0.5]')
  assert first.begun <= first.finished <= second.finished


def test_what_an_interrupted_sweep_left_unfinished_is_left_out_by_name(tmp_path, capsys):
  whole = make_rows([0.0, 1.0])
  write(tmp_path, whole + make_rows([2.0])[:3])
  swept(tmp_path, [0.0, 1.0])
  swept(tmp_path, [0.0, 1.0, 2.0], ends=False)
  assert origins_of(tmp_path) == {('facts', 0.0): 1, ('facts', 1.0): 1}
  assert (
    "results leave out 3 rows in sweep/rows.jsonl, of task 'facts' of arm 'w' at alpha 2: not all "
    'of its rows are there: sweep it again to finish it'
  ) in capsys.readouterr().out


def test_a_cell_whose_samples_are_not_all_there_is_not_whole(tmp_path):
  twice = [{**row, 'sample': 1} for row in make_rows([1.0])]
  write(tmp_path, make_rows([0.0, 1.0]) + twice[:2])
  assert origins_of(tmp_path) == {('facts', 0.0): None}
  write(tmp_path, make_rows([0.0, 1.0]) + twice)
  assert origins_of(tmp_path) == {('facts', 0.0): None, ('facts', 1.0): None}


@pytest.mark.parametrize('name', list(INPUTS))
def test_rows_of_other_weights_or_items_do_not_mix(tmp_path, name, capsys):
  write(tmp_path, make_rows([0.0, 1.0, 2.0]))
  swept(tmp_path, [2.0], inputs={**INPUTS, name: 'other'})
  swept(tmp_path, [0.0, 1.0])
  assert origins_of(tmp_path) == {('facts', 0.0): 2, ('facts', 1.0): 2}
  assert f'made from other inputs than the rest ({name})' in capsys.readouterr().out


def test_inputs_of_another_arm_are_nothing_to_a_cell(tmp_path):
  write(tmp_path, make_rows([0.0, 1.0]))
  swept(tmp_path, [0.0, 1.0], inputs={**INPUTS, "direction of arm 'v'": 'old'})
  write(tmp_path, make_rows([0.0, 1.0]), plan={**INPUTS, "direction of arm 'v'": 'new'})
  assert origins_of(tmp_path) == {('facts', 0.0): 1, ('facts', 1.0): 1}


def test_a_task_that_the_config_dropped_is_left_out_and_order_is_that_of_the_config(tmp_path):
  made = make_rows([0.0]) + make_rows([0.0], task='sums') + make_rows([0.0], task='old')
  kept, _, [left] = grids.together(tmp_path, made, ['sums', 'facts'])
  assert list(dict.fromkeys(row['task'] for row in kept)) == ['sums', 'facts']
  assert "4 rows in sweep/rows.jsonl, of task 'old'" in left and 'no such task' in left
  # Arms in the order of the grids, whichever row was finished first.
  both = make_rows([0.0], arm='v') + made[:4]
  grids.begin(tmp_path, Grid(0, {'w': [0.0], 'v': [0.0]}, ['facts']))
  kept, _, _ = grids.together(tmp_path, both)
  assert list(dict.fromkeys(row['arm'] for row in kept)) == ['w', 'v']


def test_rows_of_an_earlier_version_become_one_grid(tmp_path):
  write(tmp_path, make_rows([0.0, -1.0]))
  grids.adopt(
    tmp_path,
    rows.read(tmp_path / 'sweep' / 'rows.jsonl'),
    INPUTS,
    command='earlier',
    settings={'alphas': [-1.0, 0.0]},
  )
  [grid] = grids.read(tmp_path)
  assert (grid.grid, grid.alphas, grid.command) == (1, {'w': [-1.0, 0.0]}, 'earlier')
  assert grid.finished and dataclasses.asdict(grid)['inputs'] == INPUTS
  # The same sweep started again by this version is that grid.
  assert swept(tmp_path, [-1.0, 0.0]) == 1


def test_a_broken_record_is_told_by_its_line(tmp_path):
  write(tmp_path, make_rows([0.0]))
  grids.path_of(tmp_path).write_text('{"grid": 1}\n')
  with pytest.raises(CorruptError, match='grids.jsonl:1 is no record of a sweep'):
    metrics.write(tmp_path)


def test_results_are_the_same_as_csv_and_parquet(tmp_path):
  import csv

  from pyarrow import parquet

  write(tmp_path, make_rows([0.0, 1.0]))
  found = metrics.write(tmp_path)
  table = parquet.read_table(tmp_path / 'results.parquet').to_pylist()
  assert [{key: row[key] for key in row} for row in table] == [
    {**dict.fromkeys(table[0]), **result} for result in found
  ]
  with (tmp_path / 'results.csv').open(newline='') as file:
    lines = list(csv.DictReader(file))
  assert [(line['task'], float(line['alpha']), line['grid']) for line in lines] == [
    (result['task'], result['alpha'], '') for result in found
  ]
  # All digits are kept.
  assert [float(line['low']) for line in lines] == [result['low'] for result in found]
  # What is not in the columns would be lost in both.
  assert {key for result in found for key in result} == set(lines[0])
