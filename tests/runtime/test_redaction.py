"""What is hidden of a text or a setting, and in which spellings a secret is found."""

import base64
import json
import time
import urllib.parse

import pytest

from weightsteer_jax.runtime import redaction

KEY = 'sk-not/a real+key-0123456789'


@pytest.mark.parametrize(
  'key, hidden',
  [
    ('hub_token', True),
    ('token', True),
    ('API_KEY', True),
    ('api-key', True),
    ('apiKey', True),
    ('x-api-key', True),
    ('Authorization', True),
    ('extra_headers', True),
    ('bearer', True),
    ('db_password', True),
    ('tokenizer', False),
    ('max_new_tokens', False),
    ('top_logprobs', False),
    ('key', False),
    ('key_variable', False),
    ('author', False),
  ],
)
def test_which_keys_are_secrets(key, hidden):
  assert redaction.redact({key: 'text'}) == {key: redaction.HIDDEN if hidden else 'text'}


@pytest.mark.parametrize(
  'command, shown',
  [
    ('run --hf_token abc --n 1', 'run --hf_token (hidden) --n 1'),
    ('run --token=abc', 'run --token=(hidden)'),
    ('run --max_new_tokens=5 --tokenizer=x', 'run --max_new_tokens=5 --tokenizer=x'),
    ("run --x={'Authorization': 'Bearer abc def'} y", "run --x={'Authorization': (hidden)} y"),
    ('run --n=1 Authorization: Bearer abcdefgh', 'run --n=1 Authorization: (hidden)'),
    ('run --name=sk-0123456789abcdefghij', 'run --name=(hidden)'),
    ('run --chat_template_args={"a": 1}', 'run --chat_template_args={"a": 1}'),
  ],
)
def test_which_flags_are_secrets(command, shown):
  assert redaction.redact(command) == shown


def test_a_flag_of_json_is_read_as_json():
  parameters = {'a': [{'api\u005fkey': 'so "much"'}], 'extra_headers': {'X-Mine': 'so much'}}
  flag = '--config.judges.gpt.parameters='
  shown = redaction.redact_command(['python', 'x.py', flag + json.dumps(parameters), '--n=1'])
  assert 'much' not in shown and shown.endswith('--n=1')
  assert list(redaction.secrets_in(parameters)) == ['a.0.api_key', 'extra_headers']
  assert redaction.redact(json.dumps({'deep': {'token': 'x'}})) == '{"deep": {"token": "(hidden)"}}'


@pytest.mark.parametrize(
  'written',
  [
    f'Bearer {KEY}',
    urllib.parse.quote(KEY, safe=''),
    urllib.parse.quote_plus(KEY).lower(),
    json.dumps(KEY).replace('/', '\\/'),
    json.dumps(json.dumps({'said': KEY})).replace('/', '\\\\/'),
    ''.join(f'\\u{ord(character):04x}' for character in KEY),
    ''.join(f'&#x{ord(character):X};' for character in KEY),
    base64.b64encode(KEY.encode()).decode(),
    base64.b64encode(f':{KEY}'.encode()).decode(),
    base64.urlsafe_b64encode(f'me:{KEY}:'.encode()).decode(),
  ],
)
def test_a_secret_is_found_in_every_spelling(written):
  shown = redaction.spellings(KEY).sub('[key]', f'before {written} after')
  assert '[key]' in shown and shown.startswith('before ') and shown.endswith(' after')
  # A character or two of base64 also hold bits of the neighbours.
  assert len(shown) < len('before Bearer [key] after') + 12


def test_long_texts_take_no_long_time():
  started = time.monotonic()
  pattern = redaction.spellings(KEY)
  for text in ('\\' * 300_000, 'a' * 300_000, 'a=' * 100_000, '--a ' * 100_000, '[' * 100_000):
    assert pattern.sub('', text) == text and redaction.redact(text) == text
  assert time.monotonic() - started < 5.0
