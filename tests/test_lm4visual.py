"A block of every family in a visual encoder, what is read of a checkpoint, and bad input."
import json, os, shutil, subprocess, sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from frozen_nb.core.activations import blocks, final_norm
from frozen_nb.core.folders import read_folder
from frozen_nb.core.frozen import BadInput, fingerprint, freeze
from frozen_nb.core.stores import hash_inputs
from frozen_nb.benchmarks.filtering import (
    cls_attention, frequency_map, grid_masks, magnitude_map, map_iou, THRESHOLDS, watching)
from frozen_nb.core import streams
from frozen_nb.core.blocks import CONTROL_WEIGHTS, load_block, spectrum_matched
from frozen_nb.core.streams import corrupt, CORRUPTIONS, held_out_images, ImageFiles, pixels, read_classes
from frozen_nb.core.visual_encoders import neighbourhoods, Patches, VisualEncoder
from frozen_nb.fits.lm4visual import fit_arm, fit_folder, LM4VisualFit, load_classifier, save_classifier
from frozen_nb.lm4visual import arm, ARMS, CONTROL_ARMS, FROZEN_ARMS, frozen_in, Inserted, new_classifier, outputs

SIZES = dict(vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2)
FAMILIES = dict(llama=dict(num_key_value_heads=2), opt=dict(ffn_dim=64, word_embed_proj_dim=32), gpt2={}, gpt_neox={}, mistral=dict(num_key_value_heads=2, sliding_window=3), gptj=dict(rotary_dim=4), qwen2=dict(num_key_value_heads=2), qwen3=dict(num_key_value_heads=2, head_dim=8))

def make(family, folder, **more):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES | FAMILIES.get(family, {}) | more))
    for p in model.parameters():
        if p.ndim == 2: torch.nn.init.normal_(p, std=.15)
        else: torch.nn.init.normal_(p, mean=1., std=.2)
    model.save_pretrained(folder)
    return freeze(model)

@pytest.fixture(scope='module', params=FAMILIES)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp('lm')/request.param
    return make(request.param, folder), folder

def test_weights_are_those_of_the_model(saved):
    model, folder = saved
    for i in (0, 2, -1):
        block = load_block(str(folder), i, norm=None, device='cpu')
        for k, v in blocks(model)[i].state_dict().items(): assert torch.equal(block.layers[0].state_dict()[k], v)
        assert block.read.bytes == sum(v.nbytes for v in blocks(model)[i].state_dict().values()) and not any(p.requires_grad for p in block.parameters())

def test_a_set_of_tokens(saved):
    model, folder = saved
    block, x = load_block(str(folder), 1, norm=None, dtype=torch.float64, device='cpu'), torch.randn(2, 7, 32, dtype=torch.float64)
    order = torch.randperm(7)
    assert torch.allclose(block(x[:, order]), block(x)[:, order], atol=1e-10)
    assert (block(torch.cat([x[:, :-1], -x[:, -1:]], 1)) - block(x))[:, 0].abs().max() > 1e-4
    real = torch.arange(7) < torch.tensor([[7], [4]])
    assert torch.allclose(block(x, real)[1, :4], block(x[1:, :4])[0], atol=1e-10) and torch.allclose(block(x, real)[0], block(x[:1])[0], atol=1e-10)

def test_several_blocks_and_norms(saved):
    model, folder = saved
    x = torch.randn(2, 5, 32)
    two, first, second = (load_block(str(folder), i, norm=None, device='cpu') for i in ([-2, -1], -2, -1))
    assert torch.allclose(two(x), second(first(x)), atol=1e-5)
    own, ones = load_block(str(folder), -1, 'own', device='cpu'), load_block(str(folder), -1, device='cpu')
    assert torch.allclose(own(x), final_norm(model)(second(x)), atol=1e-5) and (ones.norm.weight == 1).all() and not torch.allclose(own(x), ones(x))

