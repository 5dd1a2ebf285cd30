"What the notebook of `training` cannot show: several processes, kills, and damage at every place of a checkpoint."
import json, os, random, signal, subprocess, sys, threading, time
from dataclasses import asdict
from pathlib import Path

import numpy as np, pytest, torch
from torch import nn
from torch.nn import functional as F

import frozen_nb
from frozen_nb.core.frozen import *
from frozen_nb.core.folders import file_hash
from frozen_nb.core.training import TrainConfig, learning_rates, read_checkpoint, remove_checkpoints, train, write_checkpoint

here = Path(__file__).resolve()
root = Path(frozen_nb.__file__).parent.parent
torch.set_num_threads(1) # in this process and in the ones that are killed: sums depend on the number of threads in the last bit

config = TrainConfig(20, lr=1e-2, warmup=3, weight_decay=.01)

class Tagger(nn.Module):
    "A frozen embedding, and around it everything that has a state: dropout, running statistics, a tied weight."
    def __init__(self, dropout=.2, norm=True):
        super().__init__()
        with seeded(0):
            self.embed = freeze(nn.Embedding(11, 8))
            self.inner, self.drop = nn.Linear(8, 8), nn.Dropout(dropout)
            self.again = nn.Linear(8, 8)
            self.again.weight = self.inner.weight
            self.norm = nn.BatchNorm1d(8) if norm else nn.LayerNorm(8)
            self.out = nn.Linear(8, 11)
    def forward(self, ids): return self.out(self.drop(self.norm(self.again(F.gelu(self.inner(self.embed(ids).mean(1)))))))

def batches(step, n=10):
    rng = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 11, (n, 5), generator=rng)
    labels = torch.where(torch.rand(n, generator=rng) < .5*torch.linspace(0, 2, n), ids[:, 0], -100) # the second half has more labels
    return dict(ids=ids, labels=labels, words=[str(i) for i in range(n)])

def mean_loss(module, batch):
    labels = batch['labels'].clamp(min=0)
    logits = module(batch['ids'])
    return F.cross_entropy(logits, labels), dict(hit=(logits.argmax(-1) == labels).float().mean())

def token_loss(module, batch):
    assert len(batch['words']) == len(batch['ids'])
    logits = module(batch['ids'])
    return F.cross_entropy(logits, batch['labels'], reduction='sum'), (batch['labels'] >= 0).sum(), dict(size=logits.std())

def noisy_loss(module, batch): return mean_loss(module, batch)[0]*(1 + .1*random.random() + .1*np.random.rand())

class Interrupted:
    "Batches that send Ctrl-C during step `at`."
    def __init__(self, at): self.at = at
    def __call__(self, step):
        if step == self.at: signal.raise_signal(signal.SIGINT)
        return batches(step)

def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))

@pytest.fixture(scope='module')
def whole():
    "A run that nobody disturbed."
    module = Tagger()
    return module, train(module, batches, noisy_loss, config)

@pytest.mark.parametrize('k', [1, 7, 19])
def test_resume_is_exact(whole, tmp_path, k):
    with pytest.raises(KeyboardInterrupt): train(Tagger(), Interrupted(k - 1), noisy_loss, config, folder=tmp_path, inputs=0)
    module = Tagger()
    history = train(module, batches, noisy_loss, config, folder=tmp_path, inputs=0)
    assert history.resumed_at == k and history.losses == whole[1].losses and same(module, whole[0])

def test_surroundings_are_left_alone(whole):
    seed_everything(5)
    before, handler, module = rng_state(), signal.getsignal(signal.SIGINT), Tagger()
    train(module, batches, noisy_loss, config, frozen=[module.embed])
    after = rng_state()
    assert before['python'] == after['python'] and torch.equal(before['torch'], after['torch']) and torch.equal(before['numpy'][1], after['numpy'][1])
    assert signal.getsignal(signal.SIGINT) is handler and same(module, whole[0])

def steps_in(folder): return sorted(p.name for p in folder.iterdir() if p.name != '.lock')

