"""Contrastive data: a model's own answers to the same questions under opposite system prompts.

Each question is asked with the positive and with the negative instruction; an answer pair is kept
only where both answers pass a filter, and the instruction is taken away for training, so that the
behaviour is learnt without being asked for. Source: Persona Vectors (2507.21509), data recipe;
pairing as in its filter for training data.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weightsteer_jax.data import sources
from weightsteer_jax.data.sources import Conversation
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import files

SIDES = ('positive', 'negative')
# (question, answer, side) -> why the answer is dropped, or None where it passes.
Filter = Callable[[Conversation, str, str], 'str | None']


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A pair of system prompts that ask for opposite behaviours."""

  positive: str
  negative: str


@dataclasses.dataclass(frozen=True)
class Contrast:
  """Training conversations of both sides, row by row answers to the same question, and what became
  of the pairs.

  Attributes:
    positive, negative: equally many conversations, without system prompt.
    dropped: {'<side>: <reason>': pairs}; a pair is counted once, under the first side that failed.
  """

  positive: tuple[Conversation, ...]
  negative: tuple[Conversation, ...]
  dropped: dict[str, int]

  @property
  def accounting(self) -> dict:
    """{'pairs', 'kept', 'dropped': {reason: pairs}}; pairs = kept + all dropped."""
    kept = len(self.positive)
    return {
      'pairs': kept + sum(self.dropped.values()),
      'kept': kept,
      'dropped': dict(sorted(self.dropped.items())),
    }


def prompts(
  questions: Sequence[Conversation], instructions: Sequence[Instruction], *, samples: int = 1
) -> dict[str, list[Conversation]]:
  """{side: prompts}: every question under every instruction, `samples` times; entry i of both sides
  is the same question. A prompt's name, question/instruction/sample/side, is unique: a seed for its
  sampling.

  Raises:
    InputError: nothing to ask, a question that does not end with the user's turn, or that has a
      system prompt of its own.
  """
  if not questions or not instructions or samples < 1:
    raise InputError(
      f'nothing to ask: {len(questions)} questions, {len(instructions)} instructions, '
      f'{samples} samples'
    )
  for question in questions:
    roles = [message['role'] for message in question.messages]
    if roles[-1:] != ['user'] or 'system' in roles:
      raise InputError(
        f"{question.name}: a question must end with the user's turn and have no system message; "
        f'its roles are {roles}'
      )
  asked = {side: [] for side in SIDES}
  for question, (i, instruction), sample in itertools.product(
    questions, enumerate(instructions), range(samples)
  ):
    for side in SIDES:
      system = {'role': 'system', 'content': getattr(instruction, side)}
      asked[side].append(
        Conversation((system, *question.messages), f'{question.name}/{i}/{sample}/{side}')
      )
  return asked


def pair(
  prompts_of: dict[str, list[Conversation]], answers_of: dict[str, Sequence[str]], keep: Filter
) -> Contrast:
  """The pairs of which both answers pass `keep`, as training conversations without the system
  prompt.

  Raises:
    InputError: not one answer per prompt.
  """
  for side in SIDES:
    if len(answers_of[side]) != len(prompts_of[side]):
      raise InputError(
        f'{len(answers_of[side])} {side} answers to {len(prompts_of[side])} prompts: '
        'expected one each'
      )
  kept, dropped = {side: [] for side in SIDES}, collections.Counter()
  for i in range(len(prompts_of['positive'])):
    questions = {side: _without_system(prompts_of[side][i]) for side in SIDES}
    answers = {side: answers_of[side][i] for side in SIDES}
    reason = next(
      filter(None, (_reason(questions[side], answers[side], side, keep) for side in SIDES)), None
    )
    if reason:
      dropped[reason] += 1
      continue
    for side in SIDES:
      answer = {'role': 'assistant', 'content': answers[side]}
      kept[side].append(Conversation((*questions[side].messages, answer), questions[side].name))
  return Contrast(tuple(kept['positive']), tuple(kept['negative']), dict(dropped))


def write(
  folder: files.Path,
  contrast: Contrast,
  *,
  accounting: Mapping[str, Any] | None = None,
  evaluation: Sequence[Mapping[str, Any]] = (),
) -> None:
  """Writes a new folder with `positive.jsonl`, `negative.jsonl` (rows {messages, name}) and
  `accounting.json` with the digests of both.

  Args:
    accounting: what else is to stand in the accounting.
    evaluation: items that were kept apart, written to `evaluation.jsonl` if there are any.

  Raises:
    InputError: no pair is left, or the folder exists.
    OutputError: the disk refuses; nothing is left behind.
  """
  if not contrast.positive:
    raise InputError(f'no answer pair passed the filter: {contrast.accounting}')
  with files.new_folder(folder, what='the contrastive data') as partial:
    for side in SIDES:
      rows = ({'messages': list(row.messages), 'name': row.name} for row in getattr(contrast, side))
      files.write_jsonl(partial / f'{side}.jsonl', rows)
    digests = {side: sources.digest(getattr(contrast, side)) for side in SIDES}
    if evaluation:
      files.write_jsonl(partial / 'evaluation.jsonl', evaluation)
    files.write_json(
      partial / 'accounting.json', {**contrast.accounting, **(accounting or {}), 'digest': digests}
    )


def _without_system(prompt: Conversation) -> Conversation:
  return Conversation(
    tuple(message for message in prompt.messages if message['role'] != 'system'), prompt.name
  )


def _reason(question: Conversation, answer: str, side: str, keep: Filter) -> str | None:
  reason = keep(question, answer, side) if answer.strip() else 'empty answer'
  return f'{side}: {reason}' if reason else None
