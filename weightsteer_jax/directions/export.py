"""Steered models for those who never heard of us: a Hugging Face checkpoint, orbax arrays, or a PEFT adapter.

Each is read back and compared with the unmerged edit before it gets its name.
"""
import dataclasses
import hashlib
import math
import pathlib
import shutil
from typing import Any, Callable, Sequence

from absl import logging
import jax
import numpy as np

from weightsteer_jax import checkpoint, files, models, tree
from weightsteer_jax.directions import card, checkpoints, compression, folding, gram, parity, peft_adapter, peft_export
from weightsteer_jax.directions.direction import Direction, check_base
from weightsteer_jax.errors import InputError
from weightsteer_jax.models import huggingface

PyTree = Any

PROVENANCE = 'provenance.json'
LOSS_WARNED_OF = 0.05  # share of the change lost in rounding, above which the log says so


def export(direction: Direction, base: models.Model, alpha: float, format: str, output: files.Path, *, dtype: str = '',
           rank: int = 0, prompts: Sequence[Sequence[int]] | None = None,
           allow_other_base: bool = False) -> dict[str, Any]:
  """Writes the base steered by `alpha * direction` as a new folder, and returns its provenance.

  Args:
    format: 'hf' (merged, a checkpoint transformers loads), 'orbax' (merged, nested dicts that plain orbax restores) or
      'peft' (a LoRA adapter beside the base, alpha folded in).
    dtype: of merged weights, 'float32' or 'bfloat16'; '' is what the base is stored in. Adapters are float32.
    rank: fold the direction's kernels to this rank first (see compression.compress), its error recorded; 0 leaves it
      exact.
    prompts: token ids to compare logits on; random ones if None.
    allow_other_base: steer a model of the same architecture with other weights than the direction's base.
  Raises:
    InputError: the output exists, the direction is of another model, or the format cannot hold it.
    OutputError: the parity check failed, or the disk did; nothing is left behind.
  """
  _check_request(base, alpha, format, dtype, output)
  check_base(direction, base, allow_other_base=allow_other_base)
  if rank:
    direction, _ = compression.compress(direction, rank)
  tokens_BT, mask_BT = parity.prompt_rows(base.config, prompts)
  expected = parity.logits(base.config, base.params, tokens_BT, delta=direction.delta, alpha=alpha)
  with files.new_folder(output, what='an export') as partial:
    facts, got, exact = FORMATS[format](partial, direction, base, alpha, dtype, tokens_BT)
    measured = parity.compare(expected, got, mask_BT, exact=exact)
    meta = {key: value for key, value in direction.meta.items() if key != 'fingerprints'}
    record = {'format': format, 'alpha': alpha, **facts, 'parity': dataclasses.asdict(measured),
              'steered_model': base.source, 'direction': meta}
    files.write_text(partial / 'README.md', card.write(record, base))
    written = sorted(path for path in partial.rglob('*') if path.is_file())
    record['files'] = {str(path.relative_to(partial)): _sha256(path) for path in written}
    files.write_json(partial / PROVENANCE, record)
  return record


def merge(base: models.Model, delta: PyTree, alpha: float, dtype: str) -> tuple[PyTree, dict[str, Any]]:
  """The steered parameters (numpy, added in float32, rounded to `dtype`), and what rounding did to the change.

  One layer of one parameter is dense at a time.

  Returns:
    The parameters, and {'dtype', 'realised_error': |(merged - base) - alpha * delta| / |alpha * delta| over all changed
    sites, 'realised_errors': per site}.
  Raises:
    InputError: the delta does not fit, or the base has no parameter for a change (see folding.with_biases).
  """
  models.check_delta(base.config, delta)
  flat, changes, sums = tree.flatten(base.params), gram.flatten(delta), {}
  for path in changes:
    if path not in flat:
      raise InputError(f"the direction changes '{path}', for which the model has no parameter")
  merged = {path: np.array(leaf, dtype) for path, leaf in flat.items()}
  for path, leaf in changes.items():
    before = np.asarray(flat[path])
    stack = gram.stack_axes(path)
    layers = zip(before, merged[path]) if stack else [(before, merged[path])]
    changed = gram.layer_changes(path, leaf)
    sums[path] = [_merge_layer(weight, target, alpha * change) for (weight, target), change in zip(layers, changed)]
  errors = {path: _relative(parts) for path, parts in sums.items()}
  realised = _relative([part for parts in sums.values() for part in parts])
  return tree.unflatten(merged), {'dtype': dtype, 'realised_error': realised, 'realised_errors': errors}


def _merge_layer(before: np.ndarray, target: np.ndarray, change: np.ndarray) -> tuple[float, float]:
  """Writes `before + change` into target; squared norms of what rounding lost of the change, and of the change."""
  change = change.reshape(before.shape)
  before = before.astype(np.float32)
  target[...] = before + change
  lost = (target.astype(np.float32) - before) - change
  return tuple(float(np.square(x).sum(dtype=np.float64)) for x in (lost, change))


def _relative(parts: Sequence[tuple[float, float]]) -> float:
  lost, total = (math.fsum(values) for values in zip(*parts))
  return math.sqrt(lost / total) if total > 0 else 0.0


def stored_dtype(base: models.Model) -> str:
  """What the base's weights are stored in: 'bfloat16', or 'float32' for everything finer."""
  with huggingface.open_tensors(base.folder) as tensors:
    return 'bfloat16' if {tensors.dtype(name) for name in tensors.names()} == {'BF16'} else 'float32'