def killed(folder):
    def fatal(step):
        if step == 12: os.kill(os.getpid(), signal.SIGKILL)
        return batches(step)
    train(Tagger(), fatal, noisy_loss, TrainConfig(**vars(config) | dict(checkpoint_every=5)), folder=folder, inputs=0)

def test_kill(whole, tmp_path):
    child = subprocess.run([sys.executable, here, 'killed', tmp_path], env=os.environ | dict(PYTHONPATH=str(root)))
    assert child.returncode == -signal.SIGKILL
    assert steps_in(tmp_path) == ['step-00000005', 'step-00000010']
    module = Tagger()
    history = train(module, batches, noisy_loss, config, folder=tmp_path, inputs=0)
    assert history.resumed_at == 10 and history.losses == whole[1].losses and same(module, whole[0])

def test_kill_while_writing(whole, tmp_path, monkeypatch):
    def fatal(*args): raise SystemExit
    with pytest.raises(KeyboardInterrupt): train(Tagger(), Interrupted(5), noisy_loss, config, folder=tmp_path, inputs=0)
    with monkeypatch.context() as m:
        m.setattr('os.rename', fatal)
        with pytest.raises(SystemExit): train(Tagger(), batches, noisy_loss, config, folder=tmp_path, inputs=0)
    assert steps_in(tmp_path) == ['step-00000006']
    module = Tagger()
    assert train(module, batches, noisy_loss, config, folder=tmp_path, inputs=0).resumed_at == 6 and same(module, whole[0])

@pytest.mark.parametrize('name', ['weights.safetensors', 'state.pt', 'info.json', 'checksums.json'])
@pytest.mark.parametrize('damage', ['cut', 'flipped', 'gone'])
def test_damage_is_passed_over(tmp_path, name, damage):
    for step in (1, 2): write_checkpoint(tmp_path, step, dict(w=torch.ones(3)), dict(a=torch.zeros(2)), dict(step=step))
    file = tmp_path/'step-00000002'/name
    data = bytearray(file.read_bytes())
    data[len(data)//2] ^= 1
    file.unlink() if damage == 'gone' else file.write_bytes(data if damage == 'flipped' else data[:len(data)//2])
    with pytest.warns(UserWarning, match='damaged and passed over'): assert read_checkpoint(tmp_path)[2] == dict(step=1)

def test_all_damaged_starts_again(tmp_path):
    train(Tagger(), batches, noisy_loss, TrainConfig(2), folder=tmp_path, inputs=0)
    (tmp_path/'step-00000002'/'state.pt').write_bytes(b'')
    with pytest.warns(UserWarning): history = train(Tagger(), batches, noisy_loss, TrainConfig(2), folder=tmp_path, inputs=0)
    assert history.resumed_at is None and history.steps == 2 and read_checkpoint(tmp_path) is not None

# A run in a folder is the same run, and nothing else in the folder is touched

def stopped(folder, module=None, config=config, inputs=0):
    with pytest.raises(KeyboardInterrupt): train(module or Tagger(), Interrupted(5), noisy_loss, config, folder=folder, inputs=inputs)

def contents(folder): return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.name != '.lock'}

def test_inputs_belong_to_the_run(tmp_path):
    "Other data, another prompt, weight, batch or length: whatever the batches and the loss depend on."
    inputs = dict(data=[['a', 'b'], [0, 1]], prompt='Q: {question}', weight=1., batch=4, length=128, x=torch.zeros(3))
    stopped(tmp_path, inputs=inputs)
    before = contents(tmp_path)
    others = dict(data=[['a', 'b'], [1, 0]], prompt='Q: {question} ', weight=0., batch=8, length=129, x=torch.tensor([0., 0, 1e-38]))
    for change in others.items():
        with pytest.raises(BadInput, match='holds a run with inputs=.*name another folder or delete it') as error: train(Tagger(), batches, noisy_loss, config, folder=tmp_path, inputs=inputs | dict([change]))
        assert '\n' not in str(error.value) and contents(tmp_path) == before
    assert train(Tagger(), batches, noisy_loss, config, folder=tmp_path, inputs=dict(inputs)).resumed_at == 6

def test_a_run_that_is_kept_says_what_it_depends_on(tmp_path):
    with pytest.raises(BadInput, match='needs inputs='): train(Tagger(), batches, noisy_loss, config, folder=tmp_path/'run')
    assert not (tmp_path/'run').exists()

def test_the_start_belongs_to_the_run(tmp_path):
    stopped(tmp_path)
    other = Tagger()
    with torch.no_grad(): next(p for p in other.parameters() if p.requires_grad).view(-1)[0] += 1e-3
    with pytest.raises(BadInput, match='holds a run with start='): train(other, batches, noisy_loss, config, folder=tmp_path, inputs=0)

def test_a_kept_run_of_an_earlier_version(tmp_path, monkeypatch):
    "Its checkpoints do not name their inputs. In a folder that is called by the hash of them it goes on, elsewhere it is refused."
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path))
    for folder in (tmp_path/'runs'/'pinto'/'0123456789abcdef', tmp_path/'mine'):
        stopped(folder)
        path = max(folder.glob('step-*'))
        info = json.loads((path/'info.json').read_text())
        for name in ('inputs', 'start'): del info['identity'][name]
        (path/'info.json').write_text(json.dumps(info))
        sums = json.loads((path/'checksums.json').read_text()) | {'info.json': file_hash(path/'info.json')}
        (path/'checksums.json').write_text(json.dumps(sums))
    assert train(Tagger(), batches, noisy_loss, config, folder=tmp_path/'runs'/'pinto'/'0123456789abcdef', inputs=0).resumed_at == 6
    with pytest.raises(BadInput, match='inputs=None'): train(Tagger(), batches, noisy_loss, config, folder=tmp_path/'mine', inputs=0)

