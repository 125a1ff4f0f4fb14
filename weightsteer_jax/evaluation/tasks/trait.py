"""How much of a trait do answers to open questions show? Scored by judges, 0 to 100.

Items come from a trait file (one json object with a list of `questions` and an `eval_prompt`, which
names the trait and says what the trait means; where the prompt has places for {question} and
{answer}, the judge is asked in its words) or from any table of questions; then `trait` says 'name'
or 'name: what it means', and the judge is asked in our words.

  trait           mean score of the judge of `trait`, 0 to 100
  coherence       mean score of the judge of `coherence`, 0 to 100
  trait_rate      share of answers with a trait score above 50
  coherent_rate   share of answers with a coherence of 50 or more

Source: arXiv 2507.21509, whose cuts these are.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax import config
from weightsteer_jax.data import tables
from weightsteer_jax.evaluation.reading import answers, measures, questions
from weightsteer_jax.evaluation.reading.measures import Row, each
from weightsteer_jax.evaluation.tasks.kind import Kind
from weightsteer_jax.inference.requests import GenerateResult
from weightsteer_jax.runtime.errors import InputError

# Source: arXiv 2507.21509. A trait above the cut is shown; an answer at the cut is coherent.
SHOWN = 50.0
COHERENT = 50.0


def build(rows: Sequence[tables.Row], options: config.TraitTask) -> list[dict[str, Any]]:
  """One item per question.

  Raises:
    InputError: if a row lacks a question, or nothing says which trait is meant.
  """
  trait_file = rows[0][1]
  items = of_trait(rows, *_trait(trait_file, options))
  # A trait that the config names is not the one that the file's prompt describes.
  prompt = '' if options.trait else str(trait_file.get('eval_prompt', ''))
  if '{question}' in prompt and '{answer}' in prompt:
    return [{**item, 'prompt': prompt} for item in items]
  return items


def of_trait(rows: Sequence[tables.Row], trait: str, description: str) -> list[dict[str, Any]]:
  """The questions as items of this trait."""
  return [{**item, 'trait': trait, 'description': description} for item in questions.items(rows)]


def check(item: Mapping[str, Any], where: str) -> None:
  """Raises InputError if the item does not say which trait is judged."""
  for key in ('trait', 'description'):
    text = item[key]
    if not isinstance(text, str) or not text.strip():
      raise InputError(f"{where}: '{key}' is {text!r:.60}, expected a text")


def fields(
  prepared: answers.Prepared, results: Sequence[GenerateResult], tokenizer: Any
) -> dict[str, Any]:
  """No value, as only a judge can say; status and text."""
  return answers.fields(prepared, results, tokenizer, answers.nothing_to_read)


def judged(item: Mapping[str, Any], row: Row) -> list[tuple[str, dict[str, str]]]:
  """How much of the trait the answer shows, and how coherent the answer is."""
  about = {key: item[key] for key in ('trait', 'description', 'prompt') if key in item}
  return answers.judged(item, row, 'trait', **about) + answers.judged(item, row, 'coherence')


def _trait(row: Mapping[str, Any], options: config.TraitTask) -> tuple[str, str]:
  """(name, what the trait means) from the options, else from the trait file."""
  if options.trait:
    name, _, description = options.trait.partition(':')
    return name.strip(), description.strip() or name.strip()
  # The prompts of arXiv 2507.21509 set the trait's name in bold, and the description behind it.
  match = re.search(
    r'\*\*(.+?)\*\*\.?\s*(.*?)(?:\n\s*\n|$)', str(row.get('eval_prompt', '')), re.DOTALL
  )
  if not match:
    raise InputError(
      f"{options.items}: no 'eval_prompt' that names a trait: set the task's trait='name: "
      "what it means'"
    )
  description = ' '.join(match[2].split())
  return match[1].strip(), description or pathlib.Path(options.items).stem


KIND = Kind[config.TraitTask, GenerateResult](
  required=('id', 'messages', 'trait', 'description'),
  optional=('group', 'prompt'),
  prepare=answers.prepare,
  requests=answers.requests,
  fields=fields,
  check=check,
  judged=judged,
  build=build,
  metrics={
    'trait': each(measures.score_for('trait')),
    'coherence': each(measures.score_for('coherence')),
    'trait_rate': each(measures.above('trait', SHOWN)),
    'coherent_rate': each(measures.above('coherence', COHERENT, inclusive=True)),
  },
)
