"""Draws the page of a finished run anew, or one page over many runs.

  weightsteer report --workdir=DIR
  weightsteer report --runs=DIR,DIR,... --output=DIR

The first writes <workdir>/report as the run itself does, from the files alone, and picks by the
rule in the run's config. The second writes <output>/index.html: what each run came to, and their
curves in the same panels, with links to the pages of the runs.
"""

from absl import flags

from weightsteer_jax.interfaces.cli.program import Program
from weightsteer_jax.runtime.errors import InputError


def _define_flags() -> None:
  flags.DEFINE_string('workdir', '', 'Folder of a finished run, whose page is drawn anew.')
  flags.DEFINE_list('runs', [], 'Folders of finished runs, with commas between, for one index.')
  flags.DEFINE_string('output', '', 'Folder to write the index of --runs to.')


def _main() -> None:
  args = flags.FLAGS
  if bool(args.workdir) == bool(args.runs):
    raise InputError(
      'report needs --workdir=DIR, or --runs=DIR,DIR,... with --output=DIR, and not both'
    )
  if args.runs and not args.output:
    raise InputError('--runs needs --output=DIR, the folder for the index')
  if args.workdir and args.output:
    raise InputError('--output goes with --runs; the page of --workdir lies in its report/')
  from weightsteer_jax.experiments.report import redraw

  if args.workdir:
    redraw.one(args.workdir)
  else:
    redraw.many(args.runs, args.output)


PROGRAM = Program(__doc__, _define_flags, _main)
