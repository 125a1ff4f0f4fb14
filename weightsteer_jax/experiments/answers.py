"""Contrastive data of a model's own making: sampled, judged, and kept in pairs.

The model answers under opposite system prompts. A folder keeps every line as soon as the line is
finished, so that interrupted work goes on:

  answers.jsonl      {name, text, finish} of each answer, made from the inputs in plan.json
  judgements.jsonl   judgements of the answers, made from the inputs in judges.json

The text of a line is all that was generated. Its thought is set apart when the lines are read:
filters and judges see the answer alone, and a cut thought is no answer to learn.

Source: Persona Vectors (arXiv 2507.21509): both answers of a pair coherent, the trait at 50 or more
on one side and below 50 on the other.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from weightsteer_jax import config
from weightsteer_jax.data import bindings, chat, pairs, thoughts
from weightsteer_jax.data.pairs import SIDES, Contrast, Filter
from weightsteer_jax.data.sources import Conversation
from weightsteer_jax.data.trait import Trait
from weightsteer_jax.evaluation import judges, judging
from weightsteer_jax.evaluation.judges import Judge, JudgeRequest
from weightsteer_jax.inference import stops
from weightsteer_jax.inference.engine import Engine
from weightsteer_jax.inference.requests import GenerateRequest, Sampling, Tokens
from weightsteer_jax.runtime import processes, tree
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.storage import journal, made_from, resumable

# What a judge is asked for, of every answer.
PURPOSES = ('trait', 'coherence')
# Words for errors about the two journals.
_ANSWER = judging.LineWords(
  needs=('name', 'text', 'finish'), what='an answer', again='the data stage'
)
_JUDGEMENT = judging.LineWords(
  needs=('name', 'judge', 'purpose', 'score', 'status', 'text'),
  what='a judgement',
  again='the data stage',
  fault=judging.fault_of,
)
# Why an answer is dropped whatever it says.
CUT = 'its thought was cut'
UNCLOSED = 'it ended within its thought'
LEAKED = 'its thought is out of place'
# Share of answers with cut thoughts from which on there is nothing to learn from: our own choice.
NEARLY_ALL = 0.95
# Answers after which sampling is given up if all of their thoughts were cut.
FIRST = 64


@dataclasses.dataclass(frozen=True)
class Sampled:
  """A sampled answer.

  Attributes:
    text: the answer without its thought.
    thought: None where the model's template knows no thoughts.
    finish: how generation ended.
    flaw: CUT, UNCLOSED, LEAKED or ''.
  """

  text: str
  thought: str | None
  finish: str
  flaw: str


# {name of a prompt: its answer}
Answers = Mapping[str, Sampled]
# {(name of a prompt, purpose): judgement}
Judgements = Mapping[tuple[str, str], Mapping[str, Any]]


def make(
  engine: Callable[[], Engine],
  prompts: dict[str, list[Conversation]],
  folder: pathlib.Path,
  *,
  options: config.Data,
  seed: int,
  filter_reason: Filter,
  trait: Trait | None = None,
  judge: Judge | None = None,
) -> tuple[Contrast, dict[str, Any]]:
  """(pairs of answers that passed, {side: accounting of all answers}).

  Args:
    engine: makes the engine of the model.
    prompts: {side: prompts} as from `pairs.prompts`.
    folder: folder of the answers and judgements.
    options: how answers are sampled, and the cuts of the judge's scores.
    seed: seed of the sampling.
    filter_reason: (question, answer, side) -> the reason to drop the answer before a judge's scores
      count, or None.
    trait: the trait to judge; None with no judge.
    judge: the judge of the answers; None with no trait.

  Raises:
    InputError: if the folder holds answers or judgements made from other inputs, (nearly) all
      thoughts were cut, or no pair passes.
    Preempted: if a signal came; finished lines are kept.
  """
  all_prompts = [prompt for side in SIDES for prompt in prompts[side]]
  answers = answer(engine(), all_prompts, folder, options=options, seed=seed)
  judgements: Judgements = {}
  # The engine is gone by now: a local judge needs the memory for a model of its own.
  if judge and trait:
    judgements = _judged(judge, trait, all_prompts, answers, folder)

  def drop_reason(question: Conversation, text: str, side: str) -> str | None:
    # The cheapest reason first, and the judge's last.
    if answers[question.name].finish == 'not_finite':
      return 'the model broke'
    reason = filter_reason(question, text, side)
    if reason is None and judge:
      reason = unfit(judgements, question.name, side, options)
    return reason

  paired: dict[str, Sequence[pairs.Answer]] = {}
  for side in SIDES:
    sampled = [answers[prompt.name] for prompt in prompts[side]]
    paired[side] = [_to_learn(answer, options) for answer in sampled]
  contrast = pairs.pair(prompts, paired, drop_reason)
  accounting = {side: _account(prompts[side], answers, judgements, side, options) for side in SIDES}
  return contrast, accounting


def _to_learn(answer: Sampled, options: config.Data) -> pairs.Answer:
  thought = answer.thought if options.thoughts == 'keep' else ''
  return pairs.Answer(answer.text, thought or '', answer.flaw)


def answer(
  engine: Engine,
  prompts: Sequence[Conversation],
  folder: pathlib.Path,
  *,
  options: config.Data,
  seed: int,
) -> dict[str, Sampled]:
  """{name of the prompt: its answer}, sampled where the folder has no answer yet.

  An answer is a function of the seed and the prompt's name, not of the order or number of prompts.

  Raises:
    InputError: if the folder holds answers made from other inputs, or (nearly) all thoughts were
      cut.
    Preempted: if a signal came; finished lines are kept.
  """
  with journal.Journal(folder / 'answers.jsonl', key=lambda line: line['name'], **_ANSWER) as kept:
    if kept.done:
      # Answers without stop tokens on record ended at the turn and the text alone.
      begun = stops.as_begun(
        folder / 'plan.json',
        engine.stop_ids,
        unrecorded=stops.turn_and_text_ids(engine.tokenizer),
        what='the sampling of answers',
      )
      engine = engine.stopping_at(begun)
    # Earlier answers are kept only if all that an answer depends on is the same.
    inputs = {
      'model': tree.digest(engine.params),
      'seed': seed,
      stops.INPUT: list(engine.stop_ids),
      'sampling': [options.max_new_tokens, options.temperature],
      'chat template': bindings.bound(engine.tokenizer).to_json(),
      'prompts': made_from.digest([[prompt.name, list(prompt.messages)] for prompt in prompts]),
    }
    made_from.check_and_record(
      folder / 'plan.json', inputs, fresh=not kept.done, what='sampled answers', rows='answers'
    )
    tokens_of = {}
    for prompt in prompts:
      tokens_of[prompt.name] = tuple(chat.prompt_tokens(engine.tokenizer, prompt.messages))
    missing = {name: tokens for name, tokens in tokens_of.items() if name not in kept.done}
    resumable.keep(
      kept,
      _sampled(engine, _requests(missing, options, seed), options),
      left=lambda: sum(prompt.name not in kept.done for prompt in prompts),
      total=len(prompts),
      what='answers',
      title='answers',
      unit='answer',
    )
    lines = dict(kept.done)
  answers = {
    name: _read(engine.tokenizer, tokens, lines[name]) for name, tokens in tokens_of.items()
  }
  cut = sum(sampled.flaw == CUT for sampled in answers.values())
  if cut and cut >= NEARLY_ALL * len(answers):
    raise InputError(_all_cut(cut, len(answers), options))
  return answers


def _requests(
  tokens_of: Mapping[str, Tokens], options: config.Data, seed: int
) -> list[GenerateRequest]:
  """A request for each prompt, by the prompt's name."""
  sampling = Sampling(temperature=options.temperature)
  return [
    GenerateRequest(
      name,
      tokens,
      options.max_new_tokens,
      sampling=sampling,
      seed=seed,
      example=name,
    )
    for name, tokens in tokens_of.items()
  ]


