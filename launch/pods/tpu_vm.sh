#!/bin/bash
# One program of launch/ on a spot TPU slice, on all of its hosts, again after each preemption until it is done.
#
# Edit:  the variables below, or set them in the environment. What the bucket must be is in README.md.
# Run:   launch/pods/tpu_vm.sh [--dry-run] launch/steer.py --config=configs/own_data.py --workdir=/bucket/runs/mine
#        from the project's folder, where gcloud is logged in and stays up (tmux on a small machine). What is committed
#        in git is what runs. --dry-run prints the commands.
# Watch: tail -f NAME.log here. Stop: interrupt it. The slice is deleted at the end, whatever the end.
set -uo pipefail
PROJECT=${PROJECT:-my-project}
ZONE=${ZONE:-us-west4-a}
NAME=${NAME:-weightsteer}
ACCELERATOR_TYPE=${ACCELERATOR_TYPE:-v5litepod-16}
RUNTIME_VERSION=${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}
BUCKET=${BUCKET:-my-bucket}
MAX_RESTARTS=${MAX_RESTARTS:-50}
PAUSE=${PAUSE:-60}  # seconds between looks at the queue, and between attempts

dry_run=
[ "${1:-}" != --dry-run ] || { dry_run=1; shift; }
[ $# -gt 0 ] || { echo "usage: $0 [--dry-run] launch/PROGRAM.py --FLAG=VALUE ..." >&2; exit 65; }
code="/tmp/$NAME.tar.gz"

step() {  # Runs a command, or prints it.
  if [ "$dry_run" ]; then printf ' %q' "$@" | cut -c2-; else "$@" < /dev/null; fi
}

tpus() {
  step gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"
}

create() {
  tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$ACCELERATOR_TYPE" \
    --runtime-version="$RUNTIME_VERSION" --spot
}

delete() {
  tpus queued-resources delete "$NAME" --force --quiet
}

state() {  # '' where there is none.
  tpus queued-resources list --filter="name~/$NAME\$" --format='value(state.state)' || echo UNKNOWN
}

await_slice() {  # Until the slice is there; one that was taken away is given back and asked for anew.
  [ -z "$dry_run" ] || { create; return; }
  local now
  while now=$(state); [ "$now" != ACTIVE ]; do
    case $now in
      '') create || return ;;
      FAILED | SUSPENDED) delete ;;
    esac
    sleep "$PAUSE"
  done
}

send() {
  step git archive --format=tar.gz --output="$code" HEAD || return
  tpus tpu-vm scp "$code" "$NAME:code.tar.gz" --worker=all || return 255
}

run() {  # The same command on each host. The status is that of the first host that failed, 255 of one not reached.
  local unpack='mkdir -p code && tar -xzf code.tar.gz -C code'
  tpus tpu-vm ssh "$NAME" --worker=all \
    --command="$unpack && exec bash code/launch/pods/tpu_host.sh $BUCKET$(printf ' %q' "$@")"
}

attempts() {
  local attempt status
  for attempt in $(seq 0 "$MAX_RESTARTS"); do
    await_slice && send && run "$@"
    status=$?
    [ -z "$dry_run" ] || return "$status"
    echo "attempt $attempt ended: $status"
    case $status in
      # Preempted, or a process or its host lost: see weightsteer_jax/runtime/errors.py.
      75 | 134 | 137 | 143 | 255) sleep "$PAUSE" ;;
      *) break ;;
    esac
  done
  return "$status"
}

trap delete EXIT
if [ "$dry_run" ]; then attempts "$@"; exit; fi
attempts "$@" 2>&1 | tee -a "$NAME.log"
exit "${PIPESTATUS[0]}"
