#!/usr/bin/env bash
# mlx-lm 0.32.2, mlx 0.32.4, CPU build: transformers 5 writes the base of the rotary frequencies as
# rope_parameters.rope_theta in config.json. mlx-lm reads that for Qwen3, and not for Qwen2 and Llama, which
# take their defaults of 1,000,000 and 10,000 without a word. So a Llama 3 (500,000) that was saved by
# transformers 5 runs at 10,000 there, and adapters are trained on other frequencies than the model's.
#
# Seen: rope_theta of a config.json with rope_parameters.rope_theta = 500000.0
#   qwen3 500000.0, qwen2 1000000, llama 10000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'mlx[cpu]==0.32.4' 'mlx-lm==0.32.2'
"$folder/env/bin/python" - <<'PYTHON'
import importlib
from importlib.metadata import version

print('mlx-lm', version('mlx-lm'), 'mlx', version('mlx'))
CONFIG = dict(
  hidden_size=32,
  intermediate_size=48,
  num_hidden_layers=1,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  rms_norm_eps=1e-6,
  vocab_size=64,
  max_position_embeddings=64,
  tie_word_embeddings=False,
  rope_parameters={'rope_theta': 500000.0, 'rope_type': 'default'},
)
thetas = {}
for kind in ('qwen3', 'qwen2', 'llama'):
  module = importlib.import_module(f'mlx_lm.models.{kind}')
  arguments = module.ModelArgs.from_dict(CONFIG | {'model_type': kind})
  thetas[kind] = arguments.rope_theta
  print(kind, arguments.rope_theta)
assert thetas['qwen3'] == 500000.0
assert thetas['qwen2'] == 1000000 and thetas['llama'] == 10000, 'rope_parameters are read now'
PYTHON