def _check_request(base: models.Model, alpha: float, format: str, dtype: str, output: files.Path) -> None:
  if format not in FORMATS:
    raise InputError(f"unknown format '{format}'{tree.did_you_mean(format, FORMATS)}; there are: {', '.join(FORMATS)}")
  if not math.isfinite(alpha):
    raise InputError(f'alpha is {alpha}; expected a finite number')
  if dtype not in ('', *models.DTYPES):
    raise InputError(f"unknown dtype '{dtype}'{tree.did_you_mean(dtype, models.DTYPES)}; there are: "
                     f"{', '.join(models.DTYPES)}")
  if dtype and format == 'peft':
    raise InputError('a PEFT adapter is always written in float32, so that nothing of the direction is lost; leave '
                     'dtype empty')
  files.refuse_existing(output, what='an export')
  if _loaded_dtype(base) == 'bfloat16' and stored_dtype(base) != 'bfloat16':
    raise InputError(f"'{base.source}' is stored in {stored_dtype(base)} but was loaded in bfloat16: load it in "
                     'float32 to export from it')


def _write_hf(partial: pathlib.Path, direction: Direction, base: models.Model, alpha: float, dtype: str,
              tokens_BT: np.ndarray) -> tuple[dict[str, Any], np.ndarray, bool]:
  """Writes the format: (facts for the record, logits of what was read back, whether all of it was float32)."""
  model, merged, facts = _merge_and_warn(direction, base, alpha, dtype)
  inner = partial / 'checkpoint'
  models.save(inner, model.config, merged, family=model.family, like=base.folder if model is base else None)
  for path in list(inner.iterdir()):
    path.rename(partial / path.name)
  inner.rmdir()
  _write_companions(partial, model, base, facts['dtype'])
  reloaded = models.load(partial, dtype=facts['dtype'])
  parity.same_weights(merged, reloaded.params)
  params = jax.tree.map(lambda x: x.astype(_loaded_dtype(base)), reloaded.params)
  return facts, parity.logits(reloaded.config, params, tokens_BT), _is_exact(base, facts['dtype'])


def _write_orbax(partial: pathlib.Path, direction: Direction, base: models.Model, alpha: float, dtype: str,
                 tokens_BT: np.ndarray) -> tuple[dict[str, Any], np.ndarray, bool]:
  """As `_write_hf`."""
  model, merged, facts = _merge_and_warn(direction, base, alpha, dtype)
  described = dataclasses.asdict(model.config)
  checkpoint.save(partial / 'params', merged, metadata={'model_config': described})
  files.write_json(partial / 'model_config.json', described)
  files.write_text(partial / 'restore.py', card.RESTORE)
  _write_companions(partial, model, base, facts['dtype'])
  restored = checkpoint.restore(partial / 'params', models.abstract_params(model.config, facts['dtype']))
  params = jax.tree.map(lambda x: x.astype(_loaded_dtype(base)), restored)
  return facts, parity.logits(model.config, params, tokens_BT), _is_exact(base, facts['dtype'])


def _write_companions(partial: pathlib.Path, model: models.Model, base: models.Model, dtype: str) -> None:
  """The tokenizer, the generation settings and the config beside the weights, whatever of them is not there yet.

  Where biases were added, the config is that of the new architecture with everything else the base's said of tokens.
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


def _write_peft(partial: pathlib.Path, direction: Direction, base: models.Model, alpha: float, dtype: str,
                tokens_BT: np.ndarray) -> tuple[dict[str, Any], np.ndarray, bool]:
  """As `_write_hf`."""
  facts = {'dtype': 'float32', **peft_export.write(partial, direction.delta, base, alpha)}
  with checkpoints.open_checkpoint(base.folder) as opened:
    delta = peft_adapter.to_delta(peft_adapter.read(partial), opened)
  return facts, parity.logits(base.config, base.params, tokens_BT, delta=delta, alpha=1.0), _is_exact(base, 'float32')


FORMATS: dict[str, Callable] = {'hf': _write_hf, 'orbax': _write_orbax, 'peft': _write_peft}


def _merge_and_warn(direction: Direction, base: models.Model, alpha: float,
                    dtype: str) -> tuple[models.Model, PyTree, dict[str, Any]]:
  """(the base, with parameters for new biases if need be; its steered parameters; the facts of `merge`)."""
  model, delta = folding.with_biases(base, direction.delta)
  merged, facts = merge(model, delta, alpha, dtype or stored_dtype(base))
  if facts['realised_error'] > LOSS_WARNED_OF:
    logging.warning('merged into %s, %.0f%% of the change at alpha %g is lost to rounding: export with dtype float32, '
                    'or as peft, to keep it', facts['dtype'], 100 * facts['realised_error'], alpha)
  if model is not base:
    facts['notes'] = [f'The direction changes biases that a {base.family} checkpoint has no tensor for, so the model '
                      f'is written as the {model.family} with biases, which computes the same.']
  return model, merged, facts


def _loaded_dtype(base: models.Model) -> str:
  return str(jax.tree.leaves(base.params)[0].dtype)


def _is_exact(base: models.Model, dtype: str) -> bool:
  return _loaded_dtype(base) == 'float32' and dtype == 'float32'


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
