"Adapters of every family, what is saved, and bad input."
import copy, json, math, warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from frozen_nb import generative_adapter
from frozen_nb.benchmarks.documents import answers, common_words, content_f1, token_f1
from frozen_nb.core.adapted import adapted, Adapter, load_adapter, merged, save_adapter
from frozen_nb.core.contexts import chunks_of, halves, in_prompt, lessons, padded
from frozen_nb.core.frozen import BadInput, data_path, fingerprint, freeze, tensor_hashes
from frozen_nb.core.low_rank import polar
from frozen_nb.fits import adapter_baselines
from frozen_nb.fits.adapter_baselines import fine_tuned, fit_constant_lora, fit_lora, fit_soft_tokens
from frozen_nb.fits.generative_adapter import fit_texts, GeneratorFit
from frozen_nb.generative_adapter import *
from frozen_nb.world.documents import biography, NAMES, UNREAD_NAMES
from frozen_nb.core.training import TrainConfig
from frozen_nb.core.zoo import LM, load_lm, load_tokenizer
from tiny_models import tokenizer

SIZES = dict(vocab_size=1408, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=128, pad_token_id=1, bos_token_id=0, eos_token_id=0)
FAMILIES = dict(llama=dict(num_key_value_heads=2), opt=dict(ffn_dim=64, word_embed_proj_dim=32), gpt2={}, gpt_neox={}, mistral=dict(num_key_value_heads=2), gptj=dict(rotary_dim=4), qwen2=dict(num_key_value_heads=2))
TOKENIZER = load_lm('llama', device='cpu').tokenizer

def make(family, seed=0):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES | FAMILIES[family])).double().eval()
    for p in model.parameters(): torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=.15)
    freeze(model)
    return LM(model, TOKENIZER, family, fingerprint(model))

def alive(lm, **how):
    "A generator whose output maps are not zero."
    torch.manual_seed(0); g = Generator(lm, **dict(width=12, rank=8, chunk=10) | how).double()
    for layer in g.layers: torch.nn.init.normal_(layer.out.weight, std=.2)
    return g

@pytest.fixture(scope='module', params=FAMILIES)
def lm(request): return make(request.param)

TEXT = 'Nick lives in the snow. Nick is brave today. Nick likes cheese.'
IDS = torch.tensor([[5, 9, 30, 31, 77]])

@pytest.mark.parametrize('part', ('attention', 'mlp'))
def test_beside_merged_and_peft_are_one(lm, part, tmp_path):
    from peft import PeftModel
    g, before = alive(lm, part=part), lm.model(input_ids=IDS).logits
    adapter, hashes = Memory(lm, g).add(TEXT).adapter(), tensor_hashes(lm.model)
    with adapted(lm, adapter): beside = lm.model(input_ids=IDS).logits
    with merged(lm, adapter): inside = lm.model(input_ids=IDS).logits
    assert (beside - before).abs().max() > 1e-3 and torch.allclose(beside, inside, atol=1e-9) and torch.equal(lm.model(input_ids=IDS).logits, before) and tensor_hashes(lm.model) == hashes
    save_adapter(adapter, lm, tmp_path/'a'); back = load_adapter(tmp_path/'a', lm)
    assert all(torch.equal(adapter.down[k], back.down[k]) and torch.equal(adapter.up[k], back.up[k]) for k in adapter.down)
    again = make(lm.name)
    assert torch.allclose(PeftModel.from_pretrained(again.model, tmp_path/'a')(input_ids=IDS).logits, beside, atol=1e-6)

def test_an_error_inside_leaves_nothing(lm):
    g, before = alive(lm), lm.model(input_ids=IDS).logits
    adapter = Memory(lm, g).add(TEXT).adapter()
    for way in (adapted, merged):
        with pytest.raises(ZeroDivisionError):
            with way(lm, adapter): 1/0
        assert torch.equal(lm.model(input_ids=IDS).logits, before) and not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())

