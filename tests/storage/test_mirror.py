"""Workdirs at URLs: what a push that is cut short at any point leaves, who goes on from what, and
how failures end."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import fsspec
import pytest
from distributed import harness, small
from fsspec.implementations.memory import MemoryFileSystem

from weightsteer_jax import config as configs
from weightsteer_jax.experiments import stages
from weightsteer_jax.experiments.experiment import Experiment
from weightsteer_jax.finetune import log
from weightsteer_jax.runtime import ending
from weightsteer_jax.runtime.errors import (
  Conflict,
  CorruptError,
  InputError,
  OutputError,
  Preempted,
)
from weightsteer_jax.storage.remote import listing
from weightsteer_jax.storage.remote import mirror as mirrors

ROOT = pathlib.Path(__file__).parents[2]
LISTING = mirrors.LISTING


class Flaky(MemoryFileSystem):
  """A store that goes away at its n-th write, which it does by half."""

  protocol = 'flaky'
  store, pseudo_dirs = {}, ['']
  left = 10**9
  order = []

  @classmethod
  def spend(cls, what):
    cls.left -= 1
    if cls.left < 0:
      raise OSError('the store is away')
    cls.order.append(what)

  def _open(self, path, mode='rb', **kwargs):
    file = super()._open(path, mode, **kwargs)
    if mode != 'rb':
      write = file.write

      def half(data):
        try:
          self.spend(('write', path))
        except OSError:
          write(data[: len(data) // 2])
          raise
        return write(data)

      file.write = half
    return file

  def pipe_file(self, path, value, **kwargs):
    self.spend(('pipe', path))
    super().pipe_file(path, value, **kwargs)

  def cp_file(self, path1, path2, **kwargs):
    self.spend(('copy', path2))
    super().cp_file(path1, path2, **kwargs)

  def rm_file(self, path):
    self.spend(('remove', path))
    self._rm(path)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
  """No pauses, and stores that are empty and there."""
  monkeypatch.setattr(mirrors, 'FIRST_PAUSE', 0.01)
  fsspec.register_implementation('flaky', Flaky, clobber=True)
  Flaky.left, Flaky.order = 10**9, []
  for kind in (Flaky, MemoryFileSystem):
    kind.store.clear()
    kind.pseudo_dirs[:] = ['']


@pytest.fixture(scope='module')
def server():
  """The address of an S3 server on this machine."""
  pytest.importorskip('s3fs')
  moto = pytest.importorskip('moto.server')
  port = harness.free_port()
  running = moto.ThreadedMotoServer(port=port, verbose=False)
  running.start()
  yield f'http://127.0.0.1:{port}'
  running.stop()


@pytest.fixture(params=['file', 'memory', 's3'])
def url(request, tmp_path, monkeypatch):
  """Where nothing is yet."""
  if request.param == 's3':
    told = dict(
      ENDPOINT_URL=request.getfixturevalue('server'), ACCESS_KEY_ID='x', SECRET_ACCESS_KEY='y'
    )
    for name, value in told.items():
      monkeypatch.setenv(f'AWS_{name}', value)
    fs = fsspec.filesystem('s3', use_listings_cache=False)
    if not fs.exists('bucket'):
      fs.mkdir('bucket')
    return f's3://bucket/runs/{tmp_path.name}'
  return f'file://{tmp_path}/there' if request.param == 'file' else f'memory://b/{tmp_path.name}'


def begun(url, staging):
  mirror = mirrors.Mirror(url, staging)
  mirror.begin()
  return mirror


def write(folder, **texts):
  """Writes files; a name's __ is a slash, its last _ a dot; None removes."""
  for name, text in texts.items():
    path = folder / name.replace('__', '/').replace('_', '.')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink() if text is None else path.write_text(text)


def held(folder):
  """{name: text} of a folder, but for what is hidden."""
  return {name: (folder / name).read_text() for name, _ in listing.walk(folder)}


