import json
import logging
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from weightsteer_jax import config
from weightsteer_jax.evaluation import rows as row_files
from weightsteer_jax.evaluation import sweep, tasks
from weightsteer_jax.inference import Engine, scoring
from weightsteer_jax.runtime.errors import CorruptError, InputError, OutputError, Preempted

ALPHAS = {'weights': (-1.0, 0.0, 1.0), 'other': (0.0, 0.5)}


def ask(i):
  return [{'role': 'user', 'content': f'Is {i} {"right" * i}?'}]


@pytest.fixture(scope='module')
def both_tasks():
  choices = [
    {
      'id': f'c{i}',
      'messages': ask(i),
      'choices': ['Yes.', 'No, that is wrong.', 'one'],
      'target': i % 3,
    }
    for i in range(4)
  ]
  answers = [{'id': f'g{i}', 'messages': ask(i), 'match': {'any': ['e']}} for i in range(3)]
  return [
    tasks.make('choose', config.ChoiceTask('c.jsonl', 'behaviour'), choices),
    tasks.make(
      'answer',
      config.TextTask(
        'g.jsonl', 'capability', kind='generate', max_new_tokens=6, temperature=1.0, samples=2
      ),
      answers,
    ),
  ]


@pytest.fixture(scope='module')
def engine(engine_of, tokenizer):
  return engine_of(16, (tokenizer.eos_token_id,))


@pytest.fixture(scope='module')
def whole(engine, both_tasks, tmp_path_factory):
  """(workdir, rows) of a finished sweep."""
  workdir = tmp_path_factory.mktemp('sweep')
  return workdir, sweep.run(engine, both_tasks, alphas=ALPHAS, workdir=workdir, progress=False)


def lines_of(workdir):
  return (workdir / 'sweep' / 'rows.jsonl').read_text().splitlines()


def bare(lines):
  """Lines without their checks."""
  return [line[: line.index(', "check": "')] for line in lines]


def test_there_is_one_row_for_every_arm_alpha_task_example_and_sample(whole):
  workdir, rows = whole
  assert (
    len(rows)
    == 5 * (4 + 3 * 2)
    == len(lines_of(workdir))
    == len({row_files.key_of(row) for row in rows})
  )
  common = ['arm', 'alpha', 'task', 'example', 'sample', 'messages', 'value', 'status']
  for row in rows:
    assert list(row) == common + (
      ['choices', 'target', 'tokens', 'logprobs']
      if row['task'] == 'choose'
      else ['completion', 'tokens', 'finish']
    )


def test_at_alpha_0_all_arms_have_the_same_rows(whole):
  base = {
    arm: [{**row, 'arm': ''} for row in whole[1] if row['arm'] == arm and row['alpha'] == 0]
    for arm in ALPHAS
  }
  assert base['weights'] == base['other'] and base['weights']


def test_a_finished_sweep_computes_nothing_again(whole, engine, both_tasks, monkeypatch):
  monkeypatch.setattr(
    Engine, 'score', lambda self, requests: iter(list(requests) and [pytest.fail('scored again')])
  )
  monkeypatch.setattr(
    Engine,
    'generate',
    lambda self, requests: iter(list(requests) and [pytest.fail('generated again')]),
  )
  workdir, rows = whole
  before = lines_of(workdir)
  assert sweep.run(engine, both_tasks, alphas=ALPHAS, workdir=workdir, progress=False) == rows
  assert lines_of(workdir) == before


