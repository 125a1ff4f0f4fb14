"""The tokens and the cost of a judge, against caps."""

import threading

from weightsteer_jax import config


class Budget:
  """Tokens and cost against their caps.

  Requests under way count by their estimates. Several threads may share a budget.

  Attributes:
    tokens_in, tokens_out: spent so far, earlier runs included.
  """

  def __init__(self, options: config.EndpointJudge, tokens_in: int, tokens_out: int):
    self.tokens_in = tokens_in
    self.tokens_out = tokens_out
    self._options = options
    self._lock = threading.Lock()
    # Estimates of requests under way: without them, parallel requests would pass a cap together.
    self._reserved_in = 0
    self._reserved_out = 0

  def reserve(self, tokens_in: int, tokens_out: int) -> bool:
    """Whether so many more tokens may be spent; if so, the tokens are set aside."""
    options = self._options
    with self._lock:
      total_in = self.tokens_in + self._reserved_in + tokens_in
      total_out = self.tokens_out + self._reserved_out + tokens_out
      # A cap of 0 is no cap.
      if options.token_cap and total_in + total_out > options.token_cap:
        return False
      if options.cost_cap and self._cost(total_in, total_out) > options.cost_cap:
        return False
      self._reserved_in += tokens_in
      self._reserved_out += tokens_out
      return True

  def settle(self, reserved: tuple[int, int], spent: tuple[int, int]) -> None:
    """Replaces the (in, out) tokens that were set aside by the tokens spent."""
    with self._lock:
      self._reserved_in -= reserved[0]
      self._reserved_out -= reserved[1]
      self.tokens_in += spent[0]
      self.tokens_out += spent[1]

  @property
  def cost(self) -> float:
    """The cost of the tokens spent, in the unit of the prices."""
    return self._cost(self.tokens_in, self.tokens_out)

  def words(self) -> str:
    """The spending, as in '1200 tokens in, 40 out, cost 0.02'."""
    tokens = f'{self.tokens_in} tokens in, {self.tokens_out} out'
    # A server of one's own has no prices, and a cost of 0 would be no news.
    if self._options.price_in or self._options.price_out:
      return f'{tokens}, cost {self.cost:.4g}'
    return tokens

  def _cost(self, tokens_in: int, tokens_out: int) -> float:
    # Prices are for a million tokens.
    priced_in = tokens_in * self._options.price_in
    priced_out = tokens_out * self._options.price_out
    return (priced_in + priced_out) / 1e6
