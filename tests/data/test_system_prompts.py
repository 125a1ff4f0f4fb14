"""System prompts: of the template's own, bound before it, and refused by it."""

import pytest

from weightsteer_jax.data import bindings, chat, templates
from weightsteer_jax.runtime.errors import InputError

ASK = {'role': 'user', 'content': 'Is it right ?'}
YES = {'role': 'assistant', 'content': 'Yes , it is .'}
BE = {'role': 'system', 'content': 'Be brief .'}
TURNS = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# In the manner of Qwen2.5: words of its own where the conversation has no system prompt.
DEFAULT = (
  "{% if messages[0].role != 'system' %}"
  "{{ '<|im_start|>system\nYou are a kind helper .<|im_end|>\n' }}{% endif %}" + TURNS
)
# In the manner of Gemma 2, of the first Mistral, and of templates that leave the turn out.
REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}"
ALTERNATING = (
  "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
DROPPING = TURNS.replace('in messages', "in messages if m.role != 'system'")


def text_of(tokenizer, *messages):
  return tokenizer.decode(chat.prompt_tokens(tokenizer, list(messages)))


@pytest.mark.parametrize(
  'template, words', [(DEFAULT, 'You are a kind helper .'), (TURNS, ''), (DROPPING, '')]
)
def test_the_words_of_a_template(make_tokenizer, template, words):
  tokenizer = make_tokenizer('chatml', template)
  assert templates.words_of_its_own(tokenizer) == words


def test_a_system_prompt_takes_the_place_of_the_templates_words(make_tokenizer):
  plain = make_tokenizer('chatml', DEFAULT)
  tokenizer = bindings.bind(make_tokenizer('chatml', DEFAULT), {}, system_prompt=BE['content'])
  # As transformers renders a conversation with the system prompt.
  for messages in ([ASK], [ASK, YES, ASK]):
    expected = plain.apply_chat_template(
      [BE, *messages], tokenize=False, add_generation_prompt=True
    )
    assert (
      tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
      == expected
    )
  # A prompt of the conversation's own is left alone.
  own = {'role': 'system', 'content': 'Be long .'}
  assert text_of(tokenizer, own, ASK) == text_of(plain, own, ASK)
  example = chat.encode_example(tokenizer, [ASK, YES], max_length=100)
  assert tokenizer.decode(example.tokens).startswith(text_of(plain, BE, ASK))
  assert bindings.bound(tokenizer).to_json() == {'system_prompt': 'Be brief .'}


@pytest.mark.parametrize('template', [REFUSING + TURNS, ALTERNATING + TURNS, DROPPING])
def test_a_template_without_a_system_turn(make_tokenizer, template):
  tokenizer = make_tokenizer('chatml', template)
  with pytest.raises(InputError, match="system.*no system turn.*model.system_role='user'"):
    chat.prompt_tokens(tokenizer, [BE, ASK])
  joined = {'role': 'user', 'content': 'Be brief .\n\nIs it right ?'}
  expected = text_of(tokenizer, joined)
  bound = bindings.bind(make_tokenizer('chatml', template), {}, system_role='user')
  assert text_of(bound, BE, ASK) == expected
  # And a prompt for conversations without one.
  both = bindings.bind(
    make_tokenizer('chatml', template), {}, system_prompt=BE['content'], system_role='user'
  )
  assert text_of(both, ASK) == expected
  example = chat.encode_example(both, [ASK, YES], max_length=100)
  assert both.decode(example.tokens).startswith(expected)


def test_another_fault_is_not_blamed_on_the_system_prompt(make_tokenizer):
  tokenizer = make_tokenizer('chatml', ALTERNATING + TURNS)
  with pytest.raises(InputError, match=r'\(roles must alternate\); its roles are: system, user'):
    chat.prompt_tokens(tokenizer, [BE, ASK, ASK])


def test_a_question_that_the_template_drops(make_tokenizer):
  template = TURNS.replace('in messages', 'in messages[-2:]')
  with pytest.raises(InputError, match="drops or rewrites the user message 'Is it right"):
    tokenizer = make_tokenizer('chatml', template)
    chat.prompt_tokens(tokenizer, [ASK, YES, {'role': 'user', 'content': 'Sure ?'}])
