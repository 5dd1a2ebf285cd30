"""What `load_lm` accepts works in every function, or is refused by it in one line.

A model of a family is loaded as a user does, and each function is held against the model itself: the logit lens
against its own logits, points inside a block against the block's output, what is left out against the same model
with zeros in the last linear map, attention rows against eager attention. By default a sample of the families,
all of them with FROZEN_NB_CAMPAIGNS=full."""
import copy
import inspect
import json
import os

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from frozen_nb import generative_adapter as adapters
from frozen_nb.core import adapted as adapted_lm
from frozen_nb.core.states import block_input, hooked, MultimodalBatch, point_states, POINTS, token_states, vocabulary
from frozen_nb.core.skipping import skipping
from frozen_nb.core.subnetworks import linears, pruned, subnetwork
from frozen_nb.core.activations import attention_rows, blocks, hidden_states, matrix_of, parts_of
from frozen_nb.core.frozen import BadInput, fingerprint, seeded
from frozen_nb.core.blocks import load_block
from frozen_nb.core.zoo import load_lm, load_lmm
from families import ATTENTION, build, FAMILIES, SAMPLE, save
from tiny_models import LMM_KINDS, make_lmm

torch.set_num_threads(1)
NAMES = list(ATTENTION) if os.environ.get('FROZEN_NB_CAMPAIGNS') == 'full' else SAMPLE
pytestmark = pytest.mark.campaign
IDS = torch.randint(5, 1000, (2, 40), generator=torch.Generator().manual_seed(0))  # longer than the windows

class Loaded:
    "A model of a family, loaded once, and what is not changed by the tests."
    def __init__(self, name, folder):
        self.name, self.folder = name, save(folder, name)
        self.lm = load_lm(folder, device='cpu')
        self.fingerprint = fingerprint(self.lm.model)

@pytest.fixture(scope='module', params=NAMES)
def family(request, tmp_path_factory): return Loaded(request.param, tmp_path_factory.mktemp('family')/request.param)

@pytest.fixture(autouse=True)
def unchanged(request):
    "No test leaves a hook, a stand-in or another weight in the model."
    yield
    if 'family' not in request.fixturenames: return
    family = request.getfixturevalue('family')
    model = family.lm.model
    assert fingerprint(model) == family.fingerprint
    assert not any(m._forward_hooks or m._forward_pre_hooks or 'forward' in vars(m) for m in model.modules())

REFUSED = dict(                     # function -> the families that it may refuse, and a word of the reason
    attention_rows=({'openai_gpt'}, 'gives no attention weights'),
    points=({'opt_350m', 'openai_gpt', 'mixtral', 'qwen2_moe', 'qwen3_moe', 'olmoe', 'granitemoe', 'deepseek_v2', 'deepseek_v3',
             'gpt_oss'}, 'experts|norms after|other points'),
    subnetwork=({'mixtral', 'qwen2_moe', 'qwen3_moe', 'olmoe', 'granitemoe', 'deepseek_v2', 'deepseek_v3', 'gpt_oss'}, 'experts'))

def or_refused(function, name, call):
    "What a function gives, or None where it refuses a family that it may refuse, in one line."
    names, reason = REFUSED.get(function, (set(), ''))
    try:
        return call()
    except BadInput as error:
        assert name in names and '\n' not in str(error)
        assert any(words in str(error) for words in reason.split('|')), str(error)

def rows_and_logits(model, ids):
    with torch.no_grad(), attention_rows(model, slice(None)) as seen: logits = model(input_ids=ids).logits
    return seen.rows, logits

@torch.no_grad()
def test_attention_rows_are_those_of_eager_attention(family):
    model = family.lm.model
    got = or_refused('attention_rows', family.name, lambda: rows_and_logits(model, IDS))
    if got is None: return
    rows, logits = got
    own = model(input_ids=IDS).logits
    eager = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), attn_implementation='eager').eval()
    eager.load_state_dict(model.state_dict())
    reference = eager(input_ids=IDS, output_attentions=True)
    assert torch.equal(logits, own) and len(rows) == len(blocks(model))
    assert all((x.sum(-1) - 1).abs().max() < 1e-4 for x in rows.values()) or family.name == 'gpt_oss'     # whose sinks take a share
    if family.name == 'falcon_alibi': return       # transformers' eager attention differs from its own sdpa here: other logits
    assert all((rows[i] - x).abs().max() < 1e-5 for i, x in enumerate(reference.attentions))

