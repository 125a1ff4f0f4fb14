"""One fine-tune audited: what its update looks like, and whether others made alike look the same.

update.py     the update's spectra, module by module, and how the fine-tune was made
reference.py  the update against those of known good fine-tunes
run.py        one fine-tune audited, as rows and a summary
worth.py      how well spectra tell fine-tunes known to be misaligned from others
"""

from weightsteer_jax.experiments.auditing.run import (
  FALSE_ALARM_RATE,
  AuditOptions,
  audit,
  is_alarmed,
  write,
)
from weightsteer_jax.experiments.auditing.update import Update, read
from weightsteer_jax.experiments.auditing.worth import worth
