"What a notebook cannot show well about the stores: a kill while they write, several processes, damage, hashes of many inputs. More of it is in test_campaigns."
import copy, multiprocessing, os, random, signal, sqlite3, subprocess, sys, tempfile, time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from frozen_nb.core.frozen import BadInput, current_fingerprint, data_path, fingerprint, freeze, seeded
from frozen_nb.core.stores import encode_images, feature_key, FeatureStore, hash_inputs, run_folder, TextStore

torch.set_num_threads(1)
fork = multiprocessing.get_context('fork') if hasattr(os, 'fork') else None
forks = pytest.mark.skipif(fork is None, reason='needs fork')
key, items = {'encoder': 'linear'}, [f'item {i}' for i in range(320)]
inputs = torch.randn(320, 48, generator=torch.Generator().manual_seed(0))
weight = torch.randn(48, 5, 7, generator=torch.Generator().manual_seed(1))


class Compute:
    def __init__(self, pause=0): self.pause, self.asked = pause, []
    def __call__(self, todo):
        self.asked += todo
        time.sleep(self.pause)
        return torch.einsum('bi,ijk->bjk', inputs[todo], weight)


def fill(folder, compute=None, **more):
    compute = compute or Compute()
    return FeatureStore(folder).features(key, items, compute, **dict(shard_size=16, progress=False) | more), compute


def shards(folder): return sorted(folder.rglob('*.safetensors'))


@pytest.fixture(scope='module')
def whole(tmp_path_factory): return fill(tmp_path_factory.mktemp('whole'))[0][:]


@forks
def test_killed_while_writing(tmp_path, whole):
    def die(fd): os.kill(os.getpid(), signal.SIGKILL)
    feats, _ = fill(tmp_path, progress=False, shard_size=320)
    folder = shards(tmp_path)[0].parent
    shards(tmp_path)[0].unlink()
    with patch('os.fsync', die):
        child = fork.Process(target=fill, args=(tmp_path,))
        child.start()
        child.join()
    left = list(folder.glob('*.part'))
    assert child.exitcode == -signal.SIGKILL and len(left) == 1 and not shards(tmp_path)
    assert torch.equal(fill(tmp_path)[0][:], whole)
    assert left[0].exists()                                      # it may belong to a live process
    os.utime(left[0], (time.time() - 4000,) * 2)
    fill(tmp_path)
    assert not left[0].exists()


def _fill_and_count(folder, count):
    compute = Compute(.01)
    fill(folder, compute)
    count.value = len(compute.asked)


@forks
def test_two_processes_share_the_work(tmp_path, whole):
    counts = [fork.Value('i', 0) for _ in range(2)]
    children = [fork.Process(target=_fill_and_count, args=(tmp_path, count)) for count in counts]
    for child in children: child.start()
    for child in children: child.join()
    assert [child.exitcode for child in children] == [0, 0]
    computed = [count.value for count in counts]
    assert min(computed) > 0 and len(items) <= sum(computed) < 1.5 * len(items), computed
    feats, compute = fill(tmp_path)
    assert compute.asked == [] and torch.equal(feats[:], whole) and not list(tmp_path.rglob('*.part'))


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize('where', ['data', 'items', 'header length', 'checksum'])
def test_a_flipped_byte_costs_one_shard(tmp_path, whole, where):
    fill(tmp_path)
    path = shards(tmp_path)[7]
    data = path.read_bytes()
    flip(path, {'data': -9, 'items': data.index(b'item ') + 5, 'header length': 3, 'checksum': data.index(b'rows_sha256') + 20}[where])
    feats, compute = fill(tmp_path)
    assert torch.equal(feats[:], whole)
    assert len(compute.asked) == 16 and not path.exists()


def test_truncated_and_deleted_shards(tmp_path, whole):
    feats, _ = fill(tmp_path)
    one, two, three = shards(tmp_path)[:3]
    one.write_bytes(one.read_bytes()[:-100])
    two.write_bytes(b'')
    three.unlink()
    again, compute = fill(tmp_path)
    assert len(compute.asked) == 48 and torch.equal(again[:], whole)


def test_shards_that_hold_nothing_of_this_store(tmp_path, whole):
    "Zeros, a link to nowhere, a file of something else, one without features: each costs its own shard, and none stops the others."
    fill(tmp_path)
    zeros, link, other, strange = shards(tmp_path)[:4]
    zeros.write_bytes(bytes(zeros.stat().st_size))
    link.unlink(); link.symlink_to('nowhere')
    save_file({'weight': torch.ones(3)}, other)
    with safe_open(strange, 'pt') as f: header = f.metadata()
    save_file({'rows': torch.ones(16, 5, 7)}, strange, header)
    again, compute = fill(tmp_path)
    assert len(compute.asked) == 64 and torch.equal(again[:], whole)


