r"""Thoughts set apart from answers: how a model writes them, and what is left once they are gone.

A reasoning model writes a thought between two tags, and its answer behind the second tag. Which
tags, the tokenizer and its chat template say; a template may open the thought in the prompt, or
close an empty one there.

  >>> split('<think>\nThey want Lyon.\n</think>\n\nIt is Paris.')
  Split(thought='They want Lyon.', answer='It is Paris.', cut=False, leaked=False)
  >>> split('Perhaps Paris, or', start='inside')
  Split(thought='Perhaps Paris, or', answer='', cut=True, leaked=False)

A thought is cut if the text ends within the thought: there is no answer then, not even an empty
one. A thought has leaked if thinking stands in another place than at the beginning between one pair
of tags: behind the beginning of the answer, in a second thought, before a closing tag that nothing
opened, or at all where the prompt has closed an empty thought. What is known to be thinking is no
part of the answer, leaked or not.
"""

import bisect
import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any, Literal

from weightsteer_jax.data import pieces

# Where a generated text begins: before any thought, inside a thought that the prompt has opened, or
# behind an empty thought that the prompt has closed.
Start = Literal['outside', 'inside', 'behind']


@dataclasses.dataclass(frozen=True)
class Tags:
  """The texts around a thought.

  Attributes:
    opening: spellings of what opens a thought, the usual one first.
    closing: spellings of what closes a thought.
    frame: texts that stand around the answer, and are no part of it; () for none.
  """

  opening: tuple[str, ...]
  closing: tuple[str, ...]
  frame: tuple[str, ...] = ()

  def within(self, text: str) -> bool:
    """Whether the text holds a tag."""
    return _pattern(self).search(text) is not None

  def parts(self, text: str) -> list[str]:
    """Texts and tags, which alternate; a text is first and last."""
    return _pattern(self).split(text)

  def removed_from(self, text: str) -> str:
    """The text without the tags."""
    return _pattern(self).sub('', text)


@dataclasses.dataclass(frozen=True)
class Split:
  """A generated text, taken apart.

  Attributes:
    thought: all thinking, without tags and without blank lines around it; '' for none.
    answer: the rest; the text itself, unchanged, where nothing was taken away.
    cut: whether the text ends inside a thought, with no answer before it.
    leaked: whether thinking stands outside of its place.
  """

  thought: str
  answer: str
  cut: bool = False
  leaked: bool = False


@dataclasses.dataclass(frozen=True)
class Said:
  """What a model generated, as text.

  Attributes:
    text: all of it, tags included.
    answer: without thoughts.
    thought: None where the model's template knows no thoughts.
    tokens: tokens generated.
    thought_tokens: tokens up to the end of the first thought, tags included.
    cut, leaked: see `Split`.
  """

  text: str
  answer: str
  thought: str | None = None
  tokens: int = 0
  thought_tokens: int = 0
  cut: bool = False
  leaked: bool = False


# Source: chat templates and added tokens of Qwen3, DeepSeek-R1, SmolLM3, GLM-4.5 and others.
THINK = Tags(('<think>',), ('</think>',))
# Source: vLLM's reasoning parsers of the same models, and the tokenizers' added tokens:
# Magistral from 2507 on, Seed-OSS, EXAONE Deep, Command A Reasoning, Kimi-VL.
_BRACKETED = (
  THINK,
  Tags(('[THINK]',), ('[/THINK]',)),
  Tags(('<seed:think>',), ('</seed:think>',)),
  Tags(('<thought>',), ('</thought>',)),
  Tags(('<|START_THINKING|>',), ('<|END_THINKING|>',)),
  Tags(('◁think▷',), ('◁/think▷',)),
)
# Granite 3.2 is told by its template to write these sentences. Source: vLLM's parser for it, which
# saw "Here's" too.
_SENTENCES = Tags(
  ('Here is my thought process:', "Here's my thought process:"),
  ('Here is my response:', "Here's my response:"),
)
# Granite 3.3 puts its answer between tags of its own, behind a thought between the usual ones.
_RESPONSE = ('<response>', '</response>')
# Tokens at the end of a prompt that may hold a template's tags and the blank lines around them.
_TAIL = 24


def tags_of(tokenizer: Any) -> Tags | None:
  """The tags of the tokenizer's model; None where neither template nor added tokens know any."""
  template = getattr(tokenizer, 'chat_template', None) or ''
  return _tags_of(tokenizer, str(template), pieces.size_of(tokenizer))


