#!/usr/bin/env bash
# transformers 5.24.0, gguf 0.19.0, torch 2.13.0: `from_pretrained(..., gguf_file=)` passes over the tensor
# `rope_freqs.weight`, in which llama.cpp's converter stores the scaling of long contexts of Llama 3.1 to
# 3.3 (no key of the metadata has it). Loaded so, such a model has no `rope_scaling`, its logits are others
# from the first tokens on, and nothing is said.
#
# Seen: two files that differ in the factors alone (1, or 8 for every frequency) load with rope type
# 'default' and give equal logits; the model whose config has the scaling gives others.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check --no-deps \
  'torch==2.13.0' 'transformers==5.24.0' 'gguf==0.19.0' 'tokenizers>=0.23' 'safetensors>=0.8' \
  'huggingface_hub>=1.33' 'accelerate>=1.15' psutil numpy pyyaml regex packaging tqdm filelock fsspec typing_extensions \
  sympy mpmath networkx jinja2 markupsafe hf-xet httpx httpcore httpx2 httpcore2 anyio idna truststore certifi h11 sniffio \
  typer click shellingham rich markdown-it-py mdurl pygments requests urllib3 charset-normalizer
cd "$folder"
"$folder/env/bin/python" - <<'PYTHON'
import gguf
import numpy as np
import torch
import transformers

fields = dict(
  vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
  num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0,
  eos_token_id=1,
)
torch.manual_seed(0)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).eval()
# Larger than a new model's, so that attention is no mean of all positions.
with torch.no_grad():
  for parameter in model.parameters():
    parameter.mul_(10.0 if parameter.ndim > 1 else 1.0)
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
tokens = torch.arange(2, 30)[None]
logits = {}
for factor in (1.0, 8.0):
  writer = gguf.GGUFWriter(f'{factor}.gguf', 'llama')
  writer.add_block_count(2)
  writer.add_context_length(512)
  writer.add_embedding_length(64)
  writer.add_feed_forward_length(64)
  writer.add_head_count(2)
  writer.add_head_count_kv(2)
  writer.add_rope_dimension_count(32)
  writer.add_rope_freq_base(10000.0)
  writer.add_layer_norm_rms_eps(1e-6)
  writer.add_vocab_size(32)
  writer.add_tokenizer_model('gpt2')
  writer.add_token_list([chr(ord('A') + i) for i in range(32)])
  writer.add_tensor('rope_freqs.weight', np.full(16, factor, np.float32))
  for name, tensor in model.state_dict().items():
    if name == 'lm_head.weight':
      continue
    stem, suffix = name.rsplit('.', 1)
    writer.add_tensor(f'{names.get_name(stem)}.{suffix}', tensor.numpy())
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  loaded = transformers.AutoModelForCausalLM.from_pretrained('.', gguf_file=f'{factor}.gguf').eval()
  kind = loaded.config.rope_parameters['rope_type']
  with torch.no_grad():
    logits[factor] = loaded(tokens).logits
  print(f'factors {factor}: rope type', kind, '- a logit:', round(logits[factor][0, -1, 0].item(), 4))
  assert kind == 'default'
difference = (logits[1.0] - logits[8.0]).abs().max().item()
print('largest difference of logits between the two files:', difference)
assert difference == 0.0
# All frequencies divided by 8 is linear scaling by 8.
scaled = transformers.LlamaForCausalLM(
  transformers.LlamaConfig(
    **fields, rope_parameters=dict(rope_type='linear', factor=8.0, rope_theta=10000.0)
  )
).eval()
scaled.load_state_dict(loaded.state_dict())
with torch.no_grad():
  expected = (scaled(tokens).logits - logits[8.0]).abs().max().item()
print('largest difference to the model with the scaling:', expected)
assert expected > 0.1
PYTHON