def test_a_store_where_a_file_lies(tmp_path):
    (tmp_path/'file').write_text('not a folder')
    with pytest.raises(BadInput, match='cannot write to .*file.*choose another folder'): fill(tmp_path/'file')


def test_damage_after_the_index_was_read(tmp_path, whole):
    fill(tmp_path)
    feats, compute = fill(tmp_path)
    flip(shards(tmp_path)[3], -1)
    shards(tmp_path)[11].unlink()
    other = fill(tmp_path)[0]
    assert torch.equal(feats[:], whole) and 16 <= len(compute.asked) <= 32
    assert torch.equal(other[:], whole)


def test_two_views_of_one_store_survive_a_repair(tmp_path, whole):
    fill(tmp_path)
    store = FeatureStore(tmp_path)
    a, b = (store.features(key, items, Compute(), shard_size=16, progress=False) for _ in range(2))
    flip(shards(tmp_path)[0], -1)
    assert torch.equal(a[:], whole) and torch.equal(b[:], whole)


def test_full_disk(tmp_path, whole):
    sync, room = os.fsync, iter([True] * 4 + [False] * 99)
    def full(fd):
        if not next(room): raise OSError(28, 'No space left on device')
        sync(fd)
    with patch('os.fsync', full), pytest.raises(BadInput, match='No space left on device'): fill(tmp_path)
    assert len(shards(tmp_path)) == 3 and not list(tmp_path.rglob('*.part'))
    feats, compute = fill(tmp_path)
    assert len(compute.asked) == 320 - 48 and torch.equal(feats[:], whole)


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full')
def test_a_device_that_is_full(tmp_path):
    real = open
    with patch('builtins.open', lambda path, mode='r', *a, **k: real('/dev/full' if str(path).endswith('.part') else path, mode, *a, **k)):
        with pytest.raises(BadInput, match='No space left on device'): fill(tmp_path)


def test_read_only_store_that_is_complete(tmp_path, whole):
    fill(tmp_path)
    with patch('os.replace', side_effect=PermissionError(13, 'Permission denied')):
        assert torch.equal(fill(tmp_path)[0][:], whole)


@pytest.mark.parametrize('rows', [lambda todo: torch.full((len(todo), 2), float('inf')), lambda todo: torch.ones(len(todo) + 1, 2), lambda todo: [0] * len(todo)])
def test_bad_rows_are_not_written(tmp_path, rows):
    with pytest.raises(BadInput, match="'item [0-9]+'"): fill(tmp_path, rows)
    assert not shards(tmp_path)


def test_rows_of_another_shape_name_the_key(tmp_path):
    store = FeatureStore(tmp_path)
    store.features(key, ['a'], lambda todo: torch.ones(1, 2), progress=False)
    with pytest.raises(BadInput, match='key'): store.features(key, ['a', 'b'], lambda todo: torch.ones(1, 3), progress=False)
    with pytest.raises(BadInput, match='key'): store.features(key, ['a', 'b'], lambda todo: torch.ones(1, 2).half(), progress=False)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
@pytest.mark.parametrize('shape', [(), (3,), (2, 3)])
def test_every_dtype_and_shape_comes_back(tmp_path, dtype, shape):
    rows = torch.randint(0, 2, (5, *shape)).to(dtype)
    feats = FeatureStore(tmp_path).features(key, list('abcde'), lambda todo: rows[todo], shard_size=2, progress=False)
    assert feats.dtype == dtype and feats.shape == (5, *shape) and torch.equal(feats[:], rows) and torch.equal(feats[3], rows[3])


def test_keys_and_items_are_told_apart(tmp_path):
    store, rows = FeatureStore(tmp_path), iter(range(9))
    value = lambda key, items: store.features(key, items, lambda todo: torch.tensor([[next(rows)] for _ in todo]), progress=False)[:].flatten().tolist()
    assert value({'a': 1, 'b': 2}, ['x']) == value({'b': 2, 'a': 1}, ['x']) == [0]
    assert value({'a': '1', 'b': 2}, ['x']) == [1] and value({'a': 1}, ['x', 'X', 'x ']) == [2, 3, 4]
    assert value({'a': 1}, ['x ', 'x', 'x ']) == [4, 2, 4]
    assert len(store.features({'a': 1}, [], None)) == 0
    with pytest.raises(BadInput, match='strings'): value({'a': 1}, [3])


@pytest.fixture(scope='module')
def feats(tmp_path_factory): return fill(tmp_path_factory.mktemp('index'))[0]


bound = st.none() | st.integers(-400, 400)
places = st.integers(-320, 319)


@settings(deadline=None, max_examples=100)
@given(st.one_of(places, st.builds(slice, bound, bound, st.none() | st.integers(1, 40) | st.integers(-40, -1)), st.lists(places, max_size=70),
                 st.lists(st.booleans(), min_size=320, max_size=320), st.lists(st.tuples(places, places), min_size=1).map(torch.tensor)))
