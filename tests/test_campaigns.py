"""Campaigns: one thing many times, at random moments, at every place, or at the size that it is for.
They run in a shortened form; `FROZEN_NB_CAMPAIGNS=full` is the whole."""
import json, multiprocessing, os, random, signal, subprocess, sys, time
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, LlamaConfig

from frozen_nb.core.stores import FeatureStore
from frozen_nb.core.frozen import seeded
from frozen_nb.limber import fit_map, image_features
from frozen_nb.core.training import TrainConfig, train
from frozen_nb.core.zoo import load_encoder, load_lm
from test_training import Tagger, batches, noisy_loss
from tiny_models import VISION, save_hf, tokenizer

torch.set_num_threads(1)
pytestmark = pytest.mark.campaign
fork = multiprocessing.get_context('fork') if hasattr(os, 'fork') else None
forks = pytest.mark.skipif(fork is None, reason='needs fork')
whole_form = os.environ.get('FROZEN_NB_CAMPAIGNS') == 'full'
def count(short, full): return full if whole_form else short


# One extraction, killed again and again

KILLS, SIZE, LIMIT = count(8, 50), 4, 6 # kills; items in a shard; shards after which a process only waits to be killed
names = [f'item {i}' for i in range(SIZE*(LIMIT*KILLS + 20))]

def row(i): return [i, i*i % 97, i / 7]

def extract(folder, log, limit=None, pause=0):
    "Features of `names`; every computed item is a line of `log` before its shard is written."
    def compute(todo):
        nonlocal limit
        with open(log, 'a') as f: f.write(json.dumps(todo) + '\n')
        time.sleep(pause if limit else 3600*(limit == 0))
        limit = limit and limit - 1
        return torch.tensor([row(i) for i in todo])
    return FeatureStore(folder).features({'a': 1}, names, compute, shard_size=SIZE, progress=False)

def computed(log): return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
def stored(folder): return len(list(folder.rglob('*.safetensors')))

@forks
def test_one_extraction_killed_at_many_moments(tmp_path):
    clock, folder, lost = random.Random(0), tmp_path/'store', []
    log = tmp_path/'log'
    for _ in range(KILLS):
        before, seen = stored(folder), len(computed(log))
        child = fork.Process(target=extract, args=(folder, log, LIMIT, .002))
        child.start()
        at_work = clock.random() < .9                             # the others are killed while they begin
        while at_work and len(computed(log)) == seen: time.sleep(.0005)
        time.sleep(clock.uniform(0, .03))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        lost.append(len(computed(log)) - seen - (stored(folder) - before))
    assert set(lost) <= {0, 1} and 1 in lost                      # at most the shard in hand, and some were in hand
    feats = extract(folder, log)
    runs = computed(log)
    assert len(runs) == len(names)//SIZE + sum(lost)
    assert {tuple(r) for r in runs} == {(*range(i, i + SIZE),) for i in range(0, len(names), SIZE)}
    assert torch.equal(feats[:], extract(tmp_path/'calm', tmp_path/'calm log')[:])
    print(f'{KILLS} kills, {sum(lost)} of {len(runs)} shards computed again')


# Every byte of a shard

def features(folder, asked):
    def compute(todo):
        asked.extend(todo)
        return torch.tensor([row(i) for i in todo])
    return FeatureStore(folder).features({'a': 1}, names[:4], compute, shard_size=2, progress=False)

@pytest.fixture
def two_shards(tmp_path):
    "A store of two small shards, the first and the last by name; the first is read for what the rows are like."
    rows = features(tmp_path, [])[:]
    for path, name in zip(sorted(tmp_path.rglob('*.safetensors')), ('first', 'last')): path.rename(path.with_name(f'{name}.safetensors'))
    return rows, {name: next(tmp_path.rglob(f'{name}.safetensors')) for name in ('first', 'last')}

def recomputed(folder, rows, damaged, data):
    "What is computed again, and whether the rows are right, when the file `damaged` holds `data`; everything is put back afterwards."
    good, kept, asked = damaged.read_bytes(), {*damaged.parent.iterdir()}, []
    damaged.write_bytes(data)
    right = torch.equal(features(folder, asked)[:], rows)
    for path in {*damaged.parent.iterdir()} - kept: path.unlink()
    damaged.write_bytes(good)
    return asked, right