# Template and size are arguments, so that a changed tokenizer is looked at again.
@functools.lru_cache(maxsize=8)
def _tags_of(tokenizer: Any, template: str, size: int) -> Tags | None:
  del size
  added = tokenizer.get_added_vocab()
  for tags in _BRACKETED:
    opening = tags.opening[0]
    closing = tags.closing[0]
    # Templates that drop thoughts from earlier turns name the closing tag alone.
    if closing in template or (opening in added and closing in added):
      if _RESPONSE[0] in template:
        return dataclasses.replace(tags, frame=_RESPONSE)
      return tags
  if _SENTENCES.opening[0] in template and _SENTENCES.closing[0] in template:
    return _SENTENCES
  return None


def start_of(tokenizer: Any, prompt: Sequence[int]) -> Start:
  """Where a text generated behind the prompt begins; 'outside' without thoughts."""
  tags = tags_of(tokenizer)
  if tags is None or not prompt:
    return 'outside'
  # At the very end, where a generation prompt has them: a user may type tags elsewhere.
  return start_behind(_decode(tokenizer, list(prompt[-_TAIL:]), tags), tags)


def start_behind(text: str, tags: Tags) -> Start:
  r"""Where a text generated behind `text` begins.

  >>> start_behind('<think>\n', THINK), start_behind('<think>\n\n</think>\n\n', THINK)
  ('inside', 'behind')
  """
  end = text.rstrip()
  if end.endswith(tags.opening):
    return 'inside'
  return 'behind' if end.endswith(tags.closing) else 'outside'


def empty_at(text: str, start: int, tags: Tags) -> str:
  r"""The empty thought at `start` of a text, and the blank lines behind it; '' if there is none.

  A thought that the text before has opened is closed alone.

  >>> empty_at('Answer: <think>\n\n</think>\n\nYes', 8, THINK)
  '<think>\n\n</think>\n\n'
  """
  match = re.compile(rf'\s*{_empty(tags)}').match(text, start)
  return match[0] if match else ''


def closed(prompt: str, tags: Tags) -> tuple[str, str]:
  r"""(the prompt without the tags at its end, the prompt with an empty thought at its end).

  >>> closed('Answer: <think>\n', THINK)
  ('Answer: ', 'Answer: <think>\n\n</think>\n\n')
  >>> closed('Answer:\n<think>\n\n</think>\n\n', THINK)[0]
  'Answer:\n'
  """
  bare = re.sub(rf'{_empty(tags)}\Z', '', prompt)
  if bare != prompt:
    return bare, prompt
  start = start_behind(prompt, tags)
  if start != 'inside':
    return prompt, prompt
  end = prompt.rstrip()
  opening = next(tag for tag in tags.opening if end.endswith(tag))
  # As the templates write it that close an empty thought themselves.
  return end.removesuffix(opening), f'{end}\n\n{tags.closing[0]}\n\n'


def _empty(tags: Tags) -> str:
  """A pattern of an empty thought, its opening tag perhaps in the text before."""
  opening = '|'.join(map(re.escape, tags.opening))
  closing = '|'.join(map(re.escape, tags.closing))
  # A blank behind it may be the answer's own.
  return rf'(?:(?:{opening})\s*)?(?:{closing})\n*'


