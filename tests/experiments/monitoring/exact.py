"""Angles as numpy has them in float64, from changes of every matrix written out."""

import numpy as np
from directions import oracle

from weightsteer_jax.models import Dense


def cells_of(delta) -> dict[tuple[str, int | None], list[np.ndarray]]:
  """{(module, layer): changes, flat} of a delta."""
  found = {}
  for path, leaf in oracle.leaves_of(delta).items():
    stacked = path.startswith('layers/')
    if isinstance(leaf, Dense):
      value = np.asarray(leaf.value, np.float64)
      layers = list(value) if stacked else [value]
    else:
      a, b = np.asarray(leaf.a, np.float64), leaf.scale * np.asarray(leaf.b, np.float64)
      pairs = zip(a, b) if stacked else [(a, b)]
      layers = [np.tensordot(x, y, axes=1) for x, y in pairs]
    name = (
      path.replace('layers/', '')
      .replace('/kernel', '')
      .replace('/scale', '')
      .replace('/embedding', '')
    )
    for number, layer in enumerate(layers):
      found[name.replace('/', '.'), number if stacked else None] = layer.ravel()
  return found


def angle(update, direction, module, layer) -> dict:
  """What `measure.Angle` should hold of two results of `cells_of`, over the cells of a module, a
  layer, both or all."""
  names = [
    name for name in {*update, *direction} if module in (None, name[0]) and layer in (None, name[1])
  ]
  sizes = {name: (update if name in update else direction)[name].size for name in names}
  u, v = (
    np.concatenate([cells.get(name, np.zeros(sizes[name])) for name in names])
    for cells in (update, direction)
  )
  size_u, size_v = np.linalg.norm(u), np.linalg.norm(v)
  null = sum(
    (update[name] @ update[name]) * (direction[name] @ direction[name]) / sizes[name]
    for name in names
    if name in update and name in direction
  )
  return dict(
    cosine=u @ v / (size_u * size_v) if size_u and size_v else None,
    projection=u @ v / size_v if size_v else None,
    alpha=u @ v / size_v**2 if size_v else None,
    norm=size_u,
    direction_norm=size_v,
    null_std=np.sqrt(null) / (size_u * size_v) if size_u and size_v else None,
  )


def assert_angles(measured, update, direction, tolerance=1e-5):
  """All that is measured, at every place, is what numpy says."""
  places = []
  for module, layer, got in measured.angles():
    places.append((module, layer))
    for key, value in angle(update, direction, module, layer).items():
      found = getattr(got, key)
      if value is None:
        assert found is None, (module, layer, key)
      else:
        assert abs(found - value) <= tolerance * max(1.0, abs(value)), (
          module,
          layer,
          key,
          found,
          value,
        )
  cells = {*update, *direction}
  expected = {
    (None, None),
    *((name, None) for name, _ in cells),
    *((None, layer) for _, layer in cells if layer is not None),
    *(cell for cell in cells if cell[1] is not None),
  }
  assert set(places) == expected and len(places) == len(expected)
