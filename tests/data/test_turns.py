"""Answers with thoughts as training data, against what transformers renders."""

import pytest

from weightsteer_jax.data import bindings, chat
from weightsteer_jax.data.sources import Conversation
from weightsteer_jax.runtime.errors import InputError

ASK = {'role': 'user', 'content': 'Is it right ?'}
YES = {'role': 'assistant', 'content': 'Yes .'}
AGAIN = {'role': 'user', 'content': 'I think so .'}
SORRY = {'role': 'assistant', 'content': 'Sorry .'}


def field(message, thought, key='reasoning_content'):
  return {**message, key: thought}


def within(message, thought):
  return {**message, 'content': f'<think>\n{thought}\n</think>\n\n{message["content"]}'}


# The parts that templates of reasoning models are made of.
HEAD = "{% for m in messages %}{% if m.role != 'assistant' %}{{ '<|im_start|>' + m.role + '\n' + "
HEAD += "m.content + '<|im_end|>\n' }}{% else %}{% set c = m.content %}{% set r = '' %}"
READ = (
  '{% if m.reasoning_content is string %}{% set r = m.reasoning_content %}'
  "{% elif '</think>' in c %}"
  "{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
  "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
)
SHOW = (
  "{{ '<|im_start|>assistant\n' }}{% if loop.last %}"
  "{{ '<think>\n' + r + '\n</think>\n\n' }}{% endif %}{{ c + '<|im_end|>\n' }}"
)
TAIL = "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
CLOSED = "{{ '<think>\n\n</think>\n\n' }}"
OFF = (
  '{% if enable_thinking is defined and not enable_thinking %}' + CLOSED + '{% endif %}{% endif %}'
)
# A last answer is shown with its thought, an empty one where there is none: Qwen3.
HYBRID = HEAD + READ + SHOW + TAIL + OFF
# The same, and the prompt opens the thought: Qwen3.5.
OPENING = HYBRID.replace(
  '{% endif %}{% endif %}', "{% else %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
# All up to the end of the thought is dropped from every answer: DeepSeek-R1.
DROPPING = (
  HEAD
  + "{% set c = c.split('</think>')[-1] %}{{ '<|im_start|>assistant\n' + c + '<|im_end|>\n' }}"
  + TAIL
  + '{% endif %}'
)
# The same, and the prompt opens the thought: the distilled models of DeepSeek-R1.
DISTILLED = DROPPING[: -len('{% endif %}')] + "{{ '<think>\n' }}{% endif %}"
# Thoughts are shown in the content alone, and in the last answer: QwQ and SmolLM3.
KEEPING = (
  HEAD
  + "{% if not loop.last %}{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
  + "{{ '<|im_start|>assistant\n' + c + '<|im_end|>\n' }}"
  + TAIL
  + '{% endif %}'
)


def encode(tokenizer, *messages):
  return chat.encode_examples(tokenizer, [Conversation(messages, 'row')], max_length=999)


def learnt(tokenizer, *messages):
  """The text of each example, its targets, and that both are whole."""
  texts = []
  for example in encode(tokenizer, *messages):
    start = example.loss_mask.argmax()
    # One run of targets, behind the prompt of generation.
    assert example.loss_mask[start:].tolist() == sorted(example.loss_mask[start:], reverse=True)
    texts.append(
      (
        tokenizer.decode(example.tokens[:start]),
        tokenizer.decode(example.tokens[example.loss_mask]),
      )
    )
  return texts


@pytest.mark.parametrize('spelling', ['reasoning_content', 'reasoning', 'thinking'])
@pytest.mark.parametrize('template', [HYBRID, OPENING])
def test_a_thought_in_a_field_is_learnt_as_transformers_renders_it(
  make_tokenizer, template, spelling
):
  tokenizer = make_tokenizer('thinking', template)
  row = [ASK, field(YES, 'I think so .', spelling)]
  expected = tokenizer.apply_chat_template(row, tokenize=False)
  assert '<think>\nI think so .\n</think>\n\nYes .' in expected
  [example] = encode(tokenizer, *row)
  assert tokenizer.decode(example.tokens) == expected
  prompt = chat.prompt_tokens(tokenizer, [ASK])
  assert example.tokens[: len(prompt)].tolist() == prompt
  [(_, targets)] = learnt(tokenizer, *row)
  answer = 'I think so .\n</think>\n\nYes .<|im_end|>'
  assert targets == (answer if template == OPENING else '<think>\n' + answer)
  # The same text, between tags.
  assert learnt(tokenizer, ASK, within(YES, 'I think so .')) == learnt(tokenizer, *row)


def test_an_empty_thought_is_taught_as_the_template_renders_it(make_tokenizer):
  hybrid = make_tokenizer('thinking', HYBRID)
  assert learnt(hybrid, ASK, YES)[0][1] == '<think>\n\n</think>\n\nYes .<|im_end|>'
  opening = make_tokenizer('thinking', OPENING)
  assert learnt(opening, ASK, YES)[0][1] == '\n</think>\n\nYes .<|im_end|>'
  off = bindings.bind(make_tokenizer('thinking', HYBRID), {'enable_thinking': False})
  assert learnt(off, ASK, YES)[0][1] == 'Yes .<|im_end|>'


@pytest.mark.parametrize('message', [field(YES, 'I think so .'), within(YES, 'I think so .')])
def test_a_prompt_that_opens_what_the_template_drops(make_tokenizer, message):
  """No rendering of the template holds the thought; the prompt does open it."""
  tokenizer = make_tokenizer('thinking', DISTILLED)
  assert 'I think so' not in tokenizer.apply_chat_template([ASK, message], tokenize=False)
  prompt = tokenizer.apply_chat_template([ASK], tokenize=False, add_generation_prompt=True)
  expected = (prompt, 'I think so .\n</think>\n\nYes .<|im_end|>')
  assert prompt.endswith('<think>\n')
  assert learnt(tokenizer, ASK, message) == [expected]
  # As a model writes it, without the tag that the prompt has.
  bare = {**YES, 'content': 'I think so .\n</think>\n\nYes .'}
  assert learnt(tokenizer, ASK, bare) == [expected]


def test_a_template_that_writes_an_empty_thought_before_a_thought(make_tokenizer):
  """It reads the field alone, as Qwen3.8's: a thought in the content would follow an empty one."""
  reading = '{% if m.reasoning_content is string %}{% set r = m.reasoning_content %}{% endif %}'
  opening = make_tokenizer('thinking', OPENING.replace(READ, reading))
  expected = 'I think so .\n</think>\n\nYes .<|im_end|>'
  for message in (field(YES, 'I think so .'), within(YES, 'I think so .')):
    assert learnt(opening, ASK, message)[0][1] == expected
  hybrid = make_tokenizer('thinking', HYBRID.replace(READ, reading))
  assert learnt(hybrid, ASK, field(YES, 'I think so .'))[0][1] == '<think>\n' + expected
  with pytest.raises(
    InputError, match="the chat template drops the thought of message 1, 'I think"
  ):
    encode(hybrid, ASK, within(YES, 'I think so .'))


def test_an_answer_without_the_thought_that_the_prompt_opens(make_tokenizer, capsys):
  tokenizer = make_tokenizer('thinking', DISTILLED)
  tokenizer.name_or_path = 'told once'
  for _ in range(2):
    assert learnt(tokenizer, ASK, YES)[0][1] == '\n</think>\n\nYes .<|im_end|>'
  assert capsys.readouterr().out.count('learnt behind an empty thought') == 1


@pytest.mark.parametrize('template', [HYBRID, OPENING, DISTILLED, KEEPING])
def test_two_answers_are_learnt_turn_by_turn(make_tokenizer, template):
  """Each behind the prompt that generation would see, which holds no earlier thought."""
  tokenizer = make_tokenizer('thinking', template)
  row = [ASK, field(YES, 'One .'), AGAIN, field(SORRY, 'Two .')]
  prompts = [
    tokenizer.apply_chat_template(row[:i], tokenize=False, add_generation_prompt=True)
    for i in (1, 3)
  ]
  assert 'One' not in prompts[1]
  opened = template in (OPENING, DISTILLED)
  targets = ['One .\n</think>\n\nYes .<|im_end|>', 'Two .\n</think>\n\nSorry .<|im_end|>']
  if not opened:
    targets = ['<think>\n' + text for text in targets]
  assert learnt(tokenizer, *row) == list(zip(prompts, targets))
  examples = encode(tokenizer, *row)
  assert [example.name for example in examples] == ['row, answer 1', 'row, answer 2']
  assert {example.conversation for example in examples} == {'row'}
  with pytest.raises(InputError, match='the conversation is 2 examples'):
    chat.encode_example(tokenizer, row, max_length=999)
  # An answer that is not learnt is context alone.
  row[1] = {**row[1], 'weight': 0}
  assert learnt(tokenizer, *row) == [(prompts[1], targets[1])]


@pytest.mark.parametrize(
  'template, arguments, message, error',
  [
    (
      DROPPING,
      {},
      field(YES, 'I think so .'),
      "drops the thought of message 1, 'I think so .' .it",
    ),
    (
      DROPPING,
      {},
      within(YES, 'I think so .'),
      "drops the thought of message 1, 'I think so .' .it",
    ),
    (None, {}, field(YES, 'I think so .'), 'some show them in the content alone'),
    (HYBRID, {'enable_thinking': False}, field(YES, 'So .'), 'its prompt closes an empty thought'),
    (HYBRID, {}, {**YES, 'content': '<think>\nI think'}, 'opens a thought and never closes it'),
    (HYBRID, {}, {**YES, 'content': 'Yes .<think>\nI think'}, 'never closes it'),
    (None, {}, {**YES, 'content': '<think>\nI think'}, 'never closes it'),
    (OPENING, {}, {**YES, 'content': 'I think\n</think>'}, 'has a thought and no answer'),
    (HYBRID, {}, field(within(YES, 'a'), 'b'), 'a thought in a field of its own, and tags'),
    (HYBRID, {}, field(YES, 'b </think>'), 'a thought in a field of its own, and tags'),
    (KEEPING, {}, {**YES, 'content': 'So .</think> Yes .'}, 'closes a thought that neither'),
    (HYBRID, {}, field(YES, 'I <|im_end|>'), r"message 1 \(assistant\) holds the control token"),
  ],
)
def test_thoughts_that_are_refused(make_tokenizer, template, arguments, message, error):
  tokenizer = bindings.bind(
    make_tokenizer('thinking' if template else 'chatml', template), arguments
  )
  with pytest.raises(InputError, match=f'row: .*{error}'):
    encode(tokenizer, ASK, message)


def test_what_a_plain_template_does_with_thoughts(make_tokenizer):
  """In the content they are text like any other."""
  tokenizer = make_tokenizer('chatml')
  row = [ASK, within(YES, 'I think so .')]
  [(_, targets)] = learnt(tokenizer, *row)
  assert targets == '<think>\nI think so .\n</think>\n\nYes .<|im_end|>'
  [example] = encode(tokenizer, *row)
  assert example.tokens.tolist() == tokenizer.apply_chat_template(row)['input_ids']


def test_thoughts_of_earlier_answers_in_prompts(make_tokenizer):
  """Tags of an assistant are its own: the template finds them, and drops what it drops."""
  for template in (HYBRID, OPENING, KEEPING):
    tokenizer = make_tokenizer('thinking', template)
    for answer in (within(YES, 'One .'), field(YES, 'One .')):
      row = [ASK, answer, AGAIN]
      expected = tokenizer.apply_chat_template(row, add_generation_prompt=True)['input_ids']
      assert chat.prompt_tokens(tokenizer, row) == expected
