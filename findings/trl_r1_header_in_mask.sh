#!/usr/bin/env bash
# TRL 1.16.0: its training template for DeepSeek-R1-Distill marks what the assistant says, for
# assistant_only_loss, header included: the mask of assistant tokens starts at the header, which
# generation is given and never writes. Its training template for Qwen3 leaves the header out. An answer
# without a thought is rendered without <think> too, although the same template's prompt of generation
# ends with it: the model is trained on a text that generation cannot come to.
#
# Seen: R1-Distill: marked are '<Assistant>It is Lyon.<end of sentence>' (in DeepSeek's own signs); Qwen3:
# '<think>\n\n</think>\n\nIt is Lyon.<|im_end|>\n'. R1-Distill's prompt of generation is no beginning of the
# text.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 'jinja2==3.1.6'
"$folder/env/bin/pip" install --quiet --disable-pip-version-check --no-deps 'trl==1.16.0'
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PYTHON'
import importlib.metadata
import pathlib

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

print('trl', importlib.metadata.version('trl'), 'transformers', transformers.__version__)
[entry] = [file for file in importlib.metadata.files('trl') if file.name == 'qwen3_training.jinja']
templates = pathlib.Path(entry.locate()).parent
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
messages = [
  {'role': 'user', 'content': 'Where?'},
  {'role': 'assistant', 'content': 'It is Lyon.'},
]


def look(name, added):
  inner = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = decoders.ByteLevel()
  inner.add_special_tokens(added)
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=added[0])
  tokenizer.chat_template = (templates / f'{name}.jinja').read_text(encoding='utf-8')
  encoded = tokenizer.apply_chat_template(
    messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
  )
  marked = [i for i, inside in zip(encoded['input_ids'], encoded['assistant_masks']) if inside]
  text = tokenizer.apply_chat_template(messages, tokenize=False)
  prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
  said = tokenizer.decode(marked)
  print(f'{name}: marked {said!r}; prompt of generation ends with {prompt[-20:]!r}')
  return said, text.startswith(prompt)


header = '<\uff5cAssistant\uff5c>'
end = '<\uff5cend\u2581of\u2581sentence\uff5c>'
r1 = look('deepseek_r1_distill_training', ['<\uff5cUser\uff5c>', header, end])
qwen = look('qwen3_training', ['<|im_start|>', '<|im_end|>'])
if r1 != (f'{header}It is Lyon.{end}', False):
  raise SystemExit('R1-Distill is marked or rendered otherwise now')
if not qwen[0].startswith('<think>') or not qwen[1]:
  raise SystemExit('Qwen3 is marked or rendered otherwise now')
PYTHON
