"""Versions of Python and of packages, for the provenance of results."""

import importlib.metadata
import platform


def versions(*packages: str) -> dict[str, str]:
  """{'python' or package: version}; every package must be installed."""
  numbers = {'python': platform.python_version()}
  for name in packages:
    numbers[name] = importlib.metadata.version(name)
  return numbers
