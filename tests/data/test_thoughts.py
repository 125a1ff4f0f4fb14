"""Thoughts and answers: texts taken apart by hand, tags found in tokenizers and templates."""

import pytest

from data.conftest import CHATML, CHATML_TOKENS, byte_level
from weightsteer_jax.data import chat, thoughts
from weightsteer_jax.data.thoughts import THINK, Split

QUESTION = [{'role': 'user', 'content': 'Is it right ?'}]
# In the manner of Qwen3: the template knows the tags, and closes an empty thought on request.
HYBRID = CHATML.replace(
  '<|im_start|>assistant\n{% endif %}',
  "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}{{ "
  "'<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
)
# In the manner of Qwen3 2507 and R1: the prompt opens the thought.
OPENED = CHATML.replace(
  '<|im_start|>assistant\n{% endif', '<|im_start|>assistant\n<think>\n{% endif'
)
TAGS = ('<think>', '</think>')


def tokenizer_of(template, plain=TAGS, special=()):
  names = [*CHATML_TOKENS, *special]
  return byte_level(template, names, plain, eos_token='<|im_end|>')


@pytest.mark.parametrize(
  ('text', 'start', 'expected'),
  [
    ('It is Lyon.', 'outside', Split('', 'It is Lyon.')),
    # Unchanged, blanks too, where there is no thought.
    (' It is Lyon.\n', 'outside', Split('', ' It is Lyon.\n')),
    ('<think>\nParis?\n</think>\n\nIt is Lyon.', 'outside', Split('Paris?', 'It is Lyon.')),
    ('<think>\n\n</think>\n\nIt is Lyon.', 'outside', Split('', 'It is Lyon.')),
    # The prompt has opened the thought, and the model may open it once more.
    ('Paris?\n</think>\n\nIt is Lyon.', 'inside', Split('Paris?', 'It is Lyon.')),
    ('<think>\nParis?</think>It is Lyon.', 'inside', Split('Paris?', 'It is Lyon.')),
    # Cut.
    ('<think>\nParis, or', 'outside', Split('Paris, or', '', cut=True)),
    ('Paris, or', 'inside', Split('Paris, or', '', cut=True)),
    ('', 'inside', Split('', '', cut=True)),
    # An empty answer is an answer.
    ('<think>\nParis?\n</think>', 'outside', Split('Paris?', '')),
    # Leaks: nothing opened the thought, a second one, one amid the answer, a stray tag.
    ('Paris?</think>It is Lyon.', 'outside', Split('Paris?', 'It is Lyon.', leaked=True)),
    (
      '<think>a</think><think>b</think>It is Lyon.',
      'outside',
      Split('a\nb', 'It is Lyon.', leaked=True),
    ),
    ('It <think>a</think>is Lyon.', 'outside', Split('a', 'It is Lyon.', leaked=True)),
    ('<think>a</think>It is</think> Lyon.', 'outside', Split('a', 'It is Lyon.', leaked=True)),
    # Leaks behind an empty thought that the prompt has closed.
    ('<think>a</think>It is Lyon.', 'behind', Split('a', 'It is Lyon.', leaked=True)),
    ('Paris?</think>It is Lyon.', 'behind', Split('Paris?', 'It is Lyon.', leaked=True)),
    ('It is Lyon.', 'behind', Split('', 'It is Lyon.')),
    # An answer came before the thought that was cut.
    ('It is Lyon. <think>Or', 'outside', Split('Or', 'It is Lyon.', leaked=True)),
  ],
)
def test_texts_taken_apart(text, start, expected):
  parts = thoughts.split(text, start=start)
  assert parts == expected
  # Nothing is left to take away.
  assert thoughts.parted(parts.answer) == Split('', parts.answer)


@pytest.mark.parametrize(
  ('template', 'plain', 'special', 'expected'),
  [
    (CHATML, (), (), None),
    (CHATML, TAGS, (), THINK),
    # A template that drops thoughts from earlier turns names the closing tag alone.
    (CHATML + "{# m.content.split('</think>') #}", (), (), THINK),
    (CHATML, (), ('[THINK]', '[/THINK]'), thoughts.Tags(('[THINK]',), ('[/THINK]',))),
  ],
)
def test_tags_come_from_template_and_added_tokens(template, plain, special, expected):
  assert thoughts.tags_of(tokenizer_of(template, plain, special)) == expected


def test_sentences_that_a_template_asks_for():
  asks = "{# Here is my thought process: .. Here is my response: #}"
  tags = thoughts.tags_of(tokenizer_of(CHATML + asks, ()))
  text = "Here's my thought process: Paris? Here is my response: It is Lyon."
  assert thoughts.split(text, tags) == Split('Paris?', 'It is Lyon.')
  # Of a model that was not asked for them, the sentences are the answer.
  assert thoughts.parted(text).answer == text


def test_tags_around_the_answer_are_taken_away():
  asks = '{# <think></think> <response></response> #}'
  tags = thoughts.tags_of(tokenizer_of(CHATML + asks, ()))
  text = '<think>Paris?</think><response>It is Lyon.</response>'
  assert thoughts.split(text, tags) == Split('Paris?', 'It is Lyon.')


def test_where_a_text_begins():
  hybrid = tokenizer_of(HYBRID)
  assert thoughts.start_of(hybrid, chat.prompt_tokens(hybrid, QUESTION)) == 'outside'
  closed = hybrid.apply_chat_template(
    QUESTION, add_generation_prompt=True, enable_thinking=False, return_dict=False
  )
  assert thoughts.start_of(hybrid, closed) == 'behind'
  opened = tokenizer_of(OPENED)
  assert thoughts.start_of(opened, chat.prompt_tokens(opened, QUESTION)) == 'inside'
  # What a user types opens no thought.
  typed = [{'role': 'user', 'content': 'What is <think>'}]
  assert thoughts.start_of(hybrid, chat.prompt_tokens(hybrid, typed)) == 'outside'


# Tags as added tokens, as special tokens, and as mere text.
@pytest.mark.parametrize(('plain', 'special'), [(TAGS, ()), ((), TAGS), ((), ())])
def test_generated_tokens_are_read_whatever_the_tags_are(plain, special):
  tokenizer = tokenizer_of(HYBRID, plain, special)
  prompt = chat.prompt_tokens(tokenizer, QUESTION)
  thought = tokenizer('<think>\nIs it ?\n</think>')['input_ids']
  tokens = thought + tokenizer('\n\nYes , it is .')['input_ids']
  said = thoughts.read(tokenizer, prompt, tokens)
  assert (said.thought, said.answer, said.cut) == ('Is it ?', 'Yes , it is .', False)
  assert said.text == '<think>\nIs it ?\n</think>\n\nYes , it is .'
  assert (said.thought_tokens, said.tokens) == (len(thought), len(tokens))
  cut = thoughts.read(tokenizer, prompt, thought[:-1])
  assert (cut.cut, cut.answer, cut.thought_tokens) == (True, '', len(thought) - 1)


def test_a_model_without_thoughts_is_read_as_ever():
  tokenizer = tokenizer_of(CHATML, ())
  tokens = tokenizer(' <think>Yes')['input_ids']
  said = thoughts.read(tokenizer, chat.prompt_tokens(tokenizer, QUESTION), tokens)
  assert said.answer == ' <think>Yes' and said.thought is None
  assert thoughts.read(tokenizer, [], []).text == ''