def test_random_blocks(saved):
    model, folder = saved
    a, b, c = (load_block(str(folder), 1, weights='random', seed=s, device='cpu') for s in (0, 0, 1))
    assert fingerprint(a) == fingerprint(b) != fingerprint(c) and a.read.files == () and a.made_from['weights'] == 'random'

def test_shuffled_blocks(saved):
    model, folder = saved
    whole, a, b, c = (load_block(str(folder), [1, 2], 'own', w, s, device='cpu') for w, s in (('pretrained', 0), ('shuffled', 0), ('shuffled', 0), ('shuffled', 1)))
    assert fingerprint(a) == fingerprint(b) != fingerprint(c) and fingerprint(a) != fingerprint(whole) and a.read == whole.read and a.made_from['weights'] == 'shuffled'
    for (name, p), q in zip(whole.named_parameters(), a.parameters()):
        assert torch.equal(p.flatten().sort()[0], q.flatten().sort()[0]) and (name.startswith('norm') == torch.equal(p, q) or p.unique().numel() == 1), name
    assert all(not p.requires_grad for p in a.parameters()) and a(torch.randn(2, 5, 32)).isfinite().all()

def test_control_weights_keep_what_they_say(saved):
    "The multiset of the entries, their mean and deviation, or the spectrum; the same seed gives the same weights."
    _, folder = saved
    blocks_of = {w: [load_block(str(folder), [1, 2], 'own', w, s, device='cpu') for s in (0, 0, 1)] for w in CONTROL_WEIGHTS}
    whole = load_block(str(folder), [1, 2], 'own', device='cpu')
    for weights, (a, b, c) in blocks_of.items():
        assert fingerprint(a) == fingerprint(b) != fingerprint(c) and a.read == whole.read and a.made_from['weights'] == weights
        for (name, p), q in zip(whole.named_parameters(), a.parameters()):
            if name.startswith('norm'): assert torch.equal(p, q); continue
            if p.ndim == 1 or weights == 'shuffled': assert torch.equal(p.flatten().sort()[0], q.flatten().sort()[0]); continue
            assert not torch.equal(p, q) and p.shape == q.shape and p.dtype == q.dtype
            s, t = torch.linalg.svdvals(p), torch.linalg.svdvals(q)
            if weights == 'spectrum': assert torch.allclose(s, t, atol=1e-5*s[0].item()), name
            else: assert abs(q.std()/p.std() - 1) < .1 and abs(q.mean() - p.mean()) < .1*p.std() and not torch.allclose(s, t, atol=1e-2)
        assert a(torch.randn(2, 5, 32)).isfinite().all() and not any(p.requires_grad for p in a.parameters())

def test_directions_of_a_matched_spectrum_are_matricesevenly():
    "No direction is preferred: the mean of many is near zero, also of the first singular vector."
    x, rng = torch.diag(torch.tensor([5., 1., .1]))[:, :2], torch.Generator().manual_seed(0)
    matrices = torch.stack([spectrum_matched(x, rng) for _ in range(4000)])
    assert matrices.shape == (4000, 3, 2) and matrices.mean(0).abs().max() < .2 and (matrices.square().mean(0) - 26/6).abs().max() < .4
    assert (torch.linalg.svdvals(matrices) - torch.tensor([5., 1.])).abs().max() < 1e-5

def test_all_frozen_arms_train_the_same_number_of_weights():
    sizes = {name: sum(p.numel() for p in arm(name, 96).parameters() if p.requires_grad) for name in ARMS if name != 'base'}
    assert {sizes[name] for name in FROZEN_ARMS} == {2*96*192} and abs(sizes['MLP']/(2*96*192) - 1) < .01
    assert sizes['random, trained'] == sizes['pretrained, tuned'] > 2*96*192 and arm('base', 96) is None
    identity, x = arm('identity', 96), torch.randn(2, 5, 96)
    h = identity.into(x)
    assert torch.allclose(identity(x), identity.out(h/(h.square().mean(-1, keepdim=True) + 1e-6).sqrt()), atol=1e-6)
    assert [len(frozen_in(new_classifier(name, 3))) for name in ('identity', 'spectrum', 'MLP', 'base')] == [1, 1, 0, 0]

