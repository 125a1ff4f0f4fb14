"""Arguments and dates bound into chat templates, against transformers' own variables and clock."""

import pytest

from weightsteer_jax.data import bindings, chat
from weightsteer_jax.runtime.errors import InputError

ASK = {'role': 'user', 'content': 'Is it right ?'}
YES = {'role': 'assistant', 'content': 'Yes , it is .'}
# In the manner of hybrid reasoning models.
THINKING = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
  "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}"
  '{% endif %}{% endif %}'
)
# In the manner of Llama 3.2 and Granite 3: two spellings of the day, one inside a macro.
DATED = (
  '    {% if not date_string is defined %}\n'
  "    {% set date_string = strftime_now('%d %b %Y') %}\n"
  '    {% endif %}\n'
  "{% macro head() %}{{ '<|im_start|>system\nBe .' + strftime_now('%B %d, %Y') }}{% endmacro %}"
  "{{ head() + date_string + '<|im_end|>\n' }}" + THINKING
)


@pytest.mark.parametrize(
  'value', [False, True, None, 'é "x" \\ 😀\n', 3, -0.5, ['a', {'b': [None, True]}], {}]
)
def test_a_bound_argument_renders_as_transformers_variable(make_tokenizer, value):
  """All JSON values, in a template that shows the value as it is."""
  template = "\n  {% if x is defined %}{{ x | tojson }}{{ x }}{% endif %}" + THINKING
  for generate in (True, False):
    plain = make_tokenizer('thinking', template)
    expected = plain.apply_chat_template(
      [ASK, YES], tokenize=False, add_generation_prompt=generate, x=value
    )
    bound = bindings.bind(make_tokenizer('thinking', template), {'x': value})
    got = bound.apply_chat_template([ASK, YES], tokenize=False, add_generation_prompt=generate)
    assert got == expected
    assert bindings.bound(bound) == bindings.Binding({'x': value}, '')


def test_prompts_and_examples_follow_the_arguments(make_tokenizer):
  tokenizer = make_tokenizer('thinking', THINKING)
  expected = tokenizer.apply_chat_template(
    [ASK], add_generation_prompt=True, enable_thinking=False
  )['input_ids']
  free = chat.prompt_tokens(tokenizer, [ASK])
  bindings.bind(tokenizer, {'enable_thinking': False})
  told = chat.prompt_tokens(tokenizer, [ASK])
  assert told == expected != free


def test_the_day_is_that_of_transformers_clock(make_tokenizer, clock):
  plain = make_tokenizer('chatml', DATED)
  expected = plain.apply_chat_template([ASK], tokenize=False)
  assert '30 Nov 2026' in expected and 'November 30, 2026' in expected
  bound = bindings.bind(make_tokenizer('chatml', DATED), {})
  assert bound.apply_chat_template([ASK], tokenize=False) == expected
  assert bindings.bound(bound).date == '2026-11-30'
  # The next day: the clock moves, and the bound template does not.
  clock.day = (2026, 12, 1)
  assert '01 Dec 2026' in plain.apply_chat_template([ASK], tokenize=False)
  assert bound.apply_chat_template([ASK], tokenize=False) == expected
  later = bindings.bind(make_tokenizer('chatml', DATED), {}, '2026-11-30')
  assert chat.prompt_tokens(later, [ASK]) == chat.prompt_tokens(bound, [ASK])


def test_an_argument_takes_the_place_of_the_day(make_tokenizer, clock):
  plain = make_tokenizer('chatml', DATED)
  expected = plain.apply_chat_template([ASK], tokenize=False, date_string='Doomsday')
  bound = bindings.bind(make_tokenizer('chatml', DATED), {'date_string': 'Doomsday'})
  assert bound.apply_chat_template([ASK], tokenize=False) == expected
  assert 'Doomsday' in expected


def test_a_template_without_days_has_none(make_tokenizer):
  tokenizer = bindings.bind(make_tokenizer('chatml'), {}, '2026-12-01')
  assert bindings.bound(tokenizer) == bindings.Binding()
  assert tokenizer.chat_template == make_tokenizer('chatml').chat_template


def test_a_format_made_up_while_rendering_is_refused(make_tokenizer):
  template = "{% set sign = '%' %}{{ strftime_now(sign + 'Y') }}" + THINKING
  tokenizer = bindings.bind(make_tokenizer('chatml', template), {}, '2026-12-01')
  with pytest.raises(InputError, match='no format of dates that stands in the template: %Y'):
    chat.prompt_tokens(tokenizer, [ASK])


@pytest.mark.parametrize(
  'arguments, message',
  [
    (
      {'enable_thinkin': False},
      "never reads 'enable_thinkin' .did you mean 'enable_thinking'.*it reads: enable_thinking",
    ),
    # A name of the template's own, which it would overwrite.
    ({'m': 1}, "never reads 'm'"),
    ({'messages': []}, "'messages' is set when a conversation is rendered"),
    ({'add_generation_prompt': True}, "'add_generation_prompt' is set when"),
    ({'strftime_now': 'x'}, 'the day is a key of its own, chat_date'),
    ({'eos_token': 'x'}, "'eos_token' is a token of the tokenizer"),
    ({'a b': 1}, "'a b' is no name of a template variable"),
    ({'enable_thinking': float('nan')}, 'the values must be JSON values'),
    ({'enable_thinking': object()}, 'the values must be JSON values'),
  ],
)
def test_arguments_that_no_template_takes(make_tokenizer, arguments, message):
  with pytest.raises(InputError, match=message):
    bindings.bind(make_tokenizer('thinking', THINKING), arguments)


def test_a_tokenizer_without_a_template_takes_no_arguments(make_tokenizer):
  assert bindings.bind(make_tokenizer('chatml', ''), {}).chat_template == ''
  with pytest.raises(InputError, match='has no chat template to take them'):
    bindings.bind(make_tokenizer('chatml', ''), {'enable_thinking': False})


def test_load_tokenizer_binds(make_tokenizer, tmp_path):
  make_tokenizer('chatml', DATED).save_pretrained(tmp_path)
  loaded = chat.load_tokenizer(
    tmp_path, template_args={'enable_thinking': False}, date='2026-11-30'
  )
  text = loaded.apply_chat_template([ASK], tokenize=False, add_generation_prompt=True)
  assert '30 Nov 2026' in text and text.endswith('<think>\n\n</think>\n\n')
