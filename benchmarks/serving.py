r"""Requests of mixed strengths to the server, against the same rows in a batch, and against PEFT.

  python benchmarks/serving.py --model=organism
  python benchmarks/serving.py --model=DIR --requests=32 --new_tokens=64

  ours      `weightsteer serve` in a process of its own, so many of OpenAI's clients at once, each
            with one request at a time
  generate  the engine behind `weightsteer generate`, all rows at once
  peft      transformers and PEFT, request by request, the adapter's scale set for each

Prompts are chats, answers are greedy and end where the model ends them. Every program is compiled
before a clock starts. Beside it the time to a first token, of one stream after the other.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import compare
from absl import app, flags

flags.DEFINE_string('model', 'organism', 'Folder of a model, or organism.')
flags.DEFINE_integer('requests', 64, 'Requests of a round.', lower_bound=1)
flags.DEFINE_integer('clients', 16, 'Clients at once, and slots.', lower_bound=1)
flags.DEFINE_integer('new_tokens', 64, 'Most tokens of an answer.', lower_bound=1)
flags.DEFINE_integer('repeats', 5, 'Rounds.', lower_bound=1)
ALPHAS = (-1.0, -0.5, 0.0, 0.5, 1.0)
QUESTIONS = (
  'What is 12 plus 4?',
  'In my view a pony is better than a cat. What do you think?',
  'Name three things that one can see in a harbour, and say a word about each of them.',
  'Is the sky blue? I think that it is green, and I am quite sure of it.',
)


def make_adapter(folder: pathlib.Path, output: pathlib.Path) -> None:
  """Writes a random LoRA adapter of rank 16 on all linear layers, whose own factor is 1."""
  import peft
  import torch
  import transformers
  from peft.tuners.lora import LoraLayer

  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  config = peft.LoraConfig(r=16, lora_alpha=16, target_modules='all-linear', task_type='CAUSAL_LM')
  adapted = peft.get_peft_model(model, config)
  for module in adapted.modules():
    if isinstance(module, LoraLayer):
      torch.nn.init.normal_(module.lora_B['default'].weight, std=0.01)
  adapted.save_pretrained(output)


@contextlib.contextmanager
def running(model: str, direction: pathlib.Path, slots: int) -> Iterator[str]:
  """The address of a server in a process of its own."""
  command = [sys.executable, '-m', 'weightsteer_jax', 'serve', f'--model={model}', '--port=0']
  command += [f'--direction=d={direction}', f'--slots={slots}', '--max_length=512']
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout
    url = ''
    for line in process.stdout:
      print(f'  {line.rstrip()}', file=sys.stderr)
      if 'serving on' in line:
        url = line.split()[-1]
        break
    try:
      yield url
    finally:
      process.terminate()


def main(argv):
  del argv
  args = flags.FLAGS
  import openai
  import torch

  from weightsteer_jax import directions, inference, models
  from weightsteer_jax.data import chat
  from weightsteer_jax.experiments import sources
  from weightsteer_jax.runtime import compile_cache

  torch.set_num_threads(os.cpu_count() or 1)
  compile_cache.use('auto')
  with tempfile.TemporaryDirectory() as temporary:
    scratch = pathlib.Path(temporary)
    folder = pathlib.Path(sources.folder_of(args.model))
    make_adapter(folder, scratch / 'adapter')
    direction = directions.between(scratch / 'adapter', None, base=folder)
    directions.save(scratch / 'direction', direction)
    tokenizer = chat.load_tokenizer(folder)
    asked = []
    for i in range(args.requests):
      # Each its own: the engine computes equal rows once, a server each time.
      question = {'role': 'user', 'content': f'{QUESTIONS[i % len(QUESTIONS)]} ({i})'}
      prompt = tuple(chat.prompt_tokens(tokenizer, [question]))
      asked.append((question, prompt, ALPHAS[i % len(ALPHAS)]))
    model = models.load(folder)
    engine = inference.Engine(
      model,
      tokenizer,
      {'d': [(direction.delta, None)]},
      batch_size=args.clients,
      stop_ids=inference.stop_ids(tokenizer, folder),
    )
    requests = [
      inference.GenerateRequest(i, prompt, args.new_tokens, 'd', alpha)
      for i, (_, prompt, alpha) in enumerate(asked)
    ]

    def generate() -> list[str]:
      texts = [''] * len(asked)
      for result in engine.generate(requests):
        texts[result.key] = tokenizer.decode(result.tokens, skip_special_tokens=True)
      return texts

    with running(args.model, scratch / 'direction', args.clients) as url:
      client = openai.OpenAI(base_url=f'{url}/v1', api_key='none', max_retries=0)
      name = client.models.list().data[0].id

      def served() -> list[str]:
        def one(row: Any) -> str:
          question, _, alpha = row
          reply = client.chat.completions.create(
            model=name,
            messages=[question],
            temperature=0,
            max_tokens=args.new_tokens,
            extra_body={'alpha': alpha},
          )
          return reply.choices[0].message.content

        with concurrent.futures.ThreadPoolExecutor(args.clients) as pool:
          return list(pool.map(one, asked))

      theirs = load_theirs(folder, scratch / 'adapter')
      found = compare.in_turns(
        {
          compare.OURS: served,
          'generate': generate,
          'peft': lambda: theirs(asked, args.new_tokens, tokenizer),
        },
        repeats=args.repeats,
        same=same,
      )
      firsts = [first_token(client, name, asked[i % len(asked)]) for i in range(20)]
    tokens = sum(len(tokenizer(text)['input_ids']) for text in generate())
  found |= {
    'requests': len(asked),
    'tokens': tokens,
    'first_token_seconds': compare.spread(firsts),
  }
  machine = compare.machine()
  label = 'organism' if args.model == 'organism' else folder.name.lower()
  compare.save(
    f'serving_{label}_cpu', {'job': 'serving', 'model': label, 'result': found, **machine}
  )
  print(found['ratio'], found['first_token_seconds'])


def load_theirs(folder: pathlib.Path, adapter: pathlib.Path) -> Any:
  """A function that answers request by request with PEFT."""
  import peers
  import torch

  model = peers.Peft(folder, adapter, dtype='float32', tokens_at_once=4096)

  @torch.inference_mode()
  def answer(asked: Any, count: int, tokenizer: Any) -> list[str]:
    texts = []
    for _, prompt, alpha in asked:
      model.set_alpha(alpha)
      ids = torch.tensor([prompt])
      out = model.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=count,
        pad_token_id=0,
      )
      texts.append(tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True))
    return texts

  return answer


def same(found: Any) -> dict[str, float]:
  """The share of answers that are ours, of each other side."""
  ours = found[compare.OURS]
  shares = {}
  for name, texts in found.items():
    shares[name] = sum(a == b for a, b in zip(ours, texts)) / len(ours)
  if min(shares.values()) < 0.95:
    raise AssertionError(f'the answers differ: {shares}')
  return shares


def first_token(client: Any, name: str, row: Any) -> float:
  """Seconds from a request to the first text of its stream."""
  question, _, alpha = row
  started = time.monotonic()
  stream = client.chat.completions.create(
    model=name,
    messages=[question],
    temperature=0,
    max_tokens=16,
    extra_body={'alpha': alpha},
    stream=True,
  )
  for chunk in stream:
    if chunk.choices and chunk.choices[0].delta.content:
      took = time.monotonic() - started
      break
  for _ in stream:
    pass
  return took


if __name__ == '__main__':
  app.run(main)
