"""The launchers as a user starts them.

One line for an error, an exit status for a scheduler, nothing half-written.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).parent.parent / 'launch'


def run(program, *flags, cwd):
  """The finished process of a launcher."""
  command = [sys.executable, str(LAUNCH / program), *flags]
  return subprocess.run(
    command,
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )


def assert_refused(done, *texts):
  """Exit status 65, and an error of one line with these texts."""
  assert done.returncode == 65
  assert 'Traceback' not in done.stderr
  for text in texts:
    assert text in done.stderr


def test_an_error_is_one_line_and_an_exit_status(tmp_path):
  done = run(
    'direction.py',
    '--positive=/no/where',
    '--negative=/no/where',
    f'--output={tmp_path}/w',
    cwd=tmp_path,
  )
  assert_refused(done)
  assert done.stderr.strip().splitlines()[-1].startswith('error: ')
  assert not list(tmp_path.iterdir())


def test_an_unknown_config_key_names_the_nearest(tmp_path):
  config = f"--config={LAUNCH.parent / 'configs' / 'quickstart.py'}"
  workdir = f'--workdir={tmp_path}/run'
  done = run('steer.py', config, '--config.finetune.rnak=4', workdir, cwd=tmp_path)
  assert_refused(done, "there is no config key 'finetune.rnak' (did you mean 'finetune.rank'?)")
  done = run('steer.py', '--config=nowhere.py', cwd=tmp_path)
  assert_refused(done, 'nowhere.py')
  done = run('steer.py', config, '--workdir=gss://bucket/run', cwd=tmp_path)
  assert_refused(done, 'gss://bucket/run cannot be used')
  done = run('steer.py', config, workdir, '--staging=here', cwd=tmp_path)
  assert_refused(done, 'an address (gs://, s3://, ...) as --workdir')
  assert not list(tmp_path.iterdir())


def test_what_a_chat_template_is_told_may_stand_on_the_command_line(tmp_path):
  """As a flag of its own or as a key, in JSON; the embedded model's template takes nothing."""
  config = f"--config={LAUNCH.parent / 'configs' / 'quickstart.py'}"
  arguments = '{"enable_thinking": false}'
  key = f'--config.model.chat_template_args={arguments}'
  done = run('steer.py', config, '--dry_run', key, cwd=tmp_path)
  assert_refused(done, "never reads 'enable_thinking'; it reads: no variable")
  (tmp_path / 'in.jsonl').write_text('{"messages": [{"role": "user", "content": "Hi"}]}')
  files = ('--model=organism', '--input=in.jsonl', '--output=out.jsonl')
  done = run('generate.py', *files, f'--chat_template_args={arguments}', cwd=tmp_path)
  assert_refused(done, "never reads 'enable_thinking'")


def test_parts_of_a_run_make_the_workdir_theirs(tmp_path):
  from distributed import small

  settings = [
    f'--config={LAUNCH.parent}/tests/distributed/small.py',
    *small.write_data(tmp_path),
    '--config.finetune.steps=1',
    '--config.finetune.eval_every=1',
    '--workdir=run',
  ]
  done = run('finetune.py', *settings, '--side=positive', cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  config = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert config['command'].startswith('python ')
  assert 'launch/finetune.py --config' in config['command']
  assert config['tasks']['facts']['n'] == 6
  done = run('sweep.py', *settings, '--config.finetune.rank=8', cwd=tmp_path)
  assert_refused(done, 'finetune.rank: 4 there, 8 now')
  assert not (tmp_path / 'run' / 'sweep').exists()


def test_score_and_generate_write_what_they_say(tmp_path):
  rows = [
    {
      'messages': [{'role': 'user', 'content': 'What is 2 plus 3?'}],
      'completion': '2 plus 3 is 5.',
    },
    {'prompt': 'The capital', 'completion': ' of'},
  ]
  (tmp_path / 'x.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  done = run(
    'score.py',
    '--model=organism',
    '--input=x.jsonl',
    '--output=y.jsonl',
    '--batch_size=1',
    '--profile',
    '--compilation_cache=cache',
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  assert list((tmp_path / 'cache').glob('jit_score_batch-*-cache'))
  assert list((tmp_path / 'y.jsonl-profile').glob('plugins/profile/*/*.xplane.pb'))
  scored = [json.loads(line) for line in (tmp_path / 'y.jsonl').read_text().splitlines()]
  assert [
    {k: v for k, v in row.items() if k not in ('alpha', 'logprob', 'tokens')} for row in scored
  ] == rows
  assert all(row['alpha'] == 0 and row['logprob'] < 0 and row['tokens'] >= 1 for row in scored)

  again = run('score.py', '--model=organism', '--input=x.jsonl', '--output=y.jsonl', cwd=tmp_path)
  assert_refused(again, 'y.jsonl')

  done = run(
    'generate.py',
    '--model=organism',
    '--input=x.jsonl',
    '--output=z.jsonl',
    '--max_new_tokens=8',
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  assert all(
    'completion' in json.loads(line) for line in (tmp_path / 'z.jsonl').read_text().splitlines()
  )


@pytest.mark.parametrize('program', sorted(path.name for path in LAUNCH.glob('[a-z]*.py')))
def test_help_says_what_the_program_does(program, tmp_path):
  done = run(program, '--help', cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert f'launch/{program} --' in done.stdout
