"F-LMM on every family of multimodal model, and what a notebook need not show."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from frozen_nb.core.activations import attention_rows
from frozen_nb.benchmarks.groundings import read_coco, read_narratives, read_nlvr, read_refcoco
from frozen_nb.core.groundings import Grounding
from frozen_nb.core.keywords import keywords
from frozen_nb.core.phrase_maps import generate_rows, read_phrases
from frozen_nb.core.phrases import image_grids, pad_square, phrase_batch, PhraseBatch, QUESTION, REFER, unpad
from frozen_nb.core.refiner import crop_box, mask_boxes
from frozen_nb.fits.flmm import fit_grounding, FLMMFit
from frozen_nb.flmm import FLMM_RECIPE, Grounder, load_grounder, new_flmm, save_flmm
from frozen_nb.world.drawing import draw
from frozen_nb.world.scenes import scene
from frozen_nb.core.frozen import BadInput
from frozen_nb.core.sam import SAM_SIZES
from frozen_nb.core.zoo import SAM, load_lmm, messages, sam_model
from frozen_nb.core.frozen import fingerprint, freeze
from tiny_models import LMM_KINDS, make_lmm

WIDE = [Image.new('RGB', (80, 48), 'red'), Image.new('RGB', (80, 48), 'blue')]
TEXTS, SPANS = ['a small red fox on the left', 'the sky'], [[(8, 15), (0, 27)], [(4, 7)]]

@pytest.fixture(scope='module', params=LMM_KINDS)
def lmm(request, tmp_path_factory): return load_lmm(str(make_lmm(request.param, tmp_path_factory.mktemp('lmm')/request.param)), device='cpu')

@pytest.fixture(scope='module')
def llava(tmp_path_factory): return load_lmm(str(make_lmm('llava', tmp_path_factory.mktemp('lmm')/'llava')), device='cpu')

@pytest.fixture(scope='module')
def sam():
    torch.manual_seed(0)
    model = freeze(sam_model(**SAM_SIZES))
    return SAM(model, 'tiny', fingerprint(model))

def eager_rows(lmm, spoken, b, at):
    lmm.model.set_attn_implementation('eager')
    try:
        with torch.no_grad(): full = lmm.model(**spoken.inputs, output_attentions=True).attentions
    finally: lmm.model.set_attn_implementation('sdpa')
    return torch.stack([layer[b][:, at] for layer in full])                                   # (M, N, T, L)

def test_phrases_are_where_their_letters_are(lmm):
    spoken = phrase_batch(lmm, WIDE, TEXTS, SPANS)
    said = [[lmm.tokenizer.decode(spoken.inputs['input_ids'][b, at]).strip() for at in phrases] for b, phrases in enumerate(spoken.tokens)]
    assert said == [[t[a:b] for a, b in spans] for t, spans in zip(TEXTS, SPANS)]
    for ids, grids in zip(spoken.inputs['input_ids'], spoken.grids):
        for g in grids: assert (ids[g] == lmm.model.config.image_token_id).all() and len(g.unique()) == g.numel()

@pytest.mark.parametrize('merge', ['mean', 'max'])
def test_maps_are_rows_of_eager_attention_layer_by_layer(lmm, merge):
    spoken = phrase_batch(lmm, WIDE, TEXTS, SPANS)
    found = read_phrases(lmm, spoken, merge)
    for b, phrases in enumerate(spoken.tokens):
        for k, at in enumerate(phrases):
            rows = eager_rows(lmm, spoken, b, at)
            rows = rows.mean(2) if merge == 'mean' else rows.amax(2)                           # (M, N, L)
            fine = torch.stack([rows[l, n][spoken.grids[b][-1]] for l in range(lmm.depth) for n in range(lmm.heads)])
            assert torch.allclose(found[b].maps[k][-len(fine):], fine, atol=1e-6)
            assert found[b].maps.shape[1] == len(fine)*len(spoken.grids[b])