def _sampled(
  engine: Engine, requests: Sequence[GenerateRequest], options: config.Data
) -> Generator[dict[str, Any], None, None]:
  """Lines of answers.jsonl, as the answers are finished."""
  prompts = {request.key: request.prompt for request in requests}
  all_cut = True
  for count, result in enumerate(engine.generate(requests), 1):
    text = thoughts.text_of(engine.tokenizer, result.tokens)
    line = {'name': result.key, 'text': text, 'finish': result.finish}
    yield line
    all_cut = all_cut and _read(engine.tokenizer, prompts[result.key], line).flaw == CUT
    # Short answers come first: the others will hardly be whole.
    if all_cut and count == FIRST:
      raise InputError(_all_cut(count, count, options))


def _read(tokenizer: Any, prompt: Sequence[int], line: Mapping[str, Any]) -> Sampled:
  """The answer in a line of answers.jsonl."""
  said = thoughts.of_text(tokenizer, prompt, line['text'])
  flaw = ''
  if thoughts.is_cut(said, line['finish']):
    # More room helps only where the limit came first.
    flaw = CUT if line['finish'] == 'length' else UNCLOSED
  elif said.leaked:
    flaw = LEAKED
  return Sampled(said.answer, said.thought, line['finish'], flaw)


def _all_cut(cut: int, count: int, options: config.Data) -> str:
  return (
    f'{cut} of {count} sampled answers end within their thoughts, at '
    f'data.max_new_tokens={options.max_new_tokens}, so that there is nothing to learn from: raise '
    'it, in another workdir, or tell the chat template to turn thinking off'
  )


