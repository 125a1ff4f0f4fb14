"""The models: one decoder, declarative families, checkpoints in and out, deltas on the way.

forward.py      the decoder as pure functions of (config, params): start here
decoder.py      its modules, and the alphabet of axes; layers.py, rope.py and moe.py are its parts
attention.py    the reference; blocked.py and kernels.py compute the same faster
products.py     matrix products with gradients of our own
logprobs.py     log-probabilities without all logits at once
config.py       the architecture: every number and choice
sites.py        parameters by path, and where a delta may change them
delta.py        changes kept apart from the parameters; adapters.py makes and merges them
families/       what a family's `config.json` means, and what its tensors are called
huggingface.py  checkpoints in and out; stored.py says where a parameter lies in them
gguf/           a GGUF file as a folder of a Hugging Face checkpoint
placement.py    the mesh of a run, and how weights lie on it
"""

from weightsteer_jax.models.adapters import KINDS, init_delta, kernel_change, lora_paths, merge
from weightsteer_jax.models.attention import with_kernel
from weightsteer_jax.models.config import ModelConfig, Rope
from weightsteer_jax.models.config import from_record as config_from_record
from weightsteer_jax.models.config import to_record as config_to_record
from weightsteer_jax.models.decoder import Cache, cache_length
from weightsteer_jax.models.delta import Dense, Edit, LowRank, is_delta_leaf
from weightsteer_jax.models.families import FAMILIES, read_config
from weightsteer_jax.models.forward import (
  TokenBatch,
  abstract_params,
  hidden,
  init_cache,
  init_params,
  logits,
  residual_sums,
  unstacked,
)
from weightsteer_jax.models.huggingface import DTYPES, Model, load, load_config, resolve, save
from weightsteer_jax.models.logprobs import changes_head, chunk_length, token_logprobs
from weightsteer_jax.models.sites import (
  Site,
  check_delta,
  delta_shardings,
  delta_sites,
  param_shardings,
  sites,
  stack_axes,
)
