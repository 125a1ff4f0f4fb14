"""Extras that texts tell users to install are extras of the package."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]


def test_every_extra_that_is_named_is_there():
  there = set(re.findall(r"^    '([\w-]+)': \[", (ROOT / 'setup.py').read_text(), re.MULTILINE))
  named = {}
  places = [ROOT / 'README.md', *ROOT.glob('docs/*.md'), *ROOT.glob('weightsteer_jax/**/*.py')]
  for path in places:
    for names in re.findall(r"(?:weightsteer_jax|\.)\[([\w,-]+)\]['\"`]", path.read_text()):
      named |= dict.fromkeys(names.split(','), path)
  assert {'serve', 'inspect', 'cuda', 'test'} <= set(named)
  assert {name: path for name, path in named.items() if name not in there} == {}
  # The trackers' own names stand in for their extras.
  from weightsteer_jax.interfaces import trackers

  assert set(trackers.TRACKERS) <= there
