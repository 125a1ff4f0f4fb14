"""The model card (README.md) of an export: loading, measurements and limits.

Source of the front matter: huggingface.co/docs/hub/model-cards and
huggingface_hub.ModelCardData.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import huggingface_hub

from weightsteer_jax.exports.base_folder import BaseFolder

# Each by format: what the folder holds, the library that loads it, and how.
WHAT = {
  'hf': 'The base model with the direction merged in',
  'orbax': 'The base model with the direction merged in, as orbax arrays',
  'orbax-unmerged': (
    'The base model and the direction apart, as orbax arrays; the direction is added when loaded'
  ),
  'peft': 'A LoRA adapter that steers the base model',
  'gguf': 'A LoRA adapter of llama.cpp that steers the base model at any strength',
}
# The hub shows how a model is loaded with the library named here.
LIBRARY = {
  'hf': 'transformers',
  'orbax': 'orbax',
  'orbax-unmerged': 'orbax',
  'peft': 'peft',
  'gguf': 'gguf',
}
LOADING = {
  'hf': """```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained('PATH/TO/THIS/FOLDER', dtype='auto')
tokenizer = AutoTokenizer.from_pretrained('PATH/TO/THIS/FOLDER')
```""",
  'peft': """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({base!r}{revision})
model = PeftModel.from_pretrained(base, 'PATH/TO/THIS/FOLDER')
```""",
  # Newer builds of llama.cpp take file and strength as one word.
  'gguf': """```sh
llama-cli -m BASE.gguf --lora-scaled adapter.gguf:{alpha:g}    # before 2026: adapter.gguf {alpha:g}
```

BASE.gguf is a file of `{base}` (`convert_hf_to_gguf.py`). Its architecture in llama.cpp has to be \
`{architecture}`. The number is alpha: 0 is the base, and the opposite behaviour is negative.""",
  'orbax': """```python
from orbax.checkpoint import v1 as ocp
params = ocp.load('/ABSOLUTE/PATH/TO/THIS/FOLDER/params')
```

`python restore.py` does so onto a mesh of all devices, with orbax and jax alone. `axes.json` \
names the axes of every
parameter, `model_config.json` the architecture.""",
  'orbax-unmerged': """```python
