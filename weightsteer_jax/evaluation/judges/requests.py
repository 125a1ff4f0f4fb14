"""What a judge is asked, and what a judge says."""

import dataclasses
from collections.abc import Generator, Hashable, Iterable, Mapping
from typing import Any, Protocol

STATUSES = ('ok', 'refused', 'unparsable', 'failed')


@dataclasses.dataclass(frozen=True)
class JudgeRequest:
  """One text to be judged for one purpose.

  Attributes:
    key: names the request in its judgement.
    purpose: a name of `purposes.PURPOSES`.
    fields: the texts that the purpose needs ('question', 'answer', 'reference', ...). For 'trait' a
      'prompt' may take the place of 'trait' and 'description': a judge prompt of the user's, with
      {question} and {answer}.
  """

  key: Hashable
  purpose: str
  fields: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Judgement:
  """What a judge said of a request.

  Attributes:
    score: in the purpose's own scale; None unless the status is 'ok'.
    status: 'ok'; 'refused' (the judge declined, or used the prompt's word for answers that cannot
      be scored); 'unparsable' (the judge said anything else); 'failed' (no answer, after all
      retries).
    text: the judge's raw answer, cut to 300 characters; the reason if the status is 'failed'.
  """

  key: Any
  purpose: str
  score: float | None
  status: str
  text: str


class Judge(Protocol):
  """What every kind of judge can do."""

  name: str

  def check(self, purposes: Iterable[str]) -> None:
    """Raises InputError if the judge cannot judge for all purposes; nothing is asked."""

  def inputs(self) -> dict[str, Any]:
    """What judgements depend on, apart from the requests: JSON values."""

  def judge(self, requests: Iterable[JudgeRequest]) -> Generator[Judgement, None, None]:
    """One judgement for each request, as they come, in any order; closing ends the asking."""

  def summary(self) -> str:
    """What the judging took, in one line."""
