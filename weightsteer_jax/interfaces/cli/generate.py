r"""Writes completions of a model, at any alphas of a direction.

  weightsteer generate --model=DIR [--direction=DIR --alphas=-1,0,1] \
    --input=x.jsonl --output=y.jsonl

The input has rows {"prompt" or "messages"}. The output has the same rows plus {"alpha",
"completion", "finish"}.
"""

from absl import flags

from weightsteer_jax.interfaces.cli import model_flags, profile_flags
from weightsteer_jax.interfaces.cli.program import Program


def _define_flags() -> None:
  model_flags.define()
  model_flags.define_rows()
  profile_flags.define()
  flags.DEFINE_integer(
    'max_new_tokens', 256, 'Length limit of a completion, tokens.', lower_bound=1
  )
  flags.DEFINE_float('temperature', 0.0, '0 is greedy.', lower_bound=0.0)
  flags.DEFINE_float(
    'top_p',
    1.0,
    'Nucleus: the smallest set of tokens with this probability.',
    lower_bound=0.0,
    upper_bound=1.0,
  )
  flags.DEFINE_integer(
    'top_k',
    0,
    'The most likely tokens to draw from; 0 is all.',
    lower_bound=0,
    upper_bound=2**31 - 1,
  )
  flags.DEFINE_integer('samples', 1, 'Completions per row and alpha.', lower_bound=1)
  flags.DEFINE_integer('seed', 0, 'Of sampling.', lower_bound=0, upper_bound=2**32 - 1)


def _main() -> None:
  from weightsteer_jax.experiments import standalone

  args = flags.FLAGS
  standalone.generate(
    args.model,
    args.input,
    args.output,
    **model_flags.options(),
    add_bos=args.add_bos,
    max_new_tokens=args.max_new_tokens,
    temperature=args.temperature,
    top_p=args.top_p,
    top_k=args.top_k,
    samples=args.samples,
    seed=args.seed,
  )


PROGRAM = Program(__doc__, _define_flags, _main)
