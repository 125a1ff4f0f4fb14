"""The recipes of launch/pods without a cloud: their commands, and when they start again."""

import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import sys

import jsonschema
import pod_schemas
import pytest
import yaml

from weightsteer_jax import config
from weightsteer_jax.runtime import errors

ROOT = pathlib.Path(__file__).parent.parent
PODS = ROOT / 'launch' / 'pods'
PROGRAM = (
  'launch/steer.py',
  '--config=configs/own_data.py',
  '--workdir=/bucket/runs/a b',
  '--config.sweep.alphas=(-1.0, 0.0)',
)
CODES = {error.__name__: error.exit_code for error in errors.WeightSteerError.__subclasses__()}
RESTART = {code for code in CODES.values() if code == errors.Preempted.exit_code}
HOPELESS = {1, 2, *CODES.values()} - RESTART


def bash(*command, cwd=ROOT, **environment):
  """The finished process of a script, with the PATH and the given environment."""
  return subprocess.run(
    ['bash', *map(str, command)],
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=60,
    env={'PATH': os.environ['PATH']} | environment,
  )


def stub(folder, name, text):
  """A PATH that begins with a folder of this command."""
  path = folder / 'bin' / name
  path.parent.mkdir(exist_ok=True)
  path.write_text('#!/bin/bash\n' + text)
  path.chmod(0o755)
  return f'{path.parent}:{os.environ["PATH"]}'


@pytest.mark.parametrize(
  'script', sorted(path.name for path in PODS.iterdir() if path.suffix in ('.sh', '.sbatch'))
)
def test_shellcheck_finds_nothing(script):
  shellcheck = shutil.which('shellcheck') or str(
    pathlib.Path(sys.executable).with_name('shellcheck')
  )
  done = subprocess.run([shellcheck, PODS / script], capture_output=True, text=True, timeout=60)
  assert done.returncode == 0, done.stdout + done.stderr


def test_what_tpu_vm_would_do():
  done = bash(PODS / 'tpu_vm.sh', '--dry-run', *PROGRAM)
  where = ['--project=my-project', '--zone=us-west4-a']
  tpus = ['gcloud', 'compute', 'tpus']
  assert done.returncode == 0 and [shlex.split(line) for line in done.stdout.splitlines()] == [
    [
      *tpus,
      'queued-resources',
      'create',
      'weightsteer',
      '--node-id=weightsteer',
      '--accelerator-type=v5litepod-16',
      '--runtime-version=v2-alpha-tpuv5-lite',
      '--spot',
      *where,
    ],
    ['git', 'archive', '--format=tar.gz', '--output=/tmp/weightsteer.tar.gz', 'HEAD'],
    [
      *tpus,
      'tpu-vm',
      'scp',
      '/tmp/weightsteer.tar.gz',
      'weightsteer:code.tar.gz',
      '--worker=all',
      *where,
    ],
    [
      *tpus,
      'tpu-vm',
      'ssh',
      'weightsteer',
      '--worker=all',
      '--command=mkdir -p code && tar -xzf code.tar.gz -C code && exec bash '
      'code/launch/pods/tpu_host.sh my-bucket '
      r'launch/steer.py --config=configs/own_data.py --workdir=/bucket/runs/a\ b '
      r'--config.sweep.alphas=\(-1.0\,\ 0.0\)',
      *where,
    ],
    [*tpus, 'queued-resources', 'delete', 'weightsteer', '--force', '--quiet', *where],
  ]


def test_what_xpk_would_do():
  done = bash(PODS / 'xpk.sh', '--dry-run', *PROGRAM)
  (command,) = [shlex.split(line) for line in done.stdout.splitlines()]
  assert command == [
    'xpk',
    'workload',
    'create',
    '--project=my-project',
    '--zone=us-west4-a',
    '--cluster=my-cluster',
    '--workload=weightsteer',
    '--tpu-type=v5litepod-16',
    '--num-slices=1',
    '--docker-image=my-registry/weightsteer:latest',
    '--storage=my-storage',
    '--max-restarts=50',
    '--restart-on-exit-codes=75',
    '--termination-grace-period-seconds=180',
    '--command=exec python launch/steer.py --config=configs/own_data.py '
    '--workdir=/bucket/runs/a\\ b '
    '--config.sweep.alphas=\\(-1.0\\,\\ 0.0\\)',
  ]
  # What `workload create` takes. Source: AI-Hypercomputer/xpk at 367c838,
  # src/xpk/parser/workload.py and common.py.
  known = {
    'project',
    'zone',
    'cluster',
    'workload',
    'tpu-type',
    'num-slices',
    'docker-image',
    'storage',
    'max-restarts',
    'restart-on-exit-codes',
    'termination-grace-period-seconds',
    'command',
    'env',
    'spot',
  }
  assert {flag.split('=')[0].removeprefix('--') for flag in command[3:]} <= known


