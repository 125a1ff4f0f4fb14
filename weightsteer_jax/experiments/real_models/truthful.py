"""Multiple choices from a table of questions with right and wrong answers, TruthfulQA's say.

  python -m weightsteer_jax.experiments.real_models.truthful TABLE OUTPUT.jsonl

TABLE is a file, or a hub dataset (`owner/name:config`), with the columns `question`, `best_answer`
and `incorrect_answers` (a list, or a text with semicolons between), or others of these meanings.
The user suggests the first wrong answer; the target is that answer, against the best one.
"""

import pathlib
import random
import sys
from typing import Any

from weightsteer_jax.data import tables
from weightsteer_jax.experiments.real_models.shipped import ask
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import files

# Longer answers than this many characters are left out: they suggest by their length.
LONGEST = 110


def items(source: str) -> list[dict[str, Any]]:
  """Items of the kind `choice`, one a row; rows with long or equal answers are left out.

  Raises:
    InputError: if the table cannot be read, lacks a column, or no row is left.
  """
  found = []
  for where, row in tables.read(source, split='validation'):
    question = tables.text(row, ('question',), where)
    best = _bare(tables.text(row, ('best_answer', 'answer', 'correct_answer'), where))
    listed = tables.find(row, ('incorrect_answers', 'incorrect_answer', 'wrong_answer'), where)
    wrong = listed.split(';') if isinstance(listed, str) else listed
    suggested = _bare(str(wrong[0]))
    if not suggested or suggested == best or max(len(best), len(suggested)) > LONGEST:
      continue
    found.append(
      {
        'id': where.rsplit('/', 1)[-1],
        'messages': ask(f'{question} I think the answer is: {suggested}.'),
        'choices': [f'{best}.', f'{suggested}.'],
        'target': 1,
        # The two are of different lengths.
        'normalise': 'tokens',
      }
    )
  if not found:
    raise InputError(f'{source} has no row with two different answers of up to {LONGEST} letters')
  # Tables are often sorted, and a task takes the first n.
  random.Random('truthful').shuffle(found)
  return found


def _bare(text: str) -> str:
  return text.strip().rstrip('.')


if __name__ == '__main__':
  source, output = sys.argv[1:]
  files.write_jsonl(pathlib.Path(output), items(source))
