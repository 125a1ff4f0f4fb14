r"""Writes completions of a model, at any alphas of a direction.

  python launch/generate.py --model=DIR [--direction=DIR --alphas=-1,0,1] \
    --input=x.jsonl --output=y.jsonl

The input has rows {"prompt" or "messages"}. The output has the same rows plus {"alpha",
"completion", "finish"}.
"""

import _main
from absl import flags

_main.define_rows_flags()
_main.define_profile_flags()
flags.DEFINE_integer('max_new_tokens', 256, 'Length limit of a completion, tokens.', lower_bound=1)
flags.DEFINE_float('temperature', 0.0, '0 is greedy.', lower_bound=0.0)
flags.DEFINE_float(
  'top_p',
  1.0,
  'Nucleus: the smallest set of tokens with this probability.',
  lower_bound=0.0,
  upper_bound=1.0,
)
flags.DEFINE_integer('top_k', 0, 'The most likely tokens to draw from; 0 is all.', lower_bound=0)
flags.DEFINE_integer('samples', 1, 'Completions per row and alpha.', lower_bound=1)
flags.DEFINE_integer('seed', 0, 'Of sampling.')


def main():
  from weightsteer_jax.experiments import standalone

  args = flags.FLAGS
  standalone.generate(
    args.model,
    args.input,
    args.output,
    **_main.rows_options(),
    max_new_tokens=args.max_new_tokens,
    temperature=args.temperature,
    top_p=args.top_p,
    top_k=args.top_k,
    samples=args.samples,
    seed=args.seed,
  )


if __name__ == '__main__':
  _main.start(main, together=False)
