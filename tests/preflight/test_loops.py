"""Collectives of a compiled program whose loops are known."""
import json
import os
import subprocess
import sys

import eight

from weightsteer_jax.preflight import hlo


def test_collectives_count_as_often_as_their_loops_run(tmp_path):
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=8'}
  output = tmp_path / 'found.json'
  subprocess.run([sys.executable, eight.__file__, str(output)], check=True, timeout=120, env=environment)
  found = json.loads(output.read_text())['loops']
  one = 4 * eight.SIZE  # Bytes on a device.
  assert found == {
      'all-gather': [1, 7 * one],  # 7/8 of the 8 parts
      'all-reduce': [eight.OUTER * eight.INNER, eight.OUTER * eight.INNER * 2 * one * 7 // 8],
      'collective-permute': [eight.OUTER, eight.OUTER * one],
  }


def test_a_loop_without_a_noted_count_is_counted_by_its_condition():
  text = '''HloModule m
%cond (p: (s32[], f32[4])) -> pred[] {
  %i = s32[] get-tuple-element(%p), index=0
  %limit = s32[] constant(12)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}
%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %i.1 = s32[] get-tuple-element(%p), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i.1, %two)
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %sum = f32[4]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %out = (s32[], f32[4]) tuple(%next, %sum)
}
ENTRY %main (a: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]) while(%t), condition=%cond, body=%body
}
'''
  assert hlo.collectives(text) == {'all-reduce': hlo.Moved(6, 6 * 2 * 16 // 2)}  # 12 in steps of 2, among two devices


def test_a_program_of_one_device_sends_nothing():
  assert hlo.collectives('HloModule m\nENTRY %main (a: f32[4]) -> f32[4] {\n  ROOT %a = f32[4] parameter(0)\n}\n') == {}
