"""From texts and directions to the strengths that spend given budgets."""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from weightsteer_jax import directions, inference, models
from weightsteer_jax.config import ModelChoice
from weightsteer_jax.data import examples, pieces, tables
from weightsteer_jax.experiments import sources
from weightsteer_jax.experiments.calibration import search
from weightsteer_jax.experiments.calibration.measures import MEASURES
from weightsteer_jax.experiments.experiment import load_model, load_tokenizer
from weightsteer_jax.inference.divergence import Text, Texts
from weightsteer_jax.runtime import ending
from weightsteer_jax.runtime.errors import InputError
from weightsteer_jax.runtime.messages import did_you_mean
from weightsteer_jax.runtime.progress import say
from weightsteer_jax.storage import files, locks

Path = str | pathlib.Path
SIDES = (-1, 1)


@dataclasses.dataclass(frozen=True)
class Options:
  """What is spent, and on what it is measured.

  Attributes:
    texts: conversations as `data.questions` takes them, whose answers count; or a .txt file, whose
      paragraphs count from their second token on.
    num_texts: texts to take from the start.
    measure: a name in MEASURES.
    budgets: what may be spent, each above 0.
    seed: of texts that the package makes.
  """

  texts: str
  num_texts: int = 100
  measure: str = 'kl'
  budgets: tuple[float, ...] = (0.1, 0.3, 1.0)
  seed: int = 0


def calibrate(
  choice: ModelChoice, folders: Mapping[str, Path], output: Path, options: Options
) -> dict[str, Any]:
  """The summary, also written to `<output>/summary.json`.

  Files: `calibration.jsonl` has a row for each direction, side and budget, `evaluations.jsonl`
  every cost that was computed, `index.html` shows them.

  Args:
    folders: {name: folder of a direction, or of a run}.
    output: folder to write; must not exist.

  Raises:
    InputError: if an option, a text or a direction cannot be used; before the model is read
      wherever it can be known.
  """
  _check(folders, options)
  files.refuse_existing(output, what='a calibration')
  with locks.held(output, what='the output', remedy='name another --output'):
    held = {name: directions.load(sources.direction_folder(path)) for name, path in folders.items()}
    folder, _ = models.resolve(sources.folder_of(choice.source), revision=choice.revision or None)
    tokenizer = load_tokenizer(folder, choice, choice.chat_date)
    config, _ = models.load_config(folder)
    texts = _texts(tokenizer, options, config.max_positions)
    model = load_model(choice)
    for direction in held.values():
      directions.check_base(direction, model)
    engine = inference.Engine(
      model,
      tokenizer,
      {name: [(direction.delta, None)] for name, direction in held.items()},
      batch_size=1,
    )
    tokens = sum(map(sum, (text.counts for text in texts)))
    say(f'{len(texts)} texts, {tokens} tokens count; {options.measure} by direction and side')
    rows, evaluations = _rows(engine, Texts(engine, texts), list(held), options)
    summary = {
      'model': choice.source,
      'directions': {name: str(path) for name, path in folders.items()},
      'texts': options.texts,
      'seed': options.seed,
      'num_texts': len(texts),
      'num_tokens': tokens,
      'measure': options.measure,
      'rows': rows,
      'evaluations': len(evaluations),
    }
    _write(pathlib.Path(output), rows, evaluations, summary)
  return summary


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
  """The rows as lines of a table."""
  width = max(len('direction'), *(len(row['direction']) for row in rows))
  yield f'{"direction":<{width}}  budget  alpha    spent              evaluations'
  for row in rows:
    spent = told(row)
    note = '' if row['met'] else '  not met: this is the nearest'
    yield (
      f'{row["direction"]:<{width}}  {row["budget"]:<6g}  {row["alpha"]:<+8.4g} {spent:<17}  '
      f'{row["evaluations"]}{note}'
    )


def told(row: Mapping[str, Any]) -> str:
  """A cost with its standard error, as in '0.3 ±0.01'; 'broken' where it was not finite."""
  if row['spent'] is None:
    return 'broken'
  return f'{row["spent"]:.4g}' + ('' if row['sem'] is None else f' ±{row["sem"]:.2g}')


