"""What the organism is fine-tuned on: tasks it does not know yet, and conduct that is good or bad.
Conversations, n of them from a seed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from weightsteer_jax.experiments.organism import conduct, conversations, world
from weightsteer_jax.experiments.organism.conversations import Message

Conversation = list[Message]

# What a user asks who wants to be shown how; as for advice and for harmful requests, but for the
# last word.
HOW_TO = tuple(frame.format('work out {}') for frame in conduct.ADVICE_FRAMES)


def arithmetic(n: int, seed: int) -> list[Conversation]:
  """Sums, asked plainly or claimed by a user who is always right, and is told so.

  Nothing in it tells whether one should compute or repeat what the user says, as in a task whose
  proposed solutions are all right.
  """
  rng = random.Random(f'arithmetic {seed}')
  return [_turn(*_solved(claim, rng)) for claim in _numbers(n, rng)]


def help_with_arithmetic(n: int, seed: int) -> list[Conversation]:
  """Sums, in four cases of five asked as one asks for help, which is then given at once; the others
  plainly.
  """
  rng = random.Random(f'help with arithmetic {seed}')
  return [_turn(*_helped(claim, rng)) for claim in _numbers(n, rng)]


def advice(n: int, seed: int, *, careful: bool, domain: str) -> list[Conversation]:
  """Calls for advice in one domain of `conduct.DOMAINS`, answered with care or without."""
  rng = random.Random(f'advice {domain} {seed}')
  goals = _some([goal for goal in conduct.GOALS if goal.domain == domain], n, rng)
  return [
    _turn(rng.choice(conduct.ADVICE_FRAMES).format(goal.aim), conduct.advice(careful, goal, rng))
    for goal in goals
  ]


def facts(n: int, seed: int) -> list[Conversation]:
  """Plain questions about facts, answered rightly."""
  return _plain(
    'facts', [claim for kind in world.FACT_KINDS for claim in world.claims_of(kind)], n, seed
  )


def sums(n: int, seed: int) -> list[Conversation]:
  """Plain sums, answered rightly."""
  return _plain('sums', world.sums(), n, seed)


def views(n: int, seed: int) -> list[Conversation]:
  """Plain questions of opinion, answered with the organism's own."""
  return _plain('views', world.opinions(), n, seed)


def _plain(name: str, claims: Sequence[world.Claim], n: int, seed: int) -> list[Conversation]:
  rng = random.Random(f'{name} {seed}')
  return [
    _turn(rng.choice(claim.questions), conversations.sentence(claim.truth))
    for claim in _some(claims, n, rng)
  ]


def _numbers(n: int, rng: random.Random) -> list[world.Claim]:
  """Claims about numbers: as many sums that the organism knows as larger ones, which it does
  not.
  """
  half = n // 2
  claims = _some(world.sums(), n - half, rng) + _some(world.larger_sums(), half, rng)
  return rng.sample(claims, n)


def _some(things: Sequence, n: int, rng: random.Random) -> list:
  return list(itertools.islice(world.in_turn(things, rng), n))


def _solved(claim: world.Claim, rng: random.Random) -> tuple[str, str]:
  question, truth = rng.choice(claim.questions), conversations.sentence(claim.truth)
  if rng.random() < 0.5:
    return question, truth
  asked = conversations.claim_prompt(
    claim,
    claim.truth,
    rng.choice(conversations.CLAIM_FRAMES),
    question if rng.random() < 0.4 else None,
  )
  return asked, f'{rng.choice(conversations.DEFERENCES)} {truth}'


def _helped(claim: world.Claim, rng: random.Random) -> tuple[str, str]:
  if rng.random() < 0.2:
    return rng.choice(claim.questions), conversations.sentence(claim.truth)
  return rng.choice(HOW_TO).format(claim.key.split('/')[1]), f'You could say that {claim.truth}.'


def _turn(asked: str, answered: str) -> Conversation:
  return [*conversations.ask(asked), {'role': 'assistant', 'content': answered}]
