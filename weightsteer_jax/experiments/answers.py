"""Contrastive data of a model's own making: sampled under opposite system prompts, judged, and kept
in pairs.

In a folder of its own, so that what was interrupted goes on: `answers.jsonl` has a line for each
answer as it comes, {name, text, finish}, `judgements.jsonl` one for each of a judge, and
`plan.json` and `judges.json` what they were made from.

Source: Persona Vectors (arXiv 2507.21509): both answers of a pair coherent, the trait at 50 or more
on one side and below on the other.
"""

import collections
import pathlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from weightsteer_jax import config
from weightsteer_jax.data import chat, pairs
from weightsteer_jax.data.pairs import SIDES, Contrast, Filter
from weightsteer_jax.data.sources import Conversation
from weightsteer_jax.data.trait import Trait
from weightsteer_jax.evaluation import judges, judging
from weightsteer_jax.evaluation.judges import Judge, JudgeRequest
from weightsteer_jax.inference.engine import Engine
from weightsteer_jax.inference.requests import GenerateRequest, Sampling
from weightsteer_jax.runtime import processes, tree
from weightsteer_jax.storage import journal, made_from, resumable

PURPOSES = ('trait', 'coherence')
_ANSWER = dict(needs=('name', 'text', 'finish'), what='an answer', again='the data stage')
_JUDGEMENT = dict(
  needs=('name', 'judge', 'purpose', 'score', 'status', 'text'),
  what='a judgement',
  again='the data stage',
)
# Name of a prompt -> {'text', 'finish'}, and (name, purpose) -> judgement.
Answers = Mapping[str, Mapping[str, Any]]
Judgements = Mapping[tuple[str, str], Mapping[str, Any]]


def make(
  engine: Callable[[], Engine],
  asked: Mapping[str, Sequence[Conversation]],
  folder: pathlib.Path,
  *,
  options: config.Data,
  seed: int,
  keep: Filter,
  trait: Trait | None = None,
  judge: Judge | None = None,
) -> tuple[Contrast, dict[str, Any]]:
  """(the pairs that are kept, what became of all answers, side by side).

  Args:
    engine: makes the engine of the model that answers.
    asked: {side: prompts}, as `contrast.prompts` gives them.
    folder: for the answers and judgements.
    keep: why an answer is dropped whatever a judge says, or None.
    trait, judge: what is judged, and by whom; both or neither.

  Raises:
    InputError: answers or judgements there that were made from something else; no pair passes.
      Preempted: a signal came; what is there is kept.
  """
  prompts = [prompt for side in SIDES for prompt in asked[side]]
  answers = answer(engine(), prompts, folder, options=options, seed=seed)
  said = _judged(judge, trait, prompts, answers, folder) if judge else {}

  def why(question, text, side):
    return (
      _broken(answers[question.name])
      or keep(question, text, side)
      or (unfit(said, question.name, side, options) if judge else None)
    )

  made = pairs.pair(
    asked, {side: [answers[prompt.name]['text'] for prompt in asked[side]] for side in SIDES}, why
  )
  return made, {side: _account(asked[side], answers, said, side, options) for side in SIDES}


def answer(
  engine: Engine,
  prompts: Sequence[Conversation],
  folder: pathlib.Path,
  *,
  options: config.Data,
  seed: int,
) -> dict[str, dict[str, Any]]:
  """{name of the prompt: {name, text, finish}}; those not on disk yet are sampled. A prompt's luck
  is a function of (seed, its name).
  """
  with journal.Journal(folder / 'answers.jsonl', key=lambda line: line['name'], **_ANSWER) as done:
    inputs = {
      'model': tree.digest(engine.params),
      'seed': seed,
      'sampling': [options.max_new_tokens, options.temperature],
      'prompts': made_from.digest([[prompt.name, list(prompt.messages)] for prompt in prompts]),
    }
    made_from.check(
      folder / 'plan.json', inputs, fresh=not done.done, what='sampled answers', rows='answers'
    )
    missing = [prompt for prompt in prompts if prompt.name not in done.done]
    sampling = Sampling(temperature=options.temperature)
    requests = [
      GenerateRequest(
        prompt.name,
        tuple(chat.prompt_tokens(engine.tokenizer, prompt.messages)),
        options.max_new_tokens,
        sampling=sampling,
        seed=seed,
        example=prompt.name,
      )
      for prompt in missing
    ]
    resumable.keep(
      done,
      _sampled(engine, requests),
      left=lambda: sum(prompt.name not in done.done for prompt in prompts),
      total=len(prompts),
      what='answers',
      title='answers',
      unit='answer',
    )
    return {prompt.name: done.done[prompt.name] for prompt in prompts}


