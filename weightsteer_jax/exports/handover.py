"""Steered models for other programs, in any format of writers.WRITERS.

An export is written, read back, compared with the unmerged edit, given a model card and sealed (see
storage/sealed.py) before the folder gets its name.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from weightsteer_jax import models
from weightsteer_jax.directions import compression, gram
from weightsteer_jax.directions.direction import Direction, check_base
from weightsteer_jax.directions.streamed import on_disk
from weightsteer_jax.exports import card, gguf, parity, targets, writers
from weightsteer_jax.exports.base_folder import BaseFolder
from weightsteer_jax.exports.writers import ExportRequest
from weightsteer_jax.models import huggingface
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean
from weightsteer_jax.storage import files, sealed
from weightsteer_jax.storage.versions import versions

PyTree = Any

# org/name, or org/name@revision.
NAME_ON_HUB = r'\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?'
# When to compare logits, see `export`.
LOGITS = ('auto', 'always', 'never')
# Bytes of float32 parameters above which 'auto' loads no base to compare logits with.
LOGITS_BYTES = 2**29
# What computes and writes an export.
PACKAGES = ('jax', 'jaxlib', 'orbax-checkpoint', 'safetensors', 'numpy')


def check(
  direction: Direction, request: ExportRequest, output: files.Path, *, logits: str = 'auto'
) -> None:
  """Raises InputError if a request makes no sense, or its format cannot hold the direction.

  No model is needed to tell.

  Raises:
    InputError: if the format, target, dtype or `logits` is unknown, alpha is not finite, the rank
      is negative, an option is not for the format, the output exists or is no path of a file
      system, or the format cannot hold the direction.
  """
  # The format first, because the checks below depend on it.
  writers.writer_of(request.format)
  format = request.format
  dtype = request.dtype
  if not math.isfinite(request.alpha):
    raise InputError(f'alpha is {request.alpha}; expected a finite number')
  if dtype not in ('', *models.DTYPES):
    raise InputError(
      f"unknown dtype '{dtype}'{did_you_mean(dtype, models.DTYPES)}; there are: "
      f"{', '.join(models.DTYPES)}"
    )
  if logits not in LOGITS:
    raise InputError(
      f"logits are to be compared '{logits}'{did_you_mean(logits, LOGITS)}; there are: "
      f"{', '.join(LOGITS)}"
    )
  if request.rank < 0:
    raise InputError(
      f'the rank to fold to is {request.rank}; expected 1 or more, or 0 to leave the '
      'direction exact'
    )
  if request.base_name and not re.fullmatch(NAME_ON_HUB, request.base_name):
    raise InputError(
      f"base_name is '{request.base_name}'; expected the base's name on the hub, org/name or "
      'org/name@revision'
    )
  if dtype and format in writers.ADAPTERS:
    raise InputError(
      f'an adapter ({format}) is always written in float32, so that nothing of the direction is '
      'lost; leave dtype empty'
    )
  if request.target and format != 'peft':
    raise InputError(
      f"the target '{request.target}' is of a PEFT adapter; the format is '{format}'"
    )
  # A bucket as a path would silently become a folder of that name.
  if '://' in str(output):
    raise InputError(
      f"'{output}' is no path of a file system: export to a folder, copy that, and check the copy "
      'with --verify where it can be read as a folder'
    )
  files.refuse_existing(output, what='an export')
  # Only adapters leave changes out that merged weights, or base and direction apart, can hold.
  if format in writers.ADAPTERS:
    targets.check(direction, _target(request), request.rank)


def export(
  direction: Direction,
  base: models.Model | BaseFolder,
  alpha: float,
  format: str,
  output: files.Path,
  *,
  prompts: Sequence[Sequence[int]] | None = None,
  allow_other_base: bool = False,
  results: Sequence[Mapping[str, Any]] = (),
  logits: str = 'auto',
  sync: bool = True,
  **options: Any,
) -> dict[str, Any]:
  """The provenance of an export: the base steered by `alpha * direction`, in a new folder.

  Args:
    base: the base in memory, or its folder where the format needs no parameters (see
      writers.WRITERS).
    alpha: see ExportRequest, as `format`.
    prompts: token ids to compare logits on; random ones if None.
    allow_other_base: whether to steer a model of the same architecture with other weights than the
      direction's base.
    results: rows of a sweep of this direction on this base (see evaluation.metrics), for the model
      card.
    logits: whether to compare logits where the base need not be in memory: 'always', 'never', or
      'auto', which loads bases of up to LOGITS_BYTES for it. Rows of every tensor are computed
      again in any case (see recheck).
    sync: whether to wait until all of the export is on the disk.
    **options: `dtype`, `rank`, `target` and `base_name`, see ExportRequest.

  Raises:
    InputError: if the output exists, the direction is of another model, or the format cannot hold
      the direction.
    OutputError: if the parity check failed, or the disk did. Nothing is left behind.
  """
  # Refused before anything is read or written.
  request = ExportRequest(format, alpha, **options)
  check(direction, request, output, logits=logits)
  writer = writers.writer_of(format)
  is_loaded = isinstance(base, models.Model)
  if writer.needs_model and not is_loaded:
    raise InputError(f"the format '{format}' needs the base in memory: load it first")
  job = _job(request, direction, base, allow_other_base=allow_other_base, sync=sync)
  if format not in writers.ADAPTERS:
    huggingface.companions(job.base.folder)
  tokens_BT, mask_BT = parity.prompt_rows(job.base.config, prompts)
  # Under another name until whole: an error leaves nothing behind, not half an export.
  with files.new_folder(output, what='an export', sync=sync) as partial:
    written = writer.write(partial, job)
    record = _record(job, written, results)
    model = _model_to_compare(writer, job, logits)
    if model is not None:
      compared = _compare(model, written, job, tokens_BT, mask_BT)
      record['parity'] = dataclasses.asdict(compared)
    files.write_text(partial / 'README.md', card.write(record, job.base))
    # Last, because the seal hashes every file.
    return sealed.seal_export(partial, record, written.hashes)


def _job(
  request: ExportRequest,
  direction: Direction,
  base: models.Model | BaseFolder,
  *,
  allow_other_base: bool,
  sync: bool,
) -> writers.Job:
  """The job of a request, with the direction folded to the request's rank.

  Raises:
    InputError: if the direction is of another base than the model in memory, or the model was
      loaded with less precision than the base is stored in.
  """
  if isinstance(base, models.Model):
    model = base
    folder = BaseFolder.of(model)
    check_base(direction, model, allow_other_base=allow_other_base)
    # The base would be rounded by loading, and the export would not be of the stored base.
    if _loaded_dtype(model) == 'bfloat16' and folder.dtype != 'bfloat16':
      raise InputError(
        f"'{model.source}' is stored in {folder.dtype} but was loaded in bfloat16: load it in "
        'float32 to export from it'
      )
    check_digest = False
  else:
    model = None
    folder = base
    # The digest of weights in files comes up while they are read.
    check_digest = bool(direction.base.digest) and not allow_other_base
  return writers.Job(
    request,
    _fold_to_rank(direction, request),
    folder.on_hub(request.base_name),
    model,
    check_digest=check_digest,
    sync=sync,
  )


def _target(request: ExportRequest) -> str:
  """The library that loads an adapter, a key of targets.TARGETS."""
  return gguf.TARGET if request.format == 'gguf' else request.target


def _fold_to_rank(direction: Direction, request: ExportRequest) -> Direction:
  """The direction at the request's rank; tables too where the target holds no dense ones."""
  if not request.rank:
    return direction
  # Merged weights hold dense tables as they are.
  is_adapter = request.format in writers.ADAPTERS
  tables = is_adapter and not targets.target_of(_target(request)).wholes
  folded, _ = compression.compress(direction, request.rank, tables=tables)
  return folded


