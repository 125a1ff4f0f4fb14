"""Fine-tuning: a pure step, and the loop that keeps the best and continues where it stopped.

fit.py        the request for a fine-tune, and the same with batches
trial.py      one learning rate of a fit, as far as the training is
group.py      several trials trained as one program
loop.py       the order of trials, validation, products
step.py       the optimizer step as a pure function
loss.py       the loss as a sum and a count
optimizer.py  AdamW as the Hugging Face trainer runs it
memory.py     bytes of a step, and the number of trials that train together
adapter.py    the product as a folder
claim.py      the claim of a workdir by one fine-tune
log.py        metrics.jsonl, TensorBoard and the bar
"""

from weightsteer_jax.finetune.adapter import check_base, describe_base, load_adapter, save_adapter
from weightsteer_jax.finetune.fit import Fit, Watch, total_steps
from weightsteer_jax.finetune.loop import FineTuneResult, kept_steps, run, run_together

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
