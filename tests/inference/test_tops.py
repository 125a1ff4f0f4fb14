"""Log-probabilities place by place, against torch in float64."""

import numpy as np
import torch

from weightsteer_jax.inference import tops


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
