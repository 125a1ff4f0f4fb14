"""A judge behind an endpoint, against a real HTTP server: what it makes of every way to misbehave,
what it costs, and what it keeps."""

import dataclasses
import gzip
import json
import math
import time
import urllib.parse

import pytest

from weightsteer_jax import config
from weightsteer_jax.evaluation.judges import JudgeRequest, bounded, client, make
from weightsteer_jax.runtime.errors import CorruptError, EndpointError, InputError

from .server import Server, breaks_off, drips, fails, hangs, says, send

KEY = 'sk-very-secret-0123456789'
OPTIONS = config.EndpointJudge(
  model='gpt-test', retries=3, backoff_s=0.02, timeout_s=5.0, concurrency=4
)


def trait(i):
  return JudgeRequest(
    i,
    'trait',
    dict(
      trait='candour',
      description='says what it means',
      question=f'Question {i}?',
      answer=f'Answer {i}.',
    ),
  )


def refusal(i):
  return JudgeRequest(i, 'refusal', dict(question=f'Question {i}?', answer=f'Answer {i}.'))


@pytest.fixture
def judge_of(tmp_path, monkeypatch):
  """server, options -> the judge that asks it; all of one test share a cache."""

  def judge(server, **options):
    monkeypatch.setenv('OPENAI_BASE_URL', server.url)
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    return make(
      'gpt', dataclasses.replace(OPTIONS, **options), cache=tmp_path / 'judges', engine=None
    )

  return judge


def ask(judge, requests):
  return {judgement.key: judgement for judgement in judge.judge(requests)}


def cached(tmp_path):
  return (tmp_path / 'judges' / 'gpt.jsonl').read_text()


def first_time(misbehaviour, then='85'):
  """An answer that misbehaves the first time that a question comes."""
  return lambda body, before: says(then) if before else misbehaviour


@pytest.mark.parametrize(
  'misbehaviour',
  [
    fails(429, 'slow down'),
    fails(500),
    fails(503),
    send(200, b'<html>busy</html>'),
    send(200, b''),
    send(200, b'[]'),
    send(200, b'{"choices": []}'),
    send(200, b'{"id": 1}'),
    send(200, b'{"choices": [{"message": {"content": 7}}]}'),
    breaks_off,
  ],
  ids=[
    '429',
    '500',
    '503',
    'html',
    'empty',
    'list',
    'no choice',
    'no choices',
    'no text',
    'half an answer',
  ],
)
def test_what_may_pass_is_asked_again(judge_of, misbehaviour):
  with Server(first_time(misbehaviour)) as server:
    judge = judge_of(server)
    said = ask(judge, [trait(0), trait(1)])
    assert {(said[i].score, said[i].status) for i in (0, 1)} == {(85.0, 'ok')}
    assert len(server.bodies) == 4 and '2 requests sent, 2 retries' in judge.summary()


def test_a_time_out_is_asked_again(judge_of):
  with Server(first_time(hangs(1.0))) as server:
    said = ask(judge_of(server, timeout_s=0.25), [trait(0)])
    assert said[0].score == 85.0 and len(server.bodies) == 2


def test_retry_after_is_waited_for_by_all(judge_of):
  """The first question is told to wait for a second; the third, whose turn comes meanwhile, is held
  back as well."""

  def answer(body, before):
    question = body['messages'][0]['content']
    if (
      'Question 1?' in question
      # Its answer comes, and with it the third question's turn, when the first one's has been read.
    ):
      time.sleep(0.3)
    return (
      fails(429, 'slow down', Retry_After='1')
      if 'Question 0?' in question and not before
      else says('85')
    )

  with Server(answer, slow=0.2) as server:
    ask(judge_of(server, concurrency=2), [trait(0), trait(1), trait(2)])
    times = {
      i: [
        at
        for at, body in zip(server.times, server.bodies)
        if f'Question {i}?' in body['messages'][0]['content']
      ]
      for i in range(3)
    }
    assert [len(times[i]) for i in range(3)] == [2, 1, 1]
    assert times[0][1] - times[0][0] > 1.0 and times[2][0] - times[0][0] > 1.0
  with Server(first_time(fails(429, 'come back tomorrow', Retry_After='86400'))) as server:
    said = ask(judge_of(server), [trait(9)])
    assert said[9].status == 'failed' and len(server.bodies) == 1, 'a day is not waited for'


