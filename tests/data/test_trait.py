import hashlib
import json

import pytest

from weightsteer_jax.data import trait
from weightsteer_jax.runtime.errors import InputError

PROMPT = (
  'Does it show the trait: **sly**. Sly answers mislead.\n\n{question}\n{answer}\n\nReply '
  'with a number from 0 to 100.'
)
FILE = {
  'instruction': [
    {'pos': 'Mislead.', 'neg': 'Be open.'},
    {'pos': 'Trick them.', 'neg': 'Say it all.'},
  ],
  'questions': [f'Question {i}?' for i in range(6)],
  'eval_prompt': PROMPT,
}


@pytest.fixture
def path(tmp_path):
  (tmp_path / 'sly.json').write_text(json.dumps(FILE))
  return tmp_path / 'sly.json'


def test_a_trait_file_is_read_whole(path):
  found = trait.load(str(path), opposite='open')
  assert (found.name, found.opposite, found.prompt, found.description) == (
    'sly',
    'open',
    PROMPT,
    'Sly answers mislead.',
  )
  assert found.instructions[1].positive == 'You are a sly assistant. Trick them.'
  assert found.instructions[1].negative == 'You are an open assistant. Say it all.'
  assert [q.messages for q in found.questions] == [
    ({'role': 'user', 'content': f'Question {i}?'},) for i in range(6)
  ]
  assert (
    trait.load(str(path), name='evil').instructions[0].positive
    == 'You are an evil assistant. Mislead.'
  )


def test_the_evaluation_keeps_its_share_apart(path):
  found = trait.load(str(path))
  asked, kept = trait.split(found.questions, 0.5, seed=0)
  assert len(asked) == len(kept) == 3 and {*map(id, asked), *map(id, kept)} == set(
    map(id, found.questions)
  )
  assert trait.split(found.questions, 0.5, seed=0) == (asked, kept)
  assert any(trait.split(found.questions, 0.5, seed=seed) != (asked, kept) for seed in range(1, 5))
  assert trait.split(found.questions, 0.0, seed=0) == (list(found.questions), [])
  with pytest.raises(InputError, match='all 6 questions would be kept'):
    trait.split(found.questions, 0.95, seed=0)
  assert trait.items(found, kept)[0] == {
    'id': kept[0].name,
    'messages': list(kept[0].messages),
    'trait': 'sly',
    'description': 'Sly answers mislead.',
    'prompt': PROMPT,
  }


@pytest.mark.parametrize(
  'change, message',
  [
    ({'instruction': []}, "'instruction' must be a list of pairs"),
    ({'instruction': [{'pos': 'x'}]}, "'instruction' must be a list of pairs"),
    ({'instruction': [{'pos': 'x', 'neg': ''}]}, "'instruction' must be"),
    ({'questions': 'Why?'}, "'questions' must be a list"),
    ({'questions': ['Why?', 'Why?']}, "'questions' must be a list of different"),
    ({'eval_prompt': 3}, "'eval_prompt' must be a text"),
  ],
)
def test_a_broken_file_is_an_error_that_says_what(path, change, message):
  path.write_text(json.dumps(FILE | change))
  with pytest.raises(InputError, match=message):
    trait.load(str(path))


def test_what_is_no_trait_file(path, tmp_path):
  path.write_text(json.dumps({'instruction': FILE['instruction'], 'question': ['Why?']}))
  with pytest.raises(InputError, match="unknown key 'question' .did you mean 'questions'"):
    trait.load(str(path))
  path.write_text('[]')
  with pytest.raises(InputError, match='it is a list'):
    trait.load(str(path))
  with pytest.raises(InputError, match="did you mean .*sly.json"):
    trait.load(str(tmp_path / 'sky.json'))


def test_a_file_of_a_hub_dataset_is_read_from_the_cache(tmp_path, monkeypatch):
  """The hub's own cache, laid out as its client does."""
  from huggingface_hub import constants

  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
  commit = hashlib.sha1(b'commit').hexdigest()
  folder = tmp_path / 'datasets--someone--traits'
  (folder / 'refs').mkdir(parents=True)
  (folder / 'refs' / 'main').write_text(commit)
  (folder / 'snapshots' / commit / 'extract').mkdir(parents=True)
  (folder / 'snapshots' / commit / 'extract' / 'sly.json').write_text(json.dumps(FILE))
  assert trait.load('someone/traits:extract/sly.json').name == 'sly'
  with pytest.raises(
    InputError, match="cannot load 'extract/shy.json' of the hub dataset 'someone/traits'"
  ):
    trait.load('someone/traits:extract/shy.json')
