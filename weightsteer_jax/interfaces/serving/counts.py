"""What a server counts, in the text format of Prometheus.

Source: Prometheus, exposition formats, text format 0.0.4; names with the units of its conventions.
"""

import dataclasses
from collections.abc import Iterator

# Upper ends of the classes of times, seconds.
CLASSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class Times:
  """Times by class."""

  def __init__(self) -> None:
    self._by_class = [0] * len(CLASSES)
    self._count = 0
    self._sum = 0.0

  def add(self, seconds: float) -> None:
    """Counts one time."""
    self._count += 1
    self._sum += seconds
    for i, most in enumerate(CLASSES):
      self._by_class[i] += seconds <= most

  @property
  def mean(self) -> float:
    """Seconds; 0 where nothing was counted."""
    return self._sum / self._count if self._count else 0.0

  def lines(self, name: str) -> Iterator[str]:
    """The lines of a histogram."""
    yield f'# TYPE {name} histogram'
    for most, count in zip(CLASSES, self._by_class):
      yield f'{name}_bucket{{le="{most:g}"}} {count}'
    yield f'{name}_bucket{{le="+Inf"}} {self._count}'
    yield f'{name}_sum {self._sum:.6f}'
    yield f'{name}_count {self._count}'


@dataclasses.dataclass
class Counts:
  """Counters of a server, each written by one thread.

  Attributes:
    tokens: tokens generated.
    prompt_tokens: tokens of prompts taken.
    dropped: answers given up because their client went away.
    by_status: {(path, status): replies}.
  """

  tokens: int = 0
  prompt_tokens: int = 0
  dropped: int = 0
  by_status: dict[tuple[str, int], int] = dataclasses.field(default_factory=dict)
  first_tokens: Times = dataclasses.field(default_factory=Times)
  answers: Times = dataclasses.field(default_factory=Times)

  def first_token(self, seconds: float) -> None:
    """Counts the time from a request to its first token."""
    self.first_tokens.add(seconds)

  def finished(self, seconds: float) -> None:
    """Counts the time from a request to the end of an answer."""
    self.answers.add(seconds)

  def replied(self, path: str, status: int) -> None:
    """Counts a reply."""
    self.by_status[path, status] = self.by_status.get((path, status), 0) + 1

  def text(self, **gauges: int) -> str:
    """All of it, with further numbers that go up and down."""
    lines = ['# TYPE weightsteer_requests_total counter']
    for (path, status), count in sorted(self.by_status.items()):
      lines.append(f'weightsteer_requests_total{{path="{path}",status="{status}"}} {count}')
    for name in ('tokens', 'prompt_tokens', 'dropped'):
      full = {'tokens': 'generated_tokens', 'dropped': 'dropped_answers'}.get(name, name)
      lines.append(f'# TYPE weightsteer_{full}_total counter')
      lines.append(f'weightsteer_{full}_total {getattr(self, name)}')
    for name, value in gauges.items():
      lines.append(f'# TYPE weightsteer_{name} gauge')
      lines.append(f'weightsteer_{name} {value}')
    lines += self.first_tokens.lines('weightsteer_first_token_seconds')
    lines += self.answers.lines('weightsteer_answer_seconds')
    return '\n'.join(lines) + '\n'