def unfit(judgements: Judgements, name: str, side: str, options: config.Data) -> str | None:
  """The reason to drop an answer by its judgements, or None.

  Source: Persona Vectors (arXiv 2507.21509), filter of the training data.
  """
  for purpose in PURPOSES:
    judgement = judgements[name, purpose]
    if judgement['score'] is None:
      return f"no score of {purpose} ({judgement['status']})"
  # One cut for both sides: at the cut an answer shows the trait.
  shows_trait = judgements[name, 'trait']['score'] >= options.trait_cut
  if shows_trait and side == 'negative':
    return f'trait of {options.trait_cut:g} or more'
  if not shows_trait and side == 'positive':
    return f'trait under {options.trait_cut:g}'
  if judgements[name, 'coherence']['score'] < options.coherence_cut:
    return f'coherence under {options.coherence_cut:g}'
  return None


def requests_of(
  trait: Trait, prompts: Iterable[Conversation], answers: Answers
) -> list[JudgeRequest]:
  """Questions to a judge about trait and coherence of every answer with a text.

  System prompts are left out: a judge should see the question as a user asked it.
  """
  # A trait file's own judge prompt takes the place of a name and a description.
  if trait.prompt:
    about_trait = {'prompt': trait.prompt}
  else:
    about_trait = {'trait': trait.name, 'description': trait.description}
  requests = []
  for prompt in prompts:
    text = answers[prompt.name].text
    # An empty answer is dropped without a judge, and so is a flawed one.
    if text.strip() and not answers[prompt.name].flaw:
      fields = {'question': prompt.messages[-1]['content'], 'answer': text}
      requests.append(JudgeRequest(prompt.name, 'trait', fields | about_trait))
      requests.append(JudgeRequest(prompt.name, 'coherence', fields))
  return requests


