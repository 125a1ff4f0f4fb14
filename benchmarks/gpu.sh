#!/usr/bin/env bash
# All that benchmarks/README.md tells of a GPU, one part after the other: what is missing there first. Each part has a limit of
# LIMIT seconds (600) and leaves its results in results/ as it ends; the last line names those that failed.
#   benchmarks/gpu.sh                 Qwen2.5-7B's shape in bfloat16, on a GPU with 80 GB or more, 64 GB of disk in FOLDER (/tmp)
#   LAYERS=2 benchmarks/gpu.sh        as a trial
set -uo pipefail
cd "$(dirname "$0")/.."
python -c "import jax; assert jax.devices()[0].platform == 'gpu', f'jax sees {jax.devices()}, no GPU'" || exit 1
limit=${LIMIT:-600} layers=${LAYERS:-14} folder=${FOLDER:-/tmp}
speed=(benchmarks/speed.py --size=7b --dtype=bfloat16 --layers="$layers" --folder="$folder" --questions=32 --prompt_length=200
       --batch_size=128 --tokens_at_once=16384 --peer_alphas=1 --nocompile_each_round --steps=6)
failed=()

part() {
  echo "== $*"
  timeout "$limit" python "$@" || failed+=("$*")
}

part -m pytest -q -n 0 tests/models/test_attention.py tests/models/test_logprobs.py tests/evaluation/test_packing.py
part benchmarks/device.py --size=7b --dtype=bfloat16
part "${speed[@]}" --jobs=contrast
part "${speed[@]}" --jobs=sweep
part "${speed[@]}" --jobs=generation
part benchmarks/handover.py --folder="$folder" --gigabytes=10 --sides=reference,ours
python benchmarks/table.py
echo "failed: ${#failed[@]}"
printf '  %s\n' "${failed[@]}"
exit "${#failed[@]}"
