"""Where the time goes in the main jobs on the embedded model, from a profile of each.

  python benchmarks/where.py [--output=benchmarks/where.json]
  [--jobs=contrast,finetune,score,generate]

Each job is a stage of configs/quickstart.py, started from the files of the stages before it, in a
process of its own that has compiled nothing yet. `host` is the main thread: each second belongs to
the innermost thing that said its name. `device` is the time of the compiled operations, each named
by what the compiler says it was made of; those of several threads of a CPU add up. Printed as
markdown, kept as JSON.
"""

import collections
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

from absl import app, flags

JOBS = ('contrast', 'finetune', 'score', 'generate')
flags.DEFINE_list(
  'jobs', list(JOBS), 'To run, in this order; each needs what the ones before it wrote.'
)
flags.DEFINE_string('output', '', 'JSON file to write.')
flags.DEFINE_string('job', '', 'The one that this process runs, in --workdir.')
flags.DEFINE_string('workdir', '', 'Of it.')

ROOT = pathlib.Path(__file__).parent.parent
TRACE = '*/plugins/profile/*/*.xplane.pb'
# What the host is at, by the names in a trace; the first that fits counts.
HOST = (
  ('compile', r'compile|lower_|trace_to_jaxpr|MlirModule|infer_params|Tracing|cache_key'),
  (
    'wait for the device',
    r'Await|BlockHostUntilReady|ThunkExecutor|^decode$|^read scores$|^_read$|^_losses$',
  ),
  ('orbax', r'^Checkpoints\.'),
  ('write adapters', r'^save_adapter'),
  ('tokenise', r'^encode_examples|^_prepare|^check$'),
  ('pack', r'^Batches\.batch'),
  (
    'dispatch',
    r'PjitFunction|shard_args|DevicePut|PjRt|Execute|Buffer|ParseArguments|input|output|'
    r'CollectGarbage',
  ),
)
REST = 'other Python'
# What an operation is, by its module and by what the compiler says of it: a product, then of what.
ATTENTION = re.compile(r'BKGTS|KMt|dot_product_attention|/attention/|splash')
PRODUCT = re.compile(r'\bdot\(|convolution\(|custom_call_target="[^"]*(gemm|matmul|dot)', re.I)
SAMPLING = re.compile(r'argmax|sort|random_bits|threefry|top_k|cumsum|gumbel')
CONTROL = re.compile(r'^(while|call|conditional|async)')


def main(argv):
  del argv
  if flags.FLAGS.job:
    return run_job(flags.FLAGS.job, flags.FLAGS.workdir)
  with tempfile.TemporaryDirectory() as scratch:
    found = [look(job, pathlib.Path(scratch)) for job in flags.FLAGS.jobs]
  about = {'cpu_count': os.cpu_count(), 'machine': platform.machine(), 'load': os.getloadavg()}
  if flags.FLAGS.output:
    pathlib.Path(flags.FLAGS.output).write_text(
      json.dumps({**about, 'jobs': found}, indent=2) + '\n', encoding='utf-8'
    )
  print(table(found))


def run_job(job: str, workdir: str) -> None:
  """Runs a stage, and writes its trace into the workdir."""
  import dataclasses

  import jax

  sys.path.insert(0, str(ROOT / 'configs'))
  import quickstart

  from weightsteer_jax import config
  from weightsteer_jax.experiments import stages
  from weightsteer_jax.experiments.experiment import Experiment
  from weightsteer_jax.runtime import profiling

  run = config.resolve(quickstart.get_config())
  kinds = {'score': 'choice', 'generate': 'generate'}
  if job in kinds:
    tasks = {name: task for name, task in run.tasks.items() if task.kind == kinds[job]}
    run = dataclasses.replace(run, tasks=dict(list(tasks.items())[:2]))

    def stage():
      return stages.sweep(
        Experiment(run, pathlib.Path(workdir) / job),
        direction=pathlib.Path(workdir) / 'run' / 'directions' / run.name,
      )
  else:

    def stage():
      return getattr(stages, job)(Experiment(run, pathlib.Path(workdir) / 'run'))

  with jax.profiler.trace(
    pathlib.Path(workdir) / f'{job}-trace', profiler_options=profiling.options()
  ):
    with jax.profiler.TraceAnnotation('job'):
      stage()
  if job == 'finetune':
    stages.direction(Experiment(run, pathlib.Path(workdir) / 'run'))


