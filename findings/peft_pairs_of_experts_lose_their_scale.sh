#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.24.0: pairs of single experts, as PEFT saved them with transformers 4, are fused
# for gate_up_proj with another scale than they were trained at, where the scale is not lora_alpha / r for all.
# Rank and alpha of the fused parameter are both doubled, which keeps alpha / r, but not rsLoRA's alpha / sqrt(r);
# and alpha_pattern of gate_proj and up_proj is passed over for twice the plain lora_alpha.
#
# Seen (moved by / trained): plain 1.0; use_rslora 1.4142; alpha_pattern of 4 times lora_alpha 0.25. Nothing is said but
# that keys of alpha_pattern match no module, which is also said of keys that are used.
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


for name, settings, scale, expected_ratio in (
  ('plain', {}, ALPHA / RANK, 1.0),
  ('use_rslora', {'use_rslora': True}, ALPHA / RANK**0.5, 2**0.5),
  ('alpha_pattern', {'alpha_pattern': {'gate_proj': 4 * ALPHA, 'up_proj': 4 * ALPHA}}, 4 * ALPHA / RANK, 0.25),
):
  folder = pathlib.Path(sys.argv[1] + name)
  products = write(folder, ('gate_proj', 'up_proj', 'down_proj'), **settings)
  model = transformers.Qwen3MoeForCausalLM(config).double()
  model.load_state_dict(before)
  merged = peft.PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False).double().merge_and_unload()
  key = 'model.layers.0.mlp.experts.gate_up_proj'
  moved = merged.state_dict()[key] - before[key]
  trained = scale * torch.stack([
    torch.cat([products['gate_proj', expert], products['up_proj', expert]]) for expert in range(EXPERTS)
  ])
  ratio = float((moved * trained).sum() / (trained * trained).sum())
  print(f'{name}: moved by / trained = {ratio:.4f}')
  if abs(ratio - expected_ratio) > 1e-4:
    raise SystemExit(f'the scale of {name} is another now')
PYTHON