@torch.no_grad()
def test_hidden_states_are_the_models_own(family):
    model = family.lm.model
    own = copy.deepcopy(model)(input_ids=IDS, output_hidden_states=True).hidden_states   # leaves hooks of its own
    got = hidden_states(model, [0, 1, -1], input_ids=IDS)
    assert torch.equal(got[1], own[1])
    assert torch.equal(got[-1], model.get_decoder()(input_ids=IDS)[0])

def prompt(): return MultimodalBatch(dict(input_ids=IDS), torch.arange(40).expand(2, 40) < 20, torch.arange(40).expand(2, 40) >= 20)

@torch.no_grad()
def test_the_logit_lens_of_the_last_layer_is_the_model(family):
    "Softcaps, logit scales, logits scaling and projections are part of a head."
    lm = family.lm
    states = token_states(lm.model, prompt())
    own = lm.model(input_ids=IDS).logits.float().log_softmax(-1)
    assert (vocabulary(lm, states[-1]) - own).abs().max() < 1e-4
    assert (vocabulary(lm, states[-1][1, 3]) - own[1, 3]).abs().max() < 1e-4
    assert vocabulary(lm, states[1]).isfinite().all()

def test_points_add_up_to_what_the_block_gives(family):
    model, states = family.lm.model, token_states(family.lm.model, prompt())
    for i in range(len(blocks(model))):
        points = or_refused('points', family.name, lambda: point_states(model, prompt(), i))
        if points is None: continue
        assert list(points) == list(POINTS)
        tolerance = 1e-4*states[i + 1].abs().max()
        assert torch.equal(points['X+FC2'], states[i + 1])
        assert (states[i] + points['SA'] - points['X+SA']).abs().max() < tolerance
        assert (points['X+SA'] + points['FC2'] - states[i + 1]).abs().max() < tolerance
        assert all(points[name].abs().max() > 0 for name in points)

@torch.no_grad()
def without(model, what, layers):
    "Logits of a copy of the model in which the last linear maps of a part are zero."
    model = copy.deepcopy(model)
    for i in layers:
        parts, block = parts_of(model)[i], blocks(model)[i]
        if what != 'ffn':
            for p in block.get_submodule(parts.out).parameters(): p.zero_()
        if what != 'attention':
            inside = block.get_submodule(parts.ffn_out or parts.last)
            for name, p in inside.named_parameters():
                if parts.ffn_out or 'down' in name or 'output' in name: p.zero_()
    return model

def logits(model, **inputs):
    with torch.no_grad(): return model(**inputs, use_cache=False).logits

@pytest.mark.parametrize('what', ['ffn', 'attention', 'block'])
def test_what_is_skipped_adds_nothing(family, what):
    model, layers = family.lm.model, [2]
    if family.name == 'openai_gpt' or family.name == 'opt_350m' and what == 'block': return   # norms after the parts
    expected, plain = logits(without(model, what, layers), input_ids=IDS), logits(model, input_ids=IDS)
    with skipping(model, what, layers=layers): whole = logits(model, input_ids=IDS)
    assert (whole - expected).abs().max() < 1e-3 < (whole - plain).abs().max()
    one = prompt()
    one.visual[:], one.text[:] = True, False
    with skipping(model, what, one, 'visual', layers=layers): some = logits(model, input_ids=IDS)
    assert (some - expected).abs().max() < 1e-3

def with_cache(model, ids, first=30):
    cache, out = DynamicCache(config=model.config), []
    for lo, hi in [(0, first), *((t, t + 1) for t in range(first, ids.shape[1]))]:
        with torch.no_grad(): out.append(model(input_ids=ids[:, lo:hi], past_key_values=cache, use_cache=True).logits)
    return torch.cat(out, 1)

