"""The contrast of a run: conversations with the behaviour, and with the opposite.

Both sides are read from sources named in the config, or are answers of the model itself to the same
questions under opposite system prompts. `data/` in the workdir holds generated sides.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from weightsteer_jax import config as configs
from weightsteer_jax import data as datas
from weightsteer_jax import evaluation, inference, models
from weightsteer_jax.config import Run
from weightsteer_jax.data import Conversation, Example, pairs
from weightsteer_jax.data.pairs import SIDES
from weightsteer_jax.evaluation.judges import Judge
from weightsteer_jax.experiments import answers, sources
from weightsteer_jax.experiments.experiment import Experiment
from weightsteer_jax.runtime import processes
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.progress import say

# An answer for the check: any words would do that a chat template writes as they are.
_MADE_UP = 'Answer'


def make(experiment: Experiment) -> dict[str, list[Conversation]]:
  """{side: conversations}, read, or answered by the model itself and kept.

  System prompts are removed from the model's answers.

  Raises:
    InputError: if data cannot be read, or if no pair of answers passes the filters.
  """
  folder = experiment.workdir / 'data'
  # The folder appears whole or not at all: where it exists, the data are finished. Process 0 looks
  # for all, as the others may see the folder later.
  if not experiment.run.data.positive and not processes.broadcast(folder.exists()):
    _generate(experiment)
    processes.see(folder / f'{SIDES[0]}.jsonl')
  return {side: _read_side(experiment, side) for side in SIDES}


def examples(experiment: Experiment) -> dict[str, list[Example]]:
  """{side: examples} to fine-tune on: `make`, encoded."""
  return {
    side: experiment.encode(conversations) for side, conversations in make(experiment).items()
  }


def check(experiment: Experiment) -> list[str]:
  """Lines about the contrast, or about the sources of a contrast to be generated.

  Raises:
    InputError: if data, questions, filters or a trait file cannot be used, or if the judge cannot
      judge answers.
  """
  options = experiment.run.data
  if options.positive:
    sides = {side: _read_side(experiment, side) for side in SIDES}
    notes = datas.likeness.notes(sides['positive'], sides['negative'])
    counts = [len(experiment.encode(conversations)) for conversations in sides.values()]
    asked = [*sides['positive'], *sides['negative']]
    return [f'{counts[0]} and {counts[1]} examples', *notes, *_shared(experiment, asked)]
  # A shipped filter that does not exist is told of now.
  for side in SIDES:
    _filter(options, side)
  trait = load_trait(experiment.run)
  if trait:
    evaluation_items(experiment.run, trait)
    with experiment.judges() as judges:
      _data_judge(options, judges)
  questions = load_questions(experiment.run)
  instructions = _instructions(options, trait)
  _rehearse(experiment, questions, instructions)
  about = (
    f'answers of the model itself to {len(questions)} questions under {len(instructions)} pairs of '
    'prompts'
  )
  return [about, *_shared(experiment, questions)]


def _shared(experiment: Experiment, asked: Sequence[Conversation]) -> list[str]:
  """A line for each task that asks what is trained on."""
  lines = []
  for task in experiment.tasks:
    shared = datas.likeness.shared(asked, task.items)
    if shared:
      lines.append(
        f"{len(shared)} of the {len(task.items)} items of task '{task.name}' ask a question that "
        f"is trained on, '{shared[0]['id']}' for one: it measures what was learnt, not what "
        'carries over'
      )
  return lines


def _instructions(
  options: configs.Data, trait: datas.trait.Trait | None
) -> Sequence[pairs.Instruction]:
  if trait:
    return trait.instructions
  both = zip(options.positive_prompts, options.negative_prompts)
  return [pairs.Instruction(positive, negative) for positive, negative in both]


def _rehearse(
  experiment: Experiment,
  questions: Sequence[Conversation],
  instructions: Sequence[pairs.Instruction],
) -> None:
  """Takes one made-up answer to each prompt the way to training, before hours are sampled.

  Raises:
    InputError: if a prompt cannot be rendered or does not fit the model, or an answer cannot be
      learnt without its system prompt.
  """
  options = experiment.run.data
  tokenizer = experiment.tokenizer
  config, _ = models.load_config(experiment.checkpoint)
  # In characters: the longest question is the likeliest not to fit.
  longest = max(questions, key=lambda question: sum(len(m['content']) for m in question.messages))
  prompts = pairs.prompts([longest], instructions)
  requests = []
  for prompt in (prompt for side in SIDES for prompt in prompts[side]):
    tokens = tuple(datas.chat.prompt_tokens(tokenizer, prompt.messages, name=prompt.name))
    requests.append(inference.GenerateRequest(prompt.name, tokens, options.max_new_tokens))
  inference.check_fit(requests, config)
  # A thought, where the model has thoughts and the data keep them.
  thinks = options.thoughts == 'keep' and datas.thoughts.tags_of(tokenizer) is not None
  answer = pairs.Answer(_MADE_UP, thought=_MADE_UP if thinks else '')
  answers = {side: [answer] * len(prompts[side]) for side in SIDES}
  contrast = pairs.pair(prompts, answers, lambda *_: None)
  for side in SIDES:
    experiment.encode(getattr(contrast, side))


def load_questions(run: Run) -> list[Conversation]:
  """The questions of a generated contrast, common to both sides."""
  source = run.data.questions
  count = run.data.num_questions
  trait = load_trait(run)
  if trait:
    questions, _ = _split_questions(run, trait)
  elif sources.is_shipped(source):
    make_questions = sources.shipped(sources.QUESTIONS, source)
    questions = [
      Conversation(tuple(messages), f'{source}/{i}')
      for i, messages in enumerate(make_questions(count, run.seed))
    ]
  else:
    questions = datas.load_conversations(source)
  # 0 asks all of them.
  return questions[: count or None]


def load_trait(run: Run) -> datas.trait.Trait | None:
  """The trait file of the run's data, or None where the data name none."""
  options = run.data
  if not options.trait:
    return None
  trait = datas.trait.load(
    options.trait,
    revision=options.revision or None,
    name=options.trait_name,
    opposite=options.trait_opposite,
  )
  # A judge prompt of the file's own must have the places for question and answer.
  if trait.prompt:
    evaluation.judges.check_prompt(trait.prompt, options.trait)
  return trait


