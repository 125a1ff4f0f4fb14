#!/bin/bash
# Slurm with two nodes on this one machine, to see slurm.sbatch work: two processes fine-tune the embedded model, are
# preempted in the middle, are started again by Slurm, and finish. Takes about three minutes on two CPU cores.
#
# Edit: nothing; PYTHON names the python that has weightsteer_jax.
# Run:  launch/pods/slurm_local.sh on Debian or Ubuntu. Installs the packages slurmctld, slurmd, slurm-client and munge
#       if they are not there; changes nothing else outside its own folder in /tmp, which it removes unless it failed.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-$(command -v python)}
export PYTHON JAX_PLATFORMS=cpu PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

install() {
  command -v slurmctld slurmd sbatch munged > /dev/null && return
  local sudo=
  [ "$(id -u)" -eq 0 ] || sudo=sudo
  $sudo apt-get update -q
  $sudo env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -q --no-install-recommends slurmctld slurmd slurm-client munge
}

configure() {  # Nodes are named by loopback addresses, so that they can be told apart and reached without /etc/hosts.
  mkdir "$dir/state"
  (umask 077; head -c 1024 /dev/urandom > "$dir/munge.key")
  echo 'Name=gpu File=/dev/null' > "$dir/gres.conf"  # What slurm.sbatch asks for; JAX runs on the CPU.
  cat > "$dir/slurm.conf" << END
ClusterName=local
SlurmctldHost=localhost
SlurmctldPort=16817
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
KillWait=60
GresTypes=gpu
NodeName=127.0.0.[1-2] NodeAddr=127.0.0.[1-2] NodeHostname=localhost Port=[16821-16822] CPUs=1 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE
END
}

start() {
  munged --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/munged.log" --seed-file="$dir/munge.seed" --force
  slurmctld -f "$SLURM_CONF"
  slurmd -f "$SLURM_CONF" -N 127.0.0.1
  slurmd -f "$SLURM_CONF" -N 127.0.0.2
  for _ in $(seq 60); do
    [ "$(sinfo --noheader --states=idle --format=%D)" = 2 ] && return
    sleep 1
  done
  echo 'the two nodes did not come up'
  return 1
}

stop() {
  local status=$?
  scancel --quiet --user="$(id -un)" 2> /dev/null || true
  for _ in $(seq 90); do  # The tasks save first, and then have GRACE seconds.
    [ -n "$(squeue --noheader 2> /dev/null)" ] || break
    sleep 1
  done
  for name in slurmctld slurmd-127.0.0.1 slurmd-127.0.0.2 munged; do
    [ -f "$dir/$name.pid" ] || continue
    pid=$(cat "$dir/$name.pid")
    kill "$pid" 2> /dev/null || true
    for _ in $(seq 100); do  # A zombie has ended too.
      case "$(ps -o stat= -p "$pid" || true)" in '' | Z*) break ;; esac
      sleep 0.1
    done
  done
  if [ "$status" -eq 0 ]; then rm -rf "$dir"; else echo "FAILED; logs are in $dir"; fi
}

submit() {  # sbatch's flags are those of this cluster; the file's directives stay as they are for all else.
  sbatch --parsable --ntasks-per-node=1 --gpus-per-node=1 --output="$dir/%j.log" launch/pods/slurm.sbatch "$@"
}

waiting() {  # Whether the job is in the queue, or runs.
  [ -n "$(squeue --noheader --job="$1" 2> /dev/null)" ]
}

finish() {  # Waits, minutes at most, and shows the log.
  for _ in $(seq 600); do
    waiting "$1" || break
    sleep 1
  done
  cat "$dir/$1.log"
}

"$PYTHON" -c 'import absl, jax' || { echo "PYTHON=$PYTHON does not have what weightsteer_jax needs"; exit 65; }
dir=$(mktemp -d /tmp/slurm-local.XXXXXX)
export SLURM_CONF="$dir/slurm.conf"
trap stop EXIT
install
configure
start
sinfo --Node --long

echo '--- a check of devices and workdir'
job=$(submit launch/smoke.py --workdir="$dir/run" --devices=2)
finish "$job"
grep -q 'attempt 0 ended: srun 0' "$dir/$job.log"

echo '--- a fine-tune that is preempted after its first checkpoint'
run="$dir/run/finetune/positive"
job=$(submit launch/finetune.py --config=configs/quickstart.py --workdir="$dir/run" --side=positive \
  --config.data.num_questions=96 --config.finetune.steps=40)
until compgen -G "$run/checkpoints/*/00000020" > /dev/null || ! waiting "$job"; do sleep 0.2; done
scancel --signal=TERM "$job"  # What --signal=TERM@180 does before the time limit: the tasks alone are told.
finish "$job"
grep -q 'attempt 0 ended: srun 75, tasks 75 $' "$dir/$job.log"
grep -q 'attempt 1 ended: srun 0, tasks 0 $' "$dir/$job.log"
"$PYTHON" - "$run" << 'END'
import json, pathlib, sys
from weightsteer_jax import finetune
run = pathlib.Path(sys.argv[1])
steps = [row['step'] for row in map(json.loads, (run / 'metrics.jsonl').open()) if 'train_loss' in row]
assert steps == list(range(1, 41)), steps
_, meta = finetune.load_adapter(run / 'adapter')  # Verifies its fingerprints.
print('steps 1 to 40 were each taken once; the adapter is that of step', meta['step'])
END
