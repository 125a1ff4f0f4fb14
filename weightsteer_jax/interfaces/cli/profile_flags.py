"""Flags of a trace."""

from absl import flags


def define() -> None:
  """Defines --profile and the window of a trace, for verbs that compute."""
  # absl lets the value of a boolean flag be left out, and makes it 'true'.
  profile: flags.Flag[str] = flags.Flag(
    flags.ArgumentParser(),
    flags.ArgumentSerializer(),
    'profile',
    '',
    'Write a trace of a part of the run, to be looked at with xprof or TensorBoard: '
    "--profile=DIR, or --profile for a folder 'profile' in the workdir, or <output>-profile "
    'where there is none.',
    boolean=True,
  )
  flags.DEFINE_flag(profile)
  flags.DEFINE_float(
    'profile_after',
    0.0,
    'Seconds between the first step or batch (which is compiled) and the trace.',
    lower_bound=0.0,
  )
  flags.DEFINE_float(
    'profile_seconds',
    20.0,
    'Length of the trace, seconds; traces of minutes are too large to look at.',
    lower_bound=0.0,
  )


def begin(default: str) -> None:
  """Begins the trace of --profile, by the first process alone.

  Args:
    default: folder of the trace, if --profile names none.
  """
  from weightsteer_jax.runtime import processes, profiling

  args = flags.FLAGS
  if 'profile' not in args or args.profile in ('', 'false') or not processes.is_main():
    return
  folder = default if args.profile == 'true' else args.profile
  profiling.begin(folder, after=args.profile_after, seconds=args.profile_seconds)
