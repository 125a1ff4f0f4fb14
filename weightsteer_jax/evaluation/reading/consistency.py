"""Whether a reasoned answer follows from its reasoning: asked of a judge wherever a choice was
given.

Source: arXiv 2511.05408 (figure 5), where activation steering makes the two disagree more often.
"""

from collections.abc import Mapping
from typing import Any

from weightsteer_jax.evaluation.reading import answers, letters, measures
from weightsteer_jax.evaluation.reading.measures import Row

CONSISTENT = 50.0  # scores above it, of 0 to 100


def judged(item: Mapping[str, Any], row: Row) -> list[tuple[str, dict[str, str]]]:
  """What the judge is asked; nothing where no choice could be read: that is not inconsistent, it is
  no answer.
  """
  if not answers.has_text(row) or 'choice' not in row:
    return []
  return [
    (
      'consistency',
      {
        'question': answers.question_of(item),
        'reasoning': letters.reasoning(row['completion']),
        'answer': row['choice'],
      },
    )
  ]


def is_consistent(row: Row) -> float | None:
  """1.0 or 0.0; None where no choice was given or the judge has not said."""
  score = measures.score(row, 'consistency')
  return None if score is None else float(score > CONSISTENT)
