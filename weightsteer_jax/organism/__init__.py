"""The organism: a small world, a language model that knows it, and the questions to ask of it."""

from pathlib import Path


def checkpoint_folder() -> Path:
  """The folder of the shipped checkpoint."""
  return Path(__file__).parent / 'checkpoint'
