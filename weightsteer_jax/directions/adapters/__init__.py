"""Adapters as other tools save them, read exactly: a folder in, a delta of the base out.

config.py     adapter_config.json: the fields that count, the ones that do not, the ones refused
types.py      the types of these fields
starts.py     starts that move part of the base into the adapter (PiSSA, OLoRA, CorDA)
rest.py       the moved part, computed again, and whether two adapters share it
overlaps.py   patterns of the config that disagree about a module
mlx.py        mlx-lm's files under PEFT's names; mlx_ends.py the tied head, and the layers
tensors.py    the tensors of a folder by kind: a row of KINDS for each kind
low_rank.py   LoRA pairs of projections, and biases beside them
dora.py       DoRA: pairs with magnitudes, as dense changes
library.py    every other kind, through PEFT's own code (an optional extra, with torch)
experts.py    LoRA pairs of experts, a pair for each or one for a stack of all
tables.py     embedding and head: pairs, whole tables, rows of single tokens, resized vocabularies
modules.py    names of modules, and the error for the ones that a base does not have
wholes.py     tensors saved whole: the saved tensor minus the base's own
completeness.py    the tensors that PEFT's rules ask for: all there, and no others
delta.py      the kinds put together: a reader in READERS for each kind

A new kind of tensor is a row in tensors.KINDS and a reader in delta.READERS.
"""

from weightsteer_jax.directions.adapters.config import CONFIG, WEIGHTS, is_adapter, read_config
from weightsteer_jax.directions.adapters.delta import to_delta
from weightsteer_jax.directions.adapters.library import read_by
from weightsteer_jax.directions.adapters.low_rank import factor_patterns
from weightsteer_jax.directions.adapters.rest import shared
from weightsteer_jax.directions.adapters.tables import without_new_rows
from weightsteer_jax.directions.adapters.tensors import Adapter, read
