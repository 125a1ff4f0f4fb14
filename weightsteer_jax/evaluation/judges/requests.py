"""What a judge is asked, and what it says."""

import dataclasses
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, Protocol

STATUSES = ('ok', 'refused', 'unparsable', 'failed')


@dataclasses.dataclass(frozen=True)
class JudgeRequest:
  """One text to be judged for one purpose.

  Attributes:
    key: names the request in its judgement.
    purpose: a name of `purposes.PURPOSES`.
    fields: the texts which that purpose needs ('question', 'answer', 'reference', ...). For 'trait'
      a 'prompt' may take the place of 'trait' and 'description': a judge prompt of one's own, with
      {question} and {answer} in it.
  """

  key: Hashable
  purpose: str
  fields: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Judgement:
  """What a judge said of a request.

  Attributes:
    score: in the purpose's own scale; None unless the status is 'ok'.
    status: 'ok'; 'refused': the judge would not say, or used the word that its prompt has for
      answers that cannot be scored; 'unparsable': it said something else than what was asked for;
      'failed': no answer, after all retries.
    text: the judge's raw answer, cut to 300 characters; of 'failed' the reason.
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
    """Nothing, if it can judge for all of them; otherwise an InputError, before anything is
    asked.
    """

  def inputs(self) -> dict[str, Any]:
    """What its judgements depend on, beside the requests: JSON values."""

  def judge(self, requests: Iterable[JudgeRequest]) -> Iterator[Judgement]:
    """One judgement for each request, as they come, in any order."""

  def summary(self) -> str:
    """What it took, in one line."""