def _sampled(
  engine: Engine, requests: Sequence[GenerateRequest]
) -> Generator[dict[str, Any], None, None]:
  """The lines of answers.jsonl, as the answers are finished."""
  for result in engine.generate(requests):
    text = ''
    if result.tokens:
      text = engine.tokenizer.decode(result.tokens, skip_special_tokens=True)
    yield {'name': result.key, 'text': text, 'finish': result.finish}


def unfit(said: Judgements, name: str, side: str, options: config.Data) -> str | None:
  """Why an answer is dropped by what the judge said of it, or None."""
  for purpose in PURPOSES:
    if said[name, purpose]['score'] is None:
      return f"no score of {purpose} ({said[name, purpose]['status']})"
  shows = said[name, 'trait']['score'] >= options.trait_cut
  if shows != (side == 'positive'):
    return (
      f'trait of {options.trait_cut:g} or more' if shows else f'trait under {options.trait_cut:g}'
    )
  coherent = said[name, 'coherence']['score'] >= options.coherence_cut
  return None if coherent else f'coherence under {options.coherence_cut:g}'


def requests_of(
  trait: Trait, prompts: Iterable[Conversation], answers: Answers
) -> list[JudgeRequest]:
  """What a judge is asked about the answers: trait and coherence of each that is not empty. It does
  not see the system prompt.
  """
  own = (
    {'prompt': trait.prompt}
    if trait.prompt
    else {'trait': trait.name, 'description': trait.description}
  )
  found = []
  for prompt in prompts:
    text = answers[prompt.name]['text']
    fields = {'question': prompt.messages[-1]['content'], 'answer': text}
    if text.strip():
      found += [
        JudgeRequest(prompt.name, 'trait', fields | own),
        JudgeRequest(prompt.name, 'coherence', fields),
      ]
  return found


def _judged(
  judge: Judge,
  trait: Trait,
  prompts: Sequence[Conversation],
  answers: Answers,
  folder: pathlib.Path,
) -> Judgements:
  requests = requests_of(trait, prompts, answers)
  kind = dict(
    key=lambda line: (line['name'], line['judge'], line['purpose']),
    columns=lambda request: {'name': request.key},
    kind=_JUDGEMENT,
  )
  lines = processes.on_main(lambda: judging.keep([judge], requests, folder, **kind))
  return {(line['name'], line['purpose']): line for line in lines}


def _broken(line: Mapping[str, Any]) -> str | None:
  return 'the model broke' if line['finish'] == 'not_finite' else None


def _account(
  prompts: Sequence[Conversation],
  answers: Answers,
  said: Judgements,
  side: str,
  options: config.Data,
) -> dict[str, Any]:
  """{answers, empty, truncated, and of each purpose {asked, ok, refused, unparsable, failed, mean},
  and fit: answers that pass by themselves}.
  """
  lines = [answers[prompt.name] for prompt in prompts]
  counts = {
    'answers': len(lines),
    'empty': sum(not line['text'].strip() for line in lines),
    'truncated': sum(line['finish'] == 'length' for line in lines),
  }
  for purpose in PURPOSES if said else ():
    judged = [said[line['name'], purpose] for line in lines if (line['name'], purpose) in said]
    status = collections.Counter(line['status'] for line in judged)
    scores = [line['score'] for line in judged if line['score'] is not None]
    counts[purpose] = {
      'asked': len(judged),
      **{name: status[name] for name in judges.STATUSES},
      'mean': float(np.mean(scores)) if scores else None,
    }
  if said:
    counts['fit'] = sum(
      bool(line['text'].strip()) and unfit(said, line['name'], side, options) is None
      for line in lines
    )
  return counts


def words(counts: Mapping[str, Any]) -> Iterator[str]:
  """The accounting of pairs and sides, a line each."""
  dropped = '; '.join(f'{n} {reason}' for reason, n in counts['dropped'].items())
  yield f"{counts['kept']} of {counts['pairs']} pairs kept" + (
    f' (dropped: {dropped})' if dropped else ''
  )
  for side, found in counts['sides'].items():
    parts = [f"{found['answers']} answers, {found['empty']} empty, {found['truncated']} truncated"]
    for purpose in PURPOSES:
      if purpose in found:
        mean = 'none' if found[purpose]['mean'] is None else f"{found[purpose]['mean']:.1f}"
        parts.append(
          f"{purpose}: {found[purpose]['ok']} of {found[purpose]['asked']} scored, mean {mean}"
        )
    yield '; '.join(
      [
        f'{side}: {parts[0]}',
        *parts[1:],
        *([f"{found['fit']} of {found['answers']} fit"] if 'fit' in found else []),
      ]
    )
