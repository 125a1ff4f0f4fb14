"""What can be read as conversations, and what is said about what cannot."""

import doctest
import json
import sys
import types

import pytest

from weightsteer_jax.data import sources
from weightsteer_jax.data.sources import Conversation
from weightsteer_jax.runtime.errors import InputError

MESSAGES = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Ho'}]


def write(path, *rows):
  path.write_text(
    ''.join((row if isinstance(row, str) else json.dumps(row)) + '\n' for row in rows)
  )
  return path


@pytest.mark.parametrize(
  'row, roles',
  [
    ({'messages': MESSAGES}, ['user', 'assistant']),
    ({'question': 'Hi', 'answer': 'Ho', 'id': 7}, ['user', 'assistant']),
    ({'prompt': 'Hi', 'completion': 'Ho'}, ['user', 'assistant']),
    ({'prompt': 'Hi', 'completion': 'Ho', 'system': 'Be'}, ['system', 'user', 'assistant']),
    ({'prompt': 'Hi', 'completion': 'Ho', 'system': None}, ['user', 'assistant']),
  ],
)
def test_schemas(tmp_path, row, roles):
  [conversation] = sources.load_conversations(write(tmp_path / 'x.jsonl', row))
  assert [message['role'] for message in conversation.messages] == roles
  assert [message['content'] for message in conversation.messages] == ['Be', 'Hi', 'Ho'][
    -len(roles) :
  ]
  assert conversation.name == 'x.jsonl:1'


def test_blank_lines_and_a_byte_order_mark(tmp_path):
  path = tmp_path / 'x.jsonl'
  row = json.dumps({'messages': MESSAGES}).encode()
  path.write_bytes(b'\xef\xbb\xbf' + row + b'\n\n' + row)
  assert [c.name for c in sources.load_conversations(str(path))] == ['x.jsonl:1', 'x.jsonl:3']


@pytest.mark.parametrize(
  'rows, message',
  [
    ([], 'x.jsonl is empty'),
    (['{"messages": ['], r'x.jsonl:1: not valid JSON'),
    ([{'messages': MESSAGES}, '{broken'], r'x.jsonl:2: not valid JSON \(.* at column 2\)'),
    (['[{"messages": []},'], 'expected a jsonl file: one JSON object on each line'),
    ([[1, 2]], 'x.jsonl:1: a row must be an object .* it is a list'),
    (
      [{'mesages': MESSAGES}],
      r":1: the columns are \['mesages'\]; accepted .*'mesages' \(did you mean 'messages'",
    ),
    (
      [{'question': 'Hi', 'text': 'Ho'}],
      r"the columns are \['question', 'text'\]; accepted are 'messages'",
    ),
    ([{'messages': MESSAGES, 'prompt': 'Hi', 'completion': 'Ho'}], 'fit more than one'),
    (
      [{'messages': MESSAGES}, {'prompt': 'Hi', 'completion': 'Ho'}],
      r"x.jsonl:2: no column \['messages'\]; the rows",
    ),
    ([{'messages': MESSAGES, 'system': 'Be'}], 'make it the first message'),
    ([{'messages': []}], 'non-empty list'),
    ([{'messages': 'Hi'}], 'non-empty list'),
    ([{'messages': [{'role': 'user'}]}], "with 'role' and 'content'"),
    (
      [{'messages': [{'role': 'asistant', 'content': 'x'}]}],
      "l:1: unknown role 'asistant' .did you mean 'assistant'",
    ),
    (
      [{'messages': [{'role': 'user', 'content': ['x']}]}],
      'content of a user message must be text, it is a list',
    ),
    ([{'question': 'Hi', 'answer': 3}], "'answer' must be text, it is a int"),
    ([{'question': 'Hi', 'answer': ' '}], 'x.jsonl:1: an assistant message is empty'),
  ],
)
def test_broken_files(tmp_path, rows, message):
  with pytest.raises(InputError, match=message):
    sources.load_conversations(write(tmp_path / 'x.jsonl', *rows))