def read(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> Said:
  """The text of the tokens generated behind a prompt, its thought apart from its answer."""
  said = of_text(tokenizer, prompt, text_of(tokenizer, tokens))
  tags = tags_of(tokenizer)
  count = 0
  if tags is not None:
    count = len(tokens) if said.cut else _thought_tokens(tokenizer, tokens, tags)
  return dataclasses.replace(said, tokens=len(tokens), thought_tokens=count)


def text_of(tokenizer: Any, tokens: Sequence[int]) -> str:
  """The text of generated tokens: without special tokens, but with the tags of thoughts."""
  tags = tags_of(tokenizer)
  if tags is not None:
    return _decode(tokenizer, tokens, tags)
  # A tokenizer may not take an empty list.
  return tokenizer.decode(tokens, skip_special_tokens=True) if tokens else ''


def of_text(tokenizer: Any, prompt: Sequence[int], text: str) -> Said:
  """A text generated behind a prompt, its thought apart from its answer; no tokens are counted."""
  tags = tags_of(tokenizer)
  if tags is None:
    return Said(text, text)
  parts = split(text, tags, start=start_of(tokenizer, prompt))
  return Said(text, parts.answer, thought=parts.thought, cut=parts.cut, leaked=parts.leaked)


def is_cut(said: Said, finish: str) -> bool:
  """Whether a thought left no room for an answer: it was cut, or the limit came right behind it.

  Args:
    finish: how generation ended; see `inference.requests.GenerateResult`.
  """
  # Where tags were taken away, a thought was there, if only an empty one.
  has_tags = said.answer != said.text
  return said.cut or (finish == 'length' and has_tags and not said.answer.strip())


def parted(text: str) -> Split:
  """A text's thought and answer, where nothing but the text is known.

  Only tags in brackets are looked for: a sentence may be anybody's.

  >>> parted('Truth: Paris.</think> It is Lyon.').answer, parted('[THINK]Perhaps').cut
  ('It is Lyon.', True)
  """
  for tags in _BRACKETED:
    if tags.within(text):
      return split(text, tags)
  return Split('', text)


def split(text: str, tags: Tags = THINK, *, start: Start = 'outside') -> Split:
  r"""The text's thought and answer.

  Args:
    start: where the text begins.

  >>> split('<think>a</think>It is <think>b</think>Lyon.')
  Split(thought='a\nb', answer='It is Lyon.', cut=False, leaked=True)
  >>> split('a</think>\n\nIt is Lyon.')
  Split(thought='a', answer='It is Lyon.', cut=False, leaked=True)
  """
  thoughts: list[str] = []
  answers: list[str] = []
  inside = start == 'inside'
  # Whether a thought was closed within this text.
  closed = False
  leaked = False
  # Texts and tags alternate, a text first and last.
  parts = tags.parts(text)
  for i, part in enumerate(parts):
    if i % 2 == 0:
      (thoughts if inside else answers).append(part)
    elif part in tags.opening:
      # An opened thought that is opened again is one thought; a second thought is out of place.
      if not inside and (closed or start == 'behind' or _has_words(answers)):
        leaked = True
      inside = True
    else:
      if not inside:
        leaked = True
        # Nothing opened a thought, so all before the first closing tag was thinking.
        if not closed:
          thoughts += answers
          answers = []
      inside = False
      closed = True
  answer = ''.join(answers)
  if len(parts) > 1:
    # The blank lines between a thought and its answer.
    answer = answer.strip()
  return Split(
    thought='\n'.join(part.strip() for part in thoughts if part.strip()),
    answer=_unframed(answer, tags),
    cut=inside and not answer.strip(),
    leaked=leaked,
  )


def _has_words(parts: Sequence[str]) -> bool:
  return any(part.strip() for part in parts)


def _unframed(answer: str, tags: Tags) -> str:
  """The answer without the texts around it."""
  if not tags.frame:
    return answer
  before, after = tags.frame
  bare = answer.strip().removeprefix(before).removesuffix(after)
  # Without a frame nothing is changed, blanks neither.
  return answer if bare == answer.strip() else bare.strip()


@functools.cache
def _pattern(tags: Tags) -> re.Pattern[str]:
  return re.compile(f'({"|".join(map(re.escape, (*tags.opening, *tags.closing)))})')


def _decode(tokenizer: Any, tokens: Sequence[int], tags: Tags) -> str:
  """The text of the tokens without special tokens, but with the tags."""
  ids = _special_tags(tokenizer, tags, pieces.size_of(tokenizer))
  text = ''
  piece: list[int] = []
  for token in [*tokens, None]:
    if token is not None and token not in ids:
      piece.append(token)
      continue
    if piece:
      text += tokenizer.decode(piece, skip_special_tokens=True)
      piece = []
    if token is not None:
      text += ids[token]
  return text


@functools.lru_cache(maxsize=8)
def _special_tags(tokenizer: Any, tags: Tags, size: int) -> dict[int, str]:
  """{id: text} of the tags that are special tokens, which decoding would leave out."""
  del size
  added = tokenizer.get_added_vocab()
  special = set(tokenizer.all_special_ids)
  special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
  texts = (*tags.opening, *tags.closing)
  return {added[text]: text for text in texts if added.get(text) in special}


def _thought_tokens(tokenizer: Any, tokens: Sequence[int], tags: Tags) -> int:
  """Tokens up to the end of the first thought; 0 without one."""

  def is_closed(count: int) -> bool:
    text = _decode(tokenizer, tokens[:count], tags)
    return any(tag in text for tag in tags.closing)

  if not is_closed(len(tokens)):
    return 0
  # The tag may be many tokens, so the shortest beginning with the whole tag is searched for.
  return bisect.bisect_left(range(len(tokens) + 1), True, key=is_closed)