def fresh(url, tmp_path):
  """What an empty staging gets, without becoming the owner."""
  folder = tmp_path / f'fresh-{time.time_ns()}'
  mirrors.Mirror(url, folder)._pulled()
  return held(folder)


def there(url):
  """Names of all files of the flaky store at the URL."""
  return {path.removeprefix(f'{url}/') for path in Flaky.store if path.startswith(f'{url}/')}


def test_what_is_pushed_comes_back_in_an_empty_staging(url, tmp_path, capsys):
  one = begun(url, tmp_path / 'one')
  write(
    tmp_path / 'one',
    config_json='{}',
    checkpoints__0_1__d__array='x' * 1000,
    sweep__rows_jsonl='a\n',
    empty_txt='',
  )
  write(tmp_path / 'one', checkpoints___2_partial__array='half', same_txt='x' * 1000)
  one.push()
  write(
    tmp_path / 'one',
    checkpoints__0_1__d__array=None,
    checkpoints__0_2__array='y',
    sweep__rows_jsonl='a\nb\n',
    config_json='{"a": 1}',
  )
  one.finish()
  expected = {
    'config.json': '{"a": 1}',
    'checkpoints/0.2/array': 'y',
    'sweep/rows.jsonl': 'a\nb\n',
    'empty.txt': '',
    'same.txt': 'x' * 1000,
  }
  begun(url, tmp_path / 'two')
  assert held(tmp_path / 'two') == expected

  def mtime(folder):
    return (tmp_path / folder / 'config.json').stat().st_mtime_ns

  assert mtime('one') == mtime('two')
  said = capsys.readouterr().out
  assert (
    f'pushed: {url} holds all 5 files' in said and f'pulling 5 files (0.0 MB) from {url}' in said
  )
  # Whoever looks there by other means finds the same, and nothing else.
  store = mirrors.Mirror(url, tmp_path / 'three')._store
  fs, root = store._fs, store._root
  seen = {path.removeprefix(root).strip('/'): fs.cat_file(path).decode() for path in fs.find(root)}
  assert json.loads(seen.pop(LISTING))['format'] == 1 and seen == expected
  # fsspec's file system in memory never forgets a folder.
  assert not fs.isdir(f'{root}/checkpoints/0.1') or url.startswith('memory')


def test_a_push_that_changes_nothing_writes_nothing(tmp_path):
  mirror = begun('flaky://b/run', tmp_path / 'one')
  write(tmp_path / 'one', a_txt='1')
  mirror.push()
  Flaky.left = 0
  mirror.push()
  os.utime(tmp_path / 'one' / 'a.txt')
  mirror.push()
  write(tmp_path / 'one', a_txt='2')
  with pytest.raises(OutputError, match='the store is away'):
    mirror.push()


def test_a_store_that_goes_away_at_any_write_holds_the_old_state_or_the_new_one(tmp_path):
  """And the staging of the run goes on, as does an empty one on another machine."""
  old = dict(config_json='{}', a__marker_json='{"a": 1}', a__array='aaaa', rows_jsonl='1\n')
  new = dict(
    config_json='{"new": 1}',
    a__marker_json=None,
    a__array=None,
    b__marker_json='{"b": 1}',
    b__array='bbbb',
    rows_jsonl='1\n2\n',
  )
  outcomes = []
  for writes in range(100):
    url, folder = f'flaky://b/run{writes}', tmp_path / str(writes)
    mirror = begun(url, folder)
    write(folder, **old)
    mirror.push()
    before = held(folder)
    write(folder, **new)
    Flaky.left = writes
    try:
      mirror.push()
      failed = False
    except OutputError as error:
      failed = True
      assert 'the store is away' in str(error) and f'{folder} holds everything' in str(error)
    Flaky.left = 10**9
    found = fresh(url, tmp_path)
    assert found in (before, held(folder)), writes
    outcomes.append(found == before)
    assert not failed or held(folder) == held(folder) | {'b/array': 'bbbb'}
    # An empty staging takes the URL over, and clears up.
    other = begun(url, tmp_path / f'{writes}-other')
    other.finish()
    assert there(url) == {LISTING, *found}, writes
    if not failed:
      break
  assert outcomes[:5] == [True] * 5 and not outcomes[-1] and sum(not kept for kept in outcomes) > 5


