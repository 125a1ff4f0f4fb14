"""Log-likelihoods of completions, many prompts, arms and alphas to a batch.

A batch has two parts: P prompts, and R completions that name the prompt they follow. The prompts, but for their last
token, fill the cache once; every completion then reads its prompt's keys and values, so that the choices of one
question share its computation, and the logits are computed in the places of completions only. Axes beside the
decoder's: P prompts, R completions, C edits.
"""
import collections
import dataclasses
import functools
import math
from typing import Any, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from weightsteer_jax import models, sharding
from weightsteer_jax.errors import InputError
from weightsteer_jax.evaluation import shapes
from weightsteer_jax.evaluation.arms import Arms, together
from weightsteer_jax.evaluation.programs import edits_of, program
from weightsteer_jax.evaluation.requests import ScoreRequest, Tokens

PyTree = Any
# Of each completion of a batch: the keys of the requests it serves, and its length in tokens.
Keys = list[tuple[tuple[Any, ...], int]]
# Indices of the deltas that a batch is computed with.
Active = tuple[int, ...]

PROMPT_MULTIPLE, COMPLETION_MULTIPLE = 16, 4
CHUNK = 32  # tokens of each prompt that are computed together, where a batch is computed no further than its longest prompt
MAX_SHAPES = 3
LOGITS_AT_ONCE = 1 << 26  # float32 values: 256 MiB


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScoreBatch:
  """Arrays of one batch, int32 unless said.

  Attributes:
    prompts_PT: prompt tokens without the last one, padded on the right.
    coefficients_PC: float32, one per edit.
    owners_R: index of each completion's prompt, among those of its group. A batch is cut into as many groups of prompts
      and completions as its rows have shards, so that a prompt and its completions meet on one device.
    starts_R: position of the prompt's last token, from which the completion's first token is predicted.
    inputs_RT: the prompt's last token and the completion without its last. targets_RT: the completion.
    lengths_R: tokens of the completion; 0 in rows that pad the batch.
  """
  prompts_PT: Any
  coefficients_PC: Any
  owners_R: Any
  starts_R: Any
  inputs_RT: Any
  targets_RT: Any
  lengths_R: Any


@dataclasses.dataclass(frozen=True)
class Question:
  """A prompt under given coefficients, with completions to score; each serves the requests with the given keys."""
  prompt: Tokens
  coefficients: tuple[float, ...]
  completions: tuple[Tokens, ...]
  keys: tuple[tuple[Any, ...], ...]

  @property
  def size(self) -> shapes.Shape:
    return len(self.prompt) - 1, max(map(len, self.completions))


@program(static_argnums=0)
def score_batch(config: models.ModelConfig, params: PyTree, deltas: Sequence[PyTree],
                batch: ScoreBatch) -> tuple[jax.Array, jax.Array]:
  """(log-likelihood in nats, float32 [R]; whether each token of the completion is the most likely, bool [R])."""
  prompts, prompt_length = batch.prompts_PT.shape
  completion_length = batch.inputs_RT.shape[1]
  dtype = params['embed']['embedding'].dtype
  # A shape may be longer than any of its rows; what padding writes beyond the model's positions is dropped.
  cache = models.init_cache(config, prompts, min(prompt_length + completion_length, config.max_positions), dtype)
  cache = prefill(config, params, edits_of(deltas, batch.coefficients_PC, prompt=True), batch, cache)
  shards = sharding.row_shards(math.gcd(prompts, batch.owners_R.shape[0]))
  # Each array by itself: the cache has its prompts along the second axis.
  take = lambda axis: sharding.by_shard(functools.partial(jnp.take, axis=axis), shards, (axis, 0), axis)
  cache = jax.tree.map(lambda x_LPKSH: sharding.constrain(take(1)(x_LPKSH, batch.owners_R), 'LBKSH'), cache)
  edits = edits_of(deltas, take(0)(batch.coefficients_PC, batch.owners_R))
  positions_RT = batch.starts_R[:, None] + jnp.arange(completion_length)
  x_RTD, _ = models.hidden(config, params, batch.inputs_RT, positions_BT=positions_RT, edits=edits, cache=cache)
  logprobs_RT, greedy_RT = target_logprobs(config, params, x_RTD, batch.targets_RT, edits)
  counts_RT = jnp.arange(completion_length) < batch.lengths_R[:, None]
  scores = jnp.sum(jnp.where(counts_RT, logprobs_RT, 0.0), axis=1), jnp.all(greedy_RT | ~counts_RT, axis=1)
  return sharding.replicate(scores)


