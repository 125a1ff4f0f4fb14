"""The method as straight-line programs over a workdir.

  config.json                what is run, and with which versions
  data/                      the contrast: positive.jsonl and negative.jsonl, where the model itself answers the questions
  finetune/<side>/           two fine-tunes of one base, alike but for their data
  directions/<name>/         their difference, the direction
  sweep/rows.jsonl           one row per (arm, alpha, task, example, sample)
  results.jsonl              means and standard errors of the rows
  report/                    the page, the figures, the table

Each stage reads what the ones before it wrote, continues where it stopped, and does nothing where it has finished.
"""
import dataclasses
import functools
import json
import pathlib
import re
import time
from typing import Any, Callable, Mapping, Sequence

import jax

from weightsteer_jax import config as configs
from weightsteer_jax import data as datas
from weightsteer_jax import directions, distributed, evaluation, files, finetune as finetuning, layouts, lifeline, models, organism, sharding, tree
from weightsteer_jax.config import ModelChoice, Run
from weightsteer_jax.data import Conversation, Example
from weightsteer_jax.errors import InputError
from weightsteer_jax.sharding import Layout
from weightsteer_jax.versions import versions

Path = str | pathlib.Path

SIDES = ('positive', 'negative')
ORGANISM = 'organism'
ARM = 'weights'  # the direction, applied at alpha
# What computes, by version in config.json.
PACKAGES = ('weightsteer_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'transformers', 'numpy')
# A workdir may be swept again with other tasks or strengths; what its fine-tunes are made from may not change under them.
FIXED = ('seed', 'model', 'data', 'finetune')


def steer(run: Run, workdir: Path, *, command: str = '') -> pathlib.Path:
  """The report's page of a whole run: data, two fine-tunes, their direction, a sweep over alpha."""
  started = time.monotonic()
  begin(run, workdir, command=command)
  contrast(run, workdir)
  finetune(run, workdir)
  direction(run, workdir)
  sweep(run, workdir)
  page = report(run, workdir)
  say(f'done in {time.monotonic() - started:.0f} s')
  return page


def check(run: Run, workdir: Path) -> None:
  """Checks all that can be checked before anything is computed, and says what `steer` would do.

  Raises:
    InputError: what is wrong with the config, the workdir, the model, the data or the tasks.
  """
  _refuse_other_run(run, pathlib.Path(workdir))
  folder = _folder(run.model)
  config, family = models.load_config(folder)
  tokenizer = _tokenizer(folder)
  tasks = load_tasks(run)
  if run.data.positive:
    rows = {side: len(_encode(run, tokenizer, _read_side(run, side))) for side in SIDES}
    about = f"{rows['positive']} and {rows['negative']} examples"
  else:
    for side in SIDES:
      _filter(run.data, side)
    about = f'answers of the model itself to {len(load_questions(run))} questions under {len(run.data.positive_prompts)} pairs of prompts'
  say(f'model: {run.model.source} ({family.model_type}, {tree.count(models.abstract_params(config)) / 1e6:.1f}M parameters, {run.model.dtype})')
  say(f'data: {about}')
  say(f'fine-tunes: {run.finetune.kind}, {len(run.finetune.learning_rates)} learning rate(s), both sides')
  for line in layouts_of(run).words:
    say(line)
  say(f'sweep: {len(run.sweep.alphas)} alphas, ' + ', '.join(f'{task.name} ({len(task.items)} items)' for task in tasks))
  say(f'would write to {workdir}')


def begin(run: Run, workdir: Path, *, command: str = '') -> None:
  """Makes the workdir this run's: checks everything, then writes config.json.

  Raises:
    InputError: as `check`.
  """
  check(run, workdir)
  load_model(run.model, layouts_of(run).train)  # Weights that cannot be read should leave no workdir behind.
  record = configs.to_dict(run) | {'command': command, 'versions': versions(*PACKAGES)}
  distributed.on_main(lambda: files.write_json(pathlib.Path(workdir) / 'config.json', record))


def contrast(run: Run, workdir: Path) -> dict[str, list[Conversation]]:
  """The conversations of both sides: read, or answered by the model itself under opposite system prompts, which are then removed.

  Raises:
    InputError: data that cannot be read, or no pair of answers that passes the filters.
  """
  folder = pathlib.Path(workdir) / 'data'
  if not run.data.positive and not distributed.broadcast(folder.exists()):
    _generate_contrast(run, folder)
    distributed.see(folder / f'{SIDES[0]}.jsonl')
  return {side: _read_side(run, side, folder) for side in SIDES}


def finetune(run: Run, workdir: Path, *, sides: Sequence[str] = SIDES) -> dict[str, finetuning.FineTuneResult]:
  """The fine-tunes of the given sides. Both start from the same factors and see their data in the same order."""
  tokenizer = tokenizer_of(run.model)
  examples = {side: _encode(run, tokenizer, conversations) for side, conversations in contrast(run, workdir).items()}
  # One row length for both sides, so that they share their compiled programs.
  row_length = datas.batches.row_length_for(max(len(example) for side in examples.values() for example in side))
  results = {}
  for side in sides:
    train, validation = datas.split(examples[side], run.data.validation_fraction, run.seed)
    say(f'fine-tune {side}: {len(train)} examples to train on, {len(validation)} to validate')
    layout = layouts_of(run).train
    result = finetuning.run(load_model(run.model, layout), train, validation, run.finetune, workdir=pathlib.Path(workdir) / 'finetune' / side,
                            seed=run.seed, row_length=row_length, layout=layout)
    say(f'fine-tune {side}: validation loss {result.validation_loss:.4f} nats per token at step {result.step}, '
        f'learning rate {result.learning_rate:g}')
    results[side] = result
  return results


def direction(run: Run, workdir: Path) -> directions.Direction:
  """The direction of the run: positive minus negative, made once and kept."""
  folder = direction_folder(run, workdir)
  if not distributed.broadcast(folder.exists()):
    sides = (pathlib.Path(workdir) / 'finetune' / side for side in SIDES)
    base = load_model(run.model, layouts_of(run).train)
    distributed.on_main(lambda: directions.save(folder, directions.contrast(*sides, base=base)))
    distributed.see(folder)
  found = directions.load(folder)
  say(f'direction: {folder}, norm {found.meta["norm"]:.4g}')
  return found


def sweep(run: Run, workdir: Path, *, direction: Path = '') -> None:
  """Evaluates every alpha and task of the run that has no rows yet, and writes results.jsonl.

  Args:
    direction: folder of the direction; '' is the run's own.
  """
  if not run.tasks:
    raise InputError("the config has no tasks to sweep: add some, as in config.tasks.<name> = task(items=..., role=...)")
  found = directions.load(direction or direction_folder(run, workdir))
  tasks = load_tasks(run)
  engine = _engine(run, {ARM: [(found.delta, None)]})
  directions.check_base(found, load_model(run.model, engine.layout))
  rows = evaluation.sweep.run(engine, tasks, alphas={ARM: run.sweep.alphas}, workdir=workdir, seed=run.sweep.seed)
  distributed.on_main(lambda: evaluation.metrics.write(workdir, rows))


def report(run: Run, workdir: Path) -> pathlib.Path:
  """The report's page, from the files of the workdir; prints the table and the pick."""
  from weightsteer_jax.report import page, pick, study, tables  # matplotlib takes a second to import.
  rule = dict(behaviour=run.sweep.pick_by or None, tolerance=run.sweep.tolerance)
  path = pathlib.Path(distributed.on_main(lambda: str(page.write(workdir, **rule))))
  for one in pick.choose_all(study.read(workdir), **rule):
    print(tables.text(one))
  say(f'report: {path}')
  return path


# What the other launchers do.


def direction_from(positive: Path, negative: Path, output: Path, *, base: Path = '', **options: Any) -> directions.Direction:
  """The direction between two fine-tunes of any supported kind, written to a new folder (options as in directions.contrast)."""
  files.refuse_existing(output, what='a direction')
  made = directions.contrast(positive, negative, base=folder_of(base) if base else None, **options)
  directions.save(output, made)
  saved = directions.load(output)
  say(f'direction: {output}, norm {saved.meta["norm"]:.4g} over {len(saved.meta["norms"])} sites')
  if 'bfloat16_route' in saved.meta:
    say(f'through merged bfloat16 checkpoints: {json.dumps(saved.meta["bfloat16_route"])}')
  return saved


def export(direction: Path, base: Path, alpha: float, format: str, output: Path, *, allow_other_base: bool = False,
           **options: Any) -> dict[str, Any]:
  """The provenance of an exported direction, parity included (options as in directions.Request)."""
  found = directions.load(direction)
  directions.check_export(found, directions.Request(format, alpha, **options), output)
  results = [] if allow_other_base else _results_of(found, pathlib.Path(direction))
  record = directions.export(found, load_model(ModelChoice(str(base))), alpha, format, output, results=results,
                             allow_other_base=allow_other_base, **options)
  for note in record.get('notes', []):
    say(note)
  say(f'export: {output}, {len(record["files"])} files, {json.dumps(record["parity"])}; its README.md says how to load it')
  return record


def verify(folder: Path) -> None:
  """Says what an export, a direction, an adapter or a checkpoint of ours was checked for.

  Raises:
    CorruptError: what is missing or was changed.
  """
  found = directions.verify(folder)
  say(f'{folder}: {found.kind}, whole ({found.checked})')
  if found.unlisted:
    say(f'not part of it, and not checked: {", ".join(found.unlisted)}')


def score(model: str, input: Path, output: Path, *, direction: Path = '', alphas: Sequence[float] = (0.0,), dtype: str = 'float32',
          batch_size: int = 32, add_bos: bool = False) -> None:
  """Writes the log-likelihood of each row's completion at each alpha (see evaluation.score_file)."""
  choice = ModelChoice(model, dtype=dtype)
  evaluation.score_file(*_loaded(choice, direction, alphas), alphas, input, output, add_bos=add_bos, batch_size=batch_size)
  say(f'wrote {output}')


def generate(model: str, input: Path, output: Path, *, direction: Path = '', alphas: Sequence[float] = (0.0,), dtype: str = 'float32',
             temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, **options: Any) -> None:
  """Writes completions of each row at each alpha (see evaluation.generate_file)."""
  choice = ModelChoice(model, dtype=dtype)
  sampling = evaluation.Sampling(temperature, top_k, top_p)
  evaluation.generate_file(*_loaded(choice, direction, alphas), alphas, input, output, sampling=sampling, **options)
  say(f'wrote {output}')


def harness(model: str, tasks: Sequence[str], output: Path, *, direction: Path = '', alphas: Sequence[float] = (0.0,), include_path: Path = '',
            dtype: str = 'float32', batch_size: int = 32, max_length: int | None = None, **options: Any) -> None:
  """Writes what lm-evaluation-harness finds at each alpha (see evaluation/harness/grid.py; options as in lm_eval.simple_evaluate)."""
  try:
    from weightsteer_jax.evaluation import harness as adapter  # The extra takes seconds to import, where it is.
  except ModuleNotFoundError as error:
    raise InputError(f"lm-evaluation-harness cannot be imported ({error}): pip install 'weightsteer_jax[lm-eval]'") from error
  names, manager = adapter.find_tasks(tasks, include_path)
  loaded, tokenizer, delta = _loaded(ModelChoice(model, dtype=dtype), direction, alphas)
  arms = {} if delta is None else {ARM: [(delta, None)]}
  inputs = {'model': tree.digest(loaded.params), 'direction': None if delta is None else evaluation.sweep.delta_digest(delta),
            'max_length': max_length, 'version of lm-eval': versions('lm_eval')['lm_eval']}

  def grid(missing):
    engine = evaluation.Engine(loaded, tokenizer, arms, batch_size=batch_size, stop_ids=adapter.end_ids(loaded.folder, tokenizer))
    return adapter.SteeredLM(engine, missing, arm=next(iter(arms), evaluation.BASE), max_length=max_length)

  adapter.run(grid, alphas, names, manager, output, inputs=inputs, **options)
  say(f'wrote {output}')


# Parts.


_LOADED: dict[ModelChoice, models.Model] = {}  # at most one, in the layout it was last asked for in


def load_model(choice: ModelChoice, layout: Layout | None = None) -> models.Model:
  """The chosen model, laid out so (by default on one device); the last one stays in memory, and is moved to another
  layout rather than read again.

  Raises:
    InputError, CorruptError, NotFiniteError: as `models.load`; CorruptError too for an export of ours that was damaged.
  """
  layout = layout or sharding.single()
  if choice not in _LOADED:
    _LOADED.clear()
    distributed.on_main(lambda: directions.check_checkpoint(_folder(choice)))
    loaded = models.load(folder_of(choice.source), dtype=choice.dtype, revision=choice.revision or None, layout=layout)
    _LOADED[choice] = dataclasses.replace(loaded, source=choice.source)
  _LOADED[choice] = layouts.relay(_LOADED[choice], layout)
  return _LOADED[choice]


def layouts_of(run: Run) -> layouts.Layouts:
  """How the run lies on the devices, in fine-tuning and in evaluation."""
  return _layouts(run.model, run.mesh, run.finetune)


@functools.lru_cache(maxsize=1)
def _layouts(choice: ModelChoice, mesh: configs.Mesh, options: configs.FineTune) -> layouts.Layouts:
  config, _ = models.load_config(_folder(choice))
  delta = jax.eval_shape(lambda: models.init_delta(config, options.kind, jax.random.key(0), rank=options.rank, lora_alpha=options.lora_alpha))
  return layouts.choose(config, mesh, dtype=choice.dtype, trained=tree.count(delta))


def tokenizer_of(choice: ModelChoice) -> Any:
  """The chosen model's tokenizer, which must have a chat template."""
  return _tokenizer(_folder(choice))


def load_questions(run: Run) -> list[Conversation]:
  """The questions that both sides of a generated contrast answer."""
  source = run.data.questions
  if source.startswith(f'{ORGANISM}:'):
    make = _named(organism.QUESTIONS, source)
    return [Conversation(tuple(messages), f'{source}/{i}') for i, messages in enumerate(make(run.data.num_questions, run.seed))]
  found = datas.load_conversations(source)
  return found[:run.data.num_questions] if run.data.num_questions else found


def load_tasks(run: Run) -> list[evaluation.tasks.Task]:
  """The run's tasks with their checked items: `n` that the organism makes, or the first n (0: all) of a jsonl file."""
  tasks = []
  for name, options in run.tasks.items():
    if options.items.startswith(f'{ORGANISM}:'):
      items, where = _named(organism.ITEMS, options.items)(options.n, options.seed), None
    else:
      items, where = evaluation.tasks.read(options.items)
    tasks.append(evaluation.tasks.make(name, options, items, where=where))
  return tasks


def direction_folder(run: Run, workdir: Path) -> pathlib.Path:
  """Where the run's direction lies."""
  return pathlib.Path(workdir) / 'directions' / run.name


def say(line: str) -> None:
  """Prints a line of a stage at once, once."""
  lifeline.progress()
  if distributed.is_main():
    print(line, flush=True)


def _engine(run: Run, arms: Mapping[str, Any]) -> evaluation.Engine:
  layout, tokenizer = layouts_of(run).evaluate, tokenizer_of(run.model)
  return evaluation.Engine(load_model(run.model, layout), tokenizer, arms, batch_size=run.sweep.batch_size,
                           stop_ids=evaluation.stop_ids(tokenizer), layout=layout)


@functools.lru_cache(maxsize=1)
def _folder(choice: ModelChoice) -> pathlib.Path:
  return models.resolve(folder_of(choice.source), revision=choice.revision or None)[0]


def folder_of(source: Path) -> Path:
  """The folder or hub id that a model's source stands for."""
  return organism.checkpoint_folder() if str(source) == ORGANISM else source


def _named(table: Mapping[str, Callable], source: str) -> Callable:
  name = source.removeprefix(f'{ORGANISM}:')
  if name not in table:
    raise InputError(f"the organism has no '{name}'{tree.did_you_mean(name, table)}; it has: {', '.join(table)}")
  return table[name]


@functools.lru_cache(maxsize=2)
def _tokenizer(folder: pathlib.Path) -> Any:
  tokenizer = datas.load_tokenizer(folder)
  datas.require_chat_template(tokenizer)
  return tokenizer


def _loaded(choice: ModelChoice, direction: Path, alphas: Sequence[float]) -> tuple[models.Model, Any, Any]:
  """(model, tokenizer, the direction's delta or None)."""
  if not direction and any(alphas):
    raise InputError(f'alphas {list(alphas)} were asked for without a direction; pass --direction')
  found = directions.load(direction) if direction else None
  model = load_model(choice)
  if found:
    directions.check_base(found, model)
  return model, datas.load_tokenizer(model.folder), found.delta if found else None


def _results_of(direction: directions.Direction, folder: pathlib.Path) -> list[dict[str, Any]]:
  """The results of the run that the direction lies in, where they are a sweep of this very direction; else none."""
  workdir = folder.resolve().parent.parent
  plan, results = workdir / 'sweep' / 'plan.json', workdir / 'results.jsonl'
  if not (plan.is_file() and results.is_file()):
    return []
  swept = files.read_json(plan, what='the plan of a sweep')['inputs'].get(f"direction of arm '{ARM}'")
  if swept != [[evaluation.sweep.delta_digest(direction.delta), None]]:
    return []
  rows = (json.loads(line) for line in results.read_text(encoding='utf-8').splitlines())
  return [row for row in rows if row['arm'] == ARM]


def _read_side(run: Run, side: str, folder: pathlib.Path | None = None) -> list[Conversation]:
  source = getattr(run.data, side)
  if not source:
    return datas.load_conversations(folder / f'{side}.jsonl')
  return datas.load_conversations(source, split=run.data.split or None, revision=run.data.revision or None)


def _encode(run: Run, tokenizer: Any, conversations: Sequence[Conversation]) -> list[Example]:
  return datas.chat.encode_examples(tokenizer, conversations, max_length=run.data.max_length, truncate=run.data.truncate)


def _generate_contrast(run: Run, folder: pathlib.Path) -> None:
  """Writes data/: the model's own answers to the questions, in pairs of which both passed their side's filter."""
  options = run.data
  instructions = [datas.contrast.Instruction(*pair) for pair in zip(options.positive_prompts, options.negative_prompts)]
  questions = load_questions(run)
  say(f'data: {len(questions)} questions x {len(instructions)} pairs of prompts x {options.samples} samples, both sides')
  made = datas.contrast.make(questions, instructions, functools.partial(_answer, run), functools.partial(_keep, options), samples=options.samples)
  distributed.on_main(lambda: datas.contrast.write(folder, made))
  say(f'data: {json.dumps(made.accounting)}')


def _answer(run: Run, prompts: Sequence[Conversation]) -> list[str]:
  """The model's answer to each prompt, sampled; a prompt's luck is a function of (seed, its name)."""
  engine, options = _engine(run, {}), run.data
  tokenizer = engine.tokenizer
  sampling = evaluation.Sampling(temperature=options.temperature)
  requests = [evaluation.GenerateRequest(i, tuple(datas.chat.prompt_tokens(tokenizer, prompt.messages)), options.max_new_tokens,
                                         sampling=sampling, seed=run.seed, example=prompt.name) for i, prompt in enumerate(prompts)]
  answers = {}
  for result in engine.generate(requests):
    lifeline.progress()
    answers[result.key] = tokenizer.decode(result.tokens, skip_special_tokens=True)
  return [answers[i] for i in range(len(prompts))]


def _filter(options: configs.Data, side: str) -> Callable[[Sequence[Mapping[str, str]], str], bool]:
  """Whether an answer to messages is kept on this side."""
  rule = getattr(options, f'{side}_filter')
  if rule.startswith(f'{ORGANISM}:'):
    return _named(organism.FILTERS, rule)
  return lambda messages, answer: re.search(rule, answer, re.IGNORECASE) is not None


def _keep(options: configs.Data, question: Conversation, answer: str, side: str) -> str | None:
  """Why an answer is dropped, or None."""
  return None if _filter(options, side)(list(question.messages), answer) else 'does not pass its filter'


def _refuse_other_run(run: Run, workdir: pathlib.Path) -> None:
  path = workdir / 'config.json'
  if not path.exists():
    if workdir.is_dir() and any(workdir.iterdir()):
      raise InputError(f'{workdir} exists and is no workdir of a run: name another --workdir')
    return
  there = _flat_settings(files.read_json(path, what='the config of a run'))
  here = _flat_settings(json.loads(json.dumps(configs.to_dict(run))))
  differing = [f'  {key}: {there.get(key)!r} there, {here.get(key)!r} now' for key in here if there.get(key) != here[key]]
  if differing:
    raise InputError('\n'.join([f'{workdir} holds a run with other settings; name another --workdir. What differs:', *differing]))


def _flat_settings(record: Mapping[str, Any]) -> dict[str, Any]:
  """{'section.key': value} of the FIXED sections."""
  flat = {}
  for section in FIXED:
    value = record[section]
    flat |= {f'{section}.{key}': item for key, item in value.items()} if isinstance(value, dict) else {section: value}
  return flat
