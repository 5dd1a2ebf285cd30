"Every notebook, once, from top to bottom in a process of its own: seeds, threads, rcParams and memory do not leak into the next."
import json, os, signal, subprocess, sys

import pytest

from conftest import root

notebooks = sorted((root/'nbs').rglob('*.ipynb'))
MINUTES, GIB = 20, 4 # a hung notebook is stopped; a notebook of the preset `quick` has to fit into so much memory

code = '''
import json, resource, sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb as run_nb
path, root = map(Path, sys.argv[1:])
passed, seconds = run_nb(path, skip_flags=get_config().tst_flags.split(), basepath=root)
print('\\n' + json.dumps(dict(passed=passed, seconds=seconds, gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**30 if sys.platform == 'darwin' else 2**20))))
'''

def run(path, out):
    "What `nbdev_test` does with one notebook: whether it passed, its seconds and GiB, and what it wrote to stderr."
    p = subprocess.Popen([sys.executable, '-c', code, path, root], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root, start_new_session=True,
                         env=os.environ | dict(FROZEN_NB_OUT=str(out)))
    try: said, err = p.communicate(timeout=60*MINUTES)
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, signal.SIGKILL)
        pytest.fail(f'{path.name} was still running after {MINUTES} minutes')
    if p.returncode: pytest.fail(f'{path.name} ended its process with status {p.returncode}:\n{err[-5000:]}')
    return json.loads(said.splitlines()[-1]), err

@pytest.mark.timeout(60*MINUTES + 60)
@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.relative_to(root/'nbs').with_suffix('').as_posix())
def test_notebook(path, tmp_path, record_property):
    found, err = run(path, tmp_path)
    for name in ('seconds', 'gib'): record_property(name, found[name])
    assert found['passed'] is True, f'{path.name} failed:\n{err[-5000:]}'
    assert found['gib'] < GIB, f"{path.name} took {found['gib']:.1f} GiB"
    failed = [r['id'] for f in (tmp_path/'claims').glob('*.json') for r in json.loads(f.read_text()) if r['required'] and r['verdict'] == 'fails' and r['unit'] != 'ratio']   # most ratios are of seconds, and for a quiet machine
    assert not failed, f'{path.name}: required at this preset, and fails: {failed}; what needs more steps is not recorded by `quick`'

def test_a_failing_notebook_is_noticed(tmp_path):
    cell = lambda source: dict(cell_type='code', id=source[:1], execution_count=None, metadata={}, outputs=[], source=[source])
    bad = dict(cells=[cell('assert 1 == 2')], metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')), nbformat=4, nbformat_minor=5)
    (tmp_path/'bad.ipynb').write_text(json.dumps(bad))
    found, err = run(tmp_path/'bad.ipynb', tmp_path)
    assert found['passed'] is False and 'AssertionError' in err
