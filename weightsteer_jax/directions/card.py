"""The short README that lies with every export: what it is, how to load it, what was measured, where it comes from."""
from typing import Any, Mapping

from weightsteer_jax import models
from weightsteer_jax.directions.peft_export import loadable_name

RESTORE = '''"""Restores these weights with plain orbax and jax: python restore.py [FOLDER]"""
import json
import pathlib
import sys

import jax
from orbax.checkpoint import v1 as ocp

folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else __file__).resolve()
folder = folder.parent if folder.is_file() else folder
params = ocp.load(folder / 'params')  # nested dicts; pass abstract arrays with shardings to restore onto a mesh
config = json.loads((folder / 'model_config.json').read_text())
count = sum(leaf.size for leaf in jax.tree.leaves(params))
print(f"{config['num_layers']} layers of width {config['width']}, {count} parameters")
'''

LOADING = {
    'hf': """    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained('THIS FOLDER')""",
    'peft': """    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    base = AutoModelForCausalLM.from_pretrained('{base}')
    model = PeftModel.from_pretrained(base, 'THIS FOLDER')""",
    'orbax': """    from orbax.checkpoint import v1 as ocp
    params = ocp.load('/ABSOLUTE/PATH/TO/THIS/FOLDER/params')  # see restore.py""",
}
WHAT = {'hf': 'The base model with the direction merged in', 'peft': 'A LoRA adapter that steers the base model',
        'orbax': 'The base model with the direction merged in, as orbax arrays'}


def write(record: Mapping[str, Any], base: models.Model) -> str:
  """The card of an export in Markdown."""
  measured, sources = ('\n'.join(f'- {line}' for line in lines) for lines in (_measurements(record), _sources(record)))
  loading = LOADING[record['format']].format(base=loadable_name(base))
  parts = [_heading(record, base), '## Loading', loading, '## Measured before it was written', measured, '## Made from',
           sources]
  return '\n\n'.join(parts) + '\n'


def _heading(record: Mapping[str, Any], base: models.Model) -> str:
  name = base.source + (f' (revision {base.revision})' if base.revision else '')
  return (f'# {base.source}, steered in weight space at alpha {record["alpha"]:g}\n\n{WHAT[record["format"]]}: '
          f'`{name}` plus {record["alpha"]:g} times a direction in its weights, in {record["dtype"]}. '
          'How far it was evaluated, and on what, is not recorded here: measure the behaviour and what else changed '
          'before use.')


def _measurements(record: Mapping[str, Any]) -> list[str]:
  parity = record['parity']
  lines = [f'Read back, its logits differ from the unmerged edit by at most {parity["largest_difference"]:.2e} '
           f'(relative {parity["relative_difference"]:.2e}) on {parity["prompts"]} prompts; allowed: '
           f'{parity["tolerance"]}.']
  if 'realised_error' in record:
    lines.append(f'Rounding the merged weights to {record["dtype"]} lost {record["realised_error"]:.2%} of the change '
                 '(relative Frobenius norm).')
  if 'rank' in record:
    lines.append(f'Rank {record["rank"]}, scaling 1, alpha folded into the second factors.')
  compression = record['direction'].get('compression')
  if compression:
    worst = max(compression['relative_errors'].values(), default=0.0)
    lines.append(f'The direction was folded to rank {compression["rank"]} by SVD; largest relative error of a site: '
                 f'{worst:.2%}.')
  return lines + list(record.get('notes', []))


def _sources(record: Mapping[str, Any]) -> list[str]:
  direction = record['direction']
  base = direction['base']
  lines = [f'{source.get("role", source.get("kind"))}: `{source.get("path", "see provenance.json")}`'
           for source in direction.get('sources', [])]
  return [f'base: `{base["source"] or "any of this architecture"}`, digest {base["digest"] or "not recorded"}', *lines,
          'the rest is in `provenance.json`, with a SHA-256 of every file']
