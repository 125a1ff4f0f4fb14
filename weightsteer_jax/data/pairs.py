"""Contrastive data: a model's own answers to the same questions under opposite system prompts.

Each question is asked with the positive and with the negative instruction. An answer pair is kept
only if both answers pass a filter. The instruction is taken away for training, so that the
behaviour is learnt without being asked for.

Source: Persona Vectors (arXiv 2507.21509), data recipe; pairing as in its filter for training data.
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
# (question, answer, side) -> the reason to drop the answer, or None where the answer passes.
Filter = Callable[[Conversation, str, str], str | None]


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A pair of system prompts that ask for opposite behaviours."""

  positive: str
  negative: str


@dataclasses.dataclass(frozen=True)
class Answer:
  """A model's answer to a prompt.

  Attributes:
    text: without a thought; filters read nothing else.
    thought: to be learnt with the answer; '' for none.
    flaw: the reason to drop the answer whatever the text says; '' for none.
  """

  text: str
  thought: str = ''
  flaw: str = ''

  def message(self) -> dict[str, str]:
    """The assistant's message with this answer."""
    message = {'role': 'assistant', 'content': self.text}
    # The key by which chat templates know the thought of a message.
    return {**message, 'reasoning_content': self.thought} if self.thought else message


@dataclasses.dataclass(frozen=True)
class Contrast:
  """A pair of sets of training conversations, row by row answers to the same question.

  Attributes:
    positive, negative: equally many conversations, without system prompt.
    dropped: {'<side>: <reason>': pairs}; a pair counts once, under the first side that failed.
  """

  positive: tuple[Conversation, ...]
  negative: tuple[Conversation, ...]
  dropped: dict[str, int]

  @property
  def accounting(self) -> dict[str, Any]:
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
  """{side: prompts}: every question under every instruction, `samples` times.

  Entry i of both sides is the same question. A prompt's name, question/instruction/sample/side, is
  unique: a seed for its sampling.

  Raises:
    InputError: if nothing is to be asked, or a question does not end with the user's turn, or has a
      system prompt.
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
  by_side: dict[str, list[Conversation]] = {side: [] for side in SIDES}
  combinations = itertools.product(questions, enumerate(instructions), range(samples))
  for question, (i, instruction), sample in combinations:
    for side in SIDES:
      # The instruction is the only difference between the sides.
      system = {'role': 'system', 'content': getattr(instruction, side)}
      messages = (system, *question.messages)
      # With the side in the name, the two answers are sampled independently.
      name = f'{question.name}/{i}/{sample}/{side}'
      by_side[side].append(Conversation(messages, name))
  return by_side


def pair(
  prompts_of: dict[str, list[Conversation]],
  answers_of: Mapping[str, Sequence[Answer]],
  filter_reason: Filter,
) -> Contrast:
  """The pairs whose two answers pass the filter, as training conversations without system prompt.

  Raises:
    InputError: if a side does not have one answer per prompt.
  """
  for side in SIDES:
    num_answers = len(answers_of[side])
    num_prompts = len(prompts_of[side])
    # A missing answer would shift all that follow to other questions.
    if num_answers != num_prompts:
      raise InputError(f'{num_answers} {side} answers to {num_prompts} prompts: expected one each')
  kept: dict[str, list[Conversation]] = {side: [] for side in SIDES}
  dropped: collections.Counter[str] = collections.Counter()
  # Both sides are equally long: entry i of each asks the same question (see `prompts`).
  num_pairs = len(prompts_of['positive'])
  for i in range(num_pairs):
    # Training without the instruction is what moves the behaviour into the weights.
    questions = {side: _without_system(prompts_of[side][i]) for side in SIDES}
    answers = {side: answers_of[side][i] for side in SIDES}
    reason = _drop_reason(questions, answers, filter_reason)
    if reason:
      # Both answers go, so that the sides stay row by row answers to the same questions.
      dropped[reason] += 1
      continue
    for side in SIDES:
      messages = (*questions[side].messages, answers[side].message())
      kept[side].append(Conversation(messages, questions[side].name))
  return Contrast(
    positive=tuple(kept['positive']),
    negative=tuple(kept['negative']),
    dropped=dict(dropped),
  )


def write(
  folder: files.Path,
  contrast: Contrast,
  *,
  accounting: Mapping[str, Any] | None = None,
  evaluation: Sequence[Mapping[str, Any]] = (),
) -> None:
  """Writes the contrast as a new folder.

  `positive.jsonl` and `negative.jsonl` have rows {messages, name}; `accounting.json` has the counts
  and the digests of both.

  Args:
    accounting: further entries of accounting.json.
    evaluation: items that were set apart, written to `evaluation.jsonl` if there are any.

  Raises:
    InputError: if no pair is left, or the folder exists.
    OutputError: if the folder cannot be written; nothing is left of it.
  """
  if not contrast.positive:
    raise InputError(f'no answer pair passed the filter: {contrast.accounting}')
  with files.new_folder(folder, what='the contrastive data') as partial:
    # The digests name the data, whatever the files are called.
    digests = {}
    for side in SIDES:
      conversations = getattr(contrast, side)
      rows = []
      for conversation in conversations:
        rows.append({'messages': list(conversation.messages), 'name': conversation.name})
      files.write_jsonl(partial / f'{side}.jsonl', rows)
      digests[side] = sources.digest(conversations)
    if evaluation:
      files.write_jsonl(partial / 'evaluation.jsonl', evaluation)
    further = accounting or {}
    # Last, so that no further entry replaces the digests.
    record = {**contrast.accounting, **further, 'digest': digests}
    files.write_json(partial / 'accounting.json', record)


def _without_system(prompt: Conversation) -> Conversation:
  messages = tuple(message for message in prompt.messages if message['role'] != 'system')
  return Conversation(messages, prompt.name)


def _drop_reason(
  questions: Mapping[str, Conversation], answers: Mapping[str, Answer], filter_reason: Filter
) -> str | None:
  """'<side>: <reason>' of the first side whose answer fails, or None."""
  for side in SIDES:
    answer = answers[side]
    if answer.flaw:
      return f'{side}: {answer.flaw}'
    # Filters expect text.
    if not answer.text.strip():
      return f'{side}: empty answer'
    # The first side that fails gives the reason, so that a pair counts once.
    reason = filter_reason(questions[side], answer.text, side)
    if reason:
      return f'{side}: {reason}'
  return None
