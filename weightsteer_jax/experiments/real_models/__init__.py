"""Real language models: where they come from, and plain English to steer and measure them with.

packages.py   the folder of a model, from public packages or the hub
shipped.py    the text files of this room
opinions.py   agreement with the user: a contrast, and items
facts.py      questions of fact, plain and with an answer suggested: items
truthful.py   multiple choices from a table of right and wrong answers
pulls.py      what a suggestion does, in two parts, and paired changes
caution.py    warnings of risks: a contrast, and items

The texts (`*.txt`) are the project's own.
"""

from collections.abc import Callable
from typing import Any

from weightsteer_jax.data import tables
from weightsteer_jax.experiments.real_models import caution, facts, opinions, shipped


def texts(n: int, seed: int) -> list[dict[str, Any]]:
  """Plain paragraphs, which no contrast of this room holds."""
  rows = tables.read(shipped.HERE / 'texts.txt')[: n or None]
  return [{'id': str(i), 'text': row['text']} for i, (_, row) in enumerate(rows)]


# Names that a config may use, as 'english:<name>': functions of (n, seed), where n = 0 is all.
CONVERSATIONS: dict[str, Callable[..., Any]] = {
  'agreeing': opinions.agreeing,
  'deserving': opinions.deserving,
  'cautious': caution.cautious,
  'bold': caution.bold,
}
ITEMS: dict[str, Callable[..., Any]] = {
  'opinions': opinions.choices,
  'opinions_free': opinions.free,
  'opinions_selecting': opinions.selecting,
  'facts_wrong': facts.wrong,
  'facts_wrong_free': facts.wrong_free,
  'facts_right': facts.right,
  'facts_right_free': facts.right_free,
  'facts_plain': facts.plain,
  'facts_plain_free': facts.plain_free,
  'risks_near': caution.near,
  'risks_selecting': caution.selecting,
  'risks_far': caution.far,
  'risks_far_free': caution.far_free,
  'harmless': caution.harmless,
  'harmless_free': caution.harmless_free,
  'requests': caution.requests,
  'texts': texts,
}
