r"""Multiple choice behind one few-shot prefix: ours, ours without sharing, and PEFT, side by side.

  python benchmarks/prefixes.py --size=3m --items=200
  python benchmarks/prefixes.py --size=100m --items=40 --alphas=3 --repeats=3

  ours   scoring as it is: the prefix is computed once for a row of many items
  alone  the same engine with every item in a row's segment of its own
  peft   transformers and PEFT, the adapter's scale set for each alpha, rows padded by length

Each item is a question of about 60 tokens behind a prefix of 600, with four answers of one token.
Size and rounds are flags of speed.py. Rounds alternate, programs are compiled before the clocks,
and the ratio is of medians: on a machine with other work the times are not to be compared with
those of another run.
"""

import pathlib
import tempfile
from unittest import mock

import cases
import compare
import numpy as np
import speed
from absl import app, flags

flags.DEFINE_integer('items', 200, 'Questions.', lower_bound=1)
flags.DEFINE_integer('prefix', 600, 'Tokens that all questions begin with.', lower_bound=0)
flags.DEFINE_integer('alphas', 9, 'Strengths.', lower_bound=1)
flags.DEFINE_bool('peft', True, 'Time PEFT too.')
FLAGS = flags.FLAGS
LETTERS = ((11,), (12,), (13,), (14,))


def main(_) -> None:
  from weightsteer_jax import inference
  from weightsteer_jax.inference import packing

  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    cases.make_checkpoint(folder, FLAGS.size, dtype='float32')
    model, delta = speed.load_ours(folder, 'float32')
    theirs = speed.load_theirs(folder, 'float32', 8192)
    alphas = cases.ALPHAS[: FLAGS.alphas]
    rows = made_rows(model.config.vocab_size)
    requests = [
      inference.ScoreRequest((a, i), *row, 'steered', alpha)
      for a, alpha in enumerate(alphas)
      for i, row in enumerate(rows)
    ]

    def ours() -> np.ndarray:
      engine = inference.Engine(model, None, {'steered': [(delta, None)]})
      found = {result.key: result.logprob for result in engine.score(requests)}
      return np.array([found[request.key] for request in requests]).reshape(len(alphas), -1)

    def alone() -> np.ndarray:
      # Every question is a segment of its own.
      with mock.patch.object(packing, 'shared', list):
        return ours()

    def peft() -> np.ndarray:
      return theirs.score(rows, alphas)

    sides = {'ours': ours, 'alone': alone}
    if FLAGS.peft:
      sides['peft'] = peft
    result = compare.in_turns(sides, repeats=FLAGS.repeats, same=agreement)
    print({'machine': compare.machine(), 'items': FLAGS.items, 'prefix': FLAGS.prefix, **result})


def made_rows(vocabulary: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
  """(prompt, letter) of every item and letter."""
  random = np.random.default_rng(0)
  prefix = cases.tokens(random, FLAGS.prefix, vocabulary)
  rows = []
  for length in cases.lengths(random, FLAGS.items, median=60, factor=1.6, most=240):
    prompt = prefix + cases.tokens(random, length, vocabulary)
    rows += [(prompt, letter) for letter in LETTERS]
  return rows


def agreement(found: dict[str, np.ndarray]) -> dict[str, float]:
  """The largest difference from ours, nats."""
  apart = {}
  for name, scores in found.items():
    apart[name] = float(np.abs(scores - found['ours']).max())
  return apart


if __name__ == '__main__':
  app.run(main)