def test_labels_of_a_saved_classifier(classes, tmp_path, runs):
    "`frozen-nb evaluate lm4visual`: images in another size than the classifier's, classes by name."
    from types import SimpleNamespace
    from frozen_nb.evaluate import labels_by_lm4visual
    fitted(classes, tmp_path/'out')
    paths = [classes/'dogs'/f'{i}.png' for i in range(5)]
    items = [SimpleNamespace(path=path, name='dogs') for path in paths]
    evaluation = SimpleNamespace(head=tmp_path/'out', device='cpu', lm=None, classes=dict(cats=7, dogs=3))
    images = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths])
    best = outputs(load_classifier(tmp_path/'out', 'cpu'), (pixels(images),)).argmax(1)
    labels = labels_by_lm4visual(evaluation, items)
    assert [row[0] for row in labels] == [(7, 3)[k] for k in best] and all(set(row) == {3, 7} for row in labels)
    with pytest.raises(BadInput, match="'birds'"): labels_by_lm4visual(evaluation, [SimpleNamespace(path=paths[0], name='birds')])

def test_rotary_angles_are_those_of_the_attention(tmp_path):
    make('gpt_neox', tmp_path/'m', rope_parameters=dict(rope_type='default', rope_theta=10000., partial_rotary_factor=.5))
    block = load_block(str(tmp_path/'m'), device='cpu')
    assert [x.shape for x in block.arguments(0, torch.zeros(1, 5, 32))['position_embeddings']] == [(1, 5, 4)]*2

@pytest.mark.parametrize('family', ['llama', 'opt', 'qwen3', 'olmo'])
def test_what_cls_attends_to(family, tmp_path):
    make(family, tmp_path/'m'); part, x = load_block(str(tmp_path/'m'), norm=None, device='cpu'), torch.randn(2, 7, 32)
    block = part.layers[0]
    block.self_attn.config._attn_implementation = 'eager'
    weights = block.self_attn(x, attention_mask=None, **part.arguments(0, x))[1]                        # (B, heads, T, T)
    assert torch.allclose(cls_attention(block, x), weights[:, :, 0, 1:].sum(1), atol=1e-5)

@pytest.mark.parametrize('family, more', [('gpt2', {}), ('olmo', dict(clip_qkv=.1)), ('opt', dict(do_layer_norm_before=False))])
def test_a_block_that_cannot_be_watched_is_refused_and_nothing_is_left(family, more, tmp_path):
    make(family, tmp_path/'m', **more)
    encoder = new_classifier('pretrained', 4, lm=str(tmp_path/'m')).encoder; block = encoder.inserted.block.layers[0]
    for call in (lambda: watching(encoder).__enter__(), lambda: cls_attention(block, torch.zeros(1, 3, 32))):
        with pytest.raises(BadInput, match=f'{type(block).__name__} cannot be watched'): call()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in encoder.modules())

def test_gradients_pass_through_and_stay_out(saved):
    _, folder = saved
    part = Inserted(24, load_block(str(folder), -1, device='cpu')); before = fingerprint(part.block)
    part(torch.randn(2, 5, 24)).square().sum().backward()
    assert part.into.weight.grad.abs().max() > 0 and part.out.weight.grad.abs().max() > 0 and all(p.grad is None for p in part.block.parameters()) and fingerprint(part.block) == before

