"""Starts of LoRA that move part of the base into the adapter: PiSSA, OLoRA, CorDA.

Such a fine-tune starts from factors A0, B0 taken out of the base, and trains beside the rest:

  W = (W - s B0 A0) + s B A      its change is s B A - s B0 A0, with the scale s

The file holds A and B. Two fine-tunes with one start have one rest, which cancels out of their
difference: the difference is that of their pairs. Otherwise the start is computed from the base
again, as PEFT does when it loads such an adapter.

| `init_lora_weights` | s B0 A0 | known again from |
|---|---|---|
| pissa | the r largest singular values of W | the base, r |
| olora | s times the first r columns of Q and rows of R, of W = Q R | the base, r, s |
| corda | the r largest of W C, with C of sample inputs | the samples |
| pissa_niter_N, lora_ga, loftq | random, of gradients, of quantised weights | nothing |

Source: peft 0.21.2, peft/tuners/lora/layer.py: pissa_init, olora_init, corda_init.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from weightsteer_jax.runtime.errors import InputError

# Starts that leave the base as it is.
PLAIN = ('', 'gaussian', 'eva', 'orthogonal', 'mica')
PISSA = 'pissa'
OLORA = 'olora'
CORDA = 'corda'
CONVERT = (
  'Convert it where it was trained: save the adapter once before training, with '
  "init_lora_weights=True in its config, and at the end with PEFT's save_pretrained(..., "
  'path_initial_model_for_weight_conversion=FOLDER_OF_THE_FIRST), which makes it a plain LoRA'
)


def start_of(config: Mapping[str, Any]) -> str:
  """The start in lower case; '' if the base is left as it is."""
  value = config.get('init_lora_weights')
  name = value.lower() if isinstance(value, str) else ''
  return '' if name in PLAIN else name


def check(config: Mapping[str, Any], path: pathlib.Path) -> None:
  """Raises InputError if the start cannot be known again.

  Raises:
    InputError: if the start is random, of gradients or of quantised weights, or unknown; or if it
      is joined with DoRA, whose magnitudes are those of the rest.
  """
  start = start_of(config)
  told = f"{path}: init_lora_weights is '{config.get('init_lora_weights')}'"
  if start.startswith('pissa_niter'):
    raise InputError(
      f'{told}: its start is a randomised SVD, which differs from run to run and is not in the '
      f'file. PEFT itself draws another one when it loads the adapter, so its model is not the '
      f'trained one either. {CONVERT}'
    )
  if start not in ('', PISSA, OLORA, CORDA):
    raise InputError(
      f"{told}, which moves a part of the base's weights into the adapter that is not in the file. "
      f'{CONVERT}'
    )
  if start and config.get('use_dora'):
    raise InputError(f'{told} together with use_dora, which is not read. {CONVERT}')
