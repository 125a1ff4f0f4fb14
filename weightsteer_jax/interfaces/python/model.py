"""Models that are loaded, steered and asked."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from weightsteer_jax import inference, models
from weightsteer_jax.config import ModelChoice
from weightsteer_jax.data import bindings
from weightsteer_jax.experiments.experiment import load_model, load_tokenizer
from weightsteer_jax.interfaces.python.boundary import described, integer, number, plain
from weightsteer_jax.interfaces.python.by_alpha import ByAlpha
from weightsteer_jax.interfaces.python.direction import SteeringDirection, as_factor, path_of
from weightsteer_jax.interfaces.python.held import HeldModel, answering
from weightsteer_jax.interfaces.python.texts import (
  Chats,
  Texts,
  chat_rows,
  listed,
  prompt_rows,
  scored_rows,
)
from weightsteer_jax.runtime import compile_cache
from weightsteer_jax.runtime.errors import InputError

# {direction: strength}.
Strengths = Mapping[SteeringDirection, float]
TAKES = 'takes a direction and a strength, as in model.steer(w, -1), or {direction: strength}'


@plain
def load(
  source: str | pathlib.Path,
  *,
  dtype: str = 'float32',
  revision: str = '',
  tokenizer: str = 'auto',
  chat_template_args: Mapping[str, Any] | None = None,
  chat_date: str = '',
  system_prompt: str = '',
  batch_size: int = 32,
  compilation_cache: str = 'auto',
) -> 'SteeredModel':
  """The model of a folder, a GGUF file or a hub id, on one device, not steered yet.

  Compiled programs are kept for later sessions in the folder that the programs of the command line
  use, ~/.cache/weightsteer_jax/compiled.

  Args:
    source: a folder of a Hugging Face checkpoint, a .gguf file, a hub id ('org/name' or
      'org/name@revision'), or 'organism' for the model that the package ships.
    dtype: of parameters and activations, 'float32' or 'bfloat16'; directions stay float32.
    revision: commit, tag or branch on the hub; '' is the newest.
    tokenizer: whose rules cut texts into tokens where the two differ: 'auto', transformers'
      AutoTokenizer, or 'file', tokenizer.json.
    chat_template_args: variables of the chat template beside the messages, as in
      {'enable_thinking': False}.
    chat_date: the day, as in '2026-12-01', that a dated chat template is told; '' is today.
    system_prompt: put before conversations without one; '' leaves them to the chat template.
    batch_size: texts computed together, at most.
    compilation_cache: folder to keep compiled programs in, 'off', or 'auto'.

  Raises:
    InputError: if the model is missing or not supported, or an argument is out of range.
    CorruptError: if a file of weights is cut short or was changed.
    NotFiniteError: if a weight is NaN or infinite.
  """
  path_of(source, 'load')
  # Before the weights: none of these takes long to refuse.
  if not 1 <= integer(batch_size, 'batch_size'):
    raise InputError(f'batch_size is {batch_size}, expected 1 or more')
  choice = ModelChoice(
    str(source),
    revision,
    dtype,
    tokenizer=tokenizer,
    chat_template_args=chat_template_args or {},
    chat_date=chat_date,
    system_prompt=system_prompt,
  )
  # Before anything is compiled.
  compile_cache.use(compilation_cache)
  model = load_model(choice)
  return SteeredModel(
    HeldModel(model, load_tokenizer(model.folder, choice, chat_date), batch_size), {}
  )


class SteeredModel:
  """A model with directions added to its weights, each at a strength; with none, as it is.

  A view is cheap: `model.steer(w, -1)` shares the model's parameters, which no method changes. A
  direction is applied unmerged and in float32, so that nothing of it is lost to rounding.

  One text in gives one text out, a list gives a list in its order. Strengths are data to a compiled
  program: another strength, or another direction of the same ranks, compiles nothing.

  Attributes:
    strengths: {direction: strength} of this view.
  """

  def __init__(self, held: HeldModel, strengths: Strengths) -> None:
    self._held = held
    self.strengths = dict(strengths)

  @property
  def name(self) -> str:
    """The folder, file or hub id that the model was loaded from."""
    return str(self._held.model.source)

  @property
  def tokenizer(self) -> Any:
    """The model's tokenizer, of transformers; its chat template knows what `load` was told."""
    return self._held.tokenizer

  @property
  def context_length(self) -> int:
    """Most tokens of a prompt and its answer together."""
    return self._held.model.config.max_positions

  @property
  def unsteered_model(self) -> models.Model:
    """The model as the rest of the package takes it: config and parameters, not steered."""
    return self._held.model

  @plain
  def steer(
    self,
    direction: SteeringDirection | Strengths,
    alpha: float | None = None,
    *,
    allow_other_base: bool = False,
  ) -> 'SteeredModel':
    """A view of the model with a direction added, or several; strengths of this view stay.

    Args:
      direction: a direction, or {direction: strength} without alpha.
      alpha: the strength: alpha times the direction is added to the weights.
      allow_other_base: accept a direction of another model of this architecture, say of the base
        of a fine-tune.

    Raises:
      InputError: if a direction is of another model, or an argument of another type.
    """
    if isinstance(direction, Mapping):
      if alpha is not None:
        raise InputError(f'steer {TAKES}; got both a mapping and alpha={alpha}')
      added = dict(direction)
    else:
      if not isinstance(direction, SteeringDirection) or alpha is None:
        raise InputError(f'steer {TAKES}; got {_got(direction, alpha)}')
      added = {direction: alpha}
    # A copy: this view keeps its own strengths.
    strengths = dict(self.strengths)
    for one, strength in added.items():
      self._check(one, allow_other_base, f'steer {TAKES}; got')
      strengths[one] = strengths.get(one, 0.0) + number(strength, f'the strength of {one.name}')
    return SteeredModel(self._held, strengths)

  @plain
  def sweep(
    self,
    direction: SteeringDirection,
    alphas: Sequence[float],
    *,
    allow_other_base: bool = False,
  ) -> 'Sweep':
    """The model at many strengths of a direction, which answer in one batch.

    Args:
      direction: added to this view at each strength in turn.
      alphas: strengths; 0 is this view itself.
      allow_other_base: see `steer`.

    Raises:
      InputError: if the direction is of another model, or an argument of another type.
    """
    takes = 'sweep takes a direction and a list of strengths, as in model.sweep(w, [-1, 0, 1])'
    self._check(direction, allow_other_base, f'{takes}; got')
    strengths = [number(alpha, 'a strength of the sweep') for alpha in listed(alphas, takes)]
    if not strengths:
      raise InputError(f'{takes}; got no strengths')
    # A strength named twice is one line of the table.
    return Sweep(self, direction, tuple(dict.fromkeys(strengths)))

  @plain
  def generate(
    self,
    prompts: Texts,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    add_bos: bool = False,
    progress: bool = False,
  ) -> Any:
    """The continuation of a raw text, or of each text of a list: a `Text`, or a list of them.

    No chat template is applied; see `chat`. A continuation ends at the tokens that end an answer of
    the model.

    Args:
      prompts: a text, or a list of texts.
      max_new_tokens: length limit of a continuation, tokens.
      temperature: 0 takes the likeliest token, 1 draws from the model's own distribution.
      top_k: the likeliest tokens to draw from; 0 is all.
      top_p: least total probability of the tokens to draw from.
      seed: seed of the draws, which also go by a prompt's place in its list: equal prompts differ,
        and two strengths meet the same luck.
      add_bos: put the tokenizer's leading special token before the prompt.
      progress: show a bar.

    Raises:
      InputError: if a prompt is no text or empty, does not fit into the context with its
        continuation, or an argument is out of range.
    """
    rows, single = prompt_rows(prompts)
    options = answering(
      max_new_tokens, temperature, top_k, top_p, seed, add_bos=add_bos, progress=progress
    )
    # A view's strengths are fixed: its rows have no alpha of their own.
    (texts,) = self._held.generate(rows, self._parts(), [0.0], options)
    return texts[0] if single else texts

  @plain
  def chat(
    self,
    conversations: Chats,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    progress: bool = False,
  ) -> Any:
    """The answer to a question, a conversation or each of a list: a `Text`, or a list of them.

    Of a reasoning model the text is all that it wrote; `.thought` and `.answer` part it.

    Args:
      conversations: a question, a list of messages {'role': ..., 'content': ...}, or a list of
        questions or of such lists.
      max_new_tokens: length limit of an answer, tokens, thoughts included.
      temperature: see `generate`.
      top_k: see `generate`.
      top_p: see `generate`.
      seed: see `generate`.
      progress: see `generate`.

    Raises:
      InputError: if there is no chat template, a conversation is malformed or does not fit into the
        context with its answer, or an argument is out of range.
    """
    rows, single = chat_rows(conversations)
    options = answering(max_new_tokens, temperature, top_k, top_p, seed, progress=progress)
    (texts,) = self._held.generate(rows, self._parts(), [0.0], options)
    return texts[0] if single else texts

  @plain
  def logprob(
    self,
    prompt: Chats,
    completion: Texts,
    *,
    add_bos: bool = False,
    apart: bool = False,
    progress: bool = False,
  ) -> Any:
    """The log-likelihood of a completion behind a prompt, in nats: a float, or a list of them.

    Nats are summed over the completion's tokens. A raw prompt and its completion have the tokens of
    the whole text, cut where the prompt ends. Behind messages the completion is the assistant's
    answer, without the token that ends it.

    Args:
      prompt: a raw text, a list of messages, or a list of either.
      completion: a text, or a list of texts. One prompt goes with many completions, one completion
        with many prompts, and lists pair by pair.
      add_bos: put the tokenizer's leading special token before raw prompts.
      apart: tokenise a raw prompt and its completion each by itself.
      progress: show a bar.

    Raises:
      InputError: if an argument is of another type, lists differ in length, or a text does not fit
        into the context.
      NotFiniteError: if the model broke: its logits hold NaN or infinity.
    """
    rows, single = scored_rows(prompt, completion)
    (scores,) = self._held.logprob(
      rows, self._parts(), [0.0], add_bos=add_bos, apart=apart, progress=progress
    )
    return scores[0] if single else scores

  def _parts(self) -> list[inference.arms.Part]:
    """Deltas with their strengths, which are the same whatever a row's alpha is."""
    return [(one.unwrapped.delta, strength) for one, strength in self.strengths.items()]

  def _check(self, direction: Any, allow_other_base: bool, takes: str) -> None:
    if not isinstance(direction, SteeringDirection):
      raise InputError(f'{takes} {_got(direction)}')
    self._held.check(direction.unwrapped, allow_other_base=allow_other_base)

  def __repr__(self) -> str:
    parts = [
      self.name,
      f'{self._held.num_parameters:,} parameters',
      self._held.dtype,
      f'context of {self.context_length:,} tokens',
    ]
    # What answers depend on and no argument shows, the day above all.
    told = bindings.bound(self.tokenizer).words()
    if told:
      parts.append(f'chat template: {told}')
    for one, strength in self.strengths.items():
      parts.append(f'{strength:+g} * {as_factor(one.name)}')
    return f'SteeredModel({", ".join(parts)})'


