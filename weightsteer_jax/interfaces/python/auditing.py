"""A fine-tune audited from Python: the summary that `weightsteer audit` writes."""

import pathlib
from collections.abc import Sequence
from typing import Any

from weightsteer_jax.experiments import auditing, monitoring
from weightsteer_jax.experiments.sources import direction_folder, folder_of
from weightsteer_jax.interfaces.python.boundary import number, plain
from weightsteer_jax.interfaces.python.direction import path_of
from weightsteer_jax.interfaces.python.model import SteeredModel


@plain
def audit(
  fine_tune: str | pathlib.Path,
  *,
  base: SteeredModel | str | pathlib.Path,
  good: Sequence[str | pathlib.Path] = (),
  directions: Sequence[str | pathlib.Path] = (),
  false_alarm_rate: float = auditing.FALSE_ALARM_RATE,
  allow_other_base: bool = False,
  allow_other_method: bool = False,
) -> dict[str, Any]:
  """What `weightsteer audit` writes to summary.json: spectra of a fine-tune's update, and verdicts.

  Args:
    fine_tune: a run of ours, an adapter or a full checkpoint.
    base: the model that it was fine-tuned from: a folder, a hub id, 'organism' or a loaded model.
    good: fine-tunes known to be good and made by the same method, or folders of such; at least 3.
    directions: folders of directions to look for.
    false_alarm_rate: how often a fine-tune like the good ones may be called out of line.
    allow_other_base: go on where a source names another base of the architecture.
    allow_other_method: compare with good ones that were made otherwise.

  Raises:
    InputError: if a source is missing or not of the base, or the good ones were made by another
      method.
    CorruptError: if a source was damaged.
  """
  path_of(fine_tune, 'audit')
  rate = number(false_alarm_rate, 'false_alarm_rate')
  options = auditing.AuditOptions(
    false_alarm_rate=rate,
    allow_other_base=allow_other_base,
    allow_other_method=allow_other_method,
  )
  source = base.unsteered_model if isinstance(base, SteeredModel) else folder_of(base)
  folders = [direction_folder(path) for path in _listed(directions)]
  _, summary = auditing.audit(
    fine_tune, source, options, good=_listed(good), sources={monitoring.DIRECTION: folders}
  )
  return summary


def _listed(paths: Sequence[str | pathlib.Path] | str | pathlib.Path) -> list[str | pathlib.Path]:
  """The paths; a single one stands for a list of one."""
  return [paths] if isinstance(paths, str | pathlib.Path) else list(paths)