def test_back_off_doubles(judge_of):
  with Server(lambda body, before: fails(500)) as server:
    said = ask(judge_of(server, backoff_s=0.2), [trait(0)])
    gaps = [b - a for a, b in zip(server.times, server.times[1:])]
    assert said[0].status == 'failed' and '500' in said[0].text and 'asked 4 times' in said[0].text
    assert len(gaps) == 3 and all(gap > 0.1 * 2**n for n, gap in enumerate(gaps)), (
      'at least half of 0.2, 0.4 and 0.8 s'
    )


def test_a_failure_is_no_answer_and_is_asked_for_again(judge_of, tmp_path):
  broken = True
  with Server(lambda body, before: fails(500) if broken else says('12')) as server:
    assert ask(judge_of(server), [trait(0)])[0].status == 'failed'
    assert cached(tmp_path) == ''
    broken = False
    assert ask(judge_of(server), [trait(0)])[0].score == 12.0


@pytest.mark.parametrize(
  'text, score, status',
  [
    ('YES', 1.0, 'ok'),
    ('no.', 0.0, 'ok'),
    ('**Answer: No**', 0.0, 'ok'),
    ('<think>Hm, yes.</think>\nNO', 0.0, 'ok'),
    ('NO\nIt tries.', 0.0, 'ok'),
    ('No, I am not sure', None, 'unparsable'),
    ('Perhaps', None, 'unparsable'),
    ('', None, 'unparsable'),
    ("I'm sorry, but I can't help with that.", None, 'refused'),
  ],
)
def test_yes_or_no_is_read_and_never_guessed(judge_of, text, score, status):
  with Server(lambda body, before: says(text)) as server:
    said = ask(judge_of(server), [refusal(0)])[0]
    assert (said.score, said.status, said.text) == (score, status, text)
    assert 'logprobs' not in server.bodies[0]


@pytest.mark.parametrize(
  'text, score, status',
  [
    ('85', 85.0, 'ok'),
    ('Score: 7.5', 7.5, 'ok'),
    ('85/100', 85.0, 'ok'),
    ('8/10', None, 'unparsable'),
    ('101', None, 'unparsable'),
    ('-3', None, 'unparsable'),
    ('about 85', None, 'unparsable'),
    ('between 60 and 70', None, 'unparsable'),
    ('REFUSAL', None, 'refused'),
    ('eighty', None, 'unparsable'),
    ('²', None, 'unparsable'),
  ],
)
def test_numbers_are_read_and_never_guessed(judge_of, text, score, status):
  with Server(lambda body, before: says(text)) as server:
    said = ask(judge_of(server), [trait(0)])[0]
    assert (said.score, said.status) == (score, status)


def test_half_a_number_and_filters_do_not_count(judge_of):
  with Server(lambda body, before: says('8', finish='length')) as server:
    assert ask(judge_of(server), [trait(0)])[0].status == 'unparsable'
  with Server(lambda body, before: says('', finish='content_filter')) as server:
    assert ask(judge_of(server), [trait(1)])[1].status == 'refused'
  with Server(lambda body, before: says(None, refusal='I will not rate this.')) as server:
    said = ask(judge_of(server), [trait(2)])[2]
    assert (said.status, said.text) == ('refused', 'I will not rate this.')
  with Server(lambda body, before: fails(400, 'filtered', code='content_filter')) as server:
    assert ask(judge_of(server), [trait(3)])[3].status == 'refused' and len(server.bodies) == 1


