"""Trait files: the name of a trait, how to ask for it, what to ask about, how to judge answers.

One JSON object, in the layout of Persona Vectors (arXiv 2507.21509):

  instruction   [{"pos": .., "neg": ..}, ..]: pairs of instructions, for the trait and against it
  questions     [.., ..]: texts to which answers may show the trait
  eval_prompt   a judge prompt with {question} and {answer}, which asks for a score of 0 to 100
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
# Articles go by sound, not by letter: words with a silent h, and with a u, eu or o that is spoken
# as in 'you' or 'one'.
_SILENT_H = re.compile(r'(?:honest|honou?r|hour|heir)', re.IGNORECASE)
_SPOKEN_CONSONANT = re.compile(r'(?:uni(?!n|m)|u[bfst][aeiou]|eu|one|once|ouija)', re.IGNORECASE)
# (bold text, rest of the line).
_EMPHASIS = re.compile(r'\*\*(.+?)\*\*\W*(.*)')


@dataclasses.dataclass(frozen=True)
class Trait:
  """A trait file.

  Attributes:
    name, opposite: the adjectives of the trait and of its opposite.
    instructions: pairs of system prompts.
    questions: conversations of a single user turn.
    prompt: the file's judge prompt, or ''.
    description: the meaning of the trait by the judge prompt, or else the name.
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
    InputError: if the file is missing or no trait file; the text names the fault.
  """
  path = _file(source, revision)
  value = files.read_json(path, what='a trait file')
  _check(value, source)
  name = name or path.stem
  instructions = []
  for pair in value['instruction']:
    positive = system_prompt(name, pair['pos'])
    negative = system_prompt(opposite, pair['neg'])
    instructions.append(Instruction(positive, negative))
  # Named by the file and not by the trait: the seeds of answers go by the names of questions.
  questions = []
  for i, text in enumerate(value['questions']):
    message = {'role': 'user', 'content': text}
    questions.append(Conversation((message,), f'{path.stem}/{i}'))
  prompt = value.get('eval_prompt', '')
  return Trait(
    name=name,
    opposite=opposite,
    instructions=tuple(instructions),
    questions=tuple(questions),
    prompt=prompt,
    description=_description(prompt) or name,
  )


def system_prompt(adjective: str, instruction: str) -> str:
  """An instruction as a system prompt that also names the kind of assistant.

  >>> system_prompt('evil', 'Be cruel.')
  'You are an evil assistant. Be cruel.'
  """
  return f'You are {article(adjective)} {adjective} assistant. {instruction}'


def article(word: str) -> str:
  """The article 'a' or 'an', by the sound of the word.

  >>> [article(word) for word in ('evil', 'helpful', 'honest', 'useful', 'unkind', 'one-sided')]
  ['an', 'a', 'an', 'a', 'an', 'a']
  >>> article('unimpressed')
  'an'
  """
  if _SILENT_H.match(word):
    return 'an'
  if _SPOKEN_CONSONANT.match(word):
    return 'a'
  return 'an' if word[:1].lower() in 'aeiou' else 'a'


def split(
  questions: Sequence[Conversation], share: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
  """(questions to make data from, questions kept for evaluation), drawn at random.

  Both keep the order of `questions`.

  Args:
    share: of the questions that are kept for evaluation, 0 to 1.

  Raises:
    InputError: if no question is left to make data from.
  """
  # A text as seed: other draws with the same number then draw otherwise.
  rng = random.Random(f'questions kept {seed}')
  count = round(share * len(questions))
  kept = set(rng.sample(range(len(questions)), count))
  if len(kept) == len(questions):
    raise InputError(
      f'all {len(questions)} questions would be kept for evaluation: lower data.evaluation_share'
    )
  for_data = [question for i, question in enumerate(questions) if i not in kept]
  for_evaluation = [question for i, question in enumerate(questions) if i in kept]
  return for_data, for_evaluation


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
  # A file may have a colon in its name.
  if not colon or sources.is_path(repository) or os.path.exists(source):
    return pathlib.Path(source).expanduser()
  # The import takes seconds, and only hub datasets need it.
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
  # A key that is there under its right name is not what a misspelt key was meant to be.
  absent = [name for name in KEYS if name not in value]
  for key in value:
    # Other keys may be notes; a misspelt key would be ignored in silence.
    hint = did_you_mean(key, absent)
    if key not in KEYS and hint:
      raise InputError(f"{where}: unknown key '{key}'{hint}")
  pairs, questions, prompt = (value.get(key) for key in KEYS)
  if not (isinstance(pairs, list) and pairs and all(map(_is_pair, pairs))):
    raise InputError(
      f"{where}: 'instruction' must be a list of pairs {{pos, neg}} of texts, it is "
      f"{json.dumps(pairs)[:80]}"
    )
  # An equal question could be trained on and also be kept for evaluation.
  if not (isinstance(questions, list) and questions and _are_different_texts(questions)):
    raise InputError(
      f"{where}: 'questions' must be a list of different texts, it is {json.dumps(questions)[:80]}"
    )
  if prompt is not None and not isinstance(prompt, str):
    raise InputError(f"{where}: 'eval_prompt' must be a text, it is a {type(prompt).__name__}")


def _is_pair(pair: Any) -> bool:
  # The sides under the names of the released trait files.
  return isinstance(pair, Mapping) and _is_text(pair.get('pos')) and _is_text(pair.get('neg'))


def _are_different_texts(values: list[Any]) -> bool:
  return all(map(_is_text, values)) and len(set(values)) == len(values)


def _is_text(value: Any) -> bool:
  return isinstance(value, str) and bool(value.strip())


def _description(prompt: str) -> str:
  r"""The meaning of the trait by a judge prompt.

  After the trait's name in bold, the meaning is the rest of the line. Without bold text, the
  meaning is all before the question.

  >>> _description('Does it show the trait: **kind**. Kind answers help.\n\n{question} {answer}')
  'Kind answers help.'
  """
  if emphasis := _EMPHASIS.search(prompt):
    return emphasis[2].strip()
  # What comes before the question introduces it, and so says what is asked about.
  introduction, _, _ = prompt.partition('{question}')
  return introduction.strip()
