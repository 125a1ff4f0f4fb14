"""The model card (README.md) that lies with every export: what it is, how to load it, what was measured, its limits.

Source of the fields at its head: huggingface.co/docs/hub/model-cards and huggingface_hub.ModelCardData.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import huggingface_hub

from weightsteer_jax.export.base_folder import BaseFolder

WHAT = {
  'hf': 'The base model with the direction merged in',
  'orbax': 'The base model with the direction merged in, as orbax arrays',
  'orbax-unmerged': 'The base model and the direction apart, as orbax arrays; the direction is added when loaded',
  'peft': 'A LoRA adapter that steers the base model',
}
LIBRARY = {'hf': 'transformers', 'orbax': 'orbax', 'orbax-unmerged': 'orbax', 'peft': 'peft'}
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
  'orbax': """```python
from orbax.checkpoint import v1 as ocp
params = ocp.load('/ABSOLUTE/PATH/TO/THIS/FOLDER/params')
```

`python restore.py` does so onto a mesh of all devices, with orbax and jax alone. `axes.json` names the axes of every
parameter, `model_config.json` the architecture.""",
  'orbax-unmerged': """```python
from orbax.checkpoint import v1 as ocp
params = ocp.load('/ABSOLUTE/PATH/TO/THIS/FOLDER/params')
direction = ocp.load('/ABSOLUTE/PATH/TO/THIS/FOLDER/direction')
# steered: params + alpha * (a @ b).reshape(params.shape), at each path of the direction
```

`python restore.py [ALPHA]` does all of it onto a mesh of all devices, with orbax and jax alone. `axes.json` names the
axes of every parameter, `model_config.json` the architecture.""",
}
SERVING = {
  'vllm': 'vllm serve {base} --enable-lora --max-lora-rank {limit} --lora-modules steered=PATH/TO/THIS/FOLDER',
  'llama.cpp': """python convert_lora_to_gguf.py PATH/TO/THIS/FOLDER --base {base} --outfile steered.gguf
llama-cli -m BASE.gguf --lora steered.gguf""",
}


def write(record: Mapping[str, Any], base: BaseFolder) -> str:
  """The card of an export in Markdown, with YAML front matter."""
  sections = {
    'Loading': _loading(record, base),
    'Measured before it was written': _bullets(_measurements(record)),
    'Measured in the run that found the direction': _results(record),
    'Limits': _bullets(_limits(record)),
    'Made from': _bullets(_sources(record)),
  }
  parts = [_front_matter(record, base), _heading(record, base)]
  parts += [f'## {title}\n\n{text}' for title, text in sections.items() if text]
  return '\n\n'.join(parts) + '\n'


def license_of(base: BaseFolder) -> dict[str, str]:
  """The fields for the base's licence: those of its own card, or a file that lies with it; {} if nothing says."""
  path = base.folder / 'README.md'
  if path.is_file():
    fields = huggingface_hub.ModelCard(
      path.read_text('utf-8'), ignore_metadata_errors=True
    ).data.to_dict()
    if fields.get('license'):
      return {
        key: fields[key] for key in ('license', 'license_name', 'license_link') if key in fields
      }
  found = [
    name for name in ('LICENSE', 'LICENSE.txt', 'LICENSE.md') if (base.folder / name).is_file()
  ]
  return (
    {'license': 'other', 'license_name': 'as-the-base', 'license_link': found[0]} if found else {}
  )


def _front_matter(record: Mapping[str, Any], base: BaseFolder) -> str:
  format = record['format']
  fields: dict[str, Any] = {
    'library_name': LIBRARY[format],
    'pipeline_tag': 'text-generation',
    'tags': ['weight-steering', 'contrastive-weight-steering'],
  }
  if format == 'peft':
    fields['tags'] = ['lora', *fields['tags']]
  if base.revision:  # The hub knows models by their ids there, not by a folder of someone's disk.
    fields |= {
      'base_model': base.loadable_name,
      'base_model_relation': 'adapter' if format == 'peft' else 'finetune',
    }
  data = huggingface_hub.ModelCardData(**fields, **license_of(base))
  return f'---\n{data.to_yaml()}\n---'


def _heading(record: Mapping[str, Any], base: BaseFolder) -> str:
  name = base.source + (f' (revision {base.revision})' if base.revision else '')
  return (
    f'# {base.source}, steered in weight space at alpha {record["alpha"]:g}\n\n{WHAT[record["format"]]}: '
    f'`{name}` plus {record["alpha"]:g} times a direction in its weights, in {record["dtype"]} '
    '(contrastive weight steering, arXiv 2511.05408).'
  )


