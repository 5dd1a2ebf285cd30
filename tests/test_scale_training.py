"What makes training fit on larger models: Muon without bfloat16, batches in pieces, activations that are computed again, logits of targets alone, features by rank."
import json, os, resource, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest, torch
import transformers as T
from torch import nn
from torch.nn import functional as F

import frozen_nb
from families import FAMILIES, special_ids
from frozen_nb.core import training
from frozen_nb.core.frozen import *
from frozen_nb.core.generation import log_likelihoods, target_logits
from frozen_nb.core.prefix import LinearMap, sequence, target_loss
from frozen_nb.core.stores import FeatureStore, feature_bytes, hash_inputs, readable_bytes
from frozen_nb.core.training import TrainConfig, recomputing, train
from frozen_nb.core.zoo import LM, load_lm, load_tokenizer

here, root = Path(__file__).resolve(), Path(frozen_nb.__file__).parent.parent
torch.set_num_threads(1)


@pytest.fixture
def no_bf16(monkeypatch): monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {})

@pytest.fixture
def with_bf16(monkeypatch): monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: dict(avx512_bf16=True))

def close(a, b, tolerance=1e-6): assert (a - b).abs().max() <= tolerance*max(1, b.abs().max()), (a - b).abs().max()


# Muon

def muon_of(p): return training._optimizers(nn.ModuleList([p]), TrainConfig(9, .1, optimizer='muon', weight_decay=.3))[0]

@pytest.mark.parametrize('shape', [(12, 40), (40, 12), (9, 9)])
def test_muon_in_float32_is_torchs_iteration(shape, no_bf16):
    "torch's own, whose only cast to bfloat16 is made one to float32, takes the same five steps."
    with seeded(0): layers = [nn.Linear(*shape[::-1], bias=False) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    ours = muon_of(layers[0])
    torchs = torch.optim.Muon(layers[1].parameters(), **{k: ours.defaults[k] for k in ('lr', 'weight_decay', 'adjust_lr_fn')})
    assert type(ours) is not torch.optim.Muon
    for step in range(5):
        gradient = torch.randn(shape, generator=torch.manual_seed(step))
        for layer in layers: layer.weight.grad = gradient.clone()
        ours.step()
        with mock.patch.object(torch.Tensor, 'bfloat16', torch.Tensor.float): torchs.step()
    close(layers[0].weight, layers[1].weight)
    assert ours.state_dict()['state'].keys() == torchs.state_dict()['state'].keys()
    assert torch.equal(*(o.state_dict()['state'][0]['momentum_buffer'] for o in (ours, torchs)))

def test_torchs_own_muon_where_there_is_bf16(with_bf16):
    assert type(muon_of(nn.Linear(3, 4, bias=False))) is torch.optim.Muon

def regression(step): return torch.randn(8, 6, generator=torch.manual_seed(step))
def distance(model, x): return (model(x) - x.cumsum(-1)).square().mean()
def layer():
    with seeded(1): return nn.Linear(6, 6)

MUON = TrainConfig(8, .05, optimizer='muon')

def interrupted_at(n):
    def batches(step):
        if step == n: raise KeyboardInterrupt
        return regression(step)
    return batches

def begun(folder, config=TrainConfig(8, .05, optimizer='muon', checkpoint_every=4)):
    with pytest.raises(KeyboardInterrupt): train(layer(), interrupted_at(5), distance, config, folder=folder, inputs=0)

def test_muon_in_float32_resumes_exactly(tmp_path, no_bf16):
    whole, resumed = layer(), layer()
    losses = train(whole, regression, distance, MUON).losses
    begun(tmp_path)
    history = train(resumed, regression, distance, MUON, folder=tmp_path, inputs=0)
    assert history.resumed_at == 4 and history.losses == losses and torch.equal(whole.weight, resumed.weight)

@pytest.mark.parametrize('first', ['fp32', 'bf16'])
def test_a_run_goes_on_in_its_own_arithmetic_only(tmp_path, monkeypatch, first):
    def processor(name): monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: dict(avx512_bf16=name == 'bf16'))
    second = 'bf16' if first == 'fp32' else 'fp32'
    processor(first); begun(tmp_path)
    processor(second)
    with pytest.raises(BadInput, match='muon=') as error: train(layer(), regression, distance, MUON, folder=tmp_path, inputs=0)
    assert '\n' not in str(error.value)
    processor(first); module = layer()
    train(module, regression, distance, MUON, folder=tmp_path, inputs=0)
    processor(second); done = layer()        # all steps are done: it is a result, wherever it was computed
    assert train(done, regression, distance, MUON, folder=tmp_path, inputs=0).resumed_at == 8 and torch.equal(done.weight, module.weight)

