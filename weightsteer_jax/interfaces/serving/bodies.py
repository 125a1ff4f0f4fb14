"""Bodies of requests, checked: what is asked, in tokens.

Every field is honoured, or says nothing at the value it has, or is refused by its name.

Source: openai-python 3.57, `ChatCompletion` and `Completion` create parameters; fields beyond these
are vLLM's, under vLLM's names.
"""

import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weightsteer_jax.data import chat, pieces
from weightsteer_jax.inference import Sampling, check_ids
from weightsteer_jax.inference.requests import Tokens
from weightsteer_jax.inference.tops import MOST_TOPS
from weightsteer_jax.interfaces.serving import strengths
from weightsteer_jax.interfaces.serving.refusals import Refusal
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

Body = Mapping[str, Any]
MOST_STOPS = 16
# Answers that one request may ask for.
MOST_ANSWERS = 128
# OpenAI's own default of the older interface.
COMPLETION_TOKENS = 16
# A seed is 32 bits of a row's stream of random numbers.
SEEDS = 2**32

COMMON = frozenset(
  (
    'alpha',
    'directions',
    'logprobs',
    'max_tokens',
    'model',
    'n',
    'seed',
    'stop',
    'stream',
    'stream_options',
    'temperature',
    'top_k',
    'top_p',
  )
)
CHAT = COMMON | {'messages', 'max_completion_tokens', 'top_logprobs', 'chat_template_kwargs'}
COMPLETION = COMMON | {'prompt', 'echo', 'add_special_tokens'}
# Fields for the service's books, which change no answer.
INERT = frozenset(
  ('user', 'metadata', 'store', 'service_tier', 'safety_identifier', 'prompt_cache_key')
)
# Fields that change an answer and are not honoured: {name: values that say nothing}.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
  'add_generation_prompt': (True,),
  'best_of': (1,),
  'continue_final_message': (False,),
  'frequency_penalty': (0,),
  'function_call': ('none',),
  'functions': ([],),
  'ignore_eos': (False,),
  'logit_bias': ({},),
  'min_p': (0,),
  'min_tokens': (0,),
  'modalities': (['text'],),
  'parallel_tool_calls': (True, False),
  'presence_penalty': (0,),
  'repetition_penalty': (1,),
  'response_format': ({'type': 'text'},),
  'skip_special_tokens': (True,),
  'spaces_between_special_tokens': (True,),
  'suffix': ('',),
  'tool_choice': ('none', 'auto'),
  'tools': ([],),
  'use_beam_search': (False,),
}


@dataclasses.dataclass(frozen=True)
class Asked:
  """What a request asks for.

  Attributes:
    model: the model's name as the client wrote it.
    tokenizer: the tokenizer, told the request's own template arguments.
    prompts: tokens of each prompt; one of a chat.
    coefficients: a strength for each direction of the server.
    n: answers to each prompt.
    limits: most tokens of an answer, for each prompt; 0 where nothing is to be generated.
    seed: of the draws.
    stops: texts that end an answer.
    is_chat: whether thoughts are set apart, and the reply is a message.
    stream, include_usage: whether pieces are sent as they come, and the usage behind them.
    tops: likeliest tokens to name in each place; None where no log-probabilities are asked for.
    echo: whether the prompt comes before the answer.
  """

  model: str
  tokenizer: Any
  prompts: tuple[Tokens, ...]
  coefficients: tuple[float, ...]
  n: int
  limits: tuple[int, ...]
  sampling: Sampling
  seed: int
  stops: tuple[str, ...]
  is_chat: bool
  stream: bool
  include_usage: bool
  tops: int | None
  echo: bool = False


