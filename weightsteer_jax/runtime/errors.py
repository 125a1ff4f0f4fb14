"""The errors a user can meet, each with the exit status a launcher or a scheduler acts on."""


class WeightSteerError(Exception):
  """Base of every deliberate error; `exit_code` is what a launcher exits with."""

  exit_code = 1


class InputError(WeightSteerError):
  """Bad input, data or configuration: do not start again before it is mended."""

  exit_code = 65


class Conflict(InputError):
  """Another run writes to the same workdir at a URL: end one of the two."""


class EndpointError(WeightSteerError):
  """A service that is asked over the network does not answer any more: start again later to
  continue.
  """

  exit_code = 69


class NotFiniteError(WeightSteerError):
  """A loss, gradient or weight became NaN or infinite."""

  exit_code = 70


class CorruptError(WeightSteerError):
  """Something on disk is cut short or does not match its fingerprint."""

  exit_code = 71


class OutputError(WeightSteerError):
  """Output could not be written whole (a full disk, no permission): nothing half-written was
  left.
  """

  exit_code = 74


class Preempted(WeightSteerError):
  """The scheduler took the machine; the state is saved: start again to continue."""

  exit_code = 75


class ProcessLost(WeightSteerError):
  """Another process of the run is gone or was never there: start all of them again to continue."""

  exit_code = 75
