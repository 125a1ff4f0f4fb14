"""The engine: requests in, results out, in whatever order is fastest."""

import collections
import copy
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.inference import generation, packing, programs, scoring, shapes
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
# takes some seconds, in which a device multiplies about this many parameters by tokens: on two CPU
# cores (measured), and on a large accelerator (assumed: 2e14 a second).
COMPILE_WORK = {'cpu': 1.5e11, 'other': 6e14}


class Engine:
  """Scores and generates with one model, in batches that mix arms and alphas.

  Args:
    model: from `models.load`, or anything with a `config` and `params`.
    tokenizer: kept for the makers of requests; the engine itself deals in token ids.
    arms: {name: arm, or the arm's parts}; see arms.py. 'base' is always there.
    batch_size: rows scored or generated together.
    stop_ids: tokens that end a generation.
    layout: how the model's parameters lie, and all else is to; one device by default.
    kept_shapes: shapes that several engines of a session generate in; None plans each call anew.

  Raises:
    InputError: if a delta does not fit the model, or if the mesh does not divide an axis.
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
    kept_shapes: shapes.KeptShapes | None = None,
  ):
    if batch_size < 1:
      raise InputError(f'the batch size is {batch_size}, expected 1 or more')
    self.config = model.config
    self.params = model.params
    self.tokenizer = tokenizer
    self.arms = make_arms(arms)
    for delta in self.arms.deltas:
      models.check_delta(model.config, bare(delta))
    self.layout = layout or sharding.single()
    self._kept_shapes = kept_shapes
    # Placed once, in the order of `arms.deltas`; batches take the ones that they need.
    self.deltas = tuple(map(self._placed, self.arms.deltas))
    self.batch_size = batch_size
    self.stop_ids = tuple(stop_ids)
    # Programs are shared by all engines of a process.
    self._traces_before = collections.Counter(programs.traces)
    # A token's computation is about one product with every parameter.
    work = COMPILE_WORK.get(jax.default_backend(), COMPILE_WORK['other'])
    self._compile_tokens = int(work / tree.count(model.params))

  def _placed(self, delta: PyTree) -> PyTree:
    shardings = models.delta_shardings(self.config, bare(delta), self.layout)
    # Both trees need the same structure.
    if isinstance(delta, AnswerOnly):
      shardings = AnswerOnly(shardings)
    return jax.tree.map(sharding.put, delta, shardings)

  def stopping_at(self, stop_ids: Sequence[int]) -> 'Engine':
    """The same engine, with other tokens that end a generation."""
    other = copy.copy(self)
    other.stop_ids = tuple(stop_ids)
    return other

  @property
  def compiled(self) -> dict[str, int]:
    """{program: compilations since this engine was made}."""
    compilations: dict[str, int] = {}
    since = programs.traces - self._traces_before
    for (name, _), count in since.items():
      compilations[name] = compilations.get(name, 0) + count
    return compilations

  def score(
    self, requests: Iterable[ScoreRequest], *, wanted: Container[Any] | None = None
  ) -> Iterator[ScoreResult]:
    """The results, as batches finish. The next batch is computed while results are used.

    Args:
      wanted: yield only these keys. Batches are formed from all requests, so a result has the same
        bits whatever else is wanted; batches without a wanted key are left out.

    Raises:
      InputError: if a request cannot be scored, before any is.
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
    waiting: tuple[tuple[jax.Array, jax.Array], Sequence[packing.Served]] | None = None
    for active, batch, served in planned:
      keys = (key for completion in served for key in completion.keys)
      if wanted is not None and not any(key in wanted for key in keys):
        continue
      with self.layout.context(), profiling.unit('score batch'):
        deltas = tuple(self.deltas[i] for i in active)
        placed = self.layout.put_batch(batch)
        scores = scoring.score_batch(self.config, self.params, deltas, placed)
      # This batch runs on the device while the caller uses the results of the batch before.
      before = waiting
      waiting = (scores, served)
      if before is not None:
        yield from _score_results(*before)
    if waiting is not None:
      yield from _score_results(*waiting)

  def generate(self, requests: Iterable[GenerateRequest]) -> Iterator[GenerateResult]:
    """The results, as they finish.

    Raises:
      InputError: if a request cannot be run, before any is.
    """
    limit = self.config.max_positions
    asked = generation.continuations(list(requests), self.arms, self.config)
    # A shape of generation is two programs: prefill and decode.
    planned = generation.groups(
      asked,
      max_positions=limit,
      compile_tokens=2 * self._compile_tokens,
      kept_shapes=self._kept_shapes,
    )
    for group in planned:
      deltas = tuple(self.deltas[i] for i in group.deltas)
      yield from generation.run_group(
        self.config,
        self.params,
        deltas,
        group,
        slots=self.batch_size,
        stops=self.stop_ids,
        layout=self.layout,
      )


def _score_results(
  scores: tuple[jax.Array, jax.Array], served: Sequence[packing.Served]
) -> Iterator[ScoreResult]:
  # Waits for the device.
  with jax.profiler.TraceAnnotation('read scores'):
    logprobs_UM, greedy_UM = map(np.asarray, scores)
  for keys, group, targets in served:
    logprobs = logprobs_UM[group, targets]
    greedy = greedy_UM[group, targets]
    # In float64: the sum of a long completion must not round away its last tokens.
    total = logprobs.sum(dtype=np.float64)
    is_greedy = bool(greedy.all())
    for key in keys:
      yield ScoreResult(key, float(total), len(logprobs), is_greedy)
