"""Checks of the values that a run may have, and of their combinations.

Keys, types and kinds are checked where a run is built (build.py).
"""

import re
from collections.abc import Iterable
from typing import Any

from weightsteer_jax.config import chat_options, schema
from weightsteer_jax.config.schema import Data, FineTune, Run, finetune_of
from weightsteer_jax.runtime import json_text, mesh_shape, redaction
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

DTYPES = ('float32', 'bfloat16')
# Who decides on a tokenizer's rules: transformers' AutoTokenizer, or tokenizer.json.
TOKENIZERS = ('auto', 'file')
# Seeds are uint32 on devices, and numbers of tokens int32.
SEED_LIMIT = 2**32
TOP_K_LIMIT = 2**31
# The least and the largest normal float32: devices take what is smaller for 0.
LEAST_TEMPERATURE = 2.0**-126
LARGEST_TEMPERATURE = 3.4e38
# A strength is float32 on devices, too.
LARGEST_ALPHA = 3.4e38


def check(run: Run) -> None:
  """Raises InputError if a value is not allowed, or if values cannot go together.

  Raises:
    InputError: names the key, the value and what was expected.
  """
  _check_names(run)
  _check_model_and_mesh(run)
  _check_data('data', run.data)
  for name, data in run.contrasts.items():
    _check_data(f'contrasts.{name}', data)
  _check_watched(run)
  _check_finetune('finetune', run.finetune)
  for name, finetune in run.finetunes.items():
    _check_finetune(f'finetunes.{name}', finetune)
  _one_of('task_model.finetune', run.task_model.finetune, ('', *run.finetunes))
  _at_least(0, 'task_model', run.task_model, 'n', expected='0 (all) or more')
  for name, arm in run.arms.items():
    _check_arm(f'arms.{name}', arm, run)
  _check_trait_judge(run)
  _at_least(1, 'monitor', run.monitor, 'every')
  _seed('seed', run.seed)
  _check_sweep(run)
  for name, task in run.tasks.items():
    _check_task(f'tasks.{name}', task)
  for name, task in run.validation.items():
    _check_task(f'validation.{name}', task)
  for name, judge in run.judges.items():
    _check_judge(f'judges.{name}', judge)


def _check_names(run: Run) -> None:
  # Names become names of files, of rows and of columns.
  _name('name', run.name)
  for key in ('tasks', 'judges', 'contrasts', 'finetunes', 'arms', 'validation', 'watched'):
    for name in getattr(run, key):
      _name(key, name)
  # Rows name their task, whichever section it stands in.
  both = sorted({*run.tasks} & {*run.validation})
  _require(not both, 'validation', both, 'other names than those of tasks')
  # Every sweep has an arm of this name (see inference/arms.py).
  _require('base' not in run.arms, 'arms', 'base', 'another name: base is the model itself')
  _require(
    run.name not in run.contrasts,
    'contrasts',
    run.name,
    "other names than the run's, which is that of its own direction",
  )


def _check_model_and_mesh(run: Run) -> None:
  kernels = ('auto', 'reference', 'blocked', 'cudnn', 'splash')
  _one_of('model.dtype', run.model.dtype, DTYPES)
  _one_of('model.attention', run.model.attention, kernels)
  _one_of('model.tokenizer', run.model.tokenizer, TOKENIZERS)
  chat_options.check_date(run.model.chat_date, "the config key 'model.chat_date'")
  _one_of('model.system_role', run.model.system_role, ('system', 'user'))
  _one_of('mesh.base', run.mesh.base, ('auto', 'replicate', 'shard'))
  _one_of('mesh.indivisible', run.mesh.indivisible, mesh_shape.INDIVISIBLE)
  if run.mesh.shape != 'auto':
    mesh_shape.parse(run.mesh.shape)


def _check_sweep(run: Run) -> None:
  alphas = run.sweep.alphas
  _require(alphas, 'sweep.alphas', alphas, 'at least one strength')
  _each_once('sweep.alphas', alphas, 'each strength once')
  _at_least(1, 'sweep', run.sweep, 'batch_size')
  behaviours = tuple(name for name, task in run.tasks.items() if task.role == 'behaviour')
  _one_of('sweep.pick_by', run.sweep.pick_by, ('', *behaviours))
  _at_least(0, 'sweep', run.sweep, 'tolerance')
  _seed('sweep.seed', run.sweep.seed)
  _one_of('sweep.capability_rule', run.sweep.capability_rule, ('loss', 'change'))
  _one_of('sweep.capability_evidence', run.sweep.capability_evidence, ('mean', 'interval'))


