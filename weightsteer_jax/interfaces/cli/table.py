"""Every verb of the command, in the groups of its help.

A verb's module is imported when the verb is asked for. The module's PROGRAM says what its flags are
and what it does (see program.py).
"""

import dataclasses
from collections.abc import Mapping

_HERE = __name__.rpartition('.')[0]


@dataclasses.dataclass(frozen=True)
class Verb:
  """A verb: its module, and what the verb does in a line."""

  module: str
  summary: str


def _verb(name: str, summary: str) -> Verb:
  return Verb(f'{_HERE}.{name}', summary)


GROUPS: Mapping[str, Mapping[str, Verb]] = {
  'Make a direction': {
    'steer': _verb('steer', 'all of it: data, two fine-tunes, a direction, a sweep, a report'),
    'data': _verb('data', 'the contrast alone: answers under opposite prompts, judged and paired'),
    'finetune': _verb('finetune', 'the fine-tunes alone'),
    'direction': _verb('direction', 'a direction from two runs, adapters or checkpoints'),
    'sweep': _verb('sweep', "a run's tasks at every strength, and the report"),
    'judge': _verb('judge', "judges asked about a sweep's answers"),
    'report': _verb('report', "a finished run's page drawn anew, or one page over many runs"),
  },
  'Use it': {
    'chat': _verb('chat', 'a chat in the terminal, at strengths that can be changed'),
    'serve': _verb('serve', "a server for OpenAI's clients, a strength with each request"),
    'generate': _verb('generate', 'completions at any strengths, of a prompt or of a file of rows'),
    'score': _verb('score', 'log-likelihoods of completions at any strengths'),
    'harness': _verb('harness', 'tasks of lm-evaluation-harness at every strength'),
  },
  'Study it': {
    'calibrate': _verb('calibrate', 'strengths at which directions spend equal budgets'),
    'combine': _verb('combine', 'directions added, projected, merged, cut to layers or to a rank'),
    'interact': _verb('interact', "several directions on each other's behaviours, on one grid"),
    'audit': _verb('audit', "a fine-tune's update, beside known good ones and directions"),
  },
  'Hand it on': {
    'track': _verb('track', 'a finished run told to W&B or MLflow'),
    'inspect-log': _verb('inspect_log', 'a finished sweep as logs of Inspect'),
    'export': _verb('export', 'files for Hugging Face, orbax, PEFT, vLLM or llama.cpp'),
  },
  'Check': {
    'preflight': _verb('preflight', "whether a run fits hardware that need not be there"),
    'monitor': _verb('monitor', "a training run's checkpoints against directions"),
    'smoke': _verb('smoke', 'devices, shared workdir and checkpoints of a cluster'),
    'real-model': _verb('real_model', "a small real model's folder, to try things on"),
  },
}

VERBS: Mapping[str, Verb] = {
  name: verb for group in GROUPS.values() for name, verb in group.items()
}
