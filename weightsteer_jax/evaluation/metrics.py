"""From rows and judgements to results: means with errors and intervals, needing no model.

All `metrics` of a task's kind are measured; the report plots the metric that the task's options
name, by default the kind's first. The results also hold the failure accounting of
`reading/failures.py`, what became of thoughts (`reading/thinking.py`) where a model thinks, and
`prompt_spread` for an arm of several system prompts.
"""

import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from weightsteer_jax import config
from weightsteer_jax.evaluation import grids, intervals, judging, written
from weightsteer_jax.evaluation import rows as row_files
from weightsteer_jax.evaluation import tasks as kinds
from weightsteer_jax.evaluation.reading import failures, measures, thinking
from weightsteer_jax.evaluation.reading.measures import Metric, Row
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean
from weightsteer_jax.runtime.progress import say

# The metric's name in results: the standard deviation over an arm's system prompts.
PROMPT_SPREAD = 'prompt_spread'
# What the clusters of a task are called whose config has no name for them.
QUESTIONS = 'questions'
# The same of the spread over system prompts.
PROMPTS = 'system prompts'
# The same of plain texts, which answer nothing.
TEXTS = 'texts'
# The least and the largest value of a metric that is no share; None where there are no limits.
LIMITS: Mapping[str, tuple[float, float] | None] = {
  'trait': (0.0, 100.0),
  'coherence': (0.0, 100.0),
  'alignment': (0.0, 100.0),
  'policy_score': (1.0, 5.0),
  'nats_per_token': None,
  'bits_per_byte': None,
  'target_logprob': None,
  'log_odds': None,
  'thought_tokens': None,
}


