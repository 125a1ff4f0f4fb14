"""Audits measured: seconds for a 7B shape, and spectra judged against another method's good ones.

  python benchmarks/audit.py
  python benchmarks/audit.py WORKDIR OTHER_WORKDIR

The first times the spectra of random factors: all projections of Llama-2-7B, rank 16. The second
takes two runs of monitor_organism with different ranks, as by

  weightsteer steer --config=monitor_organism --workdir=WORKDIR
  weightsteer steer --config=monitor_organism --config.finetune.rank=2 \
    --config.finetune.lora_alpha=4.0 --workdir=OTHER_WORKDIR

and prints the AUROC of the distance from the good fine-tunes of the same and of the other run, all
at their last step.
"""

import pathlib
import sys
import time

import numpy as np

from weightsteer_jax.directions import spectra
from weightsteer_jax.experiments import monitoring
from weightsteer_jax.experiments.auditing import reference, update
from weightsteer_jax.experiments.sources import folder_of

RANK = 16
LAYERS = 32
WIDTH = 4096
MLP = 11008
# Inputs and outputs of q, k, v, o, gate, up and down.
SHAPES = [(WIDTH, WIDTH)] * 4 + [(WIDTH, MLP)] * 2 + [(MLP, WIDTH)]


def time_spectra() -> None:
  """Prints the seconds of all spectra of an adapter."""
  rng = np.random.default_rng(0)
  factors = []
  for inputs, outputs in SHAPES:
    a = rng.standard_normal((inputs, RANK), np.float32)
    b = rng.standard_normal((RANK, outputs), np.float32)
    factors.append((a, b))
  start = time.perf_counter()
  for _ in range(LAYERS):
    for a, b in factors:
      spectra.of_factors(a, b)
  seconds = time.perf_counter() - start
  count = LAYERS * len(SHAPES)
  print(f'{count} matrices of rank {RANK}: {seconds:.2f} s, {1000 * seconds / count:.1f} ms each')


def read(workdir: str) -> dict[str, update.Update]:
  """{fine-tune: update at the last step} of a run's watched fine-tunes."""
  updates = {}
  with update.opened_base(folder_of('organism')) as base:
    for folder in sorted((pathlib.Path(workdir) / 'watched').iterdir()):
      if (folder / 'adapter').is_dir():
        last = monitoring.find(folder)[-1]
        updates[folder.name] = update.read(last.folder, base)
  return updates


def judge(measured: dict[str, update.Update], good: dict[str, update.Update]) -> None:
  """Prints the AUROC of the distances from the good fine-tunes of one name excluded."""
  runs = []
  for name, audited in measured.items():
    others = []
    for other, one in good.items():
      if other != name and not other.startswith('bad_'):
        others.append(one)
    distance = reference.distance_from(audited, others)
    seed = int(name.rpartition('-')[2])
    runs.append(monitoring.ScoredRun(name, name.startswith('bad_'), distance, seed))
  auroc = monitoring.assess(runs)
  low, high = auroc.interval
  print(f'AUROC {auroc.value:.3f} (95% interval {low:.3f} to {high:.3f})')


if __name__ == '__main__':
  if len(sys.argv) == 1:
    time_spectra()
  else:
    runs_of = [read(workdir) for workdir in sys.argv[1:3]]
    for index, measured_runs in enumerate(runs_of):
      for place, good_runs in enumerate(runs_of):
        print(f'{sys.argv[1 + index]} against the good ones of {sys.argv[1 + place]}: ', end='')
        judge(measured_runs, good_runs)
