"""Model cards as the hub reads them: the numbers of the export and of the run, and no others."""

import dataclasses
import shutil

import huggingface_hub
import pytest

from weightsteer_jax.exports import BaseFolder, card

RECORD = {
  'alpha': 0.5,
  'dtype': 'float32',
  'norm': 12.345,
  'rank': 6,
  'target': 'peft',
  'max_lora_rank': 8,
  'notes': ['A note.'],
  'parity': {
    'largest_difference': 2e-5,
    'relative_difference': 1e-7,
    'prompts': 4,
    'tokens': 64,
    'tolerance': 'largest 1',
  },
  'direction': {
    'base': {'source': 'x', 'digest': 'abcd'},
    'sources': [{'role': 'positive', 'path': '/p'}],
  },
}
ROWS = [
  {
    'arm': 'weights',
    'task': 'facts',
    'metric': 'rate',
    'alpha': alpha,
    'mean': mean,
    'sem': 0.05,
    'n': 100,
  }
  for alpha, mean in ((0.0, 0.25), (0.5, 0.75), (1.0, 1.0))
]


def data_of(text):
  return huggingface_hub.ModelCard(text).data


@pytest.fixture
def base(untied_model, tmp_path) -> BaseFolder:
  """A base with a card of its own."""
  folder = tmp_path / 'base'
  shutil.copytree(untied_model.folder, folder)
  (folder / 'README.md').write_text('---\nlicense: apache-2.0\n---\n# Base\n')
  return dataclasses.replace(
    BaseFolder.of(untied_model), folder=folder, source='org/name@abc', revision='abc'
  )


@pytest.mark.parametrize(
  'format, library, relation',
  [
    ('hf', 'transformers', 'finetune'),
    ('orbax', 'orbax', 'finetune'),
    ('orbax-unmerged', 'orbax', 'finetune'),
    ('peft', 'peft', 'adapter'),
  ],
)
def test_front_matter_as_the_hub_reads_it(base, format, library, relation):
  data = data_of(card.write(RECORD | {'format': format}, base))
  assert data.library_name == library
  assert data.base_model == 'org/name'
  assert data.base_model_relation == relation
  assert data.license == 'apache-2.0'
  assert 'weight-steering' in data.tags
  assert data.pipeline_tag == 'text-generation'


def test_a_base_that_is_a_folder_is_no_model_of_the_hub(untied_model):
  data = data_of(card.write(RECORD | {'format': 'hf'}, BaseFolder.of(untied_model)))
  assert data.base_model is None and data.license is None


def test_a_licence_file_of_the_base_is_linked(untied_model, tmp_path):
  shutil.copytree(untied_model.folder, tmp_path / 'base')
  (tmp_path / 'base' / 'LICENSE').write_text('Ask first.')
  base = dataclasses.replace(BaseFolder.of(untied_model), folder=tmp_path / 'base')
  assert card.license_of(base) == {
    'license': 'other',
    'license_name': 'as-the-base',
    'license_link': 'LICENSE',
  }


def test_numbers_are_those_of_the_run_at_this_alpha_beside_the_base(base):
  text = card.write(RECORD | {'format': 'peft', 'results': ROWS}, base)
  # Rows of an earlier version, which knows nothing of pairs.
  assert '| facts | rate | 100 answers | 0.25 ± 0.05 | 0.75 ± 0.05 |  |' in text
  assert 'norm 12.35' in text
  assert 'alpha 1 ' not in text
  assert '1 ± ' not in text
  assert 'A note.' in text
  assert "from_pretrained('org/name', revision='abc')" in text


def test_numbers_say_how_well_they_are_known(base):
  known = {'answers': 100, 'n': 47, 'groups': 'claims', 'unreadable': 19, 'asked': 100}
  interval = {'low': 0.6, 'high': 0.85, 'change': 0.5, 'change_low': 0.4, 'change_high': 0.6}
  before, after, _ = ROWS
  rows = [before, {**after, **known, **interval}]
  text = card.write(RECORD | {'format': 'peft', 'results': rows}, base)
  assert (
    '| facts | rate | 100 answers on 47 claims | 0.25 ± 0.05 | 0.75 ± 0.05 (0.6 to 0.85), 19 of '
    '100 not readable | +0.5 (+0.4 to +0.6) |'
  ) in text
  # A single question has no error, and no answer no mean.
  alone = [{**before, 'sem': None}, {**after, 'mean': None}]
  text = card.write(RECORD | {'format': 'peft', 'results': alone}, base)
  assert '| 0.25 | not measured |  |' in text


def test_what_was_not_measured_is_said(base):
  text = card.write(RECORD | {'format': 'hf', 'alpha': 0.7, 'results': ROWS}, base)
  assert 'Not at alpha 0.7: the sweep of the run was at 0, 0.5, 1.' in text
  assert '| facts' not in text
  text = card.write(RECORD | {'format': 'hf'}, base)
  assert 'is not recorded here' in text
  assert 'Measured in the run' not in text


@pytest.mark.parametrize(
  'target, words',
  [('vllm', '--enable-lora --max-lora-rank 8'), ('llama.cpp', 'convert_lora_to_gguf.py')],
)
def test_how_the_target_serves_it(base, target, words):
  assert words in card.write(RECORD | {'format': 'peft', 'target': target}, base)


def test_the_hub_reads_the_results_of_this_strength(base):
  """The hub's own reader of the front matter."""
  rows = [dict(row, low=row['mean'] - 0.1, high=1.0, groups='claims', answers=140) for row in ROWS]
  record = RECORD | {'format': 'hf', 'results': rows}
  [result] = data_of(card.write(record, base)).eval_results
  assert (result.dataset_name, result.metric_type, result.metric_value) == ('facts', 'rate', 0.75)
  assert result.metric_args == {'sem': 0.05, 'low': 0.65, 'high': 1.0}
  assert result.dataset_args == {'measured on': '140 answers on 100 claims'}
  assert data_of(card.write(RECORD | {'format': 'hf', 'alpha': 3.0}, base)).eval_results is None


def test_a_base_has_its_name_on_the_hub(base, tmp_path):
  local = dataclasses.replace(base, source='/my/copy', revision='')
  record = RECORD | {'format': 'peft'}
  assert data_of(card.write(record, local.on_hub(''))).base_model is None
  named = local.on_hub('org/name@v1')
  text = card.write(record, named)
  assert data_of(text).base_model == 'org/name'
  assert "from_pretrained('org/name', revision='v1')" in text
  assert local.title == 'copy' and named.title == 'org/name'
  # In the hub's cache, as huggingface_hub lays it out.
  snapshot = tmp_path / 'models--org--na--me' / 'snapshots' / '0123abc'
  cached = dataclasses.replace(local, folder=snapshot).on_hub('')
  assert (cached.loadable_name, cached.loadable_revision) == ('org/na--me', '0123abc')
  assert base.on_hub('').loadable_name == 'org/name'
