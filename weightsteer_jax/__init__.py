"""weightsteer_jax: find a behaviour's direction in weight space, turn it up and down, hand it on.

The rooms, in the order data goes through them. Imports only go up this list, inside a room too;
`tests/test_architecture.py` holds both.

  runtime/      errors, messages, pytrees, the mesh, processes and how they end
  storage/      files that appear whole or not at all: journals, checkpoints, manifests, buckets
  config/       the one schema of a run, and what its values must be
  models/       one decoder, declarative families, checkpoints in and out, deltas applied per row
  data/         chat templates and loss masks, sources, pairs of texts, batches of fixed shapes
  finetune/     the loss, the pure step, AdamW, the loop that validates and resumes, adapters
  directions/   the direction, its algebra, and the sources that directions are made from
  inference/    scoring and generation: many arms and strengths in one batch
  evaluation/   tasks, the sweep, how answers are read, judges, metrics
  exports/      directions handed on to Hugging Face, orbax and PEFT, and whether they are whole
  experiments/  the parts put together: Experiment, arms, contrast, stages; and in rooms of their
                own the organism, real models, monitoring, the report and preflight
  interfaces/   what users touch: the command, the Python names, the server, Inspect, trackers

interfaces/cli/ turns a command line into calls of stages.py, standalone.py or preflight/ in
experiments/; the verb smoke needs only runtime/ and storage/. `__main__.py` is the command as
`python -m weightsteer_jax`, and the programs of `launch/` are its verbs in a checkout.
interfaces/python/ is what `import weightsteer_jax as ws` offers; interfaces/serving/ is the server,
with its page, and the chat in a terminal.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from weightsteer_jax.interfaces.python import (
    ByAlpha,
    SteeredModel,
    SteeringDirection,
    Sweep,
    Text,
    audit,
    between,
    combine,
    export,
    load,
    load_direction,
  )
  from weightsteer_jax.runtime.errors import (
    CorruptError,
    InputError,
    NotFiniteError,
    OutputError,
    WeightSteerError,
  )

__version__ = '0.1.0'

__all__ = [
  'ByAlpha',
  'CorruptError',
  'InputError',
  'NotFiniteError',
  'OutputError',
  'SteeredModel',
  'SteeringDirection',
  'Sweep',
  'Text',
  'WeightSteerError',
  'audit',
  'between',
  'combine',
  'export',
  'load',
  'load_direction',
]


# A type checker sees the imports above, and would take any name for one of these.
if not TYPE_CHECKING:

  def __getattr__(name: str) -> Any:
    if name not in __all__:
      raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    # When a name is first asked for: jax and transformers take seconds to import, which neither
    # --help nor an error needs.
    module = 'runtime.errors' if name.endswith('Error') else 'interfaces.python'
    value = getattr(importlib.import_module(f'{__name__}.{module}'), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
  return sorted([*__all__, *(name for name in globals() if name.startswith('__'))])
