#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.24.0: layers_to_transform=[0] keeps LoRA to layer 0 for attention, and not for
# experts. The names gate_proj, up_proj and down_proj become target_parameters, which know no layers: the experts of all
# layers get LoRA, and train, without a word. With transformers 4 the same config meant the experts of layer 0.
#
# Seen, of a Qwen3-MoE of 3 layers: q_proj in layers [0]; experts in layers [0, 1, 2].
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'torch==2.13.0' 'transformers==5.24.0' 'peft==0.21.2'
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - "$folder/adapter" <<'PYTHON'
import re
import warnings

import peft
import transformers

warnings.simplefilter('ignore')
config = transformers.Qwen3MoeConfig(
  vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
  head_dim=8, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2,
)
targets = ['q_proj', 'gate_proj', 'up_proj', 'down_proj']
model = peft.get_peft_model(
  transformers.Qwen3MoeForCausalLM(config),
  peft.LoraConfig(r=4, target_modules=targets, layers_to_transform=[0]),
)
layers = {'q_proj': set(), 'experts': set()}
for name, parameter in model.named_parameters():
  if parameter.requires_grad:
    part = 'experts' if '.experts.' in name else 'q_proj'
    layers[part].add(int(re.search(r'layers\.(\d+)', name)[1]))
for part, numbers in layers.items():
  print(f'{part}: trained in layers {sorted(numbers)}')
assert layers['q_proj'] == {0}
if layers['experts'] != {0, 1, 2}:
  raise SystemExit('layers_to_transform counts for experts now')
PYTHON