@pytest.mark.parametrize('part', ('attention', 'mlp'))
def test_nested_and_for_each_row(lm, part):
    g = alive(lm, part=part); a, b = (Memory(lm, g).add(t).adapter() for t in (TEXT, 'Emil is a deer.'))
    with adapted(lm, a):
        with adapted(lm, b): both = lm.model(input_ids=IDS).logits
        one = lm.model(input_ids=IDS).logits
        all_rows = lm.model(input_ids=IDS.expand(3, -1)).logits
    with adapted(lm, b): other = lm.model(input_ids=IDS).logits
    with adapted(lm, Adapter.of([a, b])): rows = lm.model(input_ids=IDS.expand(2, -1)).logits
    assert torch.allclose(rows[0], one[0], atol=1e-9) and torch.allclose(rows[1], other[0], atol=1e-9) and torch.allclose(all_rows, one.expand(3, -1, -1), atol=1e-9) and not torch.allclose(both, one) and not torch.allclose(other, one)
    for n in (1, 3, 4):
        with adapted(lm, Adapter.of([a, b])), pytest.raises(BadInput, match=f'2 adapters for {n} rows'): lm.model(input_ids=IDS.expand(n, -1))

def test_gradients_reach_the_generator_alone(lm):
    g = alive(lm)
    batch = lessons([[[5, 6, 7], [8, 9]], [[4, 3]]], [[([0, 5, 6, 7], 0), ([0, 9, 10], 1)], [([0, 3, 3, 3], 2)]])
    total, n = adapter_loss(lm, g, batch); total.backward()
    assert n == 3 + 2 + 2 and all(p.grad is not None and p.grad.isfinite().all() for p in g.parameters()) and all(p.grad is None for p in lm.model.parameters())
    assert sum(float(p.grad.abs().sum()) > 0 for p in g.parameters()) == len(list(g.parameters()))

@pytest.mark.parametrize('norm', ('svd', 'frobenius', 'none'))
def test_thin_is_whole(norm):
    lm = make('llama'); g = alive(lm, norm=norm); state = Memory(lm, g).add(TEXT).state
    thin, whole = g.write(state, thin=True), g.write(state)
    for k in thin.down: assert torch.allclose(thin.up[k] @ thin.down[k], whole.up[k] @ whole.down[k], atol=1e-9)

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
def test_fewer_tokens_than_the_rank_add_no_noise(seed, rank, tokens):
    g = torch.Generator().manual_seed(seed)
    M = (torch.randn(9, tokens, generator=g, dtype=torch.float64) @ torch.randn(tokens, 9, generator=g, dtype=torch.float64)).requires_grad_()
    P = polar(M, rank); P.square().sum().backward()
    values = torch.linalg.svdvals(P.detach())
    assert M.grad.isfinite().all() and int((values > .5).sum()) <= min(rank, tokens) and (values - values.round()).abs().max() < 1e-8

def test_equal_singular_values_have_a_gradient():
    M = torch.eye(6, dtype=torch.float64).requires_grad_(); polar(M, 3)[0, 1].backward()
    assert M.grad.isfinite().all()
    M = torch.zeros(6, 6, dtype=torch.float64).requires_grad_(); polar(M, 3).sum().backward()
    assert M.grad.isfinite().all() and (polar(M, 3) == 0).all()

def test_memory():
    lm = make('llama'); g = alive(lm)
    a, b = Memory(lm, g).add('Emil is a deer.'), Memory(lm, g).add(TEXT)
    both = a + b
    assert torch.allclose(both.state, Memory(lm, g).add(TEXT).add('Emil is a deer.').state, atol=1e-12) and both.tokens == a.tokens + b.tokens
    assert torch.allclose(both.forget(TEXT).state, a.state, atol=1e-12) and both.nbytes == a.nbytes
    s = Memory(lm, g, 'sequential').add(TEXT)
    assert not torch.allclose(s.state, b.state)
    for call, words in ((lambda: s.forget(TEXT), 'parallel'), (lambda: s + a, 'parallel'), (lambda: a + Memory(lm, alive(lm)), 'same generator'), (lambda: a.add(''), 'empty'), (lambda: a.add(' \n'), 'empty'), (lambda: a.add([]), 'empty'),
                        (lambda: Memory(lm, g, max_tokens=3).add(TEXT), 'at most 3'), (lambda: Memory(lm, g, 'best'), 'best'), (lambda: Memory(make('llama', 1), g), 'another language model'), (lambda: Generator(lm, width=4, rank=5), 'rank 5'),
                        (lambda: a.forget(TEXT), 'never added'), (lambda: Memory(lm, g).forget('Emil is a deer.'), 'never added'), (lambda: adapters_of(lm, g, []), 'no texts'), (lambda: adapters_of(lm, g, [TEXT, ' ']), 'text 1 is empty'), (lambda: adapters_of(lm, g, ['']), 'text 0 is empty'), (lambda: chunks_of([], 5), 'empty'),
                        (lambda: Generator(lm, norm='l2'), 'l2'), (lambda: Generator(lm, part='head'), 'head'), (lambda: Memory(lm, alive(lm, chunk=500)).add(list(range(300))), 'makes the chunks shorter'.replace('makes', 'make'))):
        before = a.state.clone()
        with pytest.raises(BadInput) as e: call()
        assert words in str(e.value) and '\n' not in str(e.value) and torch.equal(a.state, before)