from orbax.checkpoint import v1 as ocp
params = ocp.load('/ABSOLUTE/PATH/TO/THIS/FOLDER/params')
direction = ocp.load('/ABSOLUTE/PATH/TO/THIS/FOLDER/direction')
# steered: params + alpha * (a @ b).reshape(params.shape), at each path of the direction
```

`python restore.py [ALPHA]` does all of it onto a mesh of all devices, with orbax and jax alone. \
`axes.json` names the
axes of every parameter, `model_config.json` the architecture.""",
}
# By target of an adapter: how a program that is no library serves it.
SERVING = {
  'vllm': (
    'vllm serve {base} --enable-lora --max-lora-rank {limit} '
    '--lora-modules steered=PATH/TO/THIS/FOLDER'
  ),
  'llama.cpp': """\
python convert_lora_to_gguf.py PATH/TO/THIS/FOLDER --base {base} --outfile steered.gguf
llama-cli -m BASE.gguf --lora steered.gguf""",
}


def write(record: Mapping[str, Any], base: BaseFolder) -> str:
  """The model card of an export in Markdown, with YAML front matter.

  Args:
    record: the provenance of the export, without the hashes of files.
    base: the base of the export.
  """
  sections = {
    'Loading': _loading(record, base),
    'Measured before it was written': _bullets(_measurements(record)),
    'Measured in the run that found the direction': _results(record),
    'Limits': _bullets(_limits(record)),
    'Made from': _bullets(_sources(record, base)),
  }
  parts = [_front_matter(record, base), _heading(record, base)]
  # Sections without anything to say leave no heading behind.
  for title, text in sections.items():
    if text:
      parts.append(f'## {title}\n\n{text}')
  return '\n\n'.join(parts) + '\n'


def license_of(base: BaseFolder) -> dict[str, str]:
  """The card's fields for the licence of the base; {} if the licence is not known.

  The fields come from the base's own card, or name a licence file in the base's folder.
  """
  path = base.folder / 'README.md'
  if path.is_file():
    # A base's broken front matter is no reason to fail an export.
    card = huggingface_hub.ModelCard(path.read_text('utf-8'), ignore_metadata_errors=True)
    fields = card.data.to_dict()
    if fields.get('license'):
      keys = ('license', 'license_name', 'license_link')
      return {key: fields[key] for key in keys if key in fields}
  # The hub asks for a name and a link where the licence is 'other'.
  for name in ('LICENSE', 'LICENSE.txt', 'LICENSE.md'):
    if (base.folder / name).is_file():
      return {'license': 'other', 'license_name': 'as-the-base', 'license_link': name}
  return {}


def _front_matter(record: Mapping[str, Any], base: BaseFolder) -> str:
  format = record['format']
  tags = ['weight-steering', 'contrastive-weight-steering']
  if format in ('peft', 'gguf'):
    tags = ['lora', *tags]
  fields: dict[str, Any] = {
    'library_name': LIBRARY[format],
    'pipeline_tag': 'text-generation',
    'tags': tags,
  }
  # The hub knows models by their ids there, not by a folder of someone's disk.
  if base.is_on_hub:
    fields['base_model'] = base.loadable_name
    fields['base_model_relation'] = 'adapter' if 'lora' in tags else 'finetune'
  results = _model_index(record)
  if results:
    fields |= {'model_name': f'{base.title}, alpha {record["alpha"]:g}', 'eval_results': results}
  data = huggingface_hub.ModelCardData(**fields, **license_of(base))
  return f'---\n{data.to_yaml()}\n---'


def _heading(record: Mapping[str, Any], base: BaseFolder) -> str:
  alpha = f'{record["alpha"]:g}'
  revision = f' (revision {base.revision})' if base.revision else ''
  return (
    f'# {base.title}, steered in weight space at alpha {alpha}\n\n{WHAT[record["format"]]}: '
    f'`{base.title}{revision}` plus {alpha} times a direction in its weights, in '
    f'{record["dtype"]} (contrastive weight steering, arXiv 2511.05408).'
  )


def _loading(record: Mapping[str, Any], base: BaseFolder) -> str:
  name = base.loadable_name
  text = LOADING[record['format']]
  if record['format'] == 'peft':
    commit = base.loadable_revision
    revision = f', revision={commit!r}' if commit else ''
    text = text.format(base=name, revision=revision)
  if record['format'] == 'gguf':
    text = text.format(base=base.title, alpha=record['alpha'], architecture=record['architecture'])
    return '\n\n'.join([text, *record['notes']])
  # Only adapters have a target, and PEFT itself needs no serving.
  serving = SERVING.get(record.get('target', ''))
  if serving:
    text += '\n\n```sh\n' + serving.format(base=name, limit=record['max_lora_rank']) + '\n```'
  return '\n\n'.join([text, *record.get('notes', [])])


def _measurements(record: Mapping[str, Any]) -> list[str]:
  alpha = f'{record["alpha"]:g}'
  parity = record['parity']
  # What the direction is, then each check that was made, then what was lost.
  lines = [
    f'The change: alpha {alpha} times a direction of norm {record["norm"]:.4g} (Frobenius, over '
    'everything it changes).'
  ]
  if parity:
    lines.append(
      f'Read back, its logits differ from the unmerged edit by at most '
      f'{parity["largest_difference"]:.2e} (relative {parity["relative_difference"]:.2e}) on '
      f'{parity["prompts"]} prompts; allowed: {parity["tolerance"]}.'
    )
  if 'rechecked' in record:
    end = '.' if parity else '; logits were not compared.'
    lines.append(
      f'Every weight was read back as it was written; {record["rechecked"]["weights"]} weights, in '
      'rows of every tensor, were computed again from the files in float64: none is further off '
      f'than one rounding{end}'
    )
  if 'realised_error' in record:
    lines.append(
      f'Rounding the merged weights to {record["dtype"]} lost {record["realised_error"]:.2%} of '
      'the change (relative Frobenius norm).'
    )
  if record['format'] == 'peft':
    lines.append(f'Rank {record["rank"]}, scaling 1, alpha folded into the second factors.')
  elif record.get('rank'):
    lines.append(f'Rank of the direction: {record["rank"]}.')
  # Only where a rank was asked for.
  compression = record['direction'].get('compression')
  if compression:
    errors = compression['relative_errors']
    # A direction of vectors alone has no kernel to fold, and so no error.
    path, error = max(errors.items(), key=lambda item: item[1], default=('', 0.0))
    lines.append(
      f'The direction was folded to rank {compression["rank"]} by SVD; largest relative error of a '
      f'site: {error:.2%} (`{path}`).'
    )
  return lines


def _results(record: Mapping[str, Any]) -> str:
  """The sweep's means at the export's alpha beside the base's, or the alphas that were swept."""
  rows = record.get('results', [])
  if not rows:
    return ''
  # Numbers of another strength say nothing of this export, so they are left out.
  alpha = f'{record["alpha"]:g}'
  steered_rows = [row for row in rows if row['alpha'] == record['alpha']]
  if not steered_rows:
    swept = sorted({row['alpha'] for row in rows})
    alphas = ', '.join(f'{each:g}' for each in swept)
    return f'Not at alpha {alpha}: the sweep of the run was at {alphas}.'
  base_rows = {}
  for row in rows:
    if row['alpha'] == 0:
      base_rows[row['task'], row['metric']] = row
  lines = [
    f'| task | metric | measured on | base | alpha {alpha} | change |',
    '|---|---|---|---:|---:|---:|',
  ]
  for row in steered_rows:
    task = row['task']
    metric = row['metric']
    # A sweep without alpha 0 has no base to show.
    before = _mean(base_rows.get((task, metric)))
    after = _mean(row)
    columns = [task, metric, _counted(row), before, after, _change(row)]
    lines.append(f'| {" | ".join(columns)} |')
  # The sweep measured the direction as found, and the export may hold less of it.
  fold = ' before it was folded' if record['direction'].get('compression') else ''
  about = (
    'Mean, standard error (clustered by question) and 95 % interval, with the direction applied '
    f'unmerged{fold}; changes from the base are paired by question:'
  )
  return '\n'.join([about, '', *lines])


def _model_index(record: Mapping[str, Any]) -> list[huggingface_hub.EvalResult]:
  """The sweep's means at the export's alpha, as the hub lists results of models."""
  results = []
  for row in record.get('results', []):
    if row['alpha'] != record['alpha'] or row['mean'] is None:
      continue
    # Results of earlier versions have no interval.
    known = {key: row[key] for key in ('sem', 'low', 'high') if row.get(key) is not None}
    result = huggingface_hub.EvalResult(
      task_type='text-generation',
      dataset_type=row['task'],
      dataset_name=row['task'],
      dataset_args={'measured on': _counted(row)},
      metric_type=row['metric'],
      metric_value=row['mean'],
      metric_args=known,
    )
    results.append(result)
  return results


def _limits(record: Mapping[str, Any]) -> list[str]:
  if any(row['alpha'] == record['alpha'] for row in record.get('results', [])):
    lines = [
      'What is not in a table above was not measured: measure the behaviour, and what else '
      'changed, before use.'
    ]
  else:
    lines = [
      'How far it was evaluated, and on what, is not recorded here: measure the behaviour and what '
      'else changed before use.'
    ]
  # Merged weights are rounded sums; the base cannot be subtracted out of them.
  if record['format'] in ('hf', 'orbax'):
    lines.append('The strength is fixed; the base cannot be had back from these weights.')
  elif record['format'] == 'gguf':
    lines.append(
      'The strength is chosen when the adapter is loaded; far beyond what was measured a model '
      'breaks.'
    )
  elif record['format'] == 'peft':
    lines.append(
      'The strength is fixed at scaling 1. Libraries that scale adapters steer at that multiple of '
      'alpha; far beyond what was measured a model breaks.'
    )
  if record['direction']['base']['digest']:
    lines.append(
      'The direction is of this base, with these weights; on another model of its shape it is '
      'untested.'
    )
  return lines


def _sources(record: Mapping[str, Any], base: BaseFolder) -> list[str]:
  # A direction between two checkpoints belongs to every base of the architecture.
  of_direction = record['direction']['base']
  source = base.title if of_direction['source'] else 'any of this architecture'
  lines = [f'base: `{source}`, digest {of_direction["digest"] or "not recorded"}']
  for source in record['direction'].get('sources', []):
    role = source.get('role', source.get('kind'))
    lines.append(f'{role}: `{_without_disk(source.get("path", "see provenance.json"))}`')
  lines.append(
    'the rest is in `provenance.json`, with a SHA-256 of every file; `weightsteer export '
    '--verify=FOLDER` checks them'
  )
  return lines