def test_rows_while_generating_are_those_of_the_finished_text(lmm):
    fed, rows = generate_rows(lmm, WIDE[0], max_new_tokens=6)
    shown = pad_square(WIDE[0]) if type(lmm.model).__name__ == 'LlavaForConditionalGeneration' else WIDE[0]
    inputs = lmm.inputs([shown], [lmm.processor.apply_chat_template(messages(QUESTION), add_generation_prompt=True)])
    P = inputs['input_ids'].shape[1]
    whole = dict(inputs, input_ids=torch.cat([inputs['input_ids'], fed[None]], 1), attention_mask=torch.ones(1, P + len(fed), dtype=torch.long))
    if 'mm_token_type_ids' in whole: whole['mm_token_type_ids'] = torch.cat([whole['mm_token_type_ids'], torch.zeros(1, len(fed), dtype=torch.long)], 1)
    grid = image_grids(lmm, whole)[0][-1].flatten()
    full = eager_rows(lmm, PhraseBatch(whole, [], []), 0, list(range(P, P + len(fed))))[..., grid]
    assert rows.shape == full.shape and (rows - full).abs().max() < 1e-5

def test_rows_of_the_shipped_model_are_those_of_its_teacher_forced_answer():
    lmm, image = load_lmm('llava', device='cpu'), draw(scene(3, 'test'), 128)
    ids, rows = generate_rows(lmm, image, max_new_tokens=20)
    text = lmm.tokenizer.decode(ids).strip()
    batch = phrase_batch(lmm, [image], [text], [[(0, len(text))]])
    (at,), = batch.tokens
    assert batch.inputs['input_ids'][0, at].tolist() == ids.tolist()
    with attention_rows(lmm.model, torch.tensor(at), batch.grids[0][-1].flatten()) as seen, torch.no_grad(): lmm.model(**batch.inputs)
    forced = torch.stack([r[0] for r in seen.rows.values()])
    assert (rows - forced).abs().max() < 1e-5 < .01 < (rows[:, :, 1:] - forced[:, :, :-1]).abs().max()   # one token off shows

def test_a_model_with_every_family(lmm, sam, tmp_path):
    spoken = phrase_batch(lmm, WIDE[:1], TEXTS[:1], SPANS[:1])
    phrases = read_phrases(lmm, spoken)[0]
    model = new_flmm(lmm, sam, width=4, channels=phrases.maps.shape[1])
    grounder = Grounder(model, lmm, sam)
    found = grounder.ground(WIDE[0], ['the red fox', 'the sky'])
    assert [f.mask.shape for f in found] == [(48, 80)]*2 and all(0 <= f.score <= 1 for f in found)
    again = load_grounder(save_flmm(model, tmp_path/'mine'), lmm, sam)
    assert [(a.mask == b.mask).mean() > .9 for a, b in zip(found, again.ground(WIDE[0], ['the red fox', 'the sky']))] == [True, True]
    there = grounder.presence(WIDE[0], ['the red fox', 'a sky'])
    assert there.shape == (2,) and (there > 0).all() and (there < 1).all() and np.allclose(there[1:], grounder.presence(WIDE[0], ['a sky']), atol=1e-4)
    assert fingerprint(lmm.model) == lmm.fingerprint

def test_presence_is_what_the_model_would_answer():
    "Yes and no by the model's own logits after its prompt."
    lmm = load_lmm('llava', device='cpu')
    prompt = lmm.processor.apply_chat_template(messages('Is there a red fox?'), add_generation_prompt=True)
    with torch.no_grad(): logits = lmm.model(**lmm.inputs([pad_square(WIDE[0])], [prompt])).logits[0, -1]
    begins = [lmm.tokenizer(w, add_special_tokens=False).input_ids[0] for w in (' Yes.', ' No.')]
    assert abs(logits[begins].softmax(0)[0].item() - Grounder(new_flmm(lmm, width=4), lmm).presence(WIDE[0], ['the red fox'])[0]) < 1e-4

