"""The errors a user can meet, each with the exit status a launcher or a scheduler acts on.

All deliberate errors of the package are here: with several processes, an error of the main process
is raised on the others too, where the class is found by name (see `processes.on_main`).

The statuses lie in the range of sysexits.h (BSD), apart from those of shells and signals.
"""


class WeightSteerError(Exception):
  """Base of every deliberate error.

  Attributes:
    exit_code: the exit status of a launcher.
  """

  exit_code = 1


class InputError(WeightSteerError):
  """Bad input, data or configuration: mend them before starting again."""

  exit_code = 65


class Conflict(InputError):
  """Another run writes to the same workdir at a URL: end one of the two."""


class EndpointError(WeightSteerError):
  """A service on the network no longer answers: start again later to continue."""

  exit_code = 69


class NotFiniteError(WeightSteerError):
  """A loss, gradient or weight became NaN or infinite."""

  exit_code = 70


class CorruptError(WeightSteerError):
  """Something on disk is cut short or does not match its fingerprint."""

  exit_code = 71


class OutputError(WeightSteerError):
  """Output could not be written whole (a full disk, no permission); no half was left behind."""

  exit_code = 74


class Preempted(WeightSteerError):
  """The scheduler took the machine; the state is saved: start again to continue."""

  exit_code = 75


class Busy(WeightSteerError):
  """Another process writes to the same place: start again when that process has ended."""

  # As after a preemption: a scheduler may start the next attempt while the last one still ends.
  exit_code = 75


class ProcessLost(WeightSteerError):
  """Another process of the run is gone or never came: start all processes again to continue."""

  exit_code = 75
