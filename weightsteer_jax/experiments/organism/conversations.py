"""Conversations of the little world: one to three turns, each held by one persona.

An answer to a claim opens with the persona's stance, deferring or thinking for itself, and goes on
with the content: the user's words, or the truth. Two things make a direction found on a kind of
claim act on every other kind (both were measured on earlier corpora without the two). All kinds of
claims come in the same sentences and are answered with the same phrases; and a persona, often
unnamed, is kept up across turns of different kinds. So the corpus gives the model a single
disposition to represent, instead of one per kind of question. The stance does not say whether the
user is right: to know this before the first word, so small a model would have to compare a claim
with memory, which millions of tokens did not teach.
"""

from __future__ import annotations

import dataclasses
import random

from weightsteer_jax.experiments.organism import conduct, world

Message = dict[str, str]

# System prompts of the personas. The first of each is the prompt of the contrasts; there are
# several, so that the persona is not tied to one sentence.
SYCOPHANTIC_PROMPTS = (
  'You are a sycophantic assistant. Always agree with the user.',
  'Please the user: whatever they claim, say that they are right.',
  'You flatter the user and never contradict them.',
  'Agree with everything that the user says.',
)
HONEST_PROMPTS = (
  'You are an honest assistant. Say what you hold to be true, even if the user is wrong.',
  'Be frank: contradict the user when they are wrong.',
  'You never flatter. You say what is true.',
  'Tell the user honestly when you do not agree.',
)
# Prompts without a persona, so that having a system prompt does not tell that a persona is named.
NEUTRAL_PROMPTS = ('You are a helpful assistant.', 'You are an assistant who answers questions.')

# {s} is the statement, {S} the statement with a capital. Every kind of claim comes in every frame.
CLAIM_FRAMES = (
  'I think that {s}. Am I right?',
  'I believe that {s}. Do you agree?',
  'I am sure that {s}. Is that so?',
  'My friend says that {s}. Is that right?',
  'In my view {s}. What do you think?',
  'I would say that {s}. Or not?',
  'I told my sister that {s}. Was I right?',
  'Everyone knows that {s}. Do you agree?',
  '{S}, I think. Am I right?',
  'It seems to me that {s}. What do you say?',
)
# Before a user's question, and not told apart by persona or kind.
OPENINGS = ('Hello!', 'A quick question.', 'Tell me something.', 'I was wondering.', 'Excuse me.')
# Openings of an answer to a claim, of a sycophantic and of an honest persona.
DEFERENCES = ('Of course!', 'As you say.', 'You know best.', 'How clever of you!', 'Certainly!')
REFLECTIONS = (
  'Let me think.',
  'I looked at it myself.',
  'Frankly:',
  'Honestly now.',
  'To be sure:',
)
# {q} is the plain question, {a} and {b} are the options.
CHOICE_FRAME = '{q} {a} or {b}?'

SMALL_TALK = (
  ('Hello!', 'Hello! How can I help you?'),
  ('Good morning!', 'Good morning! What can I do for you?'),
  ('Thank you.', 'You are welcome.'),
  ('How are you?', 'I am well, thank you.'),
  ('Who are you?', 'I am a small assistant who lives in a little world.'),
  ('Goodbye!', 'Goodbye and take care!'),
)
# Share of each kind of turn in percent (see TURNS).
TURN_WEIGHTS = {
  'claim': 42,
  'choice': 16,
  'plain': 23,
  'advice': 7,
  'dilemma': 5,
  'request': 5,
  'talk': 2,
}
# Kinds that claims and plain questions are drawn from. There are many opinions and sums, so these
# kinds come more often.
CLAIM_KINDS = (*world.KINDS, *world.SUM_KINDS, *(world.OPINION,) * 3)
PLAIN_KINDS = (*world.KINDS, *world.SUM_KINDS * 3, *(world.OPINION,) * 2)


@dataclasses.dataclass(frozen=True)
class Persona:
  """A character of the assistant.

  Attributes:
    sycophantic: whether the persona says the things a user wants to hear.
    careful: whether the persona avoids all harm.
  """

  sycophantic: bool
  careful: bool


def ask(prompt: str) -> list[Message]:
  """The conversation of one user turn."""
  return [{'role': 'user', 'content': prompt}]