def test_the_same_staging_goes_on_after_a_failure_at_any_write(tmp_path):
  for writes in range(100):
    url, folder = f'flaky://b/run{writes}', tmp_path / str(writes)
    mirror = begun(url, folder)
    write(folder, a_txt='1', b_json='1')
    mirror.push()
    write(folder, a_txt='2', b_json=None, c_txt='3')
    Flaky.left = writes
    try:
      mirror.push()
      break
    except OutputError:
      Flaky.left = 10**9
    expected = {'a.txt': '2', 'c.txt': '3'}
    # By a new process, for which missing files are lost.
    if writes % 2:
      mirror = begun(url, folder)
      expected = held(folder)
      assert expected in ({'a.txt': '2', 'c.txt': '3'}, {'a.txt': '2', 'b.json': '1', 'c.txt': '3'})
    mirror.push()
    assert held(folder) == fresh(url, tmp_path) == expected and there(url) == {LISTING, *expected}
  assert writes > 5 and not list(tmp_path.glob('*.aside*'))


def test_the_answer_to_a_write_that_was_done_may_be_lost(tmp_path, monkeypatch):
  mirror = begun('memory://b/run', tmp_path / 'one')
  write(tmp_path / 'one', a_txt='1')
  put = MemoryFileSystem.pipe_file

  def lost(*args, **kwargs):
    put(*args, **kwargs)
    raise TimeoutError

  monkeypatch.setattr(MemoryFileSystem, 'pipe_file', lost)
  with pytest.raises(OutputError, match='TimeoutError'):
    mirror.push()
  monkeypatch.undo()
  mirror.push()
  assert fresh('memory://b/run', tmp_path) == {'a.txt': '1'}


def test_manifests_get_their_names_after_what_they_describe(tmp_path):
  mirror = begun('flaky://b/run', tmp_path / 'one')
  write(tmp_path / 'one', a__a_json='{}', a__b_safetensors='1', z__c_txt='2')
  mirror.push()
  copied = [path for what, path in Flaky.order if what == 'copy']
  assert sorted(copied[:2]) == ['flaky://b/run/a/b.safetensors', 'flaky://b/run/z/c.txt']
  assert copied[2:] == ['flaky://b/run/a/a.json']
  listed = [i for i, (_, path) in enumerate(Flaky.order) if path.endswith(LISTING)][-1]
  assert all(i < listed for i, (what, _) in enumerate(Flaky.order) if what == 'write')
  assert Flaky.order.index(('copy', copied[0])) > listed


def test_a_file_that_grows_is_pushed_as_it_was_found_and_one_that_is_replaced_anew(
  tmp_path, monkeypatch
):
  folder = tmp_path / 'one'
  mirror = begun('memory://b/run', folder)
  write(folder, rows_jsonl='1\n', b_txt='old')
  looked = []
  opened = mirror._open

  def meanwhile(name):
    if name == 'rows.jsonl':
      with open(folder / name, 'a') as file:
        file.write(f'{len(looked)} more')
    elif not looked:
      (folder / 'x').write_text('newer')
      os.replace(folder / 'x', folder / name)
    looked.append(name)
    return opened(name)

  monkeypatch.setattr(mirror, '_open', meanwhile)
  mirror.push()
  found = fresh('memory://b/run', tmp_path)
  grown = (folder / 'rows.jsonl').read_text()
  assert (
    found['b.txt'] == 'newer'
    and grown.startswith(found['rows.jsonl'])
    and found['rows.jsonl'] != grown
  )
  assert looked.count('b.txt') == 2


