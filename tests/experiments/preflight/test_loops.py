"""Collectives of a compiled program whose loops are known."""

import json
import os
import subprocess
import sys

from experiments.preflight import eight


def test_collectives_count_as_often_as_their_loops_run(tmp_path):
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
  }
  output = tmp_path / 'found.json'
  subprocess.run(
    [sys.executable, eight.__file__, str(output)], check=True, timeout=120, env=environment
  )
  found = json.loads(output.read_text())['loops']
  one = 4 * eight.SIZE  # Bytes on a device.
  assert found == {
    'all-gather': [1, 7 * one],  # 7/8 of the 8 parts
    'all-reduce': [eight.OUTER * eight.INNER, eight.OUTER * eight.INNER * 2 * one * 7 // 8],
    'collective-permute': [eight.OUTER, eight.OUTER * one],
  }
