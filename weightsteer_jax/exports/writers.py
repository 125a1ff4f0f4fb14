"""The formats of an export: a writer each, and the needs of the writer.

WRITERS is the one list of formats, and says which are written from the base's files alone.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from weightsteer_jax import models
from weightsteer_jax.directions import adapters
from weightsteer_jax.directions import base as bases
from weightsteer_jax.directions.direction import Direction
from weightsteer_jax.directions.streamed import checkpoints
from weightsteer_jax.exports import folding, gguf, hf, merging, orbax, peft, recheck
from weightsteer_jax.exports.base_folder import BaseFolder
from weightsteer_jax.models import huggingface
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean
from weightsteer_jax.storage import files

PyTree = Any

# Share of the change lost in rounding, above which the log says so.
LOSS_WARNED_OF = 0.05


@dataclasses.dataclass(frozen=True)
class ExportRequest:
  """An export to write.

  Attributes:
    format: a key of WRITERS: 'hf' (merged, a checkpoint for transformers), 'orbax' (merged, nested
      dicts for plain orbax), 'orbax-unmerged' (the base and the direction apart), 'peft' (a LoRA
      adapter beside the base, alpha folded in) or 'gguf' (a LoRA adapter of llama.cpp, scaled when
      loaded).
    alpha: the steering strength; for 'orbax-unmerged' and 'gguf', the strength of the example that
      loads the export.
    dtype: dtype of parameters, 'float32' or 'bfloat16'; '' is the dtype of the stored base.
      Adapters are always float32.
    rank: rank that the direction's kernels are folded to, the error recorded; 0 leaves the
      direction exact.
    target: for 'peft', the library that must be able to load the adapter, a key of
      targets.TARGETS; '' is 'peft'.
    base_name: the base's name on the hub, org/name or org/name@revision, for those who load the
      export; '' is the name that the base is known by.
  """

  format: str
  alpha: float
  dtype: str = ''
  rank: int = 0
  target: str = ''
  base_name: str = ''


@dataclasses.dataclass(frozen=True)
class Job:
  """The input of a writer.

  Attributes:
    request: the request, checked.
    direction: the direction, folded to the request's rank.
    base: the base, known from the files.
    model: the base in memory; None if only the files are there.
    check_digest: whether the writer has to compare the base's digest with the direction's.
    sync: whether to wait until the weights are on the disk.
  """

  request: ExportRequest
  direction: Direction
  base: BaseFolder
  model: models.Model | None
  check_digest: bool
  sync: bool

  @property
  def dtype(self) -> str:
    """Dtype of the parameters to write."""
    return self.request.dtype or self.base.dtype

  @property
  def loaded(self) -> models.Model:
    """The base in memory, for writers with `needs_model`."""
    # handover refuses such a format before the job starts.
    assert self.model is not None
    return self.model


@dataclasses.dataclass(frozen=True)
class ReadBack:
  """A written model, read back.

  Attributes:
    config: the architecture.
    params: the parameters.
    delta: the change, to be applied at `alpha`; None if the parameters hold the change.
    alpha: the strength of `delta`.
  """

  config: models.ModelConfig
  params: PyTree
  delta: PyTree | None = None
  alpha: float = 0.0


@dataclasses.dataclass(frozen=True)
class Written:
  """The result of a writer.

  Attributes:
    facts: entries of the provenance.
    exact: whether nothing of a float32 base was rounded.
    read_back: reads the written model.
    hashes: {file: SHA-256} of files hashed while they were written.
  """

  facts: Mapping[str, Any]
  exact: bool
  read_back: Callable[[], ReadBack]
  hashes: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FormatWriter:
  """How a format is written.

  Attributes:
    write: writes a job's weights, the config and the tokenizer into a new folder.
    needs_model: whether the base must be in memory. If so, logits are always compared; if the files
      are enough, the argument `logits` of `handover.export` decides.
  """

  write: Callable[[pathlib.Path, Job], Written]
  needs_model: bool


def writer_of(format: str) -> FormatWriter:
  """The writer of a format.

  Raises:
    InputError: if the format is unknown.
  """
  if format not in WRITERS:
    raise InputError(
      f"unknown format '{format}'{did_you_mean(format, WRITERS)}; there are: {', '.join(WRITERS)}"
    )
  return WRITERS[format]


def _write_hf(folder: pathlib.Path, job: Job) -> Written:
  """Writes a Hugging Face checkpoint from the base's files."""
  base = job.base
  what = f"the direction and the model '{base.source}'"
  with checkpoints.open_checkpoint(base.folder) as opened:
    bases.same_architecture(job.direction.base.config, opened.config, what=what)
    models.check_delta(opened.config, job.direction.delta)
    folded = folding.fold(opened.config, base.family, job.direction.delta)
    steered = hf.Steered(
      base=opened,
      config=folded.config,
      family=models.FAMILIES[folded.family],
      changes=tree.flatten(folded.delta, models.is_delta_leaf),
      alpha=job.request.alpha,
      dtype=job.dtype,
      digest=job.check_digest,
    )
    facts, hashes, digest = hf.write(folder, steered, sync=job.sync)
    # The digest is known only now that all of the base was read. An error still leaves nothing
    # behind: the folder does not have the name of the output yet.
    if job.check_digest:
      record = bases.Base(opened.config, base.family, base.source, base.revision, digest)
      bases.same_base(job.direction.base, record, what=what)
    _warn_of_loss(facts, job.request.alpha)
    _write_companions(folder, base, folded, job.dtype)
    # After everything is written: the check reads the files as transformers will.
    rechecked = recheck.recheck(folder, steered)
    facts['rechecked'] = dataclasses.asdict(rechecked)
    facts |= _notes(base, folded)

  # Only read where logits are compared: the model may be larger than memory.
  def read_back() -> ReadBack:
    model = models.load(folder)
    return ReadBack(model.config, model.params)

  return Written(facts, job.dtype == 'float32', read_back, hashes)


