"""The wheel in a fresh environment, used from an empty folder: what an installed command can do."""

import json
import os
import pathlib
import shutil
import site
import subprocess
import sys
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[3]
# A run of seconds.
SMALL = (
  '--config=quickstart',
  '--workdir=run',
  '--config.data.num_questions=40',
  '--config.finetune.steps=2',
  '--config.finetune.eval_every=2',
  '--config.sweep.alphas=(-1.0, 0.0, 1.0)',
  *(
    f'--config.tasks.{task}.n=4'
    for task in ('opinions', 'facts', 'facts_choice', 'truths', 'plain_facts', 'arithmetic')
  ),
)
DIRECTION = '--direction=run/directions/quickstart'


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """The wheel of the checkout, built from a copy: a build leaves folders behind."""
  pytest.importorskip('setuptools', minversion='70')
  folder = tmp_path_factory.mktemp('wheel')
  source = folder / 'source'
  source.mkdir()
  for name in ('setup.py', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  for name in ('weightsteer_jax', 'configs'):
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
  pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
  subprocess.run(
    [*pip, 'wheel', '--no-deps', '--no-build-isolation', '-q', '-w', folder, source], check=True
  )
  return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
  """A function that runs a program of an environment with the wheel, in an empty folder."""
  environment = tmp_path_factory.mktemp('environment') / 'venv'
  venv.create(environment)
  python = environment / 'bin' / 'python'
  own = next(environment.glob('lib/*/site-packages'))
  # The dependencies of this environment, whose own weightsteer_jax comes behind that of the wheel.
  (own / 'dependencies.pth').write_text('\n'.join(site.getsitepackages()))
  pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '--python', python]
  subprocess.run([*pip, 'install', '-q', '--no-deps', '--no-index', wheel], check=True)
  folder = tmp_path_factory.mktemp('empty')
  settings = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  settings |= {'PATH': f'{environment}/bin:{os.environ["PATH"]}', 'JAX_PLATFORMS': 'cpu'}

  def run(program, *flags, status=0):
    done = subprocess.run(
      [environment / 'bin' / program, *flags],
      cwd=folder,
      capture_output=True,
      text=True,
      timeout=300,
      env=settings,
    )
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr

  run.folder = folder
  return run


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel):
  names = zipfile.ZipFile(wheel).namelist()
  expected = {
    str(path.relative_to(ROOT))
    for path in (ROOT / 'weightsteer_jax').rglob('*')
    if path.is_file() and path.parent.name != '__pycache__'
  }
  assert not expected - {*names}


@pytest.mark.slow
def test_the_wheel_holds_the_configs_and_what_they_read(wheel):
  names = zipfile.ZipFile(wheel).namelist()
  shipped = {name for name in names if name.startswith('weightsteer_jax/configs/')}
  expected = {
    f'weightsteer_jax/{path.relative_to(ROOT)}'
    for path in (ROOT / 'configs').rglob('*')
    if path.suffix in ('.py', '.json')
  }
  assert shipped == expected and len(expected) > 15


@pytest.mark.slow
def test_an_installed_command_does_a_whole_run_in_an_empty_folder(installed):
  where = installed('python', '-c', 'import weightsteer_jax; print(weightsteer_jax.__file__)')
  assert 'venv' in where
  assert installed('weightsteer', '--version') == installed(
    'python', '-m', 'weightsteer_jax', '--version'
  )
  installed('weightsteer', 'steer', *SMALL)
  folder = installed.folder
  assert (folder / 'run' / 'report' / 'index.html').is_file()
  command = json.loads((folder / 'run' / 'config.json').read_text())['command']
  assert command.startswith("weightsteer steer --config=quickstart --workdir=run ")
  assert "'--config.sweep.alphas=(-1.0, 0.0, 1.0)'" in command
  said = installed(
    'weightsteer',
    'generate',
    '--model=organism',
    DIRECTION,
    '--alphas=-1,0,1',
    '--prompt=What is 2 plus 3?',
    '--max_new_tokens=16',
  )
  assert [line for line in said.splitlines() if line.startswith('alpha')] == [
    'alpha -1',
    'alpha 0',
    'alpha 1',
  ]
  installed(
    'weightsteer',
    'export',
    DIRECTION,
    '--base=organism',
    '--alpha=-1',
    '--format=peft',
    '--output=adapter',
  )
  assert 'whole' in installed('weightsteer', 'export', '--verify=adapter')
  assert 'FITS' in installed('weightsteer', 'preflight', '--config=quickstart')
  said = installed('weightsteer', 'steer', '--config=quikstart', status=65)
  assert "did you mean 'quickstart'" in said


@pytest.mark.slow
def test_an_architecture_is_found_in_the_wheel(installed):
  said = installed('weightsteer', 'preflight', '--config=preflight:Llama-2-7B', '--help')
  assert 'weightsteer_jax/configs/preflight/Llama-2-7B' in said
