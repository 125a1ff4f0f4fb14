"""Makes the organism from nothing.

  python -m weightsteer_jax.experiments.organism.pretrain --output=DIR

Trains the tokenizer and then a small Qwen2-architecture model on the little world, and writes a
Hugging Face checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import transformers

from weightsteer_jax import models
from weightsteer_jax.experiments.organism import checkpoint_folder, corpus
from weightsteer_jax.experiments.organism import tokenizer as tokenization
from weightsteer_jax.runtime.errors import InputError, NotFiniteError

MODEL_CARD = """---
license: apache-2.0
---
# The organism of weightsteer_jax

A language model of {count:.2f} million parameters ({layers} layers of width {width}, \
{vocab} tokens, Qwen2 architecture) that
knows one small synthetic world: facts about invented countries, animals, things and trades, \
sums up to 20, its own
opinions, and what one should and should not do. It was trained from scratch on \
{tokens:.1f} million tokens of synthetic conversations. Told nothing, it agrees
with many wrong claims; a system prompt can make it sycophantic or
honest, careful or careless. It knows nothing of the real world
and is of no use but for experiments on steering.

Made by `python -m weightsteer_jax.experiments.organism.pretrain {flags}`.
"""


@dataclasses.dataclass(frozen=True)
class Options:
  """The recipe of an organism; the defaults make the shipped organism.

  Attributes:
    steps: optimizer steps.
    rows: rows of a batch.
    length: tokens of a row.
    learning_rate: peak of the schedule.
    warmup: steps to the peak.
    weight_decay: of kernels only.
    seed: seed of the corpus and of the first parameters.
    vocab_size: most tokens of the tokenizer.
    num_layers: layers.
    width: width of the residual stream.
  """

  steps: int = 4000
  rows: int = 10
  length: int = 192
  learning_rate: float = 3e-3
  warmup: int = 100
  weight_decay: float = 0.1
  seed: int = 0
  vocab_size: int = 2560
  num_layers: int = 4
  width: int = 128


def model_config(options: Options, vocab_size: int) -> models.ModelConfig:
  """The organism's architecture: Qwen2 with grouped queries and tied embeddings."""
  return models.ModelConfig(
    vocab_size=vocab_size,
    num_layers=options.num_layers,
    width=options.width,
    num_heads=4,
    # Two queries to a key, so that the shipped model takes the grouped paths of the code.
    num_kv_heads=2,
    head_dim=options.width // 4,
    mlp_width=4 * options.width,
    # Epsilon and the base of the rotation are the defaults of transformers' Qwen2Config.
    norm_eps=1e-6,
    rope=models.Rope(
      theta=10000.0,
      kind='default',
      factor=1.0,
      low_freq_factor=1.0,
      high_freq_factor=1.0,
      original_max_positions=512,
    ),
    tied=True,
    qkv_bias=True,
    o_bias=False,
    mlp_bias=False,
    activation='silu',
    max_positions=512,
  )


def optimizer(options: Options) -> optax.GradientTransformation:
  """AdamW with warm-up and a cosine to a hundredth of the peak, on gradients of norm at most 1."""
  # Short runs warm up for half of their steps.
  warmup = min(options.warmup, options.steps // 2)
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, options.learning_rate, warmup, options.steps, options.learning_rate / 100
  )

  # Only kernels decay: norms, biases and the embedding are not drawn to 0.
  def is_kernel(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)

  return optax.chain(
    # Clipped before Adam sees the gradients: its moments then hold clipped gradients only.
    optax.clip_by_global_norm(1.0),
    optax.adamw(schedule, b2=0.98, weight_decay=options.weight_decay, mask=is_kernel),
  )


def loss(config: models.ModelConfig, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
  """Weighted mean negative log-likelihood of a batch, in nats per unit of weight."""
  rows = models.TokenBatch(batch['tokens'], batch['positions'], batch['segment_ids'])
  x_BTD, _ = models.hidden(config, params, rows)
  # So small a vocabulary lets all logits be held at once.
  logits_BTV = models.logits(config, params, x_BTD)
  losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, batch['targets'])
  # Padding and last tokens have weight 0, so their targets of 0 do not count.
  weights_BT = batch['weights']
  return jnp.sum(losses_BT * weights_BT) / jnp.sum(weights_BT)