def test_a_folder_that_is_renamed_while_it_is_looked_at_is_pushed_whole(tmp_path, monkeypatch):
  folder, walk, renamed = tmp_path / 'one', listing.walk, []
  mirror = begun('memory://b/run', folder)
  write(folder, old__a='1', old__b='2')

  def meanwhile(*args):
    for name, stat in walk(*args):
      yield name, stat
      if name == 'old/a' and not renamed:
        renamed.append((folder / 'old').rename(folder / '.old.removed'))
        write(folder, new__c='3')

  monkeypatch.setattr(listing, 'walk', meanwhile)
  assert mirror._scan().keys() == {'new/c'}


def test_another_run_that_takes_a_url_over_stops_the_one_before(url, tmp_path):
  one = begun(url, tmp_path / 'one')
  write(tmp_path / 'one', a_txt='1')
  one.push()
  two = begun(url, tmp_path / 'two')
  write(tmp_path / 'one', a_txt='one')
  write(tmp_path / 'two', a_txt='two')
  for _ in range(2):
    with pytest.raises(
      Conflict, match='another run has taken it over .generation 3 there, 2 was'
    ) as error:
      one.push()
    one._closed.clear()
  assert error.value.exit_code == 65 and f'{tmp_path}/one keeps what it has made' in str(
    error.value
  )
  two.push()
  assert fresh(url, tmp_path) == {'a.txt': 'two'}


def test_two_processes_on_one_staging_are_noticed(tmp_path):
  one = begun('memory://b/run', tmp_path / 'one')
  two = begun('memory://b/run', tmp_path / 'one')
  two.push()
  with pytest.raises(Conflict):
    one.push()


def test_who_goes_on_from_what(tmp_path, capsys):
  url = 'memory://b/run'
  one = begun(url, tmp_path / 'one')
  write(tmp_path / 'one', a_txt='1')
  one.finish()
  # Unpushed work of the staging that the URL descends from counts, and what is missing comes back.
  write(tmp_path / 'one', a_txt=None, b_txt='2')
  begun(url, tmp_path / 'one').finish()
  assert held(tmp_path / 'one') == fresh(url, tmp_path) == {'a.txt': '1', 'b.txt': '2'}
  # A staging that knows nothing of it is set aside.
  write(tmp_path / 'two', mine_txt='!')
  begun(url, tmp_path / 'two').push()
  assert held(tmp_path / 'two.aside-1') == {'mine.txt': '!'}
  assert held(tmp_path / 'two') == {'a.txt': '1', 'b.txt': '2'}
  assert (
    f'{tmp_path}/two does not go on from what {url} holds, which counts: it is now'
    in capsys.readouterr().out
  )
  # So is one that was overtaken.
  write(tmp_path / 'one', c_txt='late')
  begun(url, tmp_path / 'one')
  assert 'c.txt' in held(tmp_path / 'one.aside-1') and 'c.txt' not in held(tmp_path / 'one')
  # And a copy of a staging, from before it went on.
  shutil.copytree(tmp_path / 'one', tmp_path / 'copy')
  write(tmp_path / 'one', d_txt='4')
  begun(url, tmp_path / 'one').finish()
  begun(url, tmp_path / 'copy').finish()
  assert 'd.txt' in held(tmp_path / 'copy') and held(tmp_path / 'copy.aside-1') == {
    'a.txt': '1',
    'b.txt': '2',
  }
  # A run that was local is brought to a new URL as it is.
  begun('memory://b/new', tmp_path / 'one').finish()
  assert fresh('memory://b/new', tmp_path) == {'a.txt': '1', 'b.txt': '2', 'd.txt': '4'}


