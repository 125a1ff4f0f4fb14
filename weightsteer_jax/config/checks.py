"""What the values of a run must be, and which of them go together."""

import json
import re
from typing import Any

from weightsteer_jax.config.schema import (
  ARM_KINDS,
  TASK_KINDS,
  Arm,
  Data,
  FineTune,
  Judge,
  Run,
  Task,
  finetune_of,
)
from weightsteer_jax.runtime import sharding
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean


def check(run: Run) -> None:
  """Nothing, if all values can be.

  Raises:
    InputError: names the key, its value and what was expected.
  """
  _name('name', run.name)
  for name in run.tasks:
    _name('tasks', name)
  for name in run.judges:
    _name('judges', name)
  both = sorted({*run.tasks} & {*run.validation})
  _require(not both, 'validation', both, 'other names than those of tasks')
  _one_of('model.dtype', run.model.dtype, ('float32', 'bfloat16'))
  _one_of(
    'model.attention', run.model.attention, ('auto', 'reference', 'blocked', 'cudnn', 'splash')
  )
  _one_of('mesh.base', run.mesh.base, ('auto', 'replicate', 'shard'))
  _one_of('mesh.indivisible', run.mesh.indivisible, sharding.INDIVISIBLE)
  if run.mesh.shape != 'auto':
    sharding.parse(run.mesh.shape)
  _check_data('data', run.data)
  for name, data in run.contrasts.items():
    _name('contrasts', name)
    _check_data(f'contrasts.{name}', data)
  _check_watched(run)
  _check_finetune('finetune', run.finetune)
  for name, options in run.finetunes.items():
    _name('finetunes', name)
    _check_finetune(f'finetunes.{name}', options)
  _one_of('task_model.finetune', run.task_model.finetune, ('', *run.finetunes))
  _require(run.task_model.n >= 0, 'task_model.n', run.task_model.n, '0 (all) or more')
  for name, arm in run.arms.items():
    _name('arms', name)
    _require(name != 'base', 'arms', name, 'another name: base is the model itself')
    _check_arm(f'arms.{name}', arm, run)
  _one_of('data.judge', run.data.judge, ('', *run.judges))
  _require(
    not run.data.trait or run.judges,
    'judges',
    dict(run.judges),
    'a judge of the trait and the coherence of the answers (data.trait)',
  )
  _require(run.monitor.every >= 1, 'monitor.every', run.monitor.every, '1 or more')
  _require(run.sweep.alphas, 'sweep.alphas', run.sweep.alphas, 'at least one strength')
  _require(
    len(set(run.sweep.alphas)) == len(run.sweep.alphas),
    'sweep.alphas',
    run.sweep.alphas,
    'each strength once',
  )
  _require(run.sweep.batch_size >= 1, 'sweep.batch_size', run.sweep.batch_size, '1 or more')
  behaviours = tuple(name for name, item in run.tasks.items() if item.role == 'behaviour')
  _one_of('sweep.pick_by', run.sweep.pick_by, ('', *behaviours))
  _require(run.sweep.tolerance >= 0, 'sweep.tolerance', run.sweep.tolerance, '0 or more')
  for name, item in run.tasks.items():
    _check_task(f'tasks.{name}', item)
  for name, item in run.validation.items():
    _name('validation', name)
    _check_task(f'validation.{name}', item)
  for name, options in run.judges.items():
    _check_judge(f'judges.{name}', options)


def _check_watched(run: Run) -> None:
  for name, options in run.watched.items():
    where = f'watched.{name}'
    _name('watched', name)
    _one_of(f'{where}.finetune', options.finetune, ('', *run.finetunes))
    _require(options.n >= 0, f'{where}.n', options.n, '0 (all) or more')
    _require(
      options.seeds and len(set(options.seeds)) == len(options.seeds),
      f'{where}.seeds',
      options.seeds,
      'at least one seed, each once',
    )
  for name in run.monitor.controls:
    _one_of('monitor.controls', name, tuple(run.contrasts))
  _require(
    run.name not in run.contrasts,
    'contrasts',
    run.name,
    "other names than the run's, which is that of its own direction",
  )
  if run.watched:
    kinds = {options.misaligned for options in run.watched.values()}
    _require(
      len(kinds) == 2,
      'watched',
      tuple(run.watched),
      'fine-tunes that are misaligned and fine-tunes that are not, to tell one from the other',
    )
    _require(
      any(item.role == 'behaviour' for item in run.tasks.values()),
      'tasks',
      tuple(run.tasks),
      'a behaviour task, which says what the watched fine-tunes do',
    )


