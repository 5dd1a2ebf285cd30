"What holds for every test: the preset `quick`, a cache of its own, no window, no more threads than small models can use, and subprocesses that find this checkout."
import os, tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

root = Path(__file__).resolve().parent.parent

for name in ('FROZEN_NB_OUT', 'FROZEN_NB_SEEDS', 'IN_TEST'): os.environ.pop(name, None)
os.environ.setdefault('FROZEN_NB_PRESET', 'quick')
os.environ.setdefault('OMP_NUM_THREADS', str(min(4, os.cpu_count() or 1)))
os.environ.setdefault('MPLBACKEND', 'Agg')
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
if 'FROZEN_NB_CACHE' not in os.environ:
    cache = tempfile.TemporaryDirectory(prefix='frozen_nb-cache-', ignore_cleanup_errors=True)
    os.environ['FROZEN_NB_CACHE'] = cache.name

def pytest_configure(config): config.addinivalue_line('markers', 'campaign: one thing many times; shortened, unless FROZEN_NB_CAMPAIGNS=full')

@pytest.fixture
def shell(capsys):
    "Run a command of `frozen-nb` in this process: its status, and what it wrote."
    from frozen_nb import cli
    def call(*args):
        status = cli.run(args)
        return SimpleNamespace(status=status, **capsys.readouterr()._asdict())
    return call
