"""Small tokenizers with chat templates in the manner of well-known ones, made on the spot."""

import string

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# The user's and the assistant's turns look alike; a default system prompt comes in where the
# conversation has none.
CHATML = (
  "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind .<|im_end|>\n{% endif %}{% for "
  "m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{{ m.content + '<|im_end|>' }}{{ '\n' }}{% "
  "endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The same text, with the answers marked.
CHATML_MARKED = CHATML.replace(
  "{{ m.content + '<|im_end|>' }}",
  "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
  "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}",
)
# Marked around the whole turn: the header and the newline are inside.
CHATML_MARKED_WIDE = (
  "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind .<|im_end|>\n{% endif %}{% for "
  "m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ '<|im_start|>assistant\n' + "
  "m.content + '<|im_end|>\n' }}{% endgeneration %}{% else %}{{ '<|im_start|>' + m.role + '\n' + "
  "m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt "
  "%}<|im_start|>assistant\n{% endif %}"
)
# An earlier answer is rendered otherwise than the last one, as templates of reasoning models do.
THINKING = CHATML.replace(
  "{{ m.content + '<|im_end|>' }}",
  "{{ ('<think>\n\n</think>\n\n' if loop.last and m.role == 'assistant' else '') + "
  "m.content + '<|im_end|>' }}",
)
THINKING_PROMPT = THINKING.replace(
  "<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif"
)
LLAMA2 = (
  "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + "
  "'\n<</SYS>>\n\n' %}{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = "
  "messages %}{% endif %}{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) "
  "%}{{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}{{ bos_token "
  "+ '[INST] ' + (system if loop.first else '') + m.content.strip() + ' [/INST]' }}{% else %}{{ ' "
  "' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
  "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + "
  "'<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}{% if "
  "add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
  "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not "
  "supported') }}{% endif %}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == "
  "'assistant' else m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}{% if "
  "add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Ends the text, and not only the turn, where no answer is asked for.
PHI3 = (
  "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

_TEXT = [
  'Is it right ? I think that the sky is green . Am I right ?',
  'Yes , it is .',
  'No , it is not .\n\nSorry .',
  'user assistant system model Be kind . Hello there',
  'Question Answer',
  '[INST] [/INST] <<SYS>> <</SYS>>',
]
# How Qwen's and Llama 3's tokenizers cut text: a run of newlines stays with the blanks before it.
_CUT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(
  template: str, special: list[str], plain: tuple[str, ...] = (), **names
) -> PreTrainedTokenizerFast:
  """A byte-level BPE tokenizer, with `special` control tokens and `plain` added tokens that are not
  marked special."""
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(_CUT), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
  tokenizer.train_from_iterator(_TEXT * 4, trainer)
  tokenizer.add_special_tokens(special)
  tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
  return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names)


def sentencepiece_like(template: str) -> PreTrainedTokenizerFast:
  """A tokenizer that puts a blank before the first word, as Llama 2's does."""
  tokenizer = Tokenizer(models.BPE(unk_token='<unk>'))
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first')
  tokenizer.decoder = decoders.Metaspace(prepend_scheme='first')
  trainer = trainers.BpeTrainer(
    vocab_size=300,
    special_tokens=['<unk>', '<s>', '</s>'],
    show_progress=False,
    initial_alphabet=list(string.printable),
  )
  tokenizer.train_from_iterator(_TEXT * 4, trainer)
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    chat_template=template,
    bos_token='<s>',
    eos_token='</s>',
    unk_token='<unk>',
  )


def word_level(template: str) -> PreTrainedTokenizerFast:
  """One token per word, newline and control token; blanks are dropped."""
  words = ['<unk>', '\n', *'system user assistant Be kind Is it ? Yes No . Question Answer'.split()]
  tokenizer = Tokenizer(
    models.WordLevel({word: i for i, word in enumerate(words)}, unk_token='<unk>')
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(' ', 'removed'), pre_tokenizers.Split('\n', 'isolated')]
  )
  tokenizer.add_special_tokens(['<|im_start|>', '<|im_end|>', '<|endoftext|>'])
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, chat_template=template, eos_token='<|endoftext|>'
  )


CHATML_TOKENS = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']

MAKERS = {
  'chatml': lambda: byte_level(CHATML, CHATML_TOKENS, eos_token='<|im_end|>'),
  'chatml_marked': lambda: byte_level(CHATML_MARKED, CHATML_TOKENS, eos_token='<|im_end|>'),
  'chatml_marked_wide': lambda: byte_level(
    CHATML_MARKED_WIDE, CHATML_TOKENS, eos_token='<|im_end|>'
  ),
  'thinking': lambda: byte_level(
    THINKING, CHATML_TOKENS, ('<think>', '</think>'), eos_token='<|im_end|>'
  ),
  'thinking_prompt': lambda: byte_level(
    THINKING_PROMPT, CHATML_TOKENS, ('<think>', '</think>'), eos_token='<|im_end|>'
  ),
  'llama2': lambda: sentencepiece_like(LLAMA2),
  'llama3': lambda: byte_level(
    LLAMA3,
    [
      '<|begin_of_text|>',
      '<|end_of_text|>',
      '<|start_header_id|>',
      '<|end_header_id|>',
      '<|eot_id|>',
    ],
    bos_token='<|begin_of_text|>',
    eos_token='<|end_of_text|>',
  ),
  'gemma': lambda: byte_level(
    GEMMA,
    ['<bos>', '<eos>', '<start_of_turn>', '<end_of_turn>'],
    bos_token='<bos>',
    eos_token='<eos>',
  ),
  'phi3': lambda: byte_level(
    PHI3,
    ['<|endoftext|>', '<|user|>', '<|assistant|>', '<|end|>', '<|system|>'],
    eos_token='<|endoftext|>',
  ),
  'words': lambda: word_level(CHATML),
}


@pytest.fixture(scope='session')
def make_tokenizer():
  """name -> a fresh tokenizer of that style, see MAKERS; `template` replaces its chat template."""

  def make(name: str, template: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = MAKERS[name]()
    if template is not None:
      tokenizer.chat_template = template
    return tokenizer

  return make
