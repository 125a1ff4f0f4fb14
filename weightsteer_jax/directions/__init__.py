"""Directions in weight space: made exactly from fine-tunes, and measured in factors.

direction.py         an exact change of a model's weights, and its folder
base.py              the model of a direction
named_bases.py       the bases that adapters name, compared with the base that is used
between.py           the difference of two fine-tunes: two adapters, or two checkpoints
algebra.py           sums, multiples, norms and angles; gram.py has the inner products
spectra.py           singular values of a change, from its factors
compression.py       fewer factors for the same change, or the nearest change of a given rank
bfloat16_route.py    the loss of merging into bfloat16 before subtracting
persona_vectors.py   activation steering, the baseline
combining/           weighted sums, projections, TIES and DARE, from a recipe
adapters/            adapters as PEFT saves them, read as deltas of their base
streamed/            changes and checkpoints read from disk layer by layer

`directions.between` is the function; import the module's other names from
`weightsteer_jax.directions.between`.
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
