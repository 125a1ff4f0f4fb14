"""The citation file, which tools read as YAML."""

import pathlib

import yaml

import weightsteer_jax


def test_the_citation_is_of_this_version():
  path = pathlib.Path(__file__).parents[1] / 'CITATION.cff'
  citation = yaml.safe_load(path.read_text())
  assert citation['version'] == weightsteer_jax.__version__
  assert citation['references'][0]['url'].endswith('2511.05408')
