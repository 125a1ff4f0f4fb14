"""The log: what a resumed run drops, and a disk that is full."""

import json
import os

import pytest

from weightsteer_jax.finetune import log
from weightsteer_jax.runtime.errors import OutputError


@pytest.mark.skipif(
  not os.path.exists('/dev/full'), reason='only Linux has a file that is always full'
)
def test_a_log_that_cannot_be_written_is_reported(tmp_path):
  with pytest.raises(OutputError, match='No space left on device'):
    with log.Log(tmp_path, peak=1e-3, step=0, total=3, progress=False) as log_:
      (tmp_path / log.METRICS).symlink_to('/dev/full')
      log_.validation(0, 1.0)


def test_a_resumed_log_drops_what_happens_again_and_a_line_cut_short(tmp_path):
  rows = [
    {'peak': 0.1, 'step': 1},
    {'peak': 0.2, 'step': 9},
    {'peak': 0.1, 'step': 2},
    {'peak': 0.1, 'step': 3},
  ]
  (tmp_path / log.METRICS).write_text(
    ''.join(json.dumps(row) + '\n' for row in rows) + '{"peak": 0.1, "st'
  )
  log.Log(tmp_path, peak=0.1, step=2, total=3, progress=False).close()
  assert [json.loads(line) for line in (tmp_path / log.METRICS).read_text().splitlines()] == rows[
    :3
  ]


def test_the_bar_shows_loss_speed_and_time_left(tmp_path, capsys):
  with log.Log(tmp_path, peak=1e-3, step=0, total=4, progress=True) as log_:
    for step in (1, 2):
      log_.step(step, {'train_loss': 2.5, 'learning_rate': 1e-3}, tokens=1000)
    log_.validation(2, 1.25)
  shown = capsys.readouterr().err
  assert (
    'learning rate 0.001' in shown
    and '2/4' in shown
    and 'loss=2.5000' in shown
    and 'validation=1.2500' in shown
  )
  assert 'tokens/s=' in shown and '<' in shown, 'elapsed<left'
