"""A model for lm-evaluation-harness: any task on our engine, at every strength of a grid.

lm-eval asks one model at one strength at a time. Here the first model asked computes the answers
for all strengths of the grid, in batches that mix the strengths, and the other models answer from
memory. Texts are turned into tokens as by lm-eval's own Hugging Face backend at batch size 1. Needs
the extra `lm-eval`.

Source: EleutherAI/lm-evaluation-harness 0.4.13, lm_eval/models/huggingface.py (HFLM).
"""

import collections
import copy
import dataclasses
import functools
import hashlib
import itertools
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
  """A generation to be computed at every strength.

  Attributes:
    context: text of the prompt.
    until: stop texts; the first stop text to appear ends the answer.
    sample: number of the draw, among repeats of one request.
  """

  context: str
  prompt: Tokens
  max_new_tokens: int
  sampling: Sampling
  until: tuple[str, ...]
  sample: int


class SteeredLM(TemplateLM):
  """The engine's model under one arm at one strength of a grid, for lm-eval.

  The model is passed to lm-eval as `simple_evaluate(model=lm)`.

  Attributes:
    alpha: the strength of the answers; `at` gives the same grid at another strength.
    alphas: the strengths to compute.
    computed: number of answers computed so far, over all strengths of the grid.

  Args:
    engine: the engine, whose stop_ids end a generation (see inference/stops.py).
    alphas: the grid; answers are given at the first strength.
    arm: an arm of the engine.
    max_length: most tokens seen by the model; by default the model's positions.
    add_bos_token: whether the tokenizer adds special tokens; None leaves this to the tokenizer.
    seed: seed of sampled answers.

  Raises:
    InputError: if no alphas are given, the model has fewer positions than max_length, or the
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
    seed: int = 0,
  ):
    super().__init__()
    if not alphas:
      raise InputError('no alphas were given: expected at least one; 0 is the model as it is')
    positions = engine.config.max_positions
    # The least is a token of the prompt and a new token.
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
    self.seed = seed
    # Digest of a request -> the answers at each alpha, None where the model broke.
    self._memory: dict[bytes, list[Any]] = {}

  def at(self, alpha: float) -> 'SteeredLM':
    """The same grid, answering at this strength.

    Raises:
      InputError: if the grid does not have the strength.
    """
    if alpha not in self.alphas:
      grid = [f'{known:g}' for known in self.alphas]
      raise InputError(f'alpha {alpha:g} is none of the grid: {", ".join(grid)}')
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
    """The token before a text that is scored without a context."""
    bos = self.tokenizer.bos_token_id
    # As HFLM: some tokenizers (Qwen's) have no beginning of text.
    if bos is None:
      return self.tokenizer.eos_token_id
    return bos

  @property
  def tokenizer_name(self) -> str:
    """The tokenizer's name, without the slashes of paths."""
    # lm-eval makes the name part of a file's name.
    return self.tokenizer.name_or_path.replace('/', '__')

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
  ) -> list[int]:
    """Ids of a text; no leading special token is added to a text that begins with the token."""
    if add_special_tokens is None:
      add_special_tokens = self.add_bos_token
      # Chat templates write the token into the text.
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
      )

    try:
      return render(chat_history)
    except jinja2.exceptions.TemplateError:
      # As HFLM: templates without a system turn (Gemma's) raise for a system message.
      _LOG.warning('the chat template refuses a conversation; trying it without system messages')
      others = [message for message in chat_history if message['role'] != 'system']
      return render(others)

  def get_model_info(self) -> dict[str, Any]:
    """Entries added by lm-eval to the config in lm-eval's results."""
    return {'arm': self.arm, 'alpha': self.alpha}

  def loglikelihood_rolling(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[float]:
    """Log-likelihoods of whole texts, nats.

    A text longer than the model's positions is cut into windows, so that each token is predicted
    once.
    """
    windows_of_texts = []
    for request in requests:
      (text,) = request.args
      pairs = utils.get_rolling_token_windows(
        self.tok_encode(text),
        prefix_token=self.prefix_token_id,
        max_seq_len=self.max_length,
        context_len=1,
      )
      # No texts (None) for a window: a window is not a request of lm-eval's cache.
      windows = [(None, *utils.make_disjoint_window(pair)) for pair in pairs]
      windows_of_texts.append(windows)
    # The windows of all texts in one call, to fill the batches.
    every_window = list(itertools.chain(*windows_of_texts))
    scores = iter(self._loglikelihood_tokens(every_window))
    totals = []
    for request, windows in zip(requests, windows_of_texts):
      logprobs = [logprob for logprob, _ in itertools.islice(scores, len(windows))]
      total = sum(logprobs)
      totals.append(total)
      self.cache_hook.add_partial('loglikelihood_rolling', request.args, total)
    return totals

  def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
    """Answers up to their first stop text; repeats of one request are further samples."""
    num_samples: collections.Counter[tuple[str, str]] = collections.Counter()
    continuations = {}
    names = []
    for request in requests:
      context, options = request.args
      same = (context, json.dumps(options, sort_keys=True))
      continuation = self._continuation(context, options, num_samples[same])
      # Greedy answers are the same every time: repeats of the request share one answer.
      if continuation.sampling.temperature > 0:
        num_samples[same] += 1
      name = _name('generate', *same, continuation.sample)
      names.append(name)
      continuations[name] = continuation
    missing = {name: continuations[name] for name in continuations if name not in self._memory}
    self._generate(missing)
    answers = []
    for request, name in zip(requests, names):
      answer = self._recall(name, continuations[name].context)
      answers.append(answer)
      self.cache_hook.add_partial('generate_until', request.args, answer)
    return answers

  def _loglikelihood_tokens(
    self, requests: list[tuple[tuple[str, str] | None, list[int], list[int]]], **kwargs: Any
  ) -> list[tuple[float, bool]]:
    """(log-likelihood in nats, whether greedy decoding gives the continuation) of each request.

    Contexts are cut on the left to the model's length.
    """
    # {digest: (prompt, completion, citation for errors)}.
    scored = {}
    names = []
    # The choices of a question have one prompt, which is kept once.
    shared: dict[Tokens, Tokens] = {}
    for texts, context, continuation in requests:
      if not continuation or len(continuation) > self.max_length:
        raise InputError(
          f'{_cite(texts)}: the continuation has {len(continuation)} tokens, expected 1 to '
          f'{self.max_length}'
        )
      # The last token is predicted and never fed, so one more than the model's length is kept.
      kept = (context + continuation)[-(self.max_length + 1) :]
      prompt = tuple(kept[: -len(continuation)])
      prompt = shared.setdefault(prompt, prompt)
      completion = tuple(continuation)
      name = _name('score', prompt, completion)
      names.append(name)
      scored[name] = (prompt, completion, _cite(texts))
    missing = {name: scored[name] for name in scored if name not in self._memory}
    self._score(missing)
    answers = []
    for (texts, *_), name in zip(requests, names):
      _, _, cited = scored[name]
      answer = self._recall(name, cited)
      answers.append(answer)
      if texts is not None:
        self.cache_hook.add_partial('loglikelihood', texts, answer)
    return answers

  def _continuation(self, context: str, options: Mapping[str, Any], sample: int) -> Continuation:
    """The generation requested by lm-eval.

    Raises:
      InputError: if an option is not honoured, or the new tokens leave no room for a prompt.
    """
    kwargs = check_generation(options, where=_cite((context,)))
    until = handle_stop_sequences(kwargs['until'], eos=self.tokenizer.decode(self.eot_token_id))
    max_new_tokens = kwargs['max_gen_toks']
    # As in transformers, a temperature counts only where sampling is on.
    temperature = 0.0
    if kwargs['do_sample']:
      temperature = float(kwargs.get('temperature', 0.0))
    sampling = Sampling(
      temperature=temperature,
      # None, too, is no cut.
      top_k=int(kwargs.get('top_k') or 0),
      top_p=float(kwargs.get('top_p') or 1.0),
    )
    if max_new_tokens >= self.max_length:
      raise InputError(
        f'the task asks for {max_new_tokens} new tokens (max_gen_toks) of a model that sees '
        f'{self.max_length}: nothing is left for the prompt'
      )
    special = self.add_bos_token
    if has_bos_prefix(context, self.tokenizer.bos_token):
      special = False
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
    # None leaves the choice to the tokenizer.
    if add_special_tokens is None:
      return self.tokenizer.encode(text)
    return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

  def _score(self, missing: Mapping[bytes, tuple[Tokens, Tokens, str]]) -> None:
    if not missing:
      return
    requests = []
    for name, (prompt, completion, cited) in missing.items():
      for i, alpha in enumerate(self.alphas):
        requests.append(ScoreRequest((name, i), prompt, completion, self.arm, alpha, cited))
    answers: dict[Any, tuple[float, bool] | None] = {}
    for result in self.engine.score(requests):
      ending.progress()
      # Kept as None, so that only the strengths at which the model breaks have no answer.
      answers[result.key] = None
      if math.isfinite(result.logprob):
        answers[result.key] = (result.logprob, result.is_greedy)
    self._keep(missing, answers)

  def _generate(self, missing: Mapping[bytes, Continuation]) -> None:
    if not missing:
      return
    requests = []
    for name, continuation in missing.items():
      until = functools.partial(has_ended, self.tokenizer, continuation.prompt, continuation.until)
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
    for result in self.engine.generate(requests):
      ending.progress()
      name, _ = result.key
      continuation = missing[name]
      text = text_until(self.tokenizer, continuation.prompt, continuation.until, result.tokens)
      answers[result.key] = None if result.finish == 'not_finite' else text
    self._keep(missing, answers)

  def _keep(self, names: Mapping[bytes, Any], answers: Mapping[tuple[bytes, int], Any]) -> None:
    """Remembers the answers at all strengths."""
    count = len(self.alphas)
    for name in names:
      self._memory[name] = [answers[name, i] for i in range(count)]

  def _recall(self, name: bytes, cited: str) -> Any:
    """The remembered answer at this model's strength; `cited` names the request in the error."""
    index = self.alphas.index(self.alpha)
    answer = self._memory[name][index]
    if answer is None:
      raise NotFiniteError(
        f'{cited}: not a finite number at alpha {self.alpha:g}: the model is broken there'
      )
    return answer


def _cite(texts: tuple[str, ...] | None) -> str:
  return repr(texts[0][-40:]) if texts else 'a window of a text'


def _name(kind: str, *parts: Any) -> bytes:
  """A digest of a request, 16 bytes."""
  # Keys of whole prompts would fill the memory.
  digest = hashlib.blake2b(kind.encode(), digest_size=16)
  for part in parts:
    if isinstance(part, (tuple, int)):
      data = np.asarray(part, np.int64).tobytes()
    else:
      data = part.encode('utf-8', 'replace')
    # The length goes before the data, so that no two lists of parts give the same bytes.
    length = len(data).to_bytes(8, 'little')
    digest.update(length + data)
  return digest.digest()