def _judged(
  judge: Judge,
  trait: Trait,
  prompts: Sequence[Conversation],
  answers: Answers,
  folder: pathlib.Path,
) -> Judgements:
  requests = requests_of(trait, prompts, answers)

  # One process asks for all.
  def ask() -> list[dict[str, Any]]:
    return judging.keep(
      [judge],
      requests,
      folder,
      key=lambda line: (line['name'], line['judge'], line['purpose']),
      columns=lambda request: {'name': request.key},
      kind=_JUDGEMENT,
    )

  lines = processes.on_main(ask)
  return {(line['name'], line['purpose']): line for line in lines}


def _account(
  prompts: Sequence[Conversation],
  answers: Answers,
  judgements: Judgements,
  side: str,
  options: config.Data,
) -> dict[str, Any]:
  """Counts of a side: 'answers', 'empty', 'truncated', and with a judge 'fit' and each purpose.

  A purpose has 'asked', 'ok', 'refused', 'unparsable', 'failed' and 'mean'. Answers are fit if they
  pass whatever the other answer of the pair does. Of a model that knows thoughts also 'thoughts'
  (answers with one), 'thought_cut', 'thought_unclosed' and 'thought_leaked'.
  """
  sampled = {prompt.name: answers[prompt.name] for prompt in prompts}
  # Answers that a judge was asked about.
  texts = {name: '' if one.flaw else one.text.strip() for name, one in sampled.items()}
  counts: dict[str, Any] = {
    'answers': len(sampled),
    'empty': sum(not one.flaw and not one.text.strip() for one in sampled.values()),
    'truncated': sum(one.finish == 'length' for one in sampled.values()),
  }
  if any(one.thought is not None for one in sampled.values()):
    counts['thoughts'] = sum(bool(one.thought) for one in sampled.values())
    counts['thought_cut'] = sum(one.flaw == CUT for one in sampled.values())
    counts['thought_unclosed'] = sum(one.flaw == UNCLOSED for one in sampled.values())
    counts['thought_leaked'] = sum(one.flaw == LEAKED for one in sampled.values())
  if not judgements:
    return counts
  for purpose in PURPOSES:
    judged = [judgements[name, purpose] for name in texts if (name, purpose) in judgements]
    statuses = collections.Counter(judgement['status'] for judgement in judged)
    scores = [judgement['score'] for judgement in judged if judgement['score'] is not None]
    counts[purpose] = {
      'asked': len(judged),
      **{status: statuses[status] for status in judges.STATUSES},
      # JSON has no NaN: the mean of no scores is null.
      'mean': float(np.mean(scores)) if scores else None,
    }
  # Of a pair both answers must be fit, so that fewer pairs than these are kept.
  counts['fit'] = sum(
    bool(text) and unfit(judgements, name, side, options) is None for name, text in texts.items()
  )
  return counts


def words(accounting: Mapping[str, Any]) -> Iterator[str]:
  """Lines about the pairs, and about the answers of each side.

  Args:
    accounting: `Contrast.accounting`, and under 'sides' the accounting of `make`.
  """
  kept = f"{accounting['kept']} of {accounting['pairs']} pairs kept"
  dropped = '; '.join(f'{n} {reason}' for reason, n in accounting['dropped'].items())
  yield f'{kept} (dropped: {dropped})' if dropped else kept
  for side, counts in accounting['sides'].items():
    parts = [
      f"{side}: {counts['answers']} answers, {counts['empty']} empty, "
      f"{counts['truncated']} truncated"
    ]
    if counts.get('thoughts'):
      parts.append(
        f"{counts['thoughts']} with a thought, {counts['thought_cut']} of them cut, "
        f"{counts['thought_unclosed']} never closed, {counts['thought_leaked']} out of place"
      )
    for purpose in PURPOSES:
      # Without a judge nothing was asked.
      if purpose in counts:
        judged = counts[purpose]
        mean = 'none' if judged['mean'] is None else f"{judged['mean']:.1f}"
        parts.append(f"{purpose}: {judged['ok']} of {judged['asked']} scored, mean {mean}")
    if 'fit' in counts:
      parts.append(f"{counts['fit']} of {counts['answers']} fit")
    yield '; '.join(parts)
