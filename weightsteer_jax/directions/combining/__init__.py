"""Directions put together: weighted sums, exact in factors, and merges that keep some elements.

recipe.py     what is to be combined and how, read from YAML or from a line
settings.py   a number, or one for each layer and module, as in mergekit
linear.py     weighted sums, layers and modules left out, other directions projected out
sparse.py     TIES and DARE, tensor by tensor, computed when read
combine.py    a recipe carried out
"""

from weightsteer_jax.directions.combining.combine import combine
from weightsteer_jax.directions.combining.recipe import (
  METHODS,
  Recipe,
  Term,
  from_terms,
  parse,
  parse_layers,
  read,
)
