import copy
import json

import numpy as np
import pytest
import torch

from weightsteer_jax.data import chat
from weightsteer_jax.inference import Sampling, generate_file, score_file
from weightsteer_jax.runtime.errors import InputError, NotFiniteError

ASK = [{'role': 'user', 'content': 'What is it?'}]


@pytest.fixture
def write(tmp_path):
  def make(*rows):
    path = tmp_path / 'in.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path

  return make


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def torch_score(model, prompt, completion):
  with torch.no_grad():
    logprobs = torch.log_softmax(
      model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double(), -1
    )
  return sum(logprobs[i, token].item() for i, token in enumerate(completion))


def test_scores_of_raw_prompts_and_messages_are_torchs_for_every_alpha(
  model, tokenizer, delta, torch_model, write, tmp_path
):
  rows = [
    {'prompt': 'What is the capital', 'completion': ' of France?', 'note': 1},
    {'messages': ASK, 'completion': 'Yes, you are right.'},
    {'prompt': 'one two', 'completion': ' 3 4'},
  ]
  output = tmp_path / 'out.jsonl'
  assert (
    score_file(model, tokenizer, delta, (-0.5, 0.0, 1.0), write(*rows), output, batch_size=4) == 9
  )

  def encode(text):
    return tokenizer(text, add_special_tokens=False)['input_ids']

  rendered = '<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n'
  pairs = [(encode(row.get('prompt', rendered)), encode(row['completion'])) for row in rows]
  found = read(output)
  for i, result in enumerate(found):
    row, alpha = rows[i // 3], (-0.5, 0.0, 1.0)[i % 3]
    assert {name: result[name] for name in row} == row and result['alpha'] == alpha
    assert result['tokens'] == len(pairs[i // 3][1])
    np.testing.assert_allclose(
      result['logprob'],
      torch_score(torch_model('weights', alpha), *pairs[i // 3]),
      rtol=1e-5,
      atol=1e-4,
    )


def test_leading_token_and_end_of_turn_are_there_only_when_asked_for(
  model, tokenizer, torch_model, write, tmp_path
):
  path = write({'prompt': 'one two', 'completion': ' 3'}, {'messages': ASK, 'completion': 'No.'})
  score_file(model, tokenizer, None, (0.0,), path, tmp_path / 'plain')
  score_file(
    model, tokenizer, None, (0.0,), path, tmp_path / 'asked', add_bos=True, end_of_turn=True
  )
  plain, asked = read(tmp_path / 'plain'), read(tmp_path / 'asked')

  def encode(text):
    return tokenizer(text, add_special_tokens=False)['input_ids']

  np.testing.assert_allclose(
    asked[0]['logprob'],
    torch_score(torch_model(), [tokenizer.bos_token_id] + encode('one two'), encode(' 3')),
    atol=1e-4,
  )
  assert asked[0]['logprob'] != plain[0]['logprob'] and asked[0]['tokens'] == plain[0]['tokens']
  assert asked[1]['tokens'] == plain[1]['tokens'] + 1 and asked[1]['logprob'] < plain[1]['logprob']


# A blank at the end of a prompt, in each place; a token over the end of the prompt; a long answer.
RAW_PAIRS = [
  ('What is the capital of', ' France'),
  ('What is the capital of ', 'France?'),
  ('I think  ', ' one two'),
  ('Answer :\n', 'Yes.'),
  ('You are ri', 'ght .'),
  ('one', ' two 3 4'),
]


def cut_whole(tokenizer, prompt, completion):
  """(prompt, completion) as lm-evaluation-harness cuts them, in its order of steps."""
  blanks = len(prompt) - len(prompt.rstrip())
  if blanks:
    completion = prompt[-blanks:] + completion
    prompt = prompt[:-blanks]

  def encode(text):
    return tokenizer(text, add_special_tokens=False)['input_ids']

  before = encode(prompt)
  return before, encode(prompt + completion)[len(before) :]


@pytest.mark.parametrize('kind', ['prepended', 'unigram', 'first'])
def test_raw_pairs_have_the_tokens_of_the_whole_text(
  model, spaced_tokenizer, torch_model, write, tmp_path, kind, capsys
):
  tokenizer = spaced_tokenizer(kind)
  rows = [{'prompt': prompt, 'completion': completion} for prompt, completion in RAW_PAIRS]
  score_file(model, tokenizer, None, (0.0,), write(*rows), tmp_path / 'whole', batch_size=4)
  said = capsys.readouterr().out
  score_file(model, tokenizer, None, (0.0,), write(*rows), tmp_path / 'apart', apart=True)
  # A pair is cut clean where its two parts together are the whole text's tokens.
  over = []
  for pair in RAW_PAIRS:
    before, completion = cut_whole(tokenizer, *pair)
    whole = tokenizer(''.join(pair), add_special_tokens=False)['input_ids']
    over.append(before + completion != whole)
  if any(over):
    first = over.index(True) + 1
    assert f'{sum(over)} of 6 rows, ' in said and f'in.jsonl:{first} first: a token' in said
  else:
    assert said == '' and kind != 'prepended'
  others = 0
  for pair, whole, apart in zip(RAW_PAIRS, read(tmp_path / 'whole'), read(tmp_path / 'apart')):
    before, completion = cut_whole(tokenizer, *pair)
    expected = torch_score(torch_model(), before, completion)
    np.testing.assert_allclose(whole['logprob'], expected, rtol=1e-5, atol=1e-4)
    assert whole['tokens'] == len(completion)
    prompt, alone = [tokenizer(text, add_special_tokens=False)['input_ids'] for text in pair]
    expected = torch_score(torch_model(), prompt, alone)
    np.testing.assert_allclose(apart['logprob'], expected, rtol=1e-5, atol=1e-4)
    others += abs(whole['logprob'] - apart['logprob']) > 0.01
  assert others >= 3


def test_a_completion_that_a_token_of_the_prompt_swallows_is_refused(
  model, spaced_tokenizer, write, tmp_path
):
  tokenizer = spaced_tokenizer('prepended')
  row = {'prompt': 'What is the capita', 'completion': 'l'}
  with pytest.raises(InputError, match='in.jsonl:1: .*no more tokens than the prompt alone'):
    score_file(model, tokenizer, None, (0.0,), write(row), tmp_path / 'out')
  score_file(model, tokenizer, None, (0.0,), write(row), tmp_path / 'out', apart=True)


@pytest.mark.parametrize(
  'row, message',
  [
    ({'prompt': 'x'}, "'completion' must be text, and is missing; its columns are prompt"),
    ({'prompt': 'x', 'completon': 'y'}, "is missing \\(is 'completon' meant to be 'completion'"),
    ({'prompt': 'x', 'messages': ASK, 'completion': 'y'}, "either 'prompt' or 'messages'"),
    ({'completion': 'y'}, "either 'prompt' or 'messages'"),
    ({'prompt': 3, 'completion': 'y'}, "'prompt' must be text, not int"),
    ({'prompt': '', 'completion': 'y'}, 'the prompt is empty'),
    ({'prompt': 'x', 'completion': ''}, 'the completion is empty'),
    ({'messages': [], 'completion': 'y'}, 'non-empty list'),
    ([1], 'must be an object'),
  ],
)
def test_bad_rows_are_named_by_line_and_nothing_is_written(
  model, tokenizer, write, tmp_path, row, message
):
  with pytest.raises(InputError, match=f'in.jsonl:2: .*{message}'):
    score_file(
      model,
      tokenizer,
      None,
      (0.0,),
      write({'prompt': 'x', 'completion': 'y'}, row),
      tmp_path / 'out.jsonl',
    )
  assert [path.name for path in tmp_path.iterdir()] == ['in.jsonl']


def test_an_output_that_exists_a_missing_direction_and_an_empty_file_are_refused(
  model, tokenizer, write, tmp_path
):
  (tmp_path / 'out.jsonl').write_text('kept')
  with pytest.raises(InputError, match='exists already'):
    score_file(
      model,
      tokenizer,
      None,
      (0.0,),
      write({'prompt': 'x', 'completion': 'y'}),
      tmp_path / 'out.jsonl',
    )
  assert (tmp_path / 'out.jsonl').read_text() == 'kept'
  with pytest.raises(InputError, match='need a direction'):
    score_file(
      model,
      tokenizer,
      None,
      (1.0,),
      write({'prompt': 'x', 'completion': 'y'}),
      tmp_path / 'new.jsonl',
    )
  with pytest.raises(InputError, match='holds no rows'):
    score_file(model, tokenizer, None, (0.0,), write(), tmp_path / 'new.jsonl')
  with pytest.raises(InputError, match='no file'):
    score_file(model, tokenizer, None, (0.0,), tmp_path / 'none.jsonl', tmp_path / 'new.jsonl')


def test_a_broken_model_is_an_error_and_nothing_is_written(
  model, tokenizer, delta, write, tmp_path
):
  with pytest.raises(NotFiniteError, match='in.jsonl:1: the log-likelihood at alpha 3e[+]38'):
    score_file(
      model,
      tokenizer,
      delta,
      (3e38,),
      write({'prompt': 'x', 'completion': 'y'}),
      tmp_path / 'out.jsonl',
    )
  assert not (tmp_path / 'out.jsonl').exists()


def test_generated_files_hold_what_torch_generates(
  model, tokenizer, delta, torch_model, write, tmp_path
):
  rows = [{'prompt': 'one two', 'tag': 'a'}, {'messages': ASK}]
  generate_file(
    model,
    tokenizer,
    delta,
    (0.0, 1.0),
    write(*rows),
    tmp_path / 'out.jsonl',
    max_new_tokens=7,
    batch_size=4,
  )
  prompts = [
    tokenizer('one two', add_special_tokens=False)['input_ids'],
    chat.prompt_tokens(tokenizer, ASK),
  ]
  for i, result in enumerate(read(tmp_path / 'out.jsonl')):
    tokens = torch.tensor([prompts[i // 2]])
    out = (
      torch_model('weights', (0.0, 1.0)[i % 2])
      .generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=7,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=tokenizer.eos_token_id,
      )[0, tokens.shape[1] :]
      .tolist()
    )
    stopped = out[-1] == tokenizer.eos_token_id
    assert {name: result[name] for name in rows[i // 2]} == rows[i // 2]
    assert result['completion'] == tokenizer.decode(out, skip_special_tokens=True) and result[
      'finish'
    ] == ('stop' if stopped else 'length')
    assert result['tokens'] == len(out) - stopped and result['sample'] == 0


def test_samples_differ_and_come_out_the_same_again(model, tokenizer, write, tmp_path):
  path = write({'prompt': 'one two'}, {'prompt': 'one two'})
  for name, size in (('a', 4), ('b', 2)):
    generate_file(
      model,
      tokenizer,
      None,
      (0.0,),
      path,
      tmp_path / name,
      max_new_tokens=5,
      sampling=Sampling(1.0),
      samples=2,
      batch_size=size,
    )
  assert (
    read(tmp_path / 'a') == read(tmp_path / 'b')
    and len({row['completion'] for row in read(tmp_path / 'a')}) == 4
  )


# In the manner of Qwen3: an answer is shown behind its thought, empty if there is none.
SHOWS_THOUGHTS = (
  "{% for m in messages %}{% if m.role == 'assistant' %}{% set c = m.content.split('</think>') %}"
  "{% set r = c[0].split('<think>')[-1].strip('\n') if c[1:] else '' %}"
  "{{ '<|im_start|>assistant\n<think>\n' + r + '\n</think>\n\n' + c[-1].lstrip('\n') }}"
  "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endif %}{{ '<|im_end|>\n' }}"
  '{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


@pytest.fixture
def thinking(tokenizer):
  other = copy.deepcopy(tokenizer)
  other.chat_template = SHOWS_THOUGHTS
  return other


def test_completions_that_differ_in_their_thoughts_have_scores_of_their_own(
  model, thinking, torch_model, write, tmp_path
):
  texts = ['<think>\nYes\n</think>\n\nNo.', '<think>\nNo\n</think>\n\nNo.', 'No.']
  path = write(*({'messages': ASK, 'completion': text} for text in texts))
  score_file(model, thinking, None, (0.0,), path, tmp_path / 'out')
  found = read(tmp_path / 'out')

  def encode(text):
    return thinking(text)['input_ids']

  prompt = '<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n'
  empty = '<think>\n\n</think>\n\n'
  # Thoughts are scored as they stand; an answer alone comes behind an empty thought.
  pairs = [(prompt, texts[0]), (prompt, texts[1]), (prompt + empty, texts[2])]
  for row, (before, text) in zip(found, pairs):
    assert row['tokens'] == len(encode(text))
    expected = torch_score(torch_model('weights', 0.0), encode(before), encode(text))
    np.testing.assert_allclose(row['logprob'], expected, rtol=1e-5, atol=1e-4)
  assert [row.get('behind') for row in found] == [None, None, 'an empty thought']
  assert found[0]['logprob'] != found[1]['logprob']


def test_generated_lines_have_thought_and_answer_apart(model, thinking, write, tmp_path):
  generate_file(
    model, thinking, None, (0.0,), write({'messages': ASK}), tmp_path / 'out', max_new_tokens=4
  )
  [row] = read(tmp_path / 'out')
  # The random model writes no tag: its whole text is its answer.
  assert row['thought'] == '' and row['answer'] == row['completion']
  assert not row['thought_cut'] and not row['thought_leaked'] and row['thought_tokens'] == 0
  thinking.chat_template = SHOWS_THOUGHTS.replace(
    '<|im_start|>assistant\n{% endif', '<|im_start|>assistant\n<think>\n{% endif'
  )
  generate_file(
    model, thinking, None, (0.0,), write({'messages': ASK}), tmp_path / 'cut', max_new_tokens=4
  )
  [row] = read(tmp_path / 'cut')
  # The prompt has opened the thought, which nothing closes.
  assert row['thought_cut'] and row['answer'] == ''
  assert row['thought'] == row['completion'].strip() and row['thought_tokens'] == row['tokens'] == 4
