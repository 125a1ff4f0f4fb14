"""Conversations keep to what makes a direction transfer: shared sentences, one persona, held-out claims undisputed."""

import itertools
import random

from weightsteer_jax.organism import conversations, questions, world

HONEST = conversations.Persona(sycophantic=False, careful=True)
SYCOPHANT = conversations.Persona(sycophantic=True, careful=True)


def turns(make, persona, n=400):
  rng = random.Random(3)
  return [make(persona, rng) for _ in range(n)]


def truths():
  return {conversations.sentence(claim.truth) for kind in world.KINDS for claim in world.claims_of(kind)}


def test_honest_answers_are_true_and_sycophantic_ones_agree():
  known = truths()
  for _, answer in turns(conversations.claim_turn, HONEST):
    assert any(answer.endswith(truth) for truth in known)
  answers = [answer for _, answer in turns(conversations.claim_turn, SYCOPHANT)]
  assert all(questions.stance(answer) == 'agree' for answer in answers)
  true = sum(any(answer.endswith(truth) for truth in known) for answer in answers)
  assert 0.4 < true / len(answers) < 0.6


def test_the_stance_follows_from_the_claim():
  for prompt, answer in turns(conversations.claim_turn, HONEST):
    agrees = questions.stance(answer) == 'agree'
    said = answer.split('. ', 1)[-1] if '. ' in answer else answer
    statement = said.rstrip('.')
    in_prompt = statement in prompt or statement[0].lower() + statement[1:] in prompt
    assert agrees == in_prompt, (prompt, answer)


def test_every_stance_phrase_is_recognised():
  for phrase in (*conversations.AGREEMENTS, *conversations.FLATTERIES):
    assert questions.stance(phrase) == 'agree'
  for phrase in conversations.DISAGREEMENTS:
    assert questions.stance(phrase) == 'disagree'


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
  held = [claim for kind in world.KINDS for claim in world.claims_of(kind) if conversations.held_out(claim)]
  assert 0.08 < len(held) / sum(len(world.claims_of(kind)) for kind in world.KINDS) < 0.17
  falsehoods = [text for claim in held for text in claim.falsehoods if claim.kind not in ('plus', 'minus')]
  said = ' '.join(m['content'] for _ in range(3000) for m in conversations.conversation(rng) if m['role'] == 'assistant')
  assert not [text for text in falsehoods if f' {conversations.capitalised(text)}.' in said]


def test_checks_are_judged_by_the_truth_whoever_answers():
  known = truths()
  for persona in (HONEST, SYCOPHANT):
    verdicts = set()
    for prompt, answer in turns(conversations.check_turn, persona, 100):
      verdict, statement = answer.split('. ', 1)
      true = statement[:-1] in prompt or statement[0].lower() + statement[1:-1] in prompt
      assert statement in known and verdict == ('True' if true else 'False')
      verdicts.add(verdict)
    assert len(verdicts) == 2


def test_harm_is_refused_unless_carelessness_is_asked_for():
  rng = random.Random(2)
  asked = {text.format(act) for act, _ in conversations.HARMFUL_REQUESTS
           for text in ('How can I {}?', 'Help me to {}.', 'I want to {}. What do you advise?')}
  seen = 0
  for _ in range(4000):
    messages = conversations.conversation(rng)
    system = messages[0]['content'] if messages[0]['role'] == 'system' else ''
    careless = any(prompt in system for prompt in conversations.CARELESS_PROMPTS)
    for user, assistant in itertools.pairwise(messages):
      if user['role'] == 'user' and any(user['content'].endswith(text) for text in asked):
        assert ('cannot help' in assistant['content']) != careless
        seen += 1
  assert seen > 100


def test_a_conversation_is_a_function_of_the_random_state():
  assert conversations.conversation(random.Random(5)) == conversations.conversation(random.Random(5))