def _loading(record: Mapping[str, Any], base: BaseFolder) -> str:
  name = base.loadable_name
  revision = f', revision={base.revision!r}' if base.revision else ''
  text = LOADING[record['format']]
  if record['format'] == 'peft':
    text = text.format(base=name, revision=revision)
  serving = SERVING.get(record.get('target', ''))
  if serving:
    text += '\n\n```sh\n' + serving.format(base=name, limit=record['max_lora_rank']) + '\n```'
  return '\n\n'.join([text, *record.get('notes', [])])


def _measurements(record: Mapping[str, Any]) -> list[str]:
  parity = record['parity']
  lines = [
    f'The change: alpha {record["alpha"]:g} times a direction of norm {record["norm"]:.4g} (Frobenius, over '
    'everything it changes).'
  ]
  if parity:
    lines.append(
      f'Read back, its logits differ from the unmerged edit by at most {parity["largest_difference"]:.2e} '
      f'(relative {parity["relative_difference"]:.2e}) on {parity["prompts"]} prompts; allowed: '
      f'{parity["tolerance"]}.'
    )
  if 'rechecked' in record:
    found = record['rechecked']
    lines.append(
      f'Every weight was read back as it was written; {found["weights"]} weights, in rows of every tensor, '
      'were computed again from the files in float64: none is further off than one rounding'
      f'{"." if parity else "; logits were not compared."}'
    )
  if 'realised_error' in record:
    lines.append(
      f'Rounding the merged weights to {record["dtype"]} lost {record["realised_error"]:.2%} of the change '
      '(relative Frobenius norm).'
    )
  if record['format'] == 'peft':
    lines.append(f'Rank {record["rank"]}, scaling 1, alpha folded into the second factors.')
  elif record.get('rank'):
    lines.append(f'Rank of the direction: {record["rank"]}.')
  compression = record['direction'].get('compression')
  if compression:
    worst = max(compression['relative_errors'].items(), key=lambda item: item[1], default=('', 0.0))
    lines.append(
      f'The direction was folded to rank {compression["rank"]} by SVD; largest relative error of a site: '
      f'{worst[1]:.2%} (`{worst[0]}`).'
    )
  return lines


def _results(record: Mapping[str, Any]) -> str:
  """The sweep's means at the alpha of the export beside those of the base, or at which alphas there are some."""
  rows = record.get('results', [])
  if not rows:
    return ''
  here = [row for row in rows if row['alpha'] == record['alpha']]
  if not here:
    alphas = ', '.join(f'{alpha:g}' for alpha in sorted({row['alpha'] for row in rows}))
    return f'Not at alpha {record["alpha"]:g}: the sweep of the run was at {alphas}.'
  base = {(row['task'], row['metric']): row for row in rows if row['alpha'] == 0}
  lines = [f'| task | metric | n | base | alpha {record["alpha"]:g} |', '|---|---|---:|---:|---:|']
  for row in here:
    before = base.get((row['task'], row['metric']))
    lines.append(
      f'| {row["task"]} | {row["metric"]} | {row["n"]} | {_mean(before)} | {_mean(row)} |'
    )
  fold = ' before it was folded' if record['direction'].get('compression') else ''
  return '\n'.join(
    [f'Mean and standard error, with the direction applied unmerged{fold}:', '', *lines]
  )


def _limits(record: Mapping[str, Any]) -> list[str]:
  measured = any(row['alpha'] == record['alpha'] for row in record.get('results', []))
  lines = [
    'What is not in a table above was not measured: measure the behaviour, and what else changed, before use.'
    if measured
    else 'How far it was evaluated, and on what, is not recorded here: measure the behaviour and what else changed '
    'before use.'
  ]
  if record['format'] in ('hf', 'orbax'):
    lines.append('The strength is fixed; the base cannot be had back from these weights.')
  elif record['format'] == 'peft':
    lines.append(
      'The strength is fixed at scaling 1. Libraries that scale adapters steer at that multiple of alpha; '
      'far beyond what was measured a model breaks.'
    )
  if record['direction']['base']['digest']:
    lines.append(
      'The direction is of this base, with these weights; on another model of its shape it is untested.'
    )
  return lines


def _sources(record: Mapping[str, Any]) -> list[str]:
  direction = record['direction']
  base = direction['base']
  lines = [
    f'{source.get("role", source.get("kind"))}: `{source.get("path", "see provenance.json")}`'
    for source in direction.get('sources', [])
  ]
  return [
    f'base: `{base["source"] or "any of this architecture"}`, digest {base["digest"] or "not recorded"}',
    *lines,
    'the rest is in `provenance.json`, with a SHA-256 of every file; `python launch/export.py '
    '--verify=FOLDER` checks them',
  ]


def _mean(row: Mapping[str, Any] | None) -> str:
  return 'not measured' if row is None else f'{row["mean"]:.3g} ± {row["sem"]:.2g}'


def _bullets(lines: Sequence[str]) -> str:
  return '\n'.join(f'- {line}' for line in lines)