def look(job: str, scratch: pathlib.Path) -> dict:
  """{'job', 'seconds', 'host': {what: seconds}, 'device': {what: seconds}}."""
  dump = scratch / f'{job}-hlo'
  env = os.environ | {
    'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} --xla_dump_to={dump} --xla_dump_hlo_as_text',
    'PYTHONPATH': str(ROOT),
    'JAX_ENABLE_COMPILATION_CACHE': '0',
  }
  command = [sys.executable, __file__, f'--job={job}', f'--workdir={scratch}']
  subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
  (trace,) = (scratch / f'{job}-trace').glob('plugins/profile/*/*.xplane.pb')
  host, device = split(trace, kinds_of(dump))
  return {
    'job': job,
    'seconds': sum(host.values()),
    'trace_bytes': trace.stat().st_size,
    'host': host,
    'device': device,
  }


def kinds_of(dump: pathlib.Path) -> dict[tuple[str, str], str]:
  """{(module, operation): what it is} of compiled programs in text."""
  found = collections.defaultdict(collections.Counter)
  for path in dump.glob('*after_optimizations.txt'):
    module = re.match(r'module_\d+\.(.+?)\.(cpu|gpu|sm_|tpu)', path.name)[1]
    text = path.read_text(encoding='utf-8')
    bodies = dict(re.findall(r'^(?:ENTRY )?%?([\w.-]+) .*?\{\n(.*?)^\}', text, re.M | re.S))
    for line in text.splitlines():
      if named := re.match(r'\s+(?:ROOT )?%?([\w.-]+) = ', line):
        inner = ''.join(bodies.get(called, '') for called in re.findall(r'calls=%?([\w.-]+)', line))
        found[module, named[1]][kind_of(module, line + '\n' + inner)] += 1
  return {key: kinds.most_common(1)[0][0] for key, kinds in found.items()}


def kind_of(module: str, text: str) -> str:
  """What an operation is that the compiler writes so, its fused parts included."""
  products = '\n'.join(line for line in text.splitlines() if PRODUCT.search(line))
  if products:
    return 'attention products' if ATTENTION.search(products) else 'matmul'
  if ATTENTION.search(text):
    return 'attention, other'
  if module == 'jit_decode' and SAMPLING.search(text):
    return 'sampling'
  return 'other'


def split(
  trace: pathlib.Path, kinds: dict[tuple[str, str], str]
) -> tuple[dict[str, float], dict[str, float]]:
  """({what: seconds} of the main thread, the same of the operations)."""
  import jax

  host, device = collections.Counter(), collections.Counter()
  for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
    for line in plane.lines:
      events = []
      for event in line.events:
        stats = dict(event.stats)
        if 'hlo_op' in stats:
          module, op = stats['hlo_module'], stats['hlo_op']
          if not CONTROL.match(op):
            events.append(
              (event.start_ns, event.duration_ns, kinds.get((module, op), 'other'), True)
            )
        elif plane.name.startswith('/host'):
          events.append((event.start_ns, event.duration_ns, event.name, False))
      alone = by_itself(events)
      device.update({name: ns / 1e9 for (name, op), ns in alone.items() if op})
      if ('job', False) in alone:
        for (name, _), ns in alone.items():
          host[next((kind for kind, pattern in HOST if re.search(pattern, name)), REST)] += ns / 1e9
  return dict(host), dict(device)


def by_itself(events: list[tuple]) -> collections.Counter:
  """{(name, whether an operation): ns} of one thread's events, without the time of those within
  them.

  A thread that is inside 'compile' is so until it leaves it: what has no kind of its own counts as
  what it is in.
  """
  found, open_events = collections.Counter(), []
  for start, duration, name, is_op in sorted(events, key=lambda event: (event[0], -event[1])):
    while open_events and open_events[-1][1] <= start:
      open_events.pop()
    key = name, is_op
    if open_events:
      found[open_events[-1][0]] -= duration
      if not is_op and not any(re.search(pattern, name) for _, pattern in HOST):
        key = open_events[-1][0]
    found[key] += duration
    open_events.append((key, start + duration))
  return found


def table(found: list[dict]) -> str:
  """The shares of all jobs as markdown."""
  lines = [
    '| | ' + ' | '.join(f'{one["job"]}: {one["seconds"]:.1f} s' for one in found) + ' |',
    '|---|' + '---:|' * len(found),
  ]
  for where in ('host', 'device'):
    names = collections.Counter()
    for one in found:
      names.update(one[where])
    lines += [
      f'| {where}: {name} | '
      + ' | '.join(f'{one[where].get(name, 0.0):.2f} s' for one in found)
      + ' |'
      for name, _ in names.most_common()
      if names[name] >= 0.01
    ]
  return '\n'.join(lines)


if __name__ == '__main__':
  app.run(main)