def test_masks_of_one_image_do_not_depend_on_each_other(llava, sam):
    g = Grounder(new_flmm(llava, sam, width=4), llava, sam)
    together = g.ground(WIDE[0], ['the red fox', 'the sky', 'a small red fox'])
    for f in together: assert (g.ground(WIDE[0], [f.phrase])[0].mask == f.mask).mean() > .995

def test_how_rows_were_merged_is_kept(llava, tmp_path):
    folder = save_flmm(new_flmm(llava, width=4, merge='max'), tmp_path/'most')
    assert load_grounder(folder, llava).flmm.merge == 'max'

@settings(deadline=None, max_examples=60)
@given(st.integers(16, 700), st.integers(16, 700), st.floats(.05, .95), st.floats(.05, .95))
def test_a_place_stays_where_it_is(width, height, x, y):
    n, side = 24, max(width, height)
    left, top = (side - width)//2, (side - height)//2
    at = torch.tensor([(left + x*width)/side*n - .5, (top + y*height)/side*n - .5])
    places = torch.stack(torch.meshgrid(torch.arange(n), torch.arange(n), indexing='xy'), -1)
    spot = torch.exp(-((places - at)**2).sum(-1)/2)[None]
    cut = unpad(spot, (width, height))[0]
    h, w = cut.shape
    assert abs(h - height*n/side) <= 1 and abs(w - width*n/side) <= 1
    peak = divmod(cut.argmax().item(), w)
    assert abs((peak[1] + .5)/w - x)*width <= side/n*1.01 and abs((peak[0] + .5)/h - y)*height <= side/n*1.01

@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(2, 30), st.integers(2, 30), st.integers(0, 2**31))
def test_boxes_hold_their_masks(K, H, W, seed):
    masks = torch.rand(K, H, W, generator=torch.Generator().manual_seed(seed)) < .1
    for m, (x0, y0, x1, y1) in zip(masks, mask_boxes(masks).int().tolist()):
        if not m.any(): assert (x0, y0, x1, y1) == (0, 0, W, H); continue
        inside = torch.zeros_like(m); inside[y0:y1, x0:x1] = True
        assert (m <= inside).all() and m[y0].any() and m[y1 - 1].any() and m[:, x0].any() and m[:, x1 - 1].any()

@pytest.mark.parametrize('wrong, says', [
    (lambda g: g.within(WIDE[0], 'the sky', ['the sea']), 'not in the text'), (lambda g: g.within(WIDE[0], 'the sky', ['']), 'empty phrase'), (lambda g: g.within(WIDE[0], 'the sky', 'sky'), 'no list of texts'), (lambda g: g.within(WIDE[0], None, ['sky']), 'no text'),
    (lambda g: g.spans(WIDE[0], 'the sky', []), 'no phrase'), (lambda g: g.ground(WIDE[0], ['\ud800']), 'UTF-8'), (lambda g: g.ground(WIDE[0], ['  ']), 'empty phrase'),
    (lambda g: g.ground(WIDE[0], []), 'empty phrase'), (lambda g: g.ground(WIDE[0], ['word '*600]), 'shorten'), (lambda g: g.spans(WIDE[0], 'the sky', [(4, 40)]), 'no phrase'), (lambda g: g.spans(WIDE[0], 'the sky', [(3, 4)]), 'no token')])
def test_bad_phrases(llava, sam, wrong, says):
    with pytest.raises(BadInput, match=says) as e: wrong(Grounder(new_flmm(llava, sam, width=4), llava, sam))
    assert '\n' not in str(e.value)

def test_other_models_are_refused(llava, sam, tmp_path):
    other_sam = SAM(freeze(sam_model(**SAM_SIZES | dict(out=32))), 'other', 'f'*64)
    blank = load_lmm(llava.name, device='cpu'); blank.fingerprint = 'e'*64
    model = new_flmm(llava, sam, width=4)
    folder = save_flmm(model, tmp_path/'mine')
    for args in ((blank, sam), (llava, other_sam)):
        with pytest.raises(BadInput, match='was made for'): load_grounder(folder, *args)
    with pytest.raises(BadInput, match='give it'): Grounder(model, llava)
    with pytest.raises(BadInput, match='was made for another LMM'): model.head(torch.rand(1, 7, 4, 4))
    lm = load_lmm(llava.name, device='cpu'); lm.model.config.image_token_id = 77
    with pytest.raises(BadInput, match='no image tokens'): image_grids(lm, dict(input_ids=torch.ones(1, 9, dtype=torch.long)))