def test_adamw_does_not_depend_on_the_processor(tmp_path, monkeypatch):
    config = TrainConfig(8, .05, checkpoint_every=4)
    begun(tmp_path, config)
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {})
    assert train(layer(), regression, distance, config, folder=tmp_path, inputs=0).resumed_at == 4


# A batch in pieces

class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        with seeded(0): self.embed, self.out = nn.Embedding(11, 16), nn.Linear(16, 11)
    def forward(self, ids): return self.out(torch.tanh(self.embed(ids).cumsum(1)))

def tokens(step, n=256):
    rng = torch.manual_seed(step)
    ids = torch.randint(0, 11, (n, 6), generator=rng)
    count = torch.randint(0, 7, (n,), generator=rng)*torch.linspace(0, 1, n).round().long()    # no target in the first half
    return dict(ids=ids, labels=ids.roll(1, 1).where(torch.arange(6) < count[:, None], -100))

def token_loss(model, batch):
    logits = model(batch['ids'])
    return F.cross_entropy(logits.flatten(0, 1), batch['labels'].flatten(), reduction='sum'), (batch['labels'] >= 0).sum(), dict(hit=(logits.argmax(-1) == batch['labels'])[batch['labels'] >= 0].float().sum()/max(1, (batch['labels'] >= 0).sum()))
def item_loss(model, batch): return (F.mse_loss(model(batch['ids']), F.one_hot(batch['ids'], 11).float()), dict(mean=batch['ids'].float().mean()))

