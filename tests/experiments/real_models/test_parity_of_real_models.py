"""Real models against transformers in torch: likelihoods of real rows, and greedy texts, token for
token.

  JAX_DISABLE_MOST_OPTIMIZATIONS=0 REAL_MODELS=FOLDER REAL_TABLES=TruthfulQA.csv,gsm8k.jsonl \
    pytest -m slow -n 0 -s tests/experiments/real_models/test_parity_of_real_models.py

REAL_MODELS holds a folder for each model, as `launch/real_model.py` names them, and REAL_TABLES
are tables with questions and answers. Without them the tests are skipped.
"""

import json
import os
import pathlib
import random

import numpy as np
import pytest
import torch
import transformers

from weightsteer_jax import models
from weightsteer_jax.data import chat, load_tokenizer, tables
from weightsteer_jax.experiments import standalone
from weightsteer_jax.experiments.real_models import packages
from weightsteer_jax.inference import Engine, GenerateRequest, ScoreRequest, stop_ids

pytestmark = pytest.mark.slow

# Nats a token by which the two may differ.
CLOSE = 1e-4
ROWS = 50
PROMPTS = 10
NEW_TOKENS = 64
# Tokens of the longest row.
LONGEST = 1000


def given(variable: str) -> str:
  value = os.environ.get(variable, '')
  if not value:
    pytest.skip(f'{variable} is not set')
  return value


@pytest.fixture(scope='module')
def questions() -> list[tuple[str, str]]:
  """(question, answer) of rows of all tables, taken in turn and shuffled."""
  asked = []
  for path in given('REAL_TABLES').split(','):
    rows = tables.read(path)
    random.Random(0).shuffle(rows)
    asked.append(
      [
        (
          tables.text(row, ('question',), where),
          tables.text(row, ('best_answer', 'answer'), where),
        )
        for where, row in rows[:200]
      ]
    )
  return [pair for pairs in zip(*asked) for pair in pairs]


class Real:
  """A model, its tokenizer, and both again in transformers."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.model = models.load(folder)
    self.tokenizer = load_tokenizer(folder)
    self.torch = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    self.torch_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    self.has_template = bool(self.torch_tokenizer.chat_template)

  def torch_nats(self, ids: list[int], start: int) -> float:
    """Log-likelihood of the ids from `start` on, summed in float64."""
    with torch.no_grad():
      # Logits of the completion alone: those of all tokens of Gemma's vocabulary take gigabytes.
      kept = len(ids) - start + 1
      logits = self.torch(torch.tensor([ids]), logits_to_keep=kept).logits[0, :-1]
    picked = logits.double().log_softmax(-1).gather(1, torch.tensor(ids[start:])[:, None])
    return float(picked.sum())


@pytest.fixture(scope='module', params=packages.MODELS)
def real(request) -> Real:
  folder = pathlib.Path(given('REAL_MODELS')) / request.param
  if not folder.is_dir():
    pytest.skip(f'there is no {folder}')
  torch.set_num_threads(os.cpu_count() or 1)
  return Real(folder)


def rows_of(real: Real, questions: list[tuple[str, str]]) -> list[dict]:
  """Rows of score.py: raw ones with 0 to 12 solved questions before theirs, and chats."""
  rows = []
  for i in range(ROWS):
    question, answer = questions[i]
    if i % 2 and real.has_template:
      rows.append({'messages': [{'role': 'user', 'content': question}], 'completion': answer})
      continue
    texts = [f'Q: {question}\nA:']
    # The more rows, the longer the longest: every fourth row is a long one.
    for before in questions[ROWS + i : ROWS + i + 3 * (i % 5)]:
      longer = [f'Q: {before[0]}\nA: {before[1]}\n\n', *texts]
      if len(real.tokenizer.encode(''.join(longer) + answer)) > LONGEST:
        break
      texts = longer
    rows.append({'prompt': ''.join(texts), 'completion': f' {answer}'})
  return rows


def their_ids(real: Real, row: dict) -> tuple[list[int], int]:
  """A row's tokens by transformers, and where its completion begins."""
  tokenizer = real.torch_tokenizer
  if 'messages' in row:
    prompt = tokenizer.apply_chat_template(
      row['messages'], tokenize=False, add_generation_prompt=True
    )
    before = tokenizer.encode(prompt, add_special_tokens=False)
    whole = tokenizer.encode(prompt + row['completion'], add_special_tokens=False)
  else:
    first = [tokenizer.bos_token_id]
    before = first + tokenizer.encode(row['prompt'], add_special_tokens=False)
    whole = first + tokenizer.encode(row['prompt'] + row['completion'], add_special_tokens=False)
  assert whole[: len(before)] == before
  return whole, len(before)