@pytest.mark.parametrize('tokens', ['visual', 'all'])
@pytest.mark.parametrize('what', ['ffn', 'attention', 'block'])
def test_skipping_with_a_cache_is_skipping_without(family, what, tokens):
    model = family.lm.model
    if family.name in ('ctrl', 'openai_gpt', 'xlnet'): return     # no cache of the usual form
    plain = logits(model, input_ids=IDS)
    with skipping(model, what, prompt(), tokens, layers=[2]): a, b = logits(model, input_ids=IDS), with_cache(model, IDS)
    assert (a - b).abs().max() < 2e-3 < (a - plain).abs().max()
    if tokens == 'visual': assert (a - plain)[:, :20].abs().max() > 1e-3
    changed = dict(visual=slice(0, 20), all=slice(0, 40))[tokens]
    with skipping(model, what, prompt(), 'visual', layers=[2]): c = logits(model, input_ids=IDS)
    assert what == 'block' or tokens == 'all' or (c[:, changed] - a[:, changed]).abs().max() == 0

def test_parallel_attention_reads_what_attention_reads(family):
    model, seen = family.lm.model, {}
    parts, block = parts_of(model)[2], blocks(model)[2]
    def see(name): return lambda module, args, kwargs: seen.__setitem__(name, block_input(args, kwargs))
    plain = logits(model, input_ids=IDS)
    with skipping(model, 'parallel attention', layers=[2]):
        watched = [block.get_submodule(at).register_forward_pre_hook(see(at), with_kwargs=True) for at in (parts.attention, parts.first)]
        with hooked(watched): parallel = logits(model, input_ids=IDS)
    assert torch.equal(seen[parts.attention].flatten(), seen[parts.first].flatten())
    assert parallel.isfinite().all() and torch.equal(logits(model, input_ids=IDS), plain)

def test_a_subnetwork_has_all_weights_of_the_blocks(family):
    model = family.lm.model
    for by in ('wanda', 'magnitude'):
        masks = or_refused('subnetwork', family.name, lambda: subnetwork(model, [prompt()], .5, by=by))
        if masks is None: continue
        total = sum(p.numel() for block in blocks(model) for p in block.parameters() if p.ndim > 1)
        assert sum(m.numel() for m in masks.values()) > .99*total
        with pruned(model, masks):
            for name, mask in masks.items():
                weight = matrix_of(linears(model, int(name.split('.')[0]))[name])
                assert ((weight == 0) == ~mask).all()

REFUSED['block'] = ({'mixtral', 'qwen2_moe', 'qwen3_moe', 'olmoe', 'granitemoe', 'deepseek_v2', 'deepseek_v3', 'gpt_neo', 'bloom', 'mpt', 'falcon_alibi', 'openai_gpt'},
                    'model without experts|knows the order')

@torch.no_grad()
def own_layer_at_position_0(model, i, x):
    "What block `i` gives for x (B, T, D), called as the model calls it, with all tokens at position 0 and seen by all."
    call, block, zeros = {}, blocks(model)[i], torch.zeros(x.shape[:2], dtype=torch.long)
    def note(block, args, kwargs): call.update(inspect.signature(block.forward).bind(*args, **kwargs).arguments)
    hook = block.register_forward_pre_hook(note, with_kwargs=True)
    decoder = model.get_decoder()
    model.get_decoder()(input_ids=zeros, use_cache=False, **dict(position_ids=zeros) if 'position_ids' in inspect.signature(decoder.forward).parameters else {})
    hook.remove()
    call |= call.pop('kwargs', {})
    call[next(iter(call))], call['attention_mask'] = x, torch.zeros(len(x), 1, x.shape[1], x.shape[1])
    y = block(**call)
    return y[0] if isinstance(y, (tuple, list)) else y

def test_a_block_alone_is_the_models_own_layer(family):
    model, x = family.lm.model, torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    for i in (0, len(blocks(model)) - 1):
        block = or_refused('block', family.name, lambda: load_block(family.folder, i, norm=None, device='cpu'))
        if block is None: continue
        assert (block(x) - own_layer_at_position_0(model, i, x)).abs().max() < 1e-4
        assert (block(x, torch.ones(2, 6).bool()) - block(x)).abs().max() < 1e-4

ROPE = dict(llama3=('llama', dict(rope_type='llama3', factor=8., low_freq_factor=1., high_freq_factor=4., original_max_position_embeddings=64)),
            yarn=('qwen2', dict(rope_type='yarn', factor=4., original_max_position_embeddings=64)),
            longrope=('phi3', dict(rope_type='longrope', short_factor=[1.]*4, long_factor=[1.]*4, partial_rotary_factor=1.)))