@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
@pytest.mark.parametrize('loss', [token_loss, item_loss])
def test_eight_times_32_are_256(loss, optimizer, no_bf16):
    runs = {}
    for n in (1, 8):
        model, config = Tagger(), TrainConfig(6, 1e-2, optimizer=optimizer, accumulate=n)
        sizes, gradients = [], []
        def counted(model, batch):
            sizes.append(len(batch['ids']))
            return loss(model, batch)
        model.out.weight.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.clone()))
        history = train(model, tokens, counted, config)
        runs[n] = model, history
        assert sizes == [256//n]*6*n
    (a, whole), (b, pieces) = runs[1], runs[8]
    assert max(abs(x - y) for x, y in zip(whole.losses, pieces.losses)) < 1e-6
    for name in whole.metrics: assert max(abs(x - y) for x, y in zip(whole.metrics[name], pieces.metrics[name])) < 1e-6
    for x, y in zip(a.parameters(), b.parameters()): close(x, y, 1e-5)

@pytest.mark.parametrize('loss', [token_loss, item_loss])
def test_the_gradient_of_the_pieces_is_that_of_the_batch(loss):
    runs = [training._Run(Tagger(), TrainConfig(1, accumulate=n)) for n in (1, 8, 256)]
    values = [run.backward(tokens(0), loss)[0] for run in runs]
    for run, value in zip(runs[1:], values[1:]):
        assert abs(value - values[0]) < 1e-6
        for p, q in zip(run.params, runs[0].params): close(p.grad, q.grad)
    unweighted = torch.stack([torch.cat([p.grad.flatten() for p in training_piece(i, loss)]) for i in range(8)]).mean(0)
    whole = torch.cat([p.grad.flatten() for p in runs[0].params])
    assert loss is item_loss or (unweighted - whole).abs().max() > 1e-3          # what the mean of means would give

def training_piece(i, loss):
    run = training._Run(Tagger(), TrainConfig(1))
    run.backward({k: v[32*i:32*i + 32] for k, v in tokens(0).items()}, loss)
    return run.params

def test_pieces_belong_to_the_identity_and_old_hashes_stay(tmp_path):
    assert hash_inputs(TrainConfig(3, .1)) == '46cf33f4e8e950207f05186de9c53772c2637da941d64d6de840d30695645675'
    assert hash_inputs(TrainConfig(3, accumulate=1, gradient_checkpointing=True)) == hash_inputs(TrainConfig(3))
    assert hash_inputs(TrainConfig(3, accumulate=2)) != hash_inputs(TrainConfig(3))
    begun(tmp_path)
    other = TrainConfig(8, .05, optimizer='muon', accumulate=2)
    with pytest.raises(BadInput, match='accumulate=None, not 2'): train(layer(), regression, distance, other, folder=tmp_path, inputs=0)

def test_pieces_that_cannot_be():
    with pytest.raises(BadInput, match='accumulate=0'): TrainConfig(1, accumulate=0)
    with pytest.raises(BadInput, match='8 items cannot be split into 9 parts'): train(layer(), regression, distance, TrainConfig(1, accumulate=9))


# Activations that are computed again

IDS = torch.randint(3, 400, (2, 12), generator=torch.manual_seed(0))

def tiny(name='llama', **changes):
    ids = special_ids(tokenizer())
    config = FAMILIES[name](ids)
    with seeded(0): return freeze(T.AutoModelForCausalLM.from_config(config))

def tokenizer(): return load_tokenizer('llama')

def fitted(lm, **options):
    with seeded(3):
        linear_map, features = LinearMap(6, lm.width, scale=.1, dropout=.2), torch.randn(32, 3, 6)
    def batches(step): return dict(features=features, texts=[' a red fox', ' a cow in the snow']*16)
    def loss(linear_map, batch):
        seq = sequence(lm, linear_map(batch['features']), 'A picture of', batch['texts'])
        n = (seq.labels[:, 1:] != -100).sum()
        return target_loss(lm, seq)*n, n
    history = train(linear_map, batches, loss, TrainConfig(4, 1e-2, **options), frozen=[lm.model])
    return history.losses, linear_map.linear.weight.detach(), history

def kept(f):
    "What autograd keeps for the gradient, in numbers."
    sizes = []
    def count(x):
        sizes.append(x.numel())
        return x
    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x): result = f()
    return result, sum(sizes)

def test_activations_computed_again_are_the_same():
    lm = LM(tiny(), tokenizer(), 'tiny', '')
    (plain, numbers), (again, fewer) = (kept(lambda: fitted(lm, gradient_checkpointing=on)) for on in (False, True))
    assert plain[0] == again[0] and torch.equal(plain[1], again[1]) and fewer < .7*numbers
    assert not any('forward' in vars(m) for m in lm.model.modules())

def test_a_step_takes_the_operations_that_a_plan_counts():
    "Forward, forward again and backward are planned as three forward passes; what no gradient needs is left out."
    from torch.utils.flop_counter import FlopCounterMode
    from frozen_nb.core.scales import forward_operations
    lm, caption = load_lm('llama', device='cpu'), ' a large red fox on the left in the snow'*3
    with torch.device('meta'): model = T.AutoModelForCausalLM.from_config(lm.model.config)
    linear_map, x = LinearMap(6, lm.width, scale=.1), torch.randn(4, 3, 6)
    def seq_of(linear_map): return sequence(lm, linear_map(x), 'A picture of', [caption]*4)
    def all_rows(linear_map, batch):
        seq = seq_of(linear_map)
        return lm.model(inputs_embeds=seq.inputs_embeds, labels=seq.labels, use_cache=False).loss
    def targets(linear_map, batch): return target_loss(lm, seq_of(linear_map))
    planned = 4*forward_operations(model, dict(embedded=True), seq_of(linear_map).inputs_embeds.shape[1])
    for loss, recompute, low, high in ((all_rows, True, 2.5, 3.02), (all_rows, False, 1.9, 2.02), (targets, True, 2.4, 3.02)):
        with FlopCounterMode(display=False) as counter:
            train(linear_map, lambda step: {}, loss, TrainConfig(1, 1e-3, gradient_checkpointing=recompute), frozen=[lm.model])
        assert low < counter.get_total_flops()/planned < high, (loss, recompute, counter.get_total_flops()/planned)

