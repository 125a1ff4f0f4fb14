r"""Runs tasks of lm-evaluation-harness under a model, at any alphas of a direction.

  python launch/harness.py --model=DIR [--direction=DIR --alphas=-1,0,1] \
    --tasks=arc_easy,gsm8k [--include_path=DIR] --output=DIR

The model is loaded and compiled once for the whole grid. Strengths that the output has already are
not computed again. Needs the extra: pip install 'weightsteer_jax[lm-eval]'.
"""

import _main
from absl import flags

_main.define_model_flags()
_main.define_profile_flags()
flags.DEFINE_list(
  'tasks', None, 'Tasks, groups and tags of lm-eval, comma-separated; patterns such as mmlu_* too.'
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
flags.mark_flags_as_required(['tasks', 'output'])


def main():
  from weightsteer_jax.experiments import standalone

  args = flags.FLAGS
  standalone.harness(
    args.model,
    args.tasks,
    args.output,
    **_main.model_options(),
    include_path=args.include_path,
    max_length=args.max_length,
    num_fewshot=args.num_fewshot,
    limit=args.limit,
    apply_chat_template=args.apply_chat_template,
  )


if __name__ == '__main__':
  _main.start(main, together=False)
