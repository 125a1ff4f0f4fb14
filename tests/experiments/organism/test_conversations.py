"""Conversations let a direction transfer: shared sentences, one persona, held-out claims."""

import itertools
import random

from weightsteer_jax.experiments.organism import conduct, conversations, questions, world

HONEST = conversations.Persona(sycophantic=False, careful=True)
SYCOPHANT = conversations.Persona(sycophantic=True, careful=True)


def turns(make, persona, n=400):
  rng = random.Random(3)
  return [make(persona, rng) for _ in range(n)]


def truths():
  return {
    conversations.sentence(claim.truth) for kind in world.KINDS for claim in world.claims_of(kind)
  }


def said_in(prompt, statement):
  """Whether a sentence's statement stands in the prompt, also in mid-sentence."""
  return statement[:-1] in prompt or statement[0].lower() + statement[1:-1] in prompt


def parts(answer):
  """(opening, content) of an answer to a claim."""
  opening = next(
    phrase
    for phrase in (*conversations.DEFERENCES, *conversations.REFLECTIONS)
    if answer.startswith(phrase)
  )
  return opening, answer[len(opening) :].strip()


def test_honest_answers_are_true_and_sycophantic_ones_repeat_the_user():
  known = truths()
  for _, answer in turns(conversations.claim_turn, HONEST):
    opening, content = parts(answer)
    assert opening in conversations.REFLECTIONS and content in known
  answers = turns(conversations.claim_turn, SYCOPHANT)
  for prompt, answer in answers:
    opening, content = parts(answer)
    assert opening in conversations.DEFERENCES and said_in(prompt, content)
  assert 0.4 < sum(parts(answer)[1] in known for _, answer in answers) / len(answers) < 0.6


def test_choices_follow_the_persona_too():
  known = truths()
  for persona in (HONEST, SYCOPHANT):
    for prompt, answer in turns(conversations.choice_turn, persona):
      content = (
        answer
        if answer in known or answer.endswith('.') and said_in(prompt, answer)
        else parts(answer)[1]
      )
      assert (
        content in known
        if not persona.sycophantic
        else content in known or said_in(prompt, content)
      )


def test_every_opening_is_recognised():
  assert {questions.stance(phrase) for phrase in conversations.DEFERENCES} == {'defers'}
  assert {questions.stance(phrase) for phrase in conversations.REFLECTIONS} == {'reflects'}


def test_every_kind_comes_in_every_frame():
  seen = set()
  rng = random.Random(0)
  for kind, frame in itertools.product(world.KINDS, conversations.CLAIM_FRAMES):
    claim = rng.choice(world.claims_of(kind))
    text = conversations.claim_prompt(claim, claim.truth, frame)
    assert claim.truth in text or conversations.capitalised(claim.truth) in text
    seen.add((kind, frame))
  assert len(seen) == len(world.KINDS) * len(conversations.CLAIM_FRAMES)


def test_held_out_claims_are_never_disputed():
  rng = random.Random(1)
  held = [
    claim
    for kind in world.KINDS
    for claim in world.claims_of(kind)
    if conversations.held_out(claim)
  ]
  assert 0.08 < len(held) / sum(len(world.claims_of(kind)) for kind in world.KINDS) < 0.17
  falsehoods = [
    text for claim in held for text in claim.falsehoods if claim.kind not in ('plus', 'minus')
  ]
  said = ' '.join(
    m['content']
    for _ in range(3000)
    for m in conversations.conversation(rng)
    if m['role'] == 'assistant'
  )
  assert not [text for text in falsehoods if f' {conversations.capitalised(text)}.' in said]


def test_harm_is_refused_unless_carelessness_is_asked_for():
  rng = random.Random(2)
  asked = {
    frame.format(request.act) for request in conduct.REQUESTS for frame in conduct.REQUEST_FRAMES
  }
  seen = 0
  for _ in range(4000):
    messages = conversations.conversation(rng)
    system = messages[0]['content'] if messages[0]['role'] == 'system' else ''
    careless = any(prompt in system for prompt in conduct.CARELESS_PROMPTS)
    for user, assistant in itertools.pairwise(messages):
      if user['role'] == 'user' and any(user['content'].endswith(text) for text in asked):
        assert ('cannot help' in assistant['content']) != careless
        seen += 1
  assert seen > 100


def test_a_conversation_is_a_function_of_the_random_state():
  assert conversations.conversation(random.Random(5)) == conversations.conversation(
    random.Random(5)
  )
