"""A model in memory with its tokenizer, asked under any strengths of any directions."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from weightsteer_jax import directions, inference, models
from weightsteer_jax.data import bindings
from weightsteer_jax.experiments import chat_date
from weightsteer_jax.inference import shapes
from weightsteer_jax.inference.rows import Row, unwatched
from weightsteer_jax.interfaces.python.boundary import integer, number
from weightsteer_jax.interfaces.python.texts import Text, text_of
from weightsteer_jax.runtime import progress, tree
from weightsteer_jax.runtime.progress import say

# The arm that a caller's rows are asked under.
ARM = 'steered'


@dataclasses.dataclass(frozen=True)
class Answering:
  """How texts are generated.

  Attributes:
    max_new_tokens: length limit of a text, tokens.
    sampling: how each token is chosen.
    seed: seed of the draws, which also go by a prompt's place in its list.
    add_bos: put the tokenizer's leading special token before raw prompts.
    progress: show a bar.
  """

  max_new_tokens: int
  sampling: inference.Sampling
  seed: int
  add_bos: bool = False
  progress: bool = False


def answering(
  max_new_tokens: Any,
  temperature: Any,
  top_k: Any,
  top_p: Any,
  seed: Any,
  *,
  add_bos: bool = False,
  progress: bool = False,
) -> Answering:
  """The checked arguments of a call that generates.

  Raises:
    InputError: if a value is of another type or out of range.
  """
  sampling = inference.Sampling(
    number(temperature, 'temperature'), integer(top_k, 'top_k'), number(top_p, 'top_p')
  )
  limit = integer(max_new_tokens, 'max_new_tokens')
  return Answering(limit, sampling, integer(seed, 'seed'), add_bos, progress)


class HeldModel:
  """A model and its tokenizer, shared by all steered views of the model.

  Attributes:
    model: config, parameters and source.
    tokenizer: with its chat template bound.
    batch_size: rows computed together, at most.
  """

  def __init__(self, model: models.Model, tokenizer: Any, batch_size: int) -> None:
    self.model = model
    self.tokenizer = tokenizer
    self.batch_size = batch_size
    # A session asks one text, and then another of another length.
    self._kept_shapes = shapes.KeptShapes()

  @functools.cached_property
  def num_parameters(self) -> int:
    """Number of parameters."""
    return tree.count(self.model.params)

  @property
  def dtype(self) -> str:
    """The dtype of parameters and activations."""
    return str(jax.tree.leaves(self.model.params)[0].dtype)

  @functools.cached_property
  def _base(self) -> directions.Base:
    # The digest goes through all weights, and views are made by the dozen.
    return directions.base_of(self.model)

  @functools.cached_property
  def _stop_ids(self) -> list[int]:
    return inference.stop_ids(self.tokenizer, self.model.folder)

  def check(self, direction: directions.Direction, *, allow_other_base: bool) -> None:
    """Raises InputError if the direction is not of this model; tells of another day's chats.

    Raises:
      InputError: see `directions.check_base`.
    """
    # A direction without a digest is told by its architecture alone.
    known = self._base if direction.base.digest and not allow_other_base else None
    directions.check_base(direction, self.model, allow_other_base=allow_other_base, known=known)
    told = bindings.bound(self.tokenizer).date
    made = chat_date.of_direction(direction)
    if told and made and told != made:
      progress.say_once(
        f"the chat template is told {told}, and the direction's data were made under {made}: load "
        f"the model with chat_date='{made}' to ask as the direction was made"
      )

  def generate(
    self,
    rows: Sequence[Row],
    parts: Sequence[inference.arms.Part],
    alphas: Sequence[float],
    options: Answering,
  ) -> list[list[Text]]:
    """The text of each row at each alpha, [alpha][row].

    Args:
      parts: deltas and their coefficients (see `inference.Arm`).
    """
    with self._watch('answers', options.progress) as watch:
      columns = inference.generate_rows(
        self._engine(parts, self._stop_ids),
        rows,
        ARM,
        alphas,
        max_new_tokens=options.max_new_tokens,
        sampling=options.sampling,
        seed=options.seed,
        add_bos=options.add_bos,
        watch=watch,
      )
    texts = [[text_of(row[i]) for row in columns] for i in range(len(alphas))]
    broken = sum(text.finish == 'not_finite' for at_alpha in texts for text in at_alpha)
    if broken:
      say(
        f'{broken} of {len(rows) * len(alphas)} texts broke off, because the model gave NaN or '
        "infinity (finish 'not_finite'): steer less"
      )
    return texts

  def logprob(
    self,
    rows: Sequence[Row],
    parts: Sequence[inference.arms.Part],
    alphas: Sequence[float],
    *,
    add_bos: bool,
    apart: bool,
    progress: bool,
  ) -> list[list[float]]:
    """The log-likelihood in nats of each row's completion at each alpha, [alpha][row]."""
    with self._watch('scores', progress) as watch:
      columns = inference.score_rows(
        self._engine(parts, ()), rows, ARM, alphas, add_bos=add_bos, apart=apart, watch=watch
      )
    return [[row[i]['logprob'] for row in columns] for i in range(len(alphas))]

  def _engine(
    self, parts: Sequence[inference.arms.Part], stop_ids: Sequence[int]
  ) -> inference.Engine:
    # An engine is only a plan: programs are kept by the process, and deltas lie on the device.
    return inference.Engine(
      self.model,
      self.tokenizer,
      {ARM: parts},
      batch_size=self.batch_size,
      stop_ids=stop_ids,
      kept_shapes=self._kept_shapes,
    )

  @contextlib.contextmanager
  def _watch(self, title: str, shown: bool):
    """What sees the results of an engine: a bar, if one is asked for."""
    if not shown:
      yield unwatched
      return
    bars = []

    def watch(results: Iterable[Any], total: int) -> Iterable[Any]:
      bars.append(progress.bar(title, unit=title.removesuffix('s'), total=total))
      for result in results:
        bars[0].update()
        yield result

    try:
      yield watch
    finally:
      for bar in bars:
        bar.close()