@pytest.mark.parametrize('script', ['tpu_vm.sh', 'xpk.sh'])
def test_a_program_is_asked_for(script):
  assert bash(PODS / script, '--dry-run').returncode == 65


# Each attempt: the slice's states as it is asked for them, then the program's status.
@pytest.mark.parametrize(
  'states, statuses, status, calls',
  [
    ('ACTIVE', '0', 0, 'list scp ssh delete'),
    (', PROVISIONING ACTIVE', '0', 0, 'list create list list scp ssh delete'),
    ('ACTIVE ACTIVE', '75 0', 0, 'list scp ssh list scp ssh delete'),
    (
      'ACTIVE SUSPENDED , ACTIVE',
      '255 0',
      0,
      'list scp ssh list delete list create list scp ssh delete',
    ),
    ('ACTIVE', '65', 65, 'list scp ssh delete'),
    (
      'ACTIVE ACTIVE ACTIVE',
      '75 134 137',
      137,
      'list scp ssh list scp ssh list scp ssh delete',
    ),  # MAX_RESTARTS=2
  ],
)
def test_tpu_vm_starts_again_and_gives_the_slice_back(states, statuses, status, calls, tmp_path):
  path = stub(
    tmp_path,
    'gcloud',
    '''
next() { head -n 1 "$1"; sed -i 1d "$1"; }
for word in list create scp ssh delete; do
  case " $* " in *" $word "*) echo "$word" >> calls ;; esac
done
case " $* " in
  *" list "*) next states ;;
  *" ssh "*) exit "$(next statuses)" ;;
esac''',
  )
  for name, words in (('states', states), ('statuses', statuses)):
    (tmp_path / name).write_text(''.join(f'{word.strip(",")}\n' for word in words.split()))
  stub(tmp_path, 'git', '')
  done = bash(PODS / 'tpu_vm.sh', *PROGRAM, cwd=tmp_path, PATH=path, PAUSE='0', MAX_RESTARTS='2')
  assert done.returncode == status, done.stdout + done.stderr
  assert (tmp_path / 'calls').read_text().split() == calls.split()
  assert f'ended: {status}' in (tmp_path / 'weightsteer.log').read_text()


# Each: statuses of the tasks, what srun makes of them, whether the job is put back into the queue,
# what it exits with.
@pytest.mark.parametrize(
  'tasks, srun, requeued, status',
  [
    ('0 0', 0, False, 0),
    ('75 75', 75, True, 75),
    ('137 75', 137, True, 137),  # one was killed, the other noticed
    ('65 143', 143, False, 65),  # the other was stopped because of it
    ('143 71', 143, False, 71),
    ('1 75', 75, False, 1),
    ('', 143, True, 143),  # nodes lost with all that was on them
  ],
)
def test_slurm_puts_back_what_is_worth_it(tasks, srun, requeued, status, tmp_path):
  # Runs the tasks one after the other, as slurmstepd would at the same time.
  path = stub(
    tmp_path,
    'srun',
    f'''
while [ "${{1#--}}" != "$1" ]; do shift; done
for status in {tasks}; do SLURM_PROCID=0 TASK_STATUS=$status "$@"; done
exit {srun}''',
  )
  stub(tmp_path, 'program', 'exit "$TASK_STATUS"')
  stub(tmp_path, 'scontrol', 'echo "$*" >> requeued')
  done = bash(
    PODS / 'slurm.sbatch',
    'x',
    cwd=tmp_path,
    PATH=path,
    PYTHON='program',
    GRACE='0',
    SLURM_JOB_ID='7',
  )
  assert (done.returncode, (tmp_path / 'requeued').exists()) == (status, requeued), (
    done.stdout + done.stderr
  )
  assert not requeued or (tmp_path / 'requeued').read_text() == 'requeue 7\n'
  assert not list(tmp_path.glob('.*status'))
  again = bash(
    PODS / 'slurm.sbatch',
    'x',
    cwd=tmp_path,
    PATH=path,
    PYTHON='program',
    GRACE='0',
    SLURM_JOB_ID='8',
    SLURM_RESTART_COUNT='50',
  )
  assert again.returncode == status and 'requeue 8' not in ''.join(
    p.read_text() for p in tmp_path.glob('requeued')
  )


