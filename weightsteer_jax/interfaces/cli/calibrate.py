r"""Finds the strengths at which directions spend equal budgets, on both sides of 0.

  weightsteer calibrate --model=organism --direction=runs/quickstart --texts=organism:facts \
    --output=DIR

A budget is a mean KL from the base per token (kl), that of the worst 5 % of tokens (worst), or a
perplexity by the base's less 1 (perplexity), on neutral texts. All strengths go through one
compiled program. A budget that cannot be met is told, with the nearest that is.
"""

from absl import flags

from weightsteer_jax.interfaces.cli import arguments, model_flags, named_directions
from weightsteer_jax.interfaces.cli.program import Program


def _define_flags() -> None:
  model_flags.define_model('today')
  named_directions.define()
  flags.DEFINE_string(
    'texts',
    None,
    'Neutral texts: conversations (a jsonl file, a hub dataset, organism:NAME), whose answers '
    'count, or the paragraphs of a .txt file.',
  )
  flags.DEFINE_integer('num_texts', 100, 'Texts to take from the start.', lower_bound=2)
  flags.DEFINE_list('budgets', ['0.1', '0.3', '1'], 'What may be spent, comma-separated.')
  flags.DEFINE_string('measure', 'kl', 'What is spent: kl, worst or perplexity.')
  flags.DEFINE_integer(
    'seed', 0, 'Of texts that the package makes.', lower_bound=0, upper_bound=2**32 - 1
  )
  flags.DEFINE_string('output', None, 'Folder to write to; must not exist.')
  arguments.require('texts', 'output')


def _main() -> None:
  from weightsteer_jax.experiments import calibration
  from weightsteer_jax.runtime.progress import say

  args = flags.FLAGS
  options = calibration.Options(
    texts=args.texts,
    num_texts=args.num_texts,
    measure=args.measure,
    budgets=model_flags.floats(args.budgets, 'budgets'),
    seed=args.seed,
  )
  summary = calibration.calibrate(
    model_flags.choice(), named_directions.of_flag(), args.output, options
  )
  for line in calibration.table(summary['rows']):
    say(line)
  say(f'calibration: {args.output}/index.html')


PROGRAM = Program(__doc__, _define_flags, _main)
