"""Refusals of a request, in the shape of OpenAI's errors.

Source: openai-python 3.57, `APIStatusError` and what it reads of a body.
"""

from typing import Any


class Refusal(Exception):
  """A request that is not answered.

  Attributes:
    status: of HTTP.
    message: one line for the client.
    param: the field that is wrong; None for none.
    code: a word that programs can compare; None for none.
    headers: further headers of the reply.
  """

  def __init__(
    self,
    message: str,
    *,
    status: int = 400,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
  ):
    super().__init__(message)
    self.message = message
    self.status = status
    self.param = param
    self.code = code
    self.headers = headers or {}

  def body(self) -> dict[str, Any]:
    """The reply's body."""
    kinds = {401: 'authentication_error', 404: 'not_found_error', 429: 'rate_limit_error'}
    kind = 'server_error' if self.status >= 500 else kinds.get(self.status, 'invalid_request_error')
    error = {'message': self.message, 'type': kind, 'param': self.param, 'code': self.code}
    return {'error': error}
