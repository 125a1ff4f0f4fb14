"""Judges that score answers: an interface, `requests.Judge`, with three kinds.

requests.py     the request, the judgement, and the interface of every judge
purposes.py     the purposes: prompt files, scales, and how an answer is read
endpoint.py     a model behind HTTP: client.py (one question, retried), bounded.py (a deadline and
                caps for a request), answers.py (the cache), budget.py (the cap)
local.py        a checkpoint through our engine, by probabilities
expectation.py  a score as a mean over the answers a judge could give
by_rules.py     no model at all
"""

import pathlib
from collections.abc import Callable

from weightsteer_jax import config
from weightsteer_jax.evaluation.judges.by_rules import ByRules
from weightsteer_jax.evaluation.judges.endpoint import Endpoint
from weightsteer_jax.evaluation.judges.local import LocalModel
from weightsteer_jax.evaluation.judges.purposes import PURPOSES, check_prompt, messages
from weightsteer_jax.evaluation.judges.requests import STATUSES, Judge, Judgement, JudgeRequest
from weightsteer_jax.inference.engine import Engine


def make(
  name: str, options: config.Judge, *, cache: pathlib.Path, engine: Callable[[], Engine]
) -> Judge:
  """The judge of a section of the config.

  Args:
    cache: folder for the answers of endpoints, where the options name none.
    engine: makes an engine with the judge's model; called only for the kind `model`.
  """
  match options:
    case config.EndpointJudge():
      # A file for each judge: two judges of one model may differ in parameters and prices.
      folder = pathlib.Path(options.cache or cache)
      return Endpoint(name, options, cache=folder / f'{name}.jsonl')
    case config.ModelJudge():
      return LocalModel(name, options, engine=engine)
    case config.RulesJudge():
      return ByRules(name, options)
  # The config's own check knows the kinds, so only a new kind without a judge comes here.
  raise AssertionError(f"no judge of the kind '{options.kind}'")
