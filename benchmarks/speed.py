"""The main jobs beside torch + transformers + PEFT, on the same work in one run.

  python benchmarks/speed.py --size=3m [--jobs=sweep,generation] [--folder=DIR]
  python benchmarks/speed.py --size=7b --dtype=bfloat16          # on a GPU with 80 GB or more

Each job checks that both sides computed the same, then times them in turns (see compare.py), and writes
results/<job>_<size>_<device>.json.
"""
import os
import pathlib
import tempfile
from typing import Any

from absl import app, flags

# Both libraries work on one device.
os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.5')

import cases
import compare

flags.DEFINE_enum('size', '3m', list(cases.SIZES), 'Of the model; see cases.py.')
flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of weights and activations, on both sides.')
flags.DEFINE_integer('layers', 0, 'Layers of the model, to try the program out; 0 is all.')
flags.DEFINE_list('jobs', ['sweep', 'generation', 'contrast'], 'Which to run.')
flags.DEFINE_string('folder', '', 'Where checkpoints are made and kept; a temporary folder by default.')
flags.DEFINE_integer('repeats', 5, 'Rounds after the one that warms up.')
flags.DEFINE_integer('questions', 12, 'Of the sweep, of four choices each.')
flags.DEFINE_integer('prompts', 8, 'Of the generation.')
flags.DEFINE_integer('new_tokens', 128, 'Of each continuation.')
flags.DEFINE_integer('prompt_length', 64, 'Median of the prompts, in tokens.')
flags.DEFINE_integer('tokens_at_once', 2048, 'Of a batch on the other side.')
flags.DEFINE_integer('batch_size', 64, 'Rows of a batch on our side.')


def main(argv):
  del argv
  args = flags.FLAGS
  import torch
  torch.set_num_threads(os.cpu_count())
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(args.folder or temporary) / f'{args.size}-{args.dtype}-{args.layers}'
    cases.make_checkpoint(folder, args.size, dtype=args.dtype, layers=args.layers)
    machine = compare.machine()
    for job in args.jobs:
      result = JOBS[job](folder, args)
      device = 'cpu' if machine['device'] == 'cpu' else machine['device'].split()[-1].lower()
      compare.save(f'{job}_{args.size}_{device}', {'job': job, 'size': args.size, 'dtype': args.dtype, 'result': result, **machine})


def load_ours(folder: pathlib.Path, dtype: str) -> tuple[Any, Any]:
  """(model, the adapter's delta)."""
  from weightsteer_jax import models
  from weightsteer_jax.directions import checkpoints, peft_adapter, peft_delta
  with checkpoints.open_checkpoint(folder / 'base') as checkpoint:
    delta = peft_delta.to_delta(peft_adapter.read(folder / 'adapter'), checkpoint)
  return models.load(folder / 'base', dtype=dtype), delta


def sweep(folder: pathlib.Path, args: Any) -> dict[str, Any]:
  """9 alphas x multiple choice; our compilation is in the time of 'ours', and not in that of 'ours_compiled'."""
  import jax
  import numpy as np
  import peers
  from weightsteer_jax import evaluation
  model, delta = load_ours(folder, args.dtype)
  theirs = peers.Peft(folder / 'base', folder / 'adapter', dtype=args.dtype, tokens_at_once=args.tokens_at_once)
  asked = cases.questions(args.questions, vocabulary=model.config.vocab_size, prompt=args.prompt_length, choices=4)
  rows = [(question.prompt, choice) for question in asked for choice in question.choices]
  requests = [evaluation.ScoreRequest((i, j), *row, 'steered', alpha)
              for i, alpha in enumerate(cases.ALPHAS) for j, row in enumerate(rows)]

  def ours():
    engine = evaluation.Engine(model, None, {'steered': [(delta, None)]}, batch_size=args.batch_size)
    scores = np.zeros((len(cases.ALPHAS), len(rows)))
    for result in engine.score(requests):
      scores[result.key] = result.logprob
    return scores

  def ours_with_compilation():
    jax.clear_caches()
    return ours()

  sides = {compare.OURS: ours_with_compilation, 'peft': lambda: theirs.score(rows, cases.ALPHAS),
           'merge_and_reload': lambda: theirs.score_merged(rows, cases.ALPHAS, folder / 'merged')}
  found = compare.in_turns(sides, repeats=args.repeats, same=lambda found: agreement(found, args.dtype))
  compiled = [compare.timed(ours)[0] for _ in range(args.repeats)]
  found['seconds']['ours_compiled'] = compare.spread(compiled)
  count = sum(len(prompt) + len(choice) - 1 for prompt, choice in rows) * len(cases.ALPHAS)
  return found | {'rows': len(rows) * len(cases.ALPHAS), 'tokens': count,
                  'tokens_per_second': {name: count / one['median'] for name, one in found['seconds'].items()}}


def agreement(found: dict[str, Any], dtype: str) -> dict[str, float]:
  """The largest differences from ours, nats."""
  import numpy as np
  differences = {name: float(np.abs(scores - found[compare.OURS]).max()) for name, scores in found.items()}
  limit = 2e-3 if dtype == 'float32' else 1.0
  if max(differences.values()) > limit:
    raise AssertionError(f'the sides do not agree within {limit} nats: {differences}')
  return {'largest difference in nats': differences, 'mean of ours': float(found[compare.OURS].mean())}


def generation(folder: pathlib.Path, args: Any) -> dict[str, Any]:
  """9 alphas x prompts x so many tokens, greedy."""
  import numpy as np
  import peers
  from weightsteer_jax import evaluation
  model, delta = load_ours(folder, args.dtype)
  theirs = peers.Peft(folder / 'base', folder / 'adapter', dtype=args.dtype, tokens_at_once=args.tokens_at_once)
  prompts = [question.prompt for question in cases.questions(args.prompts, vocabulary=model.config.vocab_size,
                                                             prompt=args.prompt_length, choices=1)]
  requests = [evaluation.GenerateRequest((i, j), prompt, args.new_tokens, 'steered', alpha)
              for i, alpha in enumerate(cases.ALPHAS) for j, prompt in enumerate(prompts)]

  def ours():
    engine = evaluation.Engine(model, None, {'steered': [(delta, None)]}, batch_size=max(args.batch_size, len(requests)))
    tokens = np.zeros((len(cases.ALPHAS), len(prompts), args.new_tokens), int)
    for result in engine.generate(requests):
      tokens[result.key] = result.tokens
    return tokens

  def same(found):
    alike = (found['peft'] == found[compare.OURS]).all(axis=2)
    if args.dtype == 'float32' and alike.mean() < 0.95:
      raise AssertionError(f'only {alike.mean():.3f} of the continuations are the same')
    return {'share of continuations alike': float(alike.mean()), 'share of tokens alike': float((found['peft'] == found[compare.OURS]).mean())}

  found = compare.in_turns({compare.OURS: ours, 'peft': lambda: theirs.generate(prompts, cases.ALPHAS, args.new_tokens)},
                           repeats=args.repeats, same=same)
  count = len(requests) * args.new_tokens
  return found | {'continuations': len(requests), 'tokens': count,
                  'tokens_per_second': {name: count / one['median'] for name, one in found['seconds'].items()}}


JOBS = {'sweep': sweep, 'generation': generation}

if __name__ == '__main__':
  app.run(main)
