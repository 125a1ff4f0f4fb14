"""Free answers judged by rules.

An item is {"id", "messages", "match": {..}} with the rules of `rules.py`. The row's value is 1 if every rule holds. Its
status is 'truncated' if the answer ran into the length limit, 'empty', 'unparsable' if a rule found nothing to judge (a
number was asked for and there is none), 'not_finite' if the model broke, otherwise 'ok'. All but 'not_finite' have a
value: a model that stops making sense has not become better by that.
"""
import dataclasses
from typing import Any, Mapping, Sequence

from weightsteer_jax import config
from weightsteer_jax.data import chat
from weightsteer_jax.evaluation import rules
from weightsteer_jax.evaluation.requests import GenerateRequest, GenerateResult, Sampling, Tokens

REQUIRED, OPTIONAL = ('id', 'messages', 'match'), ()


@dataclasses.dataclass(frozen=True)
class Prepared:
  """An item as tokens, with its rules compiled."""
  item: Mapping[str, Any]
  prompt: Tokens
  rules: rules.Rules


def check(item: Mapping[str, Any], where: str) -> None:
  """Nothing, if the item has rules that mean something.

  Raises:
    InputError: names the item and what is wrong with it.
  """
  rules.make(item['match'], where)


def prepare(tokenizer: Any, item: Mapping[str, Any]) -> Prepared:
  """The item as tokens, through the chat template."""
  return Prepared(item, tuple(chat.prompt_tokens(tokenizer, item['messages'], name=item['id'])),
                  rules.make(item['match'], item['id']))


def requests(prepared: Prepared, key: Any, arm: str, alpha: float, sample: int, options: config.Task,
             seed: int) -> list[GenerateRequest]:
  """One request, named (key, 0)."""
  how = Sampling(options.temperature, options.top_k, options.top_p)
  name = prepared.item['id']
  return [GenerateRequest((key, 0), prepared.prompt, options.max_new_tokens, arm, alpha, how, seed, name, sample, name)]


def fields(prepared: Prepared, results: Sequence[GenerateResult], tokenizer: Any) -> dict[str, Any]:
  """Value, status, the text and its length in tokens."""
  [result] = results
  text = tokenizer.decode(result.tokens, skip_special_tokens=True) if result.tokens else ''
  value, readable = prepared.rules.judge(text)
  row = {'completion': text, 'tokens': len(result.tokens)}
  if result.finish == 'not_finite':
    return {'value': None, 'status': 'not_finite', **row}
  status = ('empty'
            if not text.strip() else 'truncated' if result.finish == 'length' else 'ok' if readable else 'unparsable')
  return {'value': value, 'status': status, **row}
