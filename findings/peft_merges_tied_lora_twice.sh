#!/usr/bin/env bash
# PEFT 0.21.2 with transformers 5.24.0: a LoRA on tied embeddings, with ensure_weight_tying=True as PEFT's own warning
# asks for, computes one thing before merge_and_unload and another after. Both ends share the base's matrix and each has
# the LoRA: merging adds the change to the shared matrix once for each end. Nothing is said.
#
# Seen, of a Qwen2 with tied embeddings: the shared matrix moved by 2.000 times the change of the LoRA, and the logits
# of the merged model differ from those before merging by several units.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'torch==2.13.0' 'transformers==5.24.0' 'peft==0.21.2'
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PYTHON'
import warnings

import peft
import torch
import transformers

warnings.simplefilter('ignore')
torch.manual_seed(0)
config = transformers.Qwen2Config(
  vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
  num_key_value_heads=2, tie_word_embeddings=True,
)
base = transformers.Qwen2ForCausalLM(config)
before = base.model.embed_tokens.weight.detach().clone()
options = dict(target_modules=['embed_tokens'], ensure_weight_tying=True, init_lora_weights=False)
model = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=2, **options)).eval()
layer = model.base_model.model.model.embed_tokens
change = layer.get_delta_weight('default').detach().clone()
tokens = torch.tensor([[5, 9, 2, 7]])
with torch.no_grad():
  logits = model(tokens).logits
  merged = model.merge_and_unload().eval()
  moved = float((merged(tokens).logits - logits).abs().max())
  matrix = merged.model.embed_tokens.weight - before
  times = float((matrix * change).sum() / (change * change).sum())
shared = merged.lm_head.weight.data_ptr() == merged.model.embed_tokens.weight.data_ptr()
print(f'ends share one matrix: {shared}; it moved by {times:.3f} times the change of the LoRA')
print(f'logits move on merging by {moved:.3f}')
if not (shared and abs(times - 2) < 1e-3 and moved > 0.1):
  raise SystemExit('merging a LoRA on tied embeddings keeps the logits now')
PYTHON