@pytest.mark.parametrize('damage', [lambda f: (f/'config.json').write_text('{'), lambda f: (f/'config.json').write_text('{"head": 3}'), lambda f: (f/'model.safetensors').write_bytes(b'no'), lambda f: (f/'model.safetensors').unlink(),
                                    lambda f: (f/'config.json').write_text(json.dumps(json.loads((f/'config.json').read_text()) | dict(head=dict(channels=8, kind='unet', width=6, upsample=64))))])
def test_damaged_folders(llava, sam, tmp_path, damage):
    damage(save_flmm(new_flmm(llava, sam, width=4), tmp_path/'mine'))
    with pytest.raises(BadInput) as e: load_grounder(tmp_path/'mine', llava, sam)
    assert '\n' not in str(e.value)

def test_keywords():
    text = 'a red fox. the sky'
    edges = [(0, 1), (1, 5), (5, 9), (9, 10), (10, 14), (14, 18)]
    assert keywords([.9, .9, .9, .1, .8, .8], edges, text) == [(0, 9), (11, 18)]
    assert keywords([0]*6, edges, text) == [] and keywords([.9]*6, edges, text) == [(0, 18)]

# Published formats

@pytest.fixture
def coco(tmp_path):
    "Two images with instances as a polygon, as run lengths and as compressed run lengths."
    from pycocotools import mask as rle
    square = np.zeros((40, 60), np.uint8); square[10:20, 30:50] = 1
    packed = rle.encode(np.asfortranarray(square)); packed['counts'] = packed['counts'].decode()
    runs = [int(n) for n in np.diff(np.flatnonzero(np.diff(np.r_[2, square.flatten('F'), 2])))]
    for n in (1, 2): Image.new('RGB', (60, 40), 'red').save(tmp_path/f'{n}.png')
    data = dict(images=[dict(id=n, file_name=f'{n}.png', width=60, height=40) for n in (1, 2)], categories=[dict(id=7, name='dog'), dict(id=9, name='cat')], annotations=[
        dict(id=1, image_id=1, category_id=7, segmentation=[[30, 10, 50, 10, 50, 20, 30, 20]], iscrowd=0), dict(id=2, image_id=1, category_id=7, segmentation=dict(size=[40, 60], counts=[0, *runs] if square[0, 0] else runs), iscrowd=0),
        dict(id=3, image_id=2, category_id=9, segmentation=packed, iscrowd=0), dict(id=4, image_id=2, category_id=7, segmentation=dict(size=[40, 60], counts=[0, 2400]), iscrowd=1)])
    (tmp_path/'instances.json').write_text(json.dumps(data))
    return tmp_path, square.astype(bool)

def test_coco(coco):
    folder, square = coco
    dog, cat = read_coco(folder/'instances.json', folder)
    assert (dog.text, cat.text) == ('The dog', 'The cat') and dog.kinds[0] == {'thing', 'plural'} and cat.kinds[0] == {'thing', 'singular'}
    assert (cat.masks[0] == square).all() and (dog.masks[0] == square).mean() > .99 and dog.open().size == (60, 40)

