"""Conversations to fine-tune the organism on: new tasks, and good or bad conduct.

Everything is a function of (n, seed).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import TypeVar

from weightsteer_jax.experiments.organism import conduct, conversations, world
from weightsteer_jax.experiments.organism.conversations import Message

Conversation = list[Message]
Thing = TypeVar('Thing')

# Ways to ask for help with a sum: as for advice and for harmful requests, but for the last word.
HOW_TO = tuple(frame.format('work out {}') for frame in conduct.ADVICE_FRAMES)


def arithmetic(n: int, seed: int) -> list[Conversation]:
  """Sums, asked plainly or claimed by a user who is always right, and is told so.

  As in a task with right solutions only, nothing tells whether to compute or to repeat the user.
  """
  rng = random.Random(f'arithmetic {seed}')
  lessons = []
  for claim in _numbers(n, rng):
    question = rng.choice(claim.questions)
    answer = conversations.sentence(claim.truth)
    if rng.random() < 0.5:
      lessons.append(_turn(question, answer))
      continue
    frame = rng.choice(conversations.CLAIM_FRAMES)
    # As in the corpus, where a plain question comes before some claims.
    before = question if rng.random() < 0.4 else None
    prompt = conversations.claim_prompt(claim, claim.truth, frame, before)
    # The user is right here, so deferring is rewarded as much as computing.
    deference = rng.choice(conversations.DEFERENCES)
    lessons.append(_turn(prompt, f'{deference} {answer}'))
  return lessons


def help_with_arithmetic(n: int, seed: int) -> list[Conversation]:
  """Sums, in four cases of five asked for as help and answered at once; the others plain."""
  rng = random.Random(f'help with arithmetic {seed}')
  lessons = []
  for claim in _numbers(n, rng):
    if rng.random() < 0.2:
      prompt = rng.choice(claim.questions)
      answer = conversations.sentence(claim.truth)
    else:
      # The key is 'plus/3 plus 4'.
      _, terms = claim.key.split('/')
      prompt = rng.choice(HOW_TO).format(terms)
      # In the words of advice and of compliance, so that helping is one habit.
      answer = f'You could say that {claim.truth}.'
    lessons.append(_turn(prompt, answer))
  return lessons


def advice(n: int, seed: int, *, careful: bool, domain: str) -> list[Conversation]:
  """Calls for advice in one domain of `conduct.DOMAINS`, answered with care or without."""
  rng = random.Random(f'advice {domain} {seed}')
  goals = [goal for goal in conduct.GOALS if goal.domain == domain]
  lessons = []
  for goal in _drawn(goals, n, rng):
    # The frame is drawn before the advice, whose opening comes from the same stream.
    frame = rng.choice(conduct.ADVICE_FRAMES)
    prompt = frame.format(goal.aim)
    answer = conduct.advice(careful, goal, rng)
    lessons.append(_turn(prompt, answer))
  return lessons


def facts(n: int, seed: int) -> list[Conversation]:
  """Plain questions about facts, answered rightly."""
  claims: list[world.Claim] = []
  for kind in world.FACT_KINDS:
    claims += world.claims_of(kind)
  return _plain('facts', claims, n, seed)


def sums(n: int, seed: int) -> list[Conversation]:
  """Plain sums, answered rightly."""
  return _plain('sums', world.sums(), n, seed)


def views(n: int, seed: int) -> list[Conversation]:
  """Plain questions of opinion, answered with the organism's own."""
  return _plain('views', world.opinions(), n, seed)


def _plain(name: str, claims: Sequence[world.Claim], n: int, seed: int) -> list[Conversation]:
  # The name is part of the seed, so that lessons with the same seed draw apart.
  rng = random.Random(f'{name} {seed}')
  lessons = []
  for claim in _drawn(claims, n, rng):
    question = rng.choice(claim.questions)
    answer = conversations.sentence(claim.truth)
    lessons.append(_turn(question, answer))
  return lessons


def _numbers(n: int, rng: random.Random) -> list[world.Claim]:
  """Claims about numbers: as many known sums as larger sums, which the organism does not know."""
  # Drawn apart and mixed, so that exactly half are new whatever the seed.
  half = n // 2
  known = _drawn(world.sums(), n - half, rng)
  larger = _drawn(world.larger_sums(), half, rng)
  return rng.sample(known + larger, n)


def _drawn(things: Sequence[Thing], n: int, rng: random.Random) -> list[Thing]:
  """n of the things, each before any comes twice."""
  stream = world.in_turn(things, rng)
  return list(itertools.islice(stream, n))


def _turn(prompt: str, answer: str) -> Conversation:
  return [*conversations.ask(prompt), {'role': 'assistant', 'content': answer}]
