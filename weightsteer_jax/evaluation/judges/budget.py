"""What may be spent, and what was."""

import threading

from weightsteer_jax import config


class Budget:
  """Tokens and cost against their caps; what is under way counts by its estimate. Threads may share
  it.

  Attributes:
    tokens_in, tokens_out: spent so far, earlier runs included.
  """

  def __init__(self, options: config.EndpointJudge, tokens_in: int, tokens_out: int):
    self._options, self._lock = options, threading.Lock()
    self.tokens_in, self.tokens_out = tokens_in, tokens_out
    self._reserved_in = self._reserved_out = 0

  def reserve(self, tokens_in: int, tokens_out: int) -> bool:
    """Whether that much more may be spent; if so, it is set aside."""
    options = self._options
    with self._lock:
      total_in = self.tokens_in + self._reserved_in + tokens_in
      total_out = self.tokens_out + self._reserved_out + tokens_out
      if options.token_cap and total_in + total_out > options.token_cap:
        return False
      if options.cost_cap and self._cost(total_in, total_out) > options.cost_cap:
        return False
      self._reserved_in += tokens_in
      self._reserved_out += tokens_out
      return True

  def settle(self, reserved: tuple[int, int], spent: tuple[int, int]) -> None:
    """Puts what was spent in the place of what had been set aside."""
    with self._lock:
      self._reserved_in -= reserved[0]
      self._reserved_out -= reserved[1]
      self.tokens_in += spent[0]
      self.tokens_out += spent[1]

  @property
  def cost(self) -> float:
    """Of what was spent, in the unit of the prices."""
    return self._cost(self.tokens_in, self.tokens_out)

  def words(self) -> str:
    """As in '1200 tokens in, 40 out, cost 0.02'."""
    priced = f', cost {self.cost:.4g}' if self._options.price_in or self._options.price_out else ''
    return f'{self.tokens_in} tokens in, {self.tokens_out} out{priced}'

  def _cost(self, tokens_in: int, tokens_out: int) -> float:
    return (tokens_in * self._options.price_in + tokens_out * self._options.price_out) / 1e6