def test_bad_checkpoints(tmp_path):
    make('llama', tmp_path/'m'); whole = load_file(tmp_path/'m'/'model.safetensors')
    def saved_as(name, change):
        folder = tmp_path/name; folder.mkdir(); (folder/'config.json').write_text((tmp_path/'m'/'config.json').read_text())
        save_file(change(dict(whole)), folder/'model.safetensors')
        return str(folder)
    part = 'model.layers.3.self_attn.q_proj.weight'
    cases = [(saved_as('without', lambda t: {k: v for k, v in t.items() if '.3.' not in k}), 'not in the checkpoint'), (saved_as('one short', lambda t: {k: v for k, v in t.items() if k != part}), part),
             (saved_as('other shape', lambda t: t | {part: t[part][:, :16].clone()}), 'shape'), (saved_as('nan', lambda t: t | {part: t[part]*torch.nan}), 'NaN')]
    for folder, words in cases:
        with pytest.raises(BadInput) as e: load_block(folder, 3, device='cpu')
        assert words in str(e.value) and '\n' not in str(e.value)
        load_block(folder, 2, device='cpu')
    (tmp_path/'m'/'model.safetensors').unlink()
    with pytest.raises(BadInput, match='safetensors'): load_block(str(tmp_path/'m'), 0)

def test_bad_input(tmp_path):
    from transformers import BloomConfig
    AutoModelForCausalLM.from_config(BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2)).save_pretrained(tmp_path/'bloom')
    for call, words in ((lambda: load_block('llama', 6), 'no block 6'), (lambda: load_block('llama', -7), 'no block -7'), (lambda: load_block('llama', []), 'no block'), (lambda: load_block(str(tmp_path/'bloom')), 'BloomBlock'),
                        (lambda: load_block('clip'), 'no causal language model'), (lambda: load_block('llama', norm='rms'), 'norm'), (lambda: load_block('llama', weights='good'), 'weights'), (lambda: load_block('lama'), 'lama'),
                        (lambda: arm('best', 96), 'best'), (lambda: VisualEncoder(Patches(), at='end'), 'end'), (lambda: Patches(size=65), '65'), (lambda: Patches()(torch.zeros(1, 3, 32, 32)), '64 x 64'),
                        (lambda: new_classifier('base', 4, width=97), '97'), (lambda: corrupt(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 'fog', 1), 'fog'), (lambda: corrupt(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 'blur', 4), '4'),
                        (lambda: map_iou(torch.zeros(1, 4), torch.zeros(1, 4, dtype=torch.bool)), 'empty mask'),
                        (lambda: map_iou(torch.zeros(2, 4), grid_masks(torch.stack([torch.ones(8, 8), torch.zeros(8, 8)]) > 0, 2)), 'empty mask'), (lambda: neighbourhoods(np.zeros((31, 3))), '31 points'), (lambda: neighbourhoods(np.zeros((40, 3)), 4, 41), '41 points')):
        with pytest.raises(BadInput) as e: call()
        assert words in str(e.value) and '\n' not in str(e.value)

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(3, 9))
def test_maps(seed, B, T):
    g = torch.Generator().manual_seed(seed)
    x, masks = torch.randn(B, T, 6, generator=g), torch.rand(B, T, generator=g) < .5
    masks[:, 0] = True
    for make_map in (magnitude_map, frequency_map):
        m = make_map(x); oracle = map_iou(m, masks)
        assert m.min() >= 0 and m.max() <= 1 and all((map_iou(m, masks, t) <= oracle + 1e-7).all() for t in THRESHOLDS)
        order = torch.randperm(T, generator=g)
        assert torch.allclose(make_map(x[:, order]), m[:, order], atol=1e-5) and torch.allclose(make_map(3*x), m, atol=1e-4)
    one = torch.zeros(1, 16, 16, dtype=torch.bool); one[0, 5, 5] = one[0, 5, 9] = True                                      # two cells are equally full
    assert grid_masks(one, 4)[0].nonzero().flatten().tolist() == [5, 6] and not grid_masks(one & False, 4).any()
    grid = grid_masks(torch.rand(B, 16, 16, generator=g) < .1, 4)
    assert grid.shape == (B, 16) and grid.any(1).all()

