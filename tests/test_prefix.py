"Sequences of images and text: what stands where, what the loss counts, and that padding and neighbours change nothing; maps in folders, and what can be wrong with them."
import json
from functools import lru_cache
from types import SimpleNamespace

import pytest, torch, transformers
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from frozen_nb.core.folders import file_hash, SUMS
from frozen_nb.core.frozen import BadInput, freeze, is_frozen
from frozen_nb.core.prefix import LinearMap, MARK, choose, generate, load_map, save_map, sequence, target_log_likelihood, target_loss
from frozen_nb.core.zoo import LM

WORDS, K = 'a red hippo in the snow and fox'.split(), 3
some = settings(max_examples=25, deadline=None)

def tokenizer():
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(['</s>', '<unk>', *WORDS])}, unk_token='<unk>'))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token='<unk>', eos_token='</s>', pad_token='</s>')

@lru_cache
def lm(family):
    T, small, old = transformers, dict(vocab_size=10, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=96), dict(vocab_size=10, n_embd=16, n_layer=2, n_head=2, n_positions=96)
    config = dict(llama=lambda: T.LlamaConfig(**small, intermediate_size=32), opt=lambda: T.OPTConfig(**small, ffn_dim=32, word_embed_proj_dim=8), gpt2=lambda: T.GPT2Config(**old, bos_token_id=0, eos_token_id=0))[family]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for p in model.parameters(): p.data += .2*torch.randn_like(p)  # far from uniform, so that mistakes show
    return LM(freeze(model), tokenizer(), family, '')

FAMILIES = st.sampled_from(['llama', 'opt', 'gpt2'])
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(' '.join)

@st.composite
def batches(draw, images=st.integers(0, 3)):
    "Prompts and targets of different lengths, with `n` images each, at marks or in front."
    n, size = draw(images), draw(st.integers(2, 4))
    def prompt():
        parts = [draw(texts) for _ in range(n + 1)]
        return MARK.join(draw(st.sampled_from(['', p])) for p in parts) if n and draw(st.booleans()) else ' '.join(parts)
    seed = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    pixels = lambda width: torch.randn(size, n, K, width, generator=seed) if n else None
    return n, pixels, [prompt() for _ in range(size)], [draw(texts) for _ in range(size)], draw(st.booleans())

@some
@given(FAMILIES, batches(), st.sampled_from(['left', 'right']))
def test_padding_and_neighbours_never_change_a_loss(family, batch, padding):
    model, (n, images, prompts, targets, end) = lm(family), batch
    x = images(model.width)
    one = lambda i: sequence(model, None if x is None else x[i:i+1], prompts[i:i+1], targets[i:i+1], end=end)
    seq = sequence(model, x, prompts, targets, padding=padding, end=end)
    ll, counts = target_log_likelihood(model, seq)
    alone = torch.cat([target_log_likelihood(model, one(i))[0] for i in range(len(prompts))])
    torch.testing.assert_close(ll, alone, rtol=1e-4, atol=1e-4)
    assert one(0).attention_mask.all() and torch.isclose(target_loss(model, seq), -alone.sum()/counts.sum(), rtol=1e-4)
    loss = sum(c*target_loss(model, one(i)) for i, c in enumerate(counts))/counts.sum()
    assert torch.isclose(target_loss(model, seq), loss, rtol=1e-4)

@some
@given(FAMILIES, batches(), st.sampled_from(['left', 'right']))
def test_every_position_is_what_it_should_be(family, batch, padding):
    "Tokens, images at their marks or in front, targets, end, padding: built here from the texts, one position after the other."
    model, (n, images, prompts, targets, end) = lm(family), batch
    x, ids = images(model.width), lambda text: [2 + WORDS.index(w) for w in text.split()]
    seq = sequence(model, x, prompts, targets, padding=padding, end=end)
    for i, (prompt, target) in enumerate(zip(prompts, targets)):
        marked, rows, at = prompt if MARK in prompt else MARK*n + prompt, [], 0
        for j, piece in enumerate(marked.split(MARK)):
            if j: rows += list(x[i, j - 1])
            rows += list(model.embeddings.weight[ids(piece)])
        told = ids(target) + [0]*end
        length, T = len(rows) + len(told), seq.labels.shape[1]
        assert length == n*K + len(prompt.replace(MARK, ' ').split()) + len(target.split()) + end
        real = slice(0, length) if padding == 'right' else slice(T - length, T)
        assert seq.attention_mask[i].sum() == length and seq.attention_mask[i, real].all()
        assert torch.equal(seq.inputs_embeds[i, real], torch.stack([*rows, *model.embeddings.weight[told]]))
        assert seq.labels[i, real].tolist() == [-100]*len(rows) + told and (seq.labels[i] != -100).sum() == len(told)
    assert T == seq.attention_mask.sum(1).max() and seq.inputs_embeds.shape == (len(prompts), T, model.width)

