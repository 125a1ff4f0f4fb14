"""Flags of what a chat template is told."""

from typing import Any

from absl import flags


def define(first: str) -> None:
  """Defines the flags, for verbs that render chats.

  Args:
    first: what the day is where the flag names none.
  """
  flags.DEFINE_string(
    'chat_template_args',
    '',
    'Variables of the chat template beside the messages, a JSON object, e.g. '
    '\'{"enable_thinking": false}\'.',
  )
  flags.DEFINE_string(
    'chat_date',
    '',
    f'The day, as in 2026-12-01, that a template is told which asks for it; default {first}.',
  )


def template_args() -> dict[str, Any]:
  """The variables of --chat_template_args.

  Raises:
    InputError: if the flag is no JSON object.
  """
  from weightsteer_jax.config import chat_options

  return chat_options.parse(flags.FLAGS.chat_template_args, '--chat_template_args')
