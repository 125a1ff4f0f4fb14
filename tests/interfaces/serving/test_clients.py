"""The server as OpenAI's client, and a plain socket, meet it."""

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from unittest import mock

import numpy as np
import openai
import pytest
import torch
import transformers
from openai import types

from weightsteer_jax import directions, models
from weightsteer_jax.config import ModelChoice
from weightsteer_jax.data import chat
from weightsteer_jax.interfaces.serving import app, loading, worker
from weightsteer_jax.runtime.errors import InputError

from .conftest import ASK, client_of

GREEDY = {'model': 'organism', 'messages': ASK, 'temperature': 0, 'max_tokens': 12}


LONG = {'max_tokens': 400, 'temperature': 1.5, 'seed': 1}


def until(condition):
  deadline = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def text_of(reply):
  return reply.choices[0].message.content


@pytest.fixture(scope='package')
def in_torch(model, folders, tmp_path_factory):
  """{direction: strength} -> the steered model in torch, merged by us and read by transformers."""
  made = {}

  def make(**strengths):
    key = tuple(sorted(strengths.items()))
    if key not in made:
      params = model.params
      for name, alpha in strengths.items():
        delta = directions.load(folders[name]).delta
        params = models.merge(model.config, params, delta, alpha)
      folder = tmp_path_factory.mktemp('merged') / 'model'
      models.save(folder, model.config, params, family='qwen2', like=model.folder)
      made[key] = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return made[key]

  return make


@pytest.fixture(scope='package')
def tokenizer(model):
  return chat.load_tokenizer(model.folder)


def greedy(model, tokenizer, count):
  prompt = chat.prompt_tokens(tokenizer, ASK)
  with torch.no_grad():
    out = model.generate(
      torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
  return tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)


@pytest.mark.parametrize(
  'how, strengths',
  [
    ({}, {}),
    ({'extra_body': {'directions': {'calm': -0.5, 'terse': 0.25}}}, {'calm': -0.5, 'terse': 0.25}),
    ({'model': 'organism@calm=1'}, {'calm': 1.0}),
    (
      {'model': 'organism@calm=1', 'extra_body': {'directions': {'terse': -1}}},
      {'calm': 1.0, 'terse': -1.0},
    ),
  ],
  ids=['base', 'fields', 'name', 'both'],
)
def test_answers_are_those_of_merged_weights_in_torch(client, in_torch, tokenizer, how, strengths):
  reply = client.chat.completions.create(**GREEDY | how)
  assert text_of(reply) == greedy(in_torch(**strengths), tokenizer, 12)
  assert reply.model == how.get('model', 'organism')
  assert reply.usage.prompt_tokens == len(chat.prompt_tokens(tokenizer, ASK))
  assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_crowd_of_mixed_strengths_changes_no_answer(client):
  """More requests than slots, greedy and drawn: each as it is alone."""
  asked = []
  for i in range(12):
    extra = {'directions': {'calm': 0.25 * (i % 5 - 2), 'terse': 0.5 * (i % 2)}}
    drawn = {'temperature': 1.0, 'seed': i, 'top_p': (1.0, 0.8)[i % 2]} if i % 3 else {}
    question = [{'role': 'user', 'content': f'What is {i} plus {i % 4}?'}]
    asked.append(GREEDY | drawn | {'messages': question, 'extra_body': extra, 'max_tokens': 6 + i})
  alone = [text_of(client.chat.completions.create(**one)) for one in asked]
  assert len(set(alone)) > 6
  with concurrent.futures.ThreadPoolExecutor(12) as pool:
    together = list(pool.map(lambda one: text_of(client.chat.completions.create(**one)), asked))
  assert together == alone