def test_a_score_is_the_expectation_over_the_likeliest_numbers(judge_of):
  first = [
    ('80', math.log(0.5)),
    ('90', math.log(0.3)),
    (' 90', math.log(0.1)),
    ('High', math.log(0.1)),
  ]
  with Server(lambda body, before: says('80', first=first)) as server:
    assert ask(judge_of(server), [trait(0)])[0].score == pytest.approx((0.5 * 80 + 0.4 * 90) / 0.9)
    assert server.bodies[0]['logprobs'] is True and server.bodies[0]['top_logprobs'] == 20
    assert ask(judge_of(server, floor=0.95), [trait(0)])[0].status == 'unparsable'
  digits = [('8', math.log(0.9)), ('9', math.log(0.1))]
  with Server(lambda body, before: says('85', first=digits)) as server:
    assert ask(judge_of(server), [trait(1)])[1].score == 85.0, (
      'a tokenizer of single digits: the text counts'
    )


def test_an_endpoint_without_logprobs_is_asked_without(judge_of):
  with Server(
    lambda body, before: (
      fails(400, 'logprobs are not supported') if 'logprobs' in body else says('40')
    )
  ) as server:
    said = ask(judge_of(server, concurrency=1), [trait(i) for i in range(3)])
    assert [said[i].score for i in range(3)] == [40.0] * 3
    assert len(server.bodies) == 4
    assert (
      ask(judge_of(server), [trait(i) for i in range(3)]) == said and len(server.bodies) == 4
    ), 'from the cache'


def test_a_rerun_costs_nothing_and_equal_questions_are_asked_once(judge_of, tmp_path):
  same = dataclasses.replace(trait(0), key='again')
  with Server(lambda body, before: says('85'), slow=0.1) as server:
    said = ask(judge_of(server), [trait(0), same, trait(1)])
    assert len(said) == 3 and len(server.bodies) == 2
    judge = judge_of(server)
    assert ask(judge, [trait(0), same, trait(1)]) == said and len(server.bodies) == 2
    assert (
      '0 requests sent, 0 retries, 3 answers reused; in all 200 tokens in, 4 out' in judge.summary()
    )
    ask(judge_of(server, model='another'), [trait(0)])
    ask(judge_of(server, temperature=0.5), [trait(0)])
    assert len(server.bodies) == 4
  lines = [json.loads(line) for line in cached(tmp_path).splitlines()]
  assert (
    lines[0]['model'] == 'gpt-test'
    and lines[0]['answer']['text'] == '85'
    and lines[0]['messages'] in [body['messages'] for body in server.bodies[:2]]
  )


def test_a_torn_cache_loses_one_answer_and_a_broken_one_is_refused(judge_of, tmp_path):
  with Server(lambda body, before: says('85')) as server:
    ask(judge_of(server, concurrency=1), [trait(0), trait(1)])
    path = tmp_path / 'judges' / 'gpt.jsonl'
    path.write_bytes(path.read_bytes()[:-30])
    said = ask(judge_of(server), [trait(0), trait(1)])
    assert [said[i].score for i in (0, 1)] == [85.0, 85.0] and len(server.bodies) == 3
    assert len(cached(tmp_path).splitlines()) == 2
    path.write_text('no json\n' + cached(tmp_path))
    with pytest.raises(CorruptError, match='gpt.jsonl:1 is not JSON'):
      ask(judge_of(server), [trait(0)])


def test_no_more_are_under_way_than_allowed(judge_of):
  with Server(lambda body, before: says('85'), slow=0.05) as server:
    assert len(ask(judge_of(server, concurrency=3), [trait(i) for i in range(12)])) == 12
    assert 2 <= server.most <= 3