@pytest.mark.parametrize('which', ['first', 'last'])
def test_every_flipped_byte_costs_its_shard_and_no_other(tmp_path, two_shards, monkeypatch, which):
    monkeypatch.setattr('os.fsync', lambda fd: None)
    rows, shards = two_shards
    good, rng, bits = shards[which].read_bytes(), random.Random(which), [1 << b for b in range(8)]
    mine, wrong = [0, 1] if b'item 0' in good else [2, 3], []
    for at in range(len(good)):
        for flip in count(rng.sample(bits, 1), bits) + rng.sample(range(1, 256), count(1, 24)):
            found = recomputed(tmp_path, rows, shards[which], good[:at] + bytes([good[at] ^ flip]) + good[at + 1:])
            if found != (mine, True): wrong.append((at, flip, *found))
    assert wrong == []
    print(f'{len(good)} bytes of the {which} shard, {count(2, 32)} flips of each')

@pytest.mark.parametrize('which', ['first', 'last'])
@pytest.mark.parametrize('old, new', [(b'F32', b'I32'), (b'F32', b'U32'), (b'}} ', b'}}\t'), (b'}} ', b'}}\n')])
def test_damage_that_still_reads_as_a_shard(tmp_path, two_shards, which, old, new):
    "Another dtype of the same size, and padding that JSON allows."
    rows, shards = two_shards
    good = shards[which].read_bytes()
    assert good.count(old) == 1
    assert recomputed(tmp_path, rows, shards[which], good.replace(old, new)) == ([0, 1] if b'item 0' in good else [2, 3], True)


# A large store

def test_many_items_do_not_slow_a_read(tmp_path):
    "64 random rows, in turn from a small store and from a large one; of the small one they lie in fewer shards (32 of 40)."
    few, many, rng = 10_000, count(200_000, 1_000_000), np.random.default_rng(0)
    feats, first, seconds = {}, {}, {few: [], many: []}
    for n in (few, many):
        items, compute = [str(i) for i in range(n)], lambda todo: torch.tensor(todo).float()[:, None]
        FeatureStore(tmp_path).features({'n': n}, items, compute, progress=False)
        feats[n] = FeatureStore(tmp_path).features({'n': n}, items, None, progress=False)
    def read(n):
        batch = rng.integers(0, n, 64)
        start = time.perf_counter()
        rows = feats[n][batch]
        took = time.perf_counter() - start
        assert rows[:, 0].tolist() == batch.tolist()
        return took*1000
    for n in seconds:
        first[n] = read(n)
        assert feats[n][::256][:, 0].tolist() == [*range(0, n, 256)]   # now every shard is open
    for _ in range(300):
        for n in seconds: seconds[n].append(read(n))
    typical = {n: float(np.median(seconds[n])) for n in seconds}
    for n in seconds: print(f'{n} items: 64 rows in {typical[n]:.3f} ms, {first[n]:.1f} ms where shards were opened for it')
    assert typical[many] < 4*typical[few]


# One run of training, killed again and again

TRAIN_KILLS, EVERY, REACH = count(6, 20), 3, 8 # kills; steps between checkpoints; steps that a process gets to before it only waits to be killed
STEPS = TRAIN_KILLS*REACH + 10

def train_under_kills(folder):
    """In a process that has computed no gradient yet, so that its forks can: a calm run, the killed ones, the last one.
    What they came to is written to `folder`, and the moments of the kills with it."""
    def attempt(name, at=None, reach=None):
        module, config = Tagger(), TrainConfig(STEPS, lr=1e-2, warmup=3, weight_decay=.01, optimizer='adamw', checkpoint_every=EVERY)
        first = None
        def steps(step):
            nonlocal first
            first = step if first is None else first
            if at is not None: at.value = step
            if reach and step - first >= reach: time.sleep(3600)
            return batches(step)
        history = train(module, steps, noisy_loss, config, folder=folder/'run' if name != 'calm' else None, inputs=0)
        torch.save(dict(weights=module.state_dict(), losses=history.losses, metrics=history.metrics, resumed_at=history.resumed_at), folder/f'{name}.pt')
    def join(child):
        child.join()
        return child.exitcode
    def start(*args):
        child = fork.Process(target=attempt, args=args)
        child.start()
        return child
    train(Tagger(), batches, noisy_loss, TrainConfig(0))          # imports what training needs, once
    clock, moments = random.Random(0), []
    assert join(start('calm')) == 0
    for _ in range(TRAIN_KILLS):
        at = fork.Value('i', -1)
        child, at_work = start('killed', at, REACH), clock.random() < .9
        while at_work and at.value < 0: time.sleep(.001)
        began = at.value
        target = began + clock.randrange(REACH)
        while at_work and at.value < target: time.sleep(.0005)
        time.sleep(clock.uniform(0, .01))
        os.kill(child.pid, signal.SIGKILL)
        assert join(child) == -signal.SIGKILL
        moments.append((began, at.value))
    assert join(start('last')) == 0
    (folder/'moments.json').write_text(json.dumps(moments))

