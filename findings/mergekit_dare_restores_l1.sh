#!/usr/bin/env bash
# mergekit 0.1.4: DARE does not divide what it keeps by the density; it restores the sum of sizes.
#
# DARE (arXiv 2311.03099) drops elements by chance and divides the others by the share that is kept, so
# that every element is right on average. mergekit's documentation says that `rescale` "applies DARE's
# rescaling"; its code multiplies what is kept so that the tensor's sum of absolute values is what it was.
# Where a few elements are large, the factor then depends on whether they were kept.
#
# Seen: of a tensor with one element of 1000 and 99 of 1, at a density of 0.5, kept elements are multiplied
# by 1.05 where the large one is kept, and by 22.6 on average where not. The paper's factor is 2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q numpy==2.3.5 torch==2.13.0
"$folder/venv/bin/pip" install -q --no-deps mergekit==0.1.4
cat > "$folder/check.py" <<'PY'
import sys

import torch
from mergekit.sparsify import RescaleNorm, bernoulli

torch.manual_seed(0)
delta = torch.ones(100)
delta[0] = 1000.0
factors = {True: [], False: []}
for _ in range(200):
  kept = bernoulli(delta, 0.5, RescaleNorm.l1)
  ratio = kept / delta
  factor = float(ratio[ratio != 0][-1])
  factors[bool(kept[0] != 0)].append(factor)
with_large = sum(factors[True]) / len(factors[True])
without = sum(factors[False]) / len(factors[False])
print(f'mean factor of kept elements: {with_large:.2f} where the large one is kept, {without:.1f} where not')
print('the factor of the paper: 2.00')
alike = abs(with_large - 2) < 0.1 and abs(without - 2) < 0.1
sys.exit(alike or not (1.0 < with_large < 1.1 and without > 15))
PY
"$folder/venv/bin/python" "$folder/check.py"