def test_refcoco_as_the_pickle_that_it_is(coco):
    import pickle
    folder, square = coco
    refs = [dict(ref_id=1, ann_id=3, image_id=2, split='val', sentences=[dict(sent='cat on right'), dict(sent=' ')]), dict(ref_id=2, ann_id=1, image_id=1, split='testA', sentences=[dict(sent='the dog')])]
    (folder/'refs(unc).p').write_bytes(pickle.dumps(refs, protocol=2)); (folder/'refs.json').write_text(json.dumps(refs))
    for name in ('refs(unc).p', 'refs.json'):
        e, = read_refcoco(folder/name, folder/'instances.json', folder, 'val')
        assert e.text == 'Cat on right' and (e.masks[0] == square).all()
    with pytest.raises(BadInput, match="no split 'train'; it has testA, val"): read_refcoco(folder/'refs(unc).p', folder/'instances.json', folder)

def test_a_pickle_that_runs_code_does_not(coco):
    import os, pickle
    class Evil:
        def __reduce__(self): return os.mkdir, (str(coco[0]/'pwned'),)
    (coco[0]/'refs.p').write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(BadInput, match='only numbers, texts and containers'): read_refcoco(coco[0]/'refs.p', coco[0]/'instances.json', coco[0])
    assert not (coco[0]/'pwned').exists()
    for name in ('nowhere.p', 'instances.json'):
        with pytest.raises(BadInput): read_refcoco(coco[0]/name, coco[0]/'instances.json', coco[0])

