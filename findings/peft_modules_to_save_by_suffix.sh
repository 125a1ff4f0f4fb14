#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.24.0: target_modules are compared with the ends of names from a dot on, modules_to_save
# with the bare ends. So modules_to_save=['norm'], the name of the last norm, trains and saves the norms of every layer
# too: input_layernorm, post_attention_layernorm, and q_norm and k_norm of Qwen3.
#
# Seen, of a Qwen3 of 1 layer: five modules are saved whole; target_modules=['proj'] matches none of the projections.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'torch==2.13.0' 'transformers==5.24.0' 'peft==0.21.2'
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PYTHON'
import warnings

import peft
import transformers

warnings.simplefilter('ignore')
config = transformers.Qwen3Config(
  vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
  num_key_value_heads=2, head_dim=4,
)
model = peft.get_peft_model(
  transformers.Qwen3ForCausalLM(config),
  peft.LoraConfig(r=4, target_modules=['q_proj'], modules_to_save=['norm']),
)
saved = []
for name, parameter in model.named_parameters():
  if parameter.requires_grad and 'lora_' not in name:
    saved.append(name.split('.modules_to_save')[0].removeprefix('base_model.model.'))
print('modules_to_save norm:', sorted(saved))
try:
  peft.get_peft_model(transformers.Qwen3ForCausalLM(config), peft.LoraConfig(target_modules=['proj']))
except ValueError as error:
  refused = 'not found' in str(error)
  print(f'target_modules proj: {type(error).__name__}')
else:
  refused = False
if len(saved) != 5 or not refused:
  raise SystemExit('modules_to_save and target_modules are compared alike now')
PYTHON
