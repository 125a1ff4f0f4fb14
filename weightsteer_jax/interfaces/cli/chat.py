r"""A chat in the terminal, with the base and the steered model beside it.

  weightsteer chat --model=organism --direction=sycophancy=runs/quickstart --alpha=-1

What is typed goes to the model; lines that begin with / are commands, /help lists them.
"""

from absl import flags

from weightsteer_jax.interfaces.cli import arguments, chat_flags, named_directions
from weightsteer_jax.interfaces.cli.program import Program


def _define_flags() -> None:
  flags.DEFINE_string('model', None, 'Folder, hub id, or organism for the embedded model.')
  named_directions.define()
  flags.DEFINE_string(
    'alpha', '0', 'Strength of the one direction, or NAME=STRENGTH,NAME=STRENGTH of several.'
  )
  flags.DEFINE_string('system', '', 'System prompt.')
  flags.DEFINE_float('temperature', 0.0, 'Of the draws; 0 is greedy.', lower_bound=0.0)
  flags.DEFINE_integer('seed', 0, 'Of the draws.', lower_bound=0, upper_bound=2**32 - 1)
  flags.DEFINE_integer('max_new_tokens', 256, 'Length limit of an answer, tokens.', lower_bound=1)
  flags.DEFINE_integer(
    'max_length',
    0,
    "Positions of the chat; 0 is the model's own, at most 2048.",
    lower_bound=0,
  )
  flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of parameters and activations.')
  flags.DEFINE_enum(
    'tokenizer',
    'auto',
    ['auto', 'file'],
    "Whose rules cut texts into tokens where the two differ: transformers' AutoTokenizer's, or "
    "those of tokenizer.json.",
  )
  chat_flags.define('today')
  arguments.require('model')


def _main() -> None:
  from weightsteer_jax.config import ModelChoice
  from weightsteer_jax.interfaces.serving import loading, terminal

  args = flags.FLAGS
  choice = ModelChoice(
    args.model,
    dtype=args.dtype,
    tokenizer=args.tokenizer,
    chat_template_args=chat_flags.template_args(),
    chat_date=args.chat_date,
  )
  # A slot for the base, and one for the steered model.
  loaded = loading.load(choice, named_directions.of_flag(), slots=2, max_length=args.max_length)
  chat = terminal.Chat(
    loaded,
    system=args.system,
    temperature=args.temperature,
    seed=args.seed,
    most_tokens=args.max_new_tokens,
  )
  chat.set_alpha(args.alpha)
  chat.run()


PROGRAM = Program(__doc__, _define_flags, _main)