def test_after_a_crash_the_torn_line_is_dropped_aloud_and_only_what_is_missing_runs(
  whole, engine, both_tasks, tmp_path, caplog
):
  workdir, rows = whole
  lines = lines_of(workdir)
  folder = tmp_path / 'sweep'
  folder.mkdir()
  (folder / 'plan.json').write_text((workdir / 'sweep' / 'plan.json').read_text())
  kept = lines[:7] + lines[20:33]
  (folder / 'rows.jsonl').write_text('\n'.join(kept) + '\n' + lines[40][:25])
  with caplog.at_level(logging.WARNING):
    again = sweep.run(engine, both_tasks, alphas=ALPHAS, workdir=tmp_path, progress=False)
  assert 'cut short' in caplog.text and '25 bytes' in caplog.text
  assert bare(lines_of(tmp_path))[:20] == bare(kept) and len(lines_of(tmp_path)) == len(lines)
  assert again == rows, 'bit for bit, although fewer are computed'


def test_an_interrupted_sweep_scores_in_the_batches_of_the_whole(
  engine_of, both_tasks, tmp_path, monkeypatch
):
  """In other batches the last bits of a score would be others."""
  small, score, batches = engine_of(16), scoring.score_batch, []

  def recorded(*args):
    batches.append(tuple(np.asarray(x).tobytes() for x in jax.tree.leaves(args[-1])))
    return score(*args)

  monkeypatch.setattr(scoring, 'score_batch', recorded)
  sweep.run(small, both_tasks[:1], alphas=ALPHAS, workdir=tmp_path, progress=False)
  whole = batches.copy()
  batches.clear()
  path = tmp_path / 'sweep' / 'rows.jsonl'
  path.write_text('\n'.join(lines_of(tmp_path)[:-1]) + '\n')
  sweep.run(small, both_tasks[:1], alphas=ALPHAS, workdir=tmp_path, progress=False)
  assert 0 < len(batches) < len(whole) and set(batches) < set(whole)


def test_alphas_may_be_added_but_what_rows_were_made_from_may_not_change(
  whole, engine, both_tasks, engine_of, tmp_path
):
  workdir, _ = whole
  some = {'weights': (0.0,)}
  first = sweep.run(engine, both_tasks[:1], alphas=some, workdir=tmp_path, progress=False)
  more = sweep.run(
    engine, both_tasks[:1], alphas={'weights': (0.0, 2.0)}, workdir=tmp_path, progress=False
  )
  assert [row for row in more if row['alpha'] == 0] == first and len(more) == 8
  for change, message in [
    (dict(seed=1), 'changed: seed'),
    (dict(engine=engine_of(16)), 'changed: stop tokens'),
  ]:
    with pytest.raises(InputError, match=message):
      sweep.run(
        change.get('engine', engine),
        both_tasks[:1],
        alphas=some,
        workdir=tmp_path,
        seed=change.get('seed', 0),
        progress=False,
      )
  other = tasks.make(
    'choose', both_tasks[0].options, [{**item, 'target': 0} for item in both_tasks[0].items]
  )
  with pytest.raises(InputError, match="changed: items of task 'choose'"):
    sweep.run(engine, [other], alphas=some, workdir=tmp_path, progress=False)


def test_a_sweep_goes_on_with_the_stop_tokens_it_was_begun_with(
  whole, engine_of, both_tasks, tokenizer, tmp_path, capsys
):
  """Half of the sweep with fewer stop tokens, the rest where the checkpoint names more of them."""
  workdir, rows = whole
  shutil.copytree(workdir / 'sweep', tmp_path / 'sweep')
  kept = lines_of(tmp_path)[::2]
  (tmp_path / 'sweep' / 'rows.jsonl').write_text('\n'.join(kept) + '\n')
  # Every other token would end an answer at once.
  more = engine_of(16, (tokenizer.eos_token_id, *range(3, 60)))
  assert sweep.run(more, both_tasks, alphas=ALPHAS, workdir=tmp_path, progress=False) == rows
  assert 'goes on with them' in capsys.readouterr().out