@pytest.mark.parametrize('name', ARMS)
def test_arms_differ_in_what_is_inserted_alone(name):
    a, base = new_classifier(name, 4, seed=3), new_classifier('base', 4, seed=3)
    rest = {k: v for k, v in a.state_dict().items() if 'inserted' not in k}
    assert rest.keys() == base.state_dict().keys() and all(torch.equal(v, rest[k]) for k, v in base.state_dict().items())
    assert fingerprint(a) == fingerprint(new_classifier(name, 4, seed=3)) != fingerprint(new_classifier(name, 4, seed=4))
    x = torch.randn(2, 3, 64, 64)
    with watching(a.encoder) as seen: y = a(x)
    assert y.shape == (2, 4) and y.isfinite().all() and seen['norm'].shape == (2, 64, 96) and seen['attention of CLS'].shape == (2, 64)
    if isinstance(a.encoder.inserted, Inserted) and name != 'identity': assert seen['block'].shape == (2, 64, 192) and torch.allclose(seen['attention of CLS in the block'].sum(1), seen['attention of CLS in the block'].sum(1).clamp(0, 6))

def test_places():
    found = {at: new_classifier('pretrained', 4, at=at).encoder.where for at in ('head', 'middle', 'tail')}
    assert found == dict(head=0, middle=2, tail=4)

@pytest.mark.parametrize('kind', CORRUPTIONS)
def test_corruptions_grow_and_stay_images(kind):
    x = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    far = [(corrupt(x, kind, s).float() - x.float()).abs().mean() for s in (1, 2, 3)]
    assert 0 < far[0] < far[1] < far[2] and corrupt(x, kind, 2).shape == x.shape and corrupt(x, kind, 2).dtype == torch.uint8 and torch.equal(corrupt(x, kind, 2), corrupt(x, kind, 2))

def test_blur_is_as_wide_as_it_says_on_large_images():
    x = torch.zeros(1, 3, 256, 256, dtype=torch.uint8); x[..., 128:] = 255
    edge = corrupt(x, 'blur', 3)[0, 0, 0].float()/255
    assert abs(edge[128 - 11] - .07) < .02 and (edge.diff() >= 0).all()                                                   # 1.5 of 7.2 pixels before the edge

@pytest.mark.parametrize('n, groups, size', [(16, 5, 16), (40, 40, 3), (50, 7, 9)])
def test_neighbourhoods_are_the_nearest_points(n, groups, size):
    points = np.random.default_rng(n).normal(size=(n, 3))
    around, centres = neighbourhoods(points, groups, size)
    far = np.linalg.norm(points[None] - centres[:, None], axis=-1)
    assert around.shape == (groups, size, 3) and np.allclose(np.sort(np.linalg.norm(around, axis=-1), 1), np.sort(far, 1)[:, :size], atol=1e-5)

@pytest.fixture
def classes(tmp_path):
    rng = np.random.default_rng(0)
    for name, n in dict(cats=5, dogs=12).items():
        (tmp_path/'in'/name).mkdir(parents=True)
        for i in range(n): Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path/'in'/name/f'{i}.png')
    return tmp_path/'in'

SMALL = dict(patch=8, width=24, depth=1, heads=2, steps=3, batch=8, device='cpu')

def fitted(data, out, **options): return fit_folder(LM4VisualFit(data, out, **SMALL | options), progress=False)

@pytest.fixture
def runs(tmp_path, monkeypatch):
    "The folder of trainings, in a cache of its own."
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'/'runs'/'lm4visual'

def test_a_classifier_comes_back(classes, tmp_path, runs):
    right = fitted(classes, tmp_path/'out', compare=True)
    assert list(right) == ['pretrained', *CONTROL_ARMS] and {len(x) for x in right.values()} == {2}
    images, labels, names, paths = read_classes(classes)
    model, again = load_classifier(tmp_path/'out', 'cpu'), load_classifier(tmp_path/'out', 'cpu')
    assert names == model.names == ['cats', 'dogs'] and labels.tolist() == [0]*5 + [1]*12 and len(paths) == 17 and torch.equal(outputs(model, (pixels(images[:]),)), outputs(again, (pixels(images[:]),)))
    assert not any('block' in k for k in load_file(tmp_path/'out'/'model.safetensors'))
    assert fitted(classes, tmp_path/'out')['pretrained'].tolist() == right['pretrained'].tolist() and len(list(runs.iterdir())) == 7   # nothing is left to do
    said = LM4VisualFit(classes, 'out', steps=7, norm='none').lines(right)
    assert said[0].startswith('pretrained: accuracy ') and 'minus' not in said[0] and '; pretrained minus base ' in said[1] and said[-1] == '7 steps: out' and len(said) == 8
    for name in ARMS:
        made = new_classifier(name, 2, width=24, depth=1, heads=2)
        save_classifier(made, tmp_path/name, ['a', 'b']); back = load_classifier(tmp_path/name, 'cpu')
        assert all(torch.equal(v, back.state_dict()[k]) for k, v in made.state_dict().items())

