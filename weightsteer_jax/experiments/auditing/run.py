"""A fine-tune audited, as rows and a summary, and both as files.

audit.csv      a row for each matrix: norm, largest singular values, stable rank, entropy, z values
summary.json   the same by kind of module, the comparison with good ones, what monitoring says
"""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weightsteer_jax.directions.between import BaseSource, recognise
from weightsteer_jax.experiments import monitoring
from weightsteer_jax.experiments.auditing import reference, update
from weightsteer_jax.experiments.auditing.reference import Comparison
from weightsteer_jax.experiments.auditing.update import Update
from weightsteer_jax.experiments.monitoring import trajectory
from weightsteer_jax.runtime.progress import say
from weightsteer_jax.storage import files
from weightsteer_jax.storage.versions import versions

# The files of an audit.
ROWS = 'audit.csv'
SUMMARY = 'summary.json'
# How often a fine-tune like the good ones may be called out of line.
FALSE_ALARM_RATE = 0.05
# Largest singular values of a matrix that are written down.
TOP = 8


@dataclasses.dataclass(frozen=True)
class AuditOptions:
  """How a fine-tune is audited.

  Attributes:
    false_alarm_rate: how often a fine-tune like the good ones may be called out of line, and a
      direction like the controls may raise an alarm.
    random, seed: random controls of each direction, and their seed (see monitoring).
    allow_other_base: go on where a source names another base of the architecture.
    allow_other_method: go on where good fine-tunes were made by another method.
  """

  false_alarm_rate: float = FALSE_ALARM_RATE
  random: int = 100
  seed: int = 0
  allow_other_base: bool = False
  allow_other_method: bool = False


