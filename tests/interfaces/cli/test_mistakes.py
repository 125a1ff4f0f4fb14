"""Mistakes of a command line: one line that names the nearest, before jax is imported."""

import re

import ml_collections
import pytest
from absl import flags

from interfaces.cli.test_help import weightsteer
from weightsteer_jax.interfaces.cli import arguments, config_changes, config_keys, shipped
from weightsteer_jax.interfaces.cli.config_changes import Change
from weightsteer_jax.runtime.errors import InputError

QUICKSTART = ('steer', '--config=quickstart')


@pytest.mark.parametrize(
  'words, expected',
  [
    (('stear',), "there is no verb 'stear' (did you mean 'steer'?)"),
    (('help', 'confg'), "there is no verb 'confg' (did you mean 'config'?)"),
    (('--config=quickstart', 'steer'), 'the verb comes first'),
    (('steer', '--wrokdir=x'), 'has no flag --wrokdir (did you mean --workdir?)'),
    (('steer', '--nodry_rnu'), 'has no flag --nodry_rnu'),
    (('steer', '--rank=8'), 'has no flag --rank (did you mean --config.finetune.rank?)'),
    (('steer', 'quickstart'), "unexpected argument 'quickstart'"),
    (('steer', '--workdir'), '--workdir has no value'),
    (('steer',), 'weightsteer steer needs --config'),
    (('score', '--model=organism'), 'weightsteer score needs --input and --output'),
    (('steer', '--config=quikstart'), "no config 'quikstart' (did you mean 'quickstart'?)"),
    (('steer', '--config', 'configs/quickstart.py'), '--config=quickstart'),
    (('steer', '--config=x/own_dat.py'), "no file 'x/own_dat.py' (did you mean 'own_data'?)"),
    (
      (*QUICKSTART, '--config.finetune.rnak=4'),
      "there is no config key 'finetune.rnak' (did you mean 'finetune.rank'?)",
    ),
    ((*QUICKSTART, '--config.rank', '4'), "'rank' (did you mean 'finetune.rank'?)"),
    ((*QUICKSTART, '--config.finetune.rank.x=4'), "'finetune.rank' is a value"),
    ((*QUICKSTART, '--config.tasks.facts.itemz=4'), "(did you mean 'tasks.facts.items'?)"),
    ((*QUICKSTART, '--noconfig.data.truncat'), "(did you mean 'data.truncate'?)"),
    (('generate', '--model=organism'), "expected --prompt='...'"),
    (('generate', '--model=m', '--prompt=a', '--input=b'), 'goes without --input'),
    (('export', '--format=hf', '--alpha=1'), '--direction, --base, --output must be given'),
    (('combine', '--output=o'), 'give --terms=FOLDER:WEIGHT,.. or --recipe=FILE'),
    (('combine', '--output=o', '--recipe=r', '--rank=2'), '--rank goes with --terms'),
    (('serve', '--model=organism', '--port=99999'), '--port=99999'),
    (('chat', '--model=m', '--direction=a=x', '--alpha=b=1'), "no direction 'b'; there are a"),
    (('chat', '--model=m', '--direction=a', '--direction=x/a'), "the name 'a' is given twice"),
    (('export', '--format=hff'), 'orbax-unmerged, peft, gguf (did you mean \'hf\'?)'),
    (('score', '--model=m', '--input=a', '--output=b', '--batch_size=x'), '--batch_size=x'),
  ],
)
def test_a_mistake_is_one_line(words, expected, tmp_path):
  status, said, errors, heavy = weightsteer(*words, cwd=tmp_path)
  assert (status, said, heavy) == (65, '', [])
  assert expected in errors and errors.startswith('error: ') and errors.count('\n') == 0
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'flag, expected',
  [
    ('--config.tasks.fakts.n=3', "no entry 'fakts' (did you mean 'facts'?)"),
    ('--config.finetune.rank=many', '--config.finetune.rank=many: expected a whole number'),
    ('--config.data.truncate=maybe', '--config.data.truncate=maybe: expected true or false'),
    ('--noconfig.finetune.rank', 'expected --config.finetune.rank=VALUE'),
    (
      '--config.sweep.alphas=(-1.0, zero)',
      "'sweep.alphas' is '(-1.0, zero)', expected numbers, as in (0.5, 1.0)",
    ),
    ('--config.sweep=3', '--config.sweep=3: expected a section as a JSON object'),
    ('--config.tasks.get.n=3', "no entry 'get'"),
    ('--config.model.dtype=bfloat61', "expected one of float32, bfloat16 (did you mean 'bfloat16'"),
  ],
)
def test_a_value_or_an_entry_that_the_config_refuses_is_told_without_jax(flag, expected):
  status, _, errors, heavy = weightsteer(*QUICKSTART, flag)
  assert status == 65 and expected in errors and errors.count('\n') == 0
  assert 'jax' not in heavy and 'transformers' not in heavy


