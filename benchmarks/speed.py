"""The main jobs beside torch + transformers + PEFT, on the same work in one run.

  python benchmarks/speed.py --size=3m [--jobs=sweep,generation] [--folder=DIR]
  python benchmarks/speed.py --size=7b --dtype=bfloat16          # on a GPU with 80 GB or more

Each job checks that both sides computed the same, then times them in turns (see compare.py), and
writes results/<job>_<size>_<device>.json.
"""

import functools
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
flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16'], 'Of weights and activations, on both sides.'
)
flags.DEFINE_integer('layers', 0, 'Layers of the model, to try the program out; 0 is all.')
flags.DEFINE_list('jobs', ['sweep', 'generation', 'contrast'], 'Which to run.')
flags.DEFINE_string(
  'folder', '', 'Where checkpoints are made and kept; a temporary folder by default.'
)
flags.DEFINE_integer('repeats', 5, 'Rounds after the one that warms up.')
flags.DEFINE_integer(
  'peer_alphas',
  9,
  'Of the 9 alphas, those that the other side computes in a round of generation or merging; its '
  'time is told as that of all.',
)
flags.DEFINE_integer('questions', 12, 'Of the sweep, of four choices each.')
flags.DEFINE_integer('prompts', 8, 'Of the generation.')
flags.DEFINE_integer('new_tokens', 128, 'Of each continuation.')
flags.DEFINE_integer('prompt_length', 64, 'Median of the prompts, in tokens.')
flags.DEFINE_integer('tokens_at_once', 2048, 'Of a batch on the other side.')
flags.DEFINE_integer('steps', 12, 'Of each fine-tune, of 8 examples.')
flags.DEFINE_integer(
  'chat_length',
  128,
  'Median of the examples of a fine-tune, in tokens; the longest has four times as many.',
)
flags.DEFINE_integer(
  'row_length', 0, 'Tokens of a packed row on our side, if more than the longest example.'
)
flags.DEFINE_bool(
  'compile_each_round', True, 'Compile anew in every round of the sweep; else only in the first.'
)
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
      compare.save(
        f'{job}_{args.size}_{device}',
        {'job': job, 'size': args.size, 'dtype': args.dtype, 'result': result, **machine},
      )


@functools.cache
def load_ours(folder: pathlib.Path, dtype: str) -> tuple[Any, Any]:
  """(model, the adapter's delta)."""
  from weightsteer_jax import models
  from weightsteer_jax.directions import adapters
  from weightsteer_jax.directions.streamed import checkpoints

  with checkpoints.open_checkpoint(folder / 'base') as checkpoint:
    delta = adapters.to_delta(adapters.read(folder / 'adapter'), checkpoint)
  return models.load(folder / 'base', dtype=dtype), delta


@functools.cache
def load_theirs(folder: pathlib.Path, dtype: str, tokens_at_once: int) -> Any:
  """The checkpoint with its adapter, at any alpha."""
  import peers

  return peers.Peft(folder / 'base', folder / 'adapter', dtype=dtype, tokens_at_once=tokens_at_once)


