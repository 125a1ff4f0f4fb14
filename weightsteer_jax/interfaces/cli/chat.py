r"""A chat in the terminal, with the base and the steered model beside it.

  weightsteer chat --model=organism --direction=sycophancy=runs/quickstart --alpha=-1

What is typed goes to the model; lines that begin with / are commands, /help lists them.
"""

from absl import flags

from weightsteer_jax.interfaces.cli import model_flags, named_directions
from weightsteer_jax.interfaces.cli.program import Program


def _define_flags() -> None:
  model_flags.define_model('today')
  named_directions.define()
  flags.DEFINE_string(
    'alpha', '', 'Strength of the one direction, or NAME=STRENGTH,NAME=STRENGTH of several; else 0.'
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


def _check() -> None:
  from weightsteer_jax.interfaces.serving import typed

  directions = tuple(named_directions.of_flag())
  if flags.FLAGS.alpha:
    typed.alphas(flags.FLAGS.alpha, directions)


def _main() -> None:
  from weightsteer_jax.interfaces.serving import loading, terminal

  args = flags.FLAGS
  # A slot for the base, and one for the steered model.
  loaded = loading.load(
    model_flags.choice(), named_directions.of_flag(), slots=2, max_length=args.max_length
  )
  chat = terminal.Chat(
    loaded,
    system=args.system,
    temperature=args.temperature,
    seed=args.seed,
    most_tokens=args.max_new_tokens,
  )
  if args.alpha:
    chat.set_alpha(args.alpha)
  chat.run()


PROGRAM = Program(__doc__, _define_flags, _main, check=_check)