def test_a_stream_has_the_same_text_in_pieces(client):
  asked = GREEDY | {'extra_body': {'directions': {'calm': 0.5}}, 'max_tokens': 40}
  whole = client.chat.completions.create(**asked)
  chunks = list(
    client.chat.completions.create(**asked, stream=True, stream_options={'include_usage': True})
  )
  assert chunks[0].choices[0].delta.role == 'assistant'
  pieces = [chunk.choices[0].delta.content or '' for chunk in chunks[:-1]]
  assert ''.join(pieces) == text_of(whole)
  assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
  assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


def test_seeds_samples_and_no_seed(client):
  drawn = GREEDY | {'temperature': 1.5, 'n': 3, 'seed': 7}
  first = client.chat.completions.create(**drawn)
  texts = [choice.message.content for choice in first.choices]
  assert [choice.index for choice in first.choices] == [0, 1, 2] and len(set(texts)) > 1
  again = client.chat.completions.create(**drawn)
  assert [choice.message.content for choice in again.choices] == texts
  one = client.chat.completions.create(**drawn | {'n': 1})
  assert text_of(one) == texts[0]
  # So hot that two draws alike are all but impossible.
  hot = GREEDY | {'temperature': 50}
  free = {text_of(client.chat.completions.create(**hot)) for _ in range(4)}
  assert len(free) > 1


def test_a_stop_text_ends_an_answer_and_is_no_part_of_it(client):
  whole = text_of(client.chat.completions.create(**GREEDY | {'max_tokens': 40}))
  # Inside a word, so that it lies across tokens.
  middle = len(whole) // 2
  stop = whole[middle : middle + 4]
  expected = whole[: whole.index(stop)]
  reply = client.chat.completions.create(**GREEDY | {'max_tokens': 40, 'stop': ['zzz', stop]})
  assert text_of(reply) == expected and reply.choices[0].finish_reason == 'stop'
  chunks = client.chat.completions.create(**GREEDY | {'max_tokens': 40, 'stop': stop}, stream=True)
  assert ''.join(chunk.choices[0].delta.content or '' for chunk in chunks) == expected


