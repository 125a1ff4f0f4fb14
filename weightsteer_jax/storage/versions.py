"""Which versions computed something, for its provenance."""

import importlib.metadata
import platform


def versions(*packages: str) -> dict[str, str]:
  """{'python': version} and that of each installed package."""
  return {
    'python': platform.python_version(),
    **{name: importlib.metadata.version(name) for name in packages},
  }
