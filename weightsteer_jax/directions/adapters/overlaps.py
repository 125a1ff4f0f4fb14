"""Patterns of an adapter's config that say different things of one module.

PEFT takes the first key of `rank_pattern` and `alpha_pattern` that matches. In training that is the
first in the user's order, but the config is saved with sorted keys: loaded again, another key may
be the first, and the adapter has another scale.

Source: PEFT 0.21.2, `PeftConfigMixin.save_pretrained` (sort_keys), `get_pattern_key`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from weightsteer_jax.directions.adapters import config as configs
from weightsteer_jax.directions.adapters import tensors
from weightsteer_jax.directions.adapters.tensors import Adapter
from weightsteer_jax.runtime.progress import say

FIELDS = ('alpha_pattern', 'rank_pattern')


def tell(adapter: Adapter) -> None:
  """Says which patterns of the adapter overlap and disagree, with their values."""
  modules: set[str] = set()
  for kind in (tensors.PAIR, tensors.HEAD_PAIR, tensors.EMBEDDING_PAIR, tensors.EXPERT_PAIR):
    modules.update(adapter.tensors[kind])
  for field in FIELDS:
    patterns = adapter.config.get(field) or {}
    # Keys in any other order were not written by PEFT: their order is meant.
    if list(patterns) != sorted(patterns):
      continue
    for keys, named in _disagreements(patterns, sorted(modules)).items():
      values = ' and '.join(f"'{key}': {patterns[key]}" for key in keys)
      first = keys[0]
      taken = f"'{first}': {patterns[first]} is taken, as PEFT does when it loads the file"
      if field == 'rank_pattern':
        taken = 'the rank of the tensors is taken, where PEFT refuses to load them'
      say(
        f'warning: {adapter.folder}: {field} says {values} of {len(named)} module(s), '
        f"'{named[0]}' for one. PEFT sorts the keys when it saves, so training may have used "
        f'another than the first; {taken}. Keep the right key alone in {configs.CONFIG}'
      )


def _disagreements(
  patterns: Mapping[str, Any], modules: Iterable[str]
) -> dict[tuple[str, ...], list[str]]:
  """{keys that match the same modules with several values: the modules}."""
  found: dict[tuple[str, ...], list[str]] = {}
  for module in modules:
    matching = configs.matching(patterns, module)
    if len(set(matching.values())) > 1:
      found.setdefault(tuple(matching), []).append(module)
  return found
