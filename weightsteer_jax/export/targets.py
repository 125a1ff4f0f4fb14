"""Libraries that load PEFT adapters: what each takes, and what is refused or folded."""

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

# Parameters that adapters hold as embeddings: {path: Hugging Face tensor name}.
TABLES = {'embed/embedding': EMBEDDING, 'lm_head/kernel': HEAD}
MERGED = 'export merged weights, as hf or orbax'


@dataclasses.dataclass(frozen=True)
class Target:
  """The parts of a PEFT adapter that a library loads.

  Attributes:
    wholes: whether embeddings and heads saved whole are loaded (`modules_to_save`).
    table_families: families with low-rank changes of embedding and head; None is all.
    max_vocab: largest vocabulary with a low-rank change of the head; 0 is any.
    ranks: possible settings of the largest rank, ascending; () is any.
  """

  wholes: bool
  table_families: tuple[str, ...] | None = None
  max_vocab: int = 0
  ranks: tuple[int, ...] = ()


# All libraries take one `lora_alpha` and `r`; only PEFT reads `rank_pattern`, and none but PEFT
# takes biases, norms or DoRA. So adapters are written with one rank and scaling 1.
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
  """The target of a name; '' is PEFT itself.

  Raises:
    InputError: if the target is unknown.
  """
  name = name or DEFAULT
  if name not in TARGETS:
    raise InputError(
      f"unknown target '{name}'{did_you_mean(name, TARGETS)}; there are: {', '.join(TARGETS)}"
    )
  return TARGETS[name]


def check(direction: Direction, name: str, rank: int) -> None:
  """Raises InputError if no adapter for the target can hold the direction.

  Args:
    name: a key of TARGETS; '' is PEFT itself.
    rank: rank to fold kernels to first; 0 folds nothing.

  Raises:
    InputError: if the target is unknown, or an adapter cannot hold some change; the error names the
      changes and the remedy.
  """
  target = target_of(name)
  name = name or DEFAULT
  changes = tree.flatten(direction.delta, models.is_delta_leaf)
  config = direction.base.config
  family = direction.base.family
  sites = models.delta_sites(config)
  experts = [path for path in changes if 'E' in sites[path].axes]
  if experts:
    raise InputError(
      f'a LoRA adapter for {name} cannot hold the changes of {_listed(experts)}, which are kernels '
      f'of experts: {MERGED}, or as orbax-unmerged'
    )
  dense = [path for path, leaf in changes.items() if isinstance(leaf, Dense)]
  vectors = [path for path in dense if path not in TABLES and not sites[path].inputs]
  if vectors:
    raise InputError(
      f'a LoRA adapter for {name} cannot hold the changes of {_listed(vectors)} (norms, biases, '
      f'the residual stream): {MERGED}, or apply the direction unmerged'
    )
  to_fold = [path for path in dense if not (path in TABLES and target.wholes)]
  if to_fold and not rank:
    raise InputError(
      f'a LoRA adapter for {name} cannot hold the dense changes of {_listed(to_fold)}: give a rank '
      f'to fold them to by SVD (the error is told), or {MERGED}'
    )
  _check_tables(changes, config, family, name, target)
  ranks = module_ranks(changes, config, FAMILIES[family].tensors, rank)
  if not ranks:
    raise InputError(
      'the direction changes embeddings only, and a LoRA adapter needs a low-rank change: '
      f'give a rank, or {MERGED}'
    )
  _check_rank(ranks, name, target)


def module_ranks(
  changes: Mapping[str, LowRank | Dense],
  config: models.ModelConfig,
  rows: Iterable[TensorRow],
  rank: int = 0,
) -> dict[str, int]:
  """{Hugging Face tensor name, with '{l}' for the layer: rank of the change}.

  Where one tensor holds several parameters, the ranks of their changes add up.

  Args:
    rank: rank to fold kernels to first; 0 folds nothing.
  """
  sites = models.sites(config)
  ranks: dict[str, int] = {}
  for row in rows:
    leaf = changes.get(row.path)
    others = ranks.get(row.name, 0)
    if isinstance(leaf, LowRank):
      full_rank = leaf.a.shape[-1]
      # Folding never raises a rank.
      folded_rank = min(full_rank, rank or full_rank)
      ranks[row.name] = others + folded_rank
    # Vectors have no inputs, and no rank.
    elif isinstance(leaf, Dense) and rank and sites[row.path].inputs:
      ranks[row.name] = others + rank
  return ranks


def max_lora_rank(rank: int) -> int | None:
  """vLLM's least --max-lora-rank for an adapter of a rank; None if vLLM serves no such rank."""
  return next((allowed for allowed in TARGETS['vllm'].ranks if allowed >= rank), None)


def notes(rank: int, name: str, wholes: list[str]) -> list[str]:
  """Notes for users of the adapter, in sentences.

  Args:
    wholes: paths of the embeddings and heads saved whole.
  """
  name = name or DEFAULT
  limit = max_lora_rank(rank)
  if name == 'vllm':
    return [f'vLLM serves this rank with --max-lora-rank {limit}.']
  if name == 'llama.cpp':
    return [
      'llama.cpp loads it after convert_lora_to_gguf.py; with a quantised base, the change is '
      'added to weights that are not those it was measured on.'
    ]
  if wholes:
    return [
      'The adapter saves changed embeddings whole (modules_to_save), which PEFT loads, while vLLM '
      'and llama.cpp refuse it: for these export again with their --target, or merged.'
    ]
  if limit:
    return [
      f'vLLM would serve this rank with --max-lora-rank {limit}; --target=vllm checks the rest.'
    ]
  return []


def _check_tables(
  changes: Mapping[str, LowRank | Dense],
  config: models.ModelConfig,
  family: str,
  name: str,
  target: Target,
) -> None:
  """Raises InputError if the target takes no low-rank change of an embedding or head changed."""
  tables = [path for path in TABLES if path in changes]
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
  largest = max(ranks, key=lambda module: ranks[module])
  if target.ranks and ranks[largest] > target.ranks[-1]:
    raise InputError(
      f"the adapter's rank would be {ranks[largest]} (at '{largest}'), and {name} serves at most "
      f'{target.ranks[-1]}: give a lower rank to fold to (the error is told), or {MERGED}'
    )


def _listed(paths: Iterable[str]) -> str:
  return ', '.join(sorted(paths))
