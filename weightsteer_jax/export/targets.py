"""Who is to load a PEFT adapter, what each of them takes, and what is refused or folded for
them.
"""

import dataclasses
from collections.abc import Iterable, Mapping

from weightsteer_jax import models
from weightsteer_jax.directions.direction import Direction
from weightsteer_jax.models import Dense, LowRank
from weightsteer_jax.models.families import FAMILIES, TensorRow
from weightsteer_jax.models.stored import EMBEDDING, HEAD
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean

TABLES = {'embed/embedding': EMBEDDING, 'lm_head/kernel': HEAD}
MERGED = 'export merged weights, as hf or orbax'


@dataclasses.dataclass(frozen=True)
class Target:
  """What a library loads of a PEFT adapter.

  Attributes:
    wholes: embeddings and heads saved whole (`modules_to_save`).
    table_families: those whose embedding and head may have low-rank changes; None is all.
    max_vocab: largest vocabulary with a low-rank change of the head; 0 is any.
    ranks: what the largest rank may be set to, ascending; () is any.
  """

  wholes: bool
  table_families: tuple[str, ...] | None = None
  max_vocab: int = 0
  ranks: tuple[int, ...] = ()


# All of them take one `lora_alpha` and `r`; only PEFT reads `rank_pattern`, and none but PEFT takes
# biases, norms or DoRA. So adapters are written with one rank and scaling 1.
#
# vLLM. Source: `MaxLoRARanks` (vllm/config/lora.py); `modules_to_save` and DoRA refused, scaling
# lora_alpha / r for all modules (vllm/lora/peft_helper.py); tensors other than lora_A, lora_B and
# lora_embedding_A, _B refused (vllm/lora/utils.py, parse_fine_tuned_lora_name); all linear layers,
# and of the others `embedding_modules`, which Llama, Granite and Phi-3 (a Llama there) declare,
# while Mistral and Gemma declare none and Qwen does not declare them (vllm/model_executor/models);
# the head's vocabulary (vllm/lora/layers/logits_processor.py). Read at 0.11 to 0.22.
#
# llama.cpp. Source: convert_lora_to_gguf.py: pairs of lora_A and lora_B (lora_embedding_A and _B
# for the embedding), one `lora_alpha`, whole embeddings refused, a head refused where the base ties
# it (ggml-org/llama.cpp#9065). Norms would be converted, but src/llama-adapter.cpp skips them when
# it loads. The scale is lora_alpha over the rank.
TARGETS = {
  'peft': Target(wholes=True),
  'vllm': Target(
    wholes=False,
    table_families=('llama', 'granite', 'phi3'),
    max_vocab=257024,
    ranks=(1, 8, 16, 32, 64, 128, 256, 320, 512),
  ),
  'llama.cpp': Target(wholes=False),
}
DEFAULT = 'peft'


def target_of(name: str) -> Target:
  """The target of that name; '' is PEFT itself.

  Raises:
    InputError: there is no such target.
  """
  name = name or DEFAULT
  if name not in TARGETS:
    raise InputError(
      f"unknown target '{name}'{did_you_mean(name, TARGETS)}; there are: {', '.join(TARGETS)}"
    )
  return TARGETS[name]


def check(direction: Direction, name: str, rank: int) -> None:
  """Nothing, if an adapter can hold the direction, folded to `rank` if that is not 0, and the
  target loads it.

  Raises:
    InputError: names what it cannot hold and what to do.
  """
  target, name = target_of(name), name or DEFAULT
  flat = tree.flatten(direction.delta, models.is_delta_leaf)
  config, family = direction.base.config, direction.base.family
  sites = models.delta_sites(config)
  experts = [path for path in flat if 'E' in sites[path].axes]
  if experts:
    raise InputError(
      f'a LoRA adapter for {name} cannot hold the changes of {_listed(experts)}, which are kernels '
      f'of experts: {MERGED}, or as orbax-unmerged'
    )
  rest = [
    path
    for path, leaf in flat.items()
    if isinstance(leaf, Dense) and path not in TABLES and not sites[path].inputs
  ]
  if rest:
    raise InputError(
      f'a LoRA adapter for {name} cannot hold the changes of {_listed(rest)} (norms, biases, the '
      f'residual stream): {MERGED}, or apply the direction unmerged'
    )
  dense = [
    path
    for path, leaf in flat.items()
    if isinstance(leaf, Dense) and not (path in TABLES and target.wholes)
  ]
  if dense and not rank:
    raise InputError(
      f'a LoRA adapter for {name} cannot hold the dense changes of {_listed(dense)}: give a rank '
      f'to fold them to by SVD (the error is told), or {MERGED}'
    )
  _check_tables(flat, config, family, name, target)
  ranks = module_ranks(flat, config, FAMILIES[family].tensors, rank)
  if not ranks:
    raise InputError(
      'the direction changes embeddings only, and a LoRA adapter needs a low-rank change: '
      f'give a rank, or {MERGED}'
    )
  _check_rank(ranks, name, target)


