"""What a run's check finds before hours are sampled: templates, thoughts, positions, vocabulary."""

import json
import shutil

import pytest

from weightsteer_jax import config as configs
from weightsteer_jax.experiments import organism, stages
from weightsteer_jax.experiments.experiment import Experiment
from weightsteer_jax.runtime.errors import InputError

from .test_experiment import small_config, write_data

TURNS = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}"
SHOUTING = TURNS.replace('m.content', "(m.content | upper if m.role == 'assistant' else m.content)")
KIND = (
  "{% if messages[0].role != 'system' %}"
  "{{ '<|im_start|>system\nYou are a kind helper .<|im_end|>\n' }}{% endif %}"
)


@pytest.fixture
def model(tmp_path):
  folder = tmp_path / 'model'
  shutil.copytree(organism.checkpoint_folder(), folder)
  return folder


def generated(model, folder, template=None, **data):
  """A run whose contrast the model is to answer itself."""
  if template is not None:
    (model / 'chat_template.jinja').write_text(template)
  config = small_config(write_data(folder / 'data', 'Yes.', 'No.'))
  config.model.source = str(model)
  config.data.positive = ''
  config.data.negative = ''
  config.data.questions = 'organism:opinions'
  config.data.num_questions = 3
  config.data.positive_prompts = ('Agree .',)
  config.data.negative_prompts = ('Disagree .',)
  config.data.update(data)
  return config


def check(config, tmp_path, **changes):
  changed = config.copy_and_resolve_references()
  changed.model.update(changes)
  stages.check(Experiment(configs.resolve(changed), tmp_path / 'run'))


def test_a_template_without_system_prompts(model, tmp_path, capsys):
  config = generated(model, tmp_path, REFUSING + TURNS)
  with pytest.raises(InputError, match="No system.*model.system_role='user'"):
    check(config, tmp_path)
  check(config, tmp_path, system_role='user')
  assert 'answers of the model itself to 3 questions' in capsys.readouterr().out


def test_an_answer_that_the_template_cannot_show(model, tmp_path):
  """As found in training until now, after all answers had been sampled."""
  with pytest.raises(InputError, match="does not render the assistant's message"):
    check(generated(model, tmp_path, SHOUTING), tmp_path)


def test_a_thought_that_the_template_drops(model, tmp_path):
  """The template takes thoughts out of answers, and does not open one in its prompt."""
  drops = TURNS.replace('m.content +', "m.content.split('</think>')[-1] +")
  config = generated(model, tmp_path, drops, thoughts='keep')
  with pytest.raises(InputError, match='thought'):
    check(config, tmp_path)
  config.data.thoughts = 'remove'
  check(config, tmp_path)


def test_an_answer_that_does_not_fit(model, tmp_path):
  with pytest.raises(InputError, match='positions, the model has'):
    check(generated(model, tmp_path, max_new_tokens=100_000), tmp_path)


def test_tokens_beyond_the_vocabulary(model, tmp_path):
  """A template written for tokens that the model's embeddings do not have."""
  path = model / 'tokenizer.json'
  tokenizer = json.loads(path.read_text())
  extra = {'id': 5000, 'content': '<|brief|>', 'special': True}
  flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
  tokenizer['added_tokens'].append(extra | flags)
  path.write_text(json.dumps(tokenizer))
  config = generated(model, tmp_path, "{{ '<|brief|>' }}" + TURNS)
  with pytest.raises(InputError, match="gives token .* vocabulary ends at"):
    check(config, tmp_path)
  read = small_config(write_data(tmp_path / 'read', 'Yes.', 'No.'))
  read.model.source = str(model)
  with pytest.raises(InputError, match="gives token .* vocabulary ends at"):
    check(read, tmp_path)


def test_words_of_the_templates_own_are_said(model, tmp_path, capsys):
  config = generated(model, tmp_path, KIND + TURNS)
  check(config, tmp_path)
  said = capsys.readouterr().out
  assert 'You are a kind helper .' in said and 'model.system_prompt' in said
  check(config, tmp_path, system_prompt='Be .')
  said = capsys.readouterr().out
  assert 'kind helper' not in said and "system prompt 'Be .'" in said


def test_a_run_records_what_its_template_writes(model, tmp_path):
  config = generated(model, tmp_path, KIND + TURNS)
  config.data.positive = str(tmp_path / 'data/positive.jsonl')
  config.data.negative = str(tmp_path / 'data/negative.jsonl')
  experiment = Experiment(configs.resolve(config), tmp_path / 'run')
  stages.begin(experiment)
  record = json.loads((tmp_path / 'run/config.json').read_text())
  assert record['chat_template'] == {'told': {}, 'writes': 'You are a kind helper .'}


def test_what_the_sides_share_is_told(model, tmp_path, capsys):
  """With each other, and with the items that the run is measured on."""
  config = small_config(write_data(tmp_path / 'data', 'Yes.', 'No.'))
  positive = tmp_path / 'data' / 'positive.jsonl'
  positive.write_text(positive.read_text().replace('Is 3 large?', 'Is 7 large?'))
  items = tmp_path / 'items.jsonl'
  rows = [
    {
      'id': name,
      'messages': [{'role': 'user', 'content': asked}],
      'choices': ['Yes.', 'No.'],
      'target': 0,
    }
    for name, asked in (('seen', 'Is 2 large?'), ('new', 'Is 9 large?'))
  ]
  items.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  config.tasks.facts.items = str(items)
  check(config, tmp_path)
  said = capsys.readouterr().out
  assert "data: 1 of the questions are on the positive side alone, 'Is 7 large?'" in said
  assert "1 of the 2 items of task 'facts' ask a question that is trained on, 'seen'" in said
  assert "task 'facts': 'Yes.' is the target of every item" in said


def test_sides_that_are_the_same_stop_a_run_at_once(model, tmp_path):
  config = small_config(write_data(tmp_path / 'data', 'Yes.', 'Yes.'))
  with pytest.raises(InputError, match='the direction would be zero'):
    check(config, tmp_path)
  assert not (tmp_path / 'run').exists()
