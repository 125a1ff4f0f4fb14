"""The page docs/families.md, made by the code for reading a `config.json`."""

from weightsteer_jax.models.families import FAMILIES
from weightsteer_jax.models.families.family import Family
from weightsteer_jax.models.families.fields import INERT, Fields

# Fields without a default. A family records every field that it reads, also an absent field.
LEAST = dict(
  hidden_size=8,
  intermediate_size=8,
  num_hidden_layers=2,
  num_attention_heads=2,
  num_key_value_heads=1,
  vocab_size=8,
)

HEAD = '''# Families of models

Made by `python -m weightsteer_jax.models.families > docs/families.md`; a test compares the two.

| `model_type` | class in transformers | models |
|---|---|---|
{table}

A checkpoint of another `model_type` is refused with this list, and so is a quantised checkpoint. A
field of `config.json` that is in none of the rows below is refused by name unless the value is
null, because ignoring the field could change what the model computes. `rope_type` stands for the
kind in `rope_parameters` (transformers 5) or `rope_scaling` (before). Windows and ropes are chosen
layer by layer; a layer may have neither.

'longrope' (Phi-3) has two sets of factors. A call takes the long factors if it can address more
positions than the original context. Positions are the tokens of a row in training and scoring, and
the slots of the cache in generation, filled or not. transformers decides by the highest position in
the batch, at every step anew. Both agree where a batch is as long as the call allows, or stays
within the original context. Keep `max_length` within the original context for the short factors.

'''

TAIL = '''## All families

Without effect on the forward pass, and passed over: {inert}.

## To add a family

1. Write `weightsteer_jax/models/families/<model_type>.py`: `read` makes a `ModelConfig` of the
   fields, `describe` makes the fields of a `ModelConfig`, and a table of `TensorRow`s says how each
   parameter is stored. The pieces that families share are in `family.py`. `granite.py` is a short
   example; `phi3.py` is an example with projections stored together.
2. Add a line to the table in `weightsteer_jax/models/families/__init__.py`.
3. If the model does something that no `ModelConfig` can say, add a field to `ModelConfig` (with a
   default that leaves the other families as they are) and use the field in `decoder.py`. Add
   another value to `tests/models/test_forward.py`, which checks that the field matters.
4. Add a tiny case to `tests/tiny.py`. The tests of families, parity and saving then cover the
   family: logits, cached decoding, bit-for-bit saving, defaults, and every field that transformers
   declares. Then make this page again.
'''


def page() -> str:
  """The page as Markdown."""
  lines = []
  for name, family in FAMILIES.items():
    # The particularities after the colon stand in the section of the family.
    models = family.about.split(':')[0]
    lines.append(f'| `{name}` | `{family.architecture}` | {models} |')
  table = '\n'.join(lines)
  head = HEAD.format(table=table)
  sections = [_section(family) for family in FAMILIES.values()]
  inert = ', '.join(f'`{key}`' for key in sorted(INERT))
  return head + ''.join(sections) + TAIL.format(inert=inert)


def fields_of(family: Family) -> dict[str, str]:
  """{field: handling} of a family's fields; see `Fields.handling`."""
  fields = Fields(LEAST | {'model_type': family.model_type}, where='the page')
  family.read(fields)
  return fields.handling


def _section(family: Family) -> str:
  """The section of a family: a line of fields for each handling."""
  honoured, limited, inert = [], [], []
  for key, handling in sorted(fields_of(family).items()):
    if handling == 'honoured':
      honoured.append(f'`{key}`')
    elif handling == 'without effect':
      inert.append(f'`{key}`')
    else:
      limited.append(f'`{key}` {handling.removeprefix("only ")}')
  lines = []
  if honoured:
    lines.append(f'- honoured: {", ".join(honoured)}\n')
  # The supported values of a field have commas between them already.
  if limited:
    lines.append(f'- supported at: {"; ".join(limited)}\n')
  if inert:
    lines.append(f'- without effect: {", ".join(inert)}\n')
  return f'## {family.model_type}\n\n{family.about}.\n\n{"".join(lines)}\n'