def test_only_what_was_added_is_forgotten():
    lm = make('llama'); g = alive(lm)
    ids = lm.tokenizer(TEXT, add_special_tokens=False).input_ids
    twice = Memory(lm, g).add(TEXT).add(torch.tensor(ids)).add('Emil is a deer.'); less = copy.copy(twice).forget(TEXT)
    assert twice.tokens == less.tokens + len(ids) and torch.allclose(less.state, Memory(lm, g).add(TEXT).add('Emil is a deer.').state, atol=1e-12)
    less.forget(TEXT)
    with pytest.raises(BadInput, match='never added, or is forgotten already'): less.forget(TEXT)
    assert torch.allclose(twice.forget(TEXT).forget(TEXT).state, less.state, atol=1e-12) and torch.allclose((less + Memory(lm, g).add(TEXT)).forget(TEXT).state, less.state, atol=1e-12)
    assert less.state.any() and not less.forget('Emil is a deer.').state.any()   # rounding that is left would be an adapter of full size

def test_a_model_with_other_settings_is_warned_of(tmp_path):
    lm = replace(make('llama'), settings='01'); g, other = alive(lm), replace(lm, settings='02')
    save_generator(g, tmp_path/'g'); save_adapter(Memory(lm, g).add(TEXT).adapter(), lm, tmp_path/'a')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for load, name in ((load_generator, 'g'), (load_adapter, 'a')): load(tmp_path/name, lm)
    for load, name, what in ((load_generator, 'g', 'generator'), (load_adapter, 'a', 'adapter')):
        with pytest.warns(UserWarning, match=f'the {what} in .*the weights of .* are those that it was made for, and its configuration'): load(tmp_path/name, other)

def test_folders_that_are_wrong(tmp_path):
    lm, other = make('llama'), make('llama', 1); g = alive(lm)
    adapter = Memory(lm, g).add(TEXT).adapter(); save_adapter(adapter, lm, tmp_path/'a')
    for folder, model, words in ((tmp_path/'nowhere', lm, 'no adapter'), (tmp_path/'a', other, 'another language model')):
        with pytest.raises(BadInput, match=words): load_adapter(folder, model)
    (tmp_path/'half').mkdir(); (tmp_path/'half'/'adapter_config.json').write_text('{}')
    with pytest.raises(BadInput, match='no adapter'): load_adapter(tmp_path/'half', lm)
    (tmp_path/'half'/'adapter_model.safetensors').write_bytes((tmp_path/'a'/'adapter_model.safetensors').read_bytes()[:500])
    with pytest.raises(BadInput, match='cannot be read'): load_adapter(tmp_path/'half', lm)
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'letter.txt').write_text('dear')
    with pytest.raises(BadInput, match='something else than an adapter'): save_adapter(adapter, lm, tmp_path/'mine')
    assert (tmp_path/'mine'/'letter.txt').read_text() == 'dear' and sorted(p.name for p in tmp_path.iterdir()) == ['a', 'half', 'mine']
    with pytest.raises(BadInput, match='2 adapters'): save_adapter(Adapter.of([adapter, adapter]), lm, tmp_path/'two')
    save_generator(g, tmp_path/'g'); again = load_generator(tmp_path/'g', lm)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in g.state_dict().items())
    with pytest.raises(BadInput, match='another language model'): load_generator(tmp_path/'g', other)
    (tmp_path/'g'/'sha256.json').unlink()
    config = json.loads((tmp_path/'g'/'config.json').read_text()); (tmp_path/'g'/'config.json').write_text(json.dumps(config | dict(width=16)))
    with pytest.raises(BadInput, match='no whole generator'): load_generator(tmp_path/'g', lm)
    assert token_f1(['in the snow', 'a red fox', ''], ['in snow', 'blue', '']).tolist() == [1., 0., 1.]
    (tmp_path/'a'/'letter.txt').write_text('dear')
    save_adapter(adapter, lm, tmp_path/'a')                                                                  # what else is there stays
    assert sorted(p.name for p in (tmp_path/'a').iterdir()) == ['adapter_config.json', 'adapter_model.safetensors', 'letter.txt', 'sha256.json']
    with pytest.raises(BadInput, match='a file where a folder has to be'): save_adapter(adapter, lm, tmp_path/'a'/'letter.txt'/'deeper')
    for config in (dict(width=12), [1], dict(base=None)):
        (tmp_path/'g'/'config.json').write_text(json.dumps(config))
        with pytest.raises(BadInput, match='not of a generator'): load_generator(tmp_path/'g', lm)

