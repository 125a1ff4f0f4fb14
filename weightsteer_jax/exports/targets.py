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
EMBEDDING_PATH = 'embed/embedding'
HEAD_PATH = 'lm_head/kernel'
TABLES = {EMBEDDING_PATH: EMBEDDING, HEAD_PATH: HEAD}
MERGED = 'export merged weights, as hf or orbax'


@dataclasses.dataclass(frozen=True)
class Target:
  """The parts of a PEFT adapter that a library loads.

  Attributes:
    wholes: whether modules saved whole are loaded (`modules_to_save`): embeddings, heads, norms.
    embeddings, heads: families with low-rank changes of the embedding, or of the head; None is all.
    tied: whether an embedding that is the head too may change at both ends.
    max_vocab: largest vocabulary with a low-rank change of the head; 0 is any.
    ranks: possible settings of the largest rank, ascending; () is any.
    stacked: whether experts are stacked, as in transformers 5; otherwise each has pairs of its own.
  """

  wholes: bool
  embeddings: tuple[str, ...] | None = None
  heads: tuple[str, ...] | None = None
  tied: bool = False
  max_vocab: int = 0
  ranks: tuple[int, ...] = ()
  stacked: bool = False


# Adapters are written with one rank and scaling 1, although PEFT and vLLM read `rank_pattern` and
# `alpha_pattern`: llama.cpp has one `lora_alpha` for tensors of any rank, and reads the same file.
#
# vLLM 0.33.0. Source: ranks and vocabulary, vllm/config/lora.py (MaxLoRARanks) and
# vllm/lora/layers/logits_processor.py; what is refused, vllm/lora/peft_helper.py; names of tensors,
# vllm/lora/utils.py (parse_fine_tuned_lora_name). Linear layers all take a LoRA, embeddings and
# heads where the model's class says so (`embedding_modules` in vllm/model_executor/models): the
# model classes of both tuples below name both, and OLMo 2 and SmolLM3, which run as transformers'
# modules, the embedding alone. A tied head is a module of its own beside the embedding, so each
# takes a pair.
#
# llama.cpp. Source: convert_lora_to_gguf.py: pairs of lora_A and lora_B (lora_embedding_A and _B
# for the embedding), one `lora_alpha`, whole embeddings refused, a head refused where the base ties
# it (ggml-org/llama.cpp#9065). Norms would be converted, but src/llama-adapter.cpp skips them when
# it loads. The scale is lora_alpha over the rank.
VLLM_HEADS = ('llama', 'granite', 'phi3', 'qwen3', 'qwen3_moe', 'mixtral')
TARGETS = {
  'peft': Target(wholes=True, stacked=True),
  'vllm': Target(
    wholes=False,
    embeddings=(*VLLM_HEADS, 'olmo2', 'smollm3'),
    heads=VLLM_HEADS,
    tied=True,
    max_vocab=258048,
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
  dense = [path for path, leaf in changes.items() if isinstance(leaf, Dense)]
  wholes = [path for path in dense if target.wholes and is_whole(path)]
  vectors = [path for path in dense if path not in TABLES and not sites[path].inputs]
  refused = sorted({*vectors} - {*wholes})
  if refused:
    raise InputError(
      f'a LoRA adapter for {name} cannot hold the changes of {_listed(refused)} '
      f'({"" if target.wholes else "norms, "}biases, the residual stream): {MERGED}, or apply the '
      'direction unmerged'
    )
  to_fold = [path for path in dense if path not in wholes]
  if to_fold and not rank:
    raise InputError(
      f'a LoRA adapter for {name} cannot hold the dense changes of {_listed(to_fold)}: give a rank '
      f'to fold them to by SVD (the error is told), or {MERGED}'
    )
  _check_tables(changes, config, family, name, target)
  ranks = module_ranks(changes, config, FAMILIES[family].tensors, rank)
  # An embedding has no inputs, so its fold is counted here.
  if EMBEDDING_PATH in to_fold:
    ranks[EMBEDDING] = rank
  if not ranks:
    # A whole embedding can be folded to factors; a norm is no matrix.
    way = f'give a rank, or {MERGED}' if EMBEDDING_PATH in dense else MERGED
    raise InputError(
      'the direction changes embeddings or norms only, and a LoRA adapter needs a low-rank change: '
      f'{way}'
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


def is_whole(path: str) -> bool:
  """Whether an adapter can save the parameter whole, in place of a low-rank change."""
  return path in TABLES or path.endswith('/scale')


def max_lora_rank(rank: int) -> int | None:
  """vLLM's least --max-lora-rank for an adapter of a rank; None if vLLM serves no such rank."""
  return next((allowed for allowed in TARGETS['vllm'].ranks if allowed >= rank), None)


def notes(rank: int, name: str, wholes: list[str], *, by_parameter: bool = False) -> list[str]:
  """Notes for users of the adapter, in sentences.

  Args:
    wholes: paths of the parameters saved whole.
    by_parameter: whether experts are stacked, or a router changes, in the names of transformers 5.
  """
  name = name or DEFAULT
  limit = max_lora_rank(rank)
  if name == 'vllm':
    return [f'vLLM serves this rank with --max-lora-rank {limit}.']
  if name == 'llama.cpp':
    return [
      'llama.cpp loads it after convert_lora_to_gguf.py (--format=gguf writes that file); with a '
      'quantised base, the change is added to weights that are not those it was measured on.'
    ]
  sentences = []
  if by_parameter:
    sentences.append(
      'Experts and routers are named as parameters of transformers 5 (target_parameters), which '
      'PEFT 0.21 loads: for transformers 4, vLLM and llama.cpp export again with their --target, '
      'which writes a pair for each expert.'
    )
  if wholes:
    sentences.append(
      'The adapter saves changed embeddings and norms whole (modules_to_save), which PEFT loads, '
      'while vLLM and llama.cpp refuse it: for these export again with their --target, or merged.'
    )
  if limit and not sentences:
    sentences.append(
      f'vLLM would serve this rank with --max-lora-rank {limit}; --target=vllm checks the rest.'
    )
  return sentences


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
  families = {EMBEDDING_PATH: target.embeddings, HEAD_PATH: target.heads}
  if config.tied:
    if not target.tied:
      raise InputError(
        f'the base ties its head to its embedding, and {name} loads no low-rank change of both '
        f'({_listed(tables)}): {MERGED}'
      )
    # The one change is written at both ends.
    tables = list(TABLES)
  for path in tables:
    allowed = families[path]
    if allowed is not None and family not in allowed:
      raise InputError(
        f'{name} takes no change of the {"embedding" if path == EMBEDDING_PATH else "head"} '
        f'({path}) of a {family} model{" that ties the two" if config.tied else ""}, only of '
        f'{", ".join(allowed)}: {MERGED}'
      )
  if target.max_vocab and HEAD_PATH in tables and config.vocab_size > target.max_vocab:
    raise InputError(
      f'{name} takes no change of a head ({HEAD_PATH}) of more than {target.max_vocab} tokens; '
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