def audit(
  fine_tune: files.Path,
  base: BaseSource,
  options: AuditOptions,
  *,
  good: Sequence[files.Path] = (),
  sources: Mapping[str, Sequence[files.Path]] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """The rows and the summary of an audit.

  Args:
    fine_tune: a run of ours, an adapter or a full checkpoint.
    good: fine-tunes known to be good, or folders of such.
    sources: as of `monitoring.monitor`; without directions, nothing is monitored.

  Raises:
    InputError: if a source is missing or not of the base, the good ones were made by another
      method, or there are too few.
    CorruptError: if a source was damaged.
  """
  monitoring.check_rate(options.false_alarm_rate)
  other_base = options.allow_other_base
  # Whatever can be refused by looking at names is, before anything is read.
  recognise(fine_tune)
  folders = update.folders_of(good)
  with update.opened_base(base) as opened:
    audited = update.read(fine_tune, opened, allow_other_base=other_base)
    others = [update.read(folder, opened, allow_other_base=other_base) for folder in folders]
    source = opened.record.source
  comparison = None
  notes: list[str] = []
  if others:
    if not options.allow_other_method:
      notes = reference.check_method(audited, others)
    else:
      notes = [f'methods were not compared; {reference.ACROSS}']
    comparison = reference.compare(audited, others)
  for note in notes:
    say(f'warning: {note}')
  monitored = None
  if sources and sources.get(monitoring.DIRECTION):
    monitored = _monitored(fine_tune, base, sources, options)
  summary = {
    'fine_tune': str(fine_tune),
    'base': source,
    **dataclasses.asdict(options),
    'method': audited.method,
    'training': audited.training,
    'whole': _together(audited, None),
    'modules': {module: _together(audited, module) for module in audited.method['modules']},
    'notes': notes,
    'comparison': _told(comparison, options.false_alarm_rate),
    'monitor': monitored,
    'versions': versions('weightsteer_jax', 'jax', 'numpy'),
  }
  return _rows(audited, comparison), summary


def is_alarmed(summary: Mapping[str, Any]) -> bool:
  """Whether the fine-tune is out of line, or moves along a direction that was looked for."""
  comparison = summary['comparison']
  monitored = summary['monitor'] or {'directions': {}}
  alarms = [about['alarm']['step'] for about in monitored['directions'].values()]
  out_of_line = comparison is not None and comparison['out_of_line']
  return out_of_line or any(step is not None for step in alarms)


def write(
  folder: pathlib.Path, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> None:
  """Writes the rows and the summary into a folder."""
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  files.write_text(folder / ROWS, text.getvalue())
  files.write_json(folder / SUMMARY, summary)


def _monitored(
  fine_tune: files.Path,
  base: BaseSource,
  sources: Mapping[str, Sequence[files.Path]],
  options: AuditOptions,
) -> dict[str, Any]:
  """The summary of monitoring the finished fine-tune, as a run of one step."""
  source = recognise(fine_tune)
  step = trajectory.Step(0, source.kind, source.folder)
  monitor_options = monitoring.MonitorOptions(
    random=options.random,
    seed=options.seed,
    false_alarm_rate=options.false_alarm_rate,
    allow_other_base=options.allow_other_base,
  )
  # The audit says what came out in words of its own.
  _, summary = monitoring.monitor(
    fine_tune, base, sources, monitor_options, steps=[step], say=lambda line: None
  )
  return summary


def _together(audited: Update, module: str | None) -> dict[str, Any]:
  """The norm over all matrices of a kind of module, and means of the other numbers."""
  found = []
  for (name, _, _), spectrum in audited.spectra.items():
    # Matrices of zeros have no spectrum to average.
    if spectrum.top and module in (None, name):
      found.append(spectrum)
  norm = math.sqrt(math.fsum(spectrum.square for spectrum in found))
  about: dict[str, Any] = {'matrices': len(found), 'norm': norm}
  if found:
    about |= {
      'largest_singular_value': max(spectrum.top for spectrum in found),
      'stable_rank': _mean([spectrum.stable_rank for spectrum in found]),
      'entropy': _mean([spectrum.entropy for spectrum in found]),
      'effective_rank': _mean([spectrum.effective_rank for spectrum in found]),
      'entropy_error': max(spectrum.entropy_error for spectrum in found),
      'largest_singular_value_error': max(spectrum.top_error for spectrum in found),
    }
  return about


def _mean(values: Sequence[float]) -> float:
  return math.fsum(values) / len(values)


def _told(comparison: Comparison | None, rate: float) -> dict[str, Any] | None:
  """The comparison as JSON, with the verdict."""
  if comparison is None:
    return None
  # With n good ones, no p value is below 1 / (n + 1): that is then the rate.
  least = 1 / (len(comparison.good) + 1)
  actual = max(rate, least)
  furthest = []
  for (module, layer, expert), name, z in comparison.furthest[:TOP]:
    furthest.append({'module': module, 'layer': layer, 'expert': expert, 'number': name, 'z': z})
  return {
    'distance': comparison.distance,
    'good': comparison.good,
    'p_value': comparison.p_value,
    'false_alarm_rate': actual,
    'out_of_line': comparison.p_value <= actual,
    'by_number': comparison.by_feature,
    'furthest': furthest,
    'matrices': len(comparison.z_values),
  }


def _rows(audited: Update, comparison: Comparison | None) -> list[dict[str, Any]]:
  """A row for each matrix; numbers that a matrix does not have are empty."""
  rows = []
  for where, spectrum in audited.spectra.items():
    module, layer, expert = where
    row: dict[str, Any] = {
      'module': module,
      'layer': layer,
      'expert': expert,
      'norm': spectrum.norm,
      'stable_rank': spectrum.stable_rank,
      'entropy': spectrum.entropy,
      'entropy_error': spectrum.entropy_error,
      'effective_rank': spectrum.effective_rank,
      'largest_singular_value_error': spectrum.top_error,
    }
    for number in range(TOP):
      known = number < len(spectrum.values)
      row[f'singular_value_{number + 1}'] = float(spectrum.values[number]) if known else None
    if comparison is not None:
      z_F = comparison.z_values.get(where, np.full(len(reference.FEATURES), np.nan))
      for name, z in zip(reference.FEATURES, z_F):
        row[f'z_{name.replace(" ", "_")}'] = None if np.isnan(z) else float(z)
    rows.append(row)
  return rows
