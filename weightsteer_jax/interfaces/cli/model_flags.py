"""Flags of verbs that ask a model something at some alphas."""

from typing import Any

from absl import flags

from weightsteer_jax.config import ModelChoice
from weightsteer_jax.interfaces.cli import arguments, chat_flags
from weightsteer_jax.runtime.errors import InputError


def define() -> None:
  """Defines the model, the direction and its strengths."""
  define_model("the day on the direction's record, or else today")
  flags.DEFINE_string(
    'direction',
    '',
    "Direction to apply, or the folder of a run, for the run's own; without it only alpha 0 makes "
    'sense.',
  )
  flags.DEFINE_list('alphas', ['0'], 'Strengths, comma-separated; 0 is the model as it is.')
  flags.DEFINE_integer('batch_size', 32, 'Rows per batch.', lower_bound=1)


def define_model(day: str) -> None:
  """Defines the model, and what its tokenizer and chat template are told.

  Args:
    day: what a dated template is told where the flag names no day.
  """
  flags.DEFINE_string('model', None, 'Folder, hub id, or organism for the embedded model.')
  flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of parameters and activations.')
  flags.DEFINE_enum(
    'tokenizer',
    'auto',
    ['auto', 'file'],
    "Whose rules cut texts into tokens where the two differ: transformers' AutoTokenizer's, or "
    "those of tokenizer.json.",
  )
  chat_flags.define(day)
  arguments.require('model')


def choice() -> ModelChoice:
  """The model of `define_model`."""
  args = flags.FLAGS
  return ModelChoice(
    args.model,
    dtype=args.dtype,
    tokenizer=args.tokenizer,
    chat_template_args=chat_flags.template_args(),
    chat_date=args.chat_date,
  )


def options() -> dict[str, Any]:
  """The flags but the model, as arguments of a function of standalone.py."""
  args = flags.FLAGS
  return dict(
    direction=args.direction,
    alphas=floats(args.alphas, 'alphas'),
    dtype=args.dtype,
    batch_size=args.batch_size,
    tokenizer_choice=args.tokenizer,
    chat_template_args=chat_flags.template_args(),
    chat_date=args.chat_date,
  )


def define_rows() -> None:
  """Defines the flags of verbs that read rows and write rows."""
  flags.DEFINE_string('input', None, 'jsonl file to read.')
  flags.DEFINE_string('output', None, 'jsonl file to write; must not exist.')
  flags.DEFINE_bool(
    'add_bos', False, "Begin raw prompts with the tokenizer's beginning-of-sequence token."
  )


def floats(values: list[str], flag: str) -> tuple[float, ...]:
  """The numbers of a list flag.

  Raises:
    InputError: if a value is no number.
  """
  try:
    return tuple(float(value) for value in values)
  except ValueError as error:
    raise InputError(
      f'--{flag}={",".join(values)}: expected numbers separated by commas'
    ) from error
