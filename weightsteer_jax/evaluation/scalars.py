"""Results as scalars for TensorBoard."""

import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from weightsteer_jax.storage import scalars


def write(workdir: str | os.PathLike, results: Iterable[Mapping[str, Any]]) -> None:
  """Writes the means of the results to `<workdir>/sweep/tensorboard`.

  An arm is a run, `<task>/<metric>` a scalar, and the step is alpha in thousandths, because
  TensorBoard counts steps in whole numbers.

  Raises:
    OutputError: if they could not be written.
  """
  folder = pathlib.Path(workdir) / 'sweep' / 'tensorboard'
  # Results replace earlier ones, and TensorBoard would show both.
  shutil.rmtree(folder, ignore_errors=True)
  writers: dict[str, scalars.Scalars] = {}
  for row in results:
    mean = row['mean']
    if mean is None or not math.isfinite(mean):
      continue
    arm = row['arm']
    if arm not in writers:
      writers[arm] = scalars.Scalars(folder / arm)
    writers[arm].add(f'{row["task"]}/{row["metric"]}', mean, round(1000 * row['alpha']))
  for writer in writers.values():
    writer.close()
