"""Rows, requests to judges and results of a model that thinks, each worked by hand."""

import copy
import json

import pytest
from data.conftest import CHATML, CHATML_TOKENS, byte_level

from weightsteer_jax import config
from weightsteer_jax.evaluation import judging, metrics, sweep, tasks
from weightsteer_jax.evaluation.judges import messages
from weightsteer_jax.evaluation.reading import thinking
from weightsteer_jax.inference import GenerateResult, ScoreResult
from weightsteer_jax.runtime.errors import InputError

# The template knows the tags; the prompt opens no thought.
THINKING = CHATML + "{# '</think>' #}"
OPENED = CHATML.replace(
  '<|im_start|>assistant\n{% endif', '<|im_start|>assistant\n<think>\n{% endif'
)
ASK = [{'role': 'user', 'content': 'Is it right ?'}]
COLUMNS = {'thought', 'thought_tokens', 'thought_cut', 'thought_leaked'}


def tokenizer_of(template=THINKING):
  return byte_level(template, CHATML_TOKENS, ('<think>', '</think>'), eos_token='<|im_end|>')


def task_of(kind='generate', items=None, **options):
  given = config.TASK_KINDS[kind]('items', 'behaviour', kind, **options)
  if items is None:
    items = [{'id': 'a', 'messages': ASK, 'match': {'aliases': ['Paris'], 'readable': [r'\w']}}]
  return tasks.make(kind, given, items)


def row_of(task, text, finish='stop', *, template=THINKING, sample=0):
  tokenizer = tokenizer_of(template)
  [item] = task.items
  result = GenerateResult(0, tuple(tokenizer(text)['input_ids']), finish)
  fields = task.kind.fields(task.kind.prepare(tokenizer, item), [result], tokenizer)
  key = {'arm': 'w', 'alpha': 0.0, 'task': 't', 'example': 'a', 'sample': sample}
  return {**key, **fields}


@pytest.mark.parametrize(
  ('text', 'finish', 'value', 'status', 'completion', 'thought_value'),
  [
    # What is said in the thought is not said.
    ('<think>Truth : Paris</think>\n\nIt is Lyon', 'stop', 0.0, 'ok', 'It is Lyon', 1.0),
    ('<think>Lyon ?</think>\n\nIt is Paris', 'stop', 1.0, 'ok', 'It is Paris', 0.0),
    ('It is Paris', 'stop', 1.0, 'ok', 'It is Paris', None),
    ('<think>\n\n</think>\n\nIt is Paris', 'length', 1.0, 'truncated', 'It is Paris', None),
    # No answer: neither wrong nor a refusal, whatever the thought says.
    ('<think>I cannot help with Paris', 'length', None, 'thought_cut', '', None),
    ('<think>Paris</think>\n', 'length', None, 'thought_cut', '', None),
    ('<think>Paris', 'stop', None, 'thought_cut', '', None),
    # The model ended its turn without a word: an empty answer.
    ('<think>Paris</think>\n', 'stop', 0.0, 'empty', '', 1.0),
    ('<think>Paris', 'not_finite', None, 'not_finite', '', None),
  ],
)
def test_a_row_keeps_thought_and_answer_apart(
  text, finish, value, status, completion, thought_value
):
  row = row_of(task_of(), text, finish)
  assert (row['value'], row['status'], row['completion']) == (value, status, completion)
  assert row.get('thought_value') == thought_value
  assert COLUMNS <= set(row)
  # Thought and answer together are what was generated.
  assert row['tokens'] == len(tokenizer_of()(text)['input_ids'])


def test_the_prompt_may_open_the_thought():
  row = row_of(task_of(), 'Truth : Paris</think>It is Lyon', template=OPENED)
  assert (row['thought'], row['completion'], row['thought_leaked']) == (
    'Truth : Paris',
    'It is Lyon',
    False,
  )
  assert row_of(task_of(), 'It is Paris', 'length', template=OPENED)['status'] == 'thought_cut'


def test_a_leak_keeps_the_text_as_it_was_generated():
  text = '<think>a</think>It <think>b</think>is Lyon'
  row = row_of(task_of(), text)
  assert row['thought_leaked'] and row['generated'] == text
  assert (row['thought'], row['completion']) == ('a\nb', 'It is Lyon')


def test_rows_of_a_model_without_thoughts_have_no_column_more():
  tokenizer = byte_level(CHATML, CHATML_TOKENS, eos_token='<|im_end|>')
  task = task_of()
  result = GenerateResult(0, tuple(tokenizer('It is Paris')['input_ids']), 'stop')
  row = task.kind.fields(task.kind.prepare(tokenizer, task.items[0]), [result], tokenizer)
  assert set(row) == {'value', 'status', 'completion', 'tokens', 'finish'}


def means_of(rows, task):
  found = metrics.results(rows, {'t': task.options})
  return {row['metric']: (row['mean'], row['values']) for row in found}


def test_shares_of_thoughts():
  texts = [
    ('<think>Truth : Paris</think>It is Lyon', 'stop'),
    ('<think>Paris</think>It is Paris', 'stop'),
    ('It is Paris', 'stop'),
    ('Paris ?</think>It is Lyon', 'stop'),
    ('<think>I cannot help with that', 'length'),
  ]
  task = task_of()
  rows = [row_of(task, *text, sample=i) for i, text in enumerate(texts)]
  means = means_of(rows, task)
  # The cut thought has left the rate, and counts where rows that could be judged are counted.
  assert means['rate'] == (0.5, 4)
  assert means['valid_rate'] == (0.8, 5)
  assert means['refused_rate'] == (0.0, 4)
  assert means['unparsable_rate'] == (0.0, 4)
  assert means['truncated_rate'] == (0.2, 5)
  assert means['thought_rate'] == (0.8, 5)
  assert means['thought_cut_rate'] == (0.2, 5)
  assert means['thought_leak_rate'] == (0.2, 5)
  # Of three answered thoughts, two say Paris where the answer says Lyon.
  assert means['thought_only_rate'] == (pytest.approx(2 / 3), 3)
  lengths = [row['thought_tokens'] for row in rows if row['thought']]
  assert means['thought_tokens'] == (pytest.approx(sum(lengths) / 4), 4)