@forks
def test_one_training_killed_at_many_steps(tmp_path):
    subprocess.run([sys.executable, __file__, 'train_under_kills', tmp_path], check=True, env=os.environ | dict(OMP_NUM_THREADS='1'))
    calm, last = (torch.load(tmp_path/f'{name}.pt') for name in ('calm', 'last'))
    moments = json.loads((tmp_path/'moments.json').read_text())
    print(f'steps (begun, killed at): {moments}')
    assert len(moments) == TRAIN_KILLS and len({killed for _, killed in moments}) > TRAIN_KILLS//3
    begun, killed = zip(*(moment for moment in moments if moment[0] >= 0))
    for k, b in zip(killed, (*begun[1:], last['resumed_at'])): assert k//EVERY*EVERY <= b <= k + 1, moments   # what a checkpoint holds is not computed again
    assert last['resumed_at'] > 0 and len(last['losses']) == STEPS and last['losses'] == calm['losses']
    assert all(torch.equal(last['weights'][name], t) for name, t in calm['weights'].items())


# Two processes train a map

vocabulary = ['a', 'red', 'hippo', 'in', 'the', 'snow']

def picture(i): return Image.fromarray(np.random.default_rng(i).integers(0, 40, (32, 32, 3), dtype=np.uint8) + np.uint8([40*(i % 6), 100, 100]))
def caption(i): return ' ' + ' '.join([vocabulary[i % 6]]*(1 + i % 11))   # parts of a batch hold very different numbers of tokens

def train_a_map(models, folder):
    "50 steps of `fit_map` on features in a store in `folder`: losses, the trained map, the features, how many images this process encoded."
    from accelerate import PartialState
    encoder, lm, encoded, n = load_encoder(models/'encoder', device='cpu'), load_lm(models/'lm', device='cpu'), [], 320
    def image_of(i):
        encoded.append(i)
        time.sleep(.001)
        return picture(i)
    class Store(FeatureStore):
        def features(self, *args, **more): return super().features(*args, **more, shard_size=16)
    state = PartialState(cpu=True)
    state.wait_for_everyone()
    features = image_features(encoder, image_of, [f'image {i}' for i in range(n)], store=Store(folder/'store'), progress=False)
    m, history = fit_map(encoder, lm, features, [[caption(i)] for i in range(n)], TrainConfig(50, lr=1e-2, warmup=5), prompt=' a', batch_size=9) # Muon works in bf16 inside: a last bit becomes 1e-3
    found = dict(losses=history.losses, map=m.state_dict(), features=features, encoded=len(encoded), processes=state.num_processes, backend=state.backend)
    torch.save(found, folder/f'{state.process_index}.pt')
    return found

def test_two_processes_train_the_map_of_one(tmp_path):
    for name in ('lm', 'encoder', 'one', 'two'): (tmp_path/name).mkdir()
    with seeded(0):
        lm = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, initializer_range=.2))
        lm.save_pretrained(tmp_path/'lm')
        save_hf(tmp_path/'encoder', CLIPVisionModel(CLIPVisionConfig(**VISION)))
    tokenizer().save_pretrained(tmp_path/'lm')
    one = train_a_map(tmp_path, tmp_path/'one')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', __file__, 'train_a_map', tmp_path, tmp_path/'two']
    run = subprocess.run(command, env=os.environ | dict(OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES=''), capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    two = [torch.load(tmp_path/'two'/f'{rank}.pt') for rank in range(2)]
    apart = max(abs(a - b) for out in two for a, b in zip(out['losses'], one['losses'], strict=True))
    print(f"losses {one['losses'][0]:.3f} to {one['losses'][-1]:.3f}, at most {apart:.1e} apart; images encoded: {[out['encoded'] for out in two]} of 320")
    for out in two:
        assert out['processes'] == 2 and out['backend'] == 'gloo' and one['processes'] == 1
        assert torch.equal(out['features'], one['features']) and out['losses'] == two[0]['losses'] and len(out['losses']) == 50
        for name, t in one['map'].items(): assert (out['map'][name] - t).abs().max() < 1e-4, name
    assert apart < 1e-5 and one['losses'][-1] < one['losses'][0] - .1
    encoded = [out['encoded'] for out in two]
    assert one['encoded'] == 320 <= sum(encoded) < 1.5*320 and min(encoded) > 0, encoded

if __name__ == '__main__': globals()[sys.argv[1]](*map(Path, sys.argv[2:]))