def test_a_pull_that_was_cut_short_goes_on(tmp_path, monkeypatch):
  url, fetch = 'memory://b/run', mirrors.Mirror._fetch
  mirror = begun(url, tmp_path / 'one')
  write(tmp_path / 'one', a_txt='1', b_txt='2', c_txt='3')
  mirror.finish()

  def cut(self, name, entry):
    if name == 'c.txt':
      raise KeyboardInterrupt
    fetch(self, name, entry)

  monkeypatch.setattr(mirrors.Mirror, '_fetch', cut)
  with pytest.raises(KeyboardInterrupt):
    begun(url, tmp_path / 'two')
  assert 'c.txt' not in held(tmp_path / 'two')
  monkeypatch.undo()
  came = (tmp_path / 'two' / 'a.txt').stat().st_ino
  write(tmp_path / 'two', b_txt='damaged')
  begun(url, tmp_path / 'two')
  assert held(tmp_path / 'two') == {'a.txt': '1', 'b.txt': '2', 'c.txt': '3'} and not list(
    tmp_path.glob('*.aside*')
  )
  assert (tmp_path / 'two' / 'a.txt').stat().st_ino == came


def change(path, how):
  path.write_text(how(path.read_text()))


@pytest.mark.parametrize(
  'damage, message',
  [
    (lambda there: (there / 'a.txt').write_text('2'), "a.txt is not what .mirror.json there says"),
    (lambda there: (there / 'a.txt').unlink(), "a.txt is not what .mirror.json there says"),
    (lambda there: change(there / LISTING, lambda text: text[:-20]), 'cut short or damaged'),
    (
      lambda there: change(there / LISTING, lambda text: text.replace('a.txt', '../a.txt')),
      "names '../a.txt'",
    ),
  ],
)
def test_what_another_hand_has_changed_is_refused(tmp_path, damage, message):
  mirror = begun(f'file://{tmp_path}/there', tmp_path / 'one')
  write(tmp_path / 'one', a_txt='1')
  mirror.finish()
  damage(tmp_path / 'there')
  with pytest.raises(CorruptError, match=message):
    begun(f'file://{tmp_path}/there', tmp_path / 'two')
  assert not held(tmp_path / 'two') and not (tmp_path / 'a.txt').exists()


@pytest.mark.parametrize(
  'url, message',
  [
    ('s3://key:hunter2@bucket/run', 'without user:password'),
    ('gs://bucket/run?token=hunter2', 'without user:password'),
    ('gss://bucket/run', 'Protocol not known: gss'),
    ('memory://', 'expected a folder in it'),
    ('file://{tmp}/there', 'no .mirror.json: it is no workdir'),
    ('file://{tmp}/one/two', 'one within the other'),
    ('file://{tmp}', 'one within the other'),
  ],
)
def test_urls_that_cannot_be_a_workdir_are_refused(tmp_path, url, message):
  write(tmp_path, there__thesis_txt='mine')
  with pytest.raises(InputError, match=message) as error:
    begun(url.format(tmp=tmp_path), tmp_path / 'one')
  assert 'hunter2' not in str(error.value) and not (tmp_path / 'one').exists()


@pytest.mark.parametrize(
  'scheme, package', [('gs', 'gcsfs'), ('s3', 's3fs'), ('abfs', 'adlfs'), ('oci', 'ocifs')]
)
def test_a_driver_that_is_not_installed_is_named(scheme, package, tmp_path, monkeypatch):
  # As if the package were not installed.
  monkeypatch.setitem(sys.modules, package, None)
  monkeypatch.delitem(sys.modules['fsspec.registry']._registry, scheme, raising=False)
  with pytest.raises(
    InputError, match=f'the driver of {scheme}:// is not installed: pip install {package}'
  ):
    mirrors.Mirror(f'{scheme}://bucket/run', tmp_path)


def test_pushing_goes_on_after_failures_and_a_conflict_ends_the_run(
  tmp_path, monkeypatch, caplog, request
):
  mirror = begun('flaky://b/run', tmp_path / 'one')
  request.addfinalizer(mirror._closed.set)
  ended = []
  monkeypatch.setattr(ending, 'tell_and_end', lambda *told: ended.append(told))
  write(tmp_path / 'one', a_txt='1')
  Flaky.left = 0
  mirror.keep_pushing(0.05)
  until(lambda: 'the store is away' in caplog.text)
  assert (
    'the run goes on, and it is tried again' in caplog.text and 'not there are a.txt' in caplog.text
  )
  Flaky.left = 10**9
  until(lambda: 'flaky://b/run/a.txt' in Flaky.store)
  begun('flaky://b/run', tmp_path / 'two')
  until(lambda: ended)
  assert len(ended) == 1 and ended[0][1] == 65 and 'another run has taken it over' in ended[0][0]


