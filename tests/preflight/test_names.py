"""Names of hardware, as jax and as users say them."""
import pytest

from weightsteer_jax.errors import InputError
from weightsteer_jax.preflight import topology


@pytest.mark.parametrize('name, expected', [
    ('v5e:4x4', ('v5e', (4, 4))), ('v5litepod-16', ('v5e', (4, 4))), ('v5e-256', ('v5e', (16, 16))),
    ('v5p-32', ('v5p', (2, 2, 4))), ('v5p:2x2x4', ('v5p', (2, 2, 4))), ('v6e-16', ('v6e', (4, 4))),
    ('V6E-8', ('v6e', (2, 4))), ('v4-8', ('v4', (2, 2, 1))),
])
def test_names_as_users_say_them(name, expected):
  generation, sizes = topology.parse(name)
  assert (generation, sorted(sizes)) == (expected[0], sorted(expected[1]))


@pytest.mark.parametrize('name, said', [
    ('v5e:3x3', 'multiples of 2x2'), ('v5e:32x32', 'at most 256'), ('v6e-512', 'at most 256'), ('v5p-33', 'power of two'),
    ('v9x-16', "no topology 'v9x-16'"), ('v5e', 'expected'), ('v5e:4x4x4', '2 axes'), ('', 'expected'), ('v5e-0', 'power of two'),
])
def test_what_there_is_not_is_refused_by_name(name, said):
  with pytest.raises(InputError, match=said):
    topology.parse(name)
