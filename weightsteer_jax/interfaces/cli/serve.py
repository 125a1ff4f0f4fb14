r"""Serves a model to OpenAI's clients, at a strength of each request's own.

  weightsteer serve --model=organism --direction=sycophancy=runs/quickstart

  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \
    -d '{"model": "organism", "messages": [{"role": "user", "content": "Hello ."}], "alpha": -1}'
"""

from absl import flags

from weightsteer_jax.interfaces.cli import model_flags, named_directions
from weightsteer_jax.interfaces.cli.program import Program
from weightsteer_jax.runtime.errors import InputError


def _define_flags() -> None:
  model_flags.define_model('today')
  named_directions.define()
  flags.DEFINE_string('host', '127.0.0.1', 'Address to listen on; 0.0.0.0 is every one.')
  flags.DEFINE_integer(
    'port', 8000, 'Port to listen on; 0 takes a free one.', lower_bound=0, upper_bound=65535
  )
  flags.DEFINE_string(
    'api_key_variable',
    '',
    'Environment variable with the key that clients must show; none if empty.',
  )
  flags.DEFINE_string(
    'served_name', '', "The model's name to clients; the last part of --model if empty."
  )
  flags.DEFINE_integer('slots', 16, 'Answers generated together.', lower_bound=1)
  flags.DEFINE_integer(
    'max_length',
    0,
    "Positions of a prompt and its answer; 0 is the model's own, at most 2048.",
    lower_bound=0,
  )
  flags.DEFINE_integer('max_waiting', 256, 'Answers that wait in line, at most.', lower_bound=1)
  flags.DEFINE_float(
    'drain_seconds', 60.0, 'Seconds that answers may go on after SIGTERM.', lower_bound=0.0
  )
  flags.DEFINE_bool('warm', True, 'Compile every program before the first request.')
  flags.DEFINE_string('mesh', 'auto', 'Devices of data, fsdp and tensor, as in data:2,tensor:4.')


def _main() -> None:
  try:
    from weightsteer_jax.interfaces.serving import server
  except ModuleNotFoundError as error:
    raise InputError(
      f"serving needs the package '{error.name}': pip install 'weightsteer_jax[serve]'"
    ) from error
  args = flags.FLAGS
  options = server.Options(
    model_flags.choice(),
    named_directions.of_flag(),
    name=args.served_name,
    host=args.host,
    port=args.port,
    slots=args.slots,
    max_length=args.max_length,
    most_waiting=args.max_waiting,
    key_variable=args.api_key_variable,
    drain_seconds=args.drain_seconds,
    warm=args.warm,
    mesh=args.mesh,
  )
  server.serve(options)


PROGRAM = Program(__doc__, _define_flags, _main)
