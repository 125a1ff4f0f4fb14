"""Collectives read off a program's text: on fragments whose answer is plain. Real programs:
tests/test_meshes.py."""

from weightsteer_jax.experiments.preflight.hlo import Moved, collectives

LOOP = '''
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}
%cond (state: (s32[], f32[8])) -> pred[] {
  %limit = s32[] constant(28)
  %count = s32[] get-tuple-element(%state), index=0
  ROOT %more = pred[] compare(%count, %limit), direction=LT
}
%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %step = s32[] constant(STEP)
  %count = s32[] get-tuple-element(%state), index=0
  %x = f32[8] get-tuple-element(%state), index=1
  %next = s32[] add(%count, %step)
  %all = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %state2 = (s32[], f32[8]) tuple(%next, %all)
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]) while(%init), condition=%cond, body=%body
  %gathered = bf16[4,16]{1,0:T(8,128)} all-gather(%y), channel_id=2, replica_groups=[2,4]<=[8], dimensions={1}
  ROOT %r = f32[8] get-tuple-element(%loop), index=1
}
'''


def test_a_loop_counts_as_often_as_it_runs_and_each_device_sends_its_share_of_a_ring():
  found = collectives(LOOP.replace('STEP', '1'))
  # 32 bytes among 2 devices: half of it, twice, 28 times. 128 bytes among 4: three quarters, once.
  assert found == {'all-reduce': Moved(28, 28 * 32), 'all-gather': Moved(1, 96)}


def test_a_loop_that_was_unrolled_by_two_runs_half_as_often():
  assert collectives(LOOP.replace('STEP', '2'))['all-reduce'] == Moved(14, 14 * 32)


def test_a_trip_count_that_the_compiler_notes_is_taken():
  noted = LOOP.replace('STEP', '1').replace(
    'body=%body', 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
  )
  assert collectives(noted)['all-reduce'].count == 7


def test_what_is_overlapped_in_several_fusions_under_one_channel_counts_once():
  text = '''
%start (y: f32[4]) -> f32[8] {
  ROOT %g1 = f32[8]{0} all-gather(%y), channel_id=5, replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, dimensions={0}
}
%done (y: f32[4]) -> f32[8] {
  ROOT %g2 = f32[8]{0} all-gather(%y), channel_id=5, replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, dimensions={0}
}
ENTRY %main (y: f32[4]) -> f32[8] {
  %a = f32[8] fusion(%y), kind=kCustom, calls=%start
  ROOT %b = f32[8] fusion(%a), kind=kCustom, calls=%done
}
'''
  assert collectives(text) == {'all-gather': Moved(1, 16)}


def test_permutes_and_scattered_sums():
  text = '''
ENTRY %main (y: f32[16]) -> f32[4] {
  %p = (bf16[3,5]{1,0}, bf16[3,5]{1,0}, u32[], u32[]) collective-permute-start(%y), channel_id=1, source_target_pairs={{0,1},{1,0}}
  ROOT %s = f32[4]{0} reduce-scatter(%y), channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
}
'''
  assert collectives(text) == {'collective-permute': Moved(1, 30), 'reduce-scatter': Moved(1, 48)}