def _record(
  job: writers.Job, written: writers.Written, results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """The provenance of an export, before logits are compared and files hashed."""
  record: dict[str, Any] = {'format': job.request.format, 'alpha': job.request.alpha}
  # A writer that streams the direction finds the norm on the way.
  if 'norm' not in written.facts:
    squares = gram.squared_norms(job.direction.delta).values()
    record['norm'] = math.sqrt(math.fsum(squares))
  # These two vouch for the files of the direction, which are not part of the export.
  left_out = ('fingerprints', 'seal')
  meta = {key: value for key, value in job.direction.meta.items() if key not in left_out}
  return record | {
    **written.facts,
    'parity': None,
    'steered_model': job.base.source,
    'direction': meta,
    'results': list(results),
    'versions': versions(*PACKAGES),
  }


def _model_to_compare(
  writer: writers.FormatWriter, job: writers.Job, logits: str
) -> models.Model | None:
  """The base in memory, to compare logits with; None if logits are not to be compared."""
  if not writer.needs_model:
    too_large = job.model is None and job.base.float32_bytes > LOGITS_BYTES
    if logits == 'never' or (logits == 'auto' and too_large):
      return None
  return job.model or job.base.load()


def _compare(
  model: models.Model,
  written: writers.Written,
  job: writers.Job,
  tokens_BT: np.ndarray,
  mask_BT: np.ndarray,
) -> parity.Parity:
  """The written model's logits against those of the base with the direction applied unmerged.

  Both are computed in the dtype that the base was loaded in.
  """
  # First the files, then the oracle: the base with the edit applied while it computes.
  dtype = _loaded_dtype(model)
  read_back = written.read_back()
  # A float32 export of a bfloat16 base is rounded here, so that both sides compute alike.
  params = jax.tree.map(lambda x: x.astype(dtype), read_back.params)
  logits_BTV = parity.logits(
    read_back.config, params, tokens_BT, delta=read_back.delta, alpha=read_back.alpha
  )
  # A model that was loaded only for this comparison is let go before the base computes, to save
  # memory.
  del read_back, params
  expected_BTV = parity.logits(
    model.config,
    model.params,
    tokens_BT,
    delta=_in_memory(job.direction.delta),
    alpha=job.request.alpha,
  )
  exact = written.exact and dtype == 'float32'
  return parity.compare(expected_BTV, logits_BTV, mask_BT, exact=exact)


def _in_memory(delta: PyTree) -> PyTree:
  """The delta, with the values that are on the disk read."""
  leaves = tree.flatten(delta, models.is_delta_leaf)
  for path, leaf in leaves.items():
    if isinstance(leaf, models.Dense) and on_disk.is_on_disk(leaf):
      # OnDisk reads the files when numpy asks for an array.
      value = np.asarray(leaf.value)
      leaves[path] = models.Dense(jax.numpy.asarray(value))
  return tree.unflatten(leaves)


def _loaded_dtype(model: models.Model) -> str:
  return str(jax.tree.leaves(model.params)[0].dtype)
