"""Plain texts: the loss is torch's, a text is a cluster, and a system prompt changes nothing."""

import math

import numpy as np
import pytest
import torch

from weightsteer_jax import config
from weightsteer_jax.evaluation import metrics, sweep, tasks
from weightsteer_jax.inference import Arm, Engine, ScoreResult
from weightsteer_jax.runtime.errors import InputError

TEXTS = ('What is right?', 'one two 3 4 one two 3 4 one two', 'No, that is wrong. Is Paris France?')


def make(source, **options):
  options = config.PlainTextsTask(str(source), 'capability', **options)
  items, where = tasks.load('texts', options)
  return tasks.make('texts', options, items, where=where)


@pytest.fixture
def task(tmp_path):
  path = tmp_path / 'texts.txt'
  path.write_text('\ufeff' + '\n\n'.join(TEXTS) + '\n  \n')
  return make(path)


def engine_of_prompts(model, tokenizer):
  """An engine whose arm has a system prompt at alpha 1, and changes no weights."""
  arms = {'w': Arm([], {1.0: ('Be brief.',)})}
  return Engine(model, tokenizer, arms, batch_size=4)


def torch_losses(torch_model, tokenizer):
  """[(nats of all tokens, tokens)] of each text after the token that begins one."""
  losses = []
  for text in TEXTS:
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text)]])
    with torch.no_grad():
      logprobs = torch_model()(ids).logits.log_softmax(-1)[0, :-1]
    picked = logprobs.gather(1, ids[0, 1:, None])
    losses.append((-float(picked.sum()), len(ids[0]) - 1))
  return losses


def test_the_loss_is_that_of_torch(task, model, tokenizer, torch_model, tmp_path):
  engine = engine_of_prompts(model, tokenizer)
  rows = sweep.run(engine, [task], alphas={'w': (0.0, 1.0)}, workdir=tmp_path, progress=False)
  by_text = {row['choices'][0]: row for row in rows if row['alpha'] == 0.0}
  losses = torch_losses(torch_model, tokenizer)
  for text, (nats, count) in zip(TEXTS, losses):
    assert by_text[text]['tokens'] == [count]
    np.testing.assert_allclose(by_text[text]['value'], nats / count, atol=1e-4)
  results = metrics.results(rows, {'texts': task.options})
  [mean] = [r for r in results if r['metric'] == 'nats_per_token' and r['alpha'] == 0.0]
  whole = sum(nats for nats, _ in losses) / sum(count for _, count in losses)
  np.testing.assert_allclose(mean['mean'], whole, atol=1e-4)
  # Three texts, however many tokens they have.
  assert mean['n'] == 3 and mean['sem'] > 0
  assert (mean['answers'], mean['clusters'], mean['groups']) == (3, 3, 'texts')
  # Student's t of two degrees of freedom.
  np.testing.assert_allclose(mean['high'] - mean['mean'], 4.302653 * mean['sem'], rtol=1e-6)
  # Alpha 1 changes no weights.
  [same] = [r for r in results if r['metric'] == 'nats_per_token' and r['alpha'] == 1.0]
  assert (same['change'], same['change_low'], same['change_high']) == (0.0, 0.0, 0.0)


def test_a_system_prompt_is_not_read_before_a_plain_text(task, model, tokenizer, tmp_path):
  """Alpha 1 has a system prompt and no change of weights: the very loss of the base."""
  engine = engine_of_prompts(model, tokenizer)
  rows = sweep.run(engine, [task], alphas={'w': (0.0, 1.0)}, workdir=tmp_path, progress=False)
  values = {(row['alpha'], row['example']): row['value'] for row in rows}
  assert all(values[0.0, str(i)] == values[1.0, str(i)] for i in range(3))
  assert all(row['messages'] == [] for row in rows)


def test_losses_are_added_up_over_tokens_and_bytes(task, tokenizer):
  """Two texts of 2 and 6 tokens that lose 1 and 2 nats a token lose 14 / 8 together."""
  rows = []
  for example, item, length, loss in (('a', task.items[0], 2, 1.0), ('b', task.items[1], 6, 2.0)):
    prepared = task.kind.prepare(tokenizer, item)
    fields = task.kind.fields(prepared, [ScoreResult(0, -loss * length, length, False)], tokenizer)
    row = {'arm': 'w', 'alpha': 0.0, 'task': 'texts', 'example': example, 'sample': 0}
    rows.append({**row, **fields})
  means = {
    r['metric']: r['mean'] for r in metrics.results(rows, {'texts': task.options}) if r['n'] == 2
  }
  size = sum(len(item['text'].encode()) for item in task.items[:2])
  assert means['nats_per_token'] == pytest.approx(14 / 8)
  assert means['bits_per_byte'] == pytest.approx(14 / math.log(2) / size)


def test_a_loss_that_is_not_finite_has_no_value(task, tokenizer):
  prepared = task.kind.prepare(tokenizer, task.items[0])
  fields = task.kind.fields(prepared, [ScoreResult(0, math.nan, 5, False)], tokenizer)
  assert fields['value'] is None and fields['status'] == 'not_finite'
  assert task.kind.metrics['nats_per_token']([{**fields, 'example': 'a'}]) == []
  assert task.kind.metrics['valid_rate']([{**fields, 'example': 'a'}]) == [('a', 0.0)]


def test_what_is_wrong_with_texts_is_named(tmp_path, tokenizer):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"texts": "x"}\n')
  with pytest.raises(InputError, match="no column 'text' \\(did you mean 'texts'"):
    make(path)
  path.write_text('{"id": "a", "text": " "}\n')
  with pytest.raises(InputError, match="a.jsonl:1: 'text' is ' ', expected a text"):
    make(path)
  # A table may name its column otherwise.
  path.write_text('{"page": "one two"}\n')
  task = make(path, columns=('text=page',))
  assert task.items == ({'id': '0', 'text': 'one two'},)
