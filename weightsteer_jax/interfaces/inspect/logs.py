"""A finished sweep as logs of Inspect: one for each arm, task and strength."""

import datetime
import math
import pathlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from inspect_ai import log as logs
from inspect_ai import model as chat
from inspect_ai.scorer import Score

from weightsteer_jax.evaluation import rows as row_files
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import files

Row = Mapping[str, Any]
# The name of a sample's own score; what it is, its metadata says.
VALUE = 'value'


def write(workdir: files.Path, output: files.Path) -> list[pathlib.Path]:
  """The logs written to a new folder, of all rows of a workdir.

  A log is of the model MODEL@ARM=ALPHA. Its scores are the results of the report, with their
  standard errors, clustered by question; the first is that of the samples.

  Raises:
    InputError: if the workdir has no finished sweep, or the output exists.
    CorruptError: if a row is broken.
    OutputError: if the disk is full.
  """
  folder = pathlib.Path(workdir)
  results_path = folder / 'results.jsonl'
  if not results_path.is_file():
    raise InputError(f'{folder} has no results.jsonl: sweep it first (weightsteer sweep)')
  config = files.read_json(folder / 'config.json', what='the config of a run')
  rows: dict[tuple[str, str, float], list[Row]] = defaultdict(list)
  for row in row_files.read(folder / 'sweep' / 'rows.jsonl'):
    rows[row['arm'], row['task'], row['alpha']].append(row)
  results: dict[tuple[str, str, float], list[Row]] = defaultdict(list)
  for result in files.read_jsonl(results_path, what='the results of a sweep'):
    results[result['arm'], result['task'], result['alpha']].append(result)
  changed = results_path.stat().st_mtime
  finished = datetime.datetime.fromtimestamp(changed).astimezone().isoformat(timespec='seconds')
  written = []
  with files.new_folder(output, what='the logs') as partial:
    # What is in no result is of another sweep, or not whole.
    for key, of_cell in results.items():
      arm, task, alpha = key
      # Tasks may be named by a path, and strengths may agree in their first digits.
      name = re.sub(r'[^\w.+-]', '_', f'{arm}_{task}_{alpha:+}.eval')
      logs.write_eval_log(_log(config, key, rows[key], of_cell, finished), str(partial / name))
      written.append(pathlib.Path(output) / name)
  return written


def _log(
  config: Row,
  key: tuple[str, str, float],
  rows: Sequence[Row],
  results: Sequence[Row],
  finished: str,
) -> logs.EvalLog:
  arm, task, alpha = key
  source = str(config['model']['source']).rstrip('/').split('/')[-1]
  name = f'{source}@{arm}={alpha:g}'
  samples = [_sample(row, name) for row in rows]
  # Sweeps of earlier versions have no times of their own.
  swept = results[0].get('swept') or finished
  spec = logs.EvalSpec(
    created=swept,
    task=task,
    dataset=logs.EvalDataset(name=task, samples=len({row['example'] for row in rows})),
    model=name,
    config=logs.EvalConfig(epochs=max(row['sample'] for row in rows) + 1),
    packages={'weightsteer_jax': str(config.get('versions', {}).get('weightsteer_jax', ''))},
    metadata={
      'arm': arm,
      'alpha': alpha,
      'run': config.get('name', ''),
      'model': config['model']['source'],
      'role': config.get('tasks', {}).get(task, {}).get('role', ''),
    },
  )
  return logs.EvalLog(
    status='success',
    eval=spec,
    results=logs.EvalResults(
      total_samples=len(samples),
      completed_samples=len(samples),
      scores=[_score(result, is_first=not i) for i, result in enumerate(results)],
    ),
    stats=logs.EvalStats(started_at=swept, completed_at=swept),
    samples=samples,
  )


def _score(result: Row, *, is_first: bool) -> logs.EvalScore:
  """A result as a score of a log."""
  metrics = {}
  for name, key in (('mean', 'mean'), ('stderr', 'sem')):
    value = result.get(key)
    if value is not None and math.isfinite(value):
      metrics[name] = logs.EvalMetric(name=name, value=value)
  name = VALUE if is_first else result['metric']
  about = ('metric', 'n', 'answers', 'clusters', 'low', 'high', 'unreadable')
  metadata = {key: result[key] for key in about if result.get(key) is not None}
  return logs.EvalScore(name=name, scorer=name, metrics=metrics, metadata=metadata)


def _sample(row: Row, name: str) -> logs.EvalSample:
  messages = [_message(message) for message in row.get('messages', ())]
  text = _answer(row)
  scores = None
  # An answer that no rule could read has no value.
  if row['value'] is not None:
    own = {key: row[key] for key in ('status', 'logprobs', 'thought') if key in row}
    scores = {VALUE: Score(value=row['value'], answer=text, metadata=own)}
  target = row['choices'][row['target']] if 'choices' in row and 'target' in row else ''
  return logs.EvalSample(
    id=row['example'],
    epoch=row['sample'] + 1,
    input=messages or row['example'],
    choices=list(row['choices']) if 'choices' in row else None,
    target=target,
    messages=[*messages, chat.ChatMessageAssistant(content=text)],
    output=chat.ModelOutput.from_content(name, text),
    scores=scores,
    metadata={'group': row['group']} if 'group' in row else {},
  )


def _message(message: Row) -> chat.ChatMessage:
  kinds = {
    'system': chat.ChatMessageSystem,
    'user': chat.ChatMessageUser,
    'assistant': chat.ChatMessageAssistant,
  }
  return kinds[message['role']](content=message['content'])


def _answer(row: Row) -> str:
  """What the model said, or the choice that it finds likeliest."""
  if 'completion' in row:
    return row['completion']
  logprobs = row.get('logprobs') or []
  if not logprobs or None in logprobs or 'choices' not in row:
    return ''
  return row['choices'][logprobs.index(max(logprobs))]
