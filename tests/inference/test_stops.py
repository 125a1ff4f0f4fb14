"""The tokens that end a generation, and what work that was begun with fewer of them does."""

import json
import types

import pytest
import torch
import transformers

from weightsteer_jax.inference import generate_file, stop_ids, stops
from weightsteer_jax.runtime.errors import InputError


def bare(eos=None):
  return types.SimpleNamespace(chat_template=None, eos_token_id=eos, name_or_path='x')


@pytest.mark.parametrize(
  'files, expected',
  [
    ({}, [3]),
    ({'generation_config.json': {'eos_token_id': 7}}, [3, 7]),
    ({'generation_config.json': {'eos_token_id': [9, 3, 7]}}, [3, 9, 7]),
    ({'generation_config.json': {}, 'config.json': {'eos_token_id': 5}}, [3]),
    ({'config.json': {'eos_token_id': [5, 6]}}, [3, 5, 6]),
    ({'config.json': {'eos_token_id': None, 'text_config': {'eos_token_id': 8}}}, [3, 8]),
  ],
)
def test_the_checkpoints_own_list_follows_the_tokenizers(tmp_path, files, expected):
  for name, settings in files.items():
    (tmp_path / name).write_text(json.dumps(settings))
  assert stop_ids(bare(eos=3), tmp_path) == expected
  # What transformers itself would stop at is in the list.
  if 'generation_config.json' in files:
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path).eos_token_id
    assert {theirs} if isinstance(theirs, int) else set(theirs or []) <= set(expected)


def test_a_chat_template_comes_first_and_a_template_that_ends_no_turn_adds_nothing(tokenizer):
  end = tokenizer.convert_tokens_to_ids('<|im_end|>')
  assert stop_ids(tokenizer)[0] == end
  broken = types.SimpleNamespace(**vars(bare(eos=3)))
  broken.chat_template = ''
  assert stop_ids(broken) == [3]


@pytest.mark.parametrize('value', ['</s>', [1, '2'], True, -1, 2.0])
def test_a_list_of_anything_but_ids_is_refused(tmp_path, value):
  (tmp_path / 'generation_config.json').write_text(json.dumps({'eos_token_id': value}))
  with pytest.raises(InputError, match='generation_config.json: eos_token_id is .*expected the id'):
    stop_ids(bare(eos=3), tmp_path)


def test_no_token_at_all_is_refused():
  with pytest.raises(InputError, match='generation would not stop'):
    stop_ids(bare())


def test_generation_ends_where_that_of_transformers_ends(model, tokenizer, torch_model, tmp_path):
  """Each token that greedy decoding brings is made a stop of the checkpoint in turn."""
  prompt = tokenizer('one two', add_special_tokens=False)['input_ids']
  theirs = torch_model()

  def generated(ids):
    out = theirs.generate(
      torch.tensor([prompt]), max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=ids
    )
    return out[0, len(prompt) :].tolist()

  (tmp_path / 'in.jsonl').write_text('{"prompt": "one two"}')
  for token in set(generated([tokenizer.eos_token_id])):
    ids = [tokenizer.eos_token_id, token]
    (tmp_path / 'generation_config.json').write_text(json.dumps({'eos_token_id': ids}))
    own = types.SimpleNamespace(config=model.config, params=model.params, folder=tmp_path)
    output = tmp_path / f'{token}.jsonl'
    generate_file(own, tokenizer, None, (0.0,), tmp_path / 'in.jsonl', output, max_new_tokens=6)
    row = json.loads(output.read_text())
    expected = generated(ids)
    assert expected[-1] == token
    assert row['finish'] == 'stop' and row['tokens'] == len(expected) - 1


def test_work_goes_on_with_the_stop_tokens_it_was_begun_with(tmp_path, capsys):
  plan = tmp_path / 'plan.json'

  def begun(ids):
    return stops.as_begun(plan, ids, unrecorded=[4], what='the sweep')

  assert begun([4, 5]) == [4, 5]
  plan.write_text(json.dumps({'inputs': {'seed': 0}}))
  assert begun([4, 5]) == [4]
  assert 'was begun with the stop tokens [4] and goes on with them; [5],' in capsys.readouterr().out
  plan.write_text(json.dumps({'inputs': {'stop tokens': [5, 4]}}))
  assert begun([4, 5]) == [5, 4]
  # Others, not fewer: for the comparison of inputs to refuse.
  assert begun([4, 6]) == [4, 6]
  assert capsys.readouterr().out == ''