def test_indexing_is_numpys(feats, whole, index):
    want = whole.numpy()[index if isinstance(index, (int, slice)) else np.asarray(index, dtype=None if len(index) else int)]
    got = feats[index]
    assert got.shape == want.shape and np.array_equal(got.numpy(), want)


def test_indices_out_of_range(feats):
    for index in (320, [0, 320], -321):
        with pytest.raises(IndexError): feats[index]


# Texts

def shout(prompts): return [prompt.upper() for prompt in prompts]


def test_texts_are_generated_once_longest_first(tmp_path):
    batches = []
    def generate(prompts):
        batches.append(prompts)
        return shout(prompts)
    store = TextStore('key', folder=tmp_path)
    assert store.texts(['a', 'ccc', 'bb', 'a', ''], generate, 2) == ['A', 'CCC', 'BB', 'A', '']
    assert batches == [['ccc', 'bb'], ['a', '']]
    assert TextStore('key', folder=str(tmp_path)).texts(['d', 'a'], generate) == ['D', 'A'] and batches[2:] == [['d']]
    assert store.texts([], None) == [] and store.get(['a', 'a', 'x']) == {'a': 'A'}
    store.put({'a': 'other'})
    assert store.texts(['a'], None) == ['other']


def test_another_key_is_another_file(tmp_path):
    for key in (('a',), ('a', 1), ('a', '1'), (['a', 1],)): TextStore(*key, folder=tmp_path).put({'x': str(key)})
    assert len(list(tmp_path.iterdir())) == 4 and TextStore('a', 1, folder=tmp_path).get(['x']) == {'x': "('a', 1)"}


def test_texts_in_the_cache_and_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path))
    nowhere = TextStore('key', folder=False)
    assert nowhere.texts(['a', 'a'], shout) == ['A', 'A'] and nowhere.get(['a']) == {} and not list(tmp_path.iterdir())
    TextStore('key').put({'a': 'A'})
    assert TextStore('key').get(['a']) == {'a': 'A'} and TextStore('key').path.parent == tmp_path/'texts'


def test_a_failure_loses_the_batch_in_hand(tmp_path):
    def generate(prompts):
        if 'a' in prompts: raise KeyboardInterrupt
        return shout(prompts)
    store = TextStore('key', folder=tmp_path)
    with pytest.raises(KeyboardInterrupt): store.texts(['a', 'bb', 'ccc'], generate, 1)
    assert store.get(['a', 'bb', 'ccc']) == {'bb': 'BB', 'ccc': 'CCC'}
    with pytest.raises(ValueError): store.texts(['dd', 'ee'], lambda prompts: ['one'])
    assert store.get(['dd', 'ee']) == {}


@pytest.mark.parametrize('text', ['', 'größer\0"\'; DROP TABLE texts', '\n' * 99, '\U0001f98a'])
def test_any_text_comes_back(tmp_path, text):
    TextStore('key', folder=tmp_path).put({text: text, 'x' + text: 'y'})
    assert TextStore('key', folder=tmp_path).get([text]) == {text: text}


def test_a_store_of_texts_that_is_damaged_or_in_the_way(tmp_path):
    store = TextStore('key', folder=tmp_path)
    store.put({'a': 'A'})
    data = store.path.read_bytes()
    for damaged in (b'nothing of the kind' * 100, data[:100] + bytes(len(data) - 100)):
        store.path.write_bytes(damaged)
        with pytest.raises(BadInput, match=f'{store.path.name}.*cannot be read.*delete it'): store.get(['a'])
    (tmp_path/'file').write_text('')
    with pytest.raises(BadInput, match='file.*cannot be used.*choose another folder'): TextStore('key', folder=tmp_path/'file').put({'a': 'A'})


def _put_many(folder, i):
    for k in range(20): TextStore('key', folder=folder).put({f'{i}/{k}': str(k), 'both': 'same'})


@forks
def test_several_processes_write_texts(tmp_path):
    children = [fork.Process(target=_put_many, args=(tmp_path, i)) for i in range(3)]
    for child in children: child.start()
    for child in children: child.join()
    assert [child.exitcode for child in children] == [0] * 3
    assert len(TextStore('key', folder=tmp_path).get([f'{i}/{k}' for i in range(3) for k in range(20)] + ['both', 'none'])) == 61


# A hash of any inputs, and kept runs

@dataclass
class Recipe:
    steps: int
    rates: tuple = (.1, .2)
    every: int = field(default=0, hash=False)
    note: str = field(default='', compare=False)


@dataclass
class Other:
    steps: int
    rates: tuple = (.1, .2)


class Arm(NamedTuple):
    steps: int


class Loss(torch.nn.Linear): pass


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
nested = st.recursive(plain, lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner), max_leaves=6)


