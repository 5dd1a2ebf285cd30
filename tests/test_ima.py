"Implicit alignment on every family, what is skipped is not computed, and bad input."
import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, MambaConfig, MistralConfig, OPTConfig, Qwen2Config
from transformers.models.llama import LlamaConfig

from frozen_nb.core.frozen import BadInput, fingerprint, freeze
from frozen_nb.core.states import *
from frozen_nb.benchmarks.hallucination import *
from frozen_nb.core.skipping import *
from frozen_nb.core.subnetworks import *
from frozen_nb.benchmarks.cosines import *
from frozen_nb.core.mappers import *
from frozen_nb.core.activations import blocks, parts_of
from frozen_nb.core.training import TrainConfig
from frozen_nb.core.zoo import LM, load_lmm
from PIL import Image
from tiny_models import LMM_KINDS, make_lmm, tokenizer

SMALL = dict(vocab_size=40, hidden_size=16, num_hidden_layers=5, num_attention_heads=4)
KINDS = dict(llama=lambda: LlamaConfig(**SMALL, intermediate_size=24, num_key_value_heads=2), mistral=lambda: MistralConfig(**SMALL, intermediate_size=24, num_key_value_heads=1),
             qwen2=lambda: Qwen2Config(**SMALL, intermediate_size=24, num_key_value_heads=2), opt=lambda: OPTConfig(**SMALL, ffn_dim=24, word_embed_proj_dim=16))

@pytest.fixture(scope='module', params=KINDS)
def model(request):
    torch.manual_seed(0)
    return freeze(AutoModelForCausalLM.from_config(KINDS[request.param]())).double()

def a_prompt(seed=0, left=False, B=3, T=9, k=4):
    torch.manual_seed(seed)
    here = torch.ones(B, T, dtype=torch.bool); here[1, :2] = not left; here[1, -2:] = left
    visual = here & (here.cumsum(1) <= k)
    return MultimodalBatch(dict(inputs_embeds=torch.randn(B, T, 16, dtype=torch.float64), attention_mask=here.long()), visual, here & ~visual)

def logits(model, one):
    with torch.no_grad(): return model(**one.inputs, use_cache=False).logits[one.visual | one.text]

def cached(model, one, first=3):
    x, m, cache, out = one.inputs['inputs_embeds'], one.inputs['attention_mask'], DynamicCache(config=model.config), []
    for lo, hi in [(0, first), *((t, t + 1) for t in range(first, x.shape[1]))]:
        with torch.no_grad(): out.append(model(inputs_embeds=x[:, lo:hi], attention_mask=m[:, :hi], past_key_values=cache, use_cache=True).logits)
    return torch.cat(out, 1)[one.visual | one.text]

@pytest.mark.parametrize('left', [False, True])
@pytest.mark.parametrize('tokens', ['visual', 'text', 'all'])
@pytest.mark.parametrize('what', ['ffn', 'attention', 'block'])
def test_skipping_with_a_cache_is_skipping_without(model, what, tokens, left):
    one = a_prompt(left=left); plain, before = logits(model, one), fingerprint(model)
    for ratio in (1., .5):
        with skipping(model, what, one, tokens, ratio=ratio, interval=2) as layers: a, b = logits(model, one), cached(model, one)
        assert layers == [2] and (a - b).abs().max() < 1e-10 and (a - plain).abs().max() > 1e-6
    assert torch.equal(logits(model, one), plain) and fingerprint(model) == before

def test_a_skipped_part_is_a_part_that_adds_nothing(model):
    "Against the same model with zeros in place of what the part gives at those tokens."
    one, parts, layer = a_prompt(), parts_of(model)[3], 3
    for what, at in (('ffn', parts.last), ('attention', parts.out)):
        bias = getattr(blocks(model)[layer].get_submodule(at), 'bias', None)
        for tokens, mask in (('visual', one.visual), ('text', one.text)):
            def zero(module, args, y): return y.reshape(*mask.shape, -1).masked_fill(mask[..., None], 0).reshape(y.shape)
            hook = blocks(model)[layer].get_submodule(at).register_forward_hook(zero)
            expected = logits(model, one); hook.remove()
            with skipping(model, what, one, tokens, layers=[layer]): found = logits(model, one)
            assert torch.allclose(found, expected, atol=1e-10), (what, tokens, bias is not None)

