#!/usr/bin/env bash
# The clustered standard error of a single question is 0, not unknown.
#
# inspect-ai 0.3.285: `stderr(cluster='question')` of three samples of one question, two of them right, is 0.0. The
# error of a mean over one question cannot be told from that question; a log shows accuracy 0.667, stderr 0.000, as
# for a number that is known exactly. The error of one sample is 0 as well. Two questions of two samples give 0.5,
# which is right.
#
# Run: bash findings/inspect_error_of_one_question.sh     (pip installs some 90 packages into a temporary folder)
# Seen (Python 3.11): one question 0.0, one sample 0, two questions 0.5. Exits 1 once that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet inspect-ai==0.3.285
cat > "$folder/errors.py" <<'PYTHON'
import sys
from importlib.metadata import version

from inspect_ai.scorer import SampleScore, Score, stderr


def sample(value, question):
  return SampleScore(score=Score(value=value), sample_metadata={'question': question})


print('inspect-ai', version('inspect-ai'))
alone = stderr(cluster='question')([sample(1, 'a'), sample(0, 'a'), sample(1, 'a')])
single = stderr()([sample(1, 'a')])
both = stderr(cluster='question')([sample(x, q) for q, x in (('a', 1), ('a', 1), ('b', 0), ('b', 0))])
print('one question, three samples:', alone)
print('one sample:', single)
print('two questions of two samples:', both)
sys.exit(0 if (alone, single, both) == (0.0, 0, 0.5) else 1)
PYTHON
"$folder/venv/bin/python" "$folder/errors.py"
