r"""Writes log-likelihoods of completions under a model, at any alphas of a direction.

  weightsteer score --model=DIR [--direction=DIR --alphas=-1,0,1] \
    --input=x.jsonl --output=y.jsonl

The input has rows {"prompt" or "messages", "completion"}. The output has the same rows plus
{"alpha", "logprob" (nats, summed over the completion), "tokens"}. Blanks at the end of a raw prompt
count as the completion's.
"""

from absl import flags

from weightsteer_jax.interfaces.cli import arguments, model_flags, profile_flags
from weightsteer_jax.interfaces.cli.program import Program


def _define_flags() -> None:
  model_flags.define()
  model_flags.define_rows()
  arguments.require('input', 'output')
  profile_flags.define()
  flags.DEFINE_bool(
    'apart',
    False,
    'Tokenise a raw prompt and its completion each by itself. Default: the tokens of the whole '
    'text, cut where the prompt ends, as lm-evaluation-harness does.',
  )


def _main() -> None:
  from weightsteer_jax.experiments import standalone

  args = flags.FLAGS
  standalone.score(
    args.model,
    args.input,
    args.output,
    **model_flags.options(),
    add_bos=args.add_bos,
    apart=args.apart,
  )


PROGRAM = Program(__doc__, _define_flags, _main)