@pytest.mark.parametrize('tokens', ['visual', 'text', 'all'])
def test_parallel_attention_and_the_published_departures(model, tokens):
    "With a cache as without, other logits than the formulas, and the model as it was afterwards."
    model, one = copy.deepcopy(model), a_prompt()
    for name, weight in model.named_parameters():
        if 'norm' in name: weight.data.uniform_(.5, 1.5, generator=torch.Generator().manual_seed(len(name)))   # two norms that differ
    plain, before = logits(model, one), fingerprint(model)
    for what, published in (('parallel attention', False), ('attention', True), ('ffn', True)):
        with skipping(model, what, one, tokens, published=published) as layers:
            once, stepped = logits(model, one), cached(model, one)
        with skipping(model, what, one, tokens): formula = logits(model, one)
        assert layers == [2] and (once - stepped).abs().max() < 1e-10 and (once - plain).abs().max() > 1e-6
        if what == 'attention' or what == 'ffn' and tokens == 'visual': assert (once - formula).abs().max() > 1e-6
        else: assert torch.equal(once, formula)
    assert torch.equal(logits(model, one), plain) and fingerprint(model) == before

def test_tokens_at_random_are_as_many_as_tokens_evenly_spread(model):
    one = a_prompt()
    def flops(**how):
        with skipping(model, 'ffn', one, 'visual', layers=[2], **how): return count_flops(lambda: model(**one.inputs)), logits(model, one)
    (evenly, a), (first, b), (second, c) = flops(ratio=.5), flops(ratio=.5, seed=0), flops(ratio=.5, seed=1)
    assert evenly == first == second and not torch.equal(b, c) and torch.equal(flops(ratio=.5, seed=0)[1], b)
    assert torch.equal(flops(seed=3)[1], flops()[1])     # all of them

def test_a_skipped_block_hands_on_its_cache_where_that_is_published(model):
    "Keys and values behind a prefill are those of the block before, and the next token reads them."
    one, tokens = a_prompt(left=True), []
    for published in (False, True):
        with skipping(model, 'block', one, layers=[2, 3], when='prefill', published=published), torch.no_grad():
            cache = DynamicCache(config=model.config)
            model(**one.inputs, past_key_values=cache, use_cache=True)
            same = [torch.equal(cache.layers[i].keys, cache.layers[1].keys) for i in (2, 3)]
            mask = torch.cat([one.inputs['attention_mask'], torch.ones(3, 1, dtype=torch.long)], 1)
            tokens.append(model(inputs_embeds=one.inputs['inputs_embeds'][:, :1], attention_mask=mask, past_key_values=cache).logits)
        assert all(same) if published else not any(same)
    assert (tokens[0] - tokens[1]).abs().max() > 1e-9

def test_what_is_skipped_is_not_computed(model):
    one, rows = a_prompt(), []
    with skipping(model, 'ffn', one, 'visual', layers=[2]): pass    # the first time, five tokens show where the parts of a block are
    linear = [m for m in blocks(model)[2].modules() if isinstance(m, nn.Linear)]
    hooks = [m.register_forward_pre_hook(lambda m, args: rows.append(args[0].reshape(-1, args[0].shape[-1]).shape[0])) for m in linear]
    total, visual = one.visual.numel(), int(one.visual.sum())
    try:
        logits(model, one); whole = list(rows); rows.clear()
        with skipping(model, 'ffn', one, 'visual', layers=[2]): logits(model, one)
        partly = list(rows); rows.clear()
        with skipping(model, 'block', layers=[2]): logits(model, one)
    finally: [h.remove() for h in hooks]
    assert rows == [] and set(whole) == {total} and set(partly) == {total, total - visual}
    flops = lambda: count_flops(lambda: model(**one.inputs))
    with skipping(model, 'ffn', one, 'visual', layers=[2, 3]): less = flops()
    with skipping(model, 'block', one, 'visual', layers=[2, 3]): least = flops()
    assert least < less < flops()