def _check_trait_judge(run: Run) -> None:
  _one_of('data.judge', run.data.judge, ('', *run.judges))
  _require(
    not run.data.trait or run.judges,
    'judges',
    dict(run.judges),
    'a judge of the trait and the coherence of the answers (data.trait)',
  )


def _check_watched(run: Run) -> None:
  for name, watched in run.watched.items():
    where = f'watched.{name}'
    _one_of(f'{where}.finetune', watched.finetune, ('', *run.finetunes))
    _at_least(0, where, watched, 'n', expected='0 (all) or more')
    expected = 'at least one seed, each once'
    _require(watched.seeds, f'{where}.seeds', watched.seeds, expected)
    _each_once(f'{where}.seeds', watched.seeds, expected)
    for seed in watched.seeds:
      _seed(f'{where}.seeds', seed)
  for name in run.monitor.controls:
    _one_of('monitor.controls', name, tuple(run.contrasts))
  if not run.watched:
    return
  # The study measures how well directions tell the two classes apart (an AUROC needs both).
  classes = {watched.misaligned for watched in run.watched.values()}
  _require(
    len(classes) == 2,
    'watched',
    tuple(run.watched),
    'fine-tunes that are misaligned and fine-tunes that are not, to tell one from the other',
  )
  _require(
    any(task.role == 'behaviour' for task in run.tasks.values()),
    'tasks',
    tuple(run.tasks),
    'a behaviour task, which says what the watched fine-tunes do',
  )


def _check_data(where: str, data: Data) -> None:
  _check_data_source(where, data)
  share = data.evaluation_share
  _require(0 <= share < 1, f'{where}.evaluation_share', share, 'a share of 0 or more and below 1')
  # Above 0: the validation loss chooses the learning rate and the step.
  share = data.validation_fraction
  _require(0 < share < 1, f'{where}.validation_fraction', share, 'a share between 0 and 1')
  _at_least(1, where, data, 'samples', 'max_new_tokens', 'max_length')
  _one_of(f'{where}.thoughts', data.thoughts, ('keep', 'remove'))
  _at_least(0, where, data, 'num_questions', expected='0 (all) or more')
  _temperature(where, data)
  _regex(f'{where}.positive_filter', data.positive_filter)
  _regex(f'{where}.negative_filter', data.negative_filter)


