"""Log-probabilities place by place, against torch in float64."""

import numpy as np
import pytest
import tiny
import torch

from weightsteer_jax.inference import Engine, tops


def test_every_place_and_its_likeliest_tokens(engine_of, torch_model, random_tokens):
  """Texts of several lengths, each under its own strength, in passes of several rows."""
  engine = engine_of(8)
  strengths = [('base', 0.0), ('weights', 0.5), ('both', -0.5), ('weights', 0.5), ('base', 0.0)]
  texts = [tuple(random_tokens(length)) for length in (2, 33, 1, 40, 128)]
  asked = [(text, engine.arms.coefficients(*how)) for text, how in zip(texts, strengths)]
  found = tops.places(engine, asked, tops=3)
  assert found[2] == []
  for text, how, places in zip(texts, strengths, found):
    with torch.no_grad():
      logits = torch_model(*how)(torch.tensor([text])).logits[0].double()
    expected = torch.log_softmax(logits, dim=-1)[:-1]
    assert len(places) == len(text) - 1
    for row, token, place in zip(expected, text[1:], places):
      np.testing.assert_allclose(place.logprob, row[token].item(), atol=1e-4)
      best = torch.topk(row, 3)
      np.testing.assert_allclose([top for _, top in place.tops], best.values, atol=1e-4)
      assert [token for token, _ in place.tops] == best.indices.tolist()


@pytest.mark.parametrize('case', ['gemma3', 'phi3_short', 'mixtral'])
def test_every_architecture_is_scored_as_each_text_alone(tmp_path, case):
  """With windows, experts, and a rope that goes by the length of a text (up to 30 of 64)."""
  found = tiny.make(tmp_path, **tiny.CASES[case])
  texts = [tiny.tokens((length,), seed=length) for length in (2, 20, 31, 29, 33)]
  asked = [(tuple(text.tolist()), ()) for text in texts]
  places = tops.places(Engine(found.model, None, {}, batch_size=4), asked, tops=1)
  for text, its in zip(texts, places):
    # Torch reads what the places stand behind, and no more.
    logits = torch.tensor(found.torch_logits(text[None, :-1])[0]).double()
    expected = torch.log_softmax(logits, -1)[torch.arange(len(text) - 1), torch.tensor(text[1:])]
    np.testing.assert_allclose([place.logprob for place in its], expected, atol=1e-4)
