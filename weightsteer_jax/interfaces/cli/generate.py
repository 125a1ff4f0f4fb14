r"""Completions of a model, at any alphas of a direction: of a prompt, or of a file of rows.

  weightsteer generate --model=DIR --direction=DIR --alphas=-1,0,1 --prompt='Is that so?'
  weightsteer generate --model=DIR [--direction=DIR --alphas=-1,0,1] \
    --input=x.jsonl --output=y.jsonl

A prompt goes through the chat template, and its answers are printed; --raw_prompt continues the
text as it is. The input has rows {"prompt" or "messages"}. The output has the same rows plus
{"alpha", "completion", "finish"}.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from weightsteer_jax.interfaces.cli import model_flags, profile_flags
from weightsteer_jax.interfaces.cli.program import Program
from weightsteer_jax.runtime.errors import InputError


def _define_flags() -> None:
  flags.DEFINE_multi_string(
    'prompt', [], 'What a user says; may be given several times. In place of --input and --output.'
  )
  flags.DEFINE_multi_string('raw_prompt', [], 'Text to continue, without the chat template.')
  model_flags.define()
  model_flags.define_rows()
  profile_flags.define()
  flags.DEFINE_integer(
    'max_new_tokens', 256, 'Length limit of a completion, tokens.', lower_bound=1
  )
  flags.DEFINE_float('temperature', 0.0, 'Of the draws; 0 is greedy.', lower_bound=0.0)
  flags.DEFINE_float(
    'top_p',
    1.0,
    'Nucleus: the smallest set of tokens with this probability.',
    lower_bound=0.0,
    upper_bound=1.0,
  )
  flags.DEFINE_integer(
    'top_k',
    0,
    'The most likely tokens to draw from; 0 is all.',
    lower_bound=0,
    upper_bound=2**31 - 1,
  )
  flags.DEFINE_integer('samples', 1, 'Completions per row and alpha.', lower_bound=1)
  flags.DEFINE_integer('seed', 0, 'Of sampling.', lower_bound=0, upper_bound=2**32 - 1)


def _check() -> None:
  """Raises InputError if there is nothing to complete, or nowhere to write it."""
  args = flags.FLAGS
  files = [name for name in ('input', 'output') if args[name].value]
  prompts = [name for name in ('prompt', 'raw_prompt') if args[name].value]
  if prompts and files:
    raise InputError(f'--{prompts[0]} is answered on the terminal; it goes without --{files[0]}')
  if not prompts and len(files) < 2:
    raise InputError(
      "expected --prompt='...', to see the answers here, or --input=x.jsonl and --output=y.jsonl"
    )


def _main() -> None:
  from weightsteer_jax.experiments import standalone

  args = flags.FLAGS
  options = dict(
    **model_flags.options(),
    add_bos=args.add_bos,
    max_new_tokens=args.max_new_tokens,
    temperature=args.temperature,
    top_p=args.top_p,
    top_k=args.top_k,
    samples=args.samples,
    seed=args.seed,
  )
  if args.input:
    standalone.generate(args.model, args.input, args.output, **options)
    return
  rows: list[tuple[str, dict[str, Any]]] = []
  for text in args.prompt:
    rows.append(('--prompt', {'messages': [{'role': 'user', 'content': text}]}))
  for text in args.raw_prompt:
    rows.append(('--raw_prompt', {'prompt': text}))
  for text, answers in zip(
    [*args.prompt, *args.raw_prompt], standalone.ask(args.model, rows, **options)
  ):
    print('\n' + _shown(text, answers))


def _shown(prompt: str, answers: Sequence[Mapping[str, Any]]) -> str:
  """A prompt and its answers, for the terminal."""
  lines = [textwrap.indent(prompt, '> ')]
  for answer in answers:
    title = f'alpha {answer["alpha"]:g}'
    if flags.FLAGS.samples > 1:
      title += f', sample {answer["sample"] + 1}'
    notes = {
      'length': f' (cut at {answer["tokens"]} tokens: --max_new_tokens)',
      'not_finite': ' (the model broke)',
    }
    lines += [
      '',
      title + notes.get(answer['finish'], ''),
      textwrap.indent(answer['completion'], '  '),
    ]
  return '\n'.join(lines)


PROGRAM = Program(__doc__, _define_flags, _main, check=_check)
