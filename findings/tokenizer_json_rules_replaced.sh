#!/usr/bin/env bash
# transformers 5.24.0: AutoTokenizer takes the vocabulary, the merges and the added tokens out of a
# tokenizer.json beside a config.json of model_type qwen2, and puts the normaliser and the pre-tokenizer
# of Qwen2Tokenizer around them, whatever the file has, and whatever class tokenizer_config.json names.
# Nothing is said. Beside model_type phi3 the same file is kept.
#
# Seen: a tokenizer with digits in threes, saved as PreTrainedTokenizerFast, reads "12345" as 123, 45 by
# tokenizer.json, by the tokenizers library and beside phi3; beside qwen2 as 1, 2, 3, 4, 5.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 'tokenizers==0.23.3'
cd "$folder"
HF_HUB_OFFLINE=1 env/bin/python - <<'PYTHON'
import json
import pathlib

import tokenizers
import transformers
from tokenizers import models, pre_tokenizers

vocabulary = {text: i for i, text in enumerate(['<end>', *'12345', '12', '123', '45'])}
merges = [('1', '2'), ('12', '3'), ('4', '5')]
core = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
core.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r'\d{1,3}'), 'isolated')
core.add_special_tokens(['<end>'])
saved = transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token='<end>')
saved.save_pretrained('model')
kept = json.loads(pathlib.Path('model/tokenizer_config.json').read_text())['tokenizer_class']
print('transformers', transformers.__version__, 'tokenizers', tokenizers.__version__)
print('tokenizer_config.json names', kept)
by_file = tokenizers.Tokenizer.from_file('model/tokenizer.json').encode('12345').tokens
print('tokenizer.json:', by_file)
assert by_file == ['123', '45'], by_file
for model_type, expected in (('phi3', ['123', '45']), ('qwen2', list('12345'))):
  pathlib.Path('model/config.json').write_text(json.dumps({'model_type': model_type}))
  tokenizer = transformers.AutoTokenizer.from_pretrained('model')
  tokens = tokenizer.tokenize('12345')
  print(f'beside {model_type}: {type(tokenizer).__name__}', tokens)
  assert tokens == expected, 'AutoTokenizer reads the file otherwise now'
PYTHON