def same(a, b):
    "Equal with types and order: what a hash has to tell apart."
    if type(a) is not type(b): return False
    if isinstance(a, dict): return same(list(a.items()), list(b.items()))
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return (a, str(a)) == (b, str(b))                            # 0. and -0. differ


@settings(max_examples=300, deadline=None)
@given(nested, nested)
def test_the_hash_tells_values_apart_as_types_and_order_do(a, b):
    assert (hash_inputs(a) == hash_inputs(b)) == same(a, b)
    assert hash_inputs(a) == hash_inputs(copy.deepcopy(a))
    assert hash_inputs(a, b) != hash_inputs([a, b]) and hash_inputs(a) != hash_inputs(a, a)


def test_values_that_look_alike():
    with_fingerprint = [SimpleNamespace(fingerprint='a'), SimpleNamespace(fingerprint='a', preprocessing='b'), SimpleNamespace(fingerprint='ab')]
    arrays = [np.zeros(2), np.zeros((2, 1)), np.zeros(2, np.float32), np.zeros(2, np.int64), np.float64(0), np.float32(0), np.zeros(1, [('a', float)]), np.zeros(1, [('b', float)])]
    tensors = [torch.zeros(2), torch.zeros(2, 1), torch.zeros(2).half(), torch.zeros(2).bfloat16(), torch.zeros(()), torch.zeros(2).int()]
    with seeded(0): modules = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]
    twin = Loss(2, 2)
    twin.load_state_dict(modules[0].state_dict())
    values = [0, 0., -0., False, None, '', '0', b'0', b'', 0j, [], (), {}, set(), frozenset(), range(0), range(1), [[]], [()], [None], Path('0'), PurePosixPath('0'), 'None', float('nan'),
              Recipe(1), Recipe(2), Recipe(1, (.2, .1)), Other(1), Arm(1), (1,), [1], torch.Size([1]), torch.float32, torch.device('cpu'), *with_fingerprint, *arrays, *tensors, *modules, twin]
    assert len({hash_inputs(v) for v in values}) == len(values)
    assert len({hash_inputs(v, w) for v in values[:20] for w in values[:20]}) == 400


def test_values_that_are_the_same():
    wide = np.zeros((4, 6))
    for a, b in [(torch.arange(6).view(2, 3).T, torch.tensor([[0, 3], [1, 4], [2, 5]])), (wide[::2, ::3], np.zeros((2, 2))), ({'b', 'a', 3}, {3, 'a', 'b'}), (Recipe(1, every=3, note='x'), Recipe(1)),
                 (torch.ones(2, requires_grad=True), torch.ones(2)), (float('nan'), -float('nan'))]:
        assert hash_inputs(a) == hash_inputs(b)
    with seeded(0): layer = torch.nn.Linear(2, 2)
    assert hash_inputs(layer) == hash_inputs(copy.deepcopy(layer).eval().requires_grad_(False))


def test_the_hash_is_the_same_in_every_process():
    code = 'import numpy as np, torch; from frozen_nb.core.stores import hash_inputs; print(hash_inputs({"b", "a", "c"}, {"x": [1, 2.5, None, True]}, torch.arange(3), np.arange(3), torch.nn.Identity()))'
    hashes = [subprocess.run([sys.executable, '-c', code], env=os.environ | dict(PYTHONHASHSEED=seed), capture_output=True, text=True, check=True).stdout for seed in ('1', '2')]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 65


LOOP = []
LOOP.append(LOOP)


@pytest.mark.parametrize('value', [print, lambda x: x, object(), Recipe, iter([]), torch.nn.functional.relu, random.Random(0), torch.Generator(), SimpleNamespace(a=1), np.array([object()]), np.ma.array([1.]), LOOP, sys,
                                   torch.ones(2, device='meta'), torch.ones(2, 2).to_sparse(), torch.nn.Linear(2, 2, device='meta')], ids=lambda v: type(v).__name__)
def test_what_has_no_content_is_refused(value):
    for inputs in ((value,), ([1, {'a': (value,)}],), (Other(value),)):
        with pytest.raises(BadInput) as error: hash_inputs(*inputs)
        assert '\n' not in str(error.value)


def test_folders_of_runs(monkeypatch, tmp_path):
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path))
    folder = run_folder('limber', Recipe(1), ['a'])
    assert folder == tmp_path/'runs'/'limber'/hash_inputs(Recipe(1), ['a'])[:16] and not folder.exists()
    assert len({run_folder('limber', Recipe(1)), run_folder('ima', Recipe(1)), run_folder('limber', Recipe(2)), run_folder('limber')}) == 4
    for method in ('', 'a/b', '..', '.', 'a b'):
        with pytest.raises(BadInput, match='no name of a method'): run_folder(method)