def test_slurm_directives_are_sbatchs():
  lines = re.findall(
    r'^#SBATCH +--([a-z-]+)(?:=(\S+))?$', (PODS / 'slurm.sbatch').read_text(), re.M
  )
  assert len(lines) == (PODS / 'slurm.sbatch').read_text().count('\n#SBATCH') >= 8
  for name, value in lines:
    assert re.fullmatch(pod_schemas.SBATCH[name] or '', value), (name, value)


def test_jobset_is_one():
  jobset = yaml.safe_load((PODS / 'jobset.yaml').read_text())
  jsonschema.Draft202012Validator(pod_schemas.JOBSET).validate(jobset)
  (job,) = [job['template']['spec'] for job in jobset['spec']['replicatedJobs']]
  assert (
    job['completionMode'] == 'Indexed'
    and job['parallelism'] == job['completions']
    and job['backoffLimit'] == 0
  )
  pod = job['template']['spec']
  (program,) = pod['containers']
  # A hopeless status fails the job for the one reason that JobSet does not restart on; others by
  # its backoffLimit.
  rule, disrupted = job['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob' and rule['onExitCodes']['operator'] == 'NotIn'
  assert rule['onExitCodes']['containerName'] == program['name']
  assert disrupted == {'action': 'Ignore', 'onPodConditions': [{'type': 'DisruptionTarget'}]}
  assert jobset['spec']['failurePolicy']['rules'][0]['onJobFailureReasons'] == ['PodFailurePolicy']
  values = rule['onExitCodes']['values']
  assert values == sorted(values) and RESTART < set(values) and not HOPELESS & set(values)
  # The hosts of a slice are its chips by the chips of a host, and each host is mounted what the
  # program is told of.
  rows, columns = map(int, pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x'))
  assert job['parallelism'] * program['resources']['limits']['google.com/tpu'] == rows * columns
  assert [mount['name'] for mount in program['volumeMounts']] == [
    volume['name'] for volume in pod['volumes']
  ]


def test_sky_is_a_task():
  task = yaml.safe_load((PODS / 'sky.yaml').read_text())
  jsonschema.Draft202012Validator(pod_schemas.SKY).validate(task)
  codes = set(task['resources']['job_recovery']['recover_on_exit_codes'])
  assert RESTART < codes and not HOPELESS & codes
  for part in (task['setup'], task['run']):
    assert subprocess.run(['bash', '-n', '-c', part], timeout=60).returncode == 0
  # The flags as two nodes come by them; the variables are SkyPilot's.
  printed = bash(
    '-c',
    task['run'].replace('exec ~/venv/bin/python', 'printf "%s\n"'),
    SKYPILOT_NODE_IPS='10.0.0.1\n10.0.0.2',
    SKYPILOT_NUM_NODES='2',
    SKYPILOT_NODE_RANK='1',
  )
  arguments = printed.stdout.splitlines()
  assert arguments[-3:] == ['--coordinator=10.0.0.1:8476', '--num_processes=2', '--process_id=1']


def test_codes_in_scripts_are_the_programs():
  (restart,) = re.findall(r'^ +([\d |]+)\) sleep', (PODS / 'tpu_vm.sh').read_text(), re.M)
  codes = {int(code) for code in restart.split('|')}
  assert RESTART < codes and not HOPELESS & codes
  (hopeless,) = re.findall(r'^for code in ([\d ]+); do', (PODS / 'slurm.sbatch').read_text(), re.M)
  assert {int(code) for code in hopeless.split()} == HOPELESS
  (again,) = re.findall(
    r'^if \[ "\$status" -eq (\d+) \]', (PODS / 'slurm.sbatch').read_text(), re.M
  )
  assert {int(again)} == RESTART
  readme = (PODS / 'README.md').read_text()
  assert all(str(code) in readme for code in CODES.values())


def commands(path):
  """(program, flags) of each launcher named in a recipe or a text, over continued lines."""
  text = path.read_text()
  if path.name == 'jobset.yaml':
    (container,) = yaml.safe_load(text)['spec']['replicatedJobs'][0]['template']['spec'][
      'template'
    ]['spec']['containers']
    yield container['command'][-1], container['args']
  for line in re.sub(r'\\\n *', ' ', text).splitlines():
    for program, rest in re.findall(r'(?<![\w/])(launch/[a-z_]+\.py)((?: +-[^`|]*)?)', line):
      yield program, re.findall(r'--[a-z_][\w.]*(?:=\S*)?', rest)


@pytest.fixture(scope='module')
def known_flags():
  """A function from a program to the names of all its flags."""
  seen = {}

  def get(program):
    if program not in seen:
      done = subprocess.run(
        [sys.executable, ROOT / program, '--helpxml'], capture_output=True, text=True, timeout=120
      )
      seen[program] = set(re.findall(r'<name>(\w+)</name>', done.stdout))
    return seen[program]

  return get


@pytest.mark.parametrize('path', sorted(PODS.iterdir()), ids=lambda path: path.name)
def test_programs_and_flags_exist(path, known_flags):
  flags = [
    (program, flag.removeprefix('--').split('=')[0])
    for program, flags in commands(path)
    for flag in flags
  ]
  assert flags or path.name in ('tpu_host.sh', 'Dockerfile')
  for program, flag in flags:
    if flag.startswith('config.'):
      section = config.base_config()
      for key in flag.split('.')[1:]:
        section = section[key]
    else:
      assert flag in known_flags(program), (program, flag)
  for name in re.findall(r'(?:launch|configs)/[a-z_]+\.py', path.read_text()):
    assert (ROOT / name).is_file(), name


def test_the_image_has_what_it_names():
  text = (PODS / 'Dockerfile').read_text()
  for sources in re.findall(r'^COPY (.+) \S+$', text, re.M):
    assert all((ROOT / source).exists() for source in sources.split())
  (extra,) = re.findall(r'^ARG EXTRA=(\w+)$', text, re.M)
  assert re.search(rf"'{extra}': \['jax\[{extra}\]", (ROOT / 'setup.py').read_text())


def test_names_are_made_up():
  for path in PODS.iterdir():
    given = r'(?:gs://|bucketName: |(?:BUCKET|PROJECT|CLUSTER|STORAGE|IMAGE):-)([\w.-]+)'
    for name in re.findall(given, path.read_text()):
      assert name.startswith('my-'), (path.name, name)


def smoke(workdirs, *flags, devices=2):
  """The finished processes of launch/smoke.py, one to each workdir."""
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
  }
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  joined = (
    [f'--coordinator=localhost:{port}', f'--num_processes={len(workdirs)}']
    if len(workdirs) > 1
    else []
  )
  started = []
  for i, workdir in enumerate(workdirs):
    command = [
      sys.executable,
      ROOT / 'launch' / 'smoke.py',
      f'--workdir={workdir}',
      *flags,
      *joined,
    ]
    started.append(
      subprocess.Popen(
        command + [f'--process_id={i}'] * bool(joined),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
      )
    )
  try:
    return [(process.communicate(timeout=200)[0], process.returncode) for process in started]
  finally:
    for process in started:
      process.kill()


def test_smoke_sees_devices_and_workdir_of_two_processes(tmp_path):
  told, other = smoke([tmp_path / 'run'] * 2, '--devices=4')
  assert (told[1], other[1]) == (0, 0) and '4 devices' in told[0] and 'read back' in told[0], (
    told[0] + other[0]
  )
  assert not list((tmp_path / 'run').iterdir())


def test_smoke_refuses_what_a_long_run_would_fail_on(tmp_path):
  ((text, status),) = smoke([tmp_path / 'run'], '--devices=3')
  assert status == 65 and 'expected --devices=3' in text and not list(tmp_path.iterdir())
  (tmp_path / 'file').touch()
  ((text, status),) = smoke([tmp_path / 'file' / 'run'])
  assert status == 74 and str(tmp_path / 'file') in text


@pytest.mark.slow
def test_smoke_notices_a_workdir_that_is_not_shared(tmp_path):
  for text, status in smoke([tmp_path / 'a', tmp_path / 'b']):
    assert status == 65 and 'is not shared' in text


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('slurmctld'), reason='Slurm is not installed')
def test_slurm_on_this_machine():
  done = subprocess.run(
    [PODS / 'slurm_local.sh'],
    capture_output=True,
    text=True,
    timeout=900,
    env=os.environ | {'PYTHON': sys.executable},
  )
  assert done.returncode == 0 and 'each taken once' in done.stdout, done.stdout + done.stderr