def module_ranks(
  flat: Mapping[str, LowRank | Dense],
  config: models.ModelConfig,
  rows: Iterable[TensorRow],
  rank: int = 0,
) -> dict[str, int]:
  """{Hugging Face tensor name, with '{l}' for the layer: rank of its change}, folded to `rank`
  first if it is not 0.

  Where one tensor holds several parameters, the ranks of their changes add up.
  """
  found: dict[str, int] = {}
  for row in rows:
    leaf = flat.get(row.path)
    if isinstance(leaf, LowRank):
      found[row.name] = found.get(row.name, 0) + min(leaf.a.shape[-1], rank or leaf.a.shape[-1])
    elif isinstance(leaf, Dense) and rank:
      site = models.sites(config)[row.path]
      if site.inputs:
        found[row.name] = found.get(row.name, 0) + rank
  return found


def max_lora_rank(rank: int) -> int | None:
  """What vLLM's --max-lora-rank must be set to for an adapter of that rank; None if it serves none
  of it.
  """
  return next((allowed for allowed in TARGETS['vllm'].ranks if allowed >= rank), None)


def notes(rank: int, name: str, wholes: list[str]) -> list[str]:
  """What the one who loads the adapter has to know, in sentences."""
  name, found, limit = name or DEFAULT, [], max_lora_rank(rank)
  if name == 'vllm':
    found.append(f'vLLM serves this rank with --max-lora-rank {limit}.')
  elif name == 'llama.cpp':
    found.append(
      'llama.cpp loads it after convert_lora_to_gguf.py; with a quantised base, the change is '
      'added to weights that are not those it was measured on.'
    )
  elif wholes:
    found.append(
      'The adapter saves changed embeddings whole (modules_to_save), which PEFT loads, while vLLM '
      'and llama.cpp refuse it: for these export again with their --target, or merged.'
    )
  elif limit:
    found.append(
      f'vLLM would serve this rank with --max-lora-rank {limit}; --target=vllm checks the rest.'
    )
  return found


def _check_tables(
  flat: Mapping[str, LowRank | Dense],
  config: models.ModelConfig,
  family: str,
  name: str,
  target: Target,
) -> None:
  tables = [path for path in TABLES if path in flat]
  if target.wholes or not tables:
    return
  if config.tied:
    raise InputError(
      f'the base ties its head to its embedding, and {name} loads no low-rank change of both '
      f'({_listed(tables)}): {MERGED}'
    )
  if target.table_families is not None and family not in target.table_families:
    raise InputError(
      f'{name} takes no change of the embedding or the head ({_listed(tables)}) of a {family} '
      f'model, only of {", ".join(target.table_families)}: {MERGED}'
    )
  if target.max_vocab and 'lm_head/kernel' in tables and config.vocab_size > target.max_vocab:
    raise InputError(
      f'{name} takes no change of a head (lm_head/kernel) of more than {target.max_vocab} tokens; '
      f'this one has {config.vocab_size}: {MERGED}'
    )


def _check_rank(ranks: Mapping[str, int], name: str, target: Target) -> None:
  largest = max(ranks, key=ranks.get)
  if target.ranks and ranks[largest] > target.ranks[-1]:
    raise InputError(
      f"the adapter's rank would be {ranks[largest]} (at '{largest}'), and {name} serves at most "
      f'{target.ranks[-1]}: give a lower rank to fold to (the error is told), or {MERGED}'
    )


def _listed(paths: Iterable[str]) -> str:
  return ', '.join(sorted(paths))