def _check_data_source(where: str, data: Data) -> None:
  # Examples are read, generated from questions, or generated from a trait.
  generated = not data.positive and not data.negative
  _require(
    not generated or data.trait or (data.questions and data.positive_prompts),
    f'{where}.questions',
    data.questions,
    'questions and system prompts to generate the data from, or data.trait, or '
    'data.positive and data.negative to read it from',
  )
  other_source = data.positive or data.negative or data.questions or data.positive_prompts
  _require(
    not data.trait or not other_source,
    f'{where}.trait',
    data.trait,
    "'' where data.positive, data.questions or data.positive_prompts say where the data comes from",
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


def _check_finetune(where: str, finetune: FineTune) -> None:
  _one_of(f'{where}.kind', finetune.kind, ('lora_embeddings', 'lora', 'bias', 'full'))
  _require(
    not finetune.targets or finetune.kind.startswith('lora'),
    f'{where}.targets',
    finetune.targets,
    f'nothing where {where}.kind is {finetune.kind!r}, which has no LoRA',
  )
  _each_once(f'{where}.targets', finetune.targets, 'each layer once')
  _one_of(f'{where}.remat', finetune.remat, ('auto', 'none', 'dots', 'full'))
  _one_of(f'{where}.together', finetune.together, ('auto', 'on', 'off'))
  rates = finetune.learning_rates
  _require(
    rates and all(rate > 0 for rate in rates), f'{where}.learning_rates', rates, 'positive numbers'
  )
  _at_least(1, where, finetune, 'rank', 'batch_size', 'accumulation', 'eval_every')
  _at_least(0, where, finetune, 'steps', 'warmup_steps', 'patience', 'weight_decay')
  dropout = finetune.dropout
  _require(0 <= dropout < 1, f'{where}.dropout', dropout, 'a probability below 1')
  for key in ('beta1', 'beta2'):
    decay = getattr(finetune, key)
    _require(0 <= decay < 1, f'{where}.{key}', decay, 'a decay of 0 or more and below 1')
  for key in ('clip_norm', 'epsilon', 'lora_alpha'):
    value = getattr(finetune, key)
    _require(value > 0, f'{where}.{key}', value, 'a positive number')
  _require(
    finetune.steps or finetune.epochs > 0,
    f'{where}.epochs',
    finetune.epochs,
    f'a positive number where {where}.steps is 0',
  )
  _at_least(0, where, finetune, 'epochs')
  _require(
    finetune.batch_size % finetune.accumulation == 0,
    f'{where}.accumulation',
    finetune.accumulation,
    f'a divisor of {where}.batch_size = {finetune.batch_size}',
  )


def _check_arm(where: str, arm: schema.Arm, run: Run) -> None:
  _each_once(f'{where}.alphas', arm.alphas, 'each strength once')
  if isinstance(arm, schema.TrainedArm):
    _one_of(f'{where}.finetune', arm.finetune, ('', *run.finetunes))
  match arm:
    case schema.ActivationArm():
      _check_activation_arm(where, arm, run)
    case schema.FinetuneArm():
      section = f'finetunes.{arm.finetune}' if arm.finetune else 'finetune'
      _require(
        finetune_of(run, arm.finetune).keep_steps,
        f'{section}.keep_steps',
        False,
        f'True, because {where} compares the steps',
      )
    case schema.JointArm():
      _require(arm.upsample > 0, f'{where}.upsample', arm.upsample, 'a positive number')
      expected = f'the task whose data {where} is to be mixed with'
      _require(run.task_model.data, 'task_model.data', '', expected)
    case schema.PromptsArm():
      prompts = arm.positive_prompts or arm.negative_prompts
      expected = 'system prompts for this side, the other, or both'
      _require(prompts, f'{where}.positive_prompts', (), expected)


def _check_activation_arm(where: str, arm: schema.ActivationArm, run: Run) -> None:
  _one_of(f'{where}.positions', arm.positions, ('answer', 'all'))
  _require(
    re.fullmatch(r'select|all|[1-9][0-9]*', arm.layer),
    f'{where}.layer',
    arm.layer,
    "'select', 'all' or the number of a layer, from 1",
  )
  if arm.layer != 'select':
    return
  # What a selection needs.
  _require(
    any(task.role == 'behaviour' for task in run.validation.values()),
    'validation',
    tuple(run.validation),
    f'a behaviour task by which {where} selects its layer, or a number as {where}.layer',
  )
  _require(
    any(arm.select_alphas), f'{where}.select_alphas', arm.select_alphas, 'strengths other than 0'
  )


def _check_task(where: str, task: schema.Task) -> None:
  _one_of(f'{where}.role', task.role, ('behaviour', 'capability'))
  _seed(f'{where}.seed', task.seed)
  _at_least(0, where, task, 'n', expected='0 (all) or more')
  if isinstance(task, schema.TableSource):
    for pair in task.columns:
      _require(
        re.fullmatch(r'\w+=.+', pair),
        f'{where}.columns',
        pair,
        "'ours=theirs', as in 'question=Frage'",
      )
  if isinstance(task, schema.TextTask):
    _at_least(1, where, task, 'max_new_tokens', 'samples')
    _temperature(where, task)
    _require(0 < task.top_p <= 1, f'{where}.top_p', task.top_p, 'a probability above 0')
    _require(0 <= task.top_k < TOP_K_LIMIT, f'{where}.top_k', task.top_k, '0 (all) to 2^31 - 1')


def _check_judge(where: str, judge: schema.Judge) -> None:
  if isinstance(judge, schema.AskedJudge):
    _require(judge.model, f'{where}.model', judge.model, 'a model to judge with')
    _require(0 <= judge.floor <= 1, f'{where}.floor', judge.floor, 'a probability')
  match judge:
    case schema.EndpointJudge():
      _check_endpoint_judge(where, judge)
    case schema.ModelJudge():
      _one_of(f'{where}.dtype', judge.dtype, DTYPES)
      _one_of(f'{where}.tokenizer', judge.tokenizer, TOKENIZERS)
      _at_least(1, where, judge, 'batch_size')
    case schema.RulesJudge():
      _regex(f'{where}.pattern', judge.pattern)


def _check_endpoint_judge(where: str, judge: schema.EndpointJudge) -> None:
  _at_least(1, where, judge, 'concurrency', 'max_tokens')
  _at_least(0, where, judge, 'temperature', 'retries', 'backoff_s')
  _at_least(0, where, judge, 'price_in', 'price_out', 'cost_cap', 'token_cap')
  _require(judge.timeout_s > 0, f'{where}.timeout_s', judge.timeout_s, 'seconds')
  # The OpenAI API gives at most 20.
  top_logprobs = judge.top_logprobs
  _require(0 <= top_logprobs <= 20, f'{where}.top_logprobs', top_logprobs, '0 to 20')
  _require(
    not judge.cost_cap or judge.price_in or judge.price_out,
    f'{where}.cost_cap',
    judge.cost_cap,
    'prices to count by (price_in, price_out), or token_cap in its place',
  )
  parameters = _json_object(f'{where}.parameters', judge.parameters)
  _no_secrets(f'{where}.parameters', parameters)


def _require(condition: Any, key: str, value: Any, expected: str) -> None:
  if not condition:
    raise InputError(f"the config key '{key}' is {value!r}, expected {expected}")


def _seed(key: str, seed: int) -> None:
  _require(0 <= seed < SEED_LIMIT, key, seed, 'a whole number from 0 to 2^32 - 1')


def _temperature(where: str, section: Any) -> None:
  value = section.temperature
  allowed = value == 0 or LEAST_TEMPERATURE <= value <= LARGEST_TEMPERATURE
  expected = '0 (greedy) or more, as float32 holds it: 1.2e-38 to 3.4e38'
  _require(allowed, f'{where}.temperature', value, expected)


def _at_least(least: int, where: str, section: Any, *keys: str, expected: str = '') -> None:
  """Raises InputError if one of the section's keys has a value below `least`.

  Args:
    expected: words for the values that are allowed; '' is '<least> or more'.
  """
  for key in keys:
    value = getattr(section, key)
    _require(value >= least, f'{where}.{key}', value, expected or f'{least} or more')


def _each_once(key: str, values: tuple, expected: str) -> None:
  _require(len(set(values)) == len(values), key, values, expected)


def _one_of(key: str, value: str, allowed: Iterable[str]) -> None:
  allowed = tuple(allowed)
  expected = f"one of {', '.join(allowed)}{did_you_mean(value, allowed)}"
  _require(value in allowed, key, value, expected)


def _name(key: str, name: str) -> None:
  _require(
    re.fullmatch(r'(?!\.)[A-Za-z0-9._-]{1,80}', name),
    key,
    name,
    '1 to 80 letters, digits, dots, dashes or underscores',
  )


def _regex(key: str, pattern: str) -> None:
  try:
    re.compile(pattern)
  except re.error as error:
    raise InputError(f"the config key '{key}' is no regular expression: {error}") from error


def _json_object(key: str, text: str) -> dict[str, Any]:
  """The object that the text of a key holds."""
  try:
    value = json_text.parse(text or '{}')
  except ValueError as error:
    raise InputError(f"the config key '{key}' is no JSON: {error}") from error
  # The message may land in a log.
  _require(isinstance(value, dict), key, redaction.redact(text), 'a JSON object')
  return value


def _no_secrets(key: str, value: Any) -> None:
  """Raises InputError if the value holds a secret: a config is written to config.json."""
  names = [f"'{name}'" for name in redaction.secrets_in(value)]
  if names:
    raise InputError(
      f"the config key '{key}' holds what looks like a secret ({', '.join(names)}), and the config "
      'is written to the workdir: put the key into the environment and name its variable in '
      'key_variable'
    )