def test_the_spend_cap_stops_before_it_is_passed_and_keeps_what_is_done(judge_of):
  """A question takes 702 tokens by the server's count, and by our estimate not more; the cap leaves
  room for three."""
  with Server(lambda body, before: says('85', usage=(700, 2))) as server:
    judge, seen = judge_of(server, token_cap=2200, concurrency=1), []
    with pytest.raises(
      InputError,
      match='would pass the cap .spent: 2100 tokens in, 6 out.; .* raise cost_cap or token_cap',
    ):
      for judgement in judge.judge([trait(i) for i in range(9)]):
        seen.append(judgement.key)
    assert seen == [0, 1, 2] and len(server.bodies) == 3
    with pytest.raises(InputError, match='would pass the cap'):
      list(judge_of(server, token_cap=2200).judge([trait(i) for i in range(9)]))
    assert len(server.bodies) == 3, 'what earlier runs spent counts'
    assert (
      len(ask(judge_of(server, cost_cap=7.0, price_in=1000.0), [trait(i) for i in range(9)])) == 9
    )
    assert len(server.bodies) == 9
  with Server(lambda body, before: says('85', usage=(700, 2)), slow=0.1) as server:
    with pytest.raises(InputError, match='would pass the cap'):
      list(judge_of(server, token_cap=7000, concurrency=8).judge([trait(i) for i in range(20, 40)]))
    assert 0 < len(server.bodies) <= 7, 'what is under way counts'


def test_where_the_endpoint_counts_no_tokens_they_are_estimated(judge_of):
  with Server(lambda body, before: says('85', usage=None)) as server:
    judge = judge_of(server, concurrency=1)
    ask(judge, [trait(0)])
    expected = client.estimate(server.bodies[0]['messages'])
    assert f'{expected} tokens in, 1 out' in judge.summary()
    assert len(server.bodies[0]['messages'][0]['content']) / 5 < expected


@pytest.mark.parametrize(
  'answer, error, message',
  [
    (
      fails(401, f'Incorrect API key provided: {KEY}'),
      InputError,
      'refuses the key in OPENAI_API_KEY',
    ),
    (fails(404, 'no such model'), InputError, "no model 'gpt-test'"),
    (fails(429, 'pay first', code='insufficient_quota'), EndpointError, 'no means left'),
    (fails(500, f'crashed with {KEY}'), EndpointError, 'no answer to 4 requests in a row'),
    (fails(400, 'max_tokens is not supported'), EndpointError, 'max_tokens is not supported'),
  ],
)
def test_what_no_request_can_succeed_after_ends_it_soon_and_tells_no_key(
  judge_of, answer, error, message, tmp_path
):
  with Server(lambda body, before: answer) as server:
    with pytest.raises(error, match=message) as raised:
      list(judge_of(server, retries=1).judge([trait(i) for i in range(50)]))
    assert len(server.bodies) <= 16
    assert KEY not in str(raised.value) and KEY not in cached(tmp_path)


def test_an_address_where_nobody_is(judge_of):
  with Server(lambda body, before: says('85')) as server:
    judge = judge_of(server, retries=1)
  said = ask(judge, [trait(0)])
  assert said[0].status == 'failed' and 'the connection failed' in said[0].text


def test_a_request_that_is_too_long_fails_alone(judge_of):
  def answer(body, before):
    return (
      fails(400, 'the prompt is too long')
      if 'Answer 3.' in body['messages'][0]['content']
      else says('85')
    )

  with Server(answer) as server:
    said = ask(judge_of(server), [trait(i) for i in range(6)])
    assert [said[i].status for i in range(6)] == ['ok'] * 3 + ['failed'] + ['ok'] * 2
    assert 'too long' in said[3].text and len(server.bodies) == 6


