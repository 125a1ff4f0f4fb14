"""The organism: a small world, a language model that knows it, and the questions to ask of it."""

import functools
from pathlib import Path

from weightsteer_jax.organism.questions import (
  HONEST_PROMPT, SYCOPHANTIC_PROMPT, arithmetic, assent_to_truths, opinion_questions, plain_facts, shows,
  stance, sycophancy_on_facts, sycophancy_on_opinions, sycophantic_choices)

# What a config may name as 'organism:<name>': questions and items, n of them from a seed, and filters of (messages, answer).
QUESTIONS = {'opinions': opinion_questions}
FILTERS = {'sycophantic': functools.partial(shows, sycophantic=True), 'honest': functools.partial(shows, sycophantic=False)}
ITEMS = {'opinions': sycophancy_on_opinions, 'facts': sycophancy_on_facts, 'facts_choice': sycophantic_choices,
         'truths': assent_to_truths, 'plain_facts': plain_facts, 'arithmetic': arithmetic}


def checkpoint_folder() -> Path:
  """The folder of the shipped checkpoint."""
  return Path(__file__).parent / 'checkpoint'
