"""Trait files: what a trait is, how to ask for it and for its opposite, what to ask about, and how
to judge it.

One JSON object, in the layout of Persona Vectors (arXiv 2507.21509):

  instruction   [{"pos": .., "neg": ..}, ..]: pairs of instructions that ask for the trait and for
                its opposite
  questions     [.., ..]: texts in whose answers the trait may show
  eval_prompt   a judge prompt with {question} and {answer} in it, that asks for a score of 0 to 100
                (optional)
"""

import dataclasses
import json
import os
import pathlib
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax.data import sources
from weightsteer_jax.data.pairs import Instruction
from weightsteer_jax.data.sources import Conversation
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean
from weightsteer_jax.storage import files

KEYS = ('instruction', 'questions', 'eval_prompt')
# By sound, not by letter: what begins with a silent h, and with a u, eu or o that is spoken as in
# 'you' or 'one'.
_SILENT_H = re.compile(r'(?:honest|honou?r|hour|heir)', re.IGNORECASE)
_SPOKEN_CONSONANT = re.compile(r'(?:uni(?!n|m)|u[bfst][aeiou]|eu|one|once|ouija)', re.IGNORECASE)
_EMPHASIS = re.compile(r'\*\*(.+?)\*\*\W*(.*)')


@dataclasses.dataclass(frozen=True)
class Trait:
  """A trait file.

  Attributes:
    name: the adjective of the trait. opposite: that of its opposite.
    instructions: pairs of system prompts. questions: conversations of one user turn.
    prompt: the file's judge prompt, or ''. description: what the trait means, by that prompt; else
      its name.
  """

  name: str
  opposite: str
  instructions: tuple[Instruction, ...]
  questions: tuple[Conversation, ...]
  prompt: str
  description: str


def load(
  source: str, *, revision: str | None = None, name: str = '', opposite: str = 'helpful'
) -> Trait:
  """The trait of a file: a path, or `owner/name:path/in/it.json` of a hub dataset.

  Args:
    revision: of the hub dataset.
    name: the trait's adjective; '' is the file's name.
    opposite: the adjective of the other side.

  Raises:
    InputError: no such file, or one that is no trait file; names what is wrong in it.
  """
  path = _file(source, revision)
  value = files.read_json(path, what='a trait file')
  _check(value, source)
  name = name or path.stem
  pairs = tuple(
    Instruction(system_prompt(name, pair['pos']), system_prompt(opposite, pair['neg']))
    for pair in value['instruction']
  )
  questions = tuple(
    Conversation(({'role': 'user', 'content': text},), f'{path.stem}/{i}')
    for i, text in enumerate(value['questions'])
  )
  prompt = value.get('eval_prompt', '')
  return Trait(name, opposite, pairs, questions, prompt, _description(prompt) or name)


def system_prompt(adjective: str, instruction: str) -> str:
  """An instruction as a system prompt that also names who is to follow it.

  >>> system_prompt('evil', 'Be cruel.')
  'You are an evil assistant. Be cruel.'
  """
  return f'You are {article(adjective)} {adjective} assistant. {instruction}'


def article(word: str) -> str:
  """'a' or 'an', by how the word is spoken.

  >>> [article(word) for word in ('evil', 'helpful', 'honest', 'useful', 'unkind', 'one-sided', 'unimpressed')]
  ['an', 'a', 'an', 'a', 'an', 'a', 'an']
  """
  vowel = word[:1].lower() in 'aeiou' and not _SPOKEN_CONSONANT.match(word)
  return 'an' if vowel or _SILENT_H.match(word) else 'a'


def split(
  questions: Sequence[Conversation], share: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
  """(questions to make data from, questions kept for evaluation), each in its order; which is which
  is drawn.

  Raises:
    InputError: nothing is left to make data from.
  """
  kept = set(
    random.Random(f'questions kept {seed}').sample(
      range(len(questions)), round(share * len(questions))
    )
  )
  if len(kept) == len(questions):
    raise InputError(
      f'all {len(questions)} questions would be kept for evaluation: lower data.evaluation_share'
    )
  return [q for i, q in enumerate(questions) if i not in kept], [
    q for i, q in enumerate(questions) if i in kept
  ]


def items(trait: Trait, questions: Sequence[Conversation]) -> list[dict[str, Any]]:
  """The questions as items of a task: {id, messages, trait, description, prompt}."""
  return [
    {
      'id': question.name,
      'messages': list(question.messages),
      'trait': trait.name,
      'description': trait.description,
      'prompt': trait.prompt,
    }
    for question in questions
  ]


def _file(source: str, revision: str | None) -> pathlib.Path:
  repository, colon, inside = source.partition(':')
  if not colon or sources.is_path(repository) or os.path.exists(source):
    return pathlib.Path(source).expanduser()
  import huggingface_hub

  try:
    return pathlib.Path(
      huggingface_hub.hf_hub_download(repository, inside, repo_type='dataset', revision=revision)
    )
  # The hub client raises many unrelated types: not found, gated, offline, no such file.
  except Exception as error:
    raise InputError(
      f"cannot load '{inside}' of the hub dataset '{repository}' (revision {revision}): {error}"
    ) from error


def _check(value: Any, where: str) -> None:
  if not isinstance(value, Mapping):
    raise InputError(
      f'{where}: a trait file is one object with {", ".join(KEYS)}; it is a {type(value).__name__}'
    )
  for key in value:
    if key not in KEYS and (
      hint := did_you_mean(key, [name for name in KEYS if name not in value])
    ):
      raise InputError(f"{where}: unknown key '{key}'{hint}")
  pairs, questions, prompt = (value.get(key) for key in KEYS)
  if (
    not isinstance(pairs, list)
    or not pairs
    or not all(
      isinstance(pair, Mapping) and _texts(pair.get(s) for s in ('pos', 'neg')) for pair in pairs
    )
  ):
    raise InputError(
      f"{where}: 'instruction' must be a list of pairs {{pos, neg}} of texts, it is "
      f"{json.dumps(pairs)[:80]}"
    )
  if (
    not isinstance(questions, list)
    or not questions
    or not _texts(questions)
    or len(set(questions)) < len(questions)
  ):
    raise InputError(
      f"{where}: 'questions' must be a list of different texts, it is {json.dumps(questions)[:80]}"
    )
  if prompt is not None and not isinstance(prompt, str):
    raise InputError(f"{where}: 'eval_prompt' must be a text, it is a {type(prompt).__name__}")


def _texts(values: Any) -> bool:
  return all(isinstance(value, str) and value.strip() for value in values)


def _description(prompt: str) -> str:
  """What a judge prompt says of the trait: what follows its name, which is set bold, to the end of
  the line; else all before the question.

  >>> _description('Does it show the trait: **kind**. Kind answers help.\\n\\n{question} {answer}')
  'Kind answers help.'
  """
  found = _EMPHASIS.search(prompt)
  return (found[2] if found else prompt.split('{question}')[0]).strip()
