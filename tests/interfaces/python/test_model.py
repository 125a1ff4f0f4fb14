import json

import pytest
import torch
import transformers

import weightsteer_jax as ws
from interfaces.python.conftest import QUESTION
from weightsteer_jax.experiments import standalone
from weightsteer_jax.inference import programs
from weightsteer_jax.interfaces.python.texts import text_of

QUESTIONS = [QUESTION, 'Is a goat better than a cow?', 'Who are you?']


def test_a_steered_model_scores_as_torch_does_with_merged_weights(model, v, w, tmp_path):
  # The weights are merged and written by the export; torch computes with them.
  folder = ws.export(2 * v - w / 2, alpha=0.5, format='hf', output=tmp_path / 'merged', base=model)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  expected = []
  for question in QUESTIONS:
    asked = [{'role': 'user', 'content': question}]
    prompt = tokenizer.apply_chat_template(
      asked, add_generation_prompt=True, return_dict=False, tokenize=True
    )
    answer = tokenizer('A pony is better than a cat.', add_special_tokens=False).input_ids
    with torch.no_grad():
      logits = theirs(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    logprobs = torch.log_softmax(logits.double(), -1)
    expected.append(logprobs[range(len(answer)), answer].sum().item())
  conversations = [[{'role': 'user', 'content': question}] for question in QUESTIONS]
  steered = model.steer({v: 1.0}).steer(w, -0.25)
  scores = steered.logprob(conversations, 'A pony is better than a cat.')
  unsteered = model.logprob(conversations, 'A pony is better than a cat.')
  assert scores == pytest.approx(expected, rel=0, abs=1e-4)
  assert all(abs(score - plain) > 0.05 for score, plain in zip(scores, unsteered))


@pytest.fixture
def rows(tmp_path):
  """rows -> a jsonl file of them."""

  def write(*lines):
    path = tmp_path / 'in.jsonl'
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return path

  return write


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize('temperature', [0.0, 0.8])
def test_texts_are_those_of_the_command(model, v, direction_folder, rows, tmp_path, temperature):
  asked = rows(*({'messages': [{'role': 'user', 'content': text}]} for text in QUESTIONS))
  alphas = (-1.0, 0.0, 0.5)
  standalone.generate(
    'organism',
    asked,
    tmp_path / 'out.jsonl',
    direction=direction_folder(1),
    alphas=alphas,
    temperature=temperature,
    max_new_tokens=12,
    seed=3,
    batch_size=8,
  )
  table = model.sweep(v, alphas).chat(QUESTIONS, temperature=temperature, max_new_tokens=12, seed=3)
  lines = read(tmp_path / 'out.jsonl')
  for alpha, texts in table.items():
    theirs = [line for line in lines if line['alpha'] == alpha]
    assert texts == [line['completion'] for line in theirs]
    assert [text.finish for text in texts] == [line['finish'] for line in theirs]
    assert [text.tokens for text in texts] == [line['tokens'] for line in theirs]
  assert len({str(texts) for texts in table.values()}) == 3


def test_scores_are_those_of_the_command(model, v, direction_folder, rows, tmp_path):
  pairs = [('A pony is', ' better than a cat.'), ('A goat', ' is an animal.')]
  asked = rows(*({'prompt': prompt, 'completion': answer} for prompt, answer in pairs))
  standalone.score(
    'organism',
    asked,
    tmp_path / 'out.jsonl',
    direction=direction_folder(1),
    alphas=(-1.0, 2.0),
    batch_size=8,
  )
  table = model.sweep(v, [-1, 2]).logprob(*map(list, zip(*pairs)))
  lines = read(tmp_path / 'out.jsonl')
  for alpha, scores in table.items():
    assert scores == [line['logprob'] for line in lines if line['alpha'] == alpha]


def test_one_text_gives_one_and_a_list_a_list_in_order(model, v):
  steered = model.steer(v, 0.3)
  options = dict(max_new_tokens=6)
  prompts = ['A pony is', 'The goat', 'In my view a cow']
  texts = steered.generate(prompts, **options)
  assert texts == [steered.generate(prompt, **options) for prompt in prompts]
  assert isinstance(texts[0], str) and steered.generate([], **options) == []
  # A conversation is one conversation, in whichever way it is said.
  said = [{'role': 'user', 'content': QUESTION}]
  answer = steered.chat(QUESTION, **options)
  assert steered.chat(said, **options) == answer
  assert steered.chat([QUESTION, said], **options) == [answer, answer]
  assert answer.thought is None and answer.answer == answer and answer.tokens <= 6
  # One prompt with many completions, one completion with many prompts, and pairs.
  scores = steered.logprob('A pony is', [' big', ' small'])
  assert scores == [steered.logprob('A pony is', text) for text in (' big', ' small')]
  both = steered.logprob(['A pony is', said], ' big')
  assert both == pytest.approx([scores[0], steered.logprob(said, ' big')], abs=1e-5)


def test_strengths_add_up_and_zero_is_the_model_itself(model, v, w):
  asked = dict(prompt='A pony is', completion=' better than a cat.')
  once = model.steer(v, 1.5).logprob(**asked)
  assert model.steer(v, 2).steer(v, -0.5).logprob(**asked) == once
  assert model.steer({v: 0.0, w: 0.0}).logprob(**asked) == model.logprob(**asked)
  together = model.steer({v: 0.5, w: -1}).logprob(**asked)
  assert model.steer(v / 2 - w, 1).logprob(**asked) == pytest.approx(together, abs=1e-4)
  # A sweep adds to what the view has.
  table = model.steer(v, 0.5).sweep(w, [0, -1]).logprob(**asked)
  assert table[-1] == pytest.approx(together, abs=1e-5)
  assert table[0] == pytest.approx(model.steer(v, 0.5).logprob(**asked), abs=1e-5)


def test_draws_go_by_seed_and_place(model):
  options = dict(max_new_tokens=10, temperature=1.0)
  texts = model.generate(['The', 'The'], seed=1, **options)
  assert texts[0] != texts[1] and texts == model.generate(['The', 'The'], seed=1, **options)
  assert texts != model.generate(['The', 'The'], seed=2, **options)


def test_another_strength_or_direction_compiles_nothing(model, v, w):
  model.steer({v: 0.5, w: 1.0}).generate('A pony is', max_new_tokens=4)
  model.steer(v, 1).generate('A pony is', max_new_tokens=4)
  before = programs.traces.total()
  model.steer({w: -0.1, v: 3.0}).generate('A goat is', max_new_tokens=4)
  model.steer(w, -1).generate('A goat is', max_new_tokens=4)
  assert programs.traces.total() == before


def test_texts_of_many_lengths_share_few_programs(model):
  prompts = ['A pony is ' + 'red ' * count for count in (90, 1, 70)]
  session = ws.load('organism')
  before = programs.traces.total()
  texts = [session.generate(prompt, max_new_tokens=4) for prompt in prompts]
  # Prefill and decoding of the longest text's shape.
  assert programs.traces.total() <= before + 2
  assert texts == model.generate(prompts, max_new_tokens=4)


def test_lines_about_models_and_sweeps_are_short(model, v, w):
  steered = model.steer({v: 0.5, 2 * w - v: -1})
  assert repr(steered) == (
    'SteeredModel(organism, 1,297,024 parameters, float32, context of 512 tokens, '
    '+0.5 * random1, -1 * (2 * random2 - random1))'
  )
  assert repr(model.sweep(v, [-1, 0.5])).startswith('Sweep(random1 at -1, 0.5, of SteeredModel(')
  assert model.context_length == 512 and steered.strengths[v] == 0.5


def test_a_table_says_which_strengths_there_are(model, v):
  table = model.sweep(v, [-1, 0, -1]).logprob('A pony', [' is', ' was'])
  assert list(table) == [-1.0, 0.0] and len(table[0]) == 2
  assert '[1] ' in repr(table) and repr(table).count('\n') == 4
  with pytest.raises(KeyError, match='3; the strengths are -1, 0'):
    table[3]
  assert '<th>-1</th>' in table._repr_html_()


WRONG = {
  'no strength': (lambda m, w: m.steer(w), 'steer takes a direction and .*random1 without a str'),
  'a folder': (lambda m, w: m.steer('runs/x', 1), "got str 'runs/x'; .*load_direction"),
  'a list': (lambda m, w: m.steer([w], 1), 'steer takes a direction and a strength'),
  'turned': (lambda m, w: m.steer(1, w), 'steer takes a direction and a strength.*got int 1'),
  'both': (lambda m, w: m.steer({w: 1}, 1), 'got both a mapping and alpha=1'),
  'not a number': (lambda m, w: m.steer({w: 'x'}), "strength of random1 is a number; got str 'x'"),
  'not finite': (lambda m, w: m.steer(w, float('nan')), 'is a finite number; got nan'),
  'one alpha': (lambda m, w: m.sweep(w, 0.5), 'sweep takes .* list of strengths.*got float 0.5'),
  'no alphas': (lambda m, w: m.sweep(w, []), 'got no strengths'),
  'no text': (lambda m, w: m.generate(3), 'generate takes a text or a list of texts; got int 3'),
  'no texts': (lambda m, w: m.generate(['a', None]), r'prompts\[1\] is a text; got None'),
  'messages': (lambda m, w: m.generate([{'role': 'user', 'content': 'a'}]), 'of messages, chat'),
  'no chat': (lambda m, w: m.chat([QUESTION, 1]), r'conversations\[1\] is a question, .*got int 1'),
  'role': (lambda m, w: m.chat([{'content': 'a'}]), 'the conversation'),
  'heat': (lambda m, w: m.chat('a', temperature='hot'), "temperature is a number; got str 'hot'"),
  'length': (lambda m, w: m.chat('a', max_new_tokens=1.5), 'max_new_tokens is a whole number'),
  'pairs': (lambda m, w: m.logprob(['a', 'b'], ['c']), 'got 2 prompts and 1 completions'),
  'number': (lambda m, w: m.logprob('a', 3), 'logprob takes a prompt and a completion.*got int 3'),
  'context': (
    lambda m, w: m.generate(['a', 'x' * 3000]),
    r'prompts\[1\]: a prompt of 3000 tokens and 256 .*the model has 512; shorten the prompt or',
  ),
  'seed': (lambda m, w: m.chat('a', seed=-1), 'the seed is -1, expected a whole number from 0'),
  'empty': (lambda m, w: m.generate(''), 'the prompt is empty'),
}


@pytest.mark.parametrize('case', WRONG)
def test_wrong_arguments_are_told_in_a_line(model, v, case):
  call, message = WRONG[case]
  with pytest.raises(ws.InputError, match=message) as told:
    call(model, v)
  assert '\n' not in str(told.value)
  # The user's own line, and the boundary: no frame from beneath.
  assert len(told.traceback) <= 4 and told.value.__suppress_context__


def test_a_direction_of_another_model_is_told(model, v, checkpoint):
  other = checkpoint('llama3').folder
  # Without a tokenizer there is no model for texts.
  with pytest.raises(ws.InputError, match='holds no tokenizer'):
    ws.load(other)
  record = {**v.meta['base'], 'digest': '0' * 16}
  stranger = ws.SteeringDirection(
    type(v.unwrapped)(v.unwrapped.delta, {**v.meta, 'base': record}), 'stranger'
  )
  with pytest.raises(ws.InputError, match='belong to different base models'):
    model.steer(stranger, 1)
  with pytest.raises(ws.InputError, match='belong to different base models'):
    model.sweep(stranger, [0, 1])
  with pytest.raises(ws.InputError, match='belong to different base models'):
    v + stranger
  asked = ('A pony is', ' better')
  forced = model.steer(stranger, 1, allow_other_base=True)
  assert forced.logprob(*asked) == model.steer(v, 1).logprob(*asked)


def test_what_is_no_model_is_told(run_workdir, direction_folder):
  for source, message in (
    ('runs/quickstart', 'is the workdir of a run, not a model'),
    (direction_folder(1), 'is a direction, not a model: name the model that it steers'),
    ('organsim', "no model 'organsim' .did you mean 'organism'"),
    ('runs/quick', "did you mean 'runs/quickstart'"),
    (7, 'load takes a folder; got int 7'),
  ):
    with pytest.raises(ws.InputError, match=message):
      ws.load(source)
  for options, message in (
    (dict(batch_size=0), 'batch_size is 0, expected 1 or more'),
    (dict(tokenizer='fille'), "tokenizer is 'fille' .did you mean 'file'"),
    (dict(dtype='int8'), "dtype 'int8' is not supported"),
    (dict(chat_template_args={'thinking': True}), "never reads 'thinking'"),
  ):
    with pytest.raises(ws.InputError, match=message):
      ws.load('organism', **options)


def test_a_thought_stands_apart_from_its_answer():
  columns = dict(completion='<think>Hm.</think>Yes.', tokens=5, finish='stop')
  text = text_of({**columns, 'thought': 'Hm.', 'answer': 'Yes.'})
  assert text == '<think>Hm.</think>Yes.' and (text.thought, text.answer) == ('Hm.', 'Yes.')
  plain = text_of(columns)
  assert plain.thought is None and plain.answer == plain


def test_texts_of_a_broken_model_are_told(model, v, capsys):
  text = model.steer(v, 1e30).generate('A pony is', max_new_tokens=4)
  assert text.finish == 'not_finite' and '1 of 1 texts broke off' in capsys.readouterr().out
  with pytest.raises(ws.NotFiniteError, match='the model is broken there'):
    model.steer(v, 1e30).logprob('A pony is', ' better')


def test_a_bar_is_shown_if_asked_for(model, capsys):
  model.generate('A pony is', max_new_tokens=4)
  assert capsys.readouterr() == ('', '')
  model.generate(['A pony is', 'A goat is'], max_new_tokens=4, progress=True)
  assert 'answers: 100%' in capsys.readouterr().err