@pytest.mark.parametrize('name', ['step-1000', 'step-00000004', 'step-final', 'unfinished', 'notes', 'step-00000004x', '.step-00000006-x.part'])
def test_folders_of_others_stay(whole, tmp_path, name):
    "Checkpoints of another program, notes, and a folder with one of our names."
    (tmp_path/name).mkdir()
    (tmp_path/name/'weights.safetensors').write_text('a week of training')
    (tmp_path/'step-2000').write_text('a file')
    before, module = contents(tmp_path), Tagger()
    train(module, batches, noisy_loss, TrainConfig(**vars(config) | dict(checkpoint_every=3)), folder=tmp_path, inputs=0)
    assert same(module, whole[0]) and contents(tmp_path).items() >= before.items()
    remove_checkpoints(tmp_path)
    assert contents(tmp_path) == before

def test_a_folder_where_a_checkpoint_would_go(tmp_path):
    (tmp_path/'step-00000006').mkdir()
    (tmp_path/'step-00000006'/'model.bin').write_text('mine')
    before, seen = contents(tmp_path), []
    with pytest.raises(BadInput, match='step-00000006 is no checkpoint of this run; name another folder'):
        train(Tagger(), lambda step: seen.append(step) or batches(step), noisy_loss, TrainConfig(**vars(config) | dict(checkpoint_every=3)), folder=tmp_path, inputs=0)
    assert contents(tmp_path) == before and not seen

def test_the_folder_goes_with_its_checkpoints(tmp_path):
    train(Tagger(), batches, noisy_loss, config, folder=tmp_path/'run', inputs=0)
    remove_checkpoints(tmp_path/'run')
    assert not (tmp_path/'run').exists()
    remove_checkpoints(tmp_path/'run')

@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_the_same_run_twice_at_once(whole, tmp_path):
    "The second one is refused in one line, and the first one does not notice; afterwards it gets the result."
    module, messages = Tagger(), []
    def beside(step):
        if step == 3:
            child = subprocess.run([sys.executable, here, 'twice', tmp_path], env=os.environ | dict(PYTHONPATH=str(root)), capture_output=True, text=True)
            messages.append(child.stdout)
        return batches(step)
    train(module, beside, noisy_loss, config, folder=tmp_path, inputs=0)
    assert messages == [f'{tmp_path}: another process is training here; wait for its end, then give the command again\n'] and same(module, whole[0])
    assert train(Tagger(), batches, noisy_loss, config, folder=tmp_path, inputs=0).resumed_at == config.steps