def _write_orbax(folder: pathlib.Path, job: Job) -> Written:
  """Writes steered parameters as orbax arrays."""
  base = job.base
  folded = folding.fold(base.config, base.family, job.direction.delta)
  model = folded.model(job.loaded)
  alpha = job.request.alpha
  merged, facts = merging.merge(model, folded.delta, alpha, job.dtype)
  _warn_of_loss(facts, alpha)
  restored = orbax.write_steered(folder, folded.config, merged)
  _write_companions(folder, base, folded, job.dtype)
  facts |= _notes(base, folded)
  exact = job.dtype == 'float32'
  read_back = ReadBack(folded.config, restored)
  return Written(facts, exact, lambda: read_back)


def _write_unmerged(folder: pathlib.Path, job: Job) -> Written:
  """Writes the base's parameters and the direction, apart, as orbax arrays."""
  base = job.base
  alpha = job.request.alpha
  folded = folding.fold(base.config, base.family, job.direction.delta)
  model = folded.model(job.loaded)
  restored, delta = orbax.write_unmerged(folder, model, folded.delta, alpha, job.dtype)
  _write_companions(folder, base, folded, job.dtype)
  # 0 says that the direction has no factors.
  rank = 0
  leaves = tree.flatten(delta, models.is_delta_leaf)
  for leaf in leaves.values():
    if isinstance(leaf, models.LowRank):
      rank = max(rank, leaf.a.shape[-1])
  facts = {'dtype': job.dtype, 'rank': rank}
  facts |= _notes(base, folded)
  # The base is stored again as it was, so a bfloat16 base loses nothing here.
  exact = job.dtype in ('float32', base.dtype)
  read_back = ReadBack(folded.config, restored, delta, alpha)
  return Written(facts, exact, lambda: read_back)


def _write_peft(folder: pathlib.Path, job: Job) -> Written:
  """Writes a LoRA adapter."""
  request = job.request
  facts = peft.write(
    folder,
    job.direction.delta,
    job.base,
    job.loaded.params,
    request.alpha,
    target=request.target,
    table_rank=request.rank,
  )

  def read_back() -> ReadBack:
    with checkpoints.open_checkpoint(job.base.folder) as opened:
      delta = adapters.to_delta(adapters.read(folder), opened)
    # The adapter holds alpha.
    return ReadBack(job.base.config, job.loaded.params, delta, alpha=1.0)

  return Written({'dtype': 'float32', **facts}, True, read_back)


def _write_gguf(folder: pathlib.Path, job: Job) -> Written:
  """Writes a LoRA adapter of llama.cpp."""
  facts = gguf.write(folder, job.direction.delta, job.base, table_rank=job.request.rank)

  def read_back() -> ReadBack:
    delta = gguf.read(folder / gguf.NAME, job.base)
    return ReadBack(job.base.config, job.loaded.params, delta, alpha=job.request.alpha)

  return Written({'dtype': 'float32', **facts}, True, read_back)


# The one list of formats, in the order in which errors and documents name them.
WRITERS = {
  'hf': FormatWriter(_write_hf, needs_model=False),
  'orbax': FormatWriter(_write_orbax, needs_model=True),
  'orbax-unmerged': FormatWriter(_write_unmerged, needs_model=True),
  'peft': FormatWriter(_write_peft, needs_model=True),
  'gguf': FormatWriter(_write_gguf, needs_model=True),
}
# Formats of adapters, which are float32 always and hold no dense change, and whose limits are those
# of a library.
ADAPTERS = ('peft', 'gguf')
FORMATS = tuple(WRITERS)


def _write_companions(
  folder: pathlib.Path, base: BaseFolder, folded: folding.Folded, dtype: str
) -> None:
  """Copies the tokenizer and the generation settings, and writes the config."""
  # A writer may have written some of them itself.
  huggingface.copy_companions(base.folder, folder)
  config = files.read_json(base.folder / 'config.json', what='the config of the base')
  if folded.is_other:
    # The new architecture is written afresh; special tokens are all that stays true of the old.
    family = models.FAMILIES[folded.family]
    tokens = {key: value for key, value in config.items() if key.endswith('_token_id')}
    config = {'architectures': [family.architecture], 'model_type': family.model_type}
    config |= family.write(folded.config)
    config |= tokens
  # transformers before 5 reads `torch_dtype`, later ones `dtype` first.
  dtypes = {'dtype': dtype, 'torch_dtype': dtype}
  files.write_json(folder / 'config.json', config | dtypes)


def _warn_of_loss(facts: Mapping[str, Any], alpha: float) -> None:
  """Logs how much of the change rounding lost, where that is much."""
  lost = facts['realised_error']
  if lost > LOSS_WARNED_OF:
    logging.warning(
      'merged into %s, %.0f%% of the change at alpha %g is lost to rounding: export with dtype '
      'float32, or unmerged (orbax-unmerged, peft), to keep it',
      facts['dtype'],
      100 * lost,
      alpha,
    )


def _notes(base: BaseFolder, folded: folding.Folded) -> dict[str, list[str]]:
  """The provenance's entry on another architecture than the base's, if there is one."""
  if not folded.is_other:
    return {}
  note = (
    f'The direction changes biases that a {base.family} checkpoint has no tensor for, so the '
    f'model is written as the {folded.family} with biases, which computes the same.'
  )
  return {'notes': [note]}
