"""Steered models for those who never heard of us: a Hugging Face checkpoint, orbax arrays, or a
PEFT adapter.

Each is read back, compared with what it should be, gets a model card, and is sealed (see integrity)
before it gets its name. A Hugging Face checkpoint is written from its base's files block by block,
whatever its size; the other formats need the base in memory.
"""

import dataclasses
import math
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from weightsteer_jax import models
from weightsteer_jax.directions import base as bases
from weightsteer_jax.directions import compression, gram, peft_adapter, peft_delta
from weightsteer_jax.directions.direction import Direction, check_base
from weightsteer_jax.directions.streamed import checkpoints, on_disk
from weightsteer_jax.export import (
  card,
  folding,
  hf,
  merging,
  orbax,
  parity,
  peft,
  recheck,
  targets,
)
from weightsteer_jax.models import huggingface
from weightsteer_jax.runtime import tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean
from weightsteer_jax.storage import files, sealed
from weightsteer_jax.storage.versions import versions

PyTree = Any

LOGITS = ('auto', 'always', 'never')
LOGITS_BYTES = (
  2**29
)  # of float32 parameters, above which 'auto' does not load an 'hf' export to compare its logits
LOSS_WARNED_OF = 0.05  # share of the change lost in rounding, above which the log says so
PACKAGES = (
  'jax',
  'jaxlib',
  'orbax-checkpoint',
  'safetensors',
  'numpy',
)  # What computes and writes an export.


@dataclasses.dataclass(frozen=True)
class Request:
  """What is to be written.

  Attributes:
    format: one of FORMATS: 'hf' (merged, a checkpoint transformers loads), 'orbax' (merged, nested
      dicts that plain orbax restores), 'orbax-unmerged' (the base and the direction apart) or
      'peft' (a LoRA adapter beside the base, alpha folded in).
    alpha: the strength; of 'orbax-unmerged', the one that its example applies unless told another.
    dtype: of parameters, 'float32' or 'bfloat16'; '' is what the base is stored in. Adapters are
      float32.
    rank: fold the direction's kernels to this rank first, its error recorded; 0 leaves it exact.
    target: of 'peft', who must be able to load it, one of peft_targets.TARGETS; '' is 'peft'.
  """

  format: str
  alpha: float
  dtype: str = ''
  rank: int = 0
  target: str = ''


@dataclasses.dataclass(frozen=True)
class Written:
  """What a format's writer hands back.

  Attributes:
    facts: for the record. logits: [B, T, V] of what was read back, None if they are not compared.
      exact: all of it was float32. hashes: {file: SHA-256} of those that were hashed on the way.
  """

  facts: Mapping[str, Any]
  logits: np.ndarray | None
  exact: bool
  hashes: Mapping[str, str] = dataclasses.field(default_factory=dict)


def check(
  direction: Direction, request: Request, output: files.Path, *, logits: str = 'auto'
) -> None:
  """Nothing, if the request makes sense and the format can hold the direction; no model is needed
  to say so.

  Raises:
    InputError: what is wrong with it.
  """
  format, dtype = request.format, request.dtype
  if format not in FORMATS:
    raise InputError(
      f"unknown format '{format}'{did_you_mean(format, FORMATS)}; there are: {', '.join(FORMATS)}"
    )
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
  if dtype and format == 'peft':
    raise InputError(
      'a PEFT adapter is always written in float32, so that nothing of the direction is lost; '
      'leave dtype empty'
    )
  if request.target and format != 'peft':
    raise InputError(
      f"the target '{request.target}' is of a PEFT adapter; the format is '{format}'"
    )
  if '://' in str(output):
    raise InputError(
      f"'{output}' is no path of a file system: export to a folder, copy that, and check the copy "
      'with --verify where it can be read as a folder'
    )
  files.refuse_existing(output, what='an export')
  if format == 'peft':
    targets.check(direction, request.target, request.rank)


