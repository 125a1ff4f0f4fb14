"""What is compiled: pure functions of (config, params, deltas, arrays), each jitted once and traced
once per shape.
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
  """A decorator: `jax.jit`, with every trace counted in `traces`. The last positional argument is
  the batch that names the shape.
  """
  if function is None:
    return functools.partial(program, **jit_options)

  @functools.wraps(function)
  def traced(*args, **kwargs):
    shapes = tuple(tuple(leaf.shape) for leaf in jax.tree.leaves(args[-1]))
    traces[function.__name__, shapes] += 1
    return function(*args, **kwargs)

  return jax.jit(traced, **jit_options)


def edits_of(
  deltas: Sequence[PyTree], coefficients: jax.Array, *, answers: bool | jax.Array = True
) -> tuple[models.Edit, ...]:
  """One edit per delta, at its column of the coefficients, [B, C] or [B, T, C].

  Args:
    answers: whether what is computed belongs to an answer, which a prompt's last token does; bool
      [B, T] where that differs from token to token. Elsewhere no edit is made that is AnswerOnly.
  """
  edits = []
  for i, delta in enumerate(deltas):
    alpha = coefficients[..., i]
    if isinstance(delta, AnswerOnly):
      if answers is False:
        continue
      alpha = alpha if answers is True else jnp.where(answers, alpha, 0.0)
    edits.append(models.Edit(bare(delta), alpha))
  return tuple(edits)
