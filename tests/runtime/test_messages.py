import pytest

from weightsteer_jax.runtime import messages


def test_the_nearest_name_must_be_near_enough():
  assert messages.did_you_mean('kernle', ['kernel', 'bias']) == " (did you mean 'kernel'?)"
  assert messages.did_you_mean('kernle', ['bias', 7]) == ''
  assert messages.nearest('kernle', ['kernel'], cutoff=0.95) is None


@pytest.mark.parametrize(
  'names, limit, words',
  [([], 2, ''), (['a'], 2, 'a'), (['a', 'b'], 2, 'a, b'), (['a', 'b', 'c'], 2, 'a, b and 1 more')],
)
def test_a_long_list_is_cut_and_counted(names, limit, words):
  assert messages.listed(names, limit) == words


def test_the_first_line_of_an_error_is_never_empty():
  assert messages.first_line(ValueError('\n  first \nsecond')) == 'first '
  assert messages.first_line(ValueError(' \n')) == 'ValueError'
  assert messages.first_line(ValueError('x' * 10), limit=4) == 'xxxx ...'


def test_memory_is_counted_in_powers_of_two_and_files_in_powers_of_ten():
  assert messages.memory_size(15.75 * 2**30) == '15.8 GiB'
  assert messages.memory_size(2**29 - 1) == '512.0 MiB'
  assert messages.file_size(1e9) == '1.0 GB'
  assert messages.file_size(39_100, digits=3) == '0.039 MB'