def export(
  direction: Direction,
  base: models.Model,
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
  """Writes the base steered by `alpha * direction` as a new folder, and returns its provenance.

  Args:
    base: a model in memory, or for 'hf' also one that is not (see `unread_base`).
    alpha, format: and `dtype`, `rank`, `target` in options: see Request.
    prompts: token ids to compare logits on; random ones if None.
    allow_other_base: steer a model of the same architecture with other weights than the direction's
      base.
    results: rows of a sweep of this direction on this base (see evaluation.metrics), for the model
      card.
    logits: of 'hf', whether to load the base and the export and compare their logits too: 'auto'
      does up to LOGITS_BYTES of parameters, 'always', 'never'. Rows of every tensor are computed
      again in any case (see recheck).
    sync: wait until all of it is on the disk.

  Raises:
    InputError: the output exists, the direction is of another model, or the format cannot hold it.
    OutputError: the parity check failed, or the disk did; nothing is left behind.
  """
  request = Request(format, alpha, **options)
  check(direction, request, output, logits=logits)
  if base.params:
    check_base(direction, base, allow_other_base=allow_other_base)
  elif format in WRITERS:
    raise InputError(f"the format '{format}' needs the base in memory: load it first")
  if base.params and _loaded_dtype(base) == 'bfloat16' and stored_dtype(base) != 'bfloat16':
    raise InputError(
      f"'{base.source}' is stored in {stored_dtype(base)} but was loaded in bfloat16: load it in "
      'float32 to export from it'
    )
  direction = _folded(direction, request)
  tokens_BT, mask_BT = parity.prompt_rows(base.config, prompts)
  with files.new_folder(output, what='an export', sync=sync) as partial:
    if format == 'hf':
      written = _write_hf(
        partial, direction, base, request, allow_other_base=allow_other_base, sync=sync
      )
      base, written = _with_logits(partial, base, written, tokens_BT, logits)
    else:
      written = WRITERS[format](partial, direction, base, request, tokens_BT)
    record = {
      'format': format,
      'alpha': alpha,
      **({} if 'norm' in written.facts else {'norm': _norm(direction)}),
      **written.facts,
      'parity': None,
      'steered_model': base.source,
      'direction': _provenance(direction),
      'results': list(results),
      'versions': versions(*PACKAGES),
    }
    if written.logits is not None:
      expected = parity.logits(
        base.config, base.params, tokens_BT, delta=_in_memory(direction.delta), alpha=alpha
      )
      record['parity'] = dataclasses.asdict(
        parity.compare(expected, written.logits, mask_BT, exact=written.exact)
      )
    files.write_text(partial / 'README.md', card.write(record, base))
    return sealed.seal_export(partial, record, written.hashes)


def unread_base(source: files.Path, *, name: str = '') -> models.Model:
  """A model whose weights stay in its files, to export 'hf' from; `name` is what the user called
  it.
  """
  folder, revision = models.resolve(source)
  config, family = models.load_config(folder)
  return models.Model(config, {}, folder, family.model_type, name or str(source), revision)


def stored_dtype(base: models.Model) -> str:
  """What the base's weights are stored in: 'bfloat16', or 'float32' for everything finer."""
  with huggingface.open_tensors(base.folder) as tensors:
    return (
      'bfloat16' if {tensors.dtype(name) for name in tensors.names()} == {'BF16'} else 'float32'
    )


def _folded(direction: Direction, request: Request) -> Direction:
  """The direction at the rank that was asked for, with its tables too where the target holds no
  dense ones.
  """
  if not request.rank:
    return direction
  tables = request.format == 'peft' and not targets.target_of(request.target).wholes
  folded, _ = compression.compress(direction, request.rank, tables=tables)
  return folded


def _norm(direction: Direction) -> float:
  return math.sqrt(math.fsum(gram.squared_norms(direction.delta).values()))


def _provenance(direction: Direction) -> dict[str, Any]:
  return {
    key: value for key, value in direction.meta.items() if key not in ('fingerprints', 'seal')
  }


def _write_hf(
  partial: pathlib.Path,
  direction: Direction,
  base: models.Model,
  request: Request,
  *,
  allow_other_base: bool,
  sync: bool,
) -> Written:
  with checkpoints.open_checkpoint(base.folder) as opened:
    bases.same_architecture(
      direction.base.config, opened.config, what=f"the direction and the model '{base.source}'"
    )
    models.check_delta(opened.config, direction.delta)
    config, family, delta = folding.architecture(opened.config, base.family, direction.delta)
    digest = bool(direction.base.digest) and not base.params and not allow_other_base
    steered = hf.Steered(
      opened,
      config,
      models.FAMILIES[family],
      tree.flatten(delta, models.is_delta_leaf),
      request.alpha,
      request.dtype or stored_dtype(base),
      digest,
    )
    facts, hashes, found = hf.write(partial, steered, sync=sync)
    if digest:
      record = bases.Base(opened.config, base.family, base.source, base.revision, found)
      bases.same_base(direction.base, record, what=f"the direction and the model '{base.source}'")
    _warn_of_loss(facts, request.alpha)
    model = (
      base if config is opened.config else dataclasses.replace(base, config=config, family=family)
    )
    _write_companions(partial, model, base, facts['dtype'])
    facts |= {
      'rechecked': dataclasses.asdict(recheck.recheck(partial, steered)),
      **_notes(model, base),
    }
  return Written(facts, None, facts['dtype'] == 'float32', hashes)


def _with_logits(
  partial: pathlib.Path, base: models.Model, written: Written, tokens_BT: np.ndarray, wanted: str
) -> tuple[models.Model, Written]:
  """The base in memory and what was written with its logits, where they are to be compared."""
  size = 4 * sum(math.prod(site.shape) for site in models.sites(base.config).values())
  if wanted == 'never' or wanted == 'auto' and size > LOGITS_BYTES and not base.params:
    return base, written
  if not base.params:
    base = dataclasses.replace(models.load(base.folder), source=base.source, revision=base.revision)
  read_back = models.load(partial)
  logits = _logits(base, read_back, read_back.params, tokens_BT)
  return base, dataclasses.replace(
    written, logits=logits, exact=written.exact and _loaded_dtype(base) == 'float32'
  )


def _in_memory(delta: PyTree) -> PyTree:
  """The delta with what is on the disk read."""
  leaves = {
    path: models.Dense(jax.numpy.asarray(np.asarray(leaf.value)))
    if on_disk.is_on_disk(leaf)
    else leaf
    for path, leaf in tree.flatten(delta, models.is_delta_leaf).items()
  }
  return tree.unflatten(leaves)


def _write_orbax(
  partial: pathlib.Path,
  direction: Direction,
  base: models.Model,
  request: Request,
  tokens_BT: np.ndarray,
) -> Written:
  model, merged, facts = _merge_and_warn(direction, base, request)
  restored = orbax.write_steered(partial, model, merged)
  _write_companions(partial, model, base, facts['dtype'])
  return Written(facts, _logits(base, model, restored, tokens_BT), _is_exact(base, facts['dtype']))


def _write_unmerged(
  partial: pathlib.Path,
  direction: Direction,
  base: models.Model,
  request: Request,
  tokens_BT: np.ndarray,
) -> Written:
  model, delta = folding.with_biases(base, direction.delta)
  stored = stored_dtype(base)
  dtype = request.dtype or stored
  restored, delta = orbax.write_unmerged(partial, model, delta, request.alpha, dtype)
  _write_companions(partial, model, base, dtype)
  facts = {
    'dtype': dtype,
    'rank': max(
      (
        leaf.a.shape[-1]
        for leaf in tree.flatten(delta, models.is_delta_leaf).values()
        if isinstance(leaf, models.LowRank)
      ),
      default=0,
    ),
    **_notes(model, base),
  }
  exact = _loaded_dtype(base) == 'float32' and dtype in ('float32', stored)
  return Written(
    facts, _logits(base, model, restored, tokens_BT, delta=delta, alpha=request.alpha), exact
  )


def _write_peft(
  partial: pathlib.Path,
  direction: Direction,
  base: models.Model,
  request: Request,
  tokens_BT: np.ndarray,
) -> Written:
  written = peft.write(partial, direction.delta, base, request.alpha, request.target, request.rank)
  with checkpoints.open_checkpoint(base.folder) as opened:
    delta = peft_delta.to_delta(peft_adapter.read(partial), opened)
  logits = _logits(base, base, base.params, tokens_BT, delta=delta, alpha=1.0)
  return Written({'dtype': 'float32', **written}, logits, _is_exact(base, 'float32'))


WRITERS: dict[str, Callable[..., Written]] = {  # of what is written from the base in memory
  'orbax': _write_orbax,
  'orbax-unmerged': _write_unmerged,
  'peft': _write_peft,
}
FORMATS = ('hf', *WRITERS)


def _write_companions(
  partial: pathlib.Path, model: models.Model, base: models.Model, dtype: str
) -> None:
  """The tokenizer, the generation settings and the config beside the weights, whatever of them is
  not there yet.

  Where biases were added, the config is that of the new architecture with everything else the
  base's said of tokens.
  """
  for name in huggingface.COMPANIONS:
    if (base.folder / name).exists() and not (partial / name).exists():
      shutil.copyfile(base.folder / name, partial / name)
  raw = files.read_json(base.folder / 'config.json', what='the config of the base')
  if model is not base:
    family = models.FAMILIES[model.family]
    tokens = {key: value for key, value in raw.items() if key.endswith('_token_id')}
    raw = {'architectures': [family.architecture], 'model_type': family.model_type}
    raw |= family.write(model.config) | tokens
  files.write_json(partial / 'config.json', raw | {'dtype': dtype, 'torch_dtype': dtype})


def _merge_and_warn(
  direction: Direction, base: models.Model, request: Request
) -> tuple[models.Model, PyTree, dict[str, Any]]:
  """(the base, with parameters for new biases if need be; its steered parameters; the facts of
  `merge`).
  """
  model, delta = folding.with_biases(base, direction.delta)
  merged, facts = merging.merge(model, delta, request.alpha, request.dtype or stored_dtype(base))
  _warn_of_loss(facts, request.alpha)
  return model, merged, facts | _notes(model, base)


def _warn_of_loss(facts: Mapping[str, Any], alpha: float) -> None:
  if facts['realised_error'] > LOSS_WARNED_OF:
    logging.warning(
      'merged into %s, %.0f%% of the change at alpha %g is lost to rounding: export with dtype '
      'float32, or unmerged (orbax-unmerged, peft), to keep it',
      facts['dtype'],
      100 * facts['realised_error'],
      alpha,
    )


def _notes(model: models.Model, base: models.Model) -> dict[str, list[str]]:
  if model is base:
    return {}
  return {
    'notes': [
      f'The direction changes biases that a {base.family} checkpoint has no tensor for, so the '
      f'model is written as the {model.family} with biases, which computes the same.'
    ]
  }


def _logits(
  base: models.Model, model: models.Model, params: PyTree, tokens_BT: np.ndarray, **edit: Any
) -> np.ndarray:
  """Logits of parameters that were read back, computed in the dtype that the base was loaded in."""
  params = jax.tree.map(lambda x: x.astype(_loaded_dtype(base)), params)
  return parity.logits(model.config, params, tokens_BT, **edit)


def _loaded_dtype(base: models.Model) -> str:
  return str(jax.tree.leaves(base.params)[0].dtype)


def _is_exact(base: models.Model, dtype: str) -> bool:
  return _loaded_dtype(base) == 'float32' and dtype == 'float32'