def test_likelihoods_of_real_rows_are_those_of_transformers(real, questions, tmp_path):
  rows = rows_of(real, questions)
  (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  # Packed: rows share batches, and short ones share a row of the batch.
  standalone.score(
    str(real.folder), tmp_path / 'rows.jsonl', tmp_path / 'scores.jsonl', add_bos=True
  )
  scores = [json.loads(line) for line in (tmp_path / 'scores.jsonl').read_text().splitlines()]
  errors = []
  lengths = []
  for row, score in zip(rows, scores, strict=True):
    ids, start = their_ids(real, row)
    assert score['tokens'] == len(ids) - start
    theirs = real.torch_nats(ids, start)
    errors.append(abs(score['logprob'] - theirs) / score['tokens'])
    lengths.append(len(ids))
  print(
    f'{real.folder.name}: {len(rows)} rows of {min(lengths)} to {max(lengths)} tokens, largest '
    f'difference {max(errors):.2g} nats a token'
  )
  assert max(lengths) > 0.8 * LONGEST and max(errors) < CLOSE


def test_greedy_texts_are_those_of_transformers(real, questions):
  stops = stop_ids(real.tokenizer, real.folder)
  engine = Engine(real.model, real.tokenizer, {}, batch_size=4, stop_ids=stops)
  prompts = []
  for question, _ in questions[:PROMPTS]:
    if real.has_template:
      message = {'role': 'user', 'content': question}
      prompts.append(tuple(chat.prompt_tokens(real.tokenizer, [message], name='x')))
    else:
      text = f'Q: {question}\nA:'
      bos = real.tokenizer.bos_token_id
      prompts.append((bos, *real.tokenizer.encode(text, add_special_tokens=False)))
  asked = [GenerateRequest(i, prompt, NEW_TOKENS) for i, prompt in enumerate(prompts)]
  texts = {result.key: result.tokens for result in engine.generate(asked)}
  for i, prompt in enumerate(prompts):
    with torch.no_grad():
      theirs = real.torch.generate(
        torch.tensor([prompt]),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=list(stops),
        pad_token_id=stops[0],
      )[0, len(prompt) :].tolist()
    while theirs and theirs[-1] in stops:
      theirs.pop()
    assert texts[i] == tuple(theirs), prompt
  # Scored in packed rows, without a cache, every token is the likeliest in its place too.
  scored = engine.score([ScoreRequest(i, prompts[i], texts[i]) for i in texts if texts[i]])
  assert all(result.is_greedy for result in scored)
  count = sum(map(len, texts.values()))
  print(f'{real.folder.name}: {len(prompts)} texts, {count} tokens, all alike')


def test_the_folder_holds_what_transformers_reads_from_the_gguf(real):
  """Set REAL_GGUF to a folder of NAME.gguf files to compare with."""
  path = pathlib.Path(given('REAL_GGUF'))
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    path, gguf_file=f'{real.folder.name}.gguf', dtype=torch.float32
  )
  ours = real.torch.state_dict()
  for name, tensor in theirs.state_dict().items():
    np.testing.assert_array_equal(ours[name].numpy(), tensor.numpy(), err_msg=name)