def test_panoptic_narratives(coco):
    folder, square = coco
    ids = np.where(square, 5 + 256*3, 70000)
    Image.fromarray(np.stack([ids % 256, ids//256 % 256, ids//65536], -1).astype(np.uint8)).save(folder/'pan.png')
    panoptic = dict(images=[dict(id=1, file_name='1.png')], categories=[dict(id=7, name='dog', isthing=1), dict(id=100, name='sky', isthing=0)],
                    annotations=[dict(image_id=1, file_name='pan.png', segments_info=[dict(id=5 + 768, category_id=7), dict(id=70000, category_id=100)])])
    told = [dict(image_id='1', caption='', segments=[dict(utterance='In this picture', segment_ids=[], plural=False, noun=False), dict(utterance='a dog', segment_ids=['773'], plural=False, noun=True),
                                                     dict(utterance='.', segment_ids=[], plural=False, noun=False), dict(utterance='The sky', segment_ids=['70000'], plural=False, noun=True)])]
    for name, x in (('panoptic', panoptic), ('told', told)): (folder/f'{name}.json').write_text(json.dumps(x))
    e, = read_narratives(folder/'told.json', folder/'panoptic.json', folder, folder)
    assert [e.text[a:b] for a, b in e.spans] == ['a dog', 'The sky'] and e.text == 'In this picture a dog. The sky'
    assert (e.masks[0] == square).all() and (e.masks[1] == ~square).all() and e.kinds == ({'thing', 'singular'}, {'stuff', 'singular'})

@settings(deadline=None, max_examples=60)
@given(st.integers(8, 200), st.integers(8, 200), st.floats(0, .99), st.floats(0, .99), st.integers(1, 60), st.floats(1, 4))
def test_a_crop_is_a_square_around_its_mask(height, width, y, x, side, scale):
    mask = np.zeros((height, width), bool); top, left = int(y*height), int(x*width)
    mask[top:top + side, left:left + side] = True
    l, t, r, b = crop_box(mask, scale)
    assert 0 <= l < r <= width and 0 <= t < b <= height and abs((r - l) - (b - t)) <= 1
    ys, xs = np.nonzero(mask)
    if max(np.ptp(ys), np.ptp(xs)) + 1 < min(height, width)/scale: assert l <= xs.min() and xs.max() < r + 1 and t <= ys.min() and ys.max() < b + 1

def test_nlvr(tmp_path):
    (tmp_path/'images'/'3').mkdir(parents=True)
    things = [[dict(x_loc=10, y_loc=20, size=20, type='square', color='Black'), dict(x_loc=60, y_loc=60, size=10, type='circle', color='Black')], [dict(x_loc=0, y_loc=0, size=30, type='triangle', color='Yellow')], []]
    Image.new('RGB', (400, 100)).save(tmp_path/'images'/'3'/'dev-7-1-0.png')
    (tmp_path/'dev.json').write_text(json.dumps(dict(sentence='There is a black block and 2 yellow items and black items .', identifier='7-1', directory='3', structured_rep=things)))
    block, yellow, items = read_nlvr(tmp_path)
    assert [e.text[slice(*e.spans[0])] for e in (block, yellow, items)] == ['black block', 'yellow items', 'black items'] and block.open().size == (100, 100)
    assert block.masks[0].sum() == 400 and block.masks[0][20:40, 10:30].all() and items.masks[0].sum() > 400 and 'plural' in items.kinds[0] and 400 < yellow.masks[0].sum() < 520
    (tmp_path/'dev.json').write_text('{')
    with pytest.raises(BadInput, match='not a file of NLVR'): read_nlvr(tmp_path)

# One's own data

FEW = replace(FLMM_RECIPE, steps=6, warmup=1, checkpoint_every=2)

def fitted(examples, out, lmm='llava', sam='sam', **options):
    given = dict(steps=6, batch=4, width=4, upsample=8) | options
    return fit_grounding(FLMMFit(None, None, out, lmm=lmm, sam=sam, **given), progress=False, examples=examples)

def some(n, size=(48, 32), bad=None):
    "Pictures of two sizes, each with a box of another colour."
    out, rng = [], np.random.default_rng(0)
    for i in range(n):
        w, h = size if i % 2 else size[::-1]
        mask = np.zeros((1, h, w), bool); y, x = rng.integers(0, h - 10), rng.integers(0, w - 10); mask[0, y:y + 10, x:x + 10] = True
        pixels = rng.integers(0, 60, (h, w, 3)); pixels[mask[0]] = 255
        out.append(Grounding(Image.fromarray(pixels.astype(np.uint8)), 'The white box', [(4, 13)], mask, ({'thing'},), f'{i}', REFER))
    return out

def test_a_run_that_was_stopped_goes_on(llava, sam, tmp_path, monkeypatch):
    import frozen_nb.flmm as module
    fit, losses, steps = lambda name: fitted(some(20), tmp_path/name, llava, sam), module.flmm_loss, []
    def counted(model, batch):
        steps.append(1)
        if len(steps) == 5: raise RuntimeError('stopped')
        return losses(model, batch)
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'first')); monkeypatch.setattr(module, 'flmm_loss', counted)
    monkeypatch.setattr(FLMMFit, 'train_config', property(lambda self: FEW))
    with pytest.raises(RuntimeError, match='stopped'): fit('a')
    assert not (tmp_path/'a').exists()
    once = fit('a')
    assert len(steps) == 7 and once['data'] == dict(images=20, phrases=20, held_out_images=2, held_out_phrases=2)
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'second'))
    whole = fit('b')
    assert whole['losses'] == once['losses'] and whole['held_out'] == once['held_out'] and len(steps) == 13
    g = load_grounder(tmp_path/'a', llava, sam)
    assert g.ground(some(1)[0].image, ['the box'])[0].mask.shape == (48, 32)
    with pytest.raises(BadInput, match='no keyword selector'): g.converse(some(1)[0].image)

@pytest.mark.parametrize('device, dtype', [('cpu', 'bf16'), *(pytest.param('cuda', d, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')) for d in ('fp32', 'bf16'))])
def test_from_examples_to_masks_wherever_the_models_are(tmp_path, monkeypatch, device, dtype):
    "The LMM and the SAM in half precision or on a GPU: training, selector, and every use of what was trained."
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'cache'))
    lmm = load_lmm(str(make_lmm('llava', tmp_path/'llava')), dtype, device)
    model = sam_model(**SAM_SIZES).to(lmm.device, lmm.dtype)
    sam = SAM(freeze(model), 'tiny', fingerprint(model))
    told = [replace(e, question=QUESTION) for e in some(12)]
    fitted(told, tmp_path/'mine', lmm, sam)
    g = load_grounder(tmp_path/'mine', lmm, sam)
    assert {p.device.type for p in g.flmm.parameters()} == {device} and {p.dtype for p in g.flmm.parameters()} == {torch.float32}
    found = g.ground(WIDE[0], ['the red fox', 'the sky'])
    assert [f.mask.shape for f in found] == [(48, 80)]*2 and len(g.presence(WIDE[0], ['the red fox'])) == 1
    assert g.converse(WIDE[0], max_new_tokens=4).text is not None and lmm.fingerprint == fingerprint(lmm.model)

def test_a_file_that_changed_is_looked_at_again(llava, tmp_path, monkeypatch):
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'cache'))
    first, second = some(12), [replace(e, image=e.image.point(lambda v: 255 - v)) for e in some(12)]        # the same names
    a, b = (fitted(es, tmp_path/name, llava, None) for es, name in ((first, 'a'), (second, 'b')))
    assert a['losses'] != b['losses'] and 'head and SAM' not in a['held_out']

