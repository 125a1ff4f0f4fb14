#!/usr/bin/env bash
# Combinations beside mergekit's own merges of small checkpoints, element by element.
#
#   bash benchmarks/mergekit_parity.sh
#
# mergekit is fetched as its public package into a folder of its own. Elements that DARE drops are drawn
# by other generators on the two sides, so mergekit is given our masks.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python -m pip install -q --target "$folder/packages" pydantic==2.10.6
python -m pip install -q --no-deps --target "$folder/packages" mergekit==0.1.4 immutables==0.21
PYTHONPATH="$here:$folder/packages" JAX_PLATFORMS=cpu python "$here/benchmarks/mergekit_parity.py" "$folder"