def test_soft_tokens_take_the_place_of_the_start_token(monkeypatch):
    lm, found = make('llama'), []
    rows = padded([[[0, 5, 9, 30, 31]], [[0, 77, 12]]])
    monkeypatch.setattr(adapter_baselines, '_fit', lambda parameters, rows, said, *rest: found.append(said(rows[:, 0])))
    for x, s, ours in zip(rows[:, 0], fit_soft_tokens(lm, rows, tokens=3), found[0]):
        ids = x[x >= 0][1:]
        logits = lm.model(inputs_embeds=torch.cat([s.to(lm.dtype), lm.embeddings(ids)])[None]).logits[0, 2:-1]                       # the first token is said after the last soft one
        assert torch.allclose(ours[:len(ids)], -torch.nn.functional.cross_entropy(logits.float(), ids, reduction='none'), atol=1e-5)

# --- half precision

def test_what_was_made_in_single_precision_is_taken_in_half(tmp_path):
    whole, half = (load_lm('llama', dtype, 'cpu') for dtype in ('fp32', 'bf16'))
    shipped, g = data_path('zoo', 'adapter'), load_generator(data_path('zoo', 'adapter'), half)
    told = Memory(half, g).add('Bella is a fox. Bella lives by the lake.').adapter()
    assert all(p.dtype == torch.float32 for p in g.parameters()) and len(answers(half, ['where does Bella live?'], told)) == 1
    near = Memory(whole, load_generator(shipped, whole)).add('Bella is a fox. Bella lives by the lake.').adapter()
    save_adapter(near, whole, tmp_path/'whole'); back = load_adapter(tmp_path/'whole', half)
    with adapted(half, back): assert half.model(input_ids=IDS).logits.isfinite().all()
    save_adapter(told, half, tmp_path/'half')
    for call in (lambda: load_adapter(tmp_path/'half', whole), lambda: Memory(half, load_generator(shipped, whole)), lambda: load_generator(shipped, replace(half, name='opt')), lambda: load_generator(shipped, replace(half, name='nobody')), lambda: load_generator(shipped, load_lm('llama-random', 'bf16', 'cpu'))):
        with pytest.raises(BadInput) as e: call()
        assert 'another language model' in str(e.value) and ('bfloat16' in str(e.value) or 'float32' in str(e.value)) and '\n' not in str(e.value)
    moved = make('llama').model.to(torch.bfloat16)                                                                        # bears the name, and other weights
    with pytest.raises(BadInput, match='another language model'): load_generator(shipped, LM(moved, TOKENIZER, 'llama', fingerprint(moved)))

