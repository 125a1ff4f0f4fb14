"""Flags of every verb: other processes, the end of a run, compiled programs."""

from typing import Any

from absl import flags

from weightsteer_jax.runtime import signals


def define() -> None:
  """Defines the flags."""
  flags.DEFINE_enum(
    'distributed',
    'auto',
    ['auto', 'on', 'off'],
    'Whether to run with other processes: auto joins them on a TPU pod, under Slurm, Open MPI or '
    'Kubernetes, and where the next flags are given.',
  )
  flags.DEFINE_string('coordinator', '', 'HOST:PORT of process 0, where no cluster is detected.')
  flags.DEFINE_integer('num_processes', None, 'Processes of the run, where no cluster is detected.')
  flags.DEFINE_integer(
    'process_id', None, "This process's number, from 0, where no cluster is detected."
  )
  flags.DEFINE_float(
    'stall_minutes',
    60.0,
    'End the run when no step, batch or stage was finished for so many minutes; 0: never.',
    lower_bound=0.0,
  )
  flags.DEFINE_float(
    'grace_seconds',
    signals.GRACE_SECONDS,
    'Seconds from SIGTERM to the end of a run that finishes no step, batch or file in that time. '
    'Raise it where a training step takes longer, and the scheduler gives you the time.',
    lower_bound=0.0,
  )
  flags.DEFINE_string(
    'compilation_cache',
    'auto',
    'Folder to keep compiled programs in for later runs, or off; auto, the default: '
    '$JAX_COMPILATION_CACHE_DIR, or weightsteer_jax/compiled in ~/.cache ($XDG_CACHE_HOME).',
  )


def cluster() -> dict[str, Any]:
  """Where process 0 is, how many processes there are and which this is, as far as flags say."""
  args = flags.FLAGS
  return dict(
    coordinator=args.coordinator, num_processes=args.num_processes, process_id=args.process_id
  )