def twice(folder):
    try: train(Tagger(), batches, noisy_loss, config, folder=folder, inputs=0)
    except BadInput as error: print(error)

@pytest.mark.parametrize('place', ['/proc/x', 'file', 'file/deeper', 'link'])
def test_a_place_for_checkpoints_is_tried_before_the_training(tmp_path, place):
    (tmp_path/'file').write_text('')
    (tmp_path/'link').symlink_to(tmp_path/'gone')
    seen = []
    with pytest.raises(BadInput): train(Tagger(), lambda step: seen.append(step) or batches(step), noisy_loss, config, folder=tmp_path/place, inputs=0)
    assert not seen

def test_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self): return print, ('executed',)
    write_checkpoint(tmp_path, 1, dict(w=torch.ones(1)), dict(evil=Evil()), {})
    with pytest.raises(Exception, match='(?i)weights.only'): read_checkpoint(tmp_path)

def test_checkpoint_holds_what_is_trained(tmp_path):
    train(Tagger(), batches, noisy_loss, TrainConfig(2), folder=tmp_path, inputs=0)
    tensors = read_checkpoint(tmp_path)[0]
    assert not any('embed' in name for name in tensors) and 'again.weight' not in tensors
    assert {'inner.weight', 'again.bias', 'norm.running_mean', 'norm.num_batches_tracked', 'out.weight'} <= set(tensors)

@pytest.mark.parametrize('change', [dict(lr=2e-2), dict(steps=30), dict(seed=1), dict(schedule='linear'), dict(precision='bf16'), dict(betas=(.9, .99)), dict(optimizer='muon')])
def test_another_run_is_refused(tmp_path, change):
    train(Tagger(), batches, noisy_loss, TrainConfig(1), folder=tmp_path, inputs=0)
    with pytest.raises(BadInput, match=f'{next(iter(change))}='): train(Tagger(), batches, noisy_loss, TrainConfig(**dict(steps=1) | change), folder=tmp_path, inputs=0)
    assert train(Tagger(), batches, noisy_loss, TrainConfig(1, checkpoint_every=1), folder=tmp_path, inputs=0).resumed_at == 1

@pytest.mark.parametrize('schedule', ['constant', 'constant_with_warmup', 'linear', 'cosine', 'cosine_with_restarts', 'polynomial', 'inverse_sqrt', 'cosine_with_min_lr', 'cosine_warmup_with_min_lr'])
def test_every_schedule_resumes(tmp_path, schedule):
    c = TrainConfig(6, schedule=schedule, warmup=2, min_lr=1e-5 if 'min_lr' in schedule else 0.)
    whole, module = Tagger(), Tagger()
    train(whole, batches, noisy_loss, c)
    with pytest.raises(KeyboardInterrupt): train(Tagger(), Interrupted(3), noisy_loss, c, folder=tmp_path, inputs=0)
    train(module, batches, noisy_loss, c, folder=tmp_path, inputs=0)
    assert same(module, whole) and len(learning_rates(c)) == 6

@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_parts_learn_at_their_own_rates(tmp_path, optimizer):
    c, module, even = TrainConfig(4, 1e-2, 'constant', optimizer=optimizer), Tagger(dropout=0.), Tagger(dropout=0.)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    moved = lambda m, name: (dict(m.named_parameters())[name] - before[name]).abs().sum().item()
    with pytest.raises(KeyboardInterrupt): train(Tagger(dropout=0.), Interrupted(1), mean_loss, c, rates={'inner': 0., 'out': .1}, folder=tmp_path, inputs=0)
    train(module, batches, mean_loss, c, rates={'inner': 0., 'out': .1}, folder=tmp_path, inputs=0)
    train(even, batches, mean_loss, c)
    assert moved(module, 'inner.weight') == 0 and 0 < moved(module, 'out.weight') < .3*moved(even, 'out.weight') and moved(module, 'again.bias') > .3*moved(even, 'again.bias')
    with pytest.raises(BadInput, match='rates='): train(Tagger(dropout=0.), batches, mean_loss, c, folder=tmp_path, inputs=0)
    with pytest.raises(BadInput, match="'middle'"): train(Tagger(), batches, mean_loss, c, rates={'middle': .1})