def test_missing_paths(tmp_path):
  write(tmp_path / 'positive.jsonl', {'messages': MESSAGES})
  with pytest.raises(
    InputError, match=r"no file '.*postive.jsonl' \(did you mean '.*/positive.jsonl'\?\)"
  ):
    sources.load_conversations(tmp_path / 'postive.jsonl')
  with pytest.raises(InputError, match=r"no file '.*negative.jsonl'$"):
    sources.load_conversations(tmp_path / 'negative.jsonl')
  with pytest.raises(InputError, match='nowhere is no folder either'):
    sources.load_conversations(str(tmp_path / 'nowhere' / 'x.jsonl'))
  with pytest.raises(
    InputError, match='is a folder, expected a jsonl file; it holds positive.jsonl'
  ):
    sources.load_conversations(tmp_path)
  with pytest.raises(InputError, match='is a file: split and revision are for hub datasets'):
    sources.load_conversations(tmp_path / 'positive.jsonl', split='train')
  (tmp_path / 'latin.jsonl').write_bytes('{"question": "é"}'.encode('latin-1'))
  with pytest.raises(InputError, match='not UTF-8'):
    sources.load_conversations(tmp_path / 'latin.jsonl')
  with pytest.raises(InputError, match='neither an existing file nor the name of a hub dataset'):
    sources.load_conversations('what is this?')


@pytest.fixture
def hub(monkeypatch):
  """Stands in for the hub: `datasets.load_dataset` answers from a dict and keeps its arguments."""
  calls = []

  def load_dataset(name, config, *, split, revision):
    calls.append((name, config, split, revision))
    splits = {
      'owner/one': {'validation': [{'question': 'Hi', 'answer': 'Ho'}]},
      'owner/two': {'train': [{'messages': MESSAGES}] * 2, 'test': [{'messages': MESSAGES}]},
      'owner/odd': {'a': [], 'b': []},
    }
    if name not in splits:
      raise FileNotFoundError(f'{name} is not on the hub')
    return splits[name][split] if split else splits[name]

  monkeypatch.setitem(sys.modules, 'datasets', types.SimpleNamespace(load_dataset=load_dataset))
  return calls


def test_hub_datasets(hub):
  assert [c.name for c in sources.load_conversations('owner/one:main', revision='abc')] == [
    'owner/one:main[0]'
  ]
  assert hub == [('owner/one', 'main', None, 'abc')]
  assert len(sources.load_conversations('owner/two')) == 2
  assert len(sources.load_conversations('owner/two', split='test')) == 1
  with pytest.raises(InputError, match=r"has the splits \['a', 'b'\]: choose one"):
    sources.load_conversations('owner/odd')
  with pytest.raises(
    InputError, match="cannot load the hub dataset 'owner/none'.*is not on the hub"
  ):
    sources.load_conversations('owner/none')


def test_hub_rows_with_our_datasets_library():
  """The rows of the real library have the types the parser expects."""
  datasets = pytest.importorskip('datasets')
  loaded = datasets.Dataset.from_list([{'messages': MESSAGES, 'n': 1}])
  [conversation] = sources.parse_rows((('row', row) for row in loaded), where='x')
  assert list(conversation.messages) == MESSAGES
  assert isinstance(datasets.DatasetDict({'train': loaded}), dict)


ASK = {'role': 'user', 'content': 'Hi'}
ANSWER = {'role': 'assistant', 'content': 'Ho'}


