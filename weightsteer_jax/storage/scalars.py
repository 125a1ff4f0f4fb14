"""Scalars for TensorBoard."""

import pathlib
import time

from weightsteer_jax.runtime.errors import OutputError


class Scalars:
  """A TensorBoard event file, written by the caller's thread.

  The thread of a SummaryWriter dies on a full disk, and leaves its callers waiting for ever.

  Args:
    folder: folder of the event files, a run to TensorBoard.
    resumed_at: TensorBoard is told to forget what was written beyond this step; 0 for nothing.

  Raises:
    OutputError: if the folder cannot be written.
  """

  def __init__(self, folder: pathlib.Path, *, resumed_at: int = 0):
    # Imported late: protobuf is slow to load, and only training needs it.
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    self._event = event_pb2.Event
    self._scalar = summary.scalar
    try:
      folder.mkdir(parents=True, exist_ok=True)
      self._writer = event_file_writer.EventsWriter(str(folder / 'events'))
    except OSError as error:
      raise OutputError(f'{folder} could not be written: {error.strerror or error}') from error
    # Tells TensorBoard to forget what an earlier process wrote beyond this step.
    if resumed_at:
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._writer.write_event(
        self._event(wall_time=time.time(), step=resumed_at + 1, session_log=start)
      )

  def add(self, name: str, value: float, step: int) -> None:
    """Writes a number."""
    self._writer.write_event(
      self._event(wall_time=time.time(), step=step, summary=self._scalar(name, value))
    )

  def close(self) -> None:
    """Ends the file."""
    try:
      self._writer.close()
    # What could not be written also lies in a jsonl file, which has reported it.
    except OSError:
      pass
