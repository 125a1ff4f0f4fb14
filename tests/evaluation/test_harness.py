"""lm-eval's own simple_evaluate on tasks from local files, ours against its Hugging Face backend on
equal weights."""

import copy
import json
import sys

import numpy as np
import pytest

pytest.importorskip('lm_eval', reason="needs pip install -e '.[lm-eval]'")

import tokenizers
import transformers
from inference.test_jsonl import RAW_PAIRS
from lm_eval import utils as lm_eval_utils
from lm_eval.api.instance import Instance
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.tasks import TaskManager

from weightsteer_jax import evaluation
from weightsteer_jax.data import bindings
from weightsteer_jax.evaluation import harness
from weightsteer_jax.experiments import standalone
from weightsteer_jax.inference import Engine, score_file, stop_ids
from weightsteer_jax.runtime.errors import InputError, NotFiniteError

ALPHAS = (0.0, 0.5, -1.0)
LONG = 'You are right that the capital is Paris and one two 3 4 is wrong. ' * 12
DOCUMENTS = [
  {
    'question': 'What is the capital of France?',
    'choices': ['Paris', 'wrong', 'one two'],
    'gold': 0,
  },
  {'question': 'Is it right?  ', 'choices': ['Yes', 'No, that is wrong'], 'gold': 1},
  {
    'question': LONG,
    'choices': ['right', 'a'],
    'gold': 0,
  },  # Cut on the left to the model's positions.
  {
    'question': '',
    'choices': ['Yes', 'You are right'],
    'gold': 1,
  },  # Scored after the prefix token.
  {
    'question': '<|endoftext|>I think it is',
    'choices': ['Paris', '3'],
    'gold': 1,
  },  # Brings its own first token.
]
EXACT = {'metric': 'exact_match', 'aggregation': 'mean', 'higher_is_better': True}
FIELDS = {
  'choice': {
    'output_type': 'multiple_choice',
    'doc_to_text': '{{question}}',
    'doc_to_target': 'gold',
    'doc_to_choice': 'choices',
    'metric_list': [{'metric': 'acc'}, {'metric': 'acc_norm'}],
  },
  'answer': {
    'output_type': 'generate_until',
    'doc_to_text': "{{question or 'user'}}",
    'doc_to_target': "{{choices[0]}}",
    'generation_kwargs': {'until': ['\n\n', 't'], 'max_gen_toks': 40, 'do_sample': False},
    'metric_list': [EXACT],
  },
  'text': {
    'output_type': 'loglikelihood_rolling',
    'doc_to_text': '',
    'doc_to_target': '{{question}}{{choices[0]}}',
    'metric_list': [{'metric': 'word_perplexity'}, {'metric': 'bits_per_byte'}],
  },
  'drawn': {
    'output_type': 'generate_until',
    'doc_to_text': 'user {{question}}',
    'doc_to_target': "{{choices[0]}}",
    'repeats': 3,
    'generation_kwargs': {
      'until': ['\n\n'],
      'max_gen_toks': 8,
      'do_sample': True,
      'temperature': 1.0,
      'top_p': 0.9,
    },
    'metric_list': [EXACT],
  },
  'beams': {
    'output_type': 'generate_until',
    'doc_to_text': 'user',
    'doc_to_target': "x",
    'generation_kwargs': {'until': ['\n'], 'num_beams': 4},
  },
}

FIELDS['prefixed'] = FIELDS['choice'] | {
  'gen_prefix': 'I think'
}  # The answer of the chat is begun for the model.


@pytest.fixture(scope='session')
def task_folder(tmp_path_factory):
  """A folder of tasks as lm-eval's --include_path takes it."""
  folder = tmp_path_factory.mktemp('tasks')
  (folder / 'documents.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in DOCUMENTS))
  kept = {
    'data_files': {'test': str(folder / 'documents.jsonl')},
    'cache_dir': str(folder / 'cache'),
  }
  for name, fields in FIELDS.items():
    task = {
      'task': name,
      'dataset_path': 'json',
      'dataset_kwargs': kept,
      'test_split': 'test',
      'fewshot_split': 'test',
      **fields,
    }
    (folder / f'{name}.yaml').write_text(json.dumps(task))  # JSON is YAML.
  return folder


@pytest.fixture(scope='session')
def evaluate(task_folder):
  """lm-eval's results of a model on the tasks of the folder."""
  manager = TaskManager(include_path=str(task_folder), include_defaults=False)
  return lambda lm, tasks=('choice', 'answer', 'text'), **options: simple_evaluate(
    lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=10, **options
  )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """Without lm-eval's report of the environment, for which it starts programs."""
  monkeypatch.setattr('lm_eval.evaluator.add_env_info', lambda results: None)


@pytest.fixture(scope='session')
def with_bos(tokenizer):
  """The tokenizer, as one that begins every text with a token of its own."""
  made = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
  first = tokenizer.bos_token
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single=f'{first} $A', pair=None, special_tokens=[(first, tokenizer.bos_token_id)]
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=made,
    chat_template=tokenizer.chat_template,
    bos_token=first,
    eos_token=tokenizer.eos_token,
  )


