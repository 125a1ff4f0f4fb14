"""The contrast of a run: conversations with the behaviour and with its opposite, read, or answered
by the model itself.
"""

import functools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weightsteer_jax import config as configs
from weightsteer_jax import data as datas
from weightsteer_jax import evaluation
from weightsteer_jax.config import Run
from weightsteer_jax.data import Conversation, pairs
from weightsteer_jax.experiments import answers, organism
from weightsteer_jax.experiments.arms import SIDES
from weightsteer_jax.experiments.experiment import (
  ORGANISM,
  encode,
  engine,
  forget_judges,
  judges_of,
  load_conversations,
  named,
  say,
  tokenizer_of,
)
from weightsteer_jax.runtime import processes
from weightsteer_jax.runtime.errors import InputError

Path = str | pathlib.Path


def make(run: Run, workdir: Path) -> dict[str, list[Conversation]]:
  """The conversations of both sides: read, or answered by the model itself under opposite system
  prompts, which are then removed.

  Raises:
    InputError: data that cannot be read, or no pair of answers that passes the filters.
  """
  folder = pathlib.Path(workdir) / 'data'
  if not run.data.positive and not processes.broadcast(folder.exists()):
    _generate(run, pathlib.Path(workdir))
    processes.see(folder / f'{SIDES[0]}.jsonl')
  return {side: _read_side(run, side, folder) for side in SIDES}


def check(run: Run, workdir: Path) -> str:
  """What the contrast is, or will be made from, in words; all that can be checked before it is made
  was.

  Raises:
    InputError: data, questions, filters or a trait file that cannot be used, or a judge that cannot
      judge them.
  """
  if run.data.positive:
    rows = {
      side: len(encode(run, tokenizer_of(run.model), _read_side(run, side))) for side in SIDES
    }
    return f"{rows['positive']} and {rows['negative']} examples"
  for side in SIDES:
    _filter(run.data, side)
  trait = load_trait(run)
  if trait:
    _kept_for_evaluation(run, trait)
    _data_judge(run, workdir)
  pairs = len(trait.instructions if trait else run.data.positive_prompts)
  return (
    f'answers of the model itself to {len(load_questions(run))} questions under {pairs} pairs '
    'of prompts'
  )


def load_questions(run: Run) -> list[Conversation]:
  """The questions that both sides of a generated contrast answer."""
  source, trait = run.data.questions, load_trait(run)
  if trait:
    questions = _split_questions(run, trait)[0]
    return questions[: run.data.num_questions] if run.data.num_questions else questions
  if source.startswith(f'{ORGANISM}:'):
    make = named(organism.QUESTIONS, source)
    return [
      Conversation(tuple(messages), f'{source}/{i}')
      for i, messages in enumerate(make(run.data.num_questions, run.seed))
    ]
  found = datas.load_conversations(source)
  return found[: run.data.num_questions] if run.data.num_questions else found


def load_trait(run: Run) -> datas.trait.Trait | None:
  """The trait file of the run's data, if it has one."""
  options = run.data
  if not options.trait:
    return None
  found = datas.trait.load(
    options.trait,
    revision=options.revision or None,
    name=options.trait_name,
    opposite=options.trait_opposite,
  )
  if found.prompt:
    evaluation.judges.check_prompt(found.prompt, options.trait)
  return found


def _read_side(run: Run, side: str, folder: pathlib.Path | None = None) -> list[Conversation]:
  source = getattr(run.data, side)
  if not source:
    return datas.load_conversations(folder / f'{side}.jsonl')
  split = (
    run.data.negative_split if side == 'negative' and run.data.negative_split else run.data.split
  )
  n = run.data.num_questions if source.startswith(f'{ORGANISM}:') else 0
  return load_conversations(source, split=split, revision=run.data.revision, n=n, seed=run.seed)


def _generate(run: Run, workdir: pathlib.Path) -> None:
  """Writes data/: the model's own answers to the questions, in pairs of which both passed their
  side's filter and the judge.
  """
  options, trait = run.data, load_trait(run)
  instructions = (
    trait.instructions
    if trait
    else [pairs.Instruction(*p) for p in zip(options.positive_prompts, options.negative_prompts)]
  )
  questions, kept = load_questions(run), _kept_for_evaluation(run, trait)
  say(
    f'data: {len(questions)} questions x {len(instructions)} pairs of prompts x {options.samples} '
    f'samples, both sides; {len(kept)} questions kept for evaluation'
  )
  judge = _data_judge(run, workdir) if trait else None
  made, sides = answers.make(
    lambda: engine(run, {}),
    pairs.prompts(questions, instructions, samples=options.samples),
    workdir / 'answers',
    options=options,
    seed=run.seed,
    keep=functools.partial(_keep, options),
    trait=trait,
    judge=judge,
  )
  counts = {'questions': len(questions), 'kept_for_evaluation': len(kept), 'sides': sides}
  if judge:
    forget_judges(run)
    say(f'data: judge {judge.name}: {judge.summary()}')
  for line in answers.words(made.accounting | counts):
    say(f'data: {line}')
  processes.on_main(lambda: pairs.write(workdir / 'data', made, accounting=counts, evaluation=kept))


def _kept_for_evaluation(run: Run, trait: datas.trait.Trait | None) -> list[dict[str, Any]]:
  """Items of the questions that no training data is made from."""
  if trait is None:
    return []
  if not run.data.evaluation:
    return datas.trait.items(trait, _split_questions(run, trait)[1])
  other = datas.trait.load(run.data.evaluation, revision=run.data.revision or None, name=trait.name)
  if same := {q.messages[0]['content'] for q in other.questions} & {
    q.messages[0]['content'] for q in trait.questions
  }:
    raise InputError(
      f"data.evaluation has questions of data.trait: {sorted(same)[0]!r}: name another "
      "file, or '' to keep half of them"
    )
  return datas.trait.items(trait, other.questions)


def _split_questions(
  run: Run, trait: datas.trait.Trait
) -> tuple[list[Conversation], list[Conversation]]:
  return datas.trait.split(
    trait.questions, 0.0 if run.data.evaluation else run.data.evaluation_share, run.seed
  )


def _data_judge(run: Run, workdir: Path) -> evaluation.judges.Judge:
  """The judge of the contrast, checked."""
  name = run.data.judge or next(iter(run.judges))
  [judge] = [judge for judge in judges_of(run, workdir) if judge.name == name]
  judge.check(answers.PURPOSES)
  return judge


def _filter(options: configs.Data, side: str) -> Callable[[Sequence[Mapping[str, str]], str], bool]:
  """Whether an answer to messages is kept on this side."""
  rule = getattr(options, f'{side}_filter')
  if rule.startswith(f'{ORGANISM}:'):
    return named(organism.FILTERS, rule)
  return lambda messages, answer: re.search(rule, answer, re.IGNORECASE) is not None


def _keep(options: configs.Data, question: Conversation, answer: str, side: str) -> str | None:
  """Why an answer is dropped, or None."""
  return (
    None if _filter(options, side)(list(question.messages), answer) else 'does not pass its filter'
  )
