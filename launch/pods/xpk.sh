#!/bin/bash
# One program of launch/ on a GKE cluster that xpk made, on all hosts of a TPU slice, again after each preemption.
#
# Edit:  the variables below, or set them in the environment. The image is built from the Dockerfile beside this file;
#        the bucket becomes /bucket once and for all by
#          xpk storage attach STORAGE --cluster=CLUSTER --project=PROJECT --zone=ZONE --type=gcsfuse --bucket=BUCKET \
#            --mount-point=/bucket --readonly=false --auto-mount=false \
#            --mount-options=implicit-dirs,metadata-cache:ttl-secs:0
# Run:   launch/pods/xpk.sh [--dry-run] launch/steer.py --config=configs/own_data.py --workdir=/bucket/runs/mine
# Watch: the link that xpk prints, or kubectl logs -f job/NAME-slice-job-0 --all-pods --prefix
# Stop:  xpk workload delete --workload=NAME --cluster=CLUSTER --project=PROJECT --zone=ZONE
set -euo pipefail
PROJECT=${PROJECT:-my-project}
ZONE=${ZONE:-us-west4-a}
CLUSTER=${CLUSTER:-my-cluster}
NAME=${NAME:-weightsteer}
TPU_TYPE=${TPU_TYPE:-v5litepod-16}
IMAGE=${IMAGE:-my-registry/weightsteer:latest}
STORAGE=${STORAGE:-my-storage}
MAX_RESTARTS=${MAX_RESTARTS:-50}

dry_run=
[ "${1:-}" != --dry-run ] || { dry_run=1; shift; }
[ $# -gt 0 ] || { echo "usage: $0 [--dry-run] launch/PROGRAM.py --FLAG=VALUE ..." >&2; exit 65; }

# Without --max-restarts there is none; and by itself xpk restarts after 42 and 127 to 255 alone, where ours is 75.
# exec, for xpk hands SIGTERM on to the command's shell only.
set -- xpk workload create --project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER" --workload="$NAME" \
  --tpu-type="$TPU_TYPE" --num-slices=1 --docker-image="$IMAGE" --storage="$STORAGE" \
  --max-restarts="$MAX_RESTARTS" --restart-on-exit-codes=75 --termination-grace-period-seconds=180 \
  --command="exec python$(printf ' %q' "$@")"
if [ "$dry_run" ]; then printf ' %q' "$@" | cut -c2-; else "$@"; fi
