"""A model for lm-evaluation-harness: any task on our engine, at every strength of a grid.

lm-eval asks one model at one strength at a time. Here the first model that is asked answers for all
strengths of the grid, in batches that mix the strengths, and the others answer from memory. Texts
are turned into tokens as by lm-eval's own Hugging Face backend at batch size 1. Needs the extra
`lm-eval`.

Source: EleutherAI/lm-evaluation-harness 0.4.13, lm_eval/models/huggingface.py (HFLM).
"""

import collections
import copy
import dataclasses
import functools
import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix

from weightsteer_jax.evaluation.harness.stops import check_generation, has_ended, text_until
from weightsteer_jax.inference.arms import BASE
from weightsteer_jax.inference.engine import Engine
from weightsteer_jax.inference.requests import GenerateRequest, Sampling, ScoreRequest, Tokens
from weightsteer_jax.runtime import ending
from weightsteer_jax.runtime.errors import InputError, NotFiniteError

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Continuation:
  """What to generate once, at every strength.

  Attributes:
    until: stop texts; the first to appear ends the answer.
  """

  context: str
  prompt: Tokens
  max_new_tokens: int
  sampling: Sampling
  until: tuple[str, ...]
  sample: int


class SteeredLM(TemplateLM):
  """The engine's model under one arm at one strength of a grid, for lm-eval.

  lm-eval calls it by `simple_evaluate(model=lm)`.

  Attributes:
    alpha: the strength of the answers; `at` gives the same grid at another one.
    alphas: the strengths that are computed.
    computed: number of answers computed so far, over all strengths of the grid.

  Args:
    engine: the engine, whose stop_ids end a generation (see `end_ids`).
    alphas: the grid; answers are given at the first strength.
    arm: an arm of the engine.
    max_length: most tokens that the model sees; by default the model's positions.
    add_bos_token: whether the tokenizer adds special tokens; None leaves this to the tokenizer.
    chat_template_args: further arguments of the chat template, {'enable_thinking': False} say.
    seed: seed of sampled answers.

  Raises:
    InputError: if there are no alphas, the model has fewer positions than max_length, or the
      tokenizer has no end-of-text token.
  """

  def __init__(
    self,
    engine: Engine,
    alphas: Sequence[float],
    *,
    arm: str = BASE,
    max_length: int | None = None,
    add_bos_token: bool | None = None,
    chat_template_args: Mapping[str, Any] | None = None,
    seed: int = 0,
  ):
    super().__init__()
    if not alphas:
      raise InputError('no alphas were given: expected at least one; 0 is the model as it is')
    positions = engine.config.max_positions
    if max_length is not None and not 1 < max_length <= positions:
      raise InputError(
        f'max_length is {max_length}, expected 2 to {positions}, the positions of the model'
      )
    if engine.tokenizer.eos_token_id is None:
      raise InputError(
        f"the tokenizer '{engine.tokenizer.name_or_path}' has no end-of-text token, which "
        "lm-eval needs"
      )
    # Raises if the arm does not have a strength, before anything is computed.
    for alpha in alphas:
      engine.arms.coefficients(arm, alpha)
    self.engine = engine
    self.tokenizer = engine.tokenizer
    self.arm = arm
    # Adding zero turns -0.0 into 0.0.
    self.alphas = tuple(float(alpha) + 0.0 for alpha in alphas)
    self.alpha = self.alphas[0]
    self.max_length = max_length or positions
    self.add_bos_token = add_bos_token
    self.chat_template_args = dict(chat_template_args or {})
    self.seed = seed
    # Digest of a request -> the answers at each alpha, None where the model broke.
    self._memory: dict[bytes, list[Any]] = {}

  def at(self, alpha: float) -> 'SteeredLM':
    """The same grid, answering at this strength.

    Raises:
      InputError: if the grid does not have the strength.
    """
    if alpha not in self.alphas:
      grid = ', '.join(f'{known:g}' for known in self.alphas)
      raise InputError(f'alpha {alpha:g} is none of the grid: {grid}')
    # A shallow copy: the memory of answers is shared.
    other = copy.copy(self)
    other.alpha = float(alpha) + 0.0
    return other

  @property
  def computed(self) -> int:
    """Number of answers computed so far, over all strengths of the grid."""
    return sum(map(len, self._memory.values()))

  @property
  def eot_token_id(self) -> int:
    """The tokenizer's end-of-text token."""
    return self.tokenizer.eos_token_id

  @property
  def prefix_token_id(self) -> int:
    """The token that a text without context is scored after."""
    bos = self.tokenizer.bos_token_id
    return self.tokenizer.eos_token_id if bos is None else bos

  @property
  def tokenizer_name(self) -> str:
    """The tokenizer's name, without the slashes of paths."""
    return self.tokenizer.name_or_path.replace('/', '__')

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
  ) -> list[int]:
    """Ids of a text; no leading special token is added to a text that begins with one."""
    if add_special_tokens is None:
      add_special_tokens = self.add_bos_token
      if has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
        add_special_tokens = False
    return self._encode(string, add_special_tokens)

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """The conversation as text, without system messages if the template refuses them."""

    def render(messages: list[dict[str, str]]) -> str:
      return self.tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt,
        **self.chat_template_args,
      )

    try:
      return render(chat_history)
    except jinja2.exceptions.TemplateError:
      _LOG.warning('the chat template refuses a conversation; trying it without system messages')
      return render([message for message in chat_history if message['role'] != 'system'])

  def get_model_info(self) -> dict[str, Any]:
    """What lm-eval adds to the config in its results."""
    return {'arm': self.arm, 'alpha': self.alpha}

  def loglikelihood_rolling(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[float]:
    """Log-likelihoods of whole texts, nats.

    A text longer than the model's positions is cut into windows, so that each token is predicted
    once.
    """
    windows = []
    for (text,) in (request.args for request in requests):
      pairs = utils.get_rolling_token_windows(
        self.tok_encode(text),
        prefix_token=self.prefix_token_id,
        max_seq_len=self.max_length,
        context_len=1,
      )
      windows.append([(None, *utils.make_disjoint_window(pair)) for pair in pairs])
    scores = iter(self._loglikelihood_tokens([window for text in windows for window in text]))
    totals = [sum(next(scores)[0] for _ in text) for text in windows]
    for request, total in zip(requests, totals):
      self.cache_hook.add_partial('loglikelihood_rolling', request.args, total)
    return totals

  def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
    """Answers up to their first stop text; repeats of one request are further samples."""
    seen: collections.Counter = collections.Counter()
    asked = {}
    names = []
    for context, options in (request.args for request in requests):
      same = context, json.dumps(options, sort_keys=True)
      continuation = self._continuation(context, options, seen[same])
      seen[same] += continuation.sampling.temperature > 0
      names.append(_name('generate', *same, continuation.sample))
      asked[names[-1]] = continuation
    self._generate({name: one for name, one in asked.items() if name not in self._memory})
    answers = [self._recall(name, asked[name].context) for name in names]
    for request, answer in zip(requests, answers):
      self.cache_hook.add_partial('generate_until', request.args, answer)
    return answers

  def _loglikelihood_tokens(
    self, requests: list[tuple[tuple[str, str] | None, list[int], list[int]]], **kwargs: Any
  ) -> list[tuple[float, bool]]:
    """(log-likelihood in nats, whether it is the greedy one) of each continuation.

    Contexts are cut on the left to what the model sees.
    """
    asked = {}
    names = []
    # The choices of a question have one prompt, which is kept once.
    shared: dict[Tokens, Tokens] = {}
    for texts, context, continuation in requests:
      if not continuation or len(continuation) > self.max_length:
        raise InputError(
          f'{_cite(texts)}: the continuation has {len(continuation)} tokens, expected 1 to '
          f'{self.max_length}'
        )
      kept = (context + continuation)[-(self.max_length + 1) :]
      prompt = tuple(kept[: -len(continuation)])
      prompt = shared.setdefault(prompt, prompt)
      completion = tuple(continuation)
      names.append(_name('score', prompt, completion))
      asked[names[-1]] = prompt, completion, _cite(texts)
    self._score({name: one for name, one in asked.items() if name not in self._memory})
    answers = [self._recall(name, asked[name][2]) for name in names]
    for (texts, *_), answer in zip(requests, answers):
      if texts is not None:
        self.cache_hook.add_partial('loglikelihood', texts, answer)
    return answers

  def _continuation(self, context: str, options: Mapping[str, Any], sample: int) -> Continuation:
    """What a request of lm-eval asks to generate.

    Raises:
      InputError: if an option is not honoured, or there is no room for a prompt.
    """
    kwargs = check_generation(options, where=_cite((context,)))
    until = handle_stop_sequences(kwargs['until'], eos=self.tokenizer.decode(self.eot_token_id))
    max_new_tokens = kwargs['max_gen_toks']
    sampling = Sampling(
      temperature=float(kwargs.get('temperature', 0.0)) if kwargs['do_sample'] else 0.0,
      top_k=int(kwargs.get('top_k') or 0),
      top_p=float(kwargs.get('top_p') or 1.0),
    )
    if max_new_tokens >= self.max_length:
      raise InputError(
        f'the task asks for {max_new_tokens} new tokens (max_gen_toks) of a model that sees '
        f'{self.max_length}: nothing is left for the prompt'
      )
    special = False if has_bos_prefix(context, self.tokenizer.bos_token) else self.add_bos_token
    # An empty context is the prefix token, as in scoring.
    tokens = self._encode(context, special) or [self.prefix_token_id]
    room = self.max_length - max_new_tokens
    return Continuation(
      context=context,
      prompt=tuple(tokens[-room:]),
      max_new_tokens=max_new_tokens,
      sampling=sampling,
      until=tuple(stop for stop in until if stop),
      sample=sample,
    )

  def _encode(self, text: str, add_special_tokens: bool | None) -> list[int]:
    special = {} if add_special_tokens is None else {'add_special_tokens': add_special_tokens}
    return self.tokenizer.encode(text, **special)

  def _score(self, missing: Mapping[bytes, tuple[Tokens, Tokens, str]]) -> None:
    requests = [
      ScoreRequest((name, i), prompt, completion, self.arm, alpha, cited)
      for name, (prompt, completion, cited) in missing.items()
      for i, alpha in enumerate(self.alphas)
    ]
    answers: dict[Any, tuple[float, bool] | None] = {}
    for result in self.engine.score(requests) if requests else ():
      ending.progress()
      is_finite = math.isfinite(result.logprob)
      answers[result.key] = (result.logprob, result.is_greedy) if is_finite else None
    self._keep(missing, answers)

  def _generate(self, missing: Mapping[bytes, Continuation]) -> None:
    requests = []
    for name, continuation in missing.items():
      until = functools.partial(has_ended, self.tokenizer, continuation.until)
      requests += [
        GenerateRequest(
          key=(name, i),
          prompt=continuation.prompt,
          max_new_tokens=continuation.max_new_tokens,
          arm=self.arm,
          alpha=alpha,
          sampling=continuation.sampling,
          seed=self.seed,
          example=continuation.context,
          sample=continuation.sample,
          name=_cite((continuation.context,)),
          until=until,
        )
        for i, alpha in enumerate(self.alphas)
      ]
    answers: dict[Any, str | None] = {}
    for result in self.engine.generate(requests) if requests else ():
      ending.progress()
      text = text_until(self.tokenizer, missing[result.key[0]].until, result.tokens)
      answers[result.key] = None if result.finish == 'not_finite' else text
    self._keep(missing, answers)

  def _keep(self, names: Mapping[bytes, Any], answers: Mapping[tuple[bytes, int], Any]) -> None:
    for name in names:
      self._memory[name] = [answers[name, i] for i in range(len(self.alphas))]

  def _recall(self, name: bytes, cited: str) -> Any:
    answer = self._memory[name][self.alphas.index(self.alpha)]
    if answer is None:
      raise NotFiniteError(
        f'{cited}: not a finite number at alpha {self.alpha:g}: the model is broken there'
      )
    return answer


def _cite(texts: tuple[str, ...] | None) -> str:
  return repr(texts[0][-40:]) if texts else 'a window of a text'


def _name(kind: str, *parts: Any) -> bytes:
  """A digest of a request: 16 bytes, where keys of whole prompts would fill the memory."""
  digest = hashlib.blake2b(kind.encode(), digest_size=16)
  for part in parts:
    if isinstance(part, (tuple, int)):
      data = np.asarray(part, np.int64).tobytes()
    else:
      data = part.encode('utf-8', 'replace')
    # With its length, so that no two lists of parts give the same bytes.
    digest.update(len(data).to_bytes(8, 'little') + data)
  return digest.digest()
