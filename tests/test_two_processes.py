"""Two processes at once (kind: read, change, write without a lock; a name that both use). Records, tables, texts and features of both are there afterwards,
equal computations end equal, and nobody dies. The long form (`FROZEN_NB_CAMPAIGNS=full`) is 160 updates."""
import json, multiprocessing, os

import pytest
import torch

from frozen_nb.core.claims import Ledger, Tables, load_records
from frozen_nb.core.folders import read_folder, write_folder
from frozen_nb.core.frozen import BadInput
from frozen_nb.core.stores import FeatureStore, TextStore

fork = multiprocessing.get_context('fork') if hasattr(os, 'fork') else None
pytestmark = pytest.mark.skipif(fork is None, reason='needs fork')
N = 80 if os.environ.get('FROZEN_NB_CAMPAIGNS') == 'full' else 20   # updates of each process


def both(f, *args, processes=2):
    "Run f(i, *args) in processes that begin together; all of them end well."
    start = fork.Barrier(processes)
    def run(i):
        start.wait()
        f(i, *args)
    children = [fork.Process(target=run, args=(i,)) for i in range(processes)]
    for child in children: child.start()
    for child in children: child.join(120)
    assert [child.exitcode for child in children] == [0]*processes


def save_records(i, folder):
    for k in range(N):
        ledger = Ledger('demo')
        ledger.claim(f'demo.p{i}.k{k}', 'A level.', source='1', measure='recall', threshold=.5)
        ledger.record(f'demo.p{i}.k{k}', .7)
        ledger.save(folder)


def test_records_of_both_are_kept(tmp_path):
    both(save_records, tmp_path)
    lost = 2*N - len(load_records(tmp_path/'demo.json'))
    print(f'{2*N} updates, {lost} lost')
    assert lost == 0 and not list(tmp_path.glob('.*.part'))


def keep_tables(i, folder):
    for k in range(N): Tables('demo', folder).keep(f'p{i} k{k}', [dict(x=k)])


def test_tables_of_both_are_kept(tmp_path):
    both(keep_tables, tmp_path)
    kept = json.loads((tmp_path/'tables'/'demo.json').read_text())
    assert len(kept) == 2*N and all(f'p{i} k{k}' in Tables('demo', tmp_path) for i in range(2) for k in range(N))


def both_kinds(i, folder): (keep_tables if i else save_records)(i, folder)


def test_records_and_tables_at_once(tmp_path):
    both(both_kinds, tmp_path)
    assert len(load_records(tmp_path/'demo.json')) == N == len(json.loads((tmp_path/'tables'/'demo.json').read_text()))


def run_chapters(i, folder):
    "Two runs that put the records aside and bring them back, and a notebook that saves its own meanwhile."
    from frozen_nb import cli
    if i == 2: return save_records(0, folder/'claims')
    for _ in range(N):
        cli._put_aside(folder)
        cli._bring_back(folder)


def test_two_runs_in_one_folder(tmp_path):
    both(run_chapters, tmp_path, processes=3)
    assert len(load_records(tmp_path/'claims'/'demo.json')) == N and not (tmp_path/'.claims-before').exists()


def put_texts(i, folder):
    for k in range(N):
        prompts = [f'{i} {k}', f'both {k}']
        assert TextStore('key', folder=folder).texts(prompts, lambda ps: [p.upper() for p in ps]) == [p.upper() for p in prompts]


def test_texts_of_both_are_kept(tmp_path):
    both(put_texts, tmp_path, processes=3)
    prompts = [f'{i} {k}' for i in (0, 1, 2, 'both') for k in range(N)]
    assert TextStore('key', folder=tmp_path).get(prompts) == {p: p.upper() for p in prompts}


def compute_features(i, folder):
    items = [str(k) for k in range(200)]
    for key in range(4):
        feats = FeatureStore(folder).features({'key': key}, items, lambda todo: torch.tensor(todo).float()[:, None]*key, shard_size=8, progress=False)
        assert feats[:][:, 0].tolist() == [float(k*key) for k in range(200)]


def test_the_same_features_in_both(tmp_path):
    both(compute_features, tmp_path, processes=3)
    assert not list(tmp_path.rglob('*.part'))


def write_and_read(tag, out, rounds):
    def holds(folder): return read_folder(folder, 'toy')[0].get('kind') == 'toy'
    for _ in range(rounds):
        try: write_folder(out, dict(w=torch.full((50,), float(tag))), dict(kind='toy', tag=tag), 'a toy', holds)
        except BadInput as error: assert 'meanwhile' in str(error), error
        config, tensors = read_folder(out, 'toy')
        assert (tensors['w'] == config['tag']).all()

def test_results_written_at_the_same_moment(tmp_path):
    "Three processes write and read one place: what is read is whole, whoever wrote it, and a writer is refused at most."
    both(write_and_read, tmp_path/'out', N, processes=3)
    assert [p.name for p in tmp_path.iterdir()] == ['out'] and {p.name for p in (tmp_path/'out').iterdir()} == {'config.json', 'model.safetensors', 'sha256.json'}
