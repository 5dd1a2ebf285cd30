"""What holds for every test: the preset `quick`, a cache of its own, no window, no more threads than small models can use, subprocesses that find this
checkout, and no files left behind."""
import os, shutil, tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

root = Path(__file__).resolve().parent.parent

for name in ('FROZEN_NB_OUT', 'FROZEN_NB_SEEDS', 'IN_TEST'): os.environ.pop(name, None)
os.environ.setdefault('FROZEN_NB_PRESET', 'quick')
os.environ.setdefault('MPLBACKEND', 'Agg')
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
if 'FROZEN_NB_CACHE' not in os.environ:
    cache = tempfile.TemporaryDirectory(prefix='frozen_nb-cache-', ignore_cleanup_errors=True)
    os.environ['FROZEN_NB_CACHE'] = cache.name

def pytest_configure(config):
    config.addinivalue_line('markers', 'campaign: one thing many times; shortened, unless FROZEN_NB_CAMPAIGNS=full')
    workers = getattr(config.option, 'numprocesses', None) or 1   # with -n of pytest-xdist
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, min(4, (os.cpu_count() or 1)//workers))))   # before torch is imported

SLOW = '10_limber', '15_pinto', '90_cli', '13_lm4visual', 'experiments/ima', '20_crossings', 'experiments/pinto', '12_flmm', '11_ima', '14_generative_adapter'

def pytest_collection_modifyitems(items):
    "The long ones first, so that two workers end at the same time."
    def rank(item): return next((i for i, name in enumerate(SLOW) if item.name == f'test_notebook[{name}]'), len(SLOW) + ('test_notebook[' not in item.name))
    items.sort(key=rank)

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "Tests go to the workers one by one, in their order."
    from xdist.scheduler import LoadScheduling
    scheduling = LoadScheduling(config, log)
    scheduling.maxschedchunk = 1
    return scheduling

@pytest.fixture
def tmp_path(tmp_path):
    "As pytest's, and gone after the test: thousands of tests with copies of models fill a disk."
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)

@pytest.fixture
def shell(capsys):
    "Run a command of `frozen-nb` in this process: its status, and what it wrote."
    from frozen_nb import cli
    def call(*args):
        status = cli.run(args)
        return SimpleNamespace(status=status, **capsys.readouterr()._asdict())
    return call
