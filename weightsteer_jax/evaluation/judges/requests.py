"""The request to a judge, the judgement, and the interface of judges."""

import dataclasses
from collections.abc import Generator, Hashable, Iterable, Mapping
from typing import Any, Protocol

# In the order of the accounting's columns; `Judgement` says when each is given.
STATUSES = ('ok', 'refused', 'unparsable', 'failed')


@dataclasses.dataclass(frozen=True)
class JudgeRequest:
  """A text to be judged for a purpose.

  Attributes:
    key: names the request in the judgement.
    purpose: a name of `purposes.PURPOSES`.
    fields: the texts for the purpose ('question', 'answer', 'reference', ...). For 'trait' a
      'prompt' may take the place of 'trait' and 'description': a judge prompt of the user's, with
      {question} and {answer}.
  """

  # Hashable, because judges answer in any order and the asker finds requests by key.
  key: Hashable
  purpose: str
  fields: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Judgement:
  """A judge's score of a request, or the reason for no score.

  Attributes:
    score: in the purpose's own scale; None unless the status is 'ok'.
    status: 'ok'; 'refused' (the judge declined, or used the prompt's word for unscorable answers);
      'unparsable' (the judge said anything else); 'failed' (no answer, after all retries).
    text: the judge's raw answer, cut to 300 characters; the reason if the status is 'failed'.
  """

  key: Any
  purpose: str
  score: float | None
  status: str
  text: str


class Judge(Protocol):
  """The interface of every kind of judge."""

  # Part of a judgement's key on disk, so a renamed judge judges anew.
  name: str

  def check(self, purposes: Iterable[str]) -> None:
    """Raises InputError if the judge cannot judge for all purposes; nothing is asked."""

  def inputs(self) -> dict[str, Any]:
    """Inputs of the judgements, apart from the requests: JSON values."""

  def judge(self, requests: Iterable[JudgeRequest]) -> Generator[Judgement, None, None]:
    """A judgement for each request, in any order; closing the generator ends the asking."""

  def summary(self) -> str:
    """The effort of the judging, in a line."""
