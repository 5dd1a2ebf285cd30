"A wheel, installed somewhere else, brings its models, records and notebooks, and is never written to."
import json, os, shutil, subprocess, sys, sysconfig, venv
from pathlib import Path

import pytest

from conftest import root
from test_repo import files

env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}

def python(*args, at=sys.executable, cwd=None, status=0):
    done = subprocess.run([str(a) for a in (at, *args)], capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout

@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    "The folder of a virtual environment that has the wheel, and everything else from where the tests run."
    folder = tmp_path_factory.mktemp('wheel')
    for p in files:
        if p.is_relative_to(root/'tests'): continue
        (folder/'source'/p.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, folder/'source'/p.relative_to(root))
    python('-m', 'build', '--wheel', '--no-isolation', '--outdir', folder/'dist', folder/'source')
    shutil.rmtree(folder/'source')
    venv.create(folder/'venv', with_pip=False)
    at = folder/'venv'/'bin'/'python'
    python('-m', 'pip', '--python', at, 'install', '--no-deps', '--no-index', '--quiet', *(folder/'dist').glob('*.whl'))
    packages = Path(python('-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', at=at).strip())
    (packages/'rest.pth').write_text(sysconfig.get_path('purelib') + '\n')
    return folder/'venv', packages

def listing(folder): return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob('*') if '__pycache__' not in p.parts}

def test_wheel_holds_what_the_checkout_holds(installed):
    package = installed[1]/'frozen_nb'
    inside = {p.relative_to(package).as_posix() for p in package.rglob('*') if p.is_file() and '__pycache__' not in p.parts}
    names = {p.relative_to(root).as_posix() for p in files}
    carried = {n for n in names if n.startswith(('data/', 'nbs/')) and not n.startswith('data/runs/')}   # trainings stay in the clone
    assert inside == carried | {n.removeprefix('frozen_nb/') for n in names if n.startswith('frozen_nb/')}

def test_wheel_works_from_elsewhere(installed, tmp_path):
    (bin, packages), before = (installed[0]/'bin', installed[1]), listing(installed[1]/'frozen_nb')
    code = '''
import json
from frozen_nb.cli import chapters, notebooks_of
from frozen_nb.core.frozen import data_path, notebooks_path
from frozen_nb.core.zoo import load_encoder, load_lm, shipped
loaded = {}
for kind, load in dict(lm=load_lm, encoder=load_encoder).items():
    if names := shipped(kind): loaded[names[0]] = load(names[0], device='cpu').fingerprint
experiments = [f'{p.parent.name}/{p.name}' for method, path in chapters().items() for p in notebooks_of(method, path)[1:]]
print(json.dumps(dict(data=str(data_path()), notebooks=str(notebooks_path()), chapters=list(chapters()), experiments=sorted(experiments), shipped=shipped(), loaded=loaded)))'''
    found = json.loads(python('-c', code, at=bin/'python', cwd=tmp_path))
    assert found['data'] == str(packages/'frozen_nb'/'data') and found['notebooks'] == str(packages/'frozen_nb'/'nbs')
    assert found['chapters'] == [p.stem[3:] for p in sorted((root/'nbs').glob('[1-7][0-9]_*.ipynb'))]
    cards = {p.parent.name: json.loads(p.read_text()) for p in (root/'data'/'zoo').glob('*/card.json')}
    assert found['shipped'] == sorted(cards) and all(cards[name]['fingerprint'] == seen for name, seen in found['loaded'].items())
    assert found['experiments'] == [f'{p.parent.name}/{p.name}' for p in sorted((root/'nbs/experiments').glob('*.ipynb'))]
    assert python('reproduce', '--dry-run', at=bin/'frozen-nb', cwd=tmp_path).count('\n') == len(found['chapters']) + len(found['experiments']) + 1   # and the sum
    assert python('--version', at=bin/'frozen-nb', cwd=tmp_path).strip() in next(packages.glob('frozen_nb-*.dist-info')).name
    assert list(tmp_path.iterdir()) == [] and listing(packages/'frozen_nb') == before
