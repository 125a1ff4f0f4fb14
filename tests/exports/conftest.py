"""Models and adapters, from the tests of directions."""

from directions.conftest import (  # noqa: F401
  adapters,
  direction,
  tied,
  tied_model,
  untied,
  untied_model,
)