def _check_data(where: str, data: Data) -> None:
  generated = not data.positive and not data.negative
  _require(
    not generated or data.trait or (data.questions and data.positive_prompts),
    f'{where}.questions',
    data.questions,
    'questions and system prompts to generate the data from, or data.trait, or '
    'data.positive and data.negative to read it from',
  )
  _require(
    not data.trait
    or not (data.positive or data.negative or data.questions or data.positive_prompts),
    f'{where}.trait',
    data.trait,
    "'' where data.positive, data.questions or data.positive_prompts say where the data comes from",
  )
  _require(
    0 <= data.evaluation_share < 1,
    f'{where}.evaluation_share',
    data.evaluation_share,
    'a share of 0 or more and below 1',
  )
  _require(
    len(data.positive_prompts) == len(data.negative_prompts),
    f'{where}.negative_prompts',
    data.negative_prompts,
    f'as many prompts as data.positive_prompts, which has {len(data.positive_prompts)}',
  )
  _require(
    generated or (data.positive and data.negative),
    f'{where}.positive',
    data.positive,
    'both data.positive and data.negative, or neither',
  )
  _require(
    0 < data.validation_fraction < 1,
    f'{where}.validation_fraction',
    data.validation_fraction,
    'a share between 0 and 1',
  )
  for key in ('samples', 'max_new_tokens', 'max_length'):
    _require(getattr(data, key) >= 1, f'{where}.{key}', getattr(data, key), '1 or more')
  _require(data.num_questions >= 0, f'{where}.num_questions', data.num_questions, '0 (all) or more')
  _require(data.temperature >= 0, f'{where}.temperature', data.temperature, '0 (greedy) or more')
  for key in ('positive_filter', 'negative_filter'):
    _regex(f'{where}.{key}', getattr(data, key))


def _check_finetune(where: str, options: FineTune) -> None:
  _one_of(f'{where}.kind', options.kind, ('lora_embeddings', 'lora', 'bias', 'full'))
  _one_of(f'{where}.remat', options.remat, ('auto', 'none', 'dots', 'full'))
  _one_of(f'{where}.together', options.together, ('auto', 'on', 'off'))
  _require(
    options.learning_rates and all(rate > 0 for rate in options.learning_rates),
    f'{where}.learning_rates',
    options.learning_rates,
    'positive numbers',
  )
  for key in ('rank', 'batch_size', 'accumulation', 'eval_every'):
    _require(getattr(options, key) >= 1, f'{where}.{key}', getattr(options, key), '1 or more')
  for key in ('steps', 'warmup_steps', 'patience', 'weight_decay'):
    _require(getattr(options, key) >= 0, f'{where}.{key}', getattr(options, key), '0 or more')
  _require(0 <= options.dropout < 1, f'{where}.dropout', options.dropout, 'a probability below 1')
  for key in ('beta1', 'beta2'):
    _require(
      0 <= getattr(options, key) < 1,
      f'{where}.{key}',
      getattr(options, key),
      'a decay of 0 or more and below 1',
    )
  for key in ('clip_norm', 'epsilon', 'lora_alpha'):
    _require(
      getattr(options, key) > 0, f'{where}.{key}', getattr(options, key), 'a positive number'
    )
  _require(
    options.steps or options.epochs > 0,
    f'{where}.epochs',
    options.epochs,
    f'a positive number where {where}.steps is 0',
  )
  _require(
    options.batch_size % options.accumulation == 0,
    f'{where}.accumulation',
    options.accumulation,
    f'a divisor of {where}.batch_size = {options.batch_size}',
  )