def prefill(config: models.ModelConfig, params: PyTree, edits: Sequence[models.Edit], batch: ScoreBatch,
            cache: models.Cache) -> models.Cache:
  """The cache with the keys and values of the prompts.

  A shape is as long as the longest prompt of all its batches. Without an accelerator's kernel, on one device, a batch
  goes chunk by chunk and ends with its own longest one: the padding is not computed, and no further shape is compiled.
  Such a kernel is faster over whole prompts, and rows that are cut over devices would have to agree on an end.
  """
  length = batch.prompts_PT.shape[1]
  if config.attention not in ('reference', 'blocked') or sharding.is_cut() or length <= CHUNK:
    return models.hidden(config, params, batch.prompts_PT, cache=cache, edits=edits)[1]
  prompts_PT = jnp.pad(batch.prompts_PT, ((0, 0), (0, -length % CHUNK)))

  def chunk(number, cache):
    tokens_PT = jax.lax.dynamic_slice_in_dim(prompts_PT, number * CHUNK, CHUNK, axis=1)
    positions_PT = jnp.broadcast_to(number * CHUNK + jnp.arange(CHUNK), tokens_PT.shape)
    return models.hidden(config, params, tokens_PT, positions_BT=positions_PT, cache=cache, edits=edits)[1]

  return jax.lax.fori_loop(0, -(-jnp.max(batch.starts_R) // CHUNK), chunk, cache)


def target_logprobs(config: models.ModelConfig, params: PyTree, x_BTD: jax.Array, targets_BT: jax.Array,
                    edits: Sequence[models.Edit]) -> tuple[jax.Array, jax.Array]:
  """(log p(target) in nats, whether the target is the most likely token), [B, T] each; T is taken in chunks."""
  batch, length = targets_BT.shape
  chunk = max(1, min(length, LOGITS_AT_ONCE // (batch * config.vocab_size)))
  pieces = []
  for start in range(0, length, chunk):
    part = slice(start, start + chunk)
    logits_BtV = models.logits(config, params, x_BTD[:, part], edits=edits)
    picked_Bt = jnp.take_along_axis(logits_BtV, targets_BT[:, part, None], axis=-1)[..., 0]
    pieces.append((picked_Bt - jax.nn.logsumexp(logits_BtV, axis=-1), picked_Bt >= jnp.max(logits_BtV, axis=-1)))
  logprobs, greedy = zip(*pieces)
  return jnp.concatenate(logprobs, axis=1), jnp.concatenate(greedy, axis=1)


def questions(requests: Sequence[ScoreRequest], arms: Arms, max_positions: int) -> list[Question]:
  """The requests grouped by prompt and coefficients, each different completion once.

  Raises:
    InputError: an empty prompt or completion, or more tokens than the model has positions; names the request.
  """
  groups: dict[tuple, dict[Tokens, list]] = collections.defaultdict(lambda: collections.defaultdict(list))
  for request in requests:
    if not request.prompt or not request.completion:
      which = 'prompt' if not request.prompt else 'completion'
      raise InputError(f'{request.cited}: the {which} has no tokens; its log-likelihood is not defined')
    total = len(request.prompt) + len(request.completion) - 1
    if total > max_positions:
      raise InputError(f'{request.cited}: prompt and completion take {total} positions, the model has {max_positions}; '
                       'shorten them')
    groups[request.prompt, arms.coefficients(request.arm, request.alpha)][request.completion].append(request.key)
  return [
      Question(prompt, coefficients, tuple(members), tuple(map(tuple, members.values())))
      for (prompt, coefficients), members in groups.items()
  ]


def batches(asked: Sequence[Question], *, batch_size: int, max_positions: int, compile_tokens: int,
            groups: int = 1) -> Iterator[tuple[Active, ScoreBatch, Keys]]:
  """Batches of few shapes, the shortest first, each with the deltas it needs, whose coefficients it holds, and the keys
  of its completions [R]; those of padding are empty.

  Args:
    batch_size: completions to a batch, rounded up to a multiple of `groups`.
    groups: see ScoreBatch.owners_R.
  """
  limits = (max_positions, max_positions)
  planned = shapes.plan_shapes([question.size for question in asked], multiples=(PROMPT_MULTIPLE, COMPLETION_MULTIPLE),
                               most=limits, max_shapes=MAX_SHAPES, compile_tokens=compile_tokens)
  active = together(question.coefficients for question in asked)
  alike = collections.defaultdict(list)
  for question in asked:
    alike[shapes.fitting(question.size, planned), active[question.coefficients]].append(question)
  for (shape, deltas), members in alike.items():
    members = [dataclasses.replace(question, coefficients=tuple(question.coefficients[i] for i in deltas))
               for question in sorted(members, key=lambda question: len(question.prompt))]
    yield from ((deltas, *batch) for batch in _batches_of(shape, members, batch_size, groups))


def _batches_of(shape: shapes.Shape, asked: list[Question], batch_size: int,
                groups: int) -> Iterator[tuple[ScoreBatch, Keys]]:
  most = -(-batch_size // groups)  # completions of a group
  pieces = [piece for question in asked for piece in _split(question, most)]
  total = sum(len(piece.completions) for piece in pieces)
  rows = shapes.rows_for(-(-total // groups), most)
  prompts = min(rows, -(-len(pieces) * rows // total))
  held = [_group(members, shape, prompts, rows) for members in _filled(pieces, prompts, rows)]
  for start in range(0, len(held), groups):
    together = held[start:start + groups]
    together += [_group([], shape, prompts, rows, len(asked[0].coefficients))] * (groups - len(together))
    parts, keys = zip(*together)
    yield jax.tree.map(lambda *xs: np.concatenate(xs), *parts), [key for part in keys for key in part]


def _filled(pieces: list[Question], prompts: int, rows: int) -> Iterator[list[Question]]:
  """The pieces in order, in groups of at most that many prompts and completions."""
  held: list[Question] = []
  for piece in pieces:
    if len(held) == prompts or sum(len(q.completions) for q in held) + len(piece.completions) > rows:
      yield held
      held = []
    held.append(piece)
  yield held


def _split(question: Question, size: int) -> Iterator[Question]:
  for start in range(0, len(question.completions), size):
    part = slice(start, start + size)
    yield dataclasses.replace(question, completions=question.completions[part], keys=question.keys[part])


def _group(held: list[Question], shape: shapes.Shape, prompts: int, rows: int,
           edits: int | None = None) -> tuple[ScoreBatch, Keys]:
  edits = len(held[0].coefficients) if edits is None else edits
  batch = ScoreBatch(np.zeros((prompts, shape[0]), np.int32), np.zeros((prompts, edits), np.float32),
                     *np.zeros((2, rows), np.int32), *np.zeros((2, rows, shape[1]), np.int32), np.zeros(rows, np.int32))
  keys = []
  for owner, question in enumerate(held):
    batch.prompts_PT[owner, :len(question.prompt) - 1] = question.prompt[:-1]
    batch.coefficients_PC[owner] = question.coefficients
    for completion, served in zip(question.completions, question.keys):
      row, length = len(keys), len(completion)
      batch.owners_R[row], batch.starts_R[row], batch.lengths_R[row] = owner, len(question.prompt) - 1, length
      batch.inputs_RT[row, :length] = question.prompt[-1:] + completion[:-1]
      batch.targets_RT[row, :length] = completion
      keys.append((served, length))
  return batch, keys + [((), 0)] * (rows - len(keys))