@dataclasses.dataclass(frozen=True)
class Served:
  """What bodies are checked against.

  Attributes:
    name: the model's name.
    directions: the names of the directions, in the order of coefficients.
    tokenizer_for: template arguments -> tokenizer; raises InputError.
    max_length: positions of a prompt and its answer.
    vocab_size: ids of the model.
    stop_ids: tokens that end an answer.
    bos: whether the tokenizer puts a token before raw texts by itself.
  """

  name: str
  directions: tuple[str, ...]
  tokenizer_for: Callable[[Mapping[str, Any]], Any]
  max_length: int
  vocab_size: int
  stop_ids: tuple[int, ...]
  bos: bool


def read_chat(body: Any, served: Served) -> Asked:
  """What a body of /v1/chat/completions asks.

  Raises:
    Refusal: if a field is unknown, broken or not honoured, or the prompt is too long.
  """
  body = _fields(body, CHAT, 'messages')
  arguments = body.get('chat_template_kwargs') or {}
  if not isinstance(arguments, Mapping):
    raise Refusal('chat_template_kwargs must be an object', param='chat_template_kwargs')
  try:
    tokenizer = served.tokenizer_for(arguments)
  except InputError as error:
    raise Refusal(str(error), param='chat_template_kwargs') from error
  messages = _messages(body.get('messages'))
  try:
    prompt = tuple(chat.prompt_tokens(tokenizer, messages, name='messages'))
  except InputError as error:
    raise Refusal(str(error), param='messages') from error
  limit = body.get('max_completion_tokens')
  param = 'max_tokens' if limit is None else 'max_completion_tokens'
  limit = body.get(param)
  wants = _flag(body, 'logprobs')
  tops = _whole(body, 'top_logprobs', 0, 0, MOST_TOPS)
  if tops and not wants:
    raise Refusal('top_logprobs needs "logprobs": true', param='top_logprobs')
  asked = _asked(body, served, tokenizer, (prompt,), limit, param, is_chat=True)
  return dataclasses.replace(asked, tops=tops if wants else None)


def read_completion(body: Any, served: Served) -> Asked:
  """What a body of /v1/completions asks.

  Raises:
    Refusal: if a field is unknown, broken or not honoured, or a prompt is too long.
  """
  body = _fields(body, COMPLETION, 'prompt')
  tokenizer = served.tokenizer_for({})
  with_bos = _flag(body, 'add_special_tokens', True) and served.bos
  prompts = tuple(
    _prompt(prompt, tokenizer, with_bos, served.vocab_size) for prompt in _prompts(body['prompt'])
  )
  limit = body.get('max_tokens')
  limit = COMPLETION_TOKENS if limit is None else limit
  asked = _asked(body, served, tokenizer, prompts, limit, 'max_tokens', is_chat=False)
  # In this interface a number: how many of the likeliest tokens to name.
  wants = body.get('logprobs') is not None and body['logprobs'] is not False
  tops = _whole(body, 'logprobs', 0, 0, MOST_TOPS) if wants else None
  return dataclasses.replace(asked, tops=tops, echo=_flag(body, 'echo'))


