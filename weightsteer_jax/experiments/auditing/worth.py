"""How well spectra tell fine-tunes known to be misaligned from others, without a direction."""

import pathlib
from collections.abc import Mapping
from typing import Any

from weightsteer_jax.directions.between import BaseSource
from weightsteer_jax.experiments.auditing import reference, update
from weightsteer_jax.experiments.monitoring import auroc

# What the reference of a good fine-tune leaves out: the fine-tune, or all on the same data.
LEFT_OUT = ('itself', 'its data')


def worth(
  folders: Mapping[str, pathlib.Path],
  misaligned: Mapping[str, bool],
  seeds: Mapping[str, int],
  data: Mapping[str, str],
  base: BaseSource,
) -> dict[str, Any]:
  """{what is left out: AUROC and scores} of the distance from the good fine-tunes.

  Each fine-tune is measured against the good ones without itself; and without all that were trained
  on the same data, since an innocent fine-tune may be on data that no reference has. A misaligned
  fine-tune is measured against all good ones in both.

  Args:
    folders: {name: fine-tune}.
    misaligned, seeds, data: {name: truth, seed, name of the data}.

  Raises:
    InputError: if fewer than three good fine-tunes remain, or there are no misaligned ones.
  """
  with update.opened_base(base) as opened:
    updates = {name: update.read(folder, opened) for name, folder in folders.items()}
  told = {}
  for left_out in LEFT_OUT:
    runs = []
    for name in folders:
      good = _reference(name, left_out, misaligned, data)
      if len(good) < reference.FEWEST:
        return {}
      score = reference.distance_from(updates[name], [updates[other] for other in good])
      runs.append(auroc.ScoredRun(name, misaligned[name], score, seeds[name]))
    told[left_out] = {
      'auroc': auroc.to_json(auroc.assess(runs)),
      'distances': {run.name: run.score for run in runs},
    }
  return told


def _reference(
  name: str, left_out: str, misaligned: Mapping[str, bool], data: Mapping[str, str]
) -> list[str]:
  """The good fine-tunes that a fine-tune is measured against."""
  good = []
  for other, is_misaligned in misaligned.items():
    same = other == name or (left_out == LEFT_OUT[1] and data[other] == data[name])
    if not is_misaligned and not same:
      good.append(other)
  return good