@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'auto'])
def test_muon_resumes(tmp_path, precision):
    c = TrainConfig(6, optimizer='muon', weight_decay=.1, precision=precision)
    whole, module = Tagger(), Tagger()
    train(whole, batches, noisy_loss, c)
    with pytest.raises(KeyboardInterrupt): train(Tagger(), Interrupted(3), noisy_loss, c, folder=tmp_path, inputs=0)
    assert train(module, batches, noisy_loss, c, folder=tmp_path, inputs=0).resumed_at == 4 and same(module, whole)

@pytest.mark.parametrize('wrong', [dict(optimizer='sgd'), dict(precision='fp16'), dict(steps=-1)])
def test_a_wrong_configuration(wrong):
    with pytest.raises(BadInput, match=str(next(iter(wrong.values())))): TrainConfig(**dict(steps=1) | wrong)

def test_moved_model_leaves_no_checkpoint(tmp_path):
    module = Tagger()
    def moves(m, batch):
        m.embed.weight.data[0, 0] += (batch['ids'][0, 0] >= 0)*1e-3
        return noisy_loss(m, batch)
    with pytest.raises(FrozenError, match='Embedding is frozen, but 1 of its tensors changed: weight'):
        train(module, batches, moves, TrainConfig(3, checkpoint_every=1), frozen=module.embed, folder=tmp_path, inputs=0)
    assert read_checkpoint(tmp_path) is None

def test_clipping_and_decay():
    m = nn.Linear(3, 1, bias=False)
    start = m.weight.detach().clone()
    train(m, lambda step: torch.ones(1, 3), lambda m, x: 0*m(x).sum(), TrainConfig(1, lr=.1, schedule='constant', weight_decay=.5))
    torch.testing.assert_close(m.weight.detach(), start*.95)
    norms = []
    m.weight.register_post_accumulate_grad_hook(lambda p: norms.append(p.grad.norm().item()))
    train(m, lambda step: torch.ones(1, 3)*100, lambda m, x: m(x).sum(), TrainConfig(1))
    assert norms[0] > 100 and abs(m.weight.grad.norm().item() - 1) < 1e-4

def in_processes(folder):
    "The runs of one process of two; the first writes what came out."
    from accelerate import PartialState
    plain = dict(dropout=0., norm=False)
    out, rank = {}, int(os.environ['RANK'])
    for name, loss in dict(mean=mean_loss, tokens=token_loss).items():
        module = Tagger(**plain)
        history = train(module, lambda step: batches(step, 11), loss, config, frozen=module.embed)
        out[name] = dict(losses=history.losses, metrics=history.metrics, weights={k: v.tolist() for k, v in module.state_dict().items()})
    whole, module = Tagger(norm=False), Tagger(norm=False)
    out['whole'] = train(whole, batches, token_loss, config).losses
    try: train(Tagger(norm=False), Interrupted(9) if rank == 1 else batches, token_loss, config, folder=folder/'run', inputs=0)
    except KeyboardInterrupt as e: out['stopped'] = str(e)
    history = train(module, batches, token_loss, config, folder=folder/'run', inputs=0)
    state = PartialState()
    out.update(resumed=history.losses, resumed_at=history.resumed_at, same=same(whole, module), processes=state.num_processes, backend=state.backend)
    (folder/f'{rank}.json').write_text(json.dumps(out))
    state.wait_for_everyone()   # a process that goes while the other still talks to it takes it along
    state.destroy_process_group()

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp('two')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(here), 'in_processes', str(folder)]
    run = subprocess.run(command, env=os.environ | dict(PYTHONPATH=str(root), OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES=''), capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads((folder/f'{rank}.json').read_text()) for rank in range(2)]

