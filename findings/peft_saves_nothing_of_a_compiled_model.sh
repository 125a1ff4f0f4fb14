#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.24.0: save_pretrained of a compiled model, with its own state_dict as trainers pass it,
# writes a file of no tensors and says nothing: every name starts with _orig_mod., and none is known. Loaded again, the
# adapter is a fresh one (B = 0), with a warning of missing keys: the training is gone.
#
# Seen: 4 tensors without torch.compile, 0 with it; no warning while saving.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'torch==2.13.0' 'transformers==5.24.0' 'peft==0.21.2'
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - "$folder" <<'PYTHON'
import sys
import warnings

import peft
import torch
import transformers
from safetensors.torch import load_file

config = transformers.Qwen2Config(
  vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
  num_key_value_heads=2,
)
plain = peft.get_peft_model(
  transformers.Qwen2ForCausalLM(config), peft.LoraConfig(r=4, target_modules=['q_proj'])
)
counts = []
for name, model in (('plain', plain), ('compiled', torch.compile(plain))):
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    model.save_pretrained(f'{sys.argv[1]}/{name}', state_dict=model.state_dict())
  said = [str(warning.message) for warning in caught if 'config file' not in str(warning.message)]
  counts.append(len(load_file(f'{sys.argv[1]}/{name}/adapter_model.safetensors')))
  print(f'{name}: {counts[-1]} tensors, warnings: {said}')
if counts != [4, 0] or said:
  raise SystemExit('the state_dict of a compiled model is saved, or refused, now')
PYTHON