@some
@given(FAMILIES, batches(), st.sampled_from(['left', 'right']))
def test_gradients_reach_the_images_of_their_own_example_alone(family, batch, padding):
    model, (n, images, prompts, targets, end) = lm(family), batch
    if not n: return
    x = images(model.width).requires_grad_()
    ll, _ = target_log_likelihood(model, sequence(model, x, prompts, targets, padding=padding, end=end))
    (grad,) = torch.autograd.grad(ll[0], x)
    assert (grad[0] != 0).any(-1).all() and not grad[1:].any() and grad.isfinite().all()

@some
@given(FAMILIES, batches())
def test_generation_and_choice_do_not_depend_on_the_batch(family, batch):
    model, (n, images, prompts, _, end) = lm(family), batch
    x, choices = images(model.width), ['red', 'hippo in the snow']
    part = lambda i: None if x is None else x[i:i+1]
    assert generate(model, x, prompts, 5, batch_size=2) == generate(model, x, prompts, 5) == [generate(model, part(i), prompts[i:i+1], 5)[0] for i in range(len(prompts))]
    scores = choose(model, x, prompts, choices, end=end, batch_size=2)
    one = lambda i, c: target_log_likelihood(model, sequence(model, part(i), prompts[i:i+1], [c], end=end))
    torch.testing.assert_close(scores, torch.tensor([[float(ll/count) for ll, count in (one(i, c) for c in choices)] for i in range(len(prompts))]), rtol=1e-4, atol=1e-4)
    assert torch.equal(choose(model, x, prompts, choices[::-1], end=end).argsort(1), scores.flip(1).argsort(1))
    total = choose(model, x, prompts, choices, normalise=False, end=end)
    torch.testing.assert_close(total, scores*torch.tensor([1. + end, 4. + end]), rtol=1e-4, atol=1e-4)

def test_one_prompt_serves_all():
    model, x = lm('llama'), torch.randn(2, K, 16)
    assert torch.equal(*(sequence(model, x, p, ['red', 'hippo']).inputs_embeds for p in ('a fox', ['a fox']*2)))
    assert torch.equal(*(sequence(model, None, p, ['red', 'hippo']).inputs_embeds for p in ('a fox', ['a fox']*2)))
    assert generate(model, None, 'a red fox') == generate(model, None, ['a red fox']) and choose(model, None, 'a fox', ['red', 'snow']).shape == (1, 2)

@pytest.mark.parametrize('call, says', [
    (lambda m: sequence(m, torch.zeros(2, K, 16), ['a', 'a', 'a']), '2 examples, 3 prompts'), (lambda m: sequence(m, torch.zeros(2, K, 16), 'a', ['red']), '1 targets'),
    (lambda m: sequence(m, None, ['a', 'a'], ['red']), '1 targets'), (lambda m: sequence(m, None, [], []), 'at least one'), (lambda m: sequence(m, None, f'a {MARK}'), 'marks 1 images but 0'),
    (lambda m: sequence(m, torch.zeros(1, 2, K, 16), f'{MARK} a'), 'marks 1 images but 2'), (lambda m: sequence(m, torch.zeros(1, K, 16), 'fox '*95), '98 positions do not fit into the 96'),
    (lambda m: generate(m, torch.zeros(2, K, 16), ['a']), '2 examples, 1 prompts')])
