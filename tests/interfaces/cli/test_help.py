"""Help: light, whole, and with what a reader looks for."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

import weightsteer_jax
from weightsteer_jax import config
from weightsteer_jax.config import schema
from weightsteer_jax.interfaces.cli import config_keys, config_page, shipped
from weightsteer_jax.interfaces.cli.table import GROUPS, VERBS
from weightsteer_jax.runtime import errors as errors_module

ROOT = pathlib.Path(weightsteer_jax.__file__).parent.parent
# What a command line does without until it is known to be right.
HEAVY = ('jax', 'ml_collections', 'transformers', 'numpy', 'orbax', 'flax')
# Runs the command, and says on the last line of stderr which heavy modules it imported.
SPY = f"""
import atexit, json, sys
heavy = {HEAVY!r}
def tell():
  print(json.dumps([name for name in heavy if name in sys.modules]), file=sys.stderr)
atexit.register(tell)
from weightsteer_jax.interfaces.cli import command
sys.argv[0] = 'weightsteer'
command.main()
"""


def weightsteer(*words, cwd=None):
  """(exit status, stdout, stderr, heavy modules imported) of the command."""
  done = subprocess.run(
    [sys.executable, '-c', SPY, *words],
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=100,
    env=os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
  )
  lines = done.stderr.splitlines()
  return done.returncode, done.stdout, '\n'.join(lines[:-1]), json.loads(lines[-1])


@pytest.mark.parametrize('words', [(), ('--help',), ('-h',), ('help',)])
def test_the_command_lists_its_verbs_in_groups(words, tmp_path):
  status, said, errors, heavy = weightsteer(*words, cwd=tmp_path)
  assert (status, errors, heavy) == (0, '', [])
  # Every status that an error of ours ends with is told.
  statuses = {error.exit_code for error in errors_module.WeightSteerError.__subclasses__()}
  assert all(f' {status} ' in ' '.join(said.split()) for status in statuses)
  for title, verbs in GROUPS.items():
    group = said.partition(f'\n{title}:\n')[2].partition('\n\n')[0]
    assert [line.split()[0] for line in group.splitlines()] == [*verbs]


@pytest.mark.parametrize('verb', VERBS)
def test_a_verb_shows_its_flags_and_no_others(verb, tmp_path):
  status, said, errors, heavy = weightsteer(verb, '-h', cwd=tmp_path)
  assert (status, errors, heavy) == (0, '', [])
  assert f'weightsteer {verb} --' in said, 'an example'
  # absl's own flags stand behind --helpfull.
  assert '--pdb' not in said and 'repeat this option' not in said
  assert '--stall_minutes=NUMBER' in said and 'Default 60.' in said
  assert max(map(len, said.splitlines())) <= 100


def test_required_flags_come_first_and_the_verbs_own_before_shared_ones():
  _, said, _, _ = weightsteer('score', '--help')
  titles = re.findall(r'^(\S.*):$', said, re.MULTILINE)
  assert titles[:3] == [
    'Required',
    'Flags',
    'Flags of verbs that ask a model something at some alphas',
  ]
  assert re.findall(r'--(\w+)', said.partition('Required:')[2].partition('Flags:')[0])[:3] == [
    'model',
    'input',
    'output',
  ]
  own = said.partition('\nFlags:\n')[2].partition('\n\n')[0]
  assert '--[no]apart' in own and 'Default' in own


def test_all_flags_of_absl_stand_behind_helpfull():
  status, said, _, _ = weightsteer('score', '--helpfull')
  assert status == 0 and '--[no]apart' in said and 'pdb_post_mortem' in said


def test_the_version_is_the_packages():
  expected = (0, f'weightsteer {weightsteer_jax.__version__}\n', '', [])
  assert weightsteer('--version') == expected


def test_every_key_of_a_config_is_told_with_its_comment_and_default():
  status, said, errors, heavy = weightsteer('help', 'config')
  assert (status, errors, heavy) == (0, '', [])
  flat = ' '.join(said.split())
  source = pathlib.Path(schema.__file__).read_text()
  comments = re.findall(r'((?:^  # .*\n)+)  (\w+): [^\n]* = ([^\n(]+)$', source, re.MULTILINE)
  assert len(comments) > 100
  for above, name, default in comments:
    comment = ' '.join(above.replace('  # ', '').split())
    assert f' {name} = ' in flat and comment in flat, (name, default)
  for name in shipped.names():
    assert f'\n  {name} ' in said and ' '.join(shipped.summary(name).split()) in flat


def test_the_help_of_a_config_has_its_values_and_marks_what_it_changes():
  flags = ('--config.finetune.rank=7', '--config.tasks.facts.n=3')
  status, said, errors, _ = weightsteer('steer', '--help', '--config', 'quickstart', *flags)
  assert (status, errors) == (0, '')
  assert 'Sycophancy as a direction in the weights of the embedded model.' in said
  finetune = said.partition('\nfinetune:\n')[2].partition('\n\n')[0]
  assert re.search(r"^\* rank = 7 +Rank R of LoRA's factors\.$", finetune, re.MULTILINE)
  assert '\n  dropout = 0.0 ' in finetune
  facts = said.partition('\ntasks.facts:\n')[2].partition('\n\n')[0]
  assert '\n* n = 3' in facts


def test_the_keys_of_the_help_are_those_of_a_config():
  page = config_page.of_schema()
  base = config.base_config()
  for section in ('model', 'data', 'finetune', 'sweep', 'mesh', 'monitor', 'task_model'):
    text = page.partition(f'\n{section}: ')[2].partition('\n\n')[0]
    assert re.findall(r'^  (\w+) = ', text, re.MULTILINE) == [
      field for field in config_keys.keys_of(type(getattr(schema.Run(), section)))
    ]
    assert set(base[section].keys()) == set(re.findall(r'^  (\w+) = ', text, re.MULTILINE))


def test_a_terminal_that_cannot_show_a_sign_is_shown_its_number(monkeypatch):
  monkeypatch.setenv('PYTHONIOENCODING', 'ascii')
  flag = '--config.model.system_prompt=\N{PLUS-MINUS SIGN}'
  status, said, errors, _ = weightsteer('steer', '--config=quickstart', flag, '--help')
  assert (status, errors) == (0, '') and "system_prompt = '\\xb1'" in said


def test_a_reader_that_goes_away_is_no_error():
  command = f'"{sys.executable}" -m weightsteer_jax help config | head -2'
  done = subprocess.run(
    ['bash', '-c', f'set -o pipefail; {command}'],
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  assert done.returncode == 0 and done.stderr == '' and done.stdout.count('\n') == 2