def test_it_is_not_part_of_the_run(tmp_path):
    model = tiny()
    def loss(module, ids): return model(inputs_embeds=module(model.get_input_embeddings()(ids)), labels=ids).loss
    def fit(steps, **options):
        with seeded(0): module = nn.Linear(32, 32)
        def batches(step):
            if step == steps: raise KeyboardInterrupt
            return IDS
        history = train(module, batches, loss, TrainConfig(6, checkpoint_every=3, **options), frozen=model, folder=tmp_path, inputs=0)
        return history
    with pytest.raises(KeyboardInterrupt): fit(3, gradient_checkpointing=True)
    assert fit(9).resumed_at == 3

def test_layers_are_named_where_there_are_none():
    with pytest.raises(BadInput, match='gradient_checkpointing: no layers of transformers in Linear') as error:
        train(layer(), regression, distance, TrainConfig(1, gradient_checkpointing=True))
    assert '\n' not in str(error.value)

def test_a_cache_does_not_grow_twice():
    model, cache = tiny(), T.DynamicCache()
    embeddings = model.get_input_embeddings()(IDS).requires_grad_()
    with recomputing(model): out = model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True).logits
    out.sum().backward()
    assert cache.get_seq_length() == IDS.shape[1]


# Logits of targets alone

def full(model, labels, **inputs):
    logits = model(use_cache=False, **inputs).logits[:, :-1].float()
    return logits[labels[:, 1:] != -100]

LABELS = IDS.where(torch.tensor([[0]*7 + [1]*3 + [0]*2, [0]*4 + [1]*8]) == 1, -100)

@pytest.mark.parametrize('name', FAMILIES)
def test_rows_and_gradients_are_those_of_full_logits(name):
    model = tiny(name)
    grads = []
    for f in (full, lambda *a, **k: target_logits(*a, **k)[0]):
        embeddings = model.get_input_embeddings()(IDS).detach().requires_grad_()
        rows = f(model, LABELS, inputs_embeds=embeddings*1, attention_mask=torch.ones_like(IDS))
        F.cross_entropy(rows, IDS[LABELS != -100]).backward()
        grads.append((rows.detach(), embeddings.grad))
    close(grads[1][0], grads[0][0], 1e-5); close(grads[1][1], grads[0][1])
    assert grads[0][1].abs().max() > 0 and not model.get_output_embeddings()._forward_pre_hooks

def heads_of(model):
    "How many rows its head is given."
    seen = []
    def count(head, args, out): seen.append(args[0].shape[:-1].numel())
    count.fingerprint = ''
    return seen, model.get_output_embeddings().register_forward_hook(count)

def test_the_head_is_given_no_other_rows():
    model = tiny()
    seen, handle = heads_of(model)
    rows, ids = target_logits(model, LABELS, input_ids=IDS)
    assert seen == [11] and ids.tolist() == IDS[LABELS != -100].tolist()

def test_a_family_whose_head_cannot_be_had():
    model = tiny()
    expected = target_logits(model, LABELS, input_ids=IDS)[0]
    for head in (None, nn.Linear(1, 1)):                 # none is named, or one that is not asked
        with mock.patch.object(model, 'get_output_embeddings', lambda: head): close(target_logits(model, LABELS, input_ids=IDS)[0], expected)

