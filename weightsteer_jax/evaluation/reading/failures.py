"""Failure rates of the answers behind a number: the accounting of every task.

  valid_rate       share of all rows with a judgeable answer (see INVALID)
  refused_rate     share of answers with a refusal: by the judge of `refusal`, else by rule
  truncated_rate   share of answers that ran into the length limit
  repetitive_rate  share of answers with more than half of the word 4-grams repeated
  unparsable_rate  share of answers with nothing to read for a rule
  unjudged_rate    share of questions to the first judge without a score

A cut thought is no answer (see `answers.status_of`). It counts in `valid_rate` and in
`truncated_rate`, is left out of the other rates, and has a rate of its own in `thinking.py`. The
rates overlap: an answer that goes in circles until the length limit is both repetitive and
truncated. Each denominator stands beside the rate as `n` (examples or questions) and `values`
(rows).
"""

import re
from collections.abc import Callable, Sequence

from weightsteer_jax.evaluation.reading import measures, refusals
from weightsteer_jax.evaluation.reading.measures import Metric, Pairs, Row, cluster, each, score

# Statuses of rows that could not be judged; `answers.status_of` says which answer has which.
# 'truncated' is not among them: such an answer was cut off, and could be read all the same.
INVALID = ('empty', 'unparsable', 'refused', 'not_finite', 'thought_cut')
# Words in a gram; arXiv 1908.04319 uses the same.
NGRAM = 4
# Share of repeated grams above which a text is repetitive, and fewest grams to tell by: our own.
REPEATED = 0.5
SHORTEST = 20
# Scripts without spaces between words: each sign counts as a word.
_CJK = '\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af'
_WORD = re.compile(rf'[{_CJK}]|[^\W{_CJK}]+|[^\w\s]')


def repetition(text: str) -> float:
  """The share of the text's word 4-grams that occurred before; 0 for a text without 4-grams.

  Source: seq-rep-4 of arXiv 1908.04319, over words and signs instead of tokens.

  >>> repetition('a b c d e f'), repetition('no ' * 10)
  (0.0, 0.8571428571428572)
  """
  grams = _grams(text)
  if not grams:
    return 0.0
  distinct = len(set(grams))
  return 1 - distinct / len(grams)


def is_repetitive(text: str) -> bool:
  """Whether more than half of the text's 4-grams repeat; False for fewer than 20 4-grams."""
  # In a short text a few repeated words are style, not a loop.
  if len(_grams(text)) < SHORTEST:
    return False
  return repetition(text) > REPEATED


def _grams(text: str) -> list[tuple[str, ...]]:
  words = _WORD.findall(text.lower())
  # Negative for a text of fewer words than a gram, and then no gram is cut.
  count = len(words) - NGRAM + 1
  return [tuple(words[i : i + NGRAM]) for i in range(count)]


def refused(row: Row) -> float | None:
  """Whether an answer refuses (1.0 or 0.0); None without an answer or without a score."""
  # Choices by likelihood have no text that could refuse.
  if not _has_answer(row):
    return None
  if measures.judgement_of(row, 'refusal') is None:
    return float(refusals.refuses(row['completion']))
  probability = score(row, 'refusal')
  # No rule in place of a judge that failed: the rate would mix two measures.
  if probability is None:
    return None
  return float(probability > 0.5)


def _has_answer(row: Row) -> bool:
  return 'completion' in row and row['status'] != 'thought_cut'


def _is_valid(row: Row) -> bool:
  return row['status'] not in INVALID


def _truncated(row: Row) -> float | None:
  if 'completion' not in row:
    return None
  # An unreadable answer that was cut off has another status; older rows have no finish.
  return float(row.get('finish') == 'length' or row['status'] == 'truncated')


def _is_repetitive(row: Row) -> bool:
  return is_repetitive(row['completion'])


def _is_unparsable(row: Row) -> bool:
  return row['status'] == 'unparsable'


def _of_answers(holds: Callable[[Row], bool]) -> Metric:
  """The share of rows for which `holds` is true, among rows with an answer in text."""

  def number(row: Row) -> float | None:
    if not _has_answer(row):
      return None
    return float(holds(row))

  return each(number)


def _unjudged(rows: Sequence[Row]) -> Pairs:
  pairs = []
  for row in rows:
    by_judge = list(row.get('judgements', {}).values())
    if not by_judge:
      continue
    # A value for each purpose, since a judge may fail at one question and answer the next.
    for judgement in by_judge[0].values():
      is_unjudged = judgement['status'] != 'ok'
      pairs.append((cluster(row), float(is_unjudged)))
  return pairs


# Over all rows, unlike the rates of answers below.
valid_rate: Metric = each(_is_valid)
METRICS: dict[str, Metric] = {
  'valid_rate': valid_rate,
  'refused_rate': each(refused),
  'truncated_rate': each(_truncated),
  'repetitive_rate': _of_answers(_is_repetitive),
  'unparsable_rate': _of_answers(_is_unparsable),
  'unjudged_rate': _unjudged,
}
