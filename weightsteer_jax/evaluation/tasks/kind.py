"""A kind of task: the functions and constants put together by every kind's file."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from weightsteer_jax import config
from weightsteer_jax.data import tables
from weightsteer_jax.evaluation.reading.answers import Prepared
from weightsteer_jax.evaluation.reading.measures import Metric, Row
from weightsteer_jax.inference.requests import (
  GenerateRequest,
  GenerateResult,
  ScoreRequest,
  ScoreResult,
)

Item = Mapping[str, Any]
# (a purpose of `judges.purposes`, the texts shown to a judge of the purpose).
Question = tuple[str, Mapping[str, str]]

# The dataclass of a kind's config keys.
Options = TypeVar('Options', bound=config.Task)
# The same where a function only takes the options: a function of all tasks then fits any kind.
Options_in = TypeVar('Options_in', bound=config.Task, contravariant=True)
# The engine's result for one request.
Result = TypeVar('Result', ScoreResult, GenerateResult)


class MakeRequests(Protocol[Options_in]):
  """The function that makes the engine's requests for one row."""

  def __call__(
    self,
    prepared: Prepared,
    key: Any,
    arm: str,
    alpha: float,
    sample: int,
    options: Options_in,
    seed: int,
  ) -> Sequence[ScoreRequest] | Sequence[GenerateRequest]:
    """Requests named (key, 0), (key, 1) and so on.

    Sampled answers depend on (seed, item, sample).
    """


def no_check(item: Item, where: str) -> None:
  """The check of kinds for which the required keys suffice."""


def no_judge(item: Item, row: Row) -> list[Question]:
  """The questions to judges in kinds decided by rules or likelihoods: none."""
  return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind(Generic[Options, Result]):
  """A kind of task, made at the end of the kind's module as `KIND = Kind(...)`.

  Attributes:
    required: keys of every item.
    optional: further keys allowed in an item.
    metrics: {name: function}, the plotted metric first. A function takes the rows of one (arm,
      task, alpha), judgements attached, and returns (cluster, value) pairs, without the rows left
      out of the metric (see reading/measures.py).
    prepare: (tokenizer, item) -> the item as tokens.
    requests: (prepared item, key, arm, alpha, sample, options, seed) -> requests to the engine for
      one row.
    fields: (prepared item, results of the requests in order, tokenizer) -> the row's value, status
      and evidence.
    check: (item, place) -> None; raises InputError, citing the place, if the item is not of this
      kind. The presence of the required keys is checked before.
    judged: (item, row) -> questions to judges about the row.
    build: (rows of a table, options) -> items; None if items come from a jsonl file alone. Rows
      that are items already are not built.
    own_rows: options -> the kind's own table, used if the config names no items; None for a kind
      without a table.
    split: split of a hub dataset to read if the config names no split.
  """

  required: tuple[str, ...]
  optional: tuple[str, ...]
  metrics: Mapping[str, Metric]
  prepare: Callable[[Any, Item], Prepared]
  requests: MakeRequests[Options]
  fields: Callable[[Prepared, Sequence[Result], Any], dict[str, Any]]
  check: Callable[[Item, str], None] = no_check
  judged: Callable[[Item, Row], Sequence[Question]] = no_judge
  build: Callable[[Sequence[tables.Row], Options], list[dict[str, Any]]] | None = None
  own_rows: Callable[[Options], list[tables.Row]] | None = None
  split: str = ''
