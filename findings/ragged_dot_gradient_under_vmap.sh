#!/usr/bin/env bash
# jax 0.10.2, CPU: jax.lax.ragged_dot, the grouped product of a mixture of experts, can be mapped with
# jax.vmap over all three operands, and can be differentiated; its gradient cannot be mapped. So a loss
# of several fine-tunes with experts, mapped over the fine-tunes, evaluates and does not train.
#
# Seen: values of two groups of rows are 72 and 72; jax.grad by the rows and by the experts' kernels, each
# unmapped, have the operands' shapes; both under vmap end with
#   NotImplementedError: ragged_dot vmap over any dim but 0 - NYI
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'jax==0.10.2' 'jaxlib==0.10.2'
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

rows = jnp.ones((2, 6, 3))
kernels = jnp.ones((2, 2, 3, 4))
sizes = jnp.array([[2, 4], [3, 3]], jnp.int32)


def total(rows, kernels, sizes):
  return jax.lax.ragged_dot(rows, kernels, sizes).sum()


values = jax.vmap(total)(rows, kernels, sizes)
print('mapped:', values)
assert values.tolist() == [72.0, 72.0]
for number, name in enumerate(('rows', 'kernels')):
  gradient = jax.grad(total, argnums=number)
  print(f'gradient by {name}, unmapped:', gradient(rows[0], kernels[0], sizes[0]).shape)
  try:
    jax.vmap(gradient)(rows, kernels, sizes)
  except NotImplementedError as error:
    print(f'gradient by {name}, mapped: NotImplementedError: {error}')
  else:
    raise SystemExit(f'the gradient by {name} can be mapped now')
PYTHON