@pytest.mark.parametrize('kind', ROPE)
def test_a_block_has_the_attention_factor_of_its_rotary_angles(kind, tmp_path, monkeypatch):
    "YaRN and longrope multiply cosine and sine by a factor, at position 0, too (as in CTranslate2#1685)."
    name, rope = ROPE[kind]
    def make(ids):
        config = ATTENTION[name](ids)
        if kind == 'longrope': config.original_max_position_embeddings = 64
        config.rope_parameters = dict(rope_theta=1e4, **rope)
        return config
    monkeypatch.setitem(FAMILIES, name, make)
    model, _ = build(name)
    x = torch.randn(2, 6, 32)
    block = load_block(save(tmp_path/'lm', name), 1, norm=None, device='cpu')
    assert (block(x) - own_layer_at_position_0(model, 1, x)).abs().max() < 1e-4
    assert kind == 'llama3' or block.arguments(0, x)['position_embeddings'][0].max() > 1.1

@pytest.mark.parametrize('kind', LMM_KINDS)
def test_the_block_of_a_multimodal_models_language_model(kind, tmp_path):
    lmm = load_lmm(make_lmm(kind, tmp_path/kind), device='cpu')
    block = load_block(tmp_path/kind, 1, norm='own', device='cpu')
    own = blocks(lmm.model)[1].state_dict()
    assert all(torch.equal(x, own[name]) for name, x in block.layers[0].state_dict().items())
    assert block(torch.randn(1, 4, 32)).isfinite().all()

@pytest.mark.parametrize('shards', [1, 2])
def test_a_block_of_a_folder_with_pickles(shards, tmp_path):
    model, _ = build('llama')
    model.save_pretrained(tmp_path/'lm')
    (tmp_path/'lm'/'model.safetensors').unlink()
    tensors = {name: x.clone() for name, x in model.state_dict().items()}
    files = {name: f'pytorch_model-{i % shards + 1:05d}-of-{shards:05d}.bin' if shards > 1 else 'pytorch_model.bin' for i, name in enumerate(tensors)}
    for file in set(files.values()): torch.save({name: tensors[name] for name in tensors if files[name] == file}, tmp_path/'lm'/file)
    if shards > 1: (tmp_path/'lm'/'pytorch_model.bin.index.json').write_text(json.dumps(dict(weight_map=files)))
    block = load_block(tmp_path/'lm', 1, norm='own', device='cpu')
    assert all(torch.equal(x, blocks(model)[1].state_dict()[name]) for name, x in block.layers[0].state_dict().items())
    next((tmp_path/'lm').glob('*.bin')).write_bytes(b'no pickle')
    with pytest.raises(BadInput, match='copy it again'): load_block(tmp_path/'lm', 1, norm='own', device='cpu')

REFUSED['adapter'] = ({'mixtral', 'qwen3_moe', 'olmoe', 'granitemoe', 'gpt_oss'}, 'no one linear map')

def an_adapter(lm, part):
    "What a generator writes for two texts, with random weights where a new one has zeros."
    with seeded(0): generator = adapters.Generator(lm, width=8, rank=4, part=part, chunk=16)
    for layer in generator.layers: torch.nn.init.normal_(layer.out.weight, std=.2)
    return adapters.adapters_of(lm, generator, ['a lion sleeps in the snow', 'the red hippo eats'])

@pytest.mark.parametrize('part', ['attention', 'mlp'])
def test_an_adapter_beside_the_model_is_one_merged_into_it(family, part):
    lm = family.lm
    adapter = or_refused('adapter' if part == 'mlp' else '', family.name, lambda: an_adapter(lm, part))
    if adapter is None: return
    plain = logits(lm.model, input_ids=IDS)
    with adapted_lm.adapted(lm, adapter[0]): beside = logits(lm.model, input_ids=IDS)
    with adapted_lm.merged(lm, adapter[0]): merged = logits(lm.model, input_ids=IDS)
    with adapted_lm.adapted(lm, adapter): each = logits(lm.model, input_ids=IDS)
    tolerance = 1e-3*max(1., float(plain.abs().max()))
    assert (beside - merged).abs().max() < tolerance < (beside - plain).abs().max()
    assert (each[0] - beside[0]).abs().max() < tolerance < (each[1] - beside[1]).abs().max()
    assert len(adapter.down) == len(blocks(lm.model))
