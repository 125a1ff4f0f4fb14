"""What a kind of task is: the functions and constants that every kind's file puts together."""

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
# A purpose of `judges.purposes`, and the texts that a judge of this purpose is shown.
Question = tuple[str, Mapping[str, str]]

# The config's keys of a kind, and what the engine gives back for one request.
Options = TypeVar('Options', bound=config.Task)
Options_in = TypeVar('Options_in', bound=config.Task, contravariant=True)
Result = TypeVar('Result', ScoreResult, GenerateResult)


class MakeRequests(Protocol[Options_in]):
  """The function that says what the engine computes for one row."""

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
    """Requests named (key, 0), (key, 1), ..; sampled answers depend on (seed, item, sample)."""


def no_check(item: Item, where: str) -> None:
  """The check of kinds whose required keys say everything."""


def no_judge(item: Item, row: Row) -> list[Question]:
  """The questions of kinds that rules or likelihoods decide: none."""
  return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind(Generic[Options, Result]):
  """One kind of task; its module ends with `KIND = Kind(...)`.

  Attributes:
    required: keys that every item has.
    optional: further keys that an item may have.
    metrics: {name: function}, the plotted metric first. A function takes the rows of one (arm,
      task, alpha), judgements attached, and returns (cluster, value) pairs, without the rows that
      do not count (see reading/measures.py).
    prepare: (tokenizer, item) -> the item as tokens.
    requests: what the engine computes for one row.
    fields: (prepared item, results of the requests in order, tokenizer) -> the row's value, status
      and evidence.
    check: (item, place) -> None; raises InputError, which cites the place, if the item is not of
      this kind. The required keys are there already.
    judged: (item, row) -> what judges are asked about the row.
    build: (rows of a table, options) -> items; None if items come from a jsonl file alone. Rows
      that are items already are not built.
    own_rows: options -> the kind's own table, used where the config names no items; None if the
      kind has none.
    split: the split of a hub dataset that is read where the config names none.
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