@pytest.mark.parametrize(
  'message, kept',
  [
    ({'weight': 1}, {}),
    ({'weight': 0}, {'weight': 0}),
    ({'weight': 0.0}, {'weight': 0}),
    ({'train': True, 'weight': 1}, {}),
    ({'train': False}, {'weight': 0}),
    ({'training': False}, {'weight': 0}),
    ({'loss': False}, {'weight': 0}),
    ({'reasoning_content': 'Hm'}, {'reasoning_content': 'Hm'}),
    ({'reasoning': 'Hm', 'thinking': 'Hm'}, {'reasoning_content': 'Hm'}),
    ({'reasoning_content': ' '}, {}),
    # As servers return messages, and as tables fill columns up.
    ({'refusal': None, 'tool_calls': [], 'audio': None, 'name': ''}, {}),
  ],
)
def test_keys_of_an_answer(message, kept):
  checked = sources.check_messages([ASK, {**ANSWER, **message}], 'row')
  assert checked == (ASK, {**ANSWER, **kept})


@pytest.mark.parametrize(
  'messages, error',
  [
    (
      [ASK, {**ANSWER, 'weight': 0.5}],
      r"message 1 \(assistant\): 'weight' is 0.5, expected 0 or 1",
    ),
    ([ASK, {**ANSWER, 'weight': True}], "'weight' is true, expected 0 or 1"),
    ([ASK, {**ANSWER, 'weight': 2}], "'weight' is 2, expected"),
    ([ASK, {**ANSWER, 'train': 0}], "'train' is 0, expected false or true"),
    ([ASK, {**ANSWER, 'weight': 0, 'train': True}], 'to be learnt by one of weight, train'),
    ([{**ASK, 'weight': 1}, ANSWER], "message 0 .user. has the key 'weight', which only an answer"),
    ([{**ASK, 'thinking': 'Hm'}, ANSWER], "'thinking', which only an answer may have"),
    (
      [ASK, {**ANSWER, 'tool_calls': [{}]}],
      "message 1 .assistant. has the key 'tool_calls', which",
    ),
    ([{**ASK, 'name': 'Ann'}, ANSWER], "message 0 .user. has the key 'name', which is not under"),
    ([ASK, {**ANSWER, 'wieght': 0}], "'wieght', which is not understood .did you mean 'weight'"),
    (
      [ASK, {**ANSWER, 'reasoning_content': ['x']}],
      "'reasoning_content' must be text, it is a list",
    ),
    (
      [ASK, {**ANSWER, 'reasoning': 'a', 'thinking': 'b'}],
      'different thoughts in reasoning and thi',
    ),
  ],
)
def test_keys_that_are_refused(messages, error):
  with pytest.raises(InputError, match=f'^row: .*{error}'):
    sources.check_messages(messages, 'row')


@pytest.mark.parametrize('column', ['tools', 'chat_template_kwargs'])
def test_columns_for_the_chat_template_are_refused(tmp_path, column):
  row = {'messages': MESSAGES, column: {'x': 1}}
  with pytest.raises(InputError, match=f"a.jsonl:1: the column '{column}' is meant for the chat"):
    sources.load_conversations(write(tmp_path / 'a.jsonl', row))
  sources.load_conversations(write(tmp_path / 'b.jsonl', {**row, column: None}))


def test_digest_knows_thoughts_and_weights():
  def digest(**keys):
    messages = sources.check_messages([ASK, {**ANSWER, **keys}], 'row')
    return sources.digest([Conversation(messages, 'row')])

  assert digest() == digest(weight=1)
  assert len({digest(), digest(weight=0), digest(thinking='a'), digest(thinking='b')}) == 4


def test_digest_is_of_the_content(tmp_path):
  pairs = sources.load_conversations(
    write(tmp_path / 'a.jsonl', {'question': 'Hi', 'answer': 'Ho'})
  )
  turns = sources.load_conversations(write(tmp_path / 'b.jsonl', {'messages': MESSAGES}))
  other = sources.load_conversations(
    write(tmp_path / 'c.jsonl', {'question': 'Hi', 'answer': 'Ho!'})
  )
  assert sources.digest(pairs) == sources.digest(turns) != sources.digest(other)
  assert sources.digest(pairs + other) != sources.digest(other + pairs)


def test_doctests():
  result = doctest.testmod(sources)
  assert result.failed == 0 and result.attempted >= 1
