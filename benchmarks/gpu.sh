#!/usr/bin/env bash
# All that benchmarks/README.md tells of a GPU, one part after the other: what is missing there first. Each part has a limit of
# LIMIT seconds (600) and leaves its results in results/ as it ends; the last line names those that failed.
#   benchmarks/gpu.sh                 Qwen2.5-7B's shape in bfloat16, on a GPU with 80 GB or more, 64 GB of disk in FOLDER (/tmp)
#   SIZE=3m DTYPE=float32 GIGABYTES=0.1 benchmarks/gpu.sh    as a trial, on any device
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
limit=${LIMIT:-600} size=${SIZE:-7b} dtype=${DTYPE:-bfloat16} folder=${FOLDER:-/tmp} gigabytes=${GIGABYTES:-10}
if [ "$size" = 7b ]; then
  python -c "import jax; assert jax.devices()[0].platform == 'gpu', f'jax sees {jax.devices()}, no GPU'" || exit 1
  layers=${LAYERS:-14}  # Both sides have to fit, and training beside them.
fi
speed=(benchmarks/speed.py --size="$size" --dtype="$dtype" --layers="${layers:-0}" --folder="$folder" --questions=32 --prompt_length=200
       --batch_size=128 --tokens_at_once=16384 --peer_alphas=1 --nocompile_each_round --steps=6)
failed=()

part() {
  echo "== $*"
  timeout "$limit" python "$@" || failed+=("$*")
}

part -m pytest -q -n 0 tests/models/test_attention.py tests/models/test_logprobs.py tests/inference/test_packing.py
part benchmarks/device.py --size="$size" --dtype="$dtype"
part "${speed[@]}" --jobs=contrast
part "${speed[@]}" --jobs=sweep
part "${speed[@]}" --jobs=generation
rm -rf "${folder:?}/$size-$dtype-${layers:-0}"  # Makes room on the disk.
part benchmarks/handover.py --folder="$folder" --gigabytes="$gigabytes" --sides=reference,ours
python benchmarks/table.py
echo "failed: ${#failed[@]}"
printf '  %s\n' "${failed[@]}"
exit "${#failed[@]}"
