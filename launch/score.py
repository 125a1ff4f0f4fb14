"""Log-likelihoods of completions under a model, at any alphas of a direction.

  python launch/score.py --model=DIR [--direction=DIR --alphas=-1,0,1] --input=x.jsonl --output=y.jsonl

Rows {"prompt" or "messages", "completion"} in; the same rows plus {"alpha", "logprob" (nats, summed over the completion), "tokens"} out.
"""
from absl import flags

import _main

flags.DEFINE_string('model', None, 'Folder, hub id, or organism.')
flags.DEFINE_string('direction', '', 'Direction to apply; without it only alpha 0 makes sense.')
flags.DEFINE_list('alphas', ['0'], 'Strengths, comma-separated.')
flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of parameters and activations.')
flags.DEFINE_integer('batch_size', 32, 'Rows per batch.', lower_bound=1)
flags.DEFINE_bool('add_bos', False, "Begin raw prompts with the tokenizer's beginning-of-sequence token.")
flags.DEFINE_string('input', None, 'jsonl file to read.')
flags.DEFINE_string('output', None, 'jsonl file to write; must not exist.')
flags.mark_flags_as_required(['model', 'input', 'output'])


def main():
  from weightsteer_jax import stages
  args = flags.FLAGS
  stages.score(args.model, args.input, args.output, direction=args.direction, alphas=_main.floats(args.alphas, 'alphas'), dtype=args.dtype,
               batch_size=args.batch_size, add_bos=args.add_bos)


if __name__ == '__main__':
  _main.start(main)