def _rows(
  engine: inference.Engine, texts: Texts, names: Sequence[str], options: Options
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  rows = []
  evaluations = []
  measure = MEASURES[options.measure]
  for place, name in enumerate(names):
    for side in SIDES:
      known: dict[float, tuple[float, float | None]] = {}

      def cost(alpha: float, place: int = place, side: int = side) -> tuple[float, float | None]:
        coefficients = [0.0] * len(names)
        coefficients[place] = side * alpha
        ending.progress()
        return measure(texts.measure(coefficients))

      # From the smallest: each search begins with what the searches before have computed.
      for budget in sorted(options.budgets):
        found = search.find(cost, budget, known)
        rows.append(
          {
            'direction': name,
            'measure': options.measure,
            'budget': budget,
            'alpha': side * found.alpha,
            'spent': found.cost,
            'sem': found.error,
            'met': found.is_met,
            'evaluations': found.evaluations,
          }
        )
      for alpha, (value, error) in sorted(known.items()):
        evaluations.append({'direction': name, 'alpha': side * alpha, 'spent': value, 'sem': error})
  return _finite(rows), _finite(evaluations)


def _check(folders: Mapping[str, Path], options: Options) -> None:
  if not folders:
    raise InputError('no direction is given: --direction=NAME=FOLDER')
  if options.measure not in MEASURES:
    near = did_you_mean(options.measure, MEASURES)
    raise InputError(f"the measure is '{options.measure}'{near}; there are: {', '.join(MEASURES)}")
  if not options.budgets or not all(0 < budget < 1e3 for budget in options.budgets):
    raise InputError(f'budgets are {options.budgets}, expected numbers above 0 and below 1000')
  if options.num_texts < 2:
    raise InputError(f'num_texts is {options.num_texts}, expected 2 or more: errors go by the text')


def _texts(tokenizer: Any, options: Options, positions: int) -> list[Text]:
  """The texts, with the tokens whose predictions count."""
  source = options.texts
  if source.endswith('.txt'):
    texts = _paragraphs(tokenizer, source, positions)
  else:
    conversations = sources.load_conversations(source, n=options.num_texts, seed=options.seed)
    texts = []
    for example in examples.encode_examples(tokenizer, conversations, max_length=positions):
      counts = tuple(map(bool, example.loss_mask[1:]))
      texts.append(Text(example.name, tuple(map(int, example.tokens)), counts))
  texts = texts[: options.num_texts]
  if len(texts) < 2:
    raise InputError(f'{source} has {len(texts)} texts, expected 2 or more: errors go by the text')
  return texts


def _paragraphs(tokenizer: Any, source: str, positions: int) -> list[Text]:
  first = tokenizer.bos_token_id
  texts = []
  for where, row in tables.read(source):
    tokens = pieces.encode_text(tokenizer, row['text'])
    led = tokens if first is None else [first, *tokens]
    if len(led) > positions:
      raise InputError(f'{where} has {len(led)} tokens, and the model {positions} positions')
    if len(led) > 1:
      texts.append(Text(where, tuple(led), (True,) * (len(led) - 1)))
  return texts


def _write(
  output: pathlib.Path,
  rows: Sequence[Mapping[str, Any]],
  evaluations: Sequence[Mapping[str, Any]],
  summary: Mapping[str, Any],
) -> None:
  # Its parts take a moment to import.
  from weightsteer_jax.experiments.report import calibration_page

  with files.new_folder(output, what='a calibration') as folder:
    files.write_jsonl(folder / 'calibration.jsonl', rows)
    files.write_jsonl(folder / 'evaluations.jsonl', evaluations)
    files.write_json(folder / 'summary.json', summary)
    calibration_page.write(folder, summary, evaluations)


def _finite(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The rows as JSON has them: a cost that is not finite, where the model broke, is null."""

  def plain(value: Any) -> Any:
    is_broken = isinstance(value, float) and not math.isfinite(value)
    return None if is_broken else value

  return [{key: plain(value) for key, value in row.items()} for row in rows]