def _asked(
  body: Body,
  served: Served,
  tokenizer: Any,
  prompts: tuple[Tokens, ...],
  limit: Any,
  limit_param: str,
  *,
  is_chat: bool,
) -> Asked:
  """The fields that both interfaces have."""
  model = body.get('model', served.name)
  if not isinstance(model, str):
    raise Refusal(f'model is {model!r:.80}, expected a name', param='model')
  named = strengths.parse_model(model, served.name, served.directions)
  of_fields = strengths.parse_fields(body, served.directions)
  if doubled := named.keys() & of_fields.keys():
    raise Refusal(
      f"the strength of '{min(doubled)}' stands in the model's name and in a field: give one",
      param='model',
    )
  all_strengths = named | of_fields
  n = _whole(body, 'n', 1, 1, MOST_ANSWERS)
  if n * len(prompts) > MOST_ANSWERS:
    raise Refusal(
      f'{len(prompts)} prompts and n={n} ask for {n * len(prompts)} answers, at most '
      f'{MOST_ANSWERS} are given to a request',
      param='n',
    )
  # 0 tokens make sense with echo alone, to have a prompt scored.
  least = 0 if body.get('echo') else 1
  if limit is not None:
    _check_whole(limit, limit_param, least, None)
  limits = tuple(_limit(len(prompt), limit, limit_param, served.max_length) for prompt in prompts)
  options = body.get('stream_options') or {}
  if not isinstance(options, Mapping):
    raise Refusal('stream_options must be an object', param='stream_options')
  seed = body.get('seed')
  if seed is not None:
    _check_whole(seed, 'seed', None, None)
  return Asked(
    model=model,
    tokenizer=tokenizer,
    prompts=prompts,
    coefficients=tuple(all_strengths.get(name, 0.0) for name in served.directions),
    n=n,
    limits=limits,
    sampling=_sampling(body),
    # Without a seed two requests draw differently.
    seed=secrets.randbelow(SEEDS) if seed is None else seed % SEEDS,
    stops=_stops(body.get('stop')),
    is_chat=is_chat,
    stream=_flag(body, 'stream'),
    include_usage=_flag(options, 'include_usage'),
    tops=None,
  )


def _fields(body: Any, known: frozenset[str], required: str) -> Body:
  """The body, every field of which has a meaning here, and no value where it has none."""
  if not isinstance(body, Mapping):
    raise Refusal(f'the body must be a JSON object, it is a {type(body).__name__}')
  given = {name: value for name, value in body.items() if value is not None}
  for name, value in given.items():
    if name in known or name in INERT:
      continue
    if name not in NEUTRAL:
      near = did_you_mean(name, known)
      raise Refusal(f"unknown field '{name}'{near}", param=name, code='unknown_parameter')
    if value not in NEUTRAL[name]:
      raise Refusal(
        f"'{name}' is not supported: leave it out", param=name, code='unsupported_parameter'
      )
  if required not in given:
    raise Refusal(f"'{required}' is missing", param=required, code='missing_required_parameter')
  return given


def _messages(messages: Any) -> list[dict[str, Any]]:
  """Messages as chat templates take them: one text each, the developer's as the system's."""
  if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
    raise Refusal('messages must be a list of {role, content}, not empty', param='messages')
  plain = []
  for i, message in enumerate(messages):
    where = f'messages[{i}]'
    if not isinstance(message, Mapping):
      raise Refusal(f'{where} must be an object with role and content', param='messages')
    entry = {key: value for key, value in message.items() if value is not None}
    # The name of a speaker is no part of what templates show.
    entry.pop('name', None)
    entry['content'] = _text(entry.get('content'), where)
    if entry.get('role') == 'developer':
      entry['role'] = 'system'
    for key in ('tool_calls', 'function_call', 'refusal', 'audio', 'annotations'):
      if entry.pop(key, None):
        raise Refusal(f'{where} has {key}, which is not supported', param='messages')
    plain.append(entry)
  return plain


def _text(content: Any, where: str) -> str:
  if isinstance(content, str):
    return content
  texts = []
  for part in content if isinstance(content, Sequence) else [content]:
    is_text = isinstance(part, Mapping) and part.get('type') == 'text'
    if not is_text or not isinstance(part.get('text'), str):
      raise Refusal(f'{where}: content must be text, or parts of type text', param='messages')
    texts.append(part['text'])
  return ''.join(texts)


def _prompts(prompt: Any) -> list[Any]:
  """The prompts: texts, or lists of token ids."""
  if isinstance(prompt, str):
    return [prompt]
  if isinstance(prompt, Sequence) and prompt:
    if all(isinstance(part, int) and not isinstance(part, bool) for part in prompt):
      return [prompt]
    return list(prompt)
  raise Refusal('prompt must be a text, token ids, or a list of these', param='prompt')


