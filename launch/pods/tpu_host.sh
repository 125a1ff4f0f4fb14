#!/bin/bash
# What tpu_vm.sh runs on each host of a slice: a Python that is new enough, the bucket as /bucket, then the program.
#
# Edit: nothing. Run: not by hand. Exits with the program's status, or with 255 where it could not be started.
set -u
cd "$(dirname "$0")/../.." || exit 255
venv=$HOME/venv
bucket=$1
shift

install_gcsfuse() {  # Source: https://cloud.google.com/storage/docs/gcsfuse-install
  local host=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
  curl -fsS "$host/doc/apt-key.gpg" | sudo tee "$key" > /dev/null
  echo "deb [signed-by=$key] $host gcsfuse-$(lsb_release -c -s) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  sudo apt-get update -q && sudo apt-get install -y -q -o DPkg::Lock::Timeout=600 gcsfuse
}

prepare() {  # Quick where it was done before.
  set -eo pipefail
  python3 -m pip install --quiet --user uv
  [ -x "$venv/bin/python" ] || python3 -m uv venv --quiet --python 3.12 "$venv"
  python3 -m uv pip install --quiet --python "$venv/bin/python" '.[tpu]'
  command -v gcsfuse > /dev/null || install_gcsfuse
  sudo mkdir -p /bucket
  if ! mountpoint -q /bucket; then
    sudo chown "$USER" /bucket
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "$bucket" /bucket
  fi
}

# What a lost connection may have left running is told to save and to end.
pkill --exact --euid "$USER" python
while pgrep --exact --euid "$USER" python > /dev/null; do sleep 1; done
(prepare)
# shellcheck disable=SC2181  # `(prepare) || exit` would take set -e away from it.
[ $? -eq 0 ] || exit 255
# The port that Google's automatic firewall rules let through (jax issue 35905).
JAX_COORDINATOR_PORT=8476 exec "$venv/bin/python" "$@"