def sweep(folder: pathlib.Path, args: Any) -> dict[str, Any]:
  """9 alphas x multiple choice; our compilation is in the time of 'ours', and not in that of
  'ours_compiled'."""
  import jax
  import numpy as np

  from weightsteer_jax import inference

  model, delta = load_ours(folder, args.dtype)
  theirs = load_theirs(folder, args.dtype, args.tokens_at_once)
  asked = cases.questions(
    args.questions, vocabulary=model.config.vocab_size, prompt=args.prompt_length, choices=4
  )
  rows = [(question.prompt, choice) for question in asked for choice in question.choices]
  requests = [
    inference.ScoreRequest((i, j), *row, 'steered', alpha)
    for i, alpha in enumerate(cases.ALPHAS)
    for j, row in enumerate(rows)
  ]

  def ours():
    engine = inference.Engine(model, None, {'steered': [(delta, None)]}, batch_size=args.batch_size)
    scores = np.zeros((len(cases.ALPHAS), len(rows)))
    for result in engine.score(requests):
      scores[result.key] = result.logprob
    return scores

  def ours_with_compilation():
    jax.clear_caches()
    return ours()

  some = cases.ALPHAS[: args.peer_alphas]
  sides = {
    compare.OURS: ours_with_compilation if args.compile_each_round else ours,
    'peft': lambda: theirs.score(rows, cases.ALPHAS),
  }
  merging = {'merge_and_reload': lambda: theirs.score_merged(rows, some, folder / 'merged')}
  if args.peer_alphas == len(cases.ALPHAS):
    sides |= merging
  found = compare.in_turns(
    sides, repeats=args.repeats, same=lambda found: agreement(found, args.dtype)
  )
  if args.compile_each_round:
    found['seconds']['ours_compiled'] = compare.spread(
      [compare.timed(ours)[0] for _ in range(args.repeats)]
    )
  if args.peer_alphas < len(cases.ALPHAS):
    took = compare.timed(merging['merge_and_reload'])[0] * len(cases.ALPHAS) / len(some)
    found['seconds']['merge_and_reload'] = compare.spread([took]) | {
      'alphas timed, once': len(some)
    }
    found['ratio']['merge_and_reload'] = compare.spread(
      [took / found['seconds'][compare.OURS]['median']]
    )
  count = sum(len(prompt) + len(choice) - 1 for prompt, choice in rows) * len(cases.ALPHAS)
  ours_count = sum(
    len(one.prompt) + sum(len(choice) - 1 for choice in one.choices) for one in asked
  ) * len(cases.ALPHAS)
  return found | {
    'rows': len(rows) * len(cases.ALPHAS),
    'tokens': count,
    'tokens that ours computes': ours_count,
    'tokens_per_second': {name: count / one['median'] for name, one in found['seconds'].items()},
  }


def agreement(found: dict[str, Any], dtype: str) -> dict[str, Any]:
  """Differences from ours, nats per completion: the largest, and the mean.

  In float32 nothing but the order of sums differs. In bfloat16 each side rounds in its own places;
  that is held against a bound that an error of a kind other than rounding would break.
  """
  import numpy as np

  differences = {
    name: np.abs(scores - found[compare.OURS][: len(scores)])
    for name, scores in found.items()
    if name != compare.OURS
  }
  limit = 2e-3 if dtype == 'float32' else 2.0
  if not max(x.mean() for x in differences.values()) < limit:
    raise AssertionError(
      f'the sides do not agree within {limit} nats on average: '
      f'{ {name: x.mean(1) for name, x in differences.items()} }'
    )
  return {
    'largest difference in nats': {name: float(x.max()) for name, x in differences.items()},
    'mean difference in nats': {name: float(x.mean()) for name, x in differences.items()},
    'mean of ours': float(found[compare.OURS].mean()),
  }


def generation(folder: pathlib.Path, args: Any) -> dict[str, Any]:
  """9 alphas x prompts x so many tokens, greedy."""
  import numpy as np

  from weightsteer_jax import inference

  model, delta = load_ours(folder, args.dtype)
  theirs = load_theirs(folder, args.dtype, args.tokens_at_once)
  prompts = [
    question.prompt
    for question in cases.questions(
      args.prompts, vocabulary=model.config.vocab_size, prompt=args.prompt_length, choices=1
    )
  ]
  requests = [
    inference.GenerateRequest((i, j), prompt, args.new_tokens, 'steered', alpha)
    for i, alpha in enumerate(cases.ALPHAS)
    for j, prompt in enumerate(prompts)
  ]

  def ours():
    engine = inference.Engine(
      model, None, {'steered': [(delta, None)]}, batch_size=max(args.batch_size, len(requests))
    )
    tokens = np.zeros((len(cases.ALPHAS), len(prompts), args.new_tokens), int)
    for result in engine.generate(requests):
      tokens[result.key] = result.tokens
    return tokens

  some = cases.ALPHAS[: args.peer_alphas]

  def same(found):
    ours = found[compare.OURS][: len(some)]
    alike = (found['peft'] == ours).all(axis=2)
    if args.dtype == 'float32' and alike.mean() < 0.95:
      raise AssertionError(f'only {alike.mean():.3f} of the continuations are the same')
    return {
      'share of continuations alike': float(alike.mean()),
      'share of tokens alike': float((found['peft'] == ours).mean()),
    }

  found = compare.in_turns(
    {compare.OURS: ours, 'peft': lambda: theirs.generate(prompts, some, args.new_tokens)},
    repeats=args.repeats,
    shares={'peft': len(some) / len(cases.ALPHAS)},
    same=same,
  )
  count = len(requests) * args.new_tokens
  return found | {
    'continuations': len(requests),
    'tokens': count,
    'tokens_per_second': {name: count / one['median'] for name, one in found['seconds'].items()},
  }


