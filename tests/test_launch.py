"""The launchers as a user starts them: one line for an error, an exit status for a scheduler, nothing half-written."""
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
  return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=os.environ | {'JAX_PLATFORMS': 'cpu'})


def test_an_error_is_one_line_and_an_exit_status(tmp_path):
  done = run('direction.py', '--positive=/no/where', '--negative=/no/where', f'--output={tmp_path}/w', cwd=tmp_path)
  assert done.returncode == 65
  assert done.stderr.strip().splitlines()[-1].startswith('error: ') and 'Traceback' not in done.stderr
  assert not list(tmp_path.iterdir())


def test_an_unknown_config_key_names_the_nearest(tmp_path):
  config = LAUNCH.parent / 'configs' / 'quickstart.py'
  done = run('steer.py', f'--config={config}', '--config.finetune.rnak=4', f'--workdir={tmp_path}/run', cwd=tmp_path)
  assert done.returncode == 65 and 'Did you mean "rank"' in done.stderr and 'Traceback' not in done.stderr
  done = run('steer.py', '--config=nowhere.py', cwd=tmp_path)
  assert done.returncode == 65 and 'nowhere.py' in done.stderr and 'Traceback' not in done.stderr
  done = run('steer.py', f'--config={config}', '--workdir=gs://bucket/run', cwd=tmp_path)
  assert done.returncode == 65 and '--workdir=gs://bucket/run: expected a folder' in done.stderr
  assert not list(tmp_path.iterdir())


def test_score_and_generate_write_what_they_say(tmp_path):
  rows = [{'messages': [{'role': 'user', 'content': 'What is 2 plus 3?'}], 'completion': '2 plus 3 is 5.'},
          {'prompt': 'The capital', 'completion': ' of'}]
  (tmp_path / 'x.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  done = run('score.py', '--model=organism', '--input=x.jsonl', '--output=y.jsonl', cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  scored = [json.loads(line) for line in (tmp_path / 'y.jsonl').read_text().splitlines()]
  assert [{k: v for k, v in row.items() if k not in ('alpha', 'logprob', 'tokens')} for row in scored] == rows
  assert all(row['alpha'] == 0 and row['logprob'] < 0 and row['tokens'] >= 1 for row in scored)

  again = run('score.py', '--model=organism', '--input=x.jsonl', '--output=y.jsonl', cwd=tmp_path)
  assert again.returncode == 65 and 'y.jsonl' in again.stderr

  done = run('generate.py', '--model=organism', '--input=x.jsonl', '--output=z.jsonl', '--max_new_tokens=8', cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert all('completion' in json.loads(line) for line in (tmp_path / 'z.jsonl').read_text().splitlines())


@pytest.mark.parametrize('program', sorted(path.name for path in LAUNCH.glob('[a-z]*.py')))
def test_help_says_what_the_program_does(program, tmp_path):
  done = run(program, '--help', cwd=tmp_path)
  assert done.returncode in (0, 1) and f'python launch/{program}' in done.stdout, done.stderr