def test_models_of_the_zoo_can_be_inputs():
    from frozen_nb.core.training import TrainConfig
    from frozen_nb.core.zoo import load_encoder, load_lm
    lm, encoder = load_lm('llama', device='cpu'), load_encoder('nfnet', device='cpu')
    hashes = [hash_inputs(lm), hash_inputs(load_lm('llama', device='cpu')), hash_inputs(load_lm('llama', 'bf16', 'cpu')), hash_inputs(encoder), hash_inputs(lm.model), hash_inputs(TrainConfig(3))]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 5


# A model that has changed since it was loaded (kind: a store that trusts the fingerprint taken at load)

def loaded_model():
    with seeded(0): model = torch.nn.Sequential(torch.nn.Linear(4, 300), torch.nn.BatchNorm1d(300), torch.nn.Linear(300, 300), torch.nn.Linear(300, 2))
    freeze(model)
    return SimpleNamespace(model=model, fingerprint=fingerprint(model), preprocessing='none', preprocess=lambda xs: torch.stack(xs), encode=lambda x: model(x)[:, None])


def replaced(t): t.data = t.data + 1
def written_to(t): t.add_(1)
def multiplied_behind_the_counter(t): t.data.mul_(1.5)
def one_value(t): t.data.view(-1)[-1] += 1
def two_swapped(t): t.data[:2] = t.data[:2].flip(0).clone()


@pytest.mark.parametrize('change', [replaced, written_to, multiplied_behind_the_counter, one_value, two_swapped])
@pytest.mark.parametrize('name', ['0.weight', '0.bias', '1.running_var', '2.weight', '3.weight'])
def test_a_model_changed_after_loading_has_another_key(name, change):
    loaded = loaded_model()
    before, t = feature_key(loaded), loaded.model.state_dict(keep_vars=True)[name]
    if name == '1.running_var': t.copy_(torch.arange(300.))
    before = feature_key(loaded)
    with torch.no_grad(): change(t)
    after = feature_key(loaded)
    assert after != before and after['fingerprint'] == fingerprint(loaded.model) and hash_inputs(loaded) != hash_inputs(loaded_model())


def test_a_model_changed_before_its_first_use_has_another_key():
    loaded = loaded_model()
    loaded.model[0].weight.data.mul_(2)
    assert feature_key(loaded)['fingerprint'] == fingerprint(loaded.model) != loaded.fingerprint


def test_an_unchanged_model_keeps_its_key(monkeypatch):
    "As it was loaded, on another device or copied; and nothing is hashed again for that."
    loaded = loaded_model()
    twin = SimpleNamespace(model=copy.deepcopy(loaded.model), fingerprint=loaded.fingerprint)
    assert current_fingerprint(loaded) == loaded.fingerprint == current_fingerprint(twin)
    loaded.model[0].weight.data = loaded.model[0].weight.data.clone()          # as after .to(device)
    assert current_fingerprint(loaded) == loaded.fingerprint
    hashed = []
    monkeypatch.setattr('frozen_nb.core.frozen.tensor_hash', lambda t: hashed.append(t))
    assert current_fingerprint(loaded) == loaded.fingerprint and hashed == []
    assert {'pillow', 'torchvision'} <= {*feature_key(loaded_model())['versions']}


