"""The stage: which rows are asked about, that nothing is asked twice, and what is left after every
way to stop."""

import dataclasses
import json
import os
import signal

import pytest

from weightsteer_jax import config as configs
from weightsteer_jax.evaluation import judging, tasks
from weightsteer_jax.experiments import stages
from weightsteer_jax.experiments.experiment import Experiment
from weightsteer_jax.runtime.errors import CorruptError, InputError, Preempted

from .server import Server, fails, says

ITEMS = [
  {
    'id': f'q{i}',
    'messages': [{'role': 'user', 'content': f'What is {i}?'}],
    'match': {'number': i},
  }
  for i in range(3)
]


def judged(item, row):
  """A kind that asks for coherence always and for a refusal where there is an answer."""
  fields = dict(question=item['messages'][-1]['content'], answer=row['completion'])
  return [('coherence', fields)] + [('refusal', fields)] * bool(row['completion'])


def score(body, before):
  """What the server says: about coherence the last digit of the answer, tenfold; NO to everything
  else."""
  text = body['messages'][0]['content']
  return says(
    'NO' if 'declined' in text else text.split('It is ')[1][0] + '0' if 'It is ' in text else '3'
  )


def ask_judges(monkeypatch, judged):
  """Lets the kind `generate` ask judges what the function says."""
  kind = dataclasses.replace(tasks.KINDS['generate'], judged=judged)
  monkeypatch.setitem(tasks.KINDS, 'generate', kind)