def test_when(model):
    "Prefill alone leaves what is generated whole, and the other way round."
    one = a_prompt(left=True)
    kept = dict(max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True, pad_token_id=0)
    def go(**how):
        with torch.no_grad():
            if not how: return torch.stack(model.generate(**one.inputs, **kept).logits)
            with skipping(model, 'ffn', one, 'all', layers=[1, 2, 3], **how): return torch.stack(model.generate(**one.inputs, **kept).logits)
    plain, generation, prefill, both = go(), go(when='generation'), go(when='prefill'), go(when='both')
    assert torch.equal(plain[0], generation[0]) and not torch.equal(plain[0], prefill[0]) and torch.allclose(prefill[0], both[0])

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 45), st.integers(-1, 40), st.integers(0, 45))
def test_layers(depth, interval, start, end):
    found = skipped_layers(depth, interval, start, end)
    assert all(start < i < end and i % interval == 0 and i < depth for i in found)
    if interval >= depth and start >= 0: assert found == []

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 5))
def test_batches_do_not_matter(seed, split, groups):
    torch.manual_seed(seed)
    states, visual = [torch.randn(10, 6, 4) for _ in range(3)], torch.arange(6).expand(10, 6) < 2
    part = lambda a, b: ([x[a:b] for x in states], MultimodalBatch({}, visual[a:b], ~visual[a:b]))
    one, two = Alignment(groups).add(*part(0, 10)), Alignment(groups).add(*part(0, split)).add(*part(split, 10))
    for reading in READINGS:
        for a, b in ('PP', 'TT', 'PT'):
            assert np.allclose(one.curve(a, b, reading), two.curve(a, b, reading)) and (np.abs(one.curve(a, b, reading)) <= 1 + 1e-9).all()
            boot = one.curve(a, b, reading, n_boot=20)
            assert np.allclose(boot[0], one.curve(a, b, reading)) and boot.shape == (21, 3)

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(.01, .99), st.floats(.01, .99))
def test_masks(seed, s, t):
    torch.manual_seed(seed)
    w = dict(w=torch.randn(7, 50))
    a, b = dict(w=keep_mask(w['w'].abs(), s)), dict(w=keep_mask(torch.rand(7, 50), t))
    assert (a["w"].sum(1) == 50 - int(50*s)).all() and (keep_mask(w["w"].abs(), s, round).sum(1) == 50 - round(50*s)).all() and density(shared_subnetwork([a, b])) <= min(density(a), density(b))
    if density(a): assert subnetwork_iou(a, a)['w'] == 1
    assert 0 < chance_iou(s) < 1

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(.01, .99), st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 8)]))
def test_masks_of_a_matrix_and_of_neighbours(seed, s, pattern):
    torch.manual_seed(seed)
    w, (n, m) = torch.randn(7, 48).abs(), pattern
    whole, groups = keep_mask_of_matrix(w, s), keep_n_of_m(w, n, m)
    assert (~whole).sum() == int(7*48*s) and (not (~whole).any() or w[~whole].max() <= w[whole].min())
    assert (groups.view(-1, m).sum(1) == n).all()
    dropped = w.masked_fill(groups, -1).view(-1, m).max(1).values
    assert (dropped <= w.masked_fill(~groups, 9).view(-1, m).min(1).values).all()

def test_a_subnetwork_by_row_by_matrix_and_by_neighbours(model):
    one, rows = a_prompt(), {}
    for per in ('row', 'matrix', '2:4'):
        masks = subnetwork(model, [one], .5, 'text', per=per)
        rows[per] = {int(n) for mask in masks.values() for n in mask.sum(1).unique()}
        assert density(masks) == .5
        if per == '2:4': assert all((mask.view(-1, 4).sum(1) == 2).all() for mask in masks.values())
    assert rows['row'] == rows['2:4'] == {8, 12} and len(rows['matrix']) > 3   # half of 16 and of 24 inputs
    for per, s, words in (('2:4', .3, 'give 0.5'), ('5:4', .5, 'leaves out'), ('block', .5, 'row, matrix'), ('2:5', .6, 'multiple of 5'), (None, .5, 'row, matrix')):
        with pytest.raises(BadInput, match=words) as e: subnetwork(model, [one], s, per=per)
        assert '\n' not in str(e.value)