@pytest.mark.parametrize('name, loss', [('mean', mean_loss), ('tokens', token_loss)])
def test_two_processes_compute_what_one_does(two, name, loss):
    assert two[0]['processes'] == 2 and two[0]['backend'] == 'gloo'
    module = Tagger(dropout=0., norm=False)
    history = train(module, lambda step: batches(step, 11), loss, config)
    for out in two:
        assert np.abs(np.array(out[name]['losses']) - history.losses).max() < 1e-5
        for key, value in module.state_dict().items(): assert np.abs(np.array(out[name]['weights'][key]) - value.numpy()).max() < 1e-5, key
    assert two[0][name] == two[1][name]
    if name == 'mean': assert np.allclose(two[0]['mean']['metrics']['hit'], history.metrics['hit'], atol=1e-6)

def test_two_processes_stop_together_and_resume(two):
    for out in two:
        assert out['processes'] == 2 and out['stopped'] == 'stopped after 10 of 20 steps' and out['resumed_at'] == 10
        assert out['resumed'] == out['whole'] and out['same']

if __name__ == '__main__': globals()[sys.argv[1]](Path(sys.argv[2]))


# Numbers of NumPy, and what is no number

def test_numbers_of_numpy_are_numbers(tmp_path):
    import json
    import numpy as np
    from dataclasses import asdict
    from pathlib import Path
    from frozen_nb.core.frozen import BadInput
    from frozen_nb.fits.limber import LimberFit
    fit = LimberFit(data=Path('a'), out=Path('b'), steps=np.int64(2), lr=np.float32(.5))
    assert (type(fit.steps), type(fit.lr)) == (int, float) and json.dumps(asdict(fit.train_config))
    for value in (True, '2', 2.5, [2]):
        with pytest.raises(BadInput, match='whole number'): LimberFit(data=Path('a'), out=Path('b'), steps=value)
    for value in (None, '2', [2]):
        with pytest.raises(BadInput, match='give a whole number'): TrainConfig(steps=value)

def test_a_run_in_the_cache_is_waited_for(whole, monkeypatch):
    "What another process trains is the same run there: who comes second takes its result. Another refusal is not waited for, nor does one of a group wait."
    from filelock import FileLock
    from frozen_nb.core import training
    from frozen_nb.core.stores import run_folder
    folder = run_folder('limber', 'waiting', asdict(config))
    train(Tagger(), batches, noisy_loss, config, folder=folder, inputs=0)
    lock = FileLock(folder/'.lock', mode=0o600, thread_local=False)
    lock.acquire()
    monkeypatch.setattr(training.distributed, 'is_initialized', lambda: True)
    with pytest.raises(training.BusyError, match='another process is training here'): train(Tagger(), batches, noisy_loss, config, folder=folder, inputs=0)
    monkeypatch.undo()
    threading.Timer(1.5, lambda: lock.release(force=True)).start()
    module, start = Tagger(), time.perf_counter()
    with pytest.warns(UserWarning, match='another process trains this; waiting'):
        assert train(module, batches, noisy_loss, config, folder=folder, inputs=0).resumed_at == config.steps
    assert time.perf_counter() - start > 1 and same(module, whole[0])
    with pytest.raises(BadInput, match='name another folder'): train(Tagger(), batches, noisy_loss, config, folder=folder, inputs=1)
    remove_checkpoints(folder)
    assert not folder.exists()

def test_a_training_that_cannot_be_kept(tmp_path):
    "A loss that is no number is none to ship; weights of another shape, and losses that are texts, are refused when they are read."
    from frozen_nb.core.training import History, read_run, write_run
    weights = dict(weight=torch.zeros(2, 3))
    with pytest.raises(BadInput, match='NaN'): write_run(tmp_path/'a', weights, History([1., float('nan')]))
    folder = write_run(tmp_path/'b', weights, History([2., 1.]))
    assert read_run(folder, weights)[1].losses == [2., 1.]
    with pytest.raises(BadInput, match='another module'): read_run(folder, dict(weight=torch.zeros(3, 3)))
    (folder/'sha256.json').unlink()
    for losses in (['a'], [None]):
        (folder/'config.json').write_text(json.dumps(dict(kind='training', losses=losses)))
        with pytest.raises(BadInput): read_run(folder)