@pytest.mark.parametrize('start', (True, False, 'auto'))
def test_a_start_token_is_read_before_each_chunk_and_not_written(lm, start, tmp_path):
    g = alive(lm).reads_start(lm, start)
    assert g.made_of['start'] is (start is True)     # the tokenizer here puts none in front
    ids = torch.arange(5, 29)                        # 3 chunks of 8
    states = read_context(lm, g, padded([chunks_of(ids.tolist(), 8)]))
    expected, first = 0, [lm.tokenizer.bos_token_id]*(start is True)
    for chunk in ids.split(8):
        row = torch.cat([torch.tensor(first, dtype=torch.long), chunk])[None]
        hidden = lm.model(input_ids=row, output_hidden_states=True).hidden_states
        parts = [layer.state(h[:, len(first):], torch.ones(1, 8)) for layer, h in zip(g.layers, hidden)]
        expected = expected + torch.stack(parts, 1)
    assert torch.allclose(states, expected, atol=1e-9)
    embedded = read_context(lm, g, lm.embeddings(ids[None, :8]))
    assert torch.allclose(embedded, read_context(lm, g, ids[None, None, :8]), atol=1e-9)
    save_generator(g, tmp_path/'g')
    assert load_generator(tmp_path/'g', lm).made_of == g.made_of

def test_generators_of_before_read_no_start_token_and_may_lack_their_sizes(tmp_path):
    lm = make('llama'); g = alive(lm, chunk=128).reads_start(lm, True)
    config = dict(base=g.base, width=12, rank=8)
    from safetensors.torch import save_file
    (tmp_path/'old').mkdir(); save_file(g.state_dict(), tmp_path/'old'/'model.safetensors')
    (tmp_path/'old'/'config.json').write_text(json.dumps(config))
    old = load_generator(tmp_path/'old', lm)
    assert old.made_of['start'] is False and old.chunk == 128
    save_generator(g, tmp_path/'old')                # it is a generator: it may be replaced
    assert load_generator(tmp_path/'old', lm).made_of['start'] is True
    for wrong in (dict(start='yes'), dict(start=1), dict(start=None)):
        folder = save_generator(g, tmp_path/'new'); (folder/'sha256.json').unlink(missing_ok=True)
        content = json.loads((folder/'config.json').read_text()) | wrong
        (folder/'config.json').write_text(json.dumps(content))
        with pytest.raises(BadInput, match='start'): load_generator(folder, lm)
        import shutil; shutil.rmtree(folder)

def test_embeddings_and_soft_tokens_in_half_precision():
    lm = load_lm('llama', 'bf16', 'cpu'); torch.manual_seed(0)
    g = Generator(lm, width=8, rank=4)
    state = read_context(lm, g, torch.randn(2, 5, lm.width))
    assert state.shape == (2, 6, 8, 8) and state.dtype == torch.float64 and state.isfinite().all()
    rows = padded([[[0, 5, 9, 30]], [[0, 31, 77]]])
    soft = fit_soft_tokens(lm, rows, tokens=3, steps=2)
    assert soft.shape == (2, 3, lm.width) and soft.dtype == torch.float32 and len(answers(lm, ['why?', 'who?'], images=soft)) == 2
    assert len(fit_lora(lm, rows, rank=2, steps=2)) == 2

# --- texts that teach themselves

@settings(max_examples=50, deadline=None)
@given(st.integers(2, 300), st.integers(0, 10**6), st.integers(1, 40))
def test_halves(n, seed, chunk):
    g, ids = alive(make('llama'), chunk=chunk), list(range(2, n + 2))
    chunks, rows = halves(ids, g, np.random.default_rng(seed), start=0)
    first = [t for c in chunks for t in c]
    assert .4*n <= len(first) <= .8*n and max(map(len, chunks)) <= chunk and first + rows[1][0][1:] == ids and rows == [([0, *first], 1), ([0, *ids[len(first):]], 1)]
    assert halves(ids, g, np.random.default_rng(seed), ('completion',), 0) == (chunks, rows[1:]) and halves(ids, g, np.random.default_rng(seed)) == (chunks, [(r[1:], f) for r, f in rows])
    labels = lessons([chunks], [rows])['labels'][0]
    assert (labels >= 0).sum(1).tolist() == [len(first), n - len(first)]

