"""Directions in weight space: made exactly from fine-tunes, measured in factors, handed on in four
formats.
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
from weightsteer_jax.directions.compression import compress, recompress
from weightsteer_jax.directions.contrast import base_for, contrast, task_vector
from weightsteer_jax.directions.direction import Direction, check_base, load, save
from weightsteer_jax.directions.export import (
  FORMATS,
  Request,
  export,
  unread_base,
)
from weightsteer_jax.directions.export import (
  check as check_export,
)
from weightsteer_jax.directions.integrity import Verified, check_checkpoint, verify
from weightsteer_jax.directions.peft_targets import TARGETS