def _prompt(prompt: Any, tokenizer: Any, with_bos: bool, vocab_size: int) -> Tokens:
  if isinstance(prompt, str):
    tokens = pieces.encode_text(tokenizer, prompt)
    if with_bos and tokens[:1] != [tokenizer.bos_token_id]:
      tokens = [tokenizer.bos_token_id, *tokens]
  elif isinstance(prompt, Sequence) and all(type(token) is int for token in prompt):
    tokens = list(prompt)
    if min(tokens, default=0) < 0:
      raise Refusal('a token id is below 0', param='prompt')
  else:
    raise Refusal(f'a prompt is {prompt!r:.60}, expected a text or token ids', param='prompt')
  if not tokens:
    raise Refusal(
      'a prompt is empty, so that there is nothing to predict the first token from', param='prompt'
    )
  try:
    check_ids('prompt', tokens, vocab_size)
  except InputError as error:
    raise Refusal(str(error), param='prompt') from error
  return tuple(tokens)


def _limit(prompt: int, limit: int | None, param: str, max_length: int) -> int:
  """Most tokens to generate behind a prompt; its last token takes no position more."""
  room = max_length - prompt + 1
  if room < 1 or (limit is not None and limit > room):
    wanted = 'and an answer' if limit is None else f'and {limit} new ones'
    raise Refusal(
      f'the prompt has {prompt} tokens, {wanted} do not fit into the {max_length} positions of '
      f'this server: shorten the prompt, or lower {param}',
      param='messages' if limit is None or room < 1 else param,
      code='context_length_exceeded',
    )
  return room if limit is None else limit


def _sampling(body: Body) -> Sampling:
  temperature = _number(body, 'temperature', 1.0)
  if not 0 <= temperature <= 100:
    raise Refusal(
      f'temperature is {temperature:g}, expected 0 (greedy) to 100', param='temperature'
    )
  top_p = _number(body, 'top_p', 1.0)
  if not 0 < top_p <= 1:
    raise Refusal(f'top_p is {top_p:g}, expected above 0, at most 1', param='top_p')
  top_k = body.get('top_k', 0)
  _check_whole(top_k, 'top_k', -1, 2**31 - 1)
  # What float32 rounds to nothing is greedy.
  if temperature < 1e-6:
    return Sampling()
  # vLLM's -1 takes all tokens, as 0 does.
  return Sampling(temperature, max(top_k, 0), top_p)


def _stops(stop: Any) -> tuple[str, ...]:
  if stop is None or stop == []:
    return ()
  stops = [stop] if isinstance(stop, str) else stop
  is_list = isinstance(stops, Sequence)
  if not is_list or len(stops) > MOST_STOPS or not all(isinstance(x, str) and x for x in stops):
    raise Refusal(
      f'stop is {stop!r:.80}, expected a text or up to {MOST_STOPS} texts, none empty',
      param='stop',
    )
  return tuple(stops)


def _flag(body: Body, name: str, default: bool = False) -> bool:
  value = body.get(name, default)
  if not isinstance(value, bool):
    raise Refusal(f'{name} is {value!r:.80}, expected true or false', param=name)
  return value


def _number(body: Body, name: str, default: float) -> float:
  value = body.get(name, default)
  number = strengths.finite(value) if isinstance(value, (int, float)) else None
  if number is None:
    raise Refusal(f'{name} is {value!r:.80}, expected a finite number', param=name)
  return number


def _whole(body: Body, name: str, default: int, least: int, most: int) -> int:
  value = body.get(name, default)
  _check_whole(value, name, least, most)
  return value


def _check_whole(value: Any, name: str, least: int | None, most: int | None) -> None:
  is_whole = isinstance(value, int) and not isinstance(value, bool)
  if not is_whole or (least is not None and value < least) or (most is not None and value > most):
    bounds = '' if least is None else f' from {least}' if most is None else f', {least} to {most}'
    raise Refusal(f'{name} is {value!r:.80}, expected a whole number{bounds}', param=name)
