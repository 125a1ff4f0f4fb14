"""The log of a running fine-tune: metrics.jsonl, TensorBoard scalars and a progress bar."""

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from weightsteer_jax.runtime import json_text, processes
from weightsteer_jax.runtime import progress as bars
from weightsteer_jax.runtime.errors import OutputError
from weightsteer_jax.storage import files, scalars

METRICS = 'metrics.jsonl'


class Log:
  """The log of one trial; a context manager.

  Rows of metrics.jsonl have `peak` (the learning rate that names the trial) and `step` (steps
  taken), and either `train_loss` (nats per target token), `grad_norm`, `learning_rate`,
  `target_tokens`, `tokens` (without padding) and `seconds` of a step, at some steps what the
  fine-tune is watched for (see fit.Watch), or `validation_loss` (nats per target token). With
  several processes the main one logs.

  Args:
    folder: the workdir of the fine-tune.
    peak: the learning rate of the trial.
    step: where the trial goes on. What an earlier process logged beyond this step is dropped: the
      steps are taken again.
    total: steps of the trial, if it does not stop early.
    progress: whether to show the bar.
  """

  def __init__(self, folder: pathlib.Path, *, peak: float, step: int, total: int, progress: bool):
    self._peak = peak
    self._path = folder / METRICS
    self._scalars = None
    if processes.is_main():
      _drop_rows(self._path, peak=peak, after=step)
      self._scalars = scalars.Scalars(folder / 'tensorboard' / f'{peak:g}', resumed_at=step)
    title = f'{folder.name}, learning rate {peak:g}'
    self._bar = bars.bar(title, unit='step', total=total, done=step, shown=progress)
    self._shown: dict[str, str] = {}
    self._last = time.monotonic()
    self._steps_seen = 0
    self._tokens_seen = 0
    self._seconds_seen = 0.0

  def __enter__(self) -> 'Log':
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def close(self) -> None:
    """Ends the bar and the TensorBoard file; once is enough."""
    self._bar.close()
    if self._scalars:
      self._scalars.close()
    self._scalars = None

  def step(self, step: int, values: Mapping[str, float], *, tokens: int) -> None:
    """Logs one training step of `tokens` tokens (without padding)."""
    seconds = time.monotonic() - self._last
    self._last += seconds
    self._write({'step': step, **values, 'tokens': tokens, 'seconds': round(seconds, 6)})
    # The first step compiles, and says nothing about the speed.
    if self._steps_seen:
      self._tokens_seen += tokens
      self._seconds_seen += seconds
      self._shown['tokens/s'] = f'{self._tokens_seen / max(self._seconds_seen, 1e-9):.0f}'
    self._steps_seen += 1
    self._shown['loss'] = f'{values["train_loss"]:.4f}'
    self._bar.set_postfix(self._shown, refresh=False)
    self._bar.update(1)

  def validation(self, step: int, loss: float) -> None:
    """Logs a validation, whose time does not count as a step's."""
    self._write({'step': step, 'validation_loss': loss})
    self._shown['validation'] = f'{loss:.4f}'
    self._bar.set_postfix(self._shown)
    self._last = time.monotonic()

  def _write(self, row: Mapping[str, Any]) -> None:
    if not self._scalars:
      return
    try:
      with open(self._path, 'a', encoding='utf-8') as file:
        file.write(json.dumps({'peak': self._peak, **row}, allow_nan=False) + '\n')
      for name in row.keys() - {'step'}:
        self._scalars.add(name, row[name], row['step'])
    except OSError as error:
      raise OutputError(
        f'{self._path.parent}: the log could not be written: {error.strerror or error}; start '
        'again to continue when that is mended'
      ) from error


def _drop_rows(path: pathlib.Path, *, peak: float, after: int) -> None:
  if path.exists():
    lines = path.read_text(encoding='utf-8').splitlines()
    rows = [line for line in lines if _stays(line, peak, after)]
    files.write_text(path, ''.join(line + '\n' for line in rows))


def _stays(line: str, peak: float, after: int) -> bool:
  try:
    row = json_text.parse(line)
  # The process was killed while it wrote this line.
  except ValueError:
    return False
  # At step 0 everything is logged again, the validation before the first step included.
  return row['peak'] != peak or 0 < after and row['step'] <= after
