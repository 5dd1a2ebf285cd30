"Adapters of every family, what is saved, and bad input."
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from frozen_nb.frozen import BadInput, fingerprint, freeze, tensor_hashes
from frozen_nb.generative_adapter import *
from frozen_nb.zoo import LM, load_lm

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
        assert torch.equal(lm.model(input_ids=IDS).logits, before) and not any(m._forward_hooks for m in lm.model.modules())

def test_nested_and_for_each_row(lm):
    g = alive(lm); a, b = (Memory(lm, g).add(t).adapter() for t in (TEXT, 'Emil is a deer.'))
    with adapted(lm, a):
        with adapted(lm, b): both = lm.model(input_ids=IDS).logits
        one = lm.model(input_ids=IDS).logits
    with adapted(lm, Adapter.of([a, b])): rows = lm.model(input_ids=IDS.expand(2, -1)).logits
    assert torch.allclose(rows[0], one[0], atol=1e-9) and not torch.allclose(both, one)
    with adapted(lm, Adapter.of([a, b])), pytest.raises(BadInput, match='2 adapters for 3 rows'): lm.model(input_ids=IDS.expand(3, -1))

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
                        (lambda: Generator(lm, norm='l2'), 'l2'), (lambda: Generator(lm, part='head'), 'head'), (lambda: Memory(lm, alive(lm, chunk=500)).add(list(range(300))), 'makes the chunks shorter'.replace('makes', 'make'))):
        before = a.state.clone()
        with pytest.raises(BadInput) as e: call()
        assert words in str(e.value) and '\n' not in str(e.value) and torch.equal(a.state, before)

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
    with pytest.raises(BadInput, match='no adapter'): save_adapter(adapter, lm, tmp_path/'mine')
    assert (tmp_path/'mine'/'letter.txt').read_text() == 'dear' and sorted(p.name for p in tmp_path.iterdir()) == ['a', 'half', 'mine']
    with pytest.raises(BadInput, match='2 adapters'): save_adapter(Adapter.of([adapter, adapter]), lm, tmp_path/'two')
    save_generator(g, tmp_path/'g'); again = load_generator(tmp_path/'g', lm)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in g.state_dict().items())
    with pytest.raises(BadInput, match='another language model'): load_generator(tmp_path/'g', other)
    config = json.loads((tmp_path/'g'/'config.json').read_text()); (tmp_path/'g'/'config.json').write_text(json.dumps(config | dict(width=16)))
    with pytest.raises(BadInput, match='no whole generator'): load_generator(tmp_path/'g', lm)
    assert token_f1(['in the snow', 'a red fox', ''], ['in snow', 'blue', '']).tolist() == [1., 0., 1.]