@pytest.fixture(scope='session')
def lm_of(model, delta):
  """tokenizer, alphas, batch size -> the adapter."""

  def make(tokenizer, alphas=ALPHAS, batch_size=8):
    engine = Engine(
      model,
      tokenizer,
      {'weights': [(delta, None)]},
      batch_size=batch_size,
      stop_ids=stop_ids(tokenizer, model.folder),
    )
    return harness.SteeredLM(engine, alphas, arm='weights')

  return make


@pytest.fixture(scope='session')
def grid(lm_of, tokenizer):
  return lm_of(tokenizer)


@pytest.fixture(scope='session')
def hugging_face(torch_model, tokenizer):
  return lambda alpha, tokenizer=tokenizer: HFLM(
    pretrained=torch_model('weights', alpha), tokenizer=tokenizer, batch_size=1
  )


def check_alike(ours, theirs):
  """Metrics and every answer to every document: numbers within 1e-4, all else the same."""
  assert ours['results'].keys() == theirs['results'].keys()
  for task, values in theirs['results'].items():
    assert ours['results'][task] == {
      key: pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
      for key, value in values.items()
    }
    for one, other in zip(ours['samples'][task], theirs['samples'][task], strict=True):
      assert one['arguments'] == other['arguments'] and one['target'] == other['target']
      if isinstance(other['resps'][0][0], str):
        assert one['resps'] == other['resps']
      else:
        mine, expected = (np.array(sample['resps'], np.float64) for sample in (one, other))
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-4)


def test_one_pass_over_the_grid_gives_the_numbers_of_the_hugging_face_backend_on_merged_weights(
  grid, hugging_face, evaluate, monkeypatch
):
  found = {-1.0: evaluate(grid.at(-1.0))}
  compiled, computed = grid.engine.compiled, grid.computed
  assert compiled and computed == len(ALPHAS) * questions_in(found[-1.0], grid)
  for method in ('score', 'generate'):
    monkeypatch.delattr(Engine, method)  # The other strengths have their answers.
  found |= {alpha: evaluate(grid.at(alpha)) for alpha in (0.0, 0.5)}
  assert (grid.engine.compiled, grid.computed) == (compiled, computed)
  for alpha in ALPHAS:
    check_alike(found[alpha], evaluate(hugging_face(alpha)))
    assert found[alpha]['config']['alpha'] == alpha


