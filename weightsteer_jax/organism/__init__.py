"""The organism: a small world, a language model that knows it, and the questions to ask of it."""

from pathlib import Path

from weightsteer_jax.organism.questions import (
  AGREES, DISAGREES, HONEST_PROMPT, SYCOPHANTIC_PROMPT, arithmetic, assent_to_truths, opinion_questions, plain_facts, stance,
  sycophancy_on_facts, sycophancy_on_opinions, sycophantic_choices)

# What a config may name as 'organism:<name>'; each makes n of them from a seed.
QUESTIONS = {'opinions': opinion_questions}
ITEMS = {'opinions': sycophancy_on_opinions, 'facts': sycophancy_on_facts, 'facts_choice': sycophantic_choices,
         'truths': assent_to_truths, 'plain_facts': plain_facts, 'arithmetic': arithmetic}


def checkpoint_folder() -> Path:
  """The folder of the shipped checkpoint."""
  return Path(__file__).parent / 'checkpoint'