def until(happened, seconds=20):
  deadline = time.monotonic() + seconds
  while not happened():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def test_the_last_push_before_an_error_ends_the_run_does_not_hide_the_error(
  tmp_path, monkeypatch, capsys, caplog
):
  monkeypatch.setattr(ending, '_last_actions', [])
  mirror = begun('flaky://b/run', tmp_path / 'one')
  ending.before_end(mirror.last_push)
  write(tmp_path / 'one', a_txt='1')
  assert ending.fail(Preempted('SIGTERM came')) == 75
  assert capsys.readouterr().err.endswith('error: SIGTERM came\n')
  assert fresh('flaky://b/run', tmp_path) == {'a.txt': '1'}
  ending._last_actions[0] = (mirror := begun('flaky://b/run', tmp_path / 'one')).last_push
  write(tmp_path / 'one', b_txt='2')
  Flaky.left = 0
  assert ending.fail(Preempted('SIGTERM came')) == 75
  assert 'not there are b.txt' in caplog.text and capsys.readouterr().err.endswith(
    'error: SIGTERM came\n'
  )


def small_run(folder):
  c = small.get_config()
  small.write_data(folder)
  c.data.positive, c.data.negative = f'{folder}/positive.jsonl', f'{folder}/negative.jsonl'
  return configs.resolve(c)


def test_a_fine_tune_that_is_preempted_goes_on_from_an_empty_staging_bit_for_bit(
  tmp_path, monkeypatch
):
  run, url, step = small_run(tmp_path), 'memory://b/run', log.Log.step
  stages.begin(Experiment(run, tmp_path / 'whole'))
  whole = stages.finetune(Experiment(run, tmp_path / 'whole'), sides=('positive',))['positive']

  def stop(self, number, *args, **kwargs):
    step(self, number, *args, **kwargs)
    if number == 4:
      os.kill(os.getpid(), signal.SIGTERM)

  mirror = begun(url, tmp_path / 'one')
  stages.begin(Experiment(run, tmp_path / 'one'))
  monkeypatch.setattr(log.Log, 'step', stop)
  with pytest.raises(Preempted, match='step [45] of 6'):
    stages.finetune(Experiment(run, tmp_path / 'one'), sides=('positive',))
  monkeypatch.undo()
  mirror.last_push()
  (tmp_path / 'one').rename(tmp_path / 'lost')
  mirror = begun(url, tmp_path / 'two')
  resumed = []

  def note(self, number, *args, **kwargs):
    return (
      resumed.append(number),
      step(self, number, *args, **kwargs),
    )

  monkeypatch.setattr(log.Log, 'step', note)
  stages.begin(Experiment(run, tmp_path / 'two'))
  result = stages.finetune(Experiment(run, tmp_path / 'two'), sides=('positive',))['positive']
  assert resumed in ([5, 6], [6])
  tensors = 'adapter.safetensors'
  assert (result.folder / tensors).read_bytes() == (whole.folder / tensors).read_bytes()
  mirror.finish()
  assert {name for name in fresh_names(url, tmp_path) if 'adapter' in name} == {
    f'finetune/positive/adapter/{path.name}' for path in whole.folder.iterdir()
  }


def fresh_names(url, tmp_path):
  folder = tmp_path / 'names'
  mirrors.Mirror(url, folder)._pulled()
  return {name for name, _ in listing.walk(folder)}


AWAY = '''
"""The command, with a store on a disk that fills up at the n-th file."""
import sys
import fsspec
from fsspec.implementations.local import LocalFileSystem

class Away(LocalFileSystem):
  left = int(sys.argv.pop(1))
  def _open(self, path, mode='rb', **kwargs):
    if mode == 'wb':
      Away.left -= 1
      if Away.left < 0:
        raise OSError('no space there')
    return super()._open(path, mode, **kwargs)

fsspec.register_implementation('file', Away, clobber=True)
from weightsteer_jax.storage.remote import mirror as mirrors
mirrors.FIRST_PAUSE = 0.01
from weightsteer_jax.interfaces.cli import command
command.main()
'''