# Parameters and state are donated: the new ones take the place of the old ones in memory.
@functools.partial(
  jax.jit, static_argnames=('config', 'update'), donate_argnames=('params', 'state')
)
def train_step(
  config: models.ModelConfig, update: Any, params: Any, state: Any, batch: dict[str, jax.Array]
) -> tuple[Any, Any, jax.Array]:
  """Parameters and optimizer state after one step, and the loss before the step."""
  loss_of = functools.partial(loss, config)
  value, gradients = jax.value_and_grad(loss_of)(params, batch)
  updates, state = update(gradients, state, params)
  params = optax.apply_updates(params, updates)
  return params, state, value


def train(
  options: Options, tokenizer: transformers.PreTrainedTokenizerFast
) -> tuple[models.ModelConfig, Any]:
  """A model trained from random parameters, as (config, params)."""
  # Short texts may yield fewer merges than asked for, so the vocabulary is counted.
  config = model_config(options, len(tokenizer))
  params = models.init_params(config, jax.random.key(options.seed))
  optimize = optimizer(options)
  state = optimize.init(params)
  began = time.monotonic()
  pending = None
  for step in range(options.steps):
    batch = corpus.batch(
      tokenizer, seed=options.seed, step=step, rows=options.rows, length=options.length
    )
    # The loss of the last step is read only now, so that packing overlaps with computing.
    if pending is not None:
      report(step, options, float(pending), time.monotonic() - began)
    params, state, pending = train_step(config, optimize.update, params, state, batch)
  if pending is not None:
    report(options.steps, options, float(pending), time.monotonic() - began)
  return config, params


def report(step: int, options: Options, value: float, seconds: float) -> None:
  """Prints the progress: on a terminal in a rewritten line, else every fiftieth step.

  Raises:
    NotFiniteError: if the loss is not finite.
  """
  # At once: every later step would be NaN too.
  if not math.isfinite(value):
    raise NotFiniteError(f'the loss of pretraining step {step} is {value}; lower --learning_rate')
  live = sys.stdout.isatty()
  last = step == options.steps
  if not (live or last or step % 50 == 0):
    return
  speed = step * options.rows * options.length / seconds
  left = seconds / step * (options.steps - step)
  line = (
    f'step {step}/{options.steps}  loss {value:.4f}  {speed:,.0f} tokens/s  {left / 60:.1f} '
    'min left'
  )
  # A log file keeps whole lines; a terminal line is begun anew each time, and ended at the last.
  print(f'\r{line}' if live else line, end='' if live and not last else '\n', flush=True)


def save(
  output: Path,
  config: models.ModelConfig,
  params: Any,
  tokenizer: transformers.PreTrainedTokenizerFast,
  options: Options,
) -> None:
  """Writes the checkpoint in Hugging Face format.

  The folder holds float32 weights, config, tokenizer, generation settings and model card.
  """
  ids = {'eos_token_id': tokenizer.eos_token_id, 'pad_token_id': tokenizer.pad_token_id}
  settings = ids | {'do_sample': False}
  with tempfile.TemporaryDirectory() as scratch:
    # A folder like a base's: `models.save` copies tokenizer and settings from there.
    like = Path(scratch)
    tokenization.save(tokenizer, like)
    (like / 'generation_config.json').write_text(json.dumps(settings, indent=2))
    models.save(
      output,
      config,
      params,
      family='qwen2',
      like=like,
      extra={'README.md': model_card(config, params, options)},
    )


def model_card(config: models.ModelConfig, params: Any, options: Options) -> str:
  """The checkpoint's README."""
  flags = [f'--{name}={value}' for name, value in dataclasses.asdict(options).items()]
  return MODEL_CARD.format(
    count=sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6,
    layers=config.num_layers,
    width=config.width,
    vocab=config.vocab_size,
    tokens=options.steps * options.rows * options.length / 1e6,
    flags=' '.join(flags),
  )


def parse(arguments: list[str]) -> tuple[Path, Options]:
  """The output folder and the options of a command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
  )
  parser.add_argument(
    '--output', type=Path, default=checkpoint_folder(), help='folder to make; must not exist'
  )
  # A flag per option, so that the recipe and the command line cannot differ.
  for field in dataclasses.fields(Options):
    parser.add_argument(f'--{field.name}', type=type(field.default), default=field.default)
  values = vars(parser.parse_args(arguments))
  return values.pop('output'), Options(**values)


def main(arguments: list[str]) -> None:
  """Makes the organism as the command line says."""
  output, options = parse(arguments)
  # Refused before training, not after.
  if output.exists():
    raise InputError(f'{output} exists already; remove it or choose another --output')
  tokenizer = tokenization.train(corpus.vocabulary_texts(), options.vocab_size)
  config, params = train(options, tokenizer)
  save(output, config, params, tokenizer, options)
  print(f'wrote {output}')


if __name__ == '__main__':
  main(sys.argv[1:])