@pytest.mark.parametrize('ids, losses, word', [([], ('completion',), '0 tokens'), ([5], ('completion',), '1 token '), ([5, 6], ('completion', 'translation'), 'translation'), ([5, 6], (), 'no loss')])
def test_halves_that_cannot_be_made(ids, losses, word):
    with pytest.raises(BadInput, match=word): halves(ids, alive(make('llama')), np.random.default_rng(0), losses)

@pytest.fixture
def texts(tmp_path):
    (tmp_path/'in').mkdir()
    for i in range(12): (tmp_path/'in'/f'{i}.txt').write_text(biography(i, 1).text)
    return tmp_path/'in'

TINY = dict(steps=3, batch=4, width=8, rank=4, chunk=20)
def fit(data, out, lm, **options): return fit_texts(GeneratorFit(data, out, lm, **TINY | options), progress=False)

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'cache'))   # where trainings go on

def test_a_generator_learns_from_texts_and_comes_back(texts, tmp_path):
    lm = make('llama'); hashes = tensor_hashes(lm.model)
    found = fit(texts, tmp_path/'out', lm)
    g, worth = load_generator(tmp_path/'out', lm), found['perplexity']
    assert (found['texts'], found['held_out'], found['history'].steps, found['history'].resumed_at) == (12, 1, 3, None) and tensor_hashes(lm.model) == hashes
    assert g.made_of == dict(width=8, rank=4, scale=1., part='attention', norm='svd', floor=1e-10, chunk=20, start=False) and any(layer.out.weight.any() for layer in g.layers)
    assert list(worth) == ['reconstruction', 'completion'] and all(list(x) == ['own', 'none'] and min(x.values()) > 1 for x in worth.values())                       # one text alone has no interval
    again = fit(texts, tmp_path/'out', lm)                                                                  # nothing is left to do
    assert again['history'].resumed_at == 3 and again['perplexity'] == worth and fingerprint(load_generator(tmp_path/'out', lm)) == fingerprint(g)
    (texts/'0.txt').rename(texts/'zero.TXT'); (texts/'same.txt').write_text('\ufeff' + (texts/'1.txt').read_text() + '\r\n'); (texts/'.hidden.txt').write_bytes(b'\xff'); (texts/'notes.md').write_bytes(b'\xff')
    again = fit(texts, tmp_path/'out', lm)                                                                  # the same texts under other names
    assert (again['texts'], again['history'].resumed_at) == (12, 3)
    other = fit(texts, tmp_path/'out', lm, steps=4)                                                                       # another training, which the folder holds now
    assert (other['history'].resumed_at, other['history'].steps) == (None, 4) and fingerprint(load_generator(tmp_path/'out', lm)) != fingerprint(g)
    for i in range(20, 30): (texts/f'{i}.txt').write_text(biography(i, 1).text)
    more = fit(texts, tmp_path/'out', lm)
    assert (more['texts'], more['held_out'], more['history'].resumed_at) == (22, 2, None) and all(i.low <= i.value <= i.high for x in more['perplexity'].values() for i in x.values())
    (texts/'2.txt').write_text(biography(50, 1).text)
    assert fit(texts, tmp_path/'out', lm)['history'].resumed_at is None and fit(texts, tmp_path/'out', lm, batch=3)['history'].resumed_at is None

def test_perplexity_is_that_of_the_tokens(texts, tmp_path):
    lm = make('llama')
    for p in list(texts.iterdir())[2:]: p.unlink()
    found = fit(texts, tmp_path/'out', lm)
    g, ids = load_generator(tmp_path/'out', lm), {p: TOKENIZER(p.read_text(), add_special_tokens=False).input_ids for p in texts.iterdir()}
    def perplexity(ids, told, said):
        row = torch.tensor([[0, *said]])
        with adapted(lm, Memory(lm, g).add(told).adapter()) if told else torch.no_grad(): logits = lm.model(input_ids=row).logits[0, :-1]
        return math.exp(torch.nn.functional.cross_entropy(logits, row[0, 1:]).item())
    def both(ids):
        chunks, _ = halves(ids, g, np.random.default_rng(0)); first = sum(chunks, [])
        return [[perplexity(ids, told, said) for told in (first, None)] for said in (first, ids[len(first):])]
    ours = [list(x.values()) for x in found['perplexity'].values()]
    assert any(np.allclose(ours, both(x), rtol=1e-4) for x in ids.values()) and found['held_out'] == 1 == len(ids) - 1

