"""Directions handed on, as files that need nothing of ours to be read.

handover.py  one request, checked, written and read back, in any format
writers.py   the formats: one writer each, and what each writer needs
base_folder.py  the base as its folder tells it, without the parameters
hf.py        a steered Hugging Face checkpoint, written tensor by tensor
orbax.py     orbax arrays: steered weights, or base and direction apart
peft.py      a LoRA adapter; targets.py says who is to load it
merging.py   base plus alpha times the change, and what rounding loses
folding.py   biases where a checkpoint has no tensor for them
parity.py    the written model against the unmerged edit; recheck.py does it without the model
card.py      the model card
verify.py    whether an export, direction, adapter or checkpoint is whole
"""

from weightsteer_jax.export.base_folder import BaseFolder
from weightsteer_jax.export.handover import check as check_export
from weightsteer_jax.export.handover import export
from weightsteer_jax.export.targets import TARGETS
from weightsteer_jax.export.verify import Verified, verify
from weightsteer_jax.export.writers import FORMATS, Request, writer_of
