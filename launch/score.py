r"""Writes log-likelihoods of completions under a model, at any alphas of a direction.

  python launch/score.py --model=DIR [--direction=DIR --alphas=-1,0,1] \
    --input=x.jsonl --output=y.jsonl

The input has rows {"prompt" or "messages", "completion"}. The output has the same rows plus
{"alpha", "logprob" (nats, summed over the completion), "tokens"}.
"""

import _main
from absl import flags

_main.define_rows_flags()
_main.define_profile_flags()


def main():
  from weightsteer_jax.experiments import standalone

  args = flags.FLAGS
  standalone.score(args.model, args.input, args.output, **_main.rows_options())


if __name__ == '__main__':
  _main.start(main, together=False)