def test_pruned_comes_back_even_after_an_error(model):
    before, masks = fingerprint(model), subnetwork(model, [a_prompt()], .5)
    with pytest.raises(ZeroDivisionError):
        with pruned(model, masks):
            assert fingerprint(model) != before and all(((linears(model, int(n.split('.')[0]))[n].weight == 0) | m).all() for n, m in masks.items())
            1/0
    assert fingerprint(model) == before and abs(density(masks) - .5) < .05

def test_wanda_sees_the_tokens_it_is_asked_about(model):
    "The norms of the first linear layer, by hand."
    one = a_prompt(); seen = {}
    name, layer = next(iter(linears(model, 0).items()))
    hook = layer.register_forward_pre_hook(lambda m, args: seen.__setitem__('x', args[0].reshape(-1, args[0].shape[-1])))
    logits(model, one); hook.remove()
    for kind, mask in (('visual', one.visual), ('text', one.text)):
        expected = keep_mask(wanda_scores(layer.weight, seen['x'][mask.flatten()].norm(dim=0)), .4)
        assert torch.equal(subnetwork(model, [one], .4, kind)[name], expected)

def test_points_add_up(model):
    one = a_prompt(); states = token_states(model, one)
    for i in range(5):
        p = point_states(model, one, i)
        assert torch.allclose(states[i] + p['SA'], p['X+SA']) and torch.allclose(p['X+SA'] + p['FC2'], states[i + 1]) and list(p) == list(POINTS)

def test_mapper_is_the_papers():
    m = QueryMapper(1024, 4096)
    assert abs(sum(p.numel() for p in m.parameters())/7.36e6 - 1) < .01
    assert len(m.mix.layers) == 5 and m.mix.norm is None and m.mix.layers[0].norm_first and m.queries.shape == (10, 256)

def test_bad_input(model):
    one = a_prompt()
    mamba = freeze(AutoModelForCausalLM.from_config(MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4)))
    for call, words in ((lambda: parts_of(mamba), 'no attention'), (lambda: skipping(mamba, 'ffn').__enter__(), 'MambaBlock'),
                        (lambda: subnetwork(model, [one], 0.), 'sparsity'), (lambda: subnetwork(model, [one], 1.), 'sparsity'), (lambda: chance_iou(1.5), 'sparsity'),
                        (lambda: skipping(model, 'block', layers=range(5)).__enter__(), 'nothing is left'), (lambda: skipping(model, 'block', interval=1, start=-1, end=5).__enter__(), 'nothing is left'),
                        (lambda: skipping(model, 'attention', layers=[0]).__enter__(), 'layer 0'), (lambda: skipping(model, 'ffn', tokens='visual').__enter__(), 'batch='),
                        (lambda: skipping(model, 'ffn', layers=[7]).__enter__(), 'no layer 7'), (lambda: skipping(model, 'everything').__enter__(), 'everything'),
                        (lambda: skipping(model, 'ffn', one, 'visual', ratio=1.2).__enter__(), 'ratio'), (lambda: skipping(model, 'ffn', interval=0).__enter__(), 'interval'),
                        (lambda: Alignment().curve(), 'no example'), (lambda: Alignment().add([torch.zeros(1, 2, 3)], MultimodalBatch({}, torch.zeros(1, 2).bool(), torch.ones(1, 2).bool())), 'visual'),
                        (lambda: align_images([None], ['x'], None, None, None), 'pairs'), (lambda: align_images([None], [], None, None, None), 'captions'),
                        (lambda: pope([{'a'}], 'tricky'), 'tricky'), (lambda: pope([]), 'no images'), (lambda: chair('a cat', [{'cat'}], ['cat']), 'sets of objects'), (lambda: chair(['a'], [{'a'}], ['?']), 'no word'), (lambda: QueryMapper(8, 16)(torch.zeros(1, 2, 9)), 'width 8')):
        with pytest.raises(BadInput) as e: call()
        assert words in str(e.value) and '\n' not in str(e.value)

def a_narrow_opt(before):
    "An OPT whose embeddings are narrower than its states, with the norms before or after its parts (OPT-350m)."
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(OPTConfig(**SMALL, ffn_dim=24, word_embed_proj_dim=8, do_layer_norm_before=before))
    return LM(freeze(model), tokenizer(), 'narrow', fingerprint(model))