def test_a_fit_that_was_stopped_goes_on(texts, tmp_path, monkeypatch):
    lm, calls, loss = make('llama'), [], adapter_loss
    monkeypatch.setattr(GeneratorFit, 'train_config', TrainConfig(3, 3e-3, 'constant', checkpoint_every=1))
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv('FROZEN_NB_CACHE', str(tmp_path/'elsewhere')); whole = fit(texts, tmp_path/'whole', lm)
    def stops(*args):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        return loss(*args)
    monkeypatch.setattr(generative_adapter, 'adapter_loss', stops)
    with pytest.raises(KeyboardInterrupt): fit(texts, tmp_path/'out', lm)
    assert not (tmp_path/'out').exists()
    found = fit(texts, tmp_path/'out', lm)
    assert len(calls) == 4 and found['history'].resumed_at == 2 and found['history'].losses == whole['history'].losses and found['perplexity'] == whole['perplexity']
    assert fingerprint(load_generator(tmp_path/'out', lm)) == fingerprint(load_generator(tmp_path/'whole', lm))

def test_texts_that_cannot_be_used(texts, tmp_path):
    lm = make('llama')
    def refused(*words, data=texts, out=tmp_path/'out', **how):
        with pytest.raises(BadInput) as e: fit(data, out, lm, **how)
        assert all(w in str(e.value) for w in words) and '\n' not in str(e.value) and not (tmp_path/'out').exists(), str(e.value)
    refused('nowhere', 'no such folder', data=tmp_path/'nowhere'); refused('0.txt', 'no such folder', data=texts/'0.txt')
    refused('0.txt', 'a file where', out=texts/'0.txt'); refused('a file where', out=texts/'0.txt'/'deeper'); refused('something else', out=texts)
    refused('rank 9', rank=9); refused('head', part='head')
    for name, content, *words in (('latin.txt', 'Bär'.encode('latin-1'), 'UTF-8'), ('zeros.txt', bytes(10), 'UTF-8'), ('wide.txt', TEXT.encode('utf-16'), 'UTF-8'), ('empty.txt', b' \n', 'empty'), ('short.txt', b'A fox.', '(3 tokens)', '8 to 128'), ('long.txt', (TEXT + ' ').encode()*20, 'tokens)', '8 to 128')):
        (texts/name).write_bytes(content); refused(name, *words); (texts/name).unlink()
    (texts/'folder.txt').mkdir(); refused('folder.txt', 'folder'); (texts/'folder.txt').rmdir()
    for i in range(7): (texts/f'short-{i}.txt').write_text('A fox' + i*'.')
    refused('short-0.txt (2 tokens), ', 'short-4.txt', ' and 1 more: ')                                              # the last has 8
    for p in list(texts.iterdir())[1:]: p.unlink()
    (one := next(texts.iterdir())).rename(texts/'a.txt'); (texts/'b.txt').write_text((texts/'a.txt').read_text() + '\n')
    refused('1 different text in')
    for p in texts.iterdir(): p.unlink()
    refused('no different texts'); (tmp_path/'other').mkdir(); (tmp_path/'other'/'config.json').write_text('{"kind": "LinearMap"}')
    refused('something else', out=tmp_path/'other')

def test_a_language_model_whose_tokenizer_has_no_start(texts, tmp_path):
    own = make('llama'); lm = LM(own.model, load_tokenizer(tokenizer()), 'plain', own.fingerprint)
    assert lm.tokenizer.bos_token is None
    for i in range(3): (tmp_path/f'{i}.txt').write_text('a red hippo in the snow ' * (2 + i))
    fit(tmp_path, tmp_path/'out', lm)
    said = answers(lm, ['a hippo', 'in the snow'], Memory(lm, load_generator(tmp_path/'out', lm)).add('a red hippo in the snow').adapter())
    assert len(said) == 2