def contrast(folder: pathlib.Path, args: Any) -> dict[str, Any]:
  """Two LoRA fine-tunes on chats of mixed length, validated before and after, and saved;
  compilation is not in it."""
  import json
  import shutil

  import numpy as np
  import peers

  from weightsteer_jax import config as configs
  from weightsteer_jax import data, finetune
  from weightsteer_jax.finetune import optimizer
  from weightsteer_jax.finetune import step as steps
  from weightsteer_jax.runtime import tree

  model = load_ours(folder, args.dtype)[0]
  load_theirs.cache_clear()  # Makes room for the model that is trained.
  options = configs.FineTune(
    kind='lora',
    rank=cases.RANK // 2,
    lora_alpha=16.0,
    learning_rates=(1e-4,),
    steps=args.steps,
    batch_size=8,
    warmup_steps=1,
    eval_every=args.steps,
    patience=0,
  )
  sides = {}
  for seed, side in enumerate(('positive', 'negative')):
    made = cases.conversations(
      8 * args.steps + 4, vocabulary=model.config.vocab_size, length=args.chat_length, seed=seed
    )
    examples = [
      data.Example(np.array(ids, np.int32), np.arange(len(ids)) >= answer, f'{side} {i}')
      for i, (ids, answer) in enumerate(made)
    ]
    sides[side] = examples[4:], examples[:4]
  longest = data.batches.row_length_for(
    max(len(example) for parts in sides.values() for part in parts for example in part)
  )
  row_length = max(longest, args.row_length)
  first = steps.initial_state_fn(
    model.config, 'lora', options.rank, options.lora_alpha, optimizer.adamw(options)
  )(0).delta
  trainer = peers.Trainer(folder / 'base', dtype=args.dtype, rank=options.rank)

  def ours():
    fits = [
      finetune.Fit(*parts, folder / 'ours' / side, row_length=row_length)
      for side, parts in sides.items()
    ]
    finetune.run_together(model, fits, options, progress=False)
    rows = [[json.loads(line) for line in open(fit.workdir / 'metrics.jsonl')] for fit in fits]
    shutil.rmtree(folder / 'ours')
    return np.array([[row['train_loss'] for row in side if 'train_loss' in row] for side in rows])

  def theirs():
    found = []
    for train, validation in sides.values():
      batches = data.Batches(train, batch_size=options.batch_size, seed=0)
      chosen = [[train[i] for i in batches.indices(step)] for step in range(options.steps)]
      found.append(
        trainer.fit(_first_factors(first), chosen, validation, options, folder / 'theirs')
      )
    return np.array(found)

  def same(found):
    difference = float(np.abs(found['peft'] - found[compare.OURS]).max())
    if difference > (1e-3 if args.dtype == 'float32' else 0.05):
      raise AssertionError(f'the losses differ by up to {difference}: {found}')
    return {
      'largest difference of losses': difference,
      'losses of ours': found[compare.OURS].round(4).tolist(),
    }

  shutil.rmtree(
    folder / 'ours', ignore_errors=True
  )  # Of a run that was ended: it would be gone on with.
  found = compare.in_turns({compare.OURS: ours, 'peft': theirs}, repeats=args.repeats, same=same)
  count = sum(len(example) for train, _ in sides.values() for example in train)
  return found | {
    'steps': 2 * args.steps,
    'tokens': count,
    'trained': tree.count(first),
    'tokens_per_second': {name: count / one['median'] for name, one in found['seconds'].items()},
  }


def _first_factors(delta: Any) -> dict[str, Any]:
  """{module of transformers: A as torch has it, [R, inputs]}."""
  import numpy as np

  from weightsteer_jax import models
  from weightsteer_jax.runtime import tree

  found = {}
  for path, leaf in tree.flatten(delta, models.is_delta_leaf).items():
    _, block, name, _ = path.split('/')
    part = 'self_attn' if block == 'attn' else 'mlp'
    for layer, a in enumerate(np.asarray(leaf.a)):
      found[f'model.layers.{layer}.{part}.{name}_proj'] = a.reshape(-1, a.shape[-1]).T.copy()
  return found


JOBS = {'sweep': sweep, 'generation': generation, 'contrast': contrast}

if __name__ == '__main__':
  app.run(main)