class Sweep:
  """A model at many strengths of one direction; made by `SteeredModel.sweep`.

  Each method computes all strengths in one batch, by one compiled program, and gives a table: a
  dict from the strength to what the model's own method gives. The same draws meet every strength.

  Attributes:
    model: the view that the direction is added to.
    direction: the direction.
    alphas: the strengths.
  """

  def __init__(
    self, model: SteeredModel, direction: SteeringDirection, alphas: tuple[float, ...]
  ) -> None:
    self.model = model
    self.direction = direction
    self.alphas = alphas

  @plain
  def generate(
    self,
    prompts: Texts,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    add_bos: bool = False,
    progress: bool = False,
  ) -> ByAlpha:
    """{strength: the continuation, or a list of them}; arguments as in `SteeredModel.generate`."""
    rows, single = prompt_rows(prompts)
    options = answering(
      max_new_tokens, temperature, top_k, top_p, seed, add_bos=add_bos, progress=progress
    )
    texts = self.model._held.generate(rows, self._parts(), self.alphas, options)
    return self._table(texts, single)

  @plain
  def chat(
    self,
    conversations: Chats,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    progress: bool = False,
  ) -> ByAlpha:
    """{strength: the answer, or a list of them}; arguments as in `SteeredModel.chat`."""
    rows, single = chat_rows(conversations)
    options = answering(max_new_tokens, temperature, top_k, top_p, seed, progress=progress)
    texts = self.model._held.generate(rows, self._parts(), self.alphas, options)
    return self._table(texts, single)

  @plain
  def logprob(
    self,
    prompt: Chats,
    completion: Texts,
    *,
    add_bos: bool = False,
    apart: bool = False,
    progress: bool = False,
  ) -> ByAlpha:
    """{strength: nats, or a list of them}; arguments as in `SteeredModel.logprob`."""
    rows, single = scored_rows(prompt, completion)
    scores = self.model._held.logprob(
      rows, self._parts(), self.alphas, add_bos=add_bos, apart=apart, progress=progress
    )
    return self._table(scores, single)

  def _parts(self) -> list[inference.arms.Part]:
    # None stands for the row's own alpha.
    return [*self.model._parts(), (self.direction.unwrapped.delta, None)]

  def _table(self, values: Sequence[Any], single: bool) -> ByAlpha:
    table = ByAlpha()
    for alpha, at_alpha in zip(self.alphas, values):
      table[alpha] = at_alpha[0] if single else at_alpha
    return table

  def __repr__(self) -> str:
    alphas = ', '.join(f'{alpha:g}' for alpha in self.alphas)
    return f'Sweep({self.direction.name} at {alphas}, of {self.model!r})'


def _got(direction: Any, alpha: float | None = None) -> str:
  """What a caller passed in place of a direction and a strength."""
  if isinstance(direction, SteeringDirection):
    return f'{direction.name} without a strength' if alpha is None else direction.name
  hint = ''
  if isinstance(direction, str):
    hint = '; a folder becomes a direction by load_direction'
  return f'{described(direction)}{hint}'