def _check_arm(where: str, arm: Arm, run: Run) -> None:
  _one_of(f'{where}.kind', arm.kind, ARM_KINDS)
  _one_of(f'{where}.finetune', arm.finetune, ('', *run.finetunes))
  _require(
    len(set(arm.alphas)) == len(arm.alphas), f'{where}.alphas', arm.alphas, 'each strength once'
  )
  _one_of(f'{where}.positions', arm.positions, ('answer', 'all'))
  _require(
    re.fullmatch(r'select|all|[1-9][0-9]*', arm.layer),
    f'{where}.layer',
    arm.layer,
    "'select', 'all' or the number of a layer, from 1",
  )
  _require(arm.upsample > 0, f'{where}.upsample', arm.upsample, 'a positive number')
  if arm.kind == 'prompts':
    _require(
      arm.positive_prompts or arm.negative_prompts,
      f'{where}.positive_prompts',
      (),
      'system prompts for this side, the other, or both',
    )
  if arm.kind == 'joint':
    _require(
      run.task_model.data, 'task_model.data', '', f'the task whose data {where} is to be mixed with'
    )
  if arm.kind == 'finetune':
    options = f'finetunes.{arm.finetune}' if arm.finetune else 'finetune'
    _require(
      finetune_of(run, arm.finetune).keep_steps,
      f'{options}.keep_steps',
      False,
      f'True, because {where} compares the steps',
    )
  if arm.kind == 'activation' and arm.layer == 'select':
    _require(
      any(item.role == 'behaviour' for item in run.validation.values()),
      'validation',
      tuple(run.validation),
      f'a behaviour task by which {where} selects its layer, or a number as {where}.layer',
    )
    _require(
      set(map(abs, arm.select_alphas)) - {0.0},
      f'{where}.select_alphas',
      arm.select_alphas,
      'strengths other than 0',
    )


def _check_task(where: str, item: Task) -> None:
  _one_of(f'{where}.role', item.role, ('behaviour', 'capability'))
  _one_of(f'{where}.kind', item.kind, TASK_KINDS)
  for pair in item.columns:
    _require(
      re.fullmatch(r'\w+=.+', pair),
      f'{where}.columns',
      pair,
      "'ours=theirs', as in 'question=Frage'",
    )
  _require(item.max_new_tokens >= 1, f'{where}.max_new_tokens', item.max_new_tokens, '1 or more')
  _require(item.samples >= 1, f'{where}.samples', item.samples, '1 or more')
  _require(item.n >= 0, f'{where}.n', item.n, '0 (all) or more')
  _require(item.temperature >= 0, f'{where}.temperature', item.temperature, '0 (greedy) or more')
  _require(0 < item.top_p <= 1, f'{where}.top_p', item.top_p, 'a probability above 0')
  _require(item.top_k >= 0, f'{where}.top_k', item.top_k, '0 (all) or more')


def _name(key: str, name: str) -> None:
  _require(
    re.fullmatch(r'(?!\.)[A-Za-z0-9._-]{1,80}', name),
    key,
    name,
    '1 to 80 letters, digits, dots, dashes or underscores',
  )


def _check_judge(where: str, options: Judge) -> None:
  _one_of(f'{where}.kind', options.kind, ('endpoint', 'model', 'rules'))
  _one_of(f'{where}.dtype', options.dtype, ('float32', 'bfloat16'))
  _require(
    options.model or options.kind == 'rules',
    f'{where}.model',
    options.model,
    'a model to judge with',
  )
  _require(0 <= options.floor <= 1, f'{where}.floor', options.floor, 'a probability')
  for key in ('concurrency', 'max_tokens', 'batch_size'):
    _require(getattr(options, key) >= 1, f'{where}.{key}', getattr(options, key), '1 or more')
  for key in (
    'temperature',
    'retries',
    'backoff_s',
    'price_in',
    'price_out',
    'cost_cap',
    'token_cap',
  ):
    _require(getattr(options, key) >= 0, f'{where}.{key}', getattr(options, key), '0 or more')
  _require(options.timeout_s > 0, f'{where}.timeout_s', options.timeout_s, 'seconds')
  _require(
    0 <= options.top_logprobs <= 20, f'{where}.top_logprobs', options.top_logprobs, '0 to 20'
  )
  _require(
    not options.cost_cap or options.price_in or options.price_out,
    f'{where}.cost_cap',
    options.cost_cap,
    'prices to count by (price_in, price_out), or token_cap in its place',
  )
  _regex(f'{where}.pattern', options.pattern)
  _json_object(f'{where}.parameters', options.parameters)


def _require(condition: Any, key: str, value: Any, expected: str) -> None:
  if not condition:
    raise InputError(f"the config key '{key}' is {value!r}, expected {expected}")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
  _require(
    value in allowed, key, value, f"one of {', '.join(allowed)}{did_you_mean(value, allowed)}"
  )


def _regex(key: str, pattern: str) -> None:
  try:
    re.compile(pattern)
  except re.error as error:
    raise InputError(f"the config key '{key}' is no regular expression: {error}") from error


def _json_object(key: str, text: str) -> None:
  try:
    value = json.loads(text or '{}')
  except ValueError as error:
    raise InputError(f"the config key '{key}' is no JSON: {error}") from error
  _require(isinstance(value, dict), key, text, 'a JSON object')