@pytest.mark.parametrize('change, says', [
    (lambda t: dict(examples=some(9)), 'at least 10'), (lambda t: dict(examples=[replace(e, masks=e.masks[:, :-1]) for e in some(12)]), 'masks of'),
    (lambda t: dict(examples=[replace(e, spans=[(13, 13)]) for e in some(12)]), 'no phrase'), (lambda t: dict(out=t/'file'), 'there is a file'), (lambda t: dict(out=t/'file'/'deeper'), 'there is a file'),
    (lambda t: dict(out=t/'other'), 'F-LMM'), (lambda t: dict(lmm='llama'), 'takes no image'), (lambda t: dict(lmm='nowhere'), 'nowhere'), (lambda t: dict(steps=0), 'steps 0'), (lambda t: dict(upsample=7), 'upsample 7')])
def test_nothing_is_written_for_what_cannot_be_used(llava, tmp_path, monkeypatch, change, says):
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'cache'))
    (tmp_path/'file').write_text(''); (tmp_path/'other').mkdir(); (tmp_path/'other'/'notes.txt').write_text('')
    given = dict(examples=some(12), out=tmp_path/'new', lmm=llava, sam=None) | change(tmp_path)
    with pytest.raises(BadInput, match=says) as e: fitted(**given)
    assert '\n' not in str(e.value) and not (tmp_path/'new').exists() and {f.name for f in (tmp_path/'other').iterdir()} == {'notes.txt'}

def test_files_are_read_and_the_result_is_said(coco, llava, tmp_path, monkeypatch):
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'cache'))
    folder, _ = coco
    fit = FLMMFit(folder/'instances.json', folder, tmp_path/'mine', lmm=llava, sam='none', steps=4)
    assert [e.text for e in fit.read_examples()] == ['The dog', 'The cat'] and fit.load_models() == (llava, None)
    with pytest.raises(BadInput, match='1 different images'): fit_grounding(fit, progress=False)
    result = fitted(some(12), tmp_path/'mine', llava, None)
    first, second = fit.lines(result)
    assert first == f"12 phrases on 12 images, 2 of the images held out; 6 steps: {tmp_path/'mine'}" and second.startswith('held out, mean IoU: head ')
    assert (fit.train_config.steps, fit.train_config.warmup, FLMMFit(None, None, 'o').train_config.warmup) == (4, 0, 20)

def test_phrases_of_a_question(lmm):
    "They stand before the answer, and their rows are those of the prompt that the model answers to."
    spoken = phrase_batch(lmm, WIDE[:1], ['What is the red fox?'], [[(8, 19)]], None)
    at = spoken.tokens[0][0]
    assert lmm.tokenizer.decode(spoken.inputs['input_ids'][0, at]).strip() == 'the red fox'
    shown = [pad_square(im) for im in WIDE[:1]] if type(lmm.model).__name__ == 'LlavaForConditionalGeneration' else WIDE[:1]
    prompt = lmm.inputs(shown, [lmm.processor.apply_chat_template(messages('What is the red fox?'), add_generation_prompt=True)])
    assert torch.equal(prompt['input_ids'], spoken.inputs['input_ids'])
