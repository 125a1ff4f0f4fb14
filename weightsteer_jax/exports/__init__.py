"""Directions handed on, as files for other programs.

handover.py     a request: checked, written, read back, compared and sealed
writers.py      the formats: a writer each, and the needs of the writer
base_folder.py  the base, known from the files alone
hf.py           a steered Hugging Face checkpoint, written block by block
orbax.py        orbax arrays: steered weights, or base and direction apart
gguf.py         a LoRA adapter of llama.cpp
peft.py         a LoRA adapter; targets.py lists the libraries that load adapters
experts.py      pairs of experts, for the libraries that stack them and for those that do not
merging.py      base plus alpha times the change, and the loss by rounding
folding.py      biases without a tensor in the base
parity.py       the written model against the unmerged edit; recheck.py needs no model
card.py         the model card
verify.py       whether an export, direction, adapter or checkpoint is whole
"""

from weightsteer_jax.exports.base_folder import BaseFolder
from weightsteer_jax.exports.handover import check as check_export
from weightsteer_jax.exports.handover import export
from weightsteer_jax.exports.targets import TARGETS
from weightsteer_jax.exports.verify import Verified, verify
from weightsteer_jax.exports.writers import FORMATS, ExportRequest, writer_of