def _without_disk(path: str) -> str:
  """A source as readers elsewhere can use it: of a folder of someone's disk its last parts.

  >>> _without_disk('/home/me/q/finetune/positive/adapter'), _without_disk('org/name')
  ('finetune/positive/adapter', 'org/name')
  """
  return '/'.join(pathlib.PurePath(path).parts[-3:]) if path.startswith(('/', '.', '~')) else path


def _mean(row: Mapping[str, Any] | None) -> str:
  """A mean with all that is known of it, and the share of answers that could not be read."""
  if row is None or row['mean'] is None:
    return 'not measured'
  words = f'{row["mean"]:.3g}'
  if row['sem'] is not None:
    words += f' ± {row["sem"]:.2g}'
  # Results of earlier versions have no interval.
  if row.get('low') is not None:
    words += f' ({row["low"]:.3g} to {row["high"]:.3g})'
  if row.get('unreadable'):
    words += f', {row["unreadable"]} of {row["asked"]} not readable'
  return words


def _change(row: Mapping[str, Any]) -> str:
  if row.get('change') is None:
    return ''
  words = f'{row["change"]:+.3g}'
  if row['change_low'] is None:
    return words
  return f'{words} ({row["change_low"]:+.3g} to {row["change_high"]:+.3g})'


def _counted(row: Mapping[str, Any]) -> str:
  """The answers behind a mean, and the questions behind these."""
  groups = row.get('groups') or 'questions'
  things = 'texts' if groups == 'texts' else 'answers'
  answers = row.get('answers') or row.get('values') or row['n']
  words = f'{answers} {things}'
  return words if answers == row['n'] else f'{words} on {row["n"]} {groups}'


def _bullets(lines: Sequence[str]) -> str:
  return '\n'.join(f'- {line}' for line in lines)