@pytest.mark.parametrize(
  'text, expected',
  [
    ('c = configs.base_config()\n  c.nmae = 1\n  return c', "'nmae'.*did you mean 'name'"),
    ('return configs', r'get_config\(\) returned <module'),
    ('return configs.base_config().nmae', r'mine.py, line 3: AttributeError.*nmae'),
    ('return nothing', r"mine.py, line 2: NameError: name 'nothing'"),
    ('return int("x")', r'mine.py, line 2: .*invalid literal'),
    ('return (', r'mine.py, line 2: SyntaxError'),
    (
      "c = configs.base_config()\n  c.tasks.a = configs.task(kind='chioce')\n  return c",
      r"tasks.a.kind' is 'chioce'.*did you mean 'choice'",
    ),
  ],
)
def test_what_is_wrong_in_a_config_file_is_told_with_its_line(text, expected, tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(f'def get_config():\n  {text}\n')
  if 'configs' in text:
    file.write_text(f'from weightsteer_jax import config as configs\ndef get_config():\n  {text}\n')
  status, _, errors, _ = weightsteer('steer', '--config=mine.py', cwd=tmp_path)
  assert status == 65 and 'Traceback' not in errors and errors.count('\n') == 0
  assert re.search(expected, errors), errors


def test_flags_may_stand_in_any_order_and_without_an_equals_sign(tmp_path):
  words = ('--config.finetune.rank', '7', '--config', 'quickstart', '--dry_run', '--help')
  status, said, _, _ = weightsteer('steer', *words, cwd=tmp_path)
  assert status == 0 and '\n* rank = 7 ' in said


@pytest.mark.parametrize(
  'word, expected',
  [
    ('--workdir=~/run', '/home/me/run'),
    ('--workdir=~', '/home/me'),
    ('--workdir=~me/run', '~me/run'),
    ('--workdir=runs/~/a', 'runs/~/a'),
    ('--direction=calm=~/run', 'calm=/home/me/run'),
    ('--runs=~/a,b,~/c', '/home/me/a,b,/home/me/c'),
    ('--prompt=~/a', '~/a'),
    ('--config.data.positive=~/p.jsonl', '/home/me/p.jsonl'),
    ('--config.data.positive_prompts=Be kind,~/always', 'Be kind,~/always'),
  ],
)
def test_a_tilde_is_the_home_folder_also_behind_an_equals_sign(word, expected, monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  monkeypatch.setattr(flags, 'FLAGS', flags.FlagValues())
  for name in ('config', 'workdir', 'direction', 'runs', 'prompt'):
    flags.DEFINE_string(name, None, 'A flag.', flag_values=flags.FLAGS)
  for words in ([word], word.split('=', 1)):
    [given] = arguments.read(words, 'weightsteer x')
    assert given.value == expected and given.words[-1].endswith(expected)


def test_a_shipped_config_is_found_by_name_and_hands_its_argument_on(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert shipped.find('quickstart') == str(shipped.folder() / 'quickstart.py')
  assert shipped.find('preflight:Llama-2-7B').endswith('preflight.py:Llama-2-7B')
  # A file of one's own comes before a shipped name.
  mine = tmp_path / 'quickstart'
  mine.write_text('')
  assert shipped.find(str(mine)) == str(mine)
  with pytest.raises(InputError, match='--config=preflight:x'):
    shipped.find('configs/preflight.py:x')


def test_keys_are_those_of_all_kinds_and_free_ones_are_let_through():
  right = (
    'finetune.rank',
    'tasks.any.top_p',
    'judges.j.price_in',
    'model.chat_template_args.anything',
    'arms.a',
  )
  assert [config_keys.problem(path) for path in right] == [''] * len(right)
  assert config_keys.is_boolean('data.truncate') and not config_keys.is_boolean('finetune.rank')
  assert config_keys.is_boolean('tasks.any.judge_thoughts')


def test_every_key_can_be_a_flag_also_where_its_name_is_a_method_of_config_dicts(tmp_path):
  flag = '--config.tasks.behaviour.items=mine.jsonl'
  status, said, errors, _ = weightsteer('steer', '--config=own_data', flag, '--help', cwd=tmp_path)
  assert (status, errors) == (0, '') and "items = 'mine.jsonl'" in said
  # One value stands for several; further keys are free below chat_template_args.
  words = (
    '--config.finetune.targets=q_proj',
    '--config.finetune.learning_rates=1e-5,2e-5',
    '--config.model.chat_template_args.items=true',
    '--config.data.truncate',
  )
  _, said, _, _ = weightsteer('steer', '--config=own_data', *words, '--help', cwd=tmp_path)
  for shown in (
    "targets = ('q_proj',)",
    'learning_rates = (1e-05, 2e-05)',
    "chat_template_args = {'items': True}",
    'truncate = True',
  ):
    assert shown in said
  # A wrong key beside it is still told, not the key whose name is a method.
  status, _, errors, _ = weightsteer('steer', '--config=own_data', flag, '--config.seed=x')
  assert status == 65 and 'seed=x' in errors


def test_a_text_is_one_value_whatever_its_commas():
  config = ml_collections.ConfigDict({'data': {'positive_prompts': ()}}).lock()
  for text, expected in (
    ('Be kind, always.', ('Be kind, always.',)),
    ('["Be kind, always.", "Be calm."]', ('Be kind, always.', 'Be calm.')),
    ("('a', 'b')", ('a', 'b')),
    ('7', ('7',)),
    ('', ()),
  ):
    config_changes.apply([Change('data.positive_prompts', text, '--config')], config)
    assert config.data.positive_prompts == expected
  late = [Change('data.positive_prompts', 'a', '--x'), Change('data', '{}', '--y')]
  with pytest.raises(InputError, match='--y would undo --x: give it first'):
    config_changes.apply(late, config)
