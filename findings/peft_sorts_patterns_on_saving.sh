#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.24.0: of the keys of alpha_pattern (and rank_pattern) the first that matches a module
# counts, in the order of the dict; save_pretrained writes the config with sorted keys. So an adapter with a general key
# before a particular one is reloaded at another scale, without a word; with rank_pattern it cannot be reloaded.
#
# Seen: v_proj trained at scale 0.5 is loaded at 8.0; with rank_pattern, loading ends with "size mismatch".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'torch==2.13.0' 'transformers==5.24.0' 'peft==0.21.2'
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - "$folder" <<'PYTHON'
import sys
import warnings

import peft
import transformers

warnings.simplefilter('ignore')
config = transformers.Qwen2Config(
  vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
  num_key_value_heads=2,
)


def save(name, **patterns):
  base = transformers.Qwen2ForCausalLM(config)
  options = peft.LoraConfig(r=4, lora_alpha=4, target_modules=['v_proj'], **patterns)
  model = peft.get_peft_model(base, options)
  model.save_pretrained(f'{sys.argv[1]}/{name}')
  return model


def load(name):
  return peft.PeftModel.from_pretrained(
    transformers.Qwen2ForCausalLM(config), f'{sys.argv[1]}/{name}'
  )


def scale(model):
  return model.base_model.model.model.layers[0].self_attn.v_proj.scaling['default']


trained = scale(save('alpha', alpha_pattern={'v_proj': 2, 'self_attn.v_proj': 32}))
loaded = scale(load('alpha'))
print(f'alpha_pattern: trained at scale {trained}, loaded at {loaded}')
save('rank', rank_pattern={'v_proj': 2, 'self_attn.v_proj': 8})
try:
  load('rank')
except RuntimeError as error:
  mismatch = 'size mismatch' in str(error)
  print(f'rank_pattern: loading ends with a size mismatch: {mismatch}')
else:
  mismatch = False
if not ((trained, loaded) == (0.5, 8.0) and mismatch):
  raise SystemExit('patterns keep their order on saving now')
PYTHON
