"""Compiled programs: pure functions of (config, params, deltas, arrays), jitted and counted.

Each function is jitted once and traced once per shape.
"""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from weightsteer_jax import models
from weightsteer_jax.inference.arms import AnswerOnly, bare

PyTree = Any

# {(program, shapes of its batch): traces} of this process; a compilation follows each trace.
traces: collections.Counter = collections.Counter()


def program(function: Callable | None = None, **jit_options: Any) -> Callable:
  """A decorator: `jax.jit`, with every trace counted in `traces`.

  The count goes by the shapes of the function's last positional argument, the batch.

  Args:
    jit_options: options of `jax.jit`.
  """
  # Written with options, `@program(...)` is first called without the function.
  if function is None:
    return functools.partial(program, **jit_options)

  @functools.wraps(function)
  def traced(*args, **kwargs):
    # Runs only while jax traces: a call of the compiled program does not come here.
    leaves = jax.tree.leaves(args[-1])
    shapes = tuple(tuple(leaf.shape) for leaf in leaves)
    traces[function.__name__, shapes] += 1
    return function(*args, **kwargs)

  return jax.jit(traced, **jit_options)


def edits_of(
  deltas: Sequence[PyTree], coefficients: jax.Array, *, answers: bool | jax.Array = True
) -> tuple[models.Edit, ...]:
  """One edit per delta, at its column of the coefficients.

  Args:
    coefficients: float32 [B, C] or [B, T, C].
    answers: whether the tokens belong to an answer, a prompt's last token included; bool [B, T] if
      tokens differ. An AnswerOnly delta is applied to an answer's tokens alone.
  """
  edits = []
  for i, delta in enumerate(deltas):
    alpha = coefficients[..., i]
    if isinstance(delta, AnswerOnly):
      # Known while tracing: the delta costs no computation.
      if answers is False:
        continue
      if answers is not True:
        # From here on the strength differs from token to token.
        alpha = jnp.where(answers, alpha, 0.0)
    edits.append(models.Edit(bare(delta), alpha))
  return tuple(edits)