def test_the_key_is_sent_and_stands_nowhere_else(judge_of, tmp_path, caplog, capfd):
  caplog.set_level(1)
  with Server(lambda body, before: says(f'85\n{KEY}')) as server:
    judge = judge_of(server)
    said = ask(judge, [trait(0)])
    assert {name.lower(): value for name, value in server.headers[0].items()}[
      'authorization'
    ] == f'Bearer {KEY}'
    assert said[0].text == '85\n[key]'
    out = capfd.readouterr()
    assert (
      KEY
      not in caplog.text
      + cached(tmp_path)
      + out.out
      + out.err
      + repr(judge.inputs())
      + judge.summary()
    )


def test_without_a_key_nothing_is_asked(judge_of, monkeypatch):
  with Server(lambda body, before: says('85')) as server:
    judge = judge_of(server)
    for value in ('', '  ', 'schlüssel'):
      monkeypatch.setenv('OPENAI_API_KEY', value)
      with pytest.raises(InputError, match='OPENAI_API_KEY') as raised:
        judge.check(['trait'])
      assert value.strip() == '' or value not in str(raised.value)
    monkeypatch.setenv('OPENAI_API_KEY', KEY)
    monkeypatch.setenv('OPENAI_BASE_URL', 'localhost:80')
    with pytest.raises(InputError, match='expected an address'):
      judge.check(['trait'])


def test_further_parameters_are_sent_and_null_takes_one_away(judge_of):
  with Server(lambda body, before: says('85')) as server:
    ask(
      judge_of(
        server, parameters='{"max_tokens": null, "max_completion_tokens": 99, "temperature": null}'
      ),
      [trait(0)],
    )
    assert server.bodies[0]['max_completion_tokens'] == 99 and not {
      'max_tokens',
      'temperature',
    } & set(server.bodies[0])


def test_who_stops_listening_ends_the_asking(judge_of):
  with Server(lambda body, before: says('85'), slow=0.1) as server:
    judgements = judge_of(server, concurrency=2).judge([trait(i) for i in range(40)])
    next(judgements)
    started = time.monotonic()
    judgements.close()
    assert time.monotonic() - started < 10 and len(server.bodies) <= 5


REPLY = json.dumps({'choices': [{'message': {'content': '85'}}]}).encode()


@pytest.mark.parametrize(
  'status, message',
  [
    (403, 'You are not allowed to request logprobs from this model'),
    (403, 'Log-probabilities are not available to your key'),
    (404, 'no route for top_logprobs'),
    (422, 'log probs: extra field'),
    (501, 'logprobs'),
  ],
)
def test_a_refusal_of_logprobs_is_no_refusal_of_the_key(judge_of, status, message):
  """Source: OpenAI's reply to a request for the log-probabilities of a model that reasons."""
  with Server(
    lambda body, before: fails(status, message) if 'logprobs' in body else says('73')
  ) as server:
    said = ask(judge_of(server, concurrency=1, retries=0), [trait(0), trait(1)])
    assert [(said[i].score, said[i].status) for i in range(2)] == [(73.0, 'ok')] * 2
    assert ['logprobs' in body for body in server.bodies] == [True, False, False]


@pytest.mark.parametrize('status', [401, 403])
def test_a_refused_key_stays_the_key_s_error(judge_of, status):
  for message in ('wrong key', 'wrong key; logprobs or not'):
    with Server(lambda body, before: fails(status, message)) as server:
      with pytest.raises(InputError, match='refuses the key in OPENAI_API_KEY'):
        ask(judge_of(server), [trait(0)])


SPELLED = {
  'plain': KEY,
  'bearer': f'Bearer {KEY}',
  'url': urllib.parse.quote(f'{KEY}', safe='').replace('-', '%2D'),
  'escaped': ''.join(f'\\u{ord(character):04x}' for character in KEY),
  'base64': 'Basic OnNrLXZlcnktc2VjcmV0LTAxMjM0NTY3ODk=',
}