def test_log_probabilities_of_a_chat(client, in_torch, tokenizer):
  reply = client.chat.completions.create(
    **GREEDY, logprobs=True, top_logprobs=2, extra_body={'directions': {'terse': 0.5}}
  )
  content = reply.choices[0].logprobs.content
  assert ''.join(entry.token for entry in content) == text_of(reply)
  prompt = chat.prompt_tokens(tokenizer, ASK)
  answer = [tokenizer.convert_tokens_to_ids(t) for t in tokenizer.tokenize(text_of(reply))]
  with torch.no_grad():
    logits = in_torch(terse=0.5)(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
  expected = torch.log_softmax(logits.double(), -1)
  for row, token, entry in zip(expected, answer, content, strict=True):
    assert entry.logprob == pytest.approx(row[token].item(), abs=1e-4)
    assert [top.logprob for top in entry.top_logprobs] == pytest.approx(
      torch.topk(row, 2).values.tolist(), abs=1e-4
    )
    # Greedy, so the likeliest.
    assert entry.top_logprobs[0].token == entry.token


def test_completions_echo_their_prompt_and_its_log_probabilities(client, in_torch, tokenizer):
  text = 'The sky is blue .'
  ids = tokenizer(text, add_special_tokens=False)['input_ids']
  for prompt in (text, ids):
    reply = client.completions.create(
      model='organism@terse=0.5', prompt=prompt, echo=True, logprobs=1, max_tokens=0
    )
    [choice] = reply.choices
    assert choice.text == text and choice.logprobs.text_offset[0] == 0
    assert ''.join(choice.logprobs.tokens) == text and choice.logprobs.token_logprobs[0] is None
    with torch.no_grad():
      logits = in_torch(terse=0.5)(torch.tensor([ids])).logits[0].double()
    expected = [torch.log_softmax(row, -1)[i].item() for row, i in zip(logits, ids[1:])]
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert reply.usage.completion_tokens == 0


def test_an_echo_comes_in_a_stream_too(client):
  asked = dict(model='organism@calm=0.5', prompt=['The sky is', 'A cat'], echo=True, temperature=0)
  for changes in (dict(max_tokens=4), dict(max_tokens=4, logprobs=2), dict(max_tokens=0)):
    whole = client.completions.create(**asked, **changes)
    texts, places = ['', ''], [None, None]
    for chunk in client.completions.create(stream=True, **asked, **changes):
      [choice] = chunk.choices
      texts[choice.index] += choice.text
      places[choice.index] = choice.logprobs or places[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert texts[0].startswith('The sky is') and texts[1].startswith('A cat')
    assert places == [choice.logprobs for choice in whole.choices]


def test_several_prompts_and_samples_come_in_order(client):
  prompts = ['The sky is', 'A cat is', 'Two plus two is']
  asked = dict(model='organism', temperature=0, max_tokens=4)
  reply = client.completions.create(prompt=prompts, n=2, **asked)
  alone = [client.completions.create(prompt=one, **asked).choices[0].text for one in prompts]
  assert [choice.text for choice in reply.choices] == [text for text in alone for _ in range(2)]
  streamed = [''] * 6
  for chunk in client.completions.create(prompt=prompts, n=2, stream=True, **asked):
    streamed[chunk.choices[0].index] += chunk.choices[0].text
  assert streamed == [choice.text for choice in reply.choices]


STREAMS = ((False, {}), (True, {'stream': True, 'stream_options': {'include_usage': True}}))


@pytest.mark.parametrize('streams, fields', STREAMS)
def test_replies_are_of_the_types_of_openai_word_by_word(server, streams, fields):
  """The client itself checks no types."""
  of_chat = (types.chat.ChatCompletion, types.chat.ChatCompletionChunk)
  text_fields = {'model': 'organism', 'prompt': 'The sky is', 'max_tokens': 3}
  asked = (
    ('/v1/chat/completions', GREEDY | {'n': 2, 'logprobs': True, 'top_logprobs': 2}, of_chat),
    ('/v1/chat/completions', GREEDY, of_chat),
    ('/v1/completions', text_fields | {'logprobs': 2}, (types.Completion,) * 2),
    ('/v1/completions', text_fields, (types.Completion,) * 2),
  )
  for path, body, kinds in asked:
    request = urllib.request.Request(
      server.url + path, json.dumps(body | fields).encode(), {'Content-Type': 'application/json'}
    )
    with urllib.request.urlopen(request, timeout=30) as reply:
      told = reply.read().decode()
    if streams:
      lines = [line.removeprefix('data: ') for line in told.splitlines() if line]
      assert lines.pop() == '[DONE]' and len(lines) > 1
    else:
      lines = [told]
    for line in lines:
      value = json.loads(line)
      # Null before the end, as OpenAI sends it, though its own type of the older interface says no.
      if streams and kinds[streams] is types.Completion:
        for choice in value['choices']:
          choice['finish_reason'] = choice['finish_reason'] or 'stop'
      kinds[streams].model_validate_json(json.dumps(value), strict=True)
  with urllib.request.urlopen(server.url + '/v1/models') as reply:
    for model in json.load(reply)['data']:
      types.Model.model_validate(model, strict=True)


def test_the_models_that_a_client_can_name(client):
  names = [model.id for model in client.models.list()]
  assert names == ['organism', 'organism@calm=1', 'organism@terse=1']


REFUSED = {
  'unknown field': ({'extra_body': {'alhpa': 1}}, "unknown field 'alhpa' .did you mean 'alpha'"),
  'two directions': ({'extra_body': {'alpha': 1}}, 'there are calm, terse'),
  'direction': ({'extra_body': {'directions': {'clam': 1}}}, "did you mean 'calm'"),
  'strength': ({'extra_body': {'directions': {'calm': 'much'}}}, 'no finite number'),
  'strength beyond float32': ({'extra_body': {'directions': {'calm': 1e39}}}, 'no finite number'),
  'strength in a name': ({'model': 'organism@calm'}, 'no finite number'),
  'strength twice': (
    {'model': 'organism@calm=1', 'extra_body': {'directions': {'calm': 1}}},
    'stands in the model',
  ),
  'temperature': ({'temperature': -1}, 'temperature is -1'),
  'top_p': ({'top_p': 0}, 'top_p is 0'),
  'a number beyond all floats': ({'temperature': 10**400}, 'temperature is 10.*a finite number'),
  'a strength beyond all floats': (
    {'extra_body': {'directions': {'calm': 10**400}}},
    'no finite number',
  ),
  'n': ({'n': 0}, 'n is 0, expected a whole number, 1 to'),
  'too many': ({'n': 129}, 'n is 129'),
  'tools': ({'tools': [{'type': 'function'}]}, "'tools' is not supported"),
  'penalty': ({'frequency_penalty': 0.5}, "'frequency_penalty' is not supported"),
  'role': ({'messages': [{'role': 'usr', 'content': 'x'}]}, 'usr'),
  'picture': (
    {'messages': [{'role': 'user', 'content': [{'type': 'image_url', 'image_url': {}}]}]},
    'parts of type text',
  ),
  'top_logprobs': ({'top_logprobs': 2}, 'top_logprobs needs'),
  'stop': ({'stop': ['']}, 'stop is'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_answered_is_refused_by_its_name(client, name):
  changes, message = REFUSED[name]
  with pytest.raises(openai.BadRequestError, match=message) as caught:
    client.chat.completions.create(**GREEDY | changes)
  assert caught.value.body['type'] == 'invalid_request_error'


def test_fields_that_say_nothing_are_taken(client):
  plain = text_of(client.chat.completions.create(**GREEDY))
  reply = client.chat.completions.create(
    **GREEDY | {'max_tokens': None, 'max_completion_tokens': 12},
    user='me',
    presence_penalty=0,
    tools=[],
    response_format={'type': 'text'},
    extra_body={'min_p': 0, 'repetition_penalty': 1.0, 'directions': {'calm': 0}},
  )
  assert text_of(reply) == plain


def test_other_models_and_long_prompts(client):
  with pytest.raises(openai.NotFoundError, match="'gpt' is not served here; there is 'organism'"):
    client.chat.completions.create(**GREEDY | {'model': 'gpt'})
  long = [{'role': 'user', 'content': 'word ' * 600}]
  with pytest.raises(openai.BadRequestError, match='do not fit into the 512') as caught:
    client.chat.completions.create(**GREEDY | {'messages': long})
  assert caught.value.code == 'context_length_exceeded'
  with pytest.raises(openai.BadRequestError, match='lower max_tokens'):
    client.chat.completions.create(**GREEDY | {'max_tokens': 512})


def test_a_path_without_its_beginning_is_told(server):
  client = openai.OpenAI(base_url=server.url, api_key='none', max_retries=0)
  with pytest.raises(openai.NotFoundError, match='did you mean /v1/chat/completions'):
    client.chat.completions.create(**GREEDY)


def post(server, body, headers=(), path='/v1/chat/completions'):
  """(status, headers, JSON) of a request as it is."""
  request = urllib.request.Request(
    server.url + path, data=body, headers={'Content-Type': 'application/json', **dict(headers)}
  )
  try:
    with urllib.request.urlopen(request, timeout=30) as reply:
      return reply.status, reply.headers, json.load(reply)
  except urllib.error.HTTPError as error:
    return error.code, error.headers, json.loads(error.read() or b'null')


@pytest.mark.parametrize(
  'body, headers, status',
  [
    (b'{"messages": ', (), 400),
    (b'[]', (), 400),
    (b'{"temperature": NaN}', (), 400),
    (b'[' * 100_000, (), 400),
    (b'[' * 900 + b'"\\ud800"' + b']' * 900, (), 400),
    (b'{"\\ud800x": 1, "messages": []}', (), 400),
    (b'{"messages": [{"role": "user", "content": "\\ud83d alone"}]}', (), 400),
    (b'{"messages": "\xed\xa0\x80"}', (), 400),
    ('{"messages": []}'.encode('utf-16'), (), 400),
    (b'{}', (('Content-Type', 'text/plain'),), 415),
    (b'{}', (('Host', 'evil.example'),), 400),
  ],
)
def test_broken_bodies(server, body, headers, status):
  got, _, _ = post(server, body, headers) if not dict(headers).get('Host') else (400, None, None)
  if 'Host' in dict(headers):
    with pytest.raises(urllib.error.HTTPError, match='400'):
      urllib.request.urlopen(
        urllib.request.Request(server.url + '/health', headers=dict(headers)), timeout=30
      )
  assert got == status


def test_a_body_without_an_end_is_cut_off(server, monkeypatch):
  monkeypatch.setattr(app, 'MOST_BYTES', 1000)
  status, _, reply = post(server, b' ' * 2000)
  assert status == 413 and reply['error']['type'] == 'invalid_request_error'


def test_a_key_is_asked_for_where_one_is_set(serving, monkeypatch):
  monkeypatch.setenv('SERVER_KEY', 'a-key-for-tests')
  with serving(key_variable='SERVER_KEY') as server:
    for wrong in ('none', 'a-key-for-test', ''):
      with pytest.raises(openai.AuthenticationError):
        client_of(server, wrong or 'x').models.list()
    assert len(list(client_of(server, 'a-key-for-tests').models.list())) == 3
    with urllib.request.urlopen(f'{server.url}/health') as reply:
      assert json.load(reply) == {'status': 'ok'}
    with pytest.raises(urllib.error.HTTPError, match='401'):
      urllib.request.urlopen(f'{server.url}/metrics')


def test_a_full_line_says_when_to_come_again(serving):
  with serving(slots=1, most_waiting=2) as server:
    client = client_of(server)
    long = GREEDY | {'max_tokens': 300, 'temperature': 1.5, 'stop': None}
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
      futures = [pool.submit(client.chat.completions.create, **long) for _ in range(12)]
      errors = [future.exception() for future in futures]
    refused = [error for error in errors if error]
    assert refused and len(refused) < 12
    for error in refused:
      assert isinstance(error, openai.RateLimitError)
      assert 1 <= int(error.response.headers['retry-after']) <= 60


def test_a_client_that_goes_away_frees_its_slot(server, client):
  """Of 128 answers most are given up, in slots and in line."""
  body = json.dumps(GREEDY | {'max_tokens': 400, 'temperature': 1.5, 'stream': True, 'n': 128})
  host, port = server.url.removeprefix('http://').split(':')
  before = server.counts.dropped
  with socket.create_connection((host, int(port))) as raw:
    head = (
      f'POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n'
      f'Content-Length: {len(body)}\r\n\r\n'
    )
    raw.sendall((head + body).encode())
    assert b'200 OK' in raw.recv(100)
  until(lambda: not (server.worker.running or server.worker.waiting))
  assert server.counts.dropped > before + 50
  assert text_of(client.chat.completions.create(**GREEDY))


def test_a_client_that_goes_away_while_it_is_scored_is_noticed(server, client, monkeypatch):
  """Of 128 texts to be scored most are never scored."""
  scored = []
  places = worker.tops.places

  def slowly(engine, texts, tops):
    scored.extend(texts)
    time.sleep(0.3 if texts else 0)
    return places(engine, texts, tops=tops)

  monkeypatch.setattr(worker.tops, 'places', slowly)
  monkeypatch.setattr(worker.tops, 'PASS_TOKENS', 8)
  asked = dict(model='organism', echo=True, logprobs=1, max_tokens=0)
  with pytest.raises(openai.APITimeoutError):
    client_of(server).with_options(timeout=1.5).completions.create(prompt=['one'] * 128, **asked)
  until(lambda: not server.worker.waiting)
  assert 0 < len(scored) < 100


def test_what_is_refused_is_not_counted(serving):
  with serving(slots=1, most_waiting=1) as server:
    client = client_of(server)
    # One in its slot, and one in line: the third is refused.
    with client.chat.completions.create(**GREEDY | LONG, stream=True, n=2) as stream:
      next(iter(stream))
      counted = server.counts.prompt_tokens
      with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(**GREEDY)
      assert server.counts.prompt_tokens == counted


def test_a_client_that_does_not_read_holds_no_server(serving, capsys):
  body = json.dumps(GREEDY | LONG | {'stream': True, 'n': 32, 'max_tokens': 100}).encode()
  with serving(drain_seconds=4.0) as server, socket.socket() as raw:
    # Buffers that are full before the answers are over.
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = server.url.removeprefix('http://').split(':')
    raw.connect((host, int(port)))
    head = f'POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n'
    head += f'Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n'
    raw.sendall(head.encode() + body)
    until(lambda: server.worker.running)
    started = time.monotonic()
    server.stop()
    until(server.is_over.is_set)
    assert time.monotonic() - started < 10
  # Every answer was over; it was the reading that was not.
  assert 'not every answer' not in capsys.readouterr().out


def test_slots_that_a_mesh_cannot_share_are_told_before_the_model_is_read(monkeypatch):
  layout = mock.Mock(rows=8)
  monkeypatch.setattr(loading.placement, 'choose', lambda *_, **__: mock.Mock(evaluate=layout))
  monkeypatch.setattr(loading, 'load_model', None)
  with pytest.raises(InputError, match='--slots=12: .* take a multiple of 8, as 16 is'):
    loading.load(ModelChoice('organism'), {}, slots=12)


def test_counts_are_told(server, client):
  client.chat.completions.create(**GREEDY)
  with urllib.request.urlopen(f'{server.url}/metrics') as reply:
    text = reply.read().decode()
  generated = re.search(r'weightsteer_generated_tokens_total (\d+)', text)
  assert int(generated[1]) >= 12
  assert re.search(
    r'weightsteer_requests_total\{path="/v1/chat/completions",status="200"\} \d', text
  )
  assert 'weightsteer_first_token_seconds_bucket{le="+Inf"}' in text


def test_sigterm_lets_answers_end_and_takes_no_more(folders):
  """The command itself, to the exit status."""
  command = [sys.executable, '-m', 'weightsteer_jax', 'serve', '--model=organism', '--port=0']
  command += [f'--direction=calm={folders["calm"]}', '--nowarm', '--slots=2']
  with (
    subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process,
    contextlib.ExitStack() as stack,
  ):
    # A failure must not wait for a server that nobody ends.
    stack.callback(process.kill)
    lines = []
    for line in process.stdout:
      lines.append(line)
      if 'serving on' in line:
        break
    url = lines[-1].split()[-1]
    assert "direction 'calm'" in ''.join(lines)
    client = openai.OpenAI(base_url=f'{url}/v1', api_key='none', max_retries=0)
    stream = client.chat.completions.create(
      **GREEDY | {'max_tokens': 200, 'temperature': 1.5, 'seed': 3}, stream=True
    )
    chunks = [next(stream)]
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    with pytest.raises((openai.InternalServerError, openai.APIConnectionError)):
      client.chat.completions.create(**GREEDY)
    chunks += list(stream)
    assert chunks[-1].choices[0].finish_reason in ('stop', 'length')
    assert process.wait(60) == 0
    assert 'all answers were given' in process.stdout.read()


def test_results_are_numbers(client):
  reply = client.completions.create(
    model='organism', prompt='The sky is', logprobs=20, max_tokens=2, temperature=0
  )
  assert np.isfinite(reply.choices[0].logprobs.token_logprobs).all()
  assert len(reply.choices[0].logprobs.top_logprobs[0]) == 20
