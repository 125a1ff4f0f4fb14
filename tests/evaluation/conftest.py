"""The engine's model, tokenizer and deltas, as the tests of inference have them."""

from inference.conftest import (  # noqa: F401
  checkpoint,
  delta,
  engine_of,
  model,
  other_delta,
  random_tokens,
  spaced_tokenizer,
  tokenizer,
  torch_model,
)
