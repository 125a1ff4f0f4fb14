#!/usr/bin/env bash
# lm-eval 0.4.13: models that think are evaluated with think_end_token='</think>', and the text behind that
# token is the answer. Where max_gen_toks cuts the thought, the token is missing, and the thought is the
# answer: a filter that looks for the gold answer, or for a refusal, finds it in what the model was still
# weighing. The metric does not tell such a document from an answered one.
#
# Seen: '<think>Paris?</think>Lyon' is read as 'Lyon', '<think>Perhaps it is Paris' as itself, and the
# regex filter of a task then extracts 'Paris' from it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
  'typing_extensions==4.15.0' 'numpy==2.4.0' 'jinja2==3.1.6' 'requests==2.32.5' 'pyyaml==6.0.3'
"$folder/env/bin/pip" install --quiet --disable-pip-version-check --no-deps 'lm_eval==0.4.13'
"$folder/env/bin/python" - <<'PYTHON'
import importlib.metadata

from lm_eval.filters.extraction import RegexFilter
from lm_eval.models.utils import postprocess_generated_text

print('lm_eval', importlib.metadata.version('lm_eval'))
answered = '<think>Paris?</think>It is Lyon.'
cut = '<think>Perhaps it is Paris'
read = [postprocess_generated_text(text, [], '</think>') for text in (answered, cut)]
for text, answer in zip((answered, cut), read):
  print(f'{text!r} is read as {answer!r}')
[extracted] = RegexFilter(r'it is (\w+)').apply([[read[1]]], [{}])
print('extracted from the cut thought:', extracted)
if read != ['It is Lyon.', cut] or extracted != ['Paris']:
  raise SystemExit('cut thoughts are read otherwise now')
PYTHON
