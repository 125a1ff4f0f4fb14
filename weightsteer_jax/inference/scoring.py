"""Log-likelihoods of completions, many prompts, arms and alphas to a batch.

A batch is rows of questions. A question is a prompt, and behind it the completions that are asked
of it, each of which sees the prompt and itself, but not the others: a tree. So the choices share
the prompt's computation, one forward pass is all there is, and nothing is kept for a second one.
Logits are computed in the places of completions alone. Which questions share a row, and how many
rows a batch has, is decided in packing.py.

Axes beside the decoder's: C edits; U groups of rows, as many as devices share them; M places of a
group where a token of a completion is predicted.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from weightsteer_jax import models
from weightsteer_jax.inference.programs import edits_of, program
from weightsteer_jax.runtime import sharding

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScoreBatch:
  """Arrays of one batch, int32 unless said.

  Attributes:
    tokens_BT, positions_BT: of prompts and of completions without their last token; a completion's
    positions go on where
      the prompt's end.
    questions_BT: which question of its row a token is of, from 1; 0 in padding. branches_BT: and
      which completion, from 1; 0 in the prompt.
    answers_BT: bool, whether an answer is predicted from here: of a prompt, only from its last
      token.
    coefficients_BTC: float32, one per edit.
    places_UM: where the next token is a completion's, counted over the rows of the group.
      targets_UM: that token. Padding points to the first token.
    reach: positions of the longest text.
  """

  tokens_BT: Any
  positions_BT: Any
  questions_BT: Any
  branches_BT: Any
  answers_BT: Any
  coefficients_BTC: Any
  places_UM: Any
  targets_UM: Any
  reach: int = dataclasses.field(metadata=dict(static=True))


@program(static_argnums=0)
def score_batch(
  config: models.ModelConfig, params: PyTree, deltas: Sequence[PyTree], batch: ScoreBatch
) -> tuple[jax.Array, jax.Array]:
  """Of each target: (its log-likelihood in nats, float32 [U, M]; whether it is the most likely
  token, bool [U, M]).
  """

  def at_places(x_BT):
    x_UZ = x_BT.reshape(
      len(batch.places_UM), -1, *x_BT.shape[2:]
    )  # Rows of a group lie on one device.
    return jax.vmap(lambda x_Z, places_M: x_Z[places_M])(x_UZ, batch.places_UM)

  edits = edits_of(deltas, batch.coefficients_BTC, answers=batch.answers_BT)
  rows = models.TokenBatch(
    batch.tokens_BT, batch.positions_BT, batch.questions_BT, batch.branches_BT
  )
  x_BTD, _ = models.hidden(config, params, rows, edits=edits, reach=batch.reach)
  edits = [dataclasses.replace(edit, alpha=at_places(edit.alpha)) for edit in edits]
  return sharding.replicate(
    target_logprobs(config, params, at_places(x_BTD), batch.targets_UM, edits)
  )


def target_logprobs(
  config: models.ModelConfig,
  params: PyTree,
  x_UMD: jax.Array,
  targets_UM: jax.Array,
  edits: Sequence[models.Edit],
) -> tuple[jax.Array, jax.Array]:
  """(log p(target) in nats, whether the target is the most likely token), [U, M] each; M is taken
  in chunks.
  """
  groups, length = targets_UM.shape
  chunk = models.chunk_length(config.vocab_size, groups // sharding.row_shards(groups), length)
  pieces = []
  for start in range(0, length, chunk):
    part = slice(start, start + chunk)
    here = [dataclasses.replace(edit, alpha=edit.alpha[:, part]) for edit in edits]
    logits_UmV = models.logits(config, params, x_UMD[:, part], edits=here)
    picked_Um = jnp.take_along_axis(logits_UmV, targets_UM[:, part, None], axis=-1)[..., 0]
    pieces.append(
      (picked_Um - jax.nn.logsumexp(logits_UmV, axis=-1), picked_Um >= jnp.max(logits_UmV, axis=-1))
    )
  logprobs, greedy = zip(*pieces)
  return jnp.concatenate(logprobs, axis=1), jnp.concatenate(greedy, axis=1)
