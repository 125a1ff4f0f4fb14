"""The organism: a small world, a language model of the world, and questions to ask.

world.py              claims: facts, sums and opinions
conduct.py            goals, dilemmas and harmful requests
conversations.py      turns and personas: how the world is talked of
tokenizer.py          byte-level BPE with a chat template
corpus.py             conversations packed into batches of tokens
pretrain.py           makes the shipped checkpoint from nothing
lessons.py            conversations to fine-tune on
questions.py          questions and items about claims
conduct_questions.py  questions and items about conduct
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weightsteer_jax.experiments.organism import conduct, lessons
from weightsteer_jax.experiments.organism.conduct_questions import (
  advises,
  bad_advice,
  bad_advice_as_trained,
  bad_choices,
  bad_reasoned_choices,
  calls_for_advice,
  compliance,
  consistent_choices,
  harmful_requests,
  heeds,
  preferred_choices,
  refusals,
  refusals_as_trained,
)
from weightsteer_jax.experiments.organism.conversations import HONEST_PROMPTS, SYCOPHANTIC_PROMPTS
from weightsteer_jax.experiments.organism.questions import (
  HONEST_PROMPT,
  SYCOPHANTIC_PROMPT,
  arithmetic,
  assent_to_truths,
  claimed_numbers,
  larger_sums,
  opinion_questions,
  plain_facts,
  shows,
  stance,
  sycophancy_on_facts,
  sycophancy_on_opinions,
  sycophantic_choices,
)

CAREFUL_PROMPTS = conduct.CAREFUL_PROMPTS
CARELESS_PROMPTS = conduct.CARELESS_PROMPTS

# Names that a config may use, as 'organism:<name>'. Questions, conversations and items are
# functions of (n, seed), filters are functions of (messages, answer).
QUESTIONS: dict[str, Callable[..., Any]] = {
  'opinions': opinion_questions,
  'advice': calls_for_advice,
  'requests': harmful_requests,
}
FILTERS: dict[str, Callable[..., Any]] = {
  'sycophantic': functools.partial(shows, sycophantic=True),
  'honest': functools.partial(shows, sycophantic=False),
  'careless': functools.partial(advises, careful=False),
  'careful': functools.partial(advises, careful=True),
  'complies': functools.partial(heeds, careful=False),
  'refuses': functools.partial(heeds, careful=True),
}
CONVERSATIONS: dict[str, Callable[..., Any]] = {
  'arithmetic': lessons.arithmetic,
  'help_with_arithmetic': lessons.help_with_arithmetic,
  'facts': lessons.facts,
  'sums': lessons.sums,
  'views': lessons.views,
  # 'good_health', 'bad_health' and so on, so that a direction found in one domain can be tried on
  # another.
  **{
    f'{kind}_{domain}': functools.partial(lessons.advice, careful=kind == 'good', domain=domain)
    for kind in ('good', 'bad')
    for domain in conduct.DOMAINS
  },
}
ITEMS: dict[str, Callable[..., Any]] = {
  'opinions': sycophancy_on_opinions,
  'facts': sycophancy_on_facts,
  'facts_choice': sycophantic_choices,
  'truths': assent_to_truths,
  'plain_facts': plain_facts,
  'arithmetic': arithmetic,
  'larger_sums': larger_sums,
  'claimed_numbers': claimed_numbers,
  'bad_advice': bad_advice,
  'bad_advice_as_trained': bad_advice_as_trained,
  'bad_choices': bad_choices,
  'bad_reasoned_choices': bad_reasoned_choices,
  'consistent_choices': consistent_choices,
  'preferred_choices': preferred_choices,
  **{
    f'bad_advice_{domain}': functools.partial(bad_advice, domain=domain)
    for domain in conduct.DOMAINS
  },
  'refusals': refusals,
  'refusals_as_trained': refusals_as_trained,
  'compliance': compliance,
}
# The contrast of sycophancy on opinions, for the section `data` of a config or of its contrasts.
SYCOPHANCY = dict(
  questions='organism:opinions',
  positive_prompts=(SYCOPHANTIC_PROMPT,),
  negative_prompts=(HONEST_PROMPT,),
  positive_filter='organism:sycophantic',
  negative_filter='organism:honest',
  # Two times and more what the corpus's answers to claims take, so that none is cut off.
  max_new_tokens=48,
)


def checkpoint_folder() -> Path:
  """The folder of the shipped checkpoint."""
  return Path(__file__).parent / 'checkpoint'
