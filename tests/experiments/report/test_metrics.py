import json

from weightsteer_jax.evaluation.reading import failures
from weightsteer_jax.experiments.report import metrics, page, study


def extended(workdir):
  """The workdir, its first task with a further metric and its failure accounting; markup in the
  name."""
  lines = (workdir / 'results.jsonl').read_text().splitlines()
  first = json.loads(lines[0])
  more = [
    dict(
      arm='weights',
      task=first['task'],
      metric=metric,
      alpha=alpha,
      mean=mean,
      sem=sem,
      n=8,
      values=16,
    )
    for metric, alpha, mean, sem in (
      ('valid_rate', 0.0, 0.75, 0.1),
      ('refused_rate', 0.0, 0.1875, None),
      ('<b>other</b>', 0.0, 0.5, 0.25),
      ('<b>other</b>', 1.0, None, None),
    )
  ]
  (workdir / 'results.jsonl').write_text('\n'.join([*lines, *map(json.dumps, more)]) + '\n')
  return workdir


def test_the_accounting_is_that_of_the_evaluation():
  assert study.FAILURES == tuple(failures.METRICS)


def test_failures_are_shown_as_counts_and_further_metrics_as_means(workdir):
  sweep = study.read(extended(workdir))
  counted = metrics.accounted(sweep)
  assert (
    '<small>valid_rate</small></th><td>12/16</td>' in counted
    and '<td>3/16</td>' in counted
    and 'other' not in counted
  )
  means = metrics.further(sweep)
  assert (
    '&lt;b&gt;other&lt;/b&gt;</small></th><td>0.50 ±0.25<small>n=8</small></td><td>–</td>' in means
  )
  assert 'valid_rate' not in means and 'rate</small>' not in means
  whole = page.write(workdir).read_text()
  assert counted in whole and means in whole


def test_the_plotted_metric_stays_the_first(workdir):
  before = study.cells(study.read(workdir).results, 'weights')
  assert study.cells(study.read(extended(workdir)).results, 'weights') == before


def test_a_sweep_without_either_has_no_such_tables(workdir):
  sweep = study.read(workdir)
  assert metrics.accounted(sweep) == metrics.further(sweep) == ''


def test_agreement_of_judges_is_shown_where_several_were_asked(workdir):
  assert metrics.agreement(study.read(workdir)) == ''
  row = dict(
    purpose='trait',
    first='<i>one</i>',
    second='two',
    n=30,
    kappa=0.714,
    cut=50.0,
    pearson=None,
    spearman=0.5,
  )
  (workdir / 'agreement.jsonl').write_text(json.dumps(row) + '\n')
  shown = metrics.agreement(study.read(workdir))
  assert (
    '&lt;i&gt;one&lt;/i&gt;, two' in shown
    and '<td>30</td><td>0.71<small>cut at 50</small></td><td>–</td><td>0.50</td>' in shown
  )
  assert shown in page.write(workdir).read_text()