def test_a_classifier_that_is_damaged(classes, tmp_path, runs):
    fitted(classes, tmp_path/'out')
    config, tensors = read_folder(tmp_path/'out', 'classifier')
    def saved(name, config, tensors):
        (tmp_path/name).mkdir(); (tmp_path/name/'config.json').write_text(json.dumps(config)); save_file(tensors, tmp_path/name/'model.safetensors')
        return tmp_path/name
    cases = [(saved('other block', config | dict(block='0'*64), tensors), 'not the one'), (saved('short', config, {k: v for k, v in tensors.items() if k != 'head.bias'}), 'head.bias'), (saved('more', config, tensors | dict(extra=torch.zeros(1))), 'extra'),
             (saved('shape', config, tensors | {'head.bias': torch.zeros(5)}), 'head.bias'), (saved('no classifier', {'k': 1}, tensors), 'config.json'), (tmp_path/'nowhere', 'no classifier')]
    for folder, words in cases:
        with pytest.raises(BadInput, match=words) as e: load_classifier(folder)
        assert '\n' not in str(e.value)

def test_folders_that_cannot_be_read(classes):
    def refused(words, size=None):
        with pytest.raises(BadInput) as e: read_classes(classes, size)
        assert words in str(e.value) and '\n' not in str(e.value)
    (classes/'birds').mkdir(); refused('no image')
    Image.new('RGB', (32, 32)).save(classes/'birds'/'a.png'); refused('1 image;')
    Image.new('RGB', (32, 30)).save(classes/'birds'/'b.png'); refused('32 x 30')
    assert len(read_classes(classes, 16)[0]) == 19
    (classes/'birds'/'b.png').write_text('no image'); refused('b.png', 16)
    for name in ('birds', 'cats'):
        for p in (classes/name).iterdir(): p.unlink()
        (classes/name).rmdir()
    refused('1 folder of')
    with pytest.raises(BadInput, match='no such folder'): read_classes(classes/'nowhere')

def in_memory(folder, size):
    "All images of a folder with classes as one tensor, and their classes."
    paths = [sorted((folder/name).iterdir()) for name in sorted(os.listdir(folder))]
    images = [Image.open(p).convert('RGB').resize((size, size)) for of_class in paths for p in of_class]
    return torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images]), torch.tensor([k for k, of_class in enumerate(paths) for _ in of_class])

@pytest.mark.parametrize('size', [None, 16])
@pytest.mark.parametrize('room', [0, 5, 10**9])
def test_images_are_read_when_they_are_needed(classes, monkeypatch, room, size):
    monkeypatch.setattr(streams, '_KEPT', room*3*(size or 32)**2)
    images, labels, *_ = read_classes(classes, size)
    whole, expected = in_memory(classes, size or 32)
    assert torch.equal(labels, expected) and images.shape == whole.shape and len(images) == len(whole) and not images.kept
    mask = torch.arange(len(whole)) % 3 == 1
    for index in (slice(None), slice(3, 9), [4, 0, 4], torch.tensor([16, 2]), np.array([1]), mask, 5, -1): assert torch.equal(images[index], whole[index])
    some = images.rows(mask)
    assert torch.equal(some[:], whole[mask]) and torch.equal(some[1:3], whole[mask][1:3]) and some.shape == whole[mask].shape
    assert torch.equal(some.rows(slice(1, None))[:], whole[mask][1:])
    for ours, theirs in ((images, whole), (some, whole[mask]), ((images, 3), (whole, 3))): assert hash_inputs(ours) == hash_inputs(theirs)
    assert len(images.kept) == min(room, len(whole))

