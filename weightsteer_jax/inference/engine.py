"""The engine: requests in, results out, in whatever order is fastest."""

import collections
import dataclasses
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.inference import generation, packing, programs, scoring
from weightsteer_jax.inference.arms import AnswerOnly, Arm, Part, bare, make_arms
from weightsteer_jax.inference.requests import (
  GenerateRequest,
  GenerateResult,
  ScoreRequest,
  ScoreResult,
)
from weightsteer_jax.runtime import profiling, sharding, tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.sharding import Layout

PyTree = Any

# Another shape is worth its compilation when it saves more computation than that. A compilation
# takes some seconds, in
# which a device
# multiplies about this many parameters by tokens: on two CPU cores (measured), and on a large
# accelerator (assumed:
# 2e14 a second).
COMPILE_WORK = {'cpu': 1.5e11, 'other': 6e14}


class Engine:
  """Scores and generates with one model, under any of its arms, at any alpha, in batches that mix
  them.

  Args:
    model: from `models.load`, or anything with a `config` and `params`.
    tokenizer: kept for those who make requests; the engine itself deals in token ids.
    arms: {name: arm, or its parts}; see arms.py. 'base' is always there.
    batch_size: rows scored or generated together.
    stop_ids: tokens that end a generation.
    layout: how the model's parameters lie, and all else is to; one device by default.

  Raises:
    InputError: a delta that does not fit the model, or an axis that the mesh does not divide.
  """

  def __init__(
    self,
    model: models.Model,
    tokenizer: Any,
    arms: Mapping[str, Arm | Sequence[Part]],
    *,
    batch_size: int = 64,
    stop_ids: Sequence[int] = (),
    layout: Layout | None = None,
  ):
    if batch_size < 1:
      raise InputError(f'the batch size is {batch_size}, expected 1 or more')
    self.config, self.params, self.tokenizer = model.config, model.params, tokenizer
    self.arms = make_arms(arms)
    for delta in self.arms.deltas:
      models.check_delta(model.config, bare(delta))
    self.layout = layout or sharding.single()
    self._deltas = tuple(map(self._placed, self.arms.deltas))
    self.batch_size = batch_size
    self.stop_ids = tuple(stop_ids)
    self._traces_before = collections.Counter(programs.traces)
    work = COMPILE_WORK.get(jax.default_backend(), COMPILE_WORK['other'])
    self._compile_tokens = int(work / tree.count(model.params))

  def _placed(self, delta: PyTree) -> PyTree:
    where = models.delta_shardings(self.config, bare(delta), self.layout)
    return jax.tree.map(
      sharding.put, delta, AnswerOnly(where) if isinstance(delta, AnswerOnly) else where
    )

  @property
  def compiled(self) -> dict[str, int]:
    """{program: compilations since this engine was made}."""
    found: dict[str, int] = {}
    for (name, _), count in (programs.traces - self._traces_before).items():
      found[name] = found.get(name, 0) + count
    return found

  def score(
    self, requests: Iterable[ScoreRequest], *, wanted: Container[Any] | None = None
  ) -> Iterator[ScoreResult]:
    """The results, each as its batch finishes. The next batch is computed while these are used.

    Args:
      wanted: keys of the results that are; all by default. The batches are as if all were, so that
        each result comes out the same to the last bit, but those in which none is wanted are left
        out.

    Raises:
      InputError: a request that cannot be scored, before any is.
    """
    asked = packing.questions(list(requests), self.arms, self.config)
    if not asked:
      return
    planned = packing.batches(
      asked,
      self.config,
      batch_size=self.batch_size,
      compile_tokens=self._compile_tokens,
      groups=self.layout.rows,
    )
    waiting = None
    for active, batch, served in planned:
      if wanted is not None and not any(key in wanted for one in served for key in one.keys):
        continue
      with self.layout.context(), profiling.unit('score batch'):
        deltas = tuple(self._deltas[i] for i in active)
        scores = scoring.score_batch(self.config, self.params, deltas, self.layout.put_batch(batch))
      running = scores, served
      if waiting is not None:
        yield from _score_results(*waiting)
      waiting = running
    if waiting is not None:
      yield from _score_results(*waiting)

  def generate(self, requests: Iterable[GenerateRequest]) -> Iterator[GenerateResult]:
    """The results, as they finish.

    Raises:
      InputError: a request that cannot be run, before any is.
    """
    limit = self.config.max_positions
    asked = generation.continuations(list(requests), self.arms, limit)
    # A shape of generation is two programs: prefill and decode.
    planned = generation.groups(asked, max_positions=limit, compile_tokens=2 * self._compile_tokens)
    for group in planned:
      yield from generation.run_group(
        self.config,
        self.params,
        tuple(self._deltas[i] for i in group.deltas),
        group,
        slots=self.batch_size,
        stops=self.stop_ids,
        layout=self.layout,
      )


def _score_results(
  scores: tuple[jax.Array, jax.Array], served: Sequence[packing.Served]
) -> Iterator[ScoreResult]:
  with jax.profiler.TraceAnnotation('read scores'):  # It waits for them.
    logprobs_UM, greedy_UM = map(np.asarray, scores)
  for keys, group, targets in served:
    logprobs, greedy = logprobs_UM[group, targets], greedy_UM[group, targets]
    result = ScoreResult(
      None, float(logprobs.sum(dtype=np.float64)), len(logprobs), bool(greedy.all())
    )
    yield from (dataclasses.replace(result, key=key) for key in keys)
