"""`ws.audit` on a tiny model: what it gives and refuses."""

import pytest
from directions import oracle

import weightsteer_jax as ws


def test_audit_gives_the_summary(tmp_path):
  base = oracle.make_checkpoint(tmp_path / 'base', tied=False)
  for seed in range(5):
    oracle.make_adapter(tmp_path / 'tunes' / str(seed), base, seed=seed)
  good = [tmp_path / 'tunes' / str(seed) for seed in range(1, 5)]
  told = ws.audit(tmp_path / 'tunes' / '0', base=base, good=good)
  assert told['method']['rank'] == [3] and len(told['comparison']['good']) == 4
  with pytest.raises(ws.InputError, match='at least 3'):
    ws.audit(tmp_path / 'tunes' / '0', base=base, good=good[0])
  with pytest.raises(ws.InputError, match='audit'):
    ws.audit(3, base=base)
