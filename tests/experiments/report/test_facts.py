"""The head of the page: model, day, devices, duration and versions, where a workdir tells them."""

from weightsteer_jax.experiments.report import facts, study


def run(config, times=()):
  return study.Study('', config, (), (), {}, times=tuple(times))


def test_what_a_run_ran_on_is_told_and_stages_are_summed():
  config = dict(
    model=dict(source='organism', dtype='float32'),
    chat_date='2026-11-30',
    versions=dict(weightsteer_jax='0.1.0', jax='0.10.2', numpy='2'),
  )
  times = [
    dict(stage='contrast', began='2026-11-30T23:59:01+00:00', seconds=5.4, device='1 x cpu'),
    dict(stage='sweep', began='2026-12-01T00:00:01+00:00', seconds=30, device='1 x cpu'),
    dict(stage='sweep', began='2026-12-01T00:09:01+00:00', seconds=90, device='8 x TPU v5 lite'),
  ]
  assert facts.of_run(run(config, times)) == [
    'organism, float32',
    '2026-12-01',
    'on 1 x cpu, then 8 x TPU v5 lite',
    '2 min (contrast 5 s, sweep 2 min)',
    'weightsteer_jax 0.1.0, jax 0.10.2',
  ]


def test_a_workdir_of_an_earlier_version_tells_what_it_can():
  assert facts.of_run(run(dict(chat_date='2026-11-30'))) == ['2026-11-30']
  assert facts.of_run(run(dict(model='x', versions=None))) == []