def test_a_fit_is_that_of_images_in_memory(classes, tmp_path, runs, monkeypatch):
    fitted(classes, tmp_path/'out')
    images, labels = in_memory(classes, 32)
    folder, = runs.iterdir()
    test, fit = held_out_images(labels), LM4VisualFit(classes, tmp_path/'out', **SMALL)
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'anew'))
    model = fit_arm(fit, 'pretrained', 2, images[~test], labels[~test], False)
    again, = (tmp_path/'anew'/'runs'/'lm4visual').iterdir()
    assert again.name == folder.name                                                  # the same run
    saved = load_file(tmp_path/'out'/'model.safetensors')
    assert all(torch.equal(v, saved[k].to(v)) for k, v in model.state_dict().items() if k in saved)

def test_a_fit_goes_on_where_it_was(classes, tmp_path, runs, monkeypatch):
    fitted(classes, tmp_path/'whole', steps=103)
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'anew'))
    read, count = ImageFiles.__getitem__, []
    def stops(self, index):
        count.append(index)
        if len(count) > 101: raise KeyboardInterrupt
        return read(self, index)
    with monkeypatch.context() as m:
        m.setattr(ImageFiles, '__getitem__', stops)
        with pytest.raises(KeyboardInterrupt): fitted(classes, tmp_path/'out', steps=103)
    fitted(classes, tmp_path/'out', steps=103)
    a, b = (load_file(tmp_path/name/'model.safetensors') for name in ('whole', 'out'))
    assert all(torch.equal(v, b[k]) for k, v in a.items())

def test_an_image_that_changes_while_it_is_in_use(classes, monkeypatch):
    images, *_ = read_classes(classes)
    images[:3]
    for name in ('cats/0.png', 'dogs/9.png'): Image.new('RGB', (32, 32)).save(classes/name)
    assert len(images[:5]) == 5                                                       # in memory: as it was
    with pytest.raises(BadInput, match='9.png has changed while it was in use') as error: images[14:]
    assert '\n' not in str(error.value)

