"""A trait in answers to open questions, scored by judges from 0 to 100.

Items come from a trait file or from any table of questions. A trait file is a json object with a
list of `questions` and an `eval_prompt`, which names and describes the trait; if the prompt has
places for {question} and {answer}, the judge is asked in the words of the prompt. For a table, the
config key `trait` is 'name' or 'name: description', and the judge is asked in our words.

  trait           mean score of the judge of `trait`, 0 to 100
  coherence       mean score of the judge of `coherence`, 0 to 100
  trait_rate      share of answers with a trait score above 50
  coherent_rate   share of answers with a coherence of 50 or more

Source: arXiv 2507.21509 for the cuts.
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

# Source: arXiv 2507.21509. A trait is shown by a score above the cut.
SHOWN = 50.0
# Source: arXiv 2507.21509. An answer is coherent from the cut on.
COHERENT = 50.0


def build(rows: Sequence[tables.Row], options: config.TraitTask) -> list[dict[str, Any]]:
  """An item for each question.

  Raises:
    InputError: if a row lacks a question, or neither the config nor the file names a trait.
  """
  # A trait file is a single row, with the prompt; the rows of a table have no prompt.
  _, trait_file = rows[0]
  trait, description = _trait(trait_file, options)
  items = of_trait(rows, trait, description)
  # A trait named by the config is not the trait that the file's prompt describes.
  prompt = '' if options.trait else str(trait_file.get('eval_prompt', ''))
  if '{question}' in prompt and '{answer}' in prompt:
    return [{**item, 'prompt': prompt} for item in items]
  return items


def of_trait(rows: Sequence[tables.Row], trait: str, description: str) -> list[dict[str, Any]]:
  """The questions as items of this trait."""
  items = questions.items(rows)
  return [{**item, 'trait': trait, 'description': description} for item in items]


def check(item: Mapping[str, Any], where: str) -> None:
  """Raises InputError if the item does not say which trait is judged."""
  for key in ('trait', 'description'):
    text = item[key]
    is_empty = not isinstance(text, str) or not text.strip()
    if is_empty:
      raise InputError(f"{where}: '{key}' is {text!r:.60}, expected a text")


def fields(
  prepared: answers.Prepared, results: Sequence[GenerateResult], tokenizer: Any
) -> dict[str, Any]:
  """Status and text; the value is None, since only a judge can score the answer."""
  return answers.fields(prepared, results, tokenizer, answers.nothing_to_read)


def judged(item: Mapping[str, Any], row: Row) -> list[tuple[str, dict[str, str]]]:
  """Questions to judges: how much of the trait the answer shows, and how coherent the answer is."""
  about = {key: item[key] for key in ('trait', 'description', 'prompt') if key in item}
  of_trait_shown = answers.judged(item, row, 'trait', **about)
  # Coherence does not depend on the trait, so its judge is not told of the trait.
  of_coherence = answers.judged(item, row, 'coherence')
  return of_trait_shown + of_coherence


def _trait(row: Mapping[str, Any], options: config.TraitTask) -> tuple[str, str]:
  """(name, description) of the trait, from the options, else from the trait file."""
  if options.trait:
    name, _, description = options.trait.partition(':')
    # A name without a description describes itself.
    return name.strip(), description.strip() or name.strip()
  # The prompts of arXiv 2507.21509 set the trait's name in bold, and the description behind it.
  prompt = str(row.get('eval_prompt', ''))
  match = re.search(r'\*\*(.+?)\*\*\.?\s*(.*?)(?:\n\s*\n|$)', prompt, re.DOTALL)
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
