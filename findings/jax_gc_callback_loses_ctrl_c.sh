#!/usr/bin/env bash
# jax 0.10.2, CPython: importing jax registers a callback of the garbage collector that is written in Python
# (jax/_src/lib/__init__.py, _xla_gc_callback). A Ctrl-C that comes during a collection raises
# KeyboardInterrupt within that callback, where Python can only print it ("Exception ignored in"), and the
# program goes on as if nothing had been pressed. Without jax the same Ctrl-C interrupts the program.
#
# Seen, with a timer in place of the keyboard: 'interrupted' without jax; 'went on' with jax, after
#   Exception ignored in: <function _xla_gc_callback at 0x...>
# A program that must not lose it can send it again from sys.unraisablehook.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'jax==0.10.2' 'jaxlib==0.10.2'
cat > "$folder/program.py" <<'PYTHON'
import gc
import signal
import sys
import time

if sys.argv[1] == 'jax':
  import jax  # noqa: F401
# Objects for a collection that takes longer than the timer.
held = [[i] for i in range(3_000_000)]
# What Python does at a Ctrl-C.
signal.signal(signal.SIGALRM, signal.default_int_handler)
try:
  signal.setitimer(signal.ITIMER_REAL, 0.02)
  gc.collect()
  time.sleep(0.5)
  print('went on')
except KeyboardInterrupt:
  print('interrupted')
PYTHON
without=$("$folder/env/bin/python" "$folder/program.py" plain)
with=$(JAX_PLATFORMS=cpu "$folder/env/bin/python" "$folder/program.py" jax 2> "$folder/errors")
echo "without jax: $without; with jax: $with"
head -n 1 "$folder/errors"
[ "$without" = interrupted ] && [ "$with" = 'went on' ]
grep -q '_xla_gc_callback' "$folder/errors"