def test_no_target_at_all():
    rows, ids = target_logits(tiny(), torch.full_like(IDS, -100), input_ids=IDS)
    assert rows.shape[0] == 0 == len(ids)
    total, n = log_likelihoods(tiny(), torch.full_like(IDS, -100), torch.ones_like(IDS), input_ids=IDS)
    assert total.tolist() == [0, 0] == n.tolist()

def test_the_loss_is_that_of_all_logits():
    lm = LM(tiny('gemma2'), tokenizer(), 'tiny', '')
    with seeded(0): images = torch.randn(3, 4, lm.width)
    seq = sequence(lm, images, 'A picture of', [' a red fox', ' a cow', ' a small blue hippo in the snow'])
    assert abs(target_loss(lm, seq) - lm.model(**vars(seq), use_cache=False).loss) < 1e-6


# From the shell

def test_a_fit_with_less_memory_gives_the_same_map(tmp_path, monkeypatch, no_bf16):
    import numpy as np
    from PIL import Image
    from safetensors.torch import load_file
    from frozen_nb.fits.limber import LimberFit, fit_captions
    rng, data = np.random.default_rng(0), tmp_path/'data.jsonl'
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path/f'{i}.png')
        with data.open('a') as f: f.write(json.dumps(dict(image=f'{i}.png', caption='a red fox'*(i % 3) + ' in the snow')) + '\n')
    maps, runs, lm = {}, {}, load_lm('llama', device='cpu')
    for name, options in dict(plain={}, pieces=dict(accumulate=4), recomputed=dict(gradient_checkpointing=True)).items():
        monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/f'cache {name}'))
        seen, handle = heads_of(lm.model)
        fit_captions(LimberFit(data, tmp_path/name, lm=lm, k=4, batch=8, steps=3, lr=1e-3, optimizer='adamw', device='cpu', **options), progress=False)
        handle.remove()
        runs[name], = [p.name for p in (tmp_path/f'cache {name}'/'runs'/'limber').iterdir()]
        maps[name] = load_file(tmp_path/name/'model.safetensors'), len(seen)
    assert maps['pieces'][1] == maps['plain'][1] + 3*3 and maps['recomputed'][1] == maps['plain'][1]
    for name in ('pieces', 'recomputed'):
        for key, value in maps['plain'][0].items(): close(maps[name][0][key], value, 1e-6 if name == 'recomputed' else 1e-4)
    assert runs['plain'] == runs['recomputed'] != runs['pieces']


# Models that are spread over devices

def parts_on(device): return {'model.embed_tokens': device, 'model.layers': device, 'model.norm': device, 'model.rotary_emb': device, 'lm_head': device}