def test_a_signal_ends_the_sweep_after_a_whole_row_and_it_goes_on(
  whole, engine, both_tasks, tmp_path, monkeypatch
):
  _, rows = whole
  append = row_files.Rows.append

  def stop_after_seven(self, row):
    append(self, row)
    if len(self.done) == 7:
      os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(row_files.Rows, 'append', stop_after_seven)
  with pytest.raises(
    Preempted, match=rf'SIGTERM came: {len(rows) - 7} of {len(rows)} rows of the sweep are left'
  ):
    sweep.run(engine, both_tasks, alphas=ALPHAS, workdir=tmp_path, progress=False)
  assert len(lines_of(tmp_path)) == 7
  assert sweep.run(engine, both_tasks, alphas=ALPHAS, workdir=tmp_path, progress=False) == rows


def test_another_model_or_direction_is_told_apart(
  model, tokenizer, delta, other_delta, both_tasks, tmp_path
):
  from types import SimpleNamespace

  stops = (tokenizer.eos_token_id,)
  engine = Engine(model, tokenizer, {'weights': [(delta, None)]}, batch_size=16, stop_ids=stops)
  sweep.run(engine, both_tasks[:1], alphas={'weights': (0.0,)}, workdir=tmp_path, progress=False)
  turned = Engine(
    model, tokenizer, {'weights': [(other_delta, None)]}, batch_size=16, stop_ids=stops
  )
  with pytest.raises(InputError, match="changed: direction of arm 'weights'"):
    sweep.run(turned, both_tasks[:1], alphas={'weights': (0.0,)}, workdir=tmp_path, progress=False)
  nudged = SimpleNamespace(
    config=model.config, params=jax.tree.map(lambda x: x * 1.001, model.params)
  )
  with pytest.raises(InputError, match='changed: model'):
    sweep.run(
      Engine(nudged, tokenizer, {'weights': [(delta, None)]}, batch_size=16, stop_ids=stops),
      both_tasks[:1],
      alphas={'weights': (0.0,)},
      workdir=tmp_path,
      progress=False,
    )


def test_rows_without_their_plan_and_broken_lines_are_refused(whole, engine, both_tasks, tmp_path):
  workdir, _ = whole
  folder = tmp_path / 'sweep'
  folder.mkdir()
  (folder / 'rows.jsonl').write_text('\n'.join(lines_of(workdir)) + '\n')
  with pytest.raises(CorruptError, match='plan.json is missing'):
    sweep.run(engine, both_tasks, alphas=ALPHAS, workdir=tmp_path, progress=False)
  (folder / 'rows.jsonl').write_text('{"arm": 1,,}\n' + lines_of(workdir)[0] + '\n')
  with pytest.raises(CorruptError, match='rows.jsonl:1 is not JSON'):
    sweep.run(engine, both_tasks, alphas=ALPHAS, workdir=tmp_path, progress=False)
  line = bare(lines_of(workdir))[0]
  (folder / 'rows.jsonl').write_text(f'{line}}}\n{line}, "more": 1}}\n')
  with pytest.raises(CorruptError, match='twice'):
    sweep.run(engine, both_tasks, alphas=ALPHAS, workdir=tmp_path, progress=False)


def test_a_full_disk_leaves_whole_rows_only(tmp_path):
  row = dict(arm='a', alpha=0.0, task='t', example='e', sample=0, value=1.0, status='ok')

  class Full:
    """A file whose disk takes the first few bytes of a write and then no more."""

    def __init__(self, file):
      self.file = file

    def write(self, line):
      return self.file.write(line[:10])

    def __getattr__(self, name):
      return getattr(self.file, name)

  with row_files.Rows(tmp_path / 'rows.jsonl') as rows:
    rows.append(row)
    rows._file = Full(rows._file)
    with pytest.raises(OutputError, match='the 1 rows before it are safe'):
      rows.append({**row, 'example': 'f'})
  assert [read['example'] for read in row_files.read(tmp_path / 'rows.jsonl')] == ['e']
  [line] = bare((tmp_path / 'rows.jsonl').read_text().splitlines())
  assert json.loads(line + '}') == row