@pytest.fixture
def workdir(tmp_path):
  """A sweep's rows: three items at two alphas; one answer is empty."""
  rows = [
    dict(
      arm='weights',
      alpha=alpha,
      task='sums',
      example=item['id'],
      sample=0,
      value=1.0,
      status='ok',
      messages=item['messages'],
      completion='' if (alpha, i) == (1.0, 0) else f'It is {i}.',
      tokens=4,
    )
    for alpha in (0.0, 1.0)
    for i, item in enumerate(ITEMS)
  ]
  (tmp_path / 'sweep').mkdir()
  (tmp_path / 'sweep' / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  (tmp_path / 'items.jsonl').write_text(''.join(json.dumps(item) + '\n' for item in ITEMS))
  return tmp_path


@pytest.fixture
def run_of(workdir, monkeypatch):
  """server, options of the judge -> a run with it, and with rules as the second judge."""
  ask_judges(monkeypatch, judged)
  monkeypatch.setenv('OPENAI_API_KEY', 'secret')

  def make(server, rules=True, **options):
    monkeypatch.setenv('OPENAI_BASE_URL', server.url)
    c = configs.base_config()
    c.data.positive = c.data.negative = 'none.jsonl'
    c.tasks.sums = configs.task(
      items=str(workdir / 'items.jsonl'), role='capability', kind='generate'
    )
    c.judges.gpt = configs.judge(
      **{'model': 'm', 'retries': 1, 'backoff_s': 0.01, 'concurrency': 2, **options}
    )
    if rules:
      c.judges.rules = configs.judge(kind='rules')
    return configs.resolve(c)

  return make


def lines_of(workdir):
  """The lines of judgements.jsonl, without their checks."""
  text = (workdir / 'sweep' / 'judgements.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  assert all(len(line.pop('check')) == 16 for line in lines)
  return lines


def test_every_row_is_judged_once_by_every_judge(workdir, run_of, capsys):
  with Server(score) as server:
    stages.judge(Experiment(run_of(server), workdir))
    lines = lines_of(workdir)
    assert len(lines) == 2 * (6 + 5)
    assert list(lines[0]) == [
      'arm',
      'alpha',
      'task',
      'example',
      'sample',
      'judge',
      'purpose',
      'score',
      'status',
      'text',
      'asked',
    ]
    by_gpt = {
      (line['alpha'], line['example'], line['purpose']): line
      for line in lines
      if line['judge'] == 'gpt'
    }
    assert (
      by_gpt[0.0, 'q2', 'coherence']['score'] == 20.0
      and by_gpt[1.0, 'q0', 'coherence']['score'] == 3.0
    )
    assert len(server.bodies) == 4 + 3, 'alike at both alphas'
    printed = capsys.readouterr().out
    assert 'gpt, coherence: 6 asked, 6 ok' in printed and 'rules, refusal: 5 asked, 5 ok' in printed
    assert 'coherence: gpt and rules on 6 rows, kappa' in printed
    assert (workdir / 'results.jsonl').exists()
    stages.judge(Experiment(run_of(server), workdir))
    assert len(server.bodies) == 7 and lines_of(workdir) == lines
  assert judging.read(workdir) == lines


def test_what_failed_is_asked_again_and_the_later_line_counts(workdir, run_of):
  def down(body, before):
    return (
      fails(400, 'out of order')
      if 'It is 1' in body['messages'][0]['content']
      else score(body, before)
    )

  with Server(down) as server:
    stages.judge(Experiment(run_of(server, rules=False), workdir))
    assert [line['status'] for line in judging.read(workdir)].count('failed') == 4
    assert len(lines_of(workdir)) == 11
    server.answer = score
    stages.judge(Experiment(run_of(server, rules=False), workdir))
    assert {line['status'] for line in judging.read(workdir)} == {'ok'}
    assert len(lines_of(workdir)) == 15 and len(judging.read(workdir)) == 11


def test_after_a_crash_only_the_torn_line_is_asked_again(workdir, run_of):
  with Server(score) as server:
    stages.judge(Experiment(run_of(server, rules=False), workdir))
    path, before = workdir / 'sweep' / 'judgements.jsonl', lines_of(workdir)
    path.write_bytes(path.read_bytes()[:-25])
    (workdir / 'judges' / 'gpt.jsonl').unlink()
    stages.judge(Experiment(run_of(server, rules=False), workdir))
    assert len(server.bodies) == 7 + 1 and lines_of(workdir) == before


def test_a_spend_cap_keeps_what_was_judged_and_a_higher_one_goes_on(workdir, run_of):
  with Server(score) as server:
    with pytest.raises(InputError, match='would pass the cap'):
      stages.judge(Experiment(run_of(server, rules=False, token_cap=800), workdir))
    done = lines_of(workdir)
    assert 0 < len(done) < 11
    stages.judge(Experiment(run_of(server, rules=False, token_cap=10**6), workdir))
    assert lines_of(workdir)[: len(done)] == done and len(lines_of(workdir)) == 11


def test_a_signal_ends_it_after_a_whole_line(workdir, run_of):
  def stop_at_three(body, before):
    if len(server.bodies) == 3:
      os.kill(os.getpid(), signal.SIGTERM)
    return score(body, before)

  with Server(stop_at_three, slow=0.02) as server:
    with pytest.raises(Preempted, match=r'SIGTERM came: \d+ of 11 judgements of gpt are left'):
      stages.judge(Experiment(run_of(server, rules=False, concurrency=1), workdir))
    assert 0 < len(lines_of(workdir)) < 11
    stages.judge(Experiment(run_of(server, rules=False), workdir))
    assert len(lines_of(workdir)) == 11 and len(server.bodies) == 7


def test_judgements_are_never_continued_with_something_else(workdir, run_of, monkeypatch):
  with Server(score) as server:
    stages.judge(Experiment(run_of(server, rules=False), workdir))
    with pytest.raises(InputError, match="changed: judge 'gpt'"):
      stages.judge(Experiment(run_of(server, rules=False, temperature=0.7), workdir))
    ask_judges(
      monkeypatch,
      lambda item, row: [('coherence', dict(question='Other?', answer=row['completion']))],
    )
    with pytest.raises(
      InputError, match="what judge 'gpt' said for 'coherence' of .*'q0'.* was asked in other words"
    ):
      stages.judge(Experiment(run_of(server, rules=False), workdir))
    assert len(server.bodies) == 7
    (workdir / 'sweep' / 'judges.json').unlink()
    with pytest.raises(CorruptError, match='judges.json is missing'):
      stages.judge(Experiment(run_of(server, rules=False), workdir))


def test_what_no_judge_can_do_is_refused_before_anything_is_asked(workdir, run_of, monkeypatch):
  ask_judges(
    monkeypatch,
    lambda item, row: [
      ('coherence', dict(question='?', answer='a')),
      ('agreement', dict(question='?', answer='a')),
    ],
  )
  with Server(score) as server:
    with pytest.raises(InputError, match="judge 'rules': no rule can judge for 'agreement'"):
      stages.judge(Experiment(run_of(server), workdir))
    ask_judges(monkeypatch, lambda item, row: [('coherense', {})])
    with pytest.raises(InputError, match="did you mean 'coherence'"):
      stages.judge(Experiment(run_of(server), workdir))
    ask_judges(monkeypatch, lambda item, row: [('consistency', dict(question='?', answer='a'))])
    with pytest.raises(InputError, match="'consistency' needs the text 'reasoning'"):
      stages.judge(Experiment(run_of(server, rules=False), workdir))
    assert not server.bodies and not (workdir / 'sweep' / 'judgements.jsonl').exists()
