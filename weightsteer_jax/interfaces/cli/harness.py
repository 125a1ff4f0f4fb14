r"""Runs tasks of lm-evaluation-harness under a model, at any alphas of a direction.

  weightsteer harness --model=DIR [--direction=DIR --alphas=-1,0,1] \
    --tasks=arc_easy,gsm8k [--include_path=DIR] --output=DIR

The model is loaded and compiled once for the whole grid. Strengths that the output has already are
not computed again. Needs the extra: pip install 'weightsteer_jax[lm-eval]'.
"""

from absl import flags

from weightsteer_jax.interfaces.cli import arguments, model_flags, profile_flags
from weightsteer_jax.interfaces.cli.program import Program


def _define_flags() -> None:
  model_flags.define()
  profile_flags.define()
  flags.DEFINE_list(
    'tasks',
    None,
    'Tasks, groups and tags of lm-eval, comma-separated; patterns such as mmlu_* too.',
  )
  flags.DEFINE_string('include_path', '', 'Folder with further tasks, as YAML files.')
  flags.DEFINE_string('output', None, 'Folder to write results to; strengths can be added to it.')
  flags.DEFINE_integer(
    'num_fewshot',
    None,
    "Examples before each question; default the task's own number.",
    lower_bound=0,
  )
  flags.DEFINE_float(
    'limit',
    None,
    'The first so many documents of each task, or below 1 that share of them.',
    lower_bound=0.0,
  )
  flags.DEFINE_bool('apply_chat_template', False, "Ask through the model's chat template.")
  flags.DEFINE_integer(
    'max_length',
    None,
    'Tokens that the model is shown at most; default its positions.',
    lower_bound=2,
  )
  arguments.require('tasks', 'output')


def _main() -> None:
  from weightsteer_jax.experiments import standalone

  args = flags.FLAGS
  standalone.harness(
    args.model,
    args.tasks,
    args.output,
    **model_flags.options(),
    include_path=args.include_path,
    max_length=args.max_length,
    num_fewshot=args.num_fewshot,
    limit=args.limit,
    apply_chat_template=args.apply_chat_template,
  )


PROGRAM = Program(__doc__, _define_flags, _main)