PEAK = """
import resource, sys
from pathlib import Path
from frozen_nb.fits.lm4visual import fit_folder, LM4VisualFit
fit_folder(LM4VisualFit(Path(sys.argv[1]), Path(sys.argv[2]), patch=8, width=24, depth=1, heads=2, steps=4, batch=32, device='cpu'), progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""

def peak_of_a_fit(n, tmp_path):
    "Kilobytes that a process has at most, fitting n images of 64 pixels."
    rng = np.random.default_rng(0)
    for i in range(n):
        place = tmp_path/str(n)/f'class {i % 4}'
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(place/f'{i}.bmp')
    run = subprocess.run([sys.executable, '-c', PEAK, tmp_path/str(n), tmp_path/f'out {n}'], capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS='1', FROZEN_NB_CACHE=str(tmp_path/'cache')))
    assert not run.returncode, run.stderr[-2000:]
    return int(run.stdout)

@pytest.mark.skipif(os.environ.get('FROZEN_NB_CAMPAIGNS') != 'full', reason='22,000 images; FROZEN_NB_CAMPAIGNS=full')
def test_memory_does_not_grow_with_the_images(tmp_path):
    few, many = (peak_of_a_fit(n, tmp_path) for n in (2000, 20_000))
    print(f'peak {few/1e3:.0f} MB with 2,000 images, {many/1e3:.0f} MB with 20,000')
    assert many/few < 1.1

def test_a_fit_that_cannot_be():
    for wrong, words in ((dict(norm='rms'), "norm 'rms': choose ones, own or none"), (dict(width=11), 'width 11'), (dict(batch=1), 'batch 1'), (dict(steps=0), 'steps 0'), (dict(size=4), 'size 4')):
        with pytest.raises(BadInput, match=words): LM4VisualFit('data', 'out', **wrong)

def test_other_images_are_another_training(classes, tmp_path, runs):
    fitted(classes, tmp_path/'out')
    for name in ('0.png', '1.png'): Image.new('RGB', (32, 32)).save(classes/'cats'/name)                                       # one of them at least is not held out
    fitted(classes, tmp_path/'out')
    assert len(list(runs.iterdir())) == 2 and load_classifier(tmp_path/'out', 'cpu').names == ['cats', 'dogs']

def test_another_model_is_another_training(classes, tmp_path, runs, monkeypatch):
    fitted(classes, tmp_path/'out')
    for n, change in enumerate((dict(heads=3), dict(layer=0), dict(norm='none'), dict(batch=5), dict(seed=1), dict(steps=4)), 2):
        fitted(classes, tmp_path/'out', **change)
        assert len(list(runs.iterdir())) == n
        with monkeypatch.context() as other:
            other.setenv('FROZEN_NB_CACHE', str(tmp_path/f'anew {n}'))
            fitted(classes, tmp_path/f'out {n}', **change)
        ours, anew = load_file(tmp_path/'out'/'model.safetensors'), load_file(tmp_path/f'out {n}'/'model.safetensors')
        assert ours.keys() == anew.keys() and all(torch.equal(v, anew[k]) for k, v in ours.items())

# --- folders of classes as users have them

def photos(folder, suffix='.png', n=6):
    for k, name in enumerate(('cats', 'dogs')):
        (folder/name).mkdir(parents=True)
        for i in range(n): Image.fromarray(np.random.default_rng(100*k + i).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder/name/f'{i}{suffix}')
    return folder

def test_an_image_that_is_there_twice_counts_once(tmp_path, runs):
    "Also under another name and in another format: no image is trained on and held out."
    once, twice = photos(tmp_path/'once'), photos(tmp_path/'twice')
    for i in range(6): Image.open(twice/'cats'/f'{i}.png').save(twice/'cats'/f'copy of {i}.bmp')
    right = [fitted(data, tmp_path/'out')['pretrained'].tolist() for data in (once, twice)]
    assert right[0] == right[1] and len(right[0]) == 2
    shutil.copy(twice/'cats'/'3.png', twice/'dogs'/'mine.png')
    with pytest.raises(BadInput, match='same image in two classes') as e: fitted(twice, tmp_path/'out')
    assert '3' in str(e.value) and 'mine.png' in str(e.value) and '\n' not in str(e.value)
    for i in range(1, 6): (once/'cats'/f'{i}.png').unlink()
    shutil.copy(once/'cats'/'0.png', once/'cats'/'1.png')
    with pytest.raises(BadInput, match='cats: one image in several files'): fitted(once, tmp_path/'out')

@pytest.mark.parametrize('suffix', ['.gif', '.tif', '.TIFF', '.jfif', '.avif'])
def test_every_reader_of_a_folder_takes_the_same_images(suffix, tmp_path, shell):
    from frozen_nb import cli
    from frozen_nb.benchmarks.classes import image_files
    from frozen_nb.core.zoo import image_formats
    if suffix == '.avif' and 'AVIF' not in image_formats(): pytest.skip('this PIL has no AVIF')
    folder = photos(tmp_path/'c', suffix)
    assert len(read_classes(folder)[0]) == 12 and len(image_files(folder/'cats')) == 6 and len(cli._images_in(folder/'cats')[0]) == 6

def test_what_is_left_out_is_said(tmp_path):
    folder = photos(tmp_path/'c')
    (folder/'cats'/'photo.heic').write_bytes(b'x')
    with pytest.warns(UserWarning, match='cats: 1 left out.*photo.heic'): read_classes(folder)

def test_a_result_in_its_own_data_is_refused(tmp_path, runs):
    folder = photos(tmp_path/'c')
    for out in (folder/'model', folder/'cats'/'model'):
        with pytest.raises(BadInput, match='in the folder of the images'): fitted(folder, out)
    assert sorted(os.listdir(folder)) == ['cats', 'dogs']
