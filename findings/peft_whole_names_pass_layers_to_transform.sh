#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.24.0: an entry of target_modules that is a module's whole name is matched without
# layers_to_transform, and lm_head, a name without a dot, is always one: a LoRA for layer 1 alone is also at the head,
# while embed_tokens, written the same way, is left out.
#
# Seen, with target_modules embed_tokens, lm_head, q_proj and the whole name of layer 0's k_proj, and
# layers_to_transform=[1]: LoRA at q_proj of layer 1, k_proj of layer 0 and lm_head; not at embed_tokens.
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
config = transformers.Qwen2Config(
  vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
  num_key_value_heads=2,
)
targets = ['embed_tokens', 'lm_head', 'q_proj', 'model.layers.0.self_attn.k_proj']
model = peft.get_peft_model(
  transformers.Qwen2ForCausalLM(config),
  peft.LoraConfig(r=4, target_modules=targets, layers_to_transform=[1]),
)
adapted = sorted(model.targeted_module_names)
print('LoRA at', adapted)
expected = ['lm_head', 'model.layers.0.self_attn.k_proj', 'model.layers.1.self_attn.q_proj']
if adapted != expected:
  raise SystemExit('layers_to_transform counts for whole names, or for none outside of layers, now')
PYTHON