def launched(tmp_path, *args):
  """The finished process of AWAY with its arguments, which works on the small run."""
  (tmp_path / 'away.py').write_text(AWAY)
  settings = [f'--config={ROOT}/tests/distributed/small.py', *small.write_data(tmp_path)]
  command = [sys.executable, 'away.py', *args[:2], *settings, *args[2:]]
  return subprocess.run(
    command,
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
  )


def test_a_launcher_whose_store_fails_ends_with_74_and_the_same_command_brings_everything_there(
  tmp_path,
):
  url = f'file://{tmp_path}/there/run'
  done = launched(tmp_path, '0', 'data', f'--workdir={url}', '--push_seconds=0.1')
  last = done.stderr.strip().splitlines()[-1]
  assert done.returncode == 74, done.stderr
  assert last.startswith(
    f'error: {url} could not be written: OSError: no space there; not there are config.json'
  )
  assert last.endswith('; runs/small holds everything, and the same command goes on from it')
  state = json.loads((tmp_path / 'there' / 'run' / LISTING).read_text())
  assert 'Traceback' not in done.stderr and state['files'] == {}
  done = launched(tmp_path, '99', 'data', f'--workdir={url}')
  assert done.returncode == 0 and 'runs/small goes on from there' in done.stdout, done.stderr
  assert (tmp_path / 'there/run/config.json').read_bytes() == (
    tmp_path / 'runs/small/config.json'
  ).read_bytes()
  # Other settings are refused from an empty staging too, by a run and by a dry one, which leaves
  # nothing behind.
  before = sorted(tmp_path.rglob('*'))
  other = ('--config.finetune.rank=8', '--staging=other')
  done = launched(tmp_path, '0', 'data', f'--workdir={url}', *other, '--dry_run')
  assert done.returncode == 65 and 'finetune.rank: 4 there, 8 now' in done.stderr, done.stderr
  assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.slow
def test_sigterm_to_a_launcher_and_another_machine_goes_on_bit_for_bit(tmp_path):
  """Processes share a staging folder; the one that is asked to end is not the one that pushes."""
  flags = [
    f'--config={ROOT}/tests/distributed/small.py',
    *small.write_data(tmp_path),
    '--push_seconds=1000',
  ]
  program = ROOT / 'tests/distributed/program.py'

  def start(name, *more):
    return harness.start(2, program, 'finetune', *flags, *more, logs=tmp_path / name)

  whole = start('logs0', f'--workdir={tmp_path}/whole')
  assert whole.wait(300) == [0, 0], whole.said()
  url = f'file://{tmp_path}/there'
  cut = start(
    'logs1', f'--workdir={url}', f'--staging={tmp_path}/one', '--fault=stop', '--on=1', '--at=4'
  )
  assert cut.wait(300) == [75, 75], cut.said()
  (tmp_path / 'one').rename(tmp_path / 'lost')
  resumed = start('logs2', f'--workdir={url}', f'--staging={tmp_path}/two')
  assert resumed.wait(300) == [0, 0], resumed.said()
  assert f'from {url}' in resumed.output(0) and 'pushed: ' in resumed.output(0)
  for side in ('positive', 'negative'):
    tensors = f'finetune/{side}/adapter/adapter.safetensors'
    assert (tmp_path / 'there' / tensors).read_bytes() == (
      tmp_path / 'whole' / tensors
    ).read_bytes()
  steps = [
    json.loads(line)
    for line in (tmp_path / 'there/finetune/positive/metrics.jsonl').read_text().splitlines()
  ]
  assert [row['step'] for row in steps if 'train_loss' in row] == [1, 2, 3, 4, 5, 6]