def test_features_of_a_changed_model_are_not_the_old_ones(tmp_path):
    loaded, store = loaded_model(), FeatureStore(tmp_path)
    xs = [torch.randn(4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    features = lambda: encode_images(loaded, lambda i: xs[i], list('abc'), store, progress=False)[:]
    first = features()
    loaded.model[3].weight.data.mul_(2)
    assert not torch.equal(features(), first) and torch.equal(features(), loaded.encode(torch.stack(xs)))
    loaded.model[3].weight.data.mul_(.5)
    assert torch.equal(features(), first) and len([*tmp_path.iterdir()]) == 2


def test_features_that_are_lost_after_the_model_has_changed(tmp_path):
    "They are computed again when they are read; with another model, that is refused."
    loaded, store = loaded_model(), FeatureStore(tmp_path)
    feats = encode_images(loaded, lambda i: torch.ones(4), ['a'], store, progress=False)
    first = feats[:]
    shards(tmp_path)[0].unlink()
    loaded.model[3].weight.data.mul_(2)
    with pytest.raises(BadInput, match='the encoder has changed'): feats._fill()
    loaded.model[3].weight.data.mul_(.5)
    assert torch.equal(encode_images(loaded, lambda i: torch.ones(4), ['a'], store, progress=False)[:], first)


def test_what_is_active_on_a_model_is_in_the_key():
    "Hooks that say what they do, training mode, adapters of PEFT and their switches."
    import peft
    loaded, keys = loaded_model(), []
    def key(): keys.append(current_fingerprint(loaded))
    key()
    def add(module, args, output): return output + 1
    add.fingerprint = lambda: 'add 1'
    for place in (loaded.model[0], loaded.model[2]):
        hook = place.register_forward_hook(add)
        key()
        hook.remove()
    pre = loaded.model[0].register_forward_pre_hook(add)
    key()
    pre.remove()
    assert current_fingerprint(loaded) == keys[0]
    loaded.model[1].training = True
    key()
    loaded.model[1].training = False
    lora = peft.LoraConfig(r=2, target_modules=['0'], init_lora_weights=False)
    with seeded(1): adapted = peft.get_peft_model(loaded.model, lora, 'one')
    with seeded(2): adapted.add_adapter('two', lora)
    adapted.eval()
    for name in ('one', 'two'):
        adapted.set_adapter(name)
        key()
    with adapted.disable_adapter(): key()
    assert None not in keys and len({*keys}) == len(keys) == 8


def unsaid(module, args, output=None): return None


@pytest.mark.parametrize('place', ['before', 'after', 'instead', 'everywhere'])
def test_a_hook_that_does_not_say_what_it_does_keeps_features_out_of_the_store(tmp_path, place):
    loaded, xs, model = loaded_model(), torch.ones(3, 4), None
    features = lambda: encode_images(loaded, lambda i: xs[i], list('abc'), FeatureStore(tmp_path), progress=False)[:]
    first, before = features(), sorted(tmp_path.rglob('*'))
    layer, double = loaded.model[3], lambda module, args, output: 2*output
    hook = dict(before=lambda: loaded.model[0].register_forward_pre_hook(lambda module, args: (2*args[0],)), after=lambda: layer.register_forward_hook(double),
                instead=lambda: setattr(layer, 'forward', lambda x: x[:, :2]*0), everywhere=lambda: torch.nn.modules.module.register_module_forward_hook(double))[place]()
    try:
        changed = features()
        with pytest.raises(BadInput, match='hook'): hash_inputs(loaded)
    finally:
        if hook: hook.remove()
        vars(layer).pop('forward', None)
    assert not torch.equal(changed, first) and torch.equal(features(), first) and sorted(tmp_path.rglob('*')) == before


def test_hooks_that_only_collect_do_not_matter():
    "transformers leaves hooks on a model that was asked for its hidden states."
    from frozen_nb.core.zoo import load_lm
    lm = load_lm('llama', device='cpu')
    with torch.no_grad(): lm.model(torch.ones(1, 3, dtype=torch.long), output_hidden_states=True)
    assert current_fingerprint(lm) == lm.fingerprint == load_lm('llama', device='cpu').fingerprint


@pytest.mark.parametrize('how', ['adapted', 'merged'])
def test_texts_of_an_adapted_model_are_not_those_of_the_plain_one(tmp_path, how):
    from frozen_nb import generative_adapter as ga, pinto
    from frozen_nb.core import adapted as lora
    from frozen_nb.core.zoo import load_lm
    from frozen_nb.world.multiple_choice import MCQ
    lm = load_lm('llama', device='cpu')
    memory = ga.Memory(lm, ga.load_generator(data_path('zoo', 'adapter'), lm))
    adapters = [memory.add(f'Bruno is a zebra. Bruno lives {place}.').adapter() for place in ('by the lake', 'in the desert')]
    questions, prompt = [MCQ('where does Bruno live?', ('by the lake', 'in the desert'), 0, (), 'own')], pinto.read_prompt('obqa')
    said = lambda: pinto.rationalize(lm, questions, prompt, 8, store=tmp_path)
    inside = []
    for adapter in adapters:
        with getattr(lora, how)(lm, adapter): inside += [said(), pinto.rationalize(lm, questions, prompt, 8, store=False)]
    plain = pinto.rationalize(lm, questions, prompt, 8, store=False)
    assert said() == plain != inside[0] and inside[0] == inside[1] and inside[2] == inside[3]
    assert len([*tmp_path.iterdir()]) == 3 and pinto.rationale_store(lm, prompt, 8, tmp_path).path.exists()


def test_texts_of_several_adapters_at_once_are_not_stored(tmp_path):
    "Which row a text was generated in is in no key."
    from frozen_nb import generative_adapter as ga, pinto
    from frozen_nb.core import adapted as lora
    from frozen_nb.core.zoo import load_lm
    lm = load_lm('llama', device='cpu')
    memory = ga.Memory(lm, ga.load_generator(data_path('zoo', 'adapter'), lm))
    both = lora.Adapter.of([memory.add(f'Bruno lives {place}.').adapter() for place in ('by the lake', 'in the desert')])
    with lora.adapted(lm, both): assert current_fingerprint(lm) is None and pinto.rationale_store(lm, pinto.read_prompt('obqa'), 8, tmp_path).path is None
    with lora.adapted(lm, both[1]): assert current_fingerprint(lm) not in (None, lm.fingerprint)
    assert current_fingerprint(lm) == lm.fingerprint


# Texts whose file is damaged, locked, full or read-only

prompts = [f'which animal number {k} is red in the snow? fox {k}' for k in range(400)]
FLIPS = 400 if os.environ.get('FROZEN_NB_CAMPAIGNS') == 'full' else 100


@pytest.mark.campaign
def test_flipped_bits_of_a_store_of_texts(tmp_path):
    "Single bits of the file: a text is right, or missing, or the file is refused in one line; also where it is written to."
    store, rng, counts = TextStore('key', folder=tmp_path), random.Random(0), dict(right=0, missing=0, refused=0, silent=0)
    said = dict(zip(prompts, shout(prompts)))
    store.put(said)
    good = store.path.read_bytes()
    for _ in range(FLIPS):
        at = rng.randrange(len(good))
        store.path.write_bytes(good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1:])
        try:
            kept = store.get(prompts)
            counts['silent' if any(said[p] != t for p, t in kept.items()) else 'right' if len(kept) == 400 else 'missing'] += 1
            assert store.texts(prompts, shout) == [said[p] for p in prompts]
        except BadInput as error:
            counts['refused'] += 1
            assert '\n' not in str(error)
        for path in tmp_path.iterdir(): path.unlink()
    print(f'{FLIPS} flips: {counts}')
    assert counts['silent'] == 0 and counts['right'] and counts['missing']


def test_a_text_of_another_prompt_is_missing(tmp_path):
    store = TextStore('key', folder=tmp_path)
    store.put({'a': 'A', 'b': 'B'})
    with sqlite3.connect(store.path) as database: database.execute("UPDATE checked SET text = (SELECT text FROM checked WHERE prompt = x'61')")
    database.close()
    assert store.get(['a', 'b']) == {'a': 'A'} and store.texts(['a', 'b'], shout) == ['A', 'B'] and store.get(['b']) == {'b': 'B'}


def test_a_store_of_the_first_edition_is_filled_again(tmp_path):
    store = TextStore('key', folder=tmp_path)
    with sqlite3.connect(store.path) as database:
        database.execute('CREATE TABLE texts (prompt TEXT PRIMARY KEY, text TEXT NOT NULL)')
        database.execute("INSERT INTO texts VALUES ('a', 'other')")
    database.close()
    assert store.get(['a']) == {} and store.texts(['a'], shout) == ['A'] and store.get(['a']) == {'a': 'A'}


def test_any_prompt_can_be_a_key(tmp_path):
    store, odd = TextStore('key', folder=tmp_path), 'half a smiley \ud83e'
    store.put({odd: odd})
    assert store.get([odd, odd.encode('utf-8', 'replace').decode()]) == {odd: odd}


def _hold(path, seconds, held):
    database = sqlite3.connect(path)
    database.execute('BEGIN EXCLUSIVE')
    held.set()
    time.sleep(seconds)
    database.close()


@forks
def test_a_locked_store_of_texts_is_waited_for(tmp_path, monkeypatch):
    store = TextStore('key', folder=tmp_path)
    store.put({'a': 'A'})
    for f in (lambda: store.get(['a']), lambda: store.put({'b': 'B'})):
        held = fork.Event()
        child = fork.Process(target=_hold, args=(store.path, .5, held))
        child.start()
        held.wait()
        start = time.perf_counter()
        f()
        assert time.perf_counter() - start > .2
        child.join()
    real, held = sqlite3.connect, fork.Event()
    child = fork.Process(target=_hold, args=(store.path, 20, held))
    child.start()
    held.wait()
    monkeypatch.setattr(sqlite3, 'connect', lambda path, timeout=60: real(path, timeout=.1))
    try:
        for f in (lambda: store.get(['a']), lambda: store.put({'b': 'B'}), lambda: store.texts(['c'], None)):
            with pytest.raises(BadInput, match='another process holds a lock.*wait') as error: f()
            assert 'delete' not in str(error.value) and '\n' not in str(error.value)
    finally:
        child.kill()
        child.join()
    monkeypatch.undo()
    assert store.get(['a', 'b']) == {'a': 'A', 'b': 'B'}


def in_a_child(f, *args):
    "What `f` returns, or the message of the `BadInput` that it raises, in a process of its own, whose limits may be changed."
    mine, theirs = fork.Pipe()
    def run():
        try: theirs.send(f(*args))
        except BadInput as error: theirs.send(f'refused: {error}')
        except BaseException as error: theirs.send(f'TRACEBACK {error!r}')
    child = fork.Process(target=run)
    child.start()
    got = mine.recv() if mine.poll(60) else 'hangs'
    child.join()
    return got


@forks
def test_a_full_disk_under_a_store_of_texts(tmp_path):
    import resource
    store = TextStore('key', folder=tmp_path)
    store.put({'a': 'A'})
    def put():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        return store.texts([*prompts, 'a'], lambda ps: ['x'*1000 for _ in ps], 200)
    got = in_a_child(put)
    assert got.startswith('refused') and 'delete' not in got and '\n' not in got
    assert store.get(['a']) == {'a': 'A'} and store.texts(['a', *prompts], shout)[1:] == shout(prompts)


@forks
def test_a_store_of_texts_that_is_full_says_so(tmp_path, monkeypatch):
    "What SQLite says on a full disk, by its limit on pages."
    store, real = TextStore('key', folder=tmp_path), sqlite3.connect
    store.put({'a': 'A'})
    def small(path, timeout=60):
        database = real(path, timeout=timeout)
        database.execute('PRAGMA max_page_count = 5')
        return database
    monkeypatch.setattr(sqlite3, 'connect', small)
    with pytest.raises(BadInput, match='there is no room.*make room'): store.put(dict.fromkeys(prompts, 'x'*1000))
    assert store.get(['a', *prompts]) == {'a': 'A'}


def as_nobody():
    if os.geteuid() == 0: os.seteuid(65534)


@forks
def test_a_read_only_store_is_read():
    "For features and texts: what is there is read; what is missing is refused at once, in one line."
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        store, feats = TextStore('key', folder=folder/'texts'), fill(folder/'features')[0][:]
        store.put({'a': 'A'})
        everything = [folder, *folder.rglob('*')]
        for path in everything: path.chmod(0o555 if path.is_dir() else 0o444)
        def read():
            as_nobody()
            return store.texts(['a', 'a'], None), torch.equal(fill(folder/'features')[0][:], feats)
        def write():
            as_nobody()
            return store.texts(['a', 'b'], None)
        got = in_a_child(read), in_a_child(write)
        for path in everything: path.chmod(0o755)
    assert got[0] == (['A', 'A'], True) and got[1].startswith('refused') and 'choose another folder' in got[1]


@forks
def test_without_file_descriptors_nothing_is_deleted(tmp_path, whole):
    "A shard that cannot be opened is not a damaged one."
    import resource
    fill(tmp_path)
    store = TextStore('key', folder=tmp_path/'texts')
    store.put({'a': 'A'})
    def read(opened, spare):
        feats = fill(tmp_path)[0] if opened else None
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        taken = []
        try:
            while True: taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError: pass
        for fd in taken[:spare]: os.close(fd)
        try:
            return (feats or fill(tmp_path)[0])[:].shape
        finally:
            if not opened: store.get(['a'])
    for opened in (False, True):
        for spare in (0, 1, 2):
            got = in_a_child(read, opened, spare)
            assert got == whole.shape or got.startswith('refused') and '\n' not in got, got
            assert len(shards(tmp_path)) == 20 and store.get(['a']) == {'a': 'A'}
    feats, compute = fill(tmp_path)
    assert torch.equal(feats[:], whole) and compute.asked == []


def test_a_disk_that_fails_deletes_nothing(tmp_path, whole):
    fill(tmp_path)
    feats, compute = fill(tmp_path)
    def fails(*args): raise OSError(5, 'Input/output error')
    with patch('frozen_nb.core.stores.safe_open', fails), patch('pathlib.Path.read_bytes', fails):
        with pytest.raises(BadInput, match='cannot be read now .Input/output error.; nothing was deleted'): feats[:]
        with pytest.raises(BadInput, match='cannot be read now'): fill(tmp_path)
    with patch('frozen_nb.core.stores.safe_open', fails): assert torch.equal(fill(tmp_path)[0][:], whole)   # not mapped, but read
    assert len(shards(tmp_path)) == 20 and torch.equal(feats[:], whole) and compute.asked == []


@pytest.mark.campaign
def test_any_single_value_of_a_shipped_model_counts():
    "Changed behind PyTorch's counter, at random places of random tensors; and the check costs milliseconds."
    from frozen_nb.core.zoo import load_encoder, load_lm
    rng, n = random.Random(0), 200 if os.environ.get('FROZEN_NB_CAMPAIGNS') == 'full' else 20
    for loaded in (load_lm('llama', device='cpu'), load_encoder('clip', device='cpu')):
        tensors, missed = [t for t in [*loaded.model.parameters(), *loaded.model.buffers()] if t.is_floating_point()], 0
        for _ in range(n):
            values = rng.choice(tensors).data.view(-1)
            at = rng.randrange(len(values))
            before = values[at].clone()
            values[at] += 1
            missed += current_fingerprint(loaded) == loaded.fingerprint
            values[at] = before
        seconds = []
        for _ in range(9):
            start = time.perf_counter()
            assert current_fingerprint(loaded) == loaded.fingerprint
            seconds.append(time.perf_counter() - start)
        print(f'{loaded.name}: {n} changes, {missed} missed; {1000*np.median(seconds):.1f} ms a check')
        assert missed == 0 and np.median(seconds) < .2