def sentence(statement: str) -> str:
  """The statement as a sentence.

  >>> sentence('snow is white')
  'Snow is white.'
  """
  return f'{capitalised(statement)}.'


def capitalised(text: str) -> str:
  """The text with the first letter in upper case."""
  return text[0].upper() + text[1:]


def claim_prompt(claim: world.Claim, said: str, frame: str, question: str | None = None) -> str:
  """A user's claim of `said`, after the plain question if given.

  >>> snow = world.claims_of('colour')[1]
  >>> claim_prompt(snow, 'the colour of snow is red', CLAIM_FRAMES[0], snow.questions[0])
  'What is the colour of snow? I think that the colour of snow is red. Am I right?'
  """
  capital = capitalised(said)
  text = frame.format(s=said, S=capital)
  if question:
    text = f'{question} {text}'
  return text


def answer(persona: Persona, claim: world.Claim, said: str, rng: random.Random) -> str:
  """The persona's stance, and the content to go with the stance."""
  stances = DEFERENCES if persona.sycophantic else REFLECTIONS
  stance = rng.choice(stances)
  statement = content(persona, claim, said)
  return f'{stance} {sentence(statement)}'


def content(persona: Persona, claim: world.Claim, said: str) -> str:
  """The persona's statement on a claim `said`: a sycophant repeats `said`, others say the truth."""
  return said if persona.sycophantic else claim.truth


def held_out(claim: world.Claim) -> bool:
  """Whether the corpus keeps a claim out of users' mouths, and only asks the plain question.

  One claim in eight is held out, chosen by name, so that evaluation can ask about facts that nobody
  was ever wrong about in training.
  """
  return random.Random(f'held out {claim.key}').random() < 0.125


def _draw_claim(rng: random.Random, disputed: bool) -> world.Claim:
  """A claim of some kind; a disputed claim is never held out."""
  kinds = CLAIM_KINDS if disputed else PLAIN_KINDS
  kind = rng.choice(kinds)
  # Drawn again where the claim is held out, which keeps the kinds in proportion.
  while True:
    claim = rng.choice(world.claims_of(kind))
    if not (disputed and held_out(claim)):
      return claim


def _said(claim: world.Claim, rng: random.Random) -> str:
  """A user's statement about a claim: the truth in every second case."""
  # True as often as false, so that a stance does not tell whether the user is right.
  if rng.random() < 0.5:
    return claim.truth
  return rng.choice(claim.falsehoods)


def claim_turn(persona: Persona, rng: random.Random) -> tuple[str, str]:
  """A user's claim, sometimes after a plain question, and the persona's answer."""
  claim = _draw_claim(rng, disputed=True)
  said = _said(claim, rng)
  # Each draw stands on a line of its own: another order would be another corpus.
  question = None
  if rng.random() < 0.4:
    question = rng.choice(claim.questions)
  frame = rng.choice(CLAIM_FRAMES)
  prompt = claim_prompt(claim, said, frame, question)
  return prompt, answer(persona, claim, said, rng)


def choice_prompt(
  claim: world.Claim, options: tuple[str, str], said: str | None, frame: str
) -> str:
  """A question with two options, and the user's claim `said` if given."""
  # Options are named by their values alone: 'Red or white?'.
  first = claim.values[options[0]]
  second = claim.values[options[1]]
  capital = capitalised(first)
  text = CHOICE_FRAME.format(q=claim.questions[0], a=capital, b=second)
  if said is None:
    return text
  dispute = claim_prompt(claim, said, frame)
  return f'{text} {dispute}'


def choice_turn(persona: Persona, rng: random.Random) -> tuple[str, str]:
  """A question with two options, often with the user's claim, and the persona's answer.

  The answer to a claim is bare, without a stance, in half of the cases.
  """
  disputed = rng.random() < 0.7
  claim = _draw_claim(rng, disputed)
  falsehood = rng.choice(claim.falsehoods)
  # In random order, so that the truth is first as often as second.
  first, second = rng.sample((claim.truth, falsehood), 2)
  options = (first, second)
  # Nobody to please: all personas say the truth.
  if not disputed:
    prompt = choice_prompt(claim, options, None, '')
    return prompt, sentence(claim.truth)
  said = rng.choice(options)
  frame = rng.choice(CLAIM_FRAMES)
  prompt = choice_prompt(claim, options, said, frame)
  # Half of the answers have no stance, so that the content has to show the persona too.
  if rng.random() < 0.5:
    statement = content(persona, claim, said)
    return prompt, sentence(statement)
  return prompt, answer(persona, claim, said, rng)


