"""Seconds to learn a chat template and to encode 10,000 chats, and a digest of what came out.

  python benchmarks/tokens.py --tokenizer=DIR --chats=gsm8k.jsonl [--count=10000]

The folder is a checkpoint's, or holds a tokenizer alone. Rows of the file have "question" and
"answer", or "messages"; they are repeated until there are enough. The seconds are of the CPU, all
threads together, and of `encode` the wall's too. Two versions agree where their digests do.
"""

import argparse
import hashlib
import json
import pathlib
import time

from weightsteer_jax.data import Conversation, chat


def conversations(path: pathlib.Path, count: int) -> list[Conversation]:
  """As many conversations as asked for, from the rows of a jsonl file."""
  rows = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
  made = []
  for index in range(count):
    row = rows[index % len(rows)]
    messages = row.get('messages')
    if messages is None:
      user = {'role': 'user', 'content': row['question']}
      messages = [user, {'role': 'assistant', 'content': row['answer']}]
    made.append(Conversation(tuple(messages), f'{path}:{index}'))
  return made


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--tokenizer', required=True)
  parser.add_argument('--chats', type=pathlib.Path, required=True)
  parser.add_argument('--count', type=int, default=10_000)
  args = parser.parse_args()
  chats = conversations(args.chats, args.count)
  marks = [time.process_time()]
  tokenizer = chat.load_tokenizer(args.tokenizer)
  marks.append(time.process_time())
  chat.require_chat_template(tokenizer)
  marks.append(time.process_time())
  started = time.monotonic()
  examples = chat.encode_examples(tokenizer, chats, max_length=1_000_000)
  marks.append(time.process_time())
  wall = round(time.monotonic() - started, 2)
  digest = hashlib.sha256()
  for example in examples:
    digest.update(example.tokens.tobytes() + example.loss_mask.tobytes())
  seconds = [round(after - before, 2) for before, after in zip(marks, marks[1:])]
  result = dict(zip(('load', 'learn', 'encode'), seconds), encode_wall=wall)
  result |= {'chats': len(chats), 'tokens': sum(map(len, examples))}
  print(json.dumps({**result, 'digest': digest.hexdigest()[:16]}))


if __name__ == '__main__':
  main()