def results(
  rows: Iterable[Row],
  tasks: Mapping[str, config.Task] | None = None,
  judgements: Iterable[Row] = (),
  judges: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """Result rows: a row for each arm, task, metric and alpha.

  The order is by arm and task in order of appearance, then by metric, then by alpha. The columns:

    mean, sem, low, high
      mean, standard error and 95 % interval, clustered by question (see intervals.py): several
      samples of a question are not several questions
    change, change_sem, change_low, change_high
      the mean less that of the arm's alpha 0, with paired errors: a question is a pair
    answers, clusters, groups
      answers that count in the mean, the questions behind them, and what these are called
    unreadable, asked
      answers of the task at this alpha that could not be read (see `is_unreadable`), of how many
    n, values
      the clusters, and the numbers behind the mean (of a loss, a number for each token)

  A row that a metric leaves out counts in no mean. A number that cannot be told is null: the mean
  of nothing, the error of a single question, the change without an alpha 0.

  Args:
    tasks: {task: its options}. A task that is absent is read as of kind `choice` or `generate`,
      without its failure accounting.
    judgements: the judges' lines about the rows (see `measures.attach`).
    judges: names of the judges; the first judge's scores count.

  Raises:
    InputError: if the options name a metric that the kind does not have.
  """
  options_of = tasks or {}
  # (arm, task) -> alpha -> the rows of a cell.
  cells: dict[tuple[str, str], dict[float, list[Row]]] = {}
  for row in measures.attach(list(rows), list(judgements), judges):
    by_alpha = cells.setdefault((row['arm'], row['task']), {})
    by_alpha.setdefault(float(row['alpha']), []).append(row)
  result_rows = []
  for (arm, task), by_alpha in cells.items():
    for columns in _of_task(task, options_of.get(task), by_alpha):
      result_rows.append({'arm': arm, 'task': task, **columns})
  return result_rows


def _of_task(
  task: str, options: config.Task | None, by_alpha: Mapping[float, Sequence[Row]]
) -> Iterator[dict[str, Any]]:
  """The columns of each result of a task under an arm, but for the names of both."""
  metrics = metrics_of(task, options, by_alpha)
  # Shares of thoughts say nothing where no strength thinks.
  if any(thinking.thinks(row) for rows in by_alpha.values() for row in rows):
    metrics |= thinking.METRICS
  groups = _groups(options)
  for name, metric in metrics.items():
    columns = _columns(name, metric, by_alpha)
    # A failure metric without any value is left out: a choice by likelihood cannot be truncated,
    # and no judge fails where none was asked.
    optional = name in failures.METRICS or name in thinking.METRICS
    if optional and not any(column['values'] for column in columns.values()):
      continue
    for alpha, column in columns.items():
      yield {'metric': name, 'alpha': alpha, **column, 'groups': groups}
  # The spread is of the plotted metric alone, which comes first.
  plotted = next(iter(metrics.values()))
  for alpha in sorted(by_alpha):
    spread = _spread(by_alpha[alpha], plotted)
    if spread:
      yield {'metric': PROMPT_SPREAD, 'alpha': alpha, **spread}


def _groups(options: config.Task | None) -> str:
  """What a task's clusters are called."""
  if options is None:
    return QUESTIONS
  return options.groups or (TEXTS if options.kind == 'perplexity' else QUESTIONS)


def _columns(
  name: str, metric: Metric, by_alpha: Mapping[float, Sequence[Row]]
) -> dict[float, dict[str, Any]]:
  """{alpha: the columns of a metric's result}, alphas ascending."""
  estimates = {
    alpha: intervals.estimate(metric(by_alpha[alpha]), limits=LIMITS.get(name, (0.0, 1.0)))
    for alpha in sorted(by_alpha)
  }
  base = estimates.get(0.0)
  columns = {}
  for alpha, found in estimates.items():
    rows = by_alpha[alpha]
    change = intervals.Change()
    if base:
      change = intervals.change(found, base)
    unreadable = sum(is_unreadable(row) for row in rows)
    # A loss has a value for each token, and is of the texts that have one.
    answers = found.values if found.values <= len(rows) else len(rows) - unreadable
    columns[alpha] = {
      'mean': found.mean,
      'sem': found.sem,
      'n': found.clusters,
      'values': found.values,
      'low': found.low,
      'high': found.high,
      'change': change.mean,
      'change_sem': change.sem,
      'change_low': change.low,
      'change_high': change.high,
      'answers': answers,
      'clusters': found.clusters,
      'unreadable': unreadable,
      'asked': len(rows),
    }
  return columns


def is_unreadable(row: Row) -> bool:
  """Whether nothing could be read in an answer: by its rules, or by the first judge.

  Whatever such an answer counts as in a mean, the mean does not know what it says.
  """
  if row['status'] in failures.INVALID:
    return True
  by_judge = list(row.get('judgements', {}).values())
  # A judge that was never asked has failed at nothing.
  asked = by_judge[0].values() if by_judge else ()
  return any(judgement['status'] != 'ok' for judgement in asked)


def _spread(rows: Sequence[Row], metric: Metric) -> dict[str, Any]:
  """The standard deviation over an arm's system prompts, which `n` counts; {} without several."""
  means = _means_by_prompt(rows, metric)
  if len(means) < 2:
    return {}
  count = len(means)
  spread = {'mean': float(np.std(means, ddof=1)), 'sem': None, 'n': count, 'values': count}
  return {**spread, 'answers': len(rows), 'clusters': count, 'groups': PROMPTS}


def _means_by_prompt(rows: Sequence[Row], metric: Metric) -> list[float]:
  """The metric's mean under each system prompt; [] if the arm adds no prompts."""
  by_prompt: dict[int, list[Row]] = {}
  for row in rows:
    if 'prompt' in row:
      by_prompt.setdefault(row['prompt'], []).append(row)
  means = []
  for prompt_rows in by_prompt.values():
    mean, _, _ = intervals.clustered_mean(metric(prompt_rows))
    # A prompt whose rows the metric leaves out has no mean.
    if mean is not None:
      means.append(mean)
  return means


def metrics_of(
  task: str, options: config.Task | None, by_alpha: Mapping[float, Sequence[Row]]
) -> dict[str, Metric]:
  """The metrics of a task, the plotted one first, its failure accounting last."""
  # The config has no such task (any more): only the columns tell the kind.
  if options is None:
    is_choice = all('logprobs' in row for rows in by_alpha.values() for row in rows)
    kind = 'choice' if is_choice else 'generate'
    return dict(kinds.KINDS[kind].metrics)
  table = kinds.KINDS[options.kind].metrics
  first = options.metric or next(iter(table))
  if first not in table:
    raise InputError(
      f"task '{task}': its kind '{options.kind}' has no metric "
      f"'{first}'{did_you_mean(first, table)}; it has: {', '.join(table)}"
    )
  # A key keeps its first place, so the rest of the table follows the plotted metric.
  return {first: table[first], **table, **failures.METRICS}


def write(
  workdir: str | os.PathLike,
  tasks: Mapping[str, config.Task] | None = None,
  judges: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """The results, also written to `<workdir>/results.jsonl`, `.csv` and `.parquet`.

  They come from all rows in `<workdir>/sweep/rows.jsonl` that belong together (see grids.py); rows
  that do not are told. The columns `grid` and `swept` say which sweep a result comes from, and when
  that began. Judgements come from `<workdir>/sweep/judgements.jsonl`, if there is such a file.

  Raises:
    InputError: if the file of rows is missing, or `results` would raise it.
    CorruptError: if a row, a judgement or a grid is broken.
    OutputError: if the results could not be written.
  """
  folder = pathlib.Path(workdir)
  every_row = row_files.read(folder / 'sweep' / 'rows.jsonl')
  rows, origins, left = grids.together(folder, every_row, None if tasks is None else [*tasks])
  for line in left:
    say(line)
  result_rows = results(rows, tasks, judging.read(folder), judges)
  for result in result_rows:
    origin = origins.get((result['arm'], result['task'], result['alpha']))
    result['grid'] = origin.grid if origin else None
    result['swept'] = origin.begun if origin else None
  written.write(folder, result_rows)
  return result_rows
