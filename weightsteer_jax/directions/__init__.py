"""Directions in weight space: made exactly from fine-tunes, and measured in factors.

direction.py         the artifact: an exact change of a model's weights, and its folder
base.py              the model that a direction changes
between.py           positive minus negative: two fine-tunes, two adapters, two checkpoints
algebra.py           sums, multiples, norms and angles; gram.py has the inner products
compression.py       fewer factors for the same change, or the nearest change of a given rank
bfloat16_route.py    what is lost by merging into bfloat16 before subtracting
persona_vectors.py   activation steering, the baseline
peft_adapter.py      PEFT adapters as saved; peft_delta.py is what one changes of a base
streamed/            changes and checkpoints that are read from disk layer by layer
"""

from weightsteer_jax.directions.algebra import (
  add,
  cosine,
  cosine_per_site,
  dot,
  dot_per_site,
  negate,
  norm,
  norm_per_site,
  project,
  scale,
  subtract,
  to_dense,
)
from weightsteer_jax.directions.base import Base, base_of
from weightsteer_jax.directions.between import base_for, between, task_vector
from weightsteer_jax.directions.compression import compress, recompress
from weightsteer_jax.directions.direction import Direction, check_base, load, save
