#!/usr/bin/env bash
# transformers 5.24.0: a chat template may call strftime_now, which tells the day by the clock. Variables
# passed to apply_chat_template win over functions of the template's environment, but a function among
# them becomes the text '<function>' before the template is rendered. So the day of a dated template
# (Llama 3.2, Granite 3) cannot be fixed by passing a strftime_now of one's own: the call in the template
# fails. A value, as in date_string, arrives as it is.
#
# Seen: without a variable the present day; date_string='1 May 2026' is rendered; strftime_now=<function>
# ends with "TypeError: 'str' object is not callable".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'transformers==5.24.0' 'jinja2==3.1.6'
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - <<'PYTHON'
import datetime

import transformers
from tokenizers import Tokenizer, models

print('transformers', transformers.__version__)
tokenizer = transformers.PreTrainedTokenizerFast(
  tokenizer_object=Tokenizer(models.WordLevel({'<unk>': 0}, unk_token='<unk>'))
)
tokenizer.chat_template = (
  "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
  '{{ date_string }}: {{ messages[0].content }}'
)


def rendered(**variables):
  messages = [{'role': 'user', 'content': 'Hi'}]
  return tokenizer.apply_chat_template(messages, tokenize=False, **variables)


today = rendered()
print('no variable:', today)
assert today == datetime.datetime.now().strftime('%d %b %Y') + ': Hi'
print('date_string:', rendered(date_string='1 May 2026'))
assert rendered(date_string='1 May 2026') == '1 May 2026: Hi'
try:
  print('strftime_now:', rendered(strftime_now=lambda form: '1 May 2026'))
except TypeError as error:
  print(f'strftime_now: TypeError: {error}')
  assert 'not callable' in str(error)
else:
  raise SystemExit('a function arrives in the template now')
PYTHON
