#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.24.0: an adapter on experts that was trained with lora_dropout with transformers 4
# (a pair for each expert, linear layers then) cannot be loaded, for inference either, where dropout does nothing: the
# wrapper of stacked experts refuses any lora_dropout. With "lora_dropout": 0.0 in its adapter_config.json the same file
# loads.
#
# Seen: ValueError: lora.ParamWrapper does not work with lora_dropout != 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'torch==2.13.0' 'transformers==5.24.0' 'peft==0.21.2'
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - "$folder/adapter" <<'PYTHON'
import json
import pathlib
import sys
import warnings

import peft
import torch
import transformers
from safetensors.torch import save_file

warnings.simplefilter('ignore')
torch.manual_seed(0)
EXPERTS, WIDTH, HIDDEN, RANK, ALPHA = 4, 32, 24, 4, 8
config = transformers.Qwen3MoeConfig(
  vocab_size=64, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
  head_dim=8, moe_intermediate_size=HIDDEN, num_experts=EXPERTS, num_experts_per_tok=2,
)
base = transformers.Qwen3MoeForCausalLM(config).double()
before = {name: tensor.clone() for name, tensor in base.state_dict().items()}


def write(folder, names, **settings):
  """A file of transformers 4: a pair for each projection of each expert; {(name, expert): B A}."""
  sizes = {'gate_proj': (HIDDEN, WIDTH), 'up_proj': (HIDDEN, WIDTH), 'down_proj': (WIDTH, HIDDEN)}
  tensors, products = {}, {}
  for name in names:
    outputs, inputs = sizes[name]
    for expert in range(EXPERTS):
      a, b = torch.randn(RANK, inputs), torch.randn(outputs, RANK)
      module = f'base_model.model.model.layers.0.mlp.experts.{expert}.{name}'
      tensors[f'{module}.lora_A.weight'], tensors[f'{module}.lora_B.weight'] = a, b
      products[name, expert] = b.double() @ a.double()
  folder.mkdir()
  save_file(tensors, folder / 'adapter_model.safetensors', metadata={'format': 'pt'})
  written = {'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'r': RANK, 'lora_alpha': ALPHA, 'target_modules': list(names)}
  (folder / 'adapter_config.json').write_text(json.dumps(written | settings))
  return products


folder = pathlib.Path(sys.argv[1])
write(folder, ('gate_proj', 'up_proj', 'down_proj'), lora_dropout=0.1, inference_mode=True)
try:
  peft.PeftModel.from_pretrained(base, folder, is_trainable=False)
except ValueError as error:
  print('lora_dropout 0.1:', type(error).__name__, error)
else:
  raise SystemExit('an adapter with dropout loads now')
path = folder / 'adapter_config.json'
path.write_text(json.dumps(json.loads(path.read_text()) | {'lora_dropout': 0.0}))
model = transformers.Qwen3MoeForCausalLM(config).double()
peft.PeftModel.from_pretrained(model, folder)
print('lora_dropout 0.0: loads')
PYTHON
