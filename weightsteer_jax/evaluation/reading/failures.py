"""What became of the answers that a number rests on: the failure accounting that every task
reports.

  valid_rate       share of all rows with an answer that could be judged (see INVALID)
  refused_rate     share of answers that refuse: as the judge of `refusal` says, where it was not
                   asked by rule
  truncated_rate   share of answers that ran into the length limit
  repetitive_rate  share of answers in which more than half of the word 4-grams repeat an earlier
                   one
  unparsable_rate  share of answers in which nothing could be read that a rule was to judge
  unjudged_rate    share of questions to the judge that counts which it did not answer with a score

They overlap: an answer that goes in circles until it is cut off is both. Each denominator stands
beside it as `n` (examples or questions) and `values` (rows).
"""

import re

from weightsteer_jax.evaluation.reading import measures, refusals
from weightsteer_jax.evaluation.reading.measures import Metric, Pairs, Row, cluster, each, score

INVALID = ('empty', 'unparsable', 'refused', 'not_finite')
NGRAM, REPEATED, SHORTEST = (
  4,
  0.5,
  20,
)  # words in a gram; share of repeated ones; fewest grams to tell by
_CJK = (
  '\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af'  # scripts without spaces: each sign is taken for a word
)
_WORD = re.compile(rf'[{_CJK}]|[^\W{_CJK}]+|[^\w\s]')


def repetition(text: str) -> float:
  """The share of the text's word 4-grams that occurred in it before; 0 where there are none.

  Source: seq-rep-4 of arXiv 1908.04319, over words and signs instead of tokens.

  >>> repetition('a b c d e f'), repetition('no ' * 10)
  (0.0, 0.8571428571428572)
  """
  grams = _grams(text)
  return 1 - len(set(grams)) / len(grams) if grams else 0.0


def is_repetitive(text: str) -> bool:
  """Whether more than half of the text's 4-grams repeat; a text with fewer than 20 of them is not
  called so (the thresholds are our own).
  """
  return len(_grams(text)) >= SHORTEST and repetition(text) > REPEATED


def _grams(text: str) -> list[tuple[str, ...]]:
  words = _WORD.findall(text.lower())
  return [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]


def refused(row: Row) -> float | None:
  """Whether an answer refuses (1.0 or 0.0); None where there is no answer, or the judge gave no
  score.
  """
  if 'completion' not in row:
    return None
  if measures.asked(row, 'refusal') is None:
    return float(refusals.refuses(row['completion']))
  found = score(row, 'refusal')
  return None if found is None else float(found > 0.5)


def _answered(number) -> Metric:
  """The mean over rows that hold a text."""
  return each(lambda row: float(number(row)) if 'completion' in row else None)


def _unjudged(rows: list[Row]) -> Pairs:
  first = [(row, next(iter(row.get('judgements', {}).values()), {})) for row in rows]
  return [
    (cluster(row), float(judgement['status'] != 'ok'))
    for row, said in first
    for judgement in said.values()
  ]


valid_rate = each(lambda row: float(row['status'] not in INVALID))
METRICS: dict[str, Metric] = {
  'valid_rate': valid_rate,
  'refused_rate': each(refused),
  'truncated_rate': _answered(
    lambda row: row.get('finish', '') == 'length' or row['status'] == 'truncated'
  ),
  'repetitive_rate': _answered(lambda row: is_repetitive(row['completion'])),
  'unparsable_rate': _answered(lambda row: row['status'] == 'unparsable'),
  'unjudged_rate': _unjudged,
}
