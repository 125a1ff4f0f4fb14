r"""Writes log-likelihoods of completions under a model, at any alphas of a direction.

  python launch/score.py --model=DIR [--direction=DIR --alphas=-1,0,1] \
    --input=x.jsonl --output=y.jsonl

The input has rows {"prompt" or "messages", "completion"}. The output has the same rows plus
{"alpha", "logprob" (nats, summed over the completion), "tokens"}. Blanks at the end of a raw prompt
count as the completion's.
"""

import _main
from absl import flags

_main.define_rows_flags()
_main.define_profile_flags()
flags.DEFINE_bool(
  'apart',
  False,
  'Tokenise a raw prompt and its completion each by itself. Default: the tokens of the whole text, '
  'cut where the prompt ends, as lm-evaluation-harness does.',
)


def main():
  from weightsteer_jax.experiments import standalone

  args = flags.FLAGS
  standalone.score(args.model, args.input, args.output, **_main.rows_options(), apart=args.apart)


if __name__ == '__main__':
  _main.start(main, together=False)
