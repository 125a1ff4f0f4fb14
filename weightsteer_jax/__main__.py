"""The command `weightsteer`, as `python -m weightsteer_jax`."""

from weightsteer_jax.interfaces.cli import command

if __name__ == '__main__':
  command.main()