@pytest.mark.parametrize('device_map', ['cpu', 'auto', {'': 'cpu'}, parts_on('cpu'), torch.device('cpu')])
def test_a_device_map_gives_the_same_model(device_map, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    plain, spread = load_lm('llama', device='cpu'), load_lm('llama', device_map=device_map)
    assert spread.fingerprint == plain.fingerprint and spread.device.type == 'cpu' and is_frozen(spread.model)
    assert torch.equal(spread.model(input_ids=IDS).logits, plain.model(input_ids=IDS).logits)

@pytest.mark.parametrize('options, words', [
    (dict(device_map='disk'), "device 'disk' is unknown"), (dict(device_map=parts_on('cpu') | dict(lm_head='meta')), "device 'meta' is not here"),
    (dict(device_map={'lm_head': 'cuda:9'}), 'cuda:9'), (dict(device_map='auto', device='cpu'), 'not both'),
    (dict(name='llama-random', device_map='auto'), 'random weights are made on one device')])
def test_a_device_map_that_cannot_be(options, words):
    with pytest.raises(BadInput, match=words) as error: load_lm(**dict(name='llama') | options)
    assert '\n' not in str(error.value)

def test_weights_that_stay_on_the_disk_are_refused(monkeypatch):
    from frozen_nb.core import zoo
    load = zoo._load_transformers
    monkeypatch.setattr(zoo, '_load_transformers', lambda *args, device_map: load(*args).to('meta'))
    with pytest.raises(BadInput, match="do not fit on the devices of device_map, model.embed_tokens.weight is the first; take more devices, or dtype='bf16'"): load_lm('llama', device_map='auto')

def test_hooks_of_a_model_on_two_devices():
    "Each part moves what it is given to its own device; targets, gradients and recomputing go through that."
    from accelerate import dispatch_model
    plain = tiny()
    model = dispatch_model(tiny(), parts_on('cpu'), main_device='cpu', force_hooks=True)
    assert any(hasattr(m, '_hf_hook') for m in model.modules())
    results = []
    for m in (plain, model):
        embeddings = m.get_input_embeddings()(IDS).detach().requires_grad_()
        with recomputing(m): rows, ids = target_logits(m, LABELS, inputs_embeds=embeddings)
        F.cross_entropy(rows, ids).backward()
        results.append((rows, embeddings.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert model.model.layers[0].forward.__name__ != 'run'       # what was there is there again


# Features by rank

def test_the_size_of_a_store():
    assert feature_bytes(10, 4, 8, 'bf16') == 640 == feature_bytes(10, 4, 4, torch.float32)
    assert readable_bytes(640) == '640 bytes' and readable_bytes(2.936e12) == '2.9 TB'

def test_a_disk_without_room(tmp_path):
    def compute(todo): return torch.zeros(len(todo), 1000)
    items = [str(i) for i in range(20)]
    def fill(free):
        with mock.patch('shutil.disk_usage', lambda folder: mock.Mock(free=free)):
            return FeatureStore(tmp_path).features({}, items, compute, shard_size=4, progress=False)
    with pytest.raises(BadInput, match='No space left.*features of 20 more items take 80.0 KB, and 79.9 KB are free') as error: fill(79_900)
    assert '\n' not in str(error.value) and not list(tmp_path.rglob('*.safetensors'))
    assert len(fill(80_000)) == 20
    assert len(fill(0)) == 20                                 # nothing is missing

def in_processes(folder):
    "What one process of two computes: features, then a run whose processor has no bfloat16."
    folder = Path(folder)
    from accelerate import PartialState
    computed, items = [], [str(i) for i in range(64)]
    def compute(todo):
        computed.extend(todo)
        return torch.tensor(todo)[:, None].float()
    state = PartialState(cpu=True)
    state.wait_for_everyone()
    feats = FeatureStore(folder/'store').features({}, items, compute, shard_size=4, progress=False)
    torch.cpu.get_capabilities = lambda: {}
    losses = train(layer(), regression, distance, TrainConfig(50, .02, optimizer='muon', accumulate=2)).losses
    out = dict(computed=computed, rows=feats[:][:, 0].tolist(), losses=losses, backend=state.backend)
    (folder/f'{state.process_index}.json').write_text(json.dumps(out))
    state.wait_for_everyone()
    state.destroy_process_group()

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp('two')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(here), 'in_processes', str(folder)]
    paths = os.pathsep.join([str(root), str(here.parent)])
    run = subprocess.run(command, env=os.environ | dict(PYTHONPATH=paths, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES=''), capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads((folder/f'{rank}.json').read_text()) for rank in range(2)]

def test_each_rank_computes_its_part_and_reads_all(two):
    assert all(out['rows'] == list(range(64)) and out['backend'] == 'gloo' for out in two)
    for rank, out in enumerate(two): assert out['computed'] and {i//4 % 2 for i in out['computed'][:4]} == {rank}
    both = two[0]['computed'] + two[1]['computed']
    assert set(both) == set(range(64)) and len(both) <= 64 + 8, len(both)          # the last shards at most are there twice

def fits_of(folder):
    from frozen_nb.fits import flmm, generative_adapter, limber, lm4visual, pinto
    return [limber.LimberFit(folder/'a', folder/'b', batch=4, accumulate=4), flmm.FLMMFit(folder/'a', folder/'b', folder/'c', batch=4, accumulate=4),
            lm4visual.LM4VisualFit(folder/'a', folder/'b', batch=4, accumulate=4), generative_adapter.GeneratorFit(folder/'a', folder/'b', batch=4, accumulate=4),
            pinto.PintoFit(folder/'a', folder/'b', batch=4, accumulate=4)]

@pytest.mark.parametrize('i', range(5))
def test_every_fit_takes_a_batch_in_parts(i, tmp_path):
    fit = fits_of(tmp_path)[i]
    assert fit.train_config.accumulate == 4
    with pytest.raises(BadInput, match='accumulate 5: a batch has 4 items; give 4 or fewer'): replace(fit, accumulate=5)

def test_a_generator_is_the_same_when_batches_come_in_parts(tmp_path):
    from frozen_nb.fits.generative_adapter import fit_texts, GeneratorFit
    from frozen_nb.world.documents import biography
    (tmp_path/'texts').mkdir()
    for i in range(20): (tmp_path/'texts'/f'{i}.txt').write_text(biography(i, 2, seed=3).text)
    whole, parts = (fit_texts(GeneratorFit(tmp_path/'texts', tmp_path/str(n), steps=3, batch=4, accumulate=n, width=16, chunk=16, device='cpu'))['history'].losses for n in (1, 4))
    assert max(abs(a - b) for a, b in zip(whole, parts, strict=True)) < 5e-6

def test_a_visual_encoder_is_the_same_when_batches_come_in_parts():
    from frozen_nb.lm4visual import fit_encoder, new_classifier
    images, labels, losses = torch.rand(12, 3, 64, 64, generator=torch.manual_seed(5)), torch.arange(12) % 3, []
    for n in (1, 4):
        model = new_classifier('MLP', 3, depth=1)
        losses.append(fit_encoder(model, (images,), labels, TrainConfig(3, 1e-3, seed=1, accumulate=n), 8, frozen=[], progress=False).losses)
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 5e-6

def a_map_for_llama(folder=None):
    "A short training of a map for the shipped language model, and what that model then generates."
    from frozen_nb.core.prefix import generate
    from frozen_nb.limber import fit_map
    lm, features = load_lm('llama', device='cpu'), torch.randn(12, 2, 16, generator=torch.manual_seed(1))
    captions, config = [f'a red fox {"in the snow "*(i % 3)}.' for i in range(12)], TrainConfig(6, 1e-2, seed=3)
    trained, history = fit_map(None, lm, features, captions, config, batch_size=4, folder=folder)
    weights = [p.to_local() if hasattr(p, 'to_local') else p for p in lm.model.parameters()]
    return dict(losses=history.losses, fingerprint=lm.fingerprint, now=current_fingerprint(lm), numbers=sum(p.numel() for p in weights),
                text=generate(lm, trained(features[:3]), 'A picture of', 5), frozen=is_frozen(lm.model))

def in_parts(folder):
    "What one process of two computes under FSDP."
    from accelerate import PartialState
    out = a_map_for_llama(Path(folder)/'run')
    (Path(folder)/f'{PartialState().process_index}.json').write_text(json.dumps(out))
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()

def test_under_fsdp_each_process_holds_a_part_of_the_frozen_language_model(tmp_path):
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(here), 'in_parts', str(tmp_path)]
    paths = os.pathsep.join([str(root), str(here.parent)])
    env = os.environ | dict(PYTHONPATH=paths, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', ACCELERATE_USE_FSDP='true')
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    parts, whole = [json.loads((tmp_path/f'{rank}.json').read_text()) for rank in range(2)], a_map_for_llama()
    for out in parts:
        assert max(abs(a - b) for a, b in zip(out['losses'], whole['losses'], strict=True)) < 1e-6
        assert out['fingerprint'] == out['now'] == whole['fingerprint'] and out['frozen'] and out['text'] == whole['text']
        assert out['numbers'] < .8*whole['numbers']           # layers in two parts; embeddings and head are whole

def test_two_processes_with_muon_in_float32(two, no_bf16):
    losses = train(layer(), regression, distance, TrainConfig(50, .02, optimizer='muon')).losses
    for out in two: assert max(abs(a - b) for a, b in zip(out['losses'], losses, strict=True)) < 1e-6


# What it costs, measured in processes of their own (FROZEN_NB_CAMPAIGNS=full)

campaign = pytest.mark.skipif(os.environ.get('FROZEN_NB_CAMPAIGNS') != 'full', reason='a measurement; FROZEN_NB_CAMPAIGNS=full')

def measured(function, *args):
    command = [sys.executable, str(here), function.__name__, *map(str, args)]
    paths = os.pathsep.join([str(root), str(here.parent)])
    run = subprocess.run(command, env=os.environ | dict(PYTHONPATH=paths, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES=''), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])

def seconds_of(f, n=3):
    times = []
    for _ in range(n):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return min(times)

def optimizer_step(_=None):
    "Seconds of an optimizer step, and of forward and backward through a language model, 16 x 25 tokens."
    torch.cpu.get_capabilities = lambda: {}
    shape = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
    model = freeze(T.LlamaForCausalLM(T.LlamaConfig(vocab_size=49_152, **shape)))
    linear_map, features = nn.Linear(1280, 576), torch.randn(16, 1, 1280)
    ids = torch.randint(0, 49_152, (16, 24))
    labels = torch.cat([torch.full((16, 5), -100), ids[:, 4:]], 1)
    optimizer = training._optimizers(linear_map, TrainConfig(9, optimizer='muon'))[0]
    def both():
        embeddings = torch.cat([linear_map(features), model.get_input_embeddings()(ids)], 1)
        rows, targets = target_logits(model, labels, inputs_embeds=embeddings)
        F.cross_entropy(rows, targets).backward()
    through = seconds_of(both)
    torchs = torch.optim.Muon([linear_map.weight], adjust_lr_fn='match_rms_adamw')
    print(json.dumps(dict(through=through, step=seconds_of(optimizer.step), torch=seconds_of(torchs.step))))

@campaign
def test_an_optimizer_step_is_small_beside_the_language_model():
    out = measured(optimizer_step, '')
    print(f'step {out["step"]:.2f} s (in bfloat16 {out["torch"]:.2f} s), forward and backward {out["through"]:.2f} s')
    assert out['step']/out['through'] <= .1

def rss():
    with open('/proc/self/statm') as f: return int(f.read().split()[1])*resource.getpagesize()

def one_loss(which, visual=256):
    "Seconds and bytes of a loss with its gradient: width 512, 50,400 tokens, two rows."
    visual = int(visual)
    model = freeze(T.LlamaForCausalLM(T.LlamaConfig(vocab_size=50_400, hidden_size=512, intermediate_size=1376, num_hidden_layers=4, num_attention_heads=8)))
    embeddings = torch.randn(2, visual + 20, 512, requires_grad=True)
    labels = torch.randint(0, 50_400, (2, visual + 20), generator=torch.manual_seed(0))
    labels[:, :visual + 4] = -100
    def full_loss(): return model(inputs_embeds=embeddings, labels=labels, use_cache=False).loss
    def row_loss(): return F.cross_entropy(*target_logits(model, labels, inputs_embeds=embeddings))
    loss, before = dict(full=full_loss, rows=row_loss)[which], rss()
    loss().backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024 - before
    print(json.dumps(dict(seconds=seconds_of(lambda: loss().backward(), 5), peak=peak)))

@campaign
@pytest.mark.parametrize('visual', [64, 256])
def test_logits_of_targets_take_less_time_and_memory(visual):
    full, rows = (measured(one_loss, which, visual) for which in ('full', 'rows'))
    print(f'{visual} visual tokens: {full["seconds"]:.2f} -> {rows["seconds"]:.2f} s, {full["peak"]/2**20:.0f} -> {rows["peak"]/2**20:.0f} MiB')
    assert rows['seconds']/full['seconds'] <= .7 and rows['peak']/full['peak'] <= .6


if __name__ == '__main__': globals()[sys.argv[1]](*sys.argv[2:])
