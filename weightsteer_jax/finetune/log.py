"""What a fine-tune tells while it runs: metrics.jsonl, TensorBoard scalars and a progress bar."""
import json
import pathlib
import sys
import time
from typing import Any

import tqdm

from weightsteer_jax import files
from weightsteer_jax.errors import OutputError

METRICS = 'metrics.jsonl'


class Log:
  """The log of one learning rate's run; a context manager.

  Rows of metrics.jsonl have `peak` (the learning rate that names the run) and `step` (steps taken), and either `train_loss` (nats per
  target token), `grad_norm`, `learning_rate`, `target_tokens`, `tokens` and `seconds` of a step, or `validation_loss` (nats per target
  token). A resumed run continues from `step`: what an earlier process logged beyond it is dropped, since it happens again.
  """

  def __init__(self, folder: pathlib.Path, *, peak: float, step: int, total: int, progress: bool):
    from tensorboardX import SummaryWriter  # Imported late: protobuf makes it slow, and only training needs it.
    self._peak = peak
    self._path = folder / METRICS
    _drop_rows(self._path, peak=peak, after=step)
    self._writer = SummaryWriter(str(folder / 'tensorboard' / f'{peak:g}'), purge_step=step + 1 if step else None)
    # A terminal is redrawn at once; a log file gets a line now and then.
    self._bar = tqdm.tqdm(total=total, initial=step, desc=f'learning rate {peak:g}', unit='step', disable=not progress, file=sys.stderr,
                          mininterval=0.1 if sys.stderr.isatty() else 10.0, dynamic_ncols=True)
    self._shown: dict[str, str] = {}
    self._last = time.monotonic()
    self._measured: tuple[int, float] | None = None  # (tokens, seconds) after the first step, which compiles

  def __enter__(self) -> 'Log':
    return self

  def __exit__(self, *error) -> None:
    self._bar.close()
    self._writer.close()

  def step(self, step: int, values: dict[str, float], *, tokens: int) -> None:
    """Logs one training step of `tokens` tokens (without padding)."""
    seconds = time.monotonic() - self._last
    self._last += seconds
    self._write({'step': step, **values, 'tokens': tokens, 'seconds': round(seconds, 6)})
    if self._measured is None:
      self._measured = (0, 0.0)
    else:
      self._measured = (self._measured[0] + tokens, self._measured[1] + seconds)
      self._shown['tokens/s'] = f'{self._measured[0] / max(self._measured[1], 1e-9):.0f}'
    self._shown['loss'] = f'{values["train_loss"]:.4f}'
    self._bar.set_postfix(self._shown, refresh=False)
    self._bar.update(1)

  def validation(self, step: int, loss: float) -> None:
    """Logs a validation, whose time does not count as a step's."""
    self._write({'step': step, 'validation_loss': loss})
    self._shown['validation'] = f'{loss:.4f}'
    self._bar.set_postfix(self._shown)
    self._last = time.monotonic()

  def _write(self, row: dict[str, Any]) -> None:
    try:
      with open(self._path, 'a', encoding='utf-8') as file:
        file.write(json.dumps({'peak': self._peak, **row}, allow_nan=False) + '\n')
    except OSError as error:
      raise OutputError(f'{self._path} could not be written: {error.strerror or error}; make room and start again to continue') from error
    for name, value in row.items():
      if name != 'step':
        self._writer.add_scalar(name, value, row['step'])


def _drop_rows(path: pathlib.Path, *, peak: float, after: int) -> None:
  if path.exists():
    rows = [line for line in path.read_text(encoding='utf-8').splitlines() if _stays(line, peak, after)]
    files.write_text(path, ''.join(line + '\n' for line in rows))


def _stays(line: str, peak: float, after: int) -> bool:
  try:
    row = json.loads(line)
  except ValueError:  # The process was killed while it wrote this line.
    return False
  return row['peak'] != peak or row['step'] <= after
