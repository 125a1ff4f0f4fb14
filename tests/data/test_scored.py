"""What completions are scored behind, against tokens of transformers' own rendering."""

import pytest

from data.conftest import CHATML, CHATML_TOKENS, byte_level
from weightsteer_jax.data import chat
from weightsteer_jax.runtime.errors import InputError

ASK = [{'role': 'user', 'content': 'Is it right ?'}]
HEAD = '<|im_start|>system\nBe kind .<|im_end|>\n<|im_start|>user\nIs it right ?<|im_end|>\n'
HEADER = HEAD + '<|im_start|>assistant\n'
EMPTY = '<think>\n\n</think>\n\n'
# A turn of the assistant; `r` is its reasoning, `c` the rest.
TURN = (
  "{% if m.role == 'assistant' %}{% set c = m.content.split('</think>')[-1].lstrip('\n') %}"
  "{% set r = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in "
  "m.content else '' %}{{ 'SHOWN' }}{{ '<|im_end|>' }}{% else %}{{ m.content + '<|im_end|>' }}"
  "{% endif %}"
)
SHOWS = CHATML.replace(
  "{{ m.content + '<|im_end|>' }}",
  TURN.replace("'SHOWN'", "'<think>\n' + r + '\n</think>\n\n' + c"),
)
DROPS = CHATML.replace("{{ m.content + '<|im_end|>' }}", TURN.replace("'SHOWN'", 'c'))


def opening(template, text):
  """The template with `text` at the end of the prompt of generation."""
  return template.replace(
    '<|im_start|>assistant\n{% endif', '<|im_start|>assistant\n' + text + '{% endif'
  )


TEMPLATES = {
  # As Qwen3: thinks by itself, and shows an empty thought before an answer.
  'hybrid': SHOWS,
  # As Qwen3 with enable_thinking=False.
  'hybrid, not so': opening(SHOWS, EMPTY),
  # As Qwen3.5.
  'opens, shows': opening(SHOWS, '<think>\n'),
  # As DeepSeek-R1, before and since its prompt opens the thought.
  'drops': DROPS,
  'opens, drops': opening(DROPS, '<think>\n'),
  # As Nemotron 3 Nano: an empty thought is shown otherwise than it is begun.
  'opens, shows closed': opening(
    DROPS.replace("{{ c }}", "{{ '<think></think>' + c }}"), '<think>\n'
  ),
  # As OLMo 3.
  'opens without a newline': opening(DROPS, '<think>'),
  'closes, drops': opening(DROPS, EMPTY),
}


def tokenizer_of(style, plain=('<think>', '</think>')):
  return byte_level(TEMPLATES[style], CHATML_TOKENS, plain, eos_token='<|im_end|>')


# The tags as added tokens, and as mere text.
@pytest.mark.parametrize('plain', [('<think>', '</think>'), ()])
@pytest.mark.parametrize(
  ('style', 'prompt', 'behind'),
  [
    ('hybrid', HEADER + EMPTY, 'an empty thought'),
    ('hybrid, not so', HEADER + EMPTY, ''),
    ('opens, shows', HEADER + EMPTY, 'an empty thought'),
    ('drops', HEADER, ''),
    ('opens, drops', HEADER + EMPTY, 'an empty thought'),
    ('opens, shows closed', HEADER + '<think></think>', 'an empty thought'),
    ('opens without a newline', HEADER + EMPTY, 'an empty thought'),
    ('closes, drops', HEADER + EMPTY, ''),
  ],
)
def test_an_answer_is_scored_behind_an_empty_thought(style, plain, prompt, behind):
  tokenizer = tokenizer_of(style, plain)
  scored = chat.scored_tokens(tokenizer, ASK, 'Yes , it is .', end_of_turn=False)
  # The thought is a part of the prompt, and of nothing else.
  assert list(scored.prompt) == tokenizer(prompt)['input_ids']
  assert tokenizer.decode(scored.completion) == 'Yes , it is .'
  assert scored.behind == behind
  ended = chat.scored_tokens(tokenizer, ASK, 'Yes , it is .')
  assert ended.completion == (*scored.completion, tokenizer.eos_token_id)


@pytest.mark.parametrize('style', ['hybrid', 'drops'])
def test_a_completion_with_a_thought_is_scored_as_it_stands(style):
  tokenizer = tokenizer_of(style)
  said = [
    chat.scored_tokens(tokenizer, ASK, f'<think>\n{thought}\n</think>\n\nYes')
    for thought in ('It is .', 'It is not .')
  ]
  for scored, thought in zip(said, ('It is .', 'It is not .')):
    assert list(scored.prompt) == tokenizer(HEADER)['input_ids']
    text = f'<think>\n{thought}\n</think>\n\nYes<|im_end|>'
    assert list(scored.completion) == tokenizer(text)['input_ids']


@pytest.mark.parametrize('text', ['It is .\n</think>\n\nYes', '<think>\nIt is .\n</think>\n\nYes'])
@pytest.mark.parametrize('style', ['opens, shows', 'opens, drops'])
def test_a_thought_goes_on_where_the_prompt_opened_it(style, text):
  tokenizer = tokenizer_of(style)
  scored = chat.scored_tokens(tokenizer, ASK, text, end_of_turn=False)
  assert list(scored.prompt) == tokenizer(HEADER + '<think>\n')['input_ids']
  assert tokenizer.decode(scored.completion) == 'It is .\n</think>\n\nYes'


def test_a_thought_behind_a_closed_one_is_refused():
  with pytest.raises(InputError, match='has closed an empty one: let the model think'):
    chat.scored_tokens(tokenizer_of('hybrid, not so'), ASK, '<think>It is</think>Yes')


def test_control_tokens_are_refused_beside_a_thought():
  with pytest.raises(InputError, match='holds the control token'):
    chat.scored_tokens(tokenizer_of('hybrid'), ASK, '<think>a</think>Yes<|im_end|>')
