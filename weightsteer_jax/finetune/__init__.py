"""Fine-tuning: a loss, a pure step, AdamW, and the loop that keeps the best and continues where it
stopped.
"""

from weightsteer_jax.finetune.adapter import check_base, describe_base, load_adapter, save_adapter
from weightsteer_jax.finetune.loop import (
  FineTuneResult,
  Fit,
  Watch,
  kept_steps,
  run,
  run_together,
  total_steps,
)

__all__ = [
  'FineTuneResult',
  'Fit',
  'Watch',
  'check_base',
  'describe_base',
  'kept_steps',
  'load_adapter',
  'run',
  'run_together',
  'save_adapter',
  'total_steps',
]