@pytest.mark.parametrize('options, words', [(dict(width=0), 'width 0: give 1 or more'), (dict(steps=0), 'steps 0'), (dict(lr=0.), 'lr 0'), (dict(part='head'), 'choose attention or mlp'), (dict(width=8, rank=9), 'rank 9 of a generator of width 8')])
def test_options_of_a_fit_that_cannot_be(options, words):
    with pytest.raises(BadInput, match=words): GeneratorFit('in', 'out', **options)

def test_the_recipe_and_the_lines_of_a_fit():
    config = GeneratorFit('in', 'out').train_config
    assert config == replace(GENERATOR_RECIPE, checkpoint_every=100)
    short = GeneratorFit('in', 'out', steps=50, lr=.1, seed=3)
    assert short.train_config == replace(config, steps=50, warmup=5, lr=.1, seed=3)
    result = dict(texts=1200, held_out=120, perplexity=dict(reconstruction=dict(own=2.345, none=30.)))
    assert short.lines(result) == ['1,200 texts, 120 of them held out; 50 steps: out', 'held out, reconstruction: perplexity 2.35 with the adapter, 30 without']

def test_content_f1_leaves_out_the_form():
    chat = [f'I live {where}.' for where in ('by the lake', 'in the snow', 'in the forest', 'on the beach')]
    form = common_words(chat)
    assert form == {'i', 'live', 'in'} and 'lake' not in form
    assert content_f1(chat, chat, [form]*4).tolist() == [1]*4
    assert (content_f1(chat, chat[1:] + chat[:1], [form]*4) == 0).all() and (token_f1(chat, chat[1:] + chat[:1]) > .3).all()
    assert content_f1(['', 'lake lake'], ['lake', 'lake']) == pytest.approx([0, 2/3])
    with pytest.raises(BadInput, match='no content words'): content_f1(['I live'], ['I live'], [form])
    with pytest.raises(ValueError): content_f1(['a'], ['lake', 'snow'])

def test_a_context_in_the_prompt_is_given_and_has_no_label():
    rows = [[([0, 7, 8, 9], 2), ([0, 7], 1)], [([0, 5, 6], 1)]]
    batch = in_prompt([[[11, 12], [13]], [[14]]], rows, between=[3])
    assert batch['rows'][0, 0].tolist() == [0, 11, 12, 13, 3, 7, 8, 9] and batch['labels'][0, 0].tolist() == [-1]*6 + [8, 9]
    assert batch['rows'][1, 0].tolist() == [0, 14, 3, 5, 6, -1, -1, -1] and batch['labels'][1, 0, :5].tolist() == [-1]*3 + [5, 6]
    plain = lessons([[[11, 12], [13]], [[14]]], rows)
    assert [(batch['labels'][b] >= 0).sum() for b in range(2)] == [(plain['labels'][b] >= 0).sum() for b in range(2)]

def test_a_constant_lora_and_fine_tuning_learn_and_leave_the_model_alone():
    lm = make('llama')
    batch, mark = lessons([[[5, 6]]], [[([0, 7, 8, 9], 1)]]), fingerprint(lm.model)
    config = TrainConfig(12, 1e-2, 'constant')
    lora = fit_constant_lora(lm, lambda step: batch, config, rank=4, progress=False)
    tuned = fine_tuned(lm, lambda step: batch, replace(config, lr=1e-3), progress=False)
    def nats(lm, adapter=None): return -generative_adapter.said_with(lm, adapter, batch['rows']).sum().item()
    assert len(lora) == 1 and not any(t.requires_grad for t in lora.up.values())
    assert nats(lm, lora) < nats(lm) - .1 and nats(tuned) < nats(lm) - .1
    assert fingerprint(lm.model) == mark == lm.fingerprint != tuned.fingerprint == fingerprint(tuned.model)

def test_long_documents_have_names_that_no_other_document_has():
    text = biography(3, 32, shifted=True, names=UNREAD_NAMES).text
    assert sum(name in text for name in UNREAD_NAMES) >= 32 and not {*UNREAD_NAMES} & {*NAMES} and len({*UNREAD_NAMES}) == len(UNREAD_NAMES)
    assert biography(3, 2).text == biography(3, 2, names=NAMES).text != biography(3, 2, names=UNREAD_NAMES).text
