import json

from weightsteer_jax.evaluation.reading import failures, thinking
from weightsteer_jax.experiments.report import examples, judged, metrics, page, parts, study


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
  assert study.THOUGHTS == tuple(thinking.METRICS)


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
    '0.50 ±0.25<small>16 answers on 8 questions</small></td><td>–</td>' in means
    and '&lt;b&gt;other&lt;/b&gt;</small></th><td title="0.5 ± 0.25, 16 answers' in means
  )
  assert 'valid_rate' not in means and 'rate</small>' not in means
  whole = page.write(workdir).read_text()
  assert counted in whole and means in whole


def thinking_workdir(workdir):
  """The workdir, two thoughts in the rows of its first task: one was cut, one has leaked."""
  rows = [json.loads(line) for line in (workdir / 'sweep/rows.jsonl').read_text().splitlines()]
  columns = {'thought_cut': False, 'thought_leaked': False, 'thought_tokens': 9}
  task = rows[0]['task']
  for row in rows:
    if row['task'] == task:
      row.update(columns, thought='</script><b>Hm', finish='stop')
  cut, leaked = [row for row in rows if row['task'] == task and row['alpha'] == 0][:2]
  cut.update(status='thought_cut', value=None, completion='', thought_cut=True, finish='length')
  leaked.update(thought_leaked=True)
  (workdir / 'sweep/rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  cell = {'arm': 'weights', 'task': task, 'alpha': 0.0, 'sem': None, 'n': 40, 'values': 40}
  means = [1.0, 9.25, 1 / 40, 1 / 40, 0.1]
  more = [
    json.dumps({**cell, 'metric': metric, 'mean': mean})
    for metric, mean in zip(study.THOUGHTS, means)
  ]
  with open(workdir / 'results.jsonl', 'a') as file:
    file.write('\n'.join(more) + '\n')
  config = json.loads((workdir / 'config.json').read_text())
  config['tasks'][0] |= {'max_new_tokens': 48, 'judge_thoughts': True}
  (workdir / 'config.json').write_text(json.dumps(config))
  return workdir


def test_thoughts_are_counted_and_the_key_to_raise_is_named(workdir):
  sweep = study.read(thinking_workdir(workdir))
  survey = examples.count_rows(workdir, sweep.tasks)
  text = metrics.thoughts(sweep, survey)
  name = sweep.tasks[0].name
  assert '1 thought was cut before an answer came' in text
  assert (
    f'1 ran into the length limit: raise <code>tasks.{name}.max_new_tokens</code> (now 48).' in text
  )
  assert f'Judges of {name} see thoughts too.' in text
  assert 'thought_rate</small></th><td>40/40</td>' in text
  assert 'thought_tokens</small></th><td>9.2</td>' in text
  assert 'thought_cut_rate</small></th><td>1/40</td>' in text
  assert 'thought_leak_rate</small></th><td>1/40</td>' in text
  assert 'thought_' not in metrics.further(sweep)
  # The browser of examples has the thought and whether it leaked.
  made = parts.make(sweep, survey, judged.Scores(workdir))
  shown = {part.name: json.loads(part.text) for part in made}
  rows = [row for example in shown['0/0'] for row in example['rows']]
  assert all(row[6]['thought'] == '</script><b>Hm' for row in rows)
  assert sum(row[6]['leaked'] for row in rows) == 1
  html = page.write(workdir).read_text()
  assert '<h2>Thoughts</h2>' in html and '</script><b>Hm' not in html


def test_a_model_without_thoughts_has_no_such_section(workdir):
  sweep = study.read(workdir)
  assert metrics.thoughts(sweep, examples.count_rows(workdir, sweep.tasks)) == ''
  assert '<h2>Thoughts' not in page.write(workdir).read_text()


def test_choices_behind_an_empty_thought_are_told(workdir):
  sweep = study.read(workdir)
  survey = examples.count_rows(workdir, sweep.tasks)
  survey.behind['facts_choice'] = 'an empty thought'
  expected = 'Choices of facts_choice are scored behind an empty thought'
  assert expected in metrics.thoughts(sweep, survey)


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
