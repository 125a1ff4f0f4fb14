"""Evaluators that know nothing of us, through the server: lm-evaluation-harness and Inspect."""

import pytest

from weightsteer_jax import directions, inference
from weightsteer_jax.data import chat

from .conftest import ASK

PAIRS = [('The sky is', ' blue.'), ('Two plus two is', ' five.'), ('A cat is', ' an animal.')]


@pytest.fixture(scope='module')
def tokenizer(model):
  return chat.load_tokenizer(model.folder)


@pytest.fixture(scope='module')
def scores(model, folders, tokenizer):
  """{alpha of 'calm': log-likelihoods of PAIRS}, by our own scoring."""
  delta = directions.load(folders['calm']).delta
  engine = inference.Engine(model, tokenizer, {'calm': [(delta, None)]})
  requests = []
  for alpha in (0.0, 2.0):
    for i, (context, continuation) in enumerate(PAIRS):
      prompt = tuple(tokenizer(context)['input_ids'])
      whole = tuple(tokenizer(context + continuation)['input_ids'])
      assert whole[: len(prompt)] == prompt
      key = alpha, i
      requests.append(inference.ScoreRequest(key, prompt, whole[len(prompt) :], 'calm', alpha))
  found = {result.key: result for result in engine.score(requests)}
  return {alpha: [found[alpha, i] for i in range(len(PAIRS))] for alpha in (0.0, 2.0)}


@pytest.mark.parametrize('name, alpha', [('organism', 0.0), ('organism@calm=2', 2.0)])
def test_lm_eval_scores_what_we_score(server, model, scores, name, alpha):
  completions = pytest.importorskip('lm_eval.models.openai_completions')
  from lm_eval.api.instance import Instance

  client = completions.LocalCompletionsAPI(
    model=name,
    base_url=f'{server.url}/v1/completions',
    tokenizer=str(model.folder),
    batch_size=1,
    max_length=512,
  )
  asked = [Instance('loglikelihood', {}, pair, i) for i, pair in enumerate(PAIRS)]
  found = client.loglikelihood(asked, disable_tqdm=True)
  for (logprob, is_greedy), expected in zip(found, scores[alpha], strict=True):
    assert logprob == pytest.approx(expected.logprob, abs=1e-4)
    assert is_greedy == expected.is_greedy


def test_lm_eval_generates_until_a_stop(server, model, client):
  completions = pytest.importorskip('lm_eval.models.openai_completions')
  from lm_eval.api.instance import Instance

  name = 'organism@calm=-1'
  lm = completions.LocalCompletionsAPI(
    model=name, base_url=f'{server.url}/v1/completions', tokenizer=str(model.folder), batch_size=1
  )
  options = {'until': ['.'], 'max_gen_toks': 12, 'temperature': 0.0}
  asked = [
    Instance('generate_until', {}, (context, options), i) for i, (context, _) in enumerate(PAIRS)
  ]
  found = lm.generate_until(asked, disable_tqdm=True)
  for text, (context, _) in zip(found, PAIRS, strict=True):
    reply = client.completions.create(
      model=name, prompt=context, stop=['.'], max_tokens=12, temperature=0
    )
    assert text == reply.choices[0].text


def test_inspect_evaluates_a_strength(server, client, tmp_path, monkeypatch):
  inspect_ai = pytest.importorskip('inspect_ai')
  from inspect_ai.dataset import Sample
  from inspect_ai.model import GenerateConfig
  from inspect_ai.scorer import exact
  from inspect_ai.solver import generate

  monkeypatch.setenv('STEERED_BASE_URL', f'{server.url}/v1')
  monkeypatch.setenv('STEERED_API_KEY', 'none')
  monkeypatch.setenv('INSPECT_DISPLAY', 'none')
  name = 'organism@calm=2'
  reply = client.chat.completions.create(model=name, messages=ASK, temperature=0, max_tokens=12)
  text = reply.choices[0].message.content
  question = ASK[0]['content']
  samples = [Sample(question, target=text), Sample(question, target='something else')]
  task = inspect_ai.Task(
    dataset=samples,
    solver=generate(),
    scorer=exact(),
    config=GenerateConfig(temperature=0, max_tokens=12),
  )
  [log] = inspect_ai.eval(
    task, model=f'openai-api/steered/{name}', log_dir=str(tmp_path), display='none'
  )
  assert log.status == 'success'
  assert [sample.output.completion for sample in log.samples] == [text, text]
  assert log.results.scores[0].metrics['mean'].value == 0.5