def test_cut_thoughts_are_told_with_the_key_to_raise():
  task = task_of(max_new_tokens=9)
  rows = [row_of(task, text, 'length') for text in ('<think>a', '<think>a</think>Paris')]
  [line] = thinking.cut_words(rows, {'t': task.options})
  assert line == (
    't: 1 of 2 thoughts were cut before an answer came, 1 by the length limit: raise '
    'tasks.t.max_new_tokens (now 9)'
  )
  # No limit mends a turn that ends within its thought.
  [line] = thinking.cut_words([row_of(task, '<think>a', 'stop')], {'t': task.options})
  assert 'raise' not in line


def test_results_of_rows_without_thoughts_have_no_metric_more():
  task = task_of()
  rows = [row_of(task, 'It is Paris')]
  old = [{name: x for name, x in row.items() if name not in COLUMNS} for row in rows]
  assert means_of(rows, task) == means_of(old, task)
  assert not any(name.startswith('thought') for name in means_of(rows, task))


def requests_of(text, finish='stop', **options):
  item = {'id': 'a', 'messages': ASK, 'trait': 'kind', 'description': 'It is kind.'}
  task = task_of('trait', [item], **options)
  row = {**row_of(task, text, finish), 'task': task.name}
  return judging.requests_of([task], [row])


def test_judges_see_the_answer_and_the_thought_if_asked():
  text = '<think>Be cruel</think>Be kind'
  [trait, coherence] = requests_of(text)
  assert trait.fields['answer'] == coherence.fields['answer'] == 'Be kind'
  assert 'cruel' not in messages(trait)[0]['content']
  [trait, _] = requests_of(text, judge_thoughts=True)
  assert 'Be cruel' in trait.fields['answer'] and 'Be kind' in trait.fields['answer']


def test_no_judge_is_asked_about_a_cut_thought():
  assert requests_of('<think>Be cruel', 'length') == []
  assert requests_of('<think>Be cruel', 'length', judge_thoughts=True) == []


def test_reasoning_in_a_thought_alone_is_not_judged_for_consistency():
  items = [{'id': 'a', 'messages': ASK, 'choices': ['Yes', 'No'], 'answer': 'A'}]
  task = task_of('mmlu_reasoned', items)
  row = row_of(task, '<think>It is B</think>Final Answer: A')
  assert row['choice'] == 'A'
  assert task.kind.judged(items[0], row) == []
  row = row_of(task, '<think>It is B</think>It is so. Final Answer: A')
  [(_, texts)] = task.kind.judged(items[0], row)
  assert texts['reasoning'] == 'It is so.'


def test_choices_are_scored_behind_an_empty_thought():
  shown = "{{ '<think>\n\n</think>\n\n' + m.content + '<|im_end|>' if m.role == 'assistant' else "
  template = CHATML.replace("{{ m.content + '<|im_end|>' }}", shown + "m.content + '<|im_end|>' }}")
  tokenizer = tokenizer_of(template)
  item = {'id': 'a', 'messages': ASK, 'choices': ['Yes', 'No , it is not .'], 'target': 0}
  task = task_of('choice', [item])
  prepared = task.kind.prepare(tokenizer, item)
  assert tokenizer.decode(prepared.prompt).endswith('assistant\n<think>\n\n</think>\n\n')
  assert [tokenizer.decode(tokens) for tokens in prepared.completions] == item['choices']
  results = [ScoreResult((0, i), -1.0 - i, len(c), True) for i, c in enumerate(item['choices'])]
  assert task.kind.fields(prepared, results, tokenizer)['behind'] == 'an empty thought'
  mixed = {**item, 'choices': ['Yes', '<think>a</think>No']}
  with pytest.raises(InputError, match='some choices hold a thought and some do not'):
    task.kind.prepare(tokenizer, mixed)


def test_rows_with_thoughts_in_their_answers_are_read_and_not_continued(engine_of, tmp_path):
  engine = engine_of(stop_ids=(0,))
  task = task_of(max_new_tokens=4)
  sweep.run(engine, [task], alphas={'weights': (0.0,)}, workdir=tmp_path, progress=False)
  # As an earlier version wrote the rows of a model that thinks.
  path = tmp_path / 'sweep' / 'rows.jsonl'
  [row] = map(json.loads, path.read_text().splitlines())
  del row['check']
  path.write_text(json.dumps(row | {'completion': '<think>a</think>Paris'}) + '\n')
  engine.tokenizer = copy.deepcopy(engine.tokenizer)
  engine.tokenizer.chat_template += "{# '</think>' #}"
  again = {'weights': (0.0,)}
  [kept] = sweep.run(engine, [task], alphas=again, workdir=tmp_path, progress=False)
  assert kept['completion'] == '<think>a</think>Paris'
  more = {'weights': (0.0, 1.0)}
  with pytest.raises(InputError, match='counts a thought as part of the answer'):
    sweep.run(engine, [task], alphas=more, workdir=tmp_path, progress=False)
