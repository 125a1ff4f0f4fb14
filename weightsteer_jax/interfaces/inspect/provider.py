"""A steered model in this process as a model of Inspect.

  inspect eval task.py --model weightsteer/organism -M direction=runs/quickstart -M alpha=-1

Concurrent requests share the slots of one worker (see serving/worker.py).
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from inspect_ai import model as inspect_model
from inspect_ai.model import ChatMessage, GenerateConfig, ModelOutput, ModelUsage, modelapi
from inspect_ai.tool import ToolChoice, ToolInfo

from weightsteer_jax.config import ModelChoice
from weightsteer_jax.data import chat
from weightsteer_jax.inference import Sampling
from weightsteer_jax.interfaces.serving import loading
from weightsteer_jax.interfaces.serving.bodies import SEEDS
from weightsteer_jax.interfaces.serving.counts import Counts
from weightsteer_jax.interfaces.serving.texts import Answer
from weightsteer_jax.interfaces.serving.worker import Event, Job, Worker
from weightsteer_jax.runtime.errors import InputError

# Most samples that Inspect asks at once, by default; each waits in line for a slot.
CONNECTIONS = 64
SLOTS = 16
DEFAULTS = GenerateConfig()
# Settings of Inspect that would change an answer or its record.
NOT_HONOURED = (
  'best_of',
  'frequency_penalty',
  'logit_bias',
  'logprobs',
  'presence_penalty',
  'response_schema',
  'top_logprobs',
)


@modelapi(name='weightsteer')
class SteeredApi(inspect_model.ModelAPI):
  """A model with a direction at one strength.

  Args:
    model_name: folder, hub id, or organism.
    direction: a direction's folder, or a run's; '' is the model as it is.
    alpha: strength.
    dtype: of parameters and activations.
    max_length: positions of a prompt and its answer; 0 is the model's own, at most 2048.

  Raises:
    InputError: if the model or the direction cannot be used.
  """

  def __init__(
    self,
    model_name: str,
    base_url: str | None = None,
    api_key: str | None = None,
    config: GenerateConfig = DEFAULTS,
    direction: str = '',
    alpha: float = 0.0,
    dtype: str = 'float32',
    max_length: int = 0,
  ):
    super().__init__(model_name, base_url, api_key, [], config)
    if alpha and not direction:
      raise InputError(f'alpha {alpha} was asked for without a direction: -M direction=FOLDER')
    self._loaded = loading.load(
      ModelChoice(model_name, dtype=dtype),
      {'direction': direction} if direction else {},
      slots=SLOTS,
      max_length=max_length,
    )
    self._coefficients = (float(alpha),) if direction else ()
    self._worker = Worker(
      self._loaded.engine, self._loaded.live, most_waiting=10**9, counts=Counts()
    )
    self._worker.start()

  async def generate(
    self,
    input: list[ChatMessage],
    tools: list[ToolInfo],
    tool_choice: ToolChoice,
    config: GenerateConfig,
  ) -> ModelOutput:
    """The answers of the model; tools are refused."""
    if tools:
      raise InputError('tools are not supported: the model is asked through its chat template')
    if refused := [name for name in NOT_HONOURED if getattr(config, name, None)]:
      raise InputError(f'{", ".join(refused)} would change an answer and is not supported')
    served = self._loaded.served
    tokenizer = self._loaded.engine.tokenizer
    messages = [{'role': message.role, 'content': message.text} for message in input]
    prompt = tuple(chat.prompt_tokens(tokenizer, messages, name='input'))
    room = served.max_length - len(prompt) + 1
    if room < 1:
      # Inspect ends a sample that has outgrown the context, and goes on.
      return ModelOutput.from_content(self.model_name, '', stop_reason='model_length')
    count = config.num_choices or 1
    sampling = Sampling(
      1.0 if config.temperature is None else config.temperature,
      config.top_k or 0,
      1.0 if config.top_p is None else config.top_p,
    )
    seed = secrets.randbelow(SEEDS) if config.seed is None else config.seed % SEEDS
    loop = asyncio.get_running_loop()
    jobs = []
    futures = []
    for sample in range(count):
      future: asyncio.Future[Event] = loop.create_future()
      futures.append(future)
      jobs.append(
        Job(
          prompt,
          self._coefficients,
          min(config.max_tokens or room, room),
          sampling,
          seed,
          sample,
          Answer(tokenizer, prompt, stops=config.stop_seqs or (), apart=True),
          _teller(loop, future),
          streams=False,
        )
      )
    self._worker.submit(jobs)
    try:
      events = await asyncio.gather(*futures)
    finally:
      self._worker.drop([job for job, future in zip(jobs, futures) if not future.done()])
    return self._output(prompt, events)

  def max_tokens(self) -> int | None:
    """The model's own room, where a task sets no limit."""
    return None

  def max_connections(self) -> int:
    """Samples that Inspect asks at once."""
    return CONNECTIONS

  async def aclose(self) -> None:
    """Ends the worker."""
    self._worker.end(10.0)

  def _output(self, prompt: Sequence[int], events: Sequence[Event]) -> ModelOutput:
    choices = []
    for event in events:
      content: Any = event.whole.answer
      if event.whole.thought:
        thought = inspect_model.ContentReasoning(reasoning=event.whole.thought)
        content = [thought, inspect_model.ContentText(text=event.whole.answer)]
      message = inspect_model.ChatMessageAssistant(
        content=content, model=self.model_name, source='generate'
      )
      reason: Any = {'stop': 'stop', 'length': 'max_tokens'}.get(event.finish, 'unknown')
      choices.append(inspect_model.ChatCompletionChoice(message=message, stop_reason=reason))
    generated = sum(len(event.tokens) for event in events)
    usage = ModelUsage(
      input_tokens=len(prompt), output_tokens=generated, total_tokens=len(prompt) + generated
    )
    return ModelOutput(model=self.model_name, choices=choices, usage=usage)


def _teller(
  loop: asyncio.AbstractEventLoop, future: 'asyncio.Future[Event]'
) -> Callable[[Event], None]:
  """Hands an event of the worker's thread to a future of the loop."""

  def tell(event: Event) -> None:
    loop.call_soon_threadsafe(_finish, future, event)

  return tell


def _finish(future: 'asyncio.Future[Event]', event: Event) -> None:
  if future.done():
    return
  if event.error:
    future.set_exception(RuntimeError(event.error))
  else:
    future.set_result(event)