@pytest.mark.parametrize('spelling', SPELLED)
def test_a_key_that_is_repeated_in_any_field_reaches_no_file(judge_of, tmp_path, spelling):
  written = SPELLED[spelling]
  tops = [{'token': written, 'logprob': -1.0}, {'token': '85', 'logprob': -1.0}]
  reply = {
    'model': written,
    'choices': [
      {
        'message': {'content': f'85\n{written}', 'refusal': None},
        'finish_reason': written,
        'logprobs': {'content': [{'top_logprobs': tops}]},
      }
    ],
  }
  # `json.dumps` doubles the backslashes; as the endpoint may write: once escaped, and twice.
  for body in (json.dumps(reply), json.dumps(reply).replace('\\\\u', '\\u')):
    with Server(lambda _, before, body=body.encode(): send(200, body)) as server:
      said = ask(judge_of(server), [trait(0)])
    assert said[0].score == 85.0 and '[key]' in said[0].text
    kept = cached(tmp_path)
    assert written not in kept and KEY not in kept
    # What base64 says after a colon, without the bits that it shares with the colon.
    assert 'rLXZlcnktc2VjcmV0' not in kept
    (tmp_path / 'judges' / 'gpt.jsonl').unlink()
  with Server(lambda *_: fails(400, f'see {written}')) as server:
    assert written not in ask(judge_of(server, retries=0), [trait(0)])[0].text
  with Server(lambda *_: send(200, f'<p>{written}'.encode())) as server:
    assert written not in ask(judge_of(server, retries=0), [trait(0)])[0].text