@pytest.mark.parametrize('before', [True, False])
def test_narrow_embeddings(before):
    lm = a_narrow_opt(before)
    one = multimodal_batch(lm, torch.randn(2, 3, 8), 'a', [' red hippo', ' hippo in the snow'])
    states = token_states(lm.model, one)
    with torch.no_grad(): said = lm.model(**one.inputs).logits
    assert lm.width == 8 and states[0].shape[-1] == 16 and torch.allclose(vocabulary(lm, states[-1]), said.log_softmax(-1), atol=1e-5)
    found = vocabulary_curves(lm, states, one)
    assert all(np.isfinite(x).sum() == len(states) - (name == 'P before') for name, x in found.items())

def test_norms_after_the_parts_are_refused():
    lm = a_narrow_opt(False); one = multimodal_batch(lm, torch.randn(2, 3, 8), 'a', [' red', ' hippo'])
    with pytest.raises(BadInput, match='do_layer_norm_before=False') as e: point_states(lm.model, one, 0)
    assert '\n' not in str(e.value)
    plain = lm.model(**one.inputs).logits
    with skipping(lm.model, 'ffn'): assert not torch.allclose(lm.model(**one.inputs).logits, plain)

@pytest.mark.parametrize('images, prompts, words', [(torch.zeros(2, 3, 16), 'a', 'give [(]B, k, 8[)]'), (torch.zeros(2, 1, 3, 8), 'a', 'give [(]B, k, 8[)]'), (torch.zeros(2, 8), 'a', 'give [(]B, k, 8[)]'),
                                                    (torch.zeros(2, 3, 8), 'a <image> hippo', 'leave out <image>'), (torch.zeros(2, 3, 8), ['a', 'a <image>'], 'leave out <image>')])
def test_a_batch_refuses(images, prompts, words):
    with pytest.raises(BadInput, match=words) as e: multimodal_batch(a_narrow_opt(True), images, prompts, [' red', ' hippo'])
    assert '\n' not in str(e.value)

def seen_by(L, B=6):
    torch.manual_seed(0); visual = torch.arange(5).expand(B, 5) < 2
    return Alignment().add([torch.randn(B, 5, 4) for _ in range(L)], MultimodalBatch({}, visual, ~visual))

@pytest.mark.parametrize('how', [dict(a='P', b='P', images=0), dict(a='T', b='P', images=0), dict(a='T', b='T', pairs='matched'), dict(a='P', b='P', pairs='matched'), dict(a='T', b='P', pairs='matched'),
                                 dict(a='P', b='X'), dict(reading='word'), dict(images=1), dict(images='entry'), dict(pairs='some')])
def test_a_curve_that_is_not_there_is_refused(how):
    with pytest.raises(BadInput) as e: seen_by(3).curve(**how)
    assert '\n' not in str(e.value)

def test_changes():
    "Over eight layers where there are as many, and refused where there are not."
    assert seen_by(9).changes('P', 8).shape == (1,) and seen_by(3).changes('T').shape == (2,) and (seen_by(9).changes('P', 8) != 0).all()
    for seen, args, words in ((seen_by(8), ('P', 8), 'in a model of 7'), (seen_by(1), ('P', 1), 'in a model of 0'), (seen_by(3), ('P', 2), 'not measured'), (seen_by(3), ('X', 1), 'not measured'), (Alignment(), ('P', 1), 'no example')):
        with pytest.raises(BadInput, match=words): seen.changes(*args)

def test_a_figure_of_ones_own_images_speaks_of_no_seeds():
    labels = [label for ax in draw_alignment(seen_by(4)).axes for label in ax.get_legend_handles_labels()[1]]
    assert len(labels) == 5 and not any('seed' in label for label in labels)

def test_the_title_of_a_figure_of_ones_own_images_stands_clear_of_its_legends():
    "Without the style of the notebooks, too, as in the shell."
    import matplotlib as mpl
    with mpl.rc_context(mpl.rcParamsDefault):
        fig = draw_alignment(seen_by(4), 'efficientnet-lite0 in smollm2, 300 images')
        fig.canvas.draw()
        boxes = [fig._suptitle.get_window_extent()]
        for ax in fig.axes: boxes += [ax.get_legend().get_window_extent(), ax.get_window_extent(), ax.xaxis.label.get_window_extent()]
        assert not any(a.overlaps(b.expanded(.99, .99)) for i, a in enumerate(boxes) for b in boxes[:i])
        width, height = fig.canvas.get_width_height()
        assert all(0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height for box in boxes)

