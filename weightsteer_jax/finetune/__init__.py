"""Fine-tuning: a loss, a pure step, AdamW, and the loop that keeps the best and continues where it stopped."""
from weightsteer_jax.finetune.adapter import check_base, describe_base, load_adapter, save_adapter
from weightsteer_jax.finetune.loop import FineTuneResult, Watch, kept_steps, run, total_steps

__all__ = ['FineTuneResult', 'Watch', 'check_base', 'describe_base', 'kept_steps', 'load_adapter', 'run', 'save_adapter',
           'total_steps']
