"""What the campaign damages, and who reads it: a folder as it should be, its files, a reader."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from experiments.report.conftest import build

from weightsteer_jax import directions, models
from weightsteer_jax.data import chat
from weightsteer_jax.experiments import organism
from weightsteer_jax.experiments.report import redraw
from weightsteer_jax.inference import jsonl


@dataclasses.dataclass(frozen=True)
class Target:
  """Files of one kind.

  Attributes:
    make: writes the folder as it should be.
    files: names in it, of which one is damaged at a time.
    read: reads the folder, and raises one of our errors where it cannot.
  """

  make: Callable[[pathlib.Path], Any]
  files: tuple[str, ...]
  read: Callable[[pathlib.Path], Any]


def _model(folder: pathlib.Path) -> None:
  shutil.copytree(organism.checkpoint_folder(), folder)


def _read_model(folder: pathlib.Path) -> None:
  model = models.load(folder)
  tokenizer = chat.load_tokenizer(folder)
  chat.prompt_tokens(tokenizer, [{'role': 'user', 'content': 'hello'}], name='a chat')
  jax.block_until_ready(model.params)


def _adapter(folder: pathlib.Path) -> None:
  import peft
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(organism.checkpoint_folder())
  options = peft.LoraConfig(
    r=4,
    lora_alpha=8,
    target_modules=['q_proj', 'down_proj'],
    rank_pattern={'layers.0.self_attn.q_proj': 2},
    alpha_pattern={'down_proj': 3},
    init_lora_weights=False,
  )
  peft.get_peft_model(model, options).save_pretrained(folder)


def _direction(folder: pathlib.Path) -> None:
  model = models.load(organism.checkpoint_folder())
  delta = models.init_delta(model.config, 'lora', jax.random.key(0), rank=2)
  draw = np.random.default_rng(0)
  delta = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), delta)
  meta = {'kind': 'random', 'base': directions.base_of(model).to_json(), 'sources': []}
  directions.save(folder, directions.Direction(delta, meta), sync=False)


def _rows(folder: pathlib.Path) -> None:
  folder.mkdir()
  chats = [{'role': 'user', 'content': 'one'}]
  rows = [{'prompt': 'The sky is', 'completion': ' blue'}, {'messages': chats, 'completion': 'two'}]
  (folder / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))


def _read_rows(folder: pathlib.Path) -> None:
  model = models.load(organism.checkpoint_folder())
  tokenizer = chat.load_tokenizer(model.folder)
  (folder / 'scores.jsonl').unlink(missing_ok=True)
  jsonl.score_file(model, tokenizer, None, [0.0], folder / 'rows.jsonl', folder / 'scores.jsonl')


JSON_FILES = ('config.json', 'tokenizer.json', 'tokenizer_config.json', 'generation_config.json')
TARGETS = {
  'model': Target(_model, (*JSON_FILES, 'model.safetensors'), _read_model),
  'adapter': Target(
    _adapter, ('adapter_config.json', 'adapter_model.safetensors'), directions.task_vector
  ),
  'direction': Target(_direction, ('direction.json', 'direction.safetensors'), directions.load),
  'rows': Target(_rows, ('rows.jsonl',), _read_rows),
  'page': Target(build, ('config.json', 'results.jsonl', 'sweep/rows.jsonl'), redraw.one),
}
