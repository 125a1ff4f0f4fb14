r"""Hands a direction on, as files for other programs.

  weightsteer export --direction=DIR --base=DIR --alpha=A \
    --format=hf|orbax|orbax-unmerged|peft|gguf --output=DIR
  weightsteer export --positive=DIR --negative=DIR --base=DIR --alpha=A \
    --format=hf --output=DIR
  weightsteer export --verify=DIR

The formats are a steered Hugging Face or orbax checkpoint, base and direction apart, a PEFT
adapter, and a LoRA adapter of llama.cpp (gguf), whose --lora-scaled is alpha.

hf is written from the files of the base block by block, in little memory. Every weight is read
back, and rows of every tensor are computed again in float64 from the files. Where the model is
small, or with --compare_logits=always, which loads the model, its logits are compared with those of
the direction applied unmerged. The other formats load the base and always compare logits.
"""

from absl import flags

from weightsteer_jax.interfaces.cli.program import Program
from weightsteer_jax.runtime.errors import InputError


def _define_flags() -> None:
  flags.DEFINE_string('direction', None, 'Direction to export.')
  flags.DEFINE_string(
    'positive',
    '',
    'Without --direction: make it, from this and --negative, and keep only the export. As in '
    'weightsteer direction, either alone is taken against the base.',
  )
  flags.DEFINE_string('negative', '', 'The opposite of --positive.')
  flags.DEFINE_string(
    'base', None, 'The model it is a direction of: a folder, a hub id or organism.'
  )
  flags.DEFINE_float('alpha', None, 'Strength.')
  flags.DEFINE_enum(
    'format', None, ['hf', 'orbax', 'orbax-unmerged', 'peft', 'gguf'], 'What to write.'
  )
  flags.DEFINE_enum(
    'target',
    '',
    ['', 'peft', 'vllm', 'llama.cpp'],
    'Who must be able to load the PEFT adapter; default peft.',
  )
  flags.DEFINE_enum(
    'dtype',
    '',
    ['', 'float32', 'bfloat16'],
    "Of weights; '' is the base's; merging into bfloat16 loses part of small changes, and "
    "says how much.",
  )
  flags.DEFINE_integer(
    'rank',
    0,
    "Fold the direction's kernels to this rank by SVD, the error recorded; 0 leaves it exact.",
    lower_bound=0,
  )
  flags.DEFINE_enum(
    'compare_logits',
    'auto',
    ['auto', 'always', 'never'],
    'Of hf: load base and export, and compare their logits; auto: up to 134M parameters.',
  )
  flags.DEFINE_bool(
    'sync',
    True,
    'Wait until the export is on the disk, so that it is whole even after a power cut.',
  )
  flags.DEFINE_bool(
    'allow_other_base',
    False,
    "Steer another model of the same architecture than the direction's own base, a fine-tune "
    "of it say.",
  )
  flags.DEFINE_string(
    'base_name',
    '',
    "The base's name on the hub, org/name or org/name@revision, for those who load the export; "
    'where the base is a folder of your own.',
  )
  flags.DEFINE_string('output', None, 'Folder to write; must not exist.')
  flags.DEFINE_string(
    'verify',
    None,
    'Check this export, direction, adapter or checkpoint instead: exit status 71 and what is '
    'wrong, if it is not whole.',
  )


# Flags of every export.
NEEDED = ('base', 'alpha', 'format', 'output')


def _main() -> None:
  from weightsteer_jax.experiments import standalone

  args = flags.FLAGS
  if args.verify:
    standalone.verify(args.verify)
    return
  if args.format == 'hf' and args.compare_logits != 'always':
    import jax

    # From files to files: no accelerator takes part, nor is one held.
    jax.config.update('jax_platforms', 'cpu')
  standalone.export(
    args.direction or '',
    args.base,
    args.alpha,
    args.format,
    args.output,
    dtype=args.dtype,
    rank=args.rank,
    target=args.target,
    base_name=args.base_name,
    positive=args.positive,
    negative=args.negative,
    logits=args.compare_logits,
    sync=args.sync,
    allow_other_base=args.allow_other_base,
  )


def _check_flags() -> None:
  """Raises InputError if flags are missing, or do not go together."""
  sources: tuple[str, ...] = ('direction',)
  made_from = [name for name in ('positive', 'negative') if flags.FLAGS[name].value]
  if made_from:
    sources = tuple(made_from)
  needed = (*sources, *NEEDED)
  given = [name for name in needed if flags.FLAGS[name].present]
  if made_from and flags.FLAGS['direction'].present:
    raise InputError(
      '--direction is a direction that was made, --positive and --negative make one: give '
      'the one or the others'
    )
  if flags.FLAGS['verify'].present and given:
    raise InputError(
      '--verify checks a folder and goes with none of the flags of an export; there is '
      f'--{given[0]}'
    )
  missing = [f'--{name}' for name in needed if name not in given]
  if missing and not flags.FLAGS['verify'].present:
    raise InputError(
      f'{", ".join(missing)} must be given (or --verify=DIR alone, to check a folder)'
    )


PROGRAM = Program(__doc__, _define_flags, _main, check=_check_flags)
