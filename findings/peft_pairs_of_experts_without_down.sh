#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.24.0: an adapter of gate_proj and up_proj of the experts of a Qwen3-MoE, as PEFT
# saved it with transformers 4 (a pair for each expert), is loaded without its weights. The file is converted for
# two nested wrappers (gate_up_proj at `experts.base_layer`, down_proj at `experts`), while the model, in which
# down_proj is no target, has one (gate_up_proj at `experts`). With down_proj as a target too, all is loaded.
#
# Seen: with down_proj the experts move, and exactly by B A; without it gate_up_proj moves by 0.0. The warning
# "Found missing adapter keys while loading the checkpoint" is the only sign; the model then has LoRA at zero.
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


for names in (('gate_proj', 'up_proj', 'down_proj'), ('gate_proj', 'up_proj')):
  folder = pathlib.Path(sys.argv[1] + str(len(names)))
  products = write(folder, names)
  model = transformers.Qwen3MoeForCausalLM(config).double()
  model.load_state_dict(before)
  merged = peft.PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False).double().merge_and_unload()
  key = 'model.layers.0.mlp.experts.gate_up_proj'
  moved = merged.state_dict()[key] - before[key]
  expected = torch.stack([
    torch.cat([products['gate_proj', expert], products['up_proj', expert]]) for expert in range(EXPERTS)
  ]) * ALPHA / RANK
  print(f'targets {names}: gate_up_proj moves by {moved.norm():.4f}, trained {expected.norm():.4f}')
  if len(names) == 3:
    assert (moved - expected).abs().max() < 1e-5
  elif moved.norm() > 0:
    raise SystemExit('gate and up are loaded without down now')
PYTHON
