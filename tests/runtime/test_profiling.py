"""A window of a run as a trace: it holds the units of work, opens behind the first one, and
ends."""

import json
import logging

import jax
import pytest

from weightsteer_jax.experiments import standalone
from weightsteer_jax.runtime import profiling
from weightsteer_jax.runtime.errors import OutputError


def events_of(folder):
  """{name: events} of the one trace in a folder."""
  # Where xprof and TensorBoard look.
  found = list(folder.glob('plugins/profile/*/*.xplane.pb'))
  assert len(found) == 1
  counts = {}
  for plane in jax.profiler.ProfileData.from_file(str(found[0])).planes:
    for line in plane.lines:
      for event in line.events:
        counts[event.name] = counts.get(event.name, 0) + 1
  return counts


def test_scoring_is_seen_in_the_trace_without_its_first_batch(tmp_path):
  # Each fills most of a row.
  rows = [{'prompt': f'{i} the capital' + ' of the' * 10, 'completion': ' of'} for i in range(4)]
  (tmp_path / 'x.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  profiling.begin(tmp_path / 'profile')
  standalone.score('organism', tmp_path / 'x.jsonl', tmp_path / 'y.jsonl', batch_size=1)
  profiling.end()
  assert len((tmp_path / 'y.jsonl').read_text().splitlines()) == 4
  found = events_of(tmp_path / 'profile')
  # The first batch is compiled before the window opens.
  assert found['score batch'] == 3
  # jax's own word for the program.
  assert any('score_batch' in name for name in found)


def test_the_window_has_a_beginning_and_an_end(tmp_path):
  profiling.begin(tmp_path / 'profile', seconds=0.0)
  for number in range(4):
    with profiling.unit('train step', number):
      jax.numpy.zeros(number).block_until_ready()
  # The second unit: the window opens behind the first one, and closes behind the second.
  assert events_of(tmp_path / 'profile')['train step'] == 1


def test_a_run_too_short_for_its_window_says_so(tmp_path, caplog):
  profiling.begin(tmp_path / 'profile', after=60.0)
  with caplog.at_level(logging.WARNING), profiling.unit('decode'):
    pass
  profiling.end()
  assert 'the run ended before its window opened' in caplog.text
  assert not list((tmp_path / 'profile').iterdir())


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(OutputError, match='--profile: the folder .* cannot be made'):
    profiling.begin(tmp_path / 'file' / 'profile')