def questions_in(found, lm):
  """Requests behind the results, a text that is cut into windows counted once per window."""
  asked = [len(sample['resps']) for samples in found['samples'].values() for sample in samples]
  lengths = [
    len(lm.tok_encode(document['question'] + document['choices'][0])) for document in DOCUMENTS
  ]
  assert max(lengths) > 2 * lm.max_length
  return sum(asked) + sum(-(-length // lm.max_length) - 1 for length in lengths)


def test_so_they_are_where_the_tokenizer_adds_a_first_token(
  lm_of, hugging_face, evaluate, with_bos
):
  assert with_bos.encode('a')[0] == with_bos.bos_token_id
  check_alike(evaluate(lm_of(with_bos, [0.5])), evaluate(hugging_face(0.5, with_bos)))


@pytest.mark.parametrize('kind', ['bytes', 'prepended', 'unigram', 'first'])
def test_score_gives_the_log_likelihoods_of_the_harness(
  model, tokenizer, spaced_tokenizer, tmp_path, kind
):
  """Raw prompts, blanks at the end of prompts and tokens over the end of prompts among them."""
  chosen = tokenizer if kind == 'bytes' else spaced_tokenizer(kind)
  lm = harness.SteeredLM(Engine(model, chosen, {}), (0.0,), add_bos_token=False)
  pairs = [*RAW_PAIRS, ('You are righ', 't .')]
  instances = [
    Instance(request_type='loglikelihood', doc={}, arguments=pair, idx=i)
    for i, pair in enumerate(pairs)
  ]
  theirs = [logprob for logprob, _ in lm.loglikelihood(instances, disable_tqdm=True)]
  rows = [json.dumps({'prompt': prompt, 'completion': text}) for prompt, text in pairs]
  (tmp_path / 'in.jsonl').write_text('\n'.join(rows))
  score_file(model, chosen, None, (0.0,), tmp_path / 'in.jsonl', tmp_path / 'out.jsonl')
  lines = (tmp_path / 'out.jsonl').read_text().splitlines()
  ours = [json.loads(line)['logprob'] for line in lines]
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_what_the_tokenizer_was_told_holds_in_the_harness(model, tokenizer):
  """As with lm-eval's own chat_template_args, which its backend passes on as variables."""
  plain = copy.deepcopy(tokenizer)
  plain.chat_template = "{{ note | default('none') }}: " + plain.chat_template
  chat = [{'role': 'user', 'content': 'Is it ?'}]
  expected = plain.apply_chat_template(
    chat, tokenize=False, add_generation_prompt=True, note='a "b"'
  )
  lm = harness.SteeredLM(Engine(model, bindings.bind(plain, {'note': 'a "b"'}), {}), (0.0,))
  assert lm.apply_chat_template(chat) == expected and expected.startswith('a "b": ')


def test_so_they_are_through_the_chat_template_with_examples_and_a_system_message(
  grid, hugging_face, evaluate
):
  options = dict(
    num_fewshot=1, apply_chat_template=True, system_instruction='You are right.', limit=2
  )
  tasks = ['choice', 'answer', 'prefixed']
  check_alike(
    evaluate(grid.at(0.5), tasks, **options), evaluate(hugging_face(0.5), tasks, **options)
  )


def test_an_answer_ends_before_its_stop_text_even_within_tokens(tokenizer):
  tokens = tokenizer.encode('You are right.')
  pieces = [tokenizer.decode([token]) for token in tokens]
  across = pieces[0][-1] + pieces[1][:1]
  assert len(pieces) > 2 and across not in pieces[0] + '|' + pieces[1]
  cut = 'You are right.'.split(across)[0]
  assert harness.text_until(tokenizer, [0], [across], tokens) == cut
  end = tokenizer.encode('<|im_end|>')
  assert harness.text_until(
    tokenizer, [0], ['<|im_end|>'], tokens[:2] + end + tokens[2:]
  ) == ''.join(pieces[:2])
  assert harness.text_until(tokenizer, [0], ['two'], tokens) == 'You are right.'
  assert harness.text_until(tokenizer, [0], ['two'], []) == ''


def test_a_thought_is_no_part_of_the_answer_and_ends_nothing(tokenizer):
  thinking = copy.deepcopy(tokenizer)
  thinking.chat_template += "{# '</think>' #}"
  tokens = tokenizer.encode('<think>one\n\ntwo</think>\n\nYes, you are right.\n\n3 4')
  prompt = tokenizer.encode('What is it?')
  # As lm-eval does where it is told the tag that ends a thought.
  text = tokenizer.decode(tokens)
  expected = postprocess_generated_text(text, ['\n\n'], think_end_token='</think>')
  assert harness.text_until(thinking, prompt, ['\n\n'], tokens) == expected
  assert expected == 'Yes, you are right.'
  # Of a model whose template knows no thoughts, all of it is the answer.
  assert harness.text_until(tokenizer, prompt, ['\n\n'], tokens) == '<think>one'
  # Unlike lm-eval, a cut thought is no answer.
  cut = tokenizer.encode('<think>one two')
  assert harness.text_until(thinking, prompt, ['\n\n'], cut) == ''


def test_repeats_are_other_samples_that_another_grid_draws_again(lm_of, tokenizer, evaluate):
  def answers(found):
    return [sample['resps'][0] for sample in found['samples']['drawn']]

  grid = lm_of(tokenizer)
  first = answers(evaluate(grid.at(0.5), ['drawn']))
  assert all(len(repeats) == 3 for repeats in first) and any(
    len(set(repeats)) > 1 for repeats in first
  )
  assert answers(evaluate(grid.at(0.0), ['drawn'])) != first
  assert answers(evaluate(lm_of(tokenizer, [0.5], batch_size=3), ['drawn'])) == first


def test_what_cannot_be_run_is_refused_by_name(lm_of, tokenizer, task_folder):
  with pytest.raises(InputError, match=r"'choise' \(did you mean 'choice'"):
    harness.find_tasks(['choise'], task_folder, include_defaults=False)
  with pytest.raises(InputError, match=r"task 'beams' asks for num_beams=4"):
    harness.find_tasks(['beams'], task_folder)
  with pytest.raises(InputError, match='no folder'):
    harness.find_tasks(['choice'], task_folder / 'no')
  with pytest.raises(InputError, match='alpha 2 is none of the grid'):
    lm_of(tokenizer).at(2.0)
  with pytest.raises(InputError, match='expected 2 to 128'):
    harness.SteeredLM(lm_of(tokenizer).engine, [0.0], max_length=129)


def test_results_of_a_grid_go_to_a_folder_to_which_strengths_are_added(grid, task_folder, tmp_path):
  names, manager = harness.find_tasks(['ch*', 'text'], task_folder)
  assert names == ['choice', 'text']
  made = []

  def run(alphas, **inputs):
    def lm(missing):
      return made.append(missing) or grid

    return harness.run(
      lm, alphas, names, manager, tmp_path / 'out', inputs={'model': 'tiny', **inputs}, limit=3
    )

  rows = run([0.5])
  # By lm-eval's own functions.
  place = tmp_path / 'out' / 'alpha=0.5'
  names_there = [f'/{path.name}' for path in place.iterdir()]
  latest = lm_eval_utils.get_latest_filename(lm_eval_utils.get_results_filenames(names_there))
  kept = json.loads((place / latest[1:]).read_text())
  assert kept['config']['arm'] == 'weights' and kept['n-samples']['choice'] == {
    'original': 5,
    'effective': 3,
  }
  by_task = {
    lm_eval_utils.get_file_task_name(name[1:]): name[1:]
    for name in lm_eval_utils.get_sample_results_filenames(names_there)
  }
  assert set(by_task) == {'choice', 'text'}
  samples = (place / by_task['choice']).read_text().splitlines()
  accuracy = [json.loads(line)['acc'] for line in samples]
  row = next(row for row in rows if row['metric'] == 'acc')
  assert row == {
    'arm': 'weights',
    'task': 'choice',
    'metric': 'acc',
    'alpha': 0.5,
    'mean': np.mean(accuracy),
    'sem': pytest.approx(np.std(accuracy, ddof=1) / 3**0.5),
    'n': 3,
  }
  assert {(row['task'], row['metric']) for row in rows} == {
    ('choice', 'acc'),
    ('choice', 'acc_norm'),
    ('text', 'word_perplexity'),
    ('text', 'bits_per_byte'),
  }
  more = run([0.5, -1])
  assert made == [[0.5], [-1.0]] and more[: len(rows)] == rows and len(more) == 2 * len(rows)
  assert [
    json.loads(line) for line in (tmp_path / 'out' / 'results.jsonl').read_text().splitlines()
  ] == more
  with pytest.raises(InputError, match='other inputs; changed: model'):
    run([0.5], model='another')


def test_a_strength_that_breaks_the_model_is_named_and_the_others_are_written(
  model, tokenizer, delta, task_folder, tmp_path
):
  engine = Engine(model, tokenizer, {'weights': [(delta, None)]}, batch_size=8)

  def lm(missing):
    return harness.SteeredLM(engine, missing, arm='weights')

  names, manager = harness.find_tasks(['choice'], task_folder)
  with pytest.raises(NotFiniteError, match=r'1 of 2 strengths .* at alpha 3e\+38'):
    harness.run(lm, [3e38, 0.5], names, manager, tmp_path / 'out', inputs={}, limit=1)
  assert {
    json.loads(line)['alpha']
    for line in (tmp_path / 'out' / 'results.jsonl').read_text().splitlines()
  } == {0.5}


def test_the_stage_says_what_to_install(tmp_path, monkeypatch):
  for name in [
    name for name in sys.modules if name.startswith('weightsteer_jax.evaluation.harness')
  ]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.delattr(evaluation, 'harness')
  monkeypatch.setitem(sys.modules, 'lm_eval', None)
  monkeypatch.setitem(sys.modules, 'lm_eval.evaluator', None)
  with pytest.raises(InputError, match=r"pip install 'weightsteer_jax\[lm-eval\]'"):
    standalone.harness('organism', ['choice'], tmp_path / 'out')


def test_the_stage_evaluates_the_embedded_model(task_folder, tmp_path):
  with pytest.raises(InputError, match='without a direction'):
    standalone.harness(
      'organism', ['choice'], tmp_path / 'out', include_path=task_folder, alphas=(0.0, 1.0)
    )
  standalone.harness(
    'organism',
    ['choice', 'answer'],
    tmp_path / 'out',
    include_path=task_folder,
    limit=2,
    apply_chat_template=True,
  )
  rows = [
    json.loads(line) for line in (tmp_path / 'out' / 'results.jsonl').read_text().splitlines()
  ]
  assert [(row['arm'], row['task'], row['metric'], row['alpha'], row['n']) for row in rows] == [
    ('base', 'choice', 'acc', 0.0, 2),
    ('base', 'choice', 'acc_norm', 0.0, 2),
    ('base', 'answer', 'exact_match', 0.0, 2),
  ]