def test_what_does_not_fit_together_is_refused(call, says):
    with pytest.raises(BadInput) as e: call(lm('llama'))
    assert says in str(e.value) and '\n' not in str(e.value)

# Maps in folders

@pytest.fixture
def saved(tmp_path):
    "A map without the list of hashes, by which any damage is noticed before it is looked at."
    folder = save_map(LinearMap(5, 4, out_tokens=2, encoder='clip', encoder_fingerprint='a'*64, lm='llama', lm_fingerprint='b'*64), tmp_path/'map')
    (folder/SUMS).unlink()
    return folder

def rewrite(change):
    def damage(folder):
        weights = load_file(folder/'model.safetensors')
        change(weights)
        save_file(weights, folder/'model.safetensors')
        config(weights_sha256=file_hash(folder/'model.safetensors'))(folder)
    return damage

def config(**new): return lambda folder: (folder/'config.json').write_text(json.dumps(json.loads((folder/'config.json').read_text()) | new))
def raw(change): return lambda folder: (folder/'model.safetensors').write_bytes(change((folder/'model.safetensors').read_bytes()))

DAMAGES = dict(
    cut=(raw(lambda b: b[:-9]), 'model.safetensors'), empty=(raw(lambda b: b''), 'model.safetensors'), zeros=(raw(lambda b: bytes(len(b))), 'model.safetensors'),
    header=(raw(lambda b: b[:9] + bytes([b[9] ^ 64]) + b[10:]), 'model.safetensors'), length=(raw(lambda b: b[:5] + b'\xff' + b[6:]), 'model.safetensors'), gone=(lambda f: (f/'model.safetensors').unlink(), 'model.safetensors'),
    dangling=(lambda f: ((f/'model.safetensors').unlink(), (f/'model.safetensors').symlink_to('../blobs/none')), 'model.safetensors'),
    json=(lambda f: (f/'config.json').write_text('{'), 'config.json'), listed=(lambda f: (f/'config.json').write_text('[]'), 'config.json'), bare=(lambda f: (f/'config.json').write_text('{}'), 'width_in'),
    no_config=(lambda f: (f/'config.json').unlink(), 'config.json'), text=(config(width_in='5'), 'width_in'), none=(config(out_tokens=0), 'out_tokens'),
    missing=(rewrite(lambda w: w.pop('bias')), 'bias is missing'), extra=(rewrite(lambda w: w.update(more=torch.zeros(2))), 'more is not part'), shape=(rewrite(lambda w: w.update(weight=torch.zeros(8, 6))), 'weight has shape (8, 6), not (8, 5)'),
    other_width=(config(width_in=7), 'weight has shape (8, 5), not (8, 7)'), nan=(rewrite(lambda w: w['weight'].fill_(torch.nan)), 'weight holds NaN'))

@pytest.mark.parametrize('case', DAMAGES)
def test_a_damaged_map_is_refused_in_one_line(saved, case):
    assert is_frozen(load_map(saved))
    damage, says = DAMAGES[case]
    damage(saved)
    with pytest.raises(BadInput) as e: load_map(saved)
    assert says in str(e.value) and str(saved) in str(e.value) and '\n' not in str(e.value) and len(str(e.value)) < 700
    assert any(way in str(e.value) for way in ('download it again', 'download the map again', 'give a folder that holds one'))

@pytest.mark.parametrize('role', ['encoder', 'lm'])
def test_a_map_for_other_models_is_refused_by_name(saved, role):
    right, wrong = (SimpleNamespace(name='mine', fingerprint=c*64, width=dict(encoder=5, lm=4)[role]) for c in (dict(encoder='a', lm='b')[role], 'c'))
    load_map(saved, **{role: right})
    with pytest.raises(BadInput, match=f"made for the {role} '{dict(encoder='clip', lm='llama')[role]}'.*not for 'mine'"): load_map(saved, **{role: wrong})

def test_a_pickle_beside_a_map_is_never_opened(saved):
    (saved/'model.safetensors').unlink()
    (saved/'pytorch_model.bin').write_bytes(b'cos\nsystem\n(S"touch ran"\ntR.')
    with pytest.raises(BadInput, match='model.safetensors'): load_map(saved)