def _read_side(experiment: Experiment, side: str) -> list[Conversation]:
  options = experiment.run.data
  source = getattr(options, side)
  # A side without a source was generated.
  if not source:
    return datas.load_conversations(experiment.workdir / 'data' / f'{side}.jsonl')
  split = options.split
  if side == 'negative' and options.negative_split:
    split = options.negative_split
  # Files and datasets are taken whole; the organism must be told how many conversations to make.
  n = options.num_questions if sources.is_shipped(source) else 0
  with sources.of_key(f'data.{side}'):
    return sources.load_conversations(
      source, split=split, revision=options.revision, n=n, seed=experiment.run.seed
    )


def _generate(experiment: Experiment) -> None:
  """Writes data/: pairs of the model's answers, after filters and judge."""
  run = experiment.run
  options = run.data
  trait = load_trait(run)
  instructions = _instructions(options, trait)
  questions = load_questions(run)
  kept_apart = evaluation_items(run, trait)
  filters = {side: _filter(options, side) for side in SIDES}

  def filter_reason(question: Conversation, answer: str, side: str) -> str | None:
    passes = filters[side](list(question.messages), answer)
    return None if passes else 'does not pass its filter'

  say(
    f'data: {len(questions)} questions x {len(instructions)} pairs of prompts x {options.samples} '
    f'samples, both sides; {len(kept_apart)} questions kept for evaluation'
  )
  # The judge is checked before anything is sampled, and its model is given up right after judging.
  with experiment.judges() as judges:
    judge = _data_judge(options, judges) if trait else None
    contrast, sides = answers.make(
      # Made only now, and dropped before the judge's own model is loaded.
      lambda: experiment.engine({}),
      pairs.prompts(questions, instructions, samples=options.samples),
      experiment.workdir / 'answers',
      options=options,
      seed=run.seed,
      filter_reason=filter_reason,
      trait=trait,
      judge=judge,
    )
  if judge:
    say(f'data: judge {judge.name}: {judge.summary()}')
  counts = {'questions': len(questions), 'kept_for_evaluation': len(kept_apart), 'sides': sides}
  for line in answers.words(contrast.accounting | counts):
    say(f'data: {line}')
  cut = sum(counts_of.get('thought_cut', 0) for counts_of in sides.values())
  if cut:
    say(
      f'data: {cut} thoughts were cut at data.max_new_tokens={options.max_new_tokens}; their pairs '
      'are dropped: raise it to keep them'
    )
  if contrast.positive:
    for line in datas.likeness.notes(contrast.positive, contrast.negative):
      say(f'data: {line}')
  folder = experiment.workdir / 'data'
  processes.on_main(lambda: pairs.write(folder, contrast, accounting=counts, evaluation=kept_apart))


def evaluation_items(run: Run, trait: datas.trait.Trait | None) -> list[dict[str, Any]]:
  """The items of a trait's questions kept for evaluation; [] without a trait file.

  Raises:
    InputError: if `data.evaluation` cannot be read, or shares a question with the trait file.
  """
  if trait is None:
    return []
  if not run.data.evaluation:
    return datas.trait.items(trait, _split_questions(run, trait)[1])
  other = datas.trait.load(run.data.evaluation, revision=run.data.revision or None, name=trait.name)
  # Compared by their words, since two files may give the same question two names.
  trait_texts = {question.messages[0]['content'] for question in trait.questions}
  other_texts = {question.messages[0]['content'] for question in other.questions}
  shared = trait_texts & other_texts
  if shared:
    raise InputError(
      f"data.evaluation has questions of data.trait: {sorted(shared)[0]!r}: name another "
      "file, or '' to keep half of them"
    )
  return datas.trait.items(trait, other.questions)


def _split_questions(
  run: Run, trait: datas.trait.Trait
) -> tuple[list[Conversation], list[Conversation]]:
  """(questions for training data, questions kept for evaluation) of a trait file."""
  # Where a second file is kept for evaluation, all of the first one's questions are for training.
  share = 0.0 if run.data.evaluation else run.data.evaluation_share
  return datas.trait.split(trait.questions, share, run.seed)


def _data_judge(options: configs.Data, judges: Sequence[Judge]) -> Judge:
  """The judge of the contrast, checked."""
  # Without a name the first judge of the run, whose scores count everywhere else too.
  name = options.judge or judges[0].name
  [judge] = [judge for judge in judges if judge.name == name]
  judge.check(answers.PURPOSES)
  return judge


def _filter(options: configs.Data, side: str) -> Callable[[Sequence[Mapping[str, str]], str], bool]:
  """The function (messages, answer) -> whether the answer is kept on this side."""
  rule = getattr(options, f'{side}_filter')
  if sources.is_shipped(rule):
    return sources.shipped(sources.FILTERS, rule)
  # The empty expression is found in every answer, and keeps all.
  return lambda messages, answer: re.search(rule, answer, re.IGNORECASE) is not None