def some_content(L=4, N=7):
    rng = np.random.default_rng(0)
    return {arm: rng.normal(size=(L, N)) for arm in ('own caption', 'next caption', 'noise', 'random words')}

def test_the_null_arms_stand_in_the_same_panel_as_what_is_measured():
    import matplotlib as mpl
    with mpl.rc_context(mpl.rcParamsDefault):
        fig = draw_alignment(seen_by(4), 'mobilenetv2 in smollm2-135m, 300 images', some_content())
        fig.canvas.draw()
        assert len(fig.axes) == 3 and fig.axes[2].get_legend_handles_labels()[1] == list(some_content())
        boxes = [fig._suptitle.get_window_extent()]
        for ax in fig.axes: boxes += [ax.get_legend().get_window_extent(), ax.get_window_extent(), ax.xaxis.label.get_window_extent()]
        assert not any(a.overlaps(b.expanded(.99, .99)) for i, a in enumerate(boxes) for b in boxes[:i])
        width, height = fig.canvas.get_width_height()
        assert all(0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height for box in boxes)
        labels = [t for ax in fig.axes for t in ax.get_xticklabels() + ax.get_yticklabels() + ax.get_legend().get_texts()]
        assert min(label.get_fontsize() for label in labels) >= 8

def test_content_is_of_pairs_and_not_of_batches():
    "Own captions lie above all null arms with the map that ships; batches do not matter; few images are refused."
    from frozen_nb.benchmarks.sets import drawn_images
    from frozen_nb.limber import Limber
    limber, items = Limber.load(), drawn_images('test', 16)
    images, texts = [item.open() for item in items], [item.captions[0] for item in items]
    inputs = limber.encoder, limber.lm, limber.map
    content, parts = (content_alignment(images, texts, *inputs, batch_size=n) for n in (16, 5))
    assert all(np.allclose(content[arm], parts[arm], atol=1e-3) for arm in content) and content['noise'].shape[1] == 16
    means = {arm: scores.mean() for arm, scores in content.items()}
    assert means['own caption'] > .02 + max(means[arm] for arm in list(means)[1:])
    with pytest.raises(BadInput, match='6 or more'): content_alignment(images[:5], texts[:5], *inputs)

def test_hooks_are_gone_after_an_error(model):
    one = a_prompt()
    wrong = MultimodalBatch(dict(inputs_embeds=torch.zeros(1, 3, 15, dtype=torch.float64)), one.visual[:1, :3], one.text[:1, :3])   # 15 for 16
    for call in (lambda: token_states(model, wrong), lambda: point_states(model, wrong, 1), lambda: subnetwork(model, [wrong], .5)):
        with pytest.raises(RuntimeError): call()
    with pytest.raises(RuntimeError):
        with skipping(model, 'block', wrong, 'visual', layers=[2]): logits(model, wrong)
    assert not any(m._forward_hooks or m._forward_pre_hooks or 'forward' in vars(m) for m in model.modules())

def test_one_example_is_no_pair():
    seen = Alignment().add([torch.randn(1, 4, 3)]*2, MultimodalBatch({}, torch.tensor([[True, True, False, False]]), torch.tensor([[False, False, True, True]])))
    assert np.isfinite(seen.curve('P', 'T')).all()
    with pytest.raises(BadInput, match='two examples'): seen.curve('P', 'P')

def test_half_precision():
    torch.manual_seed(0)
    m, one = freeze(AutoModelForCausalLM.from_config(KINDS['llama']())).bfloat16(), a_prompt()
    one.inputs['inputs_embeds'] = one.inputs['inputs_embeds'].bfloat16()
    seen = Alignment().add(token_states(m, one), one)
    assert np.isfinite(seen.curve()).all() and math.isfinite(seen.score(n_boot=10).value)
    for what in ('ffn', 'attention', 'block'):
        with skipping(m, what, one, 'visual'): assert logits(m, one).isfinite().all()