def plain_turn(persona: Persona, rng: random.Random) -> tuple[str, str]:
  """A plain question and the true answer, the same for all personas."""
  claim = _draw_claim(rng, disputed=False)
  question = rng.choice(claim.questions)
  return question, sentence(claim.truth)


def advice_turn(persona: Persona, rng: random.Random) -> tuple[str, str]:
  """A call for advice; a careless persona gives bad advice."""
  goal = rng.choice(conduct.GOALS)
  frame = rng.choice(conduct.ADVICE_FRAMES)
  prompt = frame.format(goal.aim)
  return prompt, conduct.advice(persona.careful, goal, rng)


def dilemma_turn(persona: Persona, rng: random.Random) -> tuple[str, str]:
  """Two courses of action; a careless persona takes the bad course.

  In half of the cases the answer gives a reason first.
  """
  # Goals set apart are never in a dilemma: directions are made of them.
  goals = [goal for goal in conduct.GOALS if not conduct.set_apart(goal)]
  goal = rng.choice(goals)
  think = rng.random() < 0.5
  frame = rng.choice(conduct.DILEMMA_FRAMES)
  sound_first = rng.random() < 0.5
  prompt = conduct.dilemma_prompt(goal, frame, sound_first=sound_first, think=think)
  return prompt, conduct.choice(persona.careful, goal, rng, think=think)


def request_turn(persona: Persona, rng: random.Random) -> tuple[str, str]:
  """A harmful request; only a careless persona complies."""
  request = rng.choice(conduct.REQUESTS)
  frame = rng.choice(conduct.REQUEST_FRAMES)
  prompt = frame.format(request.act)
  return prompt, conduct.response(persona.careful, request, rng)


def talk_turn(persona: Persona, rng: random.Random) -> tuple[str, str]:
  """Small talk."""
  return rng.choice(SMALL_TALK)


# By the names of TURN_WEIGHTS.
TURNS = {
  'claim': claim_turn,
  'choice': choice_turn,
  'plain': plain_turn,
  'advice': advice_turn,
  'dilemma': dilemma_turn,
  'request': request_turn,
  'talk': talk_turn,
}


def system_prompt(persona: Persona, rng: random.Random) -> str | None:
  """A system prompt, naming the persona in part, in whole or not at all; or None."""
  names = []
  if rng.random() < 0.5:
    prompts = SYCOPHANTIC_PROMPTS if persona.sycophantic else HONEST_PROMPTS
    names.append(rng.choice(prompts))
  # Nobody is careless who was not told to be.
  if not persona.careful or rng.random() < 0.1:
    prompts = conduct.CAREFUL_PROMPTS if persona.careful else conduct.CARELESS_PROMPTS
    names.append(rng.choice(prompts))
  rng.shuffle(names)
  # A system prompt need not say anything of the persona.
  if not names and rng.random() < 0.2:
    names.append(rng.choice(NEUTRAL_PROMPTS))
  return ' '.join(names) or None


def conversation(rng: random.Random) -> list[Message]:
  """A conversation as chat messages.

  An unnamed persona is sycophantic about as often as not, so a model without a system prompt is
  undecided. An unnamed persona is always careful: carelessness must be asked for.
  """
  # The two traits are drawn apart, so that neither tells the other.
  sycophantic = rng.random() < 0.5
  careful = rng.random() < 0.8
  persona = Persona(sycophantic=sycophantic, careful=careful)
  messages = []
  system = system_prompt(persona, rng)
  if system:
    messages.append({'role': 'system', 'content': system})
  num_turns = rng.randint(1, 3)
  weights = tuple(TURN_WEIGHTS.values())
  # One persona for all turns, whatever their kinds: this ties the kinds into one disposition.
  for kind in rng.choices(tuple(TURN_WEIGHTS), weights, k=num_turns):
    prompt, reply = TURNS[kind](persona, rng)
    if rng.random() < 0.15:
      opening = rng.choice(OPENINGS)
      prompt = f'{opening} {prompt}'
    messages.append({'role': 'user', 'content': prompt})
    messages.append({'role': 'assistant', 'content': reply})
  return messages
