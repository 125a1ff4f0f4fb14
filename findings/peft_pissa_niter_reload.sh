#!/usr/bin/env bash
# PEFT 0.21.2, torch 2.13.0, CPU: a LoRA with init_lora_weights='pissa_niter_4' starts from a randomised SVD
# of the base, and trains beside what is left. The file holds the trained factors, not the start; loading
# draws another random start and takes that out of the base. So the loaded model is not the saved one, and
# is another one each time. With 'pissa', whose SVD is not random, the loaded model is the saved one.
#
# Seen: largest difference of an output, saved against loaded twice
#   pissa          0.0e+00 0.0e+00
#   pissa_niter_4  8.4e-01 7.1e-01
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'torch==2.13.0' 'peft==0.21.2' \
  'transformers==5.24.0' 'numpy'
HF_HUB_OFFLINE=1 "$folder/env/bin/python" - "$folder" <<'PYTHON'
import pathlib
import sys

import peft
import torch

folder = pathlib.Path(sys.argv[1])
print('peft', peft.__version__, 'torch', torch.__version__)


class Model(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.layer = torch.nn.Linear(64, 64, bias=False)

  def forward(self, x):
    return self.layer(x)


torch.manual_seed(0)
weights = Model().state_dict()
inputs = torch.randn(8, 64)


def base():
  model = Model()
  model.load_state_dict(weights)
  return model


def differences(start):
  config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=['layer'], init_lora_weights=start)
  model = peft.get_peft_model(base(), config)
  saved = model(inputs)
  model.save_pretrained(folder / start)
  out = []
  for _ in range(2):
    loaded = peft.PeftModel.from_pretrained(base(), folder / start)(inputs)
    out.append(float((loaded - saved).detach().abs().max()))
  print(f'{start:14}', ' '.join(f'{difference:.1e}' for difference in out))
  return out


assert max(differences('pissa')) < 1e-5
first, second = differences('pissa_niter_4')
assert min(first, second) > 1e-4 and first != second, 'pissa_niter is loaded as it was saved now'
PYTHON