@pytest.mark.parametrize('kind', LMM_KINDS)
def test_multimodal_models_of_every_family(kind, tmp_path):
    lmm = load_lmm(str(make_lmm(kind, tmp_path/kind)), device='cpu')
    images = [Image.new('RGB', (64, 64), c) for c in ('red', 'blue')]
    one = lmm_batch(lmm, images, ['a red fox', 'the sky above a small blue deer'])
    for wrong in (dict(question=['a', 'b']), dict(question=None), dict(answers=['a red fox', 7]), dict(answers='a red fox'), dict(answers=[['a'], ['b']])):
        with pytest.raises(BadInput, match='text'): lmm_batch(lmm, images, **dict(answers=['a red fox', 'the sky']) | wrong)
    assert (one.visual.sum(1) > 0).all() and not (one.visual & one.text).any() and torch.equal(one.visual | one.text, one.inputs['attention_mask'].bool())
    states = token_states(lmm.model, one); seen = Alignment().add(states, one)
    assert len(states) == lmm.depth + 1 and np.isfinite(seen.curve('P', 'P')).all()
    points = point_states(lmm.model, one, 1)
    assert torch.allclose(points['X+FC2'], states[2], atol=1e-5) and torch.allclose(points['X+SA'], states[1] + points['SA'], atol=1e-5)
    masks, before = subnetwork(lmm.model, [one], .3, 'visual'), fingerprint(lmm.model)
    assert abs(density(masks) - .7) < .02 and all(name.split('.')[0] in '01' for name in masks) and before == lmm.fingerprint

class Stop(Exception): pass

def test_copies_survive_an_interruption(tmp_path):
    config = TrainConfig(8, .1, 'constant', checkpoint_every=2)
    def run(folder, until=None):
        torch.manual_seed(0); module = nn.Linear(3, 1)
        def batches(step):
            if step == until: raise Stop
            return torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        return train_and_keep(module, batches, lambda m, x: m(x).square().mean(), config, marks=[0, 3, 6], folder=folder, inputs=0, progress=False)[1]
    whole = run(None)
    with pytest.raises(Stop): run(tmp_path/'run', 5)
    resumed = run(tmp_path/'run')
    assert list(whole) == list(resumed) == [0, 3, 6, 8]
    for step in whole: assert all(torch.equal(whole[step][k], resumed[step][k]) for k in whole[step])
    (tmp_path/'run'/'mark-3'/'model.safetensors').write_bytes(b'broken')
    with pytest.raises(BadInput, match='copy'): run(tmp_path/'run')

def test_memory_is_given_back():
    x = torch.randn(100, 100)
    def drops():
        for _ in range(5): x @ x
    assert peak_memory(drops) == 40_000 and peak_memory(lambda: None) == 0

@settings(max_examples=50, deadline=None)
@given(st.lists(st.sets(st.sampled_from('abcdef')), min_size=1, max_size=8), st.sampled_from(POPE_KINDS), st.integers(1, 8), st.integers(0, 99))
def test_half_of_the_object_questions_are_about_what_is_there(objects, kind, n, seed):
    questions, names = pope(objects, kind, n, seed), set().union(*objects)
    for i, present in enumerate(objects):
        about = [(x, there) for j, x, there in questions if j == i]
        assert len(set(about)) == len(about) and all((x in present) == there for x, there in about)
        assert sum(there for _, there in about)*2 == len(about) == 2*min(n, len(present), len(names - present))

def test_captions_name_objects_in_the_plural():
    from frozen_nb.world.captions import plural
    from frozen_nb.world.scenes import SPECIES
    species = list(SPECIES)
    for name in species:
        assert named_objects(f'a red {name} here', species) == named_objects(f'two {plural(name)}.', species) == [name]
    assert named_objects('cattle, a category and dogmas', ['cat', 'dog']) == []
    assert named_objects('a bear beside two teddy bears', ['teddy bear', 'bear']) == ['bear', 'teddy bear']
    named, wrong = chair(['dogs and kitties', ''], [{'cat'}, {'cat'}], {'cat': ['kitty'], 'dog': []})
    assert named.tolist() == [2, 0] and wrong.tolist() == [1, 0]
