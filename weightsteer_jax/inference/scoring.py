"""Log-likelihoods of completions, many prompts, arms and alphas to a batch.

A batch is rows of questions. A question is a prompt, and behind the prompt its completions: each
completion sees the prompt and itself, but no other completion, as the branches of a tree. So the
choices share the prompt's computation, and one forward pass without a cache is enough. Prompts that
begin alike share in the same way: each branch is then the rest of a prompt and a completion, and
the question's prompt is what they have in common (see prefixes.py). Logits are
computed in the places of completions alone. Which questions share a row, and how many rows a batch
has, is decided in packing.py.

Axes as in models/decoder.py: U groups of rows, as many as devices share the rows; M places of a
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
    tokens_BT: prompts, and completions without their last token.
    positions_BT: of the tokens; a completion's positions go on where the prompt's end.
    questions_BT: the token's question in the row, from 1; 0 in padding.
    branches_BT: the token's completion in the question, from 1; 0 in the prompt.
    answers_BT: bool, whether the next token belongs to an answer: in a prompt, for the last token
      alone.
    coefficients_BTC: float32, one per edit.
    places_UM: tokens from which a completion's next token is predicted, counted over the rows of
      the group. Padding points to the first token.
    targets_UM: the next token in each of these places.
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
  """(log p(target) in nats, whether the target is the most likely token), [U, M] each."""

  def at_places(x_BT):
    groups = len(batch.places_UM)
    features = x_BT.shape[2:]
    # Rows of a group lie on one device: the reshape moves nothing.
    x_UZ = x_BT.reshape(groups, -1, *features)
    # Each group picks among its own rows, so that no device asks another for activations.
    pick = jax.vmap(lambda x_Z, places_M: x_Z[places_M])
    return pick(x_UZ, batch.places_UM)

  # One forward pass over all rows.
  edits = edits_of(deltas, batch.coefficients_BTC, answers=batch.answers_BT)
  # A question is a segment of the row, a completion a branch of the segment.
  rows = models.TokenBatch(
    batch.tokens_BT, batch.positions_BT, batch.questions_BT, batch.branches_BT
  )
  x_BTD, _ = models.hidden(config, params, rows, edits=edits, reach=batch.reach)
  # Then logits in the places that count alone; the head may be steered too.
  edits_UM = []
  for edit in edits:
    alpha_UM = at_places(edit.alpha)
    edits_UM.append(dataclasses.replace(edit, alpha=alpha_UM))
  x_UMD = at_places(x_BTD)
  scores = target_logprobs(config, params, x_UMD, batch.targets_UM, edits_UM)
  # The host of every process reads all scores.
  return sharding.replicate(scores)


def target_logprobs(
  config: models.ModelConfig,
  params: PyTree,
  x_UMD: jax.Array,
  targets_UM: jax.Array,
  edits: Sequence[models.Edit],
) -> tuple[jax.Array, jax.Array]:
  """(log p(target) in nats, whether the target is the most likely token), [U, M] each.

  M is taken in chunks of m, so that the logits [U, m, V] stay small.
  """
  groups, length = targets_UM.shape
  # The bound on memory is for one device, with the groups on that device.
  groups_on_device = groups // sharding.row_shards(groups)
  chunk = models.chunk_length(config.vocab_size, groups_on_device, length)
  logprobs = []
  greedy = []
  # A Python loop: XLA sees every chunk, and a last, shorter chunk needs no padding.
  for start in range(0, length, chunk):
    part = slice(start, start + chunk)
    chunk_edits = []
    for edit in edits:
      alpha_Um = edit.alpha[:, part]
      chunk_edits.append(dataclasses.replace(edit, alpha=alpha_Um))
    x_UmD = x_UMD[:, part]
    logits_UmV = models.logits(config, params, x_UmD, edits=chunk_edits)
    targets_Um1 = targets_UM[:, part, None]
    picked_Um1 = jnp.take_along_axis(logits_UmV, targets_Um1, axis=-1)
    picked_Um = picked_Um1[..., 0]
    # Of logits without their softmax: the vocabulary is never normalised in memory.
    total_Um = jax.nn.logsumexp(logits_UmV, axis=-1)
    logprobs.append(picked_Um - total_Um)
    # A tie with the largest logit counts as greedy.
    largest_Um = jnp.max(logits_UmV, axis=-1)
    greedy.append(picked_Um >= largest_Um)
  logprobs_UM = jnp.concatenate(logprobs, axis=1)
  greedy_UM = jnp.concatenate(greedy, axis=1)
  return logprobs_UM, greedy_UM
