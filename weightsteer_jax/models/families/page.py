"""The page docs/families.md, which says what of a `config.json` is supported.

The answers come from the code that reads configs.
"""

from weightsteer_jax.models.families import FAMILIES
from weightsteer_jax.models.families.family import Family
from weightsteer_jax.models.families.fields import INERT, Fields

# The smallest config that every family can read. Fields recorded while reading make the page.
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

A checkpoint of another `model_type` is refused with this list. So is, by name, a field of \
`config.json` that is in
none of the rows below at a value that is not null, for ignoring it could change what the model \
computes; and a
quantised checkpoint. `rope_type` stands for the kind in `rope_parameters` (transformers 5) or \
`rope_scaling`
(before). A window, a rope or its absence is chosen layer by layer.

'longrope' (Phi-3) has two sets of factors. A call takes the long ones if it can address more \
positions than the
original context: the tokens of a row in training and scoring, the slots of the cache in \
generation, whatever is in
them. transformers decides by the highest position in the batch, at every step anew; the two \
agree wherever a batch is
as long as the call allows for, or stays within the original context. Keep `max_length` within it \
for the short
factors.

'''

TAIL = '''## All families

Without effect on the forward pass, and passed over: {inert}.

## To add a family

1. A file `weightsteer_jax/models/families/<model_type>.py`: `read` makes a `ModelConfig` of the \
fields, `describe`
   fields of a `ModelConfig`, and a table of `TensorRow`s says how each parameter is stored. The \
pieces that families
   share are in `family.py`; `granite.py` is a short example, `phi3.py` one with projections \
stored together.
2. A line in the table in `weightsteer_jax/models/families/__init__.py`.
3. If the model does something that no `ModelConfig` can say, a field there (with the default \
that keeps the others as
   they are), its place in `decoder.py`, and another value for it in \
`tests/models/test_forward.py`, which sees that
   it matters.
4. A tiny case in `tests/tiny.py`. The tests of families, parity and saving take it from there: \
logits, cached
   decoding, bit-for-bit saving, defaults, and every field that transformers declares. Then make \
this page again.
'''


def page() -> str:
  """The text of docs/families.md."""
  lines = []
  for name, family in FAMILIES.items():
    # Particulars follow a colon; the table names the models alone.
    models = family.about.split(':')[0]
    lines.append(f'| `{name}` | `{family.architecture}` | {models} |')
  table = '\n'.join(lines)
  sections = ''.join(_section(family) for family in FAMILIES.values())
  inert = ', '.join(f'`{key}`' for key in sorted(INERT))
  return HEAD.format(table=table) + sections + TAIL.format(inert=inert)


def fields_of(family: Family) -> dict[str, str]:
  """{field: how the family treats the field}, in the words of `Fields.asked`."""
  fields = Fields(LEAST | {'model_type': family.model_type}, where='the page')
  family.read(fields)
  return fields.asked


def _section(family: Family) -> str:
  honoured, limited, inert = [], [], []
  for key, how in sorted(fields_of(family).items()):
    if how == 'honoured':
      honoured.append(f'`{key}`')
    elif how == 'without effect':
      inert.append(f'`{key}`')
    else:
      limited.append(f'`{key}` {how.removeprefix("only ")}')
  lines = [f'## {family.model_type}', '', f'{family.about}.', '']
  if honoured:
    lines.append(f'- honoured: {", ".join(honoured)}')
  if limited:
    # Values are separated by commas, and fields therefore by semicolons.
    lines.append(f'- supported at: {"; ".join(limited)}')
  if inert:
    lines.append(f'- without effect: {", ".join(inert)}')
  return '\n'.join(lines) + '\n\n'
