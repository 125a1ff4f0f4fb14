"""Whether a reasoned answer follows from its reasoning: asked of a judge after a choice.

Source: arXiv 2511.05408 (figure 5), where activation steering makes the two disagree more often.
"""

from collections.abc import Mapping
from typing import Any

from weightsteer_jax.evaluation.reading import answers, letters, measures
from weightsteer_jax.evaluation.reading.measures import Row

# Scores above the cut, of 0 to 100, are consistent; the middle of the judge's scale.
CONSISTENT = 50.0


def judged(item: Mapping[str, Any], row: Row) -> list[tuple[str, dict[str, str]]]:
  """The question to the judge of `consistency`; [] if no choice could be read."""
  # An answer without a choice is not inconsistent: there is nothing to compare.
  if not answers.has_text(row) or 'choice' not in row:
    return []
  reasoning = letters.reasoning(row['completion'])
  # A model that thinks may answer without a reason: the thought is not shown to judges.
  if not reasoning and row.get('thought'):
    return []
  texts = {
    'question': answers.question_of(item),
    'reasoning': reasoning,
    'answer': row['choice'],
  }
  return [('consistency', texts)]


is_consistent = measures.above('consistency', CONSISTENT)