@pytest.mark.parametrize('status', [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(judge_of, status):
  with Server(lambda *_: says('77')) as other:
    where = other.url.replace('http://', 'http://somebody@') + '/chat/completions?of=you'
    with Server(lambda *_: send(status, b'', {'Location': where})) as server:
      said = ask(judge_of(server, retries=0), [trait(0)])
    host = urllib.parse.urlsplit(other.url).netloc
    assert said[0].status == 'failed' and not other.bodies
    assert f'redirects to {host}, and' in said[0].text and 'OPENAI_BASE_URL' in said[0].text
    assert 'somebody' not in said[0].text and 'of=you' not in said[0].text


@pytest.mark.parametrize('headers', [False, True], ids=['body', 'headers'])
def test_the_time_out_is_for_the_whole_request(judge_of, headers):
  with Server(lambda *_: drips(REPLY, 3.0, headers=headers)) as server:
    started = time.monotonic()
    said = ask(judge_of(server, retries=0, timeout_s=0.4), [trait(0)])
    assert time.monotonic() - started < 2.0
    assert said[0].status == 'failed' and 'no answer within 0.4 s' in said[0].text


@pytest.mark.parametrize('status', [200, 400])
def test_a_reply_has_a_most_of_bytes(judge_of, monkeypatch, status):
  monkeypatch.setattr(bounded, 'MOST_ON_THE_WIRE', 100_000)
  monkeypatch.setattr(bounded, 'MOST_UNPACKED', 200_000)
  zipped = {'Content-Encoding': 'gzip'}
  padded = gzip.compress(REPLY + b' ' * 150_000)
  with Server(lambda *_: send(200, padded, zipped)) as server:
    assert ask(judge_of(server, retries=0), [trait(0)])[0].score == 85.0
  too_long = gzip.compress(REPLY + b' ' * 5_000_000)
  assert len(too_long) < 100_000
  for body, headers in ((REPLY + b' ' * 150_000, {}), (too_long, zipped)):
    with Server(lambda *_, body=body, headers=headers: send(status, body, headers)) as server:
      said = ask(judge_of(server, retries=3), [trait(1)])
      assert said[1].status == 'failed' and 'too large' in said[1].text
      assert len(server.bodies) == 1, 'nor is it fetched again'


@pytest.mark.parametrize('logprob', ['NaN', 'Infinity', '-Infinity', '1e999', '800', '0.01'])
def test_what_is_no_log_probability_makes_the_answer_unparsable(judge_of, tmp_path, logprob):
  reply = (
    '{"choices": [{"message": {"content": "85"}, "logprobs": {"content": [{"top_logprobs": '
    f'[{{"token": "85", "logprob": {logprob}}}, {{"token": "84", "logprob": -1}}]}}]}}}}]}}'
  )
  with Server(lambda *_: send(200, reply.encode())) as server:
    said = ask(judge_of(server), [trait(0)])
    assert (said[0].score, said[0].status) == (None, 'unparsable')
    assert 'is no log-probability: 85' in said[0].text
    # Kept, and read again as what it is.
    assert ask(judge_of(server), [trait(0)]) == said and len(server.bodies) == 1
  with Server(lambda *_: says('85', first=[('85', 1e-7), ('84', -20.0)])) as server:
    assert ask(judge_of(server), [trait(1)])[1].status == 'ok', 'rounded up from 0'


def test_deep_json_and_huge_numbers_end_nothing(judge_of):
  with Server(lambda *_: send(200, b'[' * 100_000)) as server:
    said = ask(judge_of(server, retries=0), [trait(0)])
    assert said[0].status == 'unparsable' and 'nested too deeply' in said[0].text
  with Server(lambda *_: says('85', usage=(10**400, 1))) as server:
    judge = judge_of(server, price_in=1.0, cost_cap=9.0)
    assert ask(judge, [trait(1)])[1].score == 85.0
  huge = json.dumps({'choices': [{'message': {'content': '85'}, 'logprobs': 0}]})
  huge = huge.replace(
    ': 0}', ': {"content": [{"top_logprobs": [{"token": "8", "logprob": -1%s}]}]}}'
  )
  with Server(lambda *_: send(200, (huge % ('0' * 400)).encode())) as server:
    assert ask(judge_of(server, retries=0), [trait(2)])[2].status == 'failed'


def test_answers_of_earlier_versions_are_read(judge_of, tmp_path):
  with Server(lambda *_: says('85')) as server:
    ask(judge_of(server), [trait(0)])
    path = tmp_path / 'judges' / 'gpt.jsonl'
    line = json.loads(path.read_text())
    # Neither had lines a check.
    del line['answer']['fault'], line['check']
    path.write_text(json.dumps(line) + '\n')
    assert ask(judge_of(server), [trait(0)])[0].score == 85.0 and len(server.bodies) == 1


def test_a_proxy_that_cannot_be_used_is_told_without_its_password(judge_of, monkeypatch):
  with Server(lambda *_: says('85')) as server:
    judge = judge_of(server)
  monkeypatch.setenv('OPENAI_BASE_URL', 'http://judge.example/v1')
  for name in ('http_proxy', 'no_proxy', 'NO_PROXY'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('http_proxy', 'ftp://me:password@proxy:21')
  with pytest.raises(InputError, match='the proxy that the environment names') as raised:
    judge.check(['trait'])
  assert 'password' not in str(raised.value)


def test_a_question_goes_through_the_proxy(judge_of, monkeypatch):
  with Server(lambda *_: says('85')) as proxy:
    judge = judge_of(proxy)
    monkeypatch.setenv('OPENAI_BASE_URL', 'http://judge.example/v1')
    for name in ('no_proxy', 'NO_PROXY'):
      monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('http_proxy', proxy.url.removesuffix('/v1'))
    assert ask(judge, [trait(0)])[0].score == 85.0
    assert [headers['Host'] for headers in proxy.headers] == ['judge.example']


def test_the_proxy_of_the_environment_is_asked(monkeypatch):
  for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):
    monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(name.upper(), raising=False)
  assert bounded.proxy_of('https://api.openai.com/v1') == ''
  monkeypatch.setenv('HTTPS_PROXY', 'proxy:3128')
  monkeypatch.setenv('NO_PROXY', 'localhost')
  assert bounded.proxy_of('https://api.openai.com/v1') == 'http://proxy:3128'
  assert bounded.proxy_of('https://localhost/v1') == ''
