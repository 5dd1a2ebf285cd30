"LiMBeR on one's own models and data: the example of the README on every family, captions in a file, the authors' projections, the published sizes."
import json, shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest, torch
from PIL import Image
from torch import nn

import frozen_nb.fits.limber as fits
import frozen_nb.limber as module
from frozen_nb.core.frozen import BadInput, data_path, fingerprint, real_path
from frozen_nb.fits.limber import *
from frozen_nb.limber import *
from frozen_nb.world.captions import captions
from frozen_nb.world.drawing import draw
from frozen_nb.world.scenes import scene
from frozen_nb.core.prefix import LinearMap, first_answer, image_features, load_map, save_map, shot_prompt
from frozen_nb.core.scales import read_scale
from frozen_nb.core.stores import run_folder
from frozen_nb.core.training import learning_rates, TrainConfig
from frozen_nb.core.zoo import load_encoder, load_lm, open_image, pool_tokens, unit_pixels
from tiny_models import LMS, make_encoders, make_lms

FEW = TrainConfig(3, 1e-2, optimizer='muon')
SAID = [['a red hippo'], ['the snow', 'a hippo in the snow'], ['a hippo'], ['red snow'], ['the red hippo'], ['in the snow']]

@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "A folder with tiny models, and six pictures in `pictures`."
    root = tmp_path_factory.mktemp('limber')
    torch.manual_seed(0)
    make_lms(root), make_encoders(root)
    (root/'pictures').mkdir()
    for i in range(6): Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(root/'pictures'/f'{i}.png')
    return root

@pytest.fixture
def paths(root): return sorted(map(str, (root/'pictures').glob('*.png')))

@cache
def encoder_in(folder): return load_encoder(folder, device='cpu')
@cache
def lm_in(folder): return load_lm(folder, device='cpu')

def refused(f, *words):
    with pytest.raises(BadInput) as e: f()
    message = str(e.value)
    assert '\n' not in message and len(message) < 700, message
    for word in words: assert str(word) in message, message

# --- the example of the README

@pytest.mark.parametrize('eye', ['clip_vit', 'hf_beit', 'nfnet', 'mobilenet'])
@pytest.mark.parametrize('voice', LMS)
def test_any_encoder_in_front_of_any_language_model(root, paths, tmp_path, voice, eye):
    encoder, lm = encoder_in(root/eye), lm_in(root/voice)
    features = image_features(encoder, lambda i: open_image(paths[i]), paths, k=49)
    m, history = fit_map(encoder, lm, features, SAID, FEW)
    said = Limber(encoder, m, lm).caption([open_image(p) for p in paths], max_new_tokens=6)
    assert features.shape == (6, encoder.k, encoder.width) and np.isfinite(history.losses).all() and history.steps == 3
    assert fingerprint(encoder.model) == encoder.fingerprint and fingerprint(lm.model) == lm.fingerprint
    assert [n for model in (encoder.model, lm.model) for n, p in model.named_parameters() if p.grad is not None] == []
    assert not torch.equal(m.linear.weight, new_map(encoder, lm, features).linear.weight) and {n for n, _ in m.named_parameters()} == {'linear.weight', 'linear.bias'}
    assert len(said) == 6 and all(isinstance(t, str) for t in said)
    before = Limber(encoder, m, lm).prefix([open_image(p) for p in paths])
    save_map(m, tmp_path/'map')
    again = Limber.load(map=tmp_path/'map', encoder=root/eye, lm=root/voice, device='cpu')
    assert torch.allclose(again.prefix([open_image(p) for p in paths]), before, atol=1e-5)
    assert again.caption([open_image(p) for p in paths], max_new_tokens=6) == said
    assert len(again.ask([open_image(paths[0])], 'red')) == 1

@pytest.mark.parametrize('size, k, kept', [((96, 96), 16, 9), ((96, 96), 4, 4), ((32, 32), 16, 1), ((64, 128), 16, 8), ((64, 128), 4, 4)])
def test_an_encoder_with_few_or_oblong_tokens(root, paths, tmp_path, size, k, kept):
    folder = shutil.copytree(root/'mobilenet', tmp_path/'mobilenet')
    config = json.loads((folder/'config.json').read_text())
    config['pretrained_cfg'].update(input_size=[3, *size])
    (folder/'config.json').write_text(json.dumps(config))
    encoder, lm = load_encoder(folder, device='cpu'), lm_in(root/'llama')
    features = image_features(encoder, lambda i: open_image(paths[i]), paths, k)
    m, _ = fit_map(encoder, lm, features, SAID, FEW)
    prefix = Limber(encoder, m, lm).prefix([open_image(p) for p in paths])
    assert features.shape[1] == prefix.shape[1] == kept and torch.allclose(prefix, m(features), atol=1e-4)

def test_oblong_grids_are_pooled_by_place():
    x = torch.arange(36.).reshape(1, 36, 1)
    assert pool_tokens(x, 4, (2, 18)).flatten().tolist() == [4, 13, 22, 31] and pool_tokens(x, 4).flatten().tolist() == [7, 10, 25, 28]
    for k in (0, -1, 5, 16): refused(lambda: pool_tokens(x, k, (2, 18)), f'cannot make {k} ')
    refused(lambda: pool_tokens(x[:, :8], 4), '8 visual tokens')

def test_one_text_for_an_image_is_not_a_list_of_characters(root, paths):
    encoder, lm = encoder_in(root/'clip_vit'), lm_in(root/'llama')
    features, texts = image_features(encoder, lambda i: open_image(paths[i]), paths, k=4), [texts[0] for texts in SAID]
    losses = [fit_map(encoder, lm, features, captions, FEW)[1].losses for captions in (texts, [[t] for t in texts], [texts[0], *([t] for t in texts[1:])])]
    assert losses[0] == losses[1] == losses[2] and losses[0] != fit_map(encoder, lm, features, [list(t) for t in texts], FEW)[1].losses

# --- the names of maps

def test_a_map_that_ships_is_found_by_its_name(shell, paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = open_image(paths[0])
    named = Limber.load(map='limber', device='cpu')
    assert torch.equal(named.map.linear.weight, Limber.load(device='cpu').map.linear.weight) and fingerprint(named.map) == fingerprint(load_map('limber'))
    said = shell('caption', paths[0], '--map', 'limber', '--device', 'cpu')
    assert said.status == 0 and said.out == f'{paths[0]}: {named.caption([image])[0]}\n'
    for name in ('limbo', 'clip', 'flmm'):   # a model that ships is no map
        refused(lambda: Limber.load(map=name), f"no map is called '{name}'", 'those that ship: limber', 'fit limber')
        line = shell('caption', paths[0], '--map', name)
        assert line.status == 2 and line.out == '' and line.err.count('\n') == 1 and name in line.err and 'limber' in line.err
    for name in ('', ' '): refused(lambda: Limber.load(map=name), 'map is blank')
    refused(lambda: Limber.load(map='none/limber'), 'no map in none/limber')
    for what in (5, ['limber']): refused(lambda: load_map(what), 'is no path')
    assert shell('caption', paths[0], '--map', '').err.count('\n') == 1

def test_a_folder_comes_before_a_name_and_every_map_with_a_card_has_one(root, paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder, lm = encoder_in(root/'clip_vit'), lm_in(root/'llama')
    own = new_map(encoder, lm, image_features(encoder, lambda i: open_image(paths[i]), paths, k=4))
    save_map(own, 'limber')
    assert torch.equal(load_map('limber').linear.weight, own.linear.weight) and load_map(data_path('zoo', 'limber')).linear.weight.shape != own.linear.weight.shape
    assert Limber.load(device='cpu').map.made_for['encoder'] == 'clip'   # without a name: always the one that ships
    for place in ('frozen_nb.core.prefix', 'frozen_nb.core.zoo'): monkeypatch.setattr(f'{place}.data_path', lambda *parts: tmp_path.joinpath('data', *parts))
    for name in ('limber-real', 'half'): shutil.copytree('limber', Path('data/zoo')/name)
    Path('data/zoo/limber-real/card.json').write_text('{"kind": "map"}')
    assert torch.equal(load_map('limber-real').linear.weight, own.linear.weight)
    refused(lambda: load_map('half'), 'those that ship: limber-real;')

# --- captions in a file

def write(folder, *lines):
    (folder/'data.jsonl').write_text('\n'.join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines), encoding='utf-8')
    return folder/'data.jsonl'

def test_lines_of_one_image_are_put_together(paths, tmp_path):
    shutil.copy(paths[0], tmp_path/'a.png')
    data = write(tmp_path, dict(image='a.png', caption=' a hippo '), '', dict(image=paths[1], caption=['snow', 'red\u2028snow'], other=1), dict(image='./a.png', caption='in the snow'))
    assert read_captions(data) == ([tmp_path/'a.png', Path(paths[1])], [['a hippo', 'in the snow'], ['snow', 'red\u2028snow']])
    data.write_bytes(b'\xef\xbb\xbf' + data.read_bytes().replace(b'\n', b'\r\n'))   # as Windows writes it
    assert read_captions(data)[1][0] == ['a hippo', 'in the snow']

BAD = {'{': 'line 2 is no JSON', '[1]': 'line 2 has no "image"', '{"caption": "a"}': 'line 2 has no "image"', '{"image": 3, "caption": "a"}': 'line 2 has no "image"', '{"image": " ", "caption": "a"}': 'line 2 has no "image"',
       '{"image": "a.png"}': 'line 2 has no "caption"', '{"image": "a.png", "caption": " "}': 'line 2 has no "caption"', '{"image": "a.png", "caption": []}': 'line 2 has no "caption"', '{"image": "a.png", "caption": ["a", 3]}': 'line 2 has no "caption"',
       '{"image": "none.png", "caption": "a"}': 'none.png: no such file', '{"image": ".", "caption": "a"}': 'line 2'}

@pytest.mark.parametrize('line', BAD)
def test_a_bad_line_is_named(paths, tmp_path, line):
    shutil.copy(paths[0], tmp_path/'a.png')
    refused(lambda: read_captions(write(tmp_path, dict(image='a.png', caption='a'), line)), 'data.jsonl', BAD[line])

def test_files_that_hold_no_lines(tmp_path):
    for text, says in ((b'', 'empty'), (b'\n \n', 'empty'), (b'\xff\xfe\x00', 'UTF-8')):
        (tmp_path/'data.jsonl').write_bytes(text)
        refused(lambda: read_captions(tmp_path/'data.jsonl'), 'data.jsonl', says)
    refused(lambda: read_captions(tmp_path/'nowhere.jsonl'), 'nowhere.jsonl', 'no such file')
    refused(lambda: read_captions(tmp_path), 'folder')

def test_an_address_is_no_path(paths, tmp_path):
    "A path would lose one of its slashes in the message."
    data = write(tmp_path, dict(image=paths[0], caption='a'), dict(image='https://x.org/a.jpg', caption='a'))
    refused(lambda: read_captions(data), 'data.jsonl: line 2', 'address', 'download')

def test_a_caption_is_one_line(paths, tmp_path):
    "Generated captions end at a line break, so nothing behind one could be generated."
    data = write(tmp_path, dict(image=paths[0], caption='a red\nhippo \r\n\n in the snow\n'))
    assert read_captions(data)[1] == [['a red hippo in the snow']]

@pytest.fixture(scope='module')
def menagerie(tmp_path_factory):
    "A hundred pictures of one animal each with captions, one of them under two names."
    folder = tmp_path_factory.mktemp('menagerie')
    scenes = [scene(i, 'train', n_animals=1) for i in range(100)]
    for i, s in enumerate(scenes): draw(s).save(folder/f'{i}.png')
    shutil.copy(folder/'0.png', folder/'copy.png')
    write(folder, *(dict(image=f'{i}.png', caption=captions(s)[:2]) for i, s in enumerate(scenes)), dict(image='copy.png', caption='an animal'))
    return folder

def test_the_right_picture_helps(shell, menagerie, tmp_path, monkeypatch):
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'cache'))
    monkeypatch.chdir(tmp_path)
    line = '--out', 'map', '--steps', 40, '--device', 'cpu'
    said = shell('fit', 'limber', '--data', menagerie/'data.jsonl', *line)
    found = json.loads(Path('map/fit.json').read_text())
    assert said.status == 0 and said.err == '' and said.out.count('\n') == 2 and 'shows no use' not in said.out, said
    assert found['data'] == dict(images=100, captions=201, training_images=90, held_out_images=10) and found['steps'] == 40 and len(found['losses']) <= 60
    right, another, gain = (found['held_out'][name] for name in ('right', 'another', 'difference'))
    assert gain['ci'][0] > .2 and abs(another['value'] - right['value'] - gain['value']) < 1e-9 and found['losses'][-1][1] < right['value'] < another['value']
    assert not any(str(place) in Path(f'map/{name}').read_text() for place in (menagerie, tmp_path) for name in ('fit.json', 'config.json')) and sorted(p.name for p in Path('map').iterdir()) == ['config.json', 'fit.json', 'model.safetensors', 'sha256.json']
    made_for = load_map('map').made_for
    assert [made_for[name] for name in ('encoder', 'lm', 'k', 'prompt')] == ['clip', 'llama', 16, 'A picture of']
    assert shell('caption', menagerie/'1.png', '--map', 'map').status == shell('ask', menagerie/'1.png', 'Which animal is it?', '--map', 'map').status == 0
    # the same files elsewhere: nothing is encoded or trained again
    def never(*args, **kwargs): raise AssertionError('computed again')
    moved = shutil.copytree(menagerie, tmp_path/'moved')
    monkeypatch.setattr(module.Encoder, 'encode', never)
    monkeypatch.setattr(module, 'target_loss', never)
    assert shell('fit', 'limber', '--data', moved/'data.jsonl', *line).out == said.out

def test_training_goes_on_where_it_was_stopped(menagerie, root, tmp_path, monkeypatch):
    steps, real, recipe = [], module.target_loss, LimberFit.train_config.fget
    monkeypatch.setattr(LimberFit, 'train_config', property(lambda fit: replace(recipe(fit), checkpoint_every=2)))
    def stopped(*args):
        steps.append(1)
        if len(steps) == 5: raise MemoryError('killed')
        return real(*args)
    fit = lambda name: fit_captions(LimberFit(menagerie/'data.jsonl', tmp_path/name, encoder_in(root/'clip_vit'), lm_in(root/'llama'), 4, steps=6))
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'first'))
    monkeypatch.setattr(module, 'target_loss', stopped)
    with pytest.raises(MemoryError): fit('a')
    assert not (tmp_path/'a').exists()
    once = fit('a')
    assert len(steps) == 7   # 4 steps and the failed one, then the last two
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'second'))
    whole = fit('b')
    assert whole['held_out'] == once['held_out'] and whole['losses'] == once['losses'] and len(steps) == 13

def test_the_same_bytes_are_never_on_both_sides(menagerie, root, tmp_path, monkeypatch):
    "Twenty pictures, each under two names, in two orders."
    for i in range(20):
        for name in (f'{i}.png', f'copy-{i}.png'): shutil.copy(menagerie/f'{i}.png', tmp_path/name)
    lines, seen = [dict(image=f'{name}{i}.png', caption=f'{i} {name}') for name in ('', 'copy-') for i in range(20)], []
    def fit(encoder, lm, features, captions, *args, **kwargs): seen.append([{*texts} for texts in captions]); raise InterruptedError
    monkeypatch.setattr(fits, 'fit_map', fit)
    for order in (lines, lines[::-1]):
        with pytest.raises(InterruptedError): fit_captions(LimberFit(write(tmp_path, *order), tmp_path/'map', encoder_in(root/'clip_vit'), lm_in(root/'llama')))
    assert len(seen[0]) == 18 and seen[0] == seen[1] and all(len(texts) == 2 and len({t.split()[0] for t in texts}) == 1 for texts in seen[0])

@pytest.mark.parametrize('change, words', [
    (dict(data='few'), ['9 different images', 'at least 10']), (dict(data='broken'), ['line 3', '2.png', 'not an image']), (dict(data='long'), ['positions do not fit', 'llama']), (dict(out='taken'), ['taken', 'file']), (dict(out='taken/deeper'), ['file']),
    (dict(out='other'), ['other', 'something else']), (dict(k=5), ['cannot make 5 ']), (dict(k=0), ['k 0', '1 or more']), (dict(steps=0), ['steps 0']), (dict(dropout=1), ['dropout 1', '0.99']), (dict(optimizer='sgd'), ['sgd', 'muon']), (dict(encoder='clap'), ['clip']), (dict(lm='lama'), ['llama']), (dict(lm='clip'), ['load_encoder'])])
def test_nothing_is_written_for_what_cannot_be_used(menagerie, root, tmp_path, monkeypatch, change, words):
    lines = (menagerie/'data.jsonl').read_text().replace('"image": "', f'"image": "{menagerie}/').splitlines()
    write(tmp_path, *lines[:20]).rename(tmp_path/'good')
    write(tmp_path, *lines[:9], lines[0]).rename(tmp_path/'few')
    (tmp_path/'2.png').write_text('a red hippo')
    write(tmp_path, *lines[:2], dict(image='2.png', caption='a'), *lines[3:20]).rename(tmp_path/'broken')
    write(tmp_path, *lines[:19], json.loads(lines[19]) | dict(caption='a red hippo in the snow ' * 600)).rename(tmp_path/'long')
    (tmp_path/'taken').touch()
    (tmp_path/'other').mkdir()
    (tmp_path/'other'/'config.json').write_text('{"model_type": "llama"}')
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob('*'))
    given = dict(data='good', out='map', encoder=encoder_in(root/'clip_vit'), lm=lm_in(root/'llama'), k=4, steps=3) | change
    given.update(data=tmp_path/given['data'], out=tmp_path/given['out'], device='cpu')
    if change.get('data') == 'long':
        given['lm'] = load_lm('llama', device='cpu')
        monkeypatch.delattr(fits, 'image_features')   # it is said before anything is encoded
    refused(lambda: fit_captions(LimberFit(**given)), *words)
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob('*')) == before

@pytest.mark.parametrize('options', [dict(batch=2, accumulate=3), dict(accumulate=19)])
def test_more_parts_than_a_batch_has_images_are_refused_before_anything_is_encoded(menagerie, root, tmp_path, monkeypatch, options):
    monkeypatch.delattr(fits, 'load_encoder')
    lines = (menagerie/'data.jsonl').read_text().replace('"image": "', f'"image": "{menagerie}/').splitlines()
    n = options.get('batch', 18)   # twenty images, two of them held out
    refused(lambda: fit_captions(LimberFit(write(tmp_path, *lines[:20]), tmp_path/'map', **options)), f"accumulate {options['accumulate']}", f'give {n} or fewer')

def test_a_caption_that_is_too_long_is_named(menagerie, root, tmp_path):
    fit = LimberFit(menagerie/'data.jsonl', tmp_path/'map')
    lm = load_lm('llama', device='cpu')
    refused(lambda: fits._check_fits(fit, encoder_in(root/'clip_vit'), lm, [['short'], ['a red hippo ' * 1000]]), 'data.jsonl', "'a red hippo", 'do not fit into the 1024')
    long_prompt = replace(fit, prompt='a red hippo ' * 1000)
    with pytest.raises(BadInput, match='do not fit') as error: fits._check_fits(long_prompt, encoder_in(root/'clip_vit'), lm, [['short']])
    assert "'short'" not in str(error.value)   # it is not the caption's fault

def test_lines_of_a_result_say_fewer_visual_tokens_and_few_images():
    losses = {name: dict(value=1., ci=[.5, 1.5]) for name in ('right', 'another', 'difference')}
    def lines(k, n): return LimberFit(Path('a'), Path('map'), k=100).lines(dict(data=dict(images=10*n, captions=9, held_out_images=n), held_out=losses, steps=2, k=k))
    first, second = lines(64, 2)
    assert '2 steps, 64 visual tokens, as the encoder has no more: map' in first and '2 images held out are few' in second
    first, second = lines(100, 10)
    assert '2 steps: map' in first and 'few' not in second

@pytest.mark.parametrize('name', ['flmm', 'llama', 'pinto'])
def test_a_folder_of_another_kind_is_no_damaged_map(name):
    with pytest.raises(BadInput, match='no map in .*config.json is that of') as error: load_map(data_path('zoo', name))
    assert 'download' not in str(error.value)   # what is there is whole

# --- the authors' projections

@pytest.fixture
def models(root): return encoder_in(root/'clip_vit'), lm_in(root/'llama')   # widths 32 and 16

@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
@pytest.mark.parametrize('prefix', ['', 'proj.', 'module.image_prefix.proj.'])
@pytest.mark.parametrize('tokens', [1, 2])
def test_a_projection_of_the_authors(models, paths, tmp_path, dtype, prefix, tokens):
    encoder, lm = models
    layer = nn.Linear(32, 16 * tokens).to(dtype)
    torch.save({prefix + name: t for name, t in layer.state_dict().items()}, tmp_path/'proj.ckpt')
    m = read_projection(tmp_path/'proj.ckpt', encoder, lm)
    images = [open_image(p) for p in paths]
    tokens_of = encoder.encode(encoder.preprocess(images))
    wanted = layer.float()(tokens_of).reshape(6, -1, 16)
    assert torch.equal(m(tokens_of), wanted) and m.out_tokens == tokens
    again = load_map(save_map(m, tmp_path/'map'), encoder, lm)
    assert torch.equal(Limber(encoder, again, lm).prefix(images), wanted)

def test_a_projection_of_the_authors_for_an_nf_resnet_gets_pixels_from_0_to_1(root, paths, tmp_path):
    encoder, lm = load_encoder('nfnet', device='cpu'), lm_in(root/'llama')
    layer = nn.Linear(encoder.width, 16)
    torch.save(layer.state_dict(), tmp_path/'proj.ckpt')
    with pytest.warns(UserWarning, match='pixels from 0 to 1.*unit_pixels'): m = read_projection(tmp_path/'proj.ckpt', encoder, lm)
    again, images = load_map(save_map(m, tmp_path/'map'), encoder, lm), [open_image(p) for p in paths]
    limber = Limber(encoder, again, lm)
    assert Limber(limber.encoder, again, lm).encoder.preprocessing == limber.encoder.preprocessing == unit_pixels(encoder).preprocessing
    pixels = limber.encoder.preprocess(images)
    assert 0 <= pixels.min() and pixels.max() <= 1 and encoder.preprocess(images).min() < 0
    assert torch.equal(limber.prefix(images), layer(encoder.encode(pixels)))
    other = layer(encoder.encode(encoder.preprocess(images)))
    assert not torch.allclose(limber.prefix(images), other, atol=1e-2)
    config = tmp_path/'map'/'config.json'
    for path in tmp_path.glob('map/sha256.json'): path.unlink()
    config.write_text(json.dumps(json.loads(config.read_text()) | dict(pixels='none')))
    refused(lambda: load_map(tmp_path/'map'), "pixels is 'none'")

class Code:
    def __reduce__(self): return Path.touch, (Path('trap'),)

STATES = dict(
    wrong_encoder=(dict(weight=torch.zeros(16, 30), bias=torch.zeros(16)), ['width 30', 'has 32']), wrong_lm=(dict(weight=torch.zeros(24, 32), bias=torch.zeros(24)), ['to 24', '16']), bias=(dict(weight=torch.zeros(16, 32), bias=torch.zeros(32)), ['bias (32,)']),
    extra=(dict(weight=torch.zeros(16, 32), bias=torch.zeros(16), **{'ln.weight': torch.zeros(16)}), ['ln.weight', 'more than']), three=(dict(weight=torch.zeros(16, 32), bias=torch.zeros(16), cube=torch.zeros(1, 1, 1)), ['cube']),
    no_bias=(dict(weight=torch.zeros(16, 32)), ['no bias']), no_weight=(dict(bias=torch.zeros(16)), ['no weight']), empty=({}, ['empty']), nan=(dict(weight=torch.full((16, 32), torch.nan), bias=torch.zeros(16)), ['NaN']),
    a_list=([torch.zeros(16, 32)], ['not a state dict']), nested=(dict(module=dict(weight=torch.zeros(16, 32))), ['not a state dict']), code=(dict(weight=torch.zeros(16, 32), bias=Code()), ['run code']), layer=(nn.Linear(32, 16), ['run code']))

@pytest.mark.parametrize('case', STATES)
def test_a_file_that_is_no_projection(models, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    state, words = STATES[case]
    torch.save(state, 'proj.ckpt')
    refused(lambda: read_projection('proj.ckpt', *models), 'proj.ckpt', *words)
    assert not Path('trap').exists()

def test_a_damaged_projection(models, tmp_path):
    path = tmp_path/'proj.ckpt'
    refused(lambda: read_projection(path, *models), 'no such file')
    refused(lambda: read_projection(tmp_path, *models), 'folder')
    torch.save(nn.Linear(32, 16).state_dict(), path)
    for data in (path.read_bytes()[:500], b'', b'hello', b'version https://git-lfs.github.com/spec/v1\n'):
        path.write_bytes(data)
        refused(lambda: read_projection(path, *models), 'proj.ckpt', 'damaged')

# --- the published sizes

def test_the_paper_scale_never_runs_the_miniature(shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = shell('reproduce', 'limber', '--scale', 'paper')
    assert said.status == 2 and said.out == '' and said.err.count('\n') == 1 and 'limber, scale paper: missing: ' in said.err and not any(tmp_path.iterdir())
    plan = shell('reproduce', 'limber', '--scale', 'paper', '--dry-run').out
    for words in ('12,587,008', 'the weights of EleutherAI/gpt-j-6b', 'the data cc3m'): assert words in plan

def test_the_command_of_the_plan_is_one_that_can_be_given(shell, tmp_path, monkeypatch):
    import shlex
    monkeypatch.chdir(tmp_path)
    said = shell(*shlex.split(read_scale('limber', 'paper').command)[1:])
    assert said.status == 2 and said.err == 'frozen-nb: cc3m.jsonl: no such file; check the path\n'

def test_the_command_of_the_plan_trains_by_the_recipe_of_the_paper(shell, monkeypatch):
    import shlex
    given, scale = [], read_scale('limber', 'paper')
    monkeypatch.setattr(fits, 'fit_captions', lambda fit: given.append(fit) or 1/0)
    shell(*shlex.split(scale.command)[1:])
    (fit,), recipe = given, scale.recipe
    config, rates = fit.train_config, learning_rates(fit.train_config)
    assert {name: getattr(config, name) for name in ('steps', 'optimizer', 'lr', 'schedule', 'warmup')} == {name: recipe[name] for name in ('steps', 'optimizer', 'lr', 'schedule', 'warmup')}
    assert (fit.batch, fit.batch//fit.accumulate, fit.prompt, fit.dropout) == (recipe['batch'], recipe['micro_batch'], '', .1)
    assert config.weight_decay == 0 and config.betas == (.9, .95) and config.clip == 1
    assert rates[0] == 0 and rates.index(max(rates)) == 100 and rates[100] == 8e-4 and np.allclose(np.diff(rates[100:]), -8e-4/14_900) and rates[-1] < 1e-7   # to 0, in a line

def test_a_map_trains_by_its_schedule(menagerie, root, tmp_path, monkeypatch):
    "Another schedule and another warm-up are other trainings; without a word they are the recipe's, so that checkpoints of earlier runs stay valid."
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'cache'))
    runs, trained = {}, fits.fit_map
    def fit_map(encoder, lm, features, captions, config, *args, **kwargs):
        runs[config.schedule, config.warmup] = trained(encoder, lm, features, captions, config, *args, **kwargs)[1].losses
        raise InterruptedError
    monkeypatch.setattr(fits, 'fit_map', fit_map)
    given = dict(data=menagerie/'data.jsonl', out=tmp_path/'map', encoder=encoder_in(root/'clip_vit'), lm=lm_in(root/'llama'), k=4, steps=20)
    for options in (dict(), dict(schedule='linear'), dict(schedule='linear', warmup=10), dict(warmup=0)):
        with pytest.raises(InterruptedError): fit_captions(LimberFit(**given, **options))
    assert list(runs) == [('cosine', 2), ('linear', 2), ('linear', 10), ('cosine', 0)]
    assert len({losses[-1] for losses in runs.values()}) == 4 and len({losses[0] for losses in runs.values()}) == 1
    assert LimberFit(**given).train_config == replace(LIMBER_RECIPE, steps=20, warmup=2, checkpoint_every=100)

@pytest.mark.parametrize('options, words', [
    (dict(schedule='cosin'), ["schedule 'cosin' is unknown; use linear, cosine, "]), (dict(schedule='greedy'), ['validation loss']), (dict(schedule='warmup_stable_decay'), ['steps to fall in']), (dict(schedule=5), ['schedule=5', 'name']), (dict(schedule='constant', warmup=10), ['constant_with_warmup']),
    (dict(warmup=800), ['warmup 800', '800 steps']), (dict(steps=10, warmup=10), ['10 steps']), (dict(warmup=-1), ['warmup -1', '0 or more']), (dict(warmup=2.5), ['whole number'])])
def test_a_schedule_that_there_is_not(options, words): refused(lambda: LimberFit(Path('a'), Path('b'), **options), *words)

@pytest.mark.parametrize('line, word', [('--schedule cosin', "schedule 'cosin'"), ('--warmup -1', '--warmup'), ('--schedule constant --warmup 5', 'constant_with_warmup'), ('--warmup 40 --steps 40', 'warmup 40')])
def test_a_schedule_that_there_is_not_is_a_line_of_the_shell(shell, tmp_path, monkeypatch, line, word):
    monkeypatch.chdir(tmp_path)
    said = shell('fit', 'limber', '--data', 'nowhere.jsonl', '--out', 'new', *line.split())
    assert said.status == 2 and said.out == '' and said.err.count('\n') == 1 and word in said.err and 'nowhere' not in said.err and not any(tmp_path.iterdir())

# --- real weights, real photographs

REAL = all(real_path(name) for name in ('coco', 'mobilenetv2_100', 'stories260k'))

@pytest.mark.skipif(not REAL, reason='not run: FROZEN_NB_REAL is unset or has no coco, mobilenetv2_100 and stories260k')
def test_photographs_with_captions_by_people(shell, tmp_path, monkeypatch):
    "Everything runs, and what is measured is finite. 51 photographs are too few to show that the right one helps."
    monkeypatch.chdir(tmp_path)
    Path('mobilenet').mkdir()
    shutil.copy(real_path('mobilenetv2_100', 'model.safetensors'), 'mobilenet/model.safetensors')
    Path('mobilenet/config.json').write_text(json.dumps(dict(architecture='mobilenetv2_100', num_classes=1001, model_args=dict(num_classes=1001, pad_type='same'), pretrained_cfg=dict(input_size=[3, 160, 160], mean=[.5]*3, std=[.5]*3, num_classes=1001))))
    lines = []
    for split in ('train2017', 'val2017'):
        found = json.loads(real_path('coco', 'annotations', f'captions_{split}.json').read_text())
        names = {i['id']: i['file_name'] for i in found['images']}
        lines += [dict(image=str(real_path('coco', split, names[a['image_id']])), caption=a['caption']) for a in found['annotations']]
    said = shell('fit', 'limber', '--data', write(tmp_path, *lines), '--out', 'map', '--encoder', 'mobilenet', '--lm', real_path('stories260k'), '--k', 1, '--out-tokens', 8, '--feature-dropout', .5, '--steps', 4, '--device', 'cpu')
    assert said.status == 0, said
    fit = json.loads(Path('map/fit.json').read_text())
    assert fit['data'] == dict(images=51, captions=255, training_images=46, held_out_images=5) and all(np.isfinite([i['value'], *i['ci']]).all() for i in fit['held_out'].values())
    assert fit['held_out']['right']['value'] < 5 and max(loss for _, loss in fit['losses']) < 5   # nats a token: 6.2 would be a guess among 512 tokens
    assert shell('caption', lines[0]['image'], '--map', 'map').status == 0

# --- examples in the prompt

def test_examples_stand_in_the_form_of_the_paper():
    assert shot_prompt('q2?', [('q0?', 'a0'), ('q1?', 'a1')]) == '<image> Q: q0? A: a0\n<image> Q: q1? A: a1\n<image> Q: q2? A:'
    assert [first_answer(t) for t in (' red\n<image>', ' red Q: what', ' red <image>', 'red', ' in the snow ')] == ['red', 'red', 'red', 'red', 'in the snow']

@pytest.mark.parametrize('voice', ['llama', 'opt', 'gptj'])
def test_an_answer_with_examples_does_not_depend_on_its_neighbours(root, paths, voice):
    encoder, lm = encoder_in(root/'clip_vit'), lm_in(root/voice)
    features = image_features(encoder, lambda i: open_image(paths[i]), paths, k=4)
    limber = Limber(encoder, fit_map(encoder, lm, features, SAID, FEW)[0], lm)
    images, shown = [open_image(p) for p in paths], [(open_image(paths[2]), 'the snow', 'red')]
    together = limber.ask(images[:3], 'a hippo', shown, 3)
    assert together == [limber.ask([image], 'a hippo', shown, 3)[0] for image in images[:3]]

def test_arguments_that_are_no_number_and_no_examples_are_named(paths):
    limber, images = Limber.load(device='cpu'), [open_image(paths[0])]
    for n in (None, 0, -1, 2.5, 'many', True):
        refused(lambda: limber.caption(images, max_new_tokens=n), f'max_new_tokens {n!r}', '1 or more')
        refused(lambda: limber.ask(images, 'why?', max_new_tokens=n), 'max_new_tokens')
    for examples in (5, None, 'abc', [5], [(images[0], 'why?')], {'a': 1}): refused(lambda: limber.ask(images, 'why?', examples), 'examples', '(image, question, answer)')
    assert len(limber.ask(images, 'why?', [(images[0], 'why?', 'red')], 2)) == len(limber.ask(images, 'why?', (), 2)) == 1

def test_answers_of_the_shipped_map():
    limber, scenes = Limber.load(device='cpu'), [scene(i, 'test', n_animals=1) for i in range(20)]
    images = [draw(s) for s in scenes]
    assert sum(t == s.animals[0].species for t, s in zip(limber.ask(images, 'what animal is this?'), scenes)) >= 10
    shown = limber.ask(images, 'what animal is this?', [(draw(s), 'what animal is this?', s.animals[0].species) for s in (scene(i, 'train', n_animals=1) for i in range(2))])
    assert len(shown) == 20 and all(t and '\n' not in t and 'Q:' not in t for t in shown)

# --- maps that are kept, and what the chapter measures on fresh scenes

def test_an_option_that_a_map_has_not_is_refused_before_training(models):
    encoder, lm = models
    features = torch.randn(4, 2, encoder.width)
    refused(lambda: fit_map(encoder, lm, features, ['a cat']*4, FEW, feature_droput=.3), 'feature_droput', 'feature_dropout')

def test_the_bias_of_a_map_can_learn_at_a_rate_of_its_own(models):
    "What does not depend on the image, a bias learns first if it is let; Adam's first step is the rate."
    encoder, lm = models
    features, captions = torch.randn(6, 2, encoder.width), [f'a cat {i}' for i in range(6)]
    config = replace(FEW, steps=1, lr=1e-4, warmup=0, optimizer='adamw', weight_decay=0.)
    def moved(**options):
        start = new_map(encoder, lm, features, seed=0)
        trained, _ = fit_map(encoder, lm, features, captions, config, **options)
        return [(trained.linear.bias - start.linear.bias).abs().max().item(), (trained.linear.weight - start.linear.weight).abs().max().item()]
    assert moved() == pytest.approx([1e-4, 1e-4], rel=.05) and moved(bias_rate=100.) == pytest.approx([1e-2, 1e-4], rel=.05)
    first, second = (kept_map(encoder, lm, features, captions, config, bias_rate=100.)[0] for _ in range(2))
    assert torch.equal(first.linear.bias, second.linear.bias)


def test_a_kept_map_is_trained_once(models, monkeypatch):
    encoder, lm = models
    features, captions = torch.randn(6, 2, encoder.width), [f'a cat {i}' for i in range(6)]
    first, history = kept_map(encoder, lm, features, captions, FEW, batch_size=3)
    from frozen_nb.core import training
    monkeypatch.setattr(training._Run, 'step', lambda *args: pytest.fail('trained again'))
    again, kept = kept_map(encoder, lm, features, captions, FEW, 'another description', batch_size=3)
    assert torch.equal(first.linear.weight, again.linear.weight) and kept.losses == history.losses
    with pytest.raises(pytest.fail.Exception): kept_map(encoder, lm, features, captions[::-1], FEW, batch_size=3)

def test_a_training_that_ships_is_taken_whatever_the_last_bits_of_features(models, tmp_path, monkeypatch):
    from frozen_nb.core import training
    encoder, lm = models
    features, captions = torch.randn(6, 2, encoder.width), [f'a cat {i}' for i in range(6)]
    trained, history = kept_map(encoder, lm, features, captions, FEW, batch_size=3)
    monkeypatch.setattr('frozen_nb.core.prefix.shipped_run', lambda method, *inputs: tmp_path/run_folder(method, *inputs).name)
    ships = module.shipped_map(encoder, lm, features, captions, replace(FEW, checkpoint_every=100), dict(batch_size=3))
    training.write_run(ships, dict(trained.named_parameters()), history)
    monkeypatch.setattr(training._Run, 'step', lambda *args: pytest.fail('trained again'))
    taken, losses = kept_map(encoder, lm, features*(1 + 1e-7), captions, FEW, batch_size=3)
    assert losses.losses == history.losses and not any(p.requires_grad for p in taken.parameters())
    assert torch.allclose(taken(features), trained(features), rtol=.02, atol=.02*trained(features).abs().max().item())
    with pytest.raises(pytest.fail.Exception): kept_map(encoder, lm, features + 1, captions[::-1], FEW, batch_size=3)
    data = bytearray((ships/'model.safetensors').read_bytes())
    data[-1] ^= 1
    (ships/'model.safetensors').write_bytes(data)
    refused(lambda: kept_map(encoder, lm, features, captions, FEW, batch_size=3), str(ships))

def test_every_training_that_ships_can_be_read(root):
    from frozen_nb.core.training import read_run
    folders = sorted((root/'data/runs').glob('*/*'))
    if not folders: pytest.skip('no training ships yet')
    for folder in folders:
        tensors, history = read_run(folder)
        assert all(t.isfinite().all() for t in tensors.values()) and history.losses[-1] < history.losses[0]

def test_recall_on_fresh_scenes_is_of_own_and_of_other_captions():
    from frozen_nb.core.findings import FRESH
    alone, minus = FRESH['limber', 'species'](12), FRESH['limber', 'species-over-another-image'](12)
    assert alone['scores'].shape == (12,) and alone['scores'].mean() > .4 > alone['null'].mean()
    assert (minus['against'] == alone['null']).all() and (minus['scores'] == alone['scores']).all()

# --- data sets of the paper's scale, in their published formats

def test_images_with_captions_and_questions_of_the_paper_are_read(tmp_path, monkeypatch):
    from frozen_nb.benchmarks.sets import answer_accuracy, asked_images, captioned_images, question_images
    monkeypatch.setenv('FROZEN_NB_REAL', str(tmp_path))
    refused(lambda: captioned_images('cc3m', 'train'), 'cc3m', 'FROZEN_NB_REAL')
    image = Image.new('RGB', (20, 20))
    for folder in ('cc3m', 'nocaps/val', 'vqav2/train2014', 'vqav2/val2014'): (tmp_path/folder).mkdir(parents=True)
    image.save(tmp_path/'cc3m'/'a.jpg')
    (tmp_path/'cc3m'/'captions.jsonl').write_text('{"image": "a.jpg", "caption": "a cat"}\n')
    assert [item.captions for item in captioned_images('cc3m', 'train')] == [('a cat',)]
    image.save(tmp_path/'nocaps'/'val'/'b.jpg')
    entries = dict(images=[dict(id=1, file_name='b.jpg', domain='in-domain')], annotations=[dict(id=1, image_id=1, caption='a dog')])
    (tmp_path/'nocaps'/'nocaps_val_4500_captions.json').write_text(json.dumps(entries))
    assert captioned_images('nocaps', 'test')[0].open().size == (20, 20)
    for split in ('train2014', 'val2014'):
        for i in range(6): image.save(tmp_path/'vqav2'/split/f'COCO_{split}_{i:012d}.jpg')
        asked = [dict(question_id=i, image_id=i, question=f'what is {i}?') for i in range(6)]
        answers = [dict(answer='cat' if k < 7 else 'dog', answer_id=k) for k in range(10)]
        told = [dict(question_id=i, image_id=i, answers=answers, answer_type='other', question_type='what', multiple_choice_answer='cat') for i in range(6)]
        (tmp_path/'vqav2'/f'v2_OpenEnded_mscoco_{split}_questions.json').write_text(json.dumps(dict(questions=asked)))
        (tmp_path/'vqav2'/f'v2_mscoco_{split}_annotations.json').write_text(json.dumps(dict(annotations=told)))
    items = asked_images('vqav2', 3)
    images, rows = question_images(items, 2)
    assert rows.shape == (3, 3) and {x.answer for item in items for x in item.examples} == {'cat'}
    assert answer_accuracy(items, ['cat', 'dog', 'bird']).tolist() == pytest.approx([1, .9, 0], abs=.11)

def test_a_map_that_another_process_trains_is_waited_for(models):
    import threading, time
    from filelock import FileLock
    from frozen_nb.core.stores import run_folder
    encoder, lm = models
    features, captions = torch.randn(5, 2, encoder.width), ['a cat']*5
    folder = run_folder('limber', 'map', encoder, lm, features, captions, FEW, dict(batch_size=3))
    folder.mkdir(parents=True)
    lock = FileLock(folder/'.lock', mode=0o600, thread_local=False)
    lock.acquire()
    threading.Timer(1.5, lambda: lock.release(force=True)).start()
    start = time.perf_counter()
    kept_map(encoder, lm, features, captions, FEW, batch_size=3)
    assert time.perf_counter() - start > 1

def test_a_kept_map_goes_on_after_a_break(models, monkeypatch):
    from frozen_nb.core import training
    encoder, lm = models
    features, captions, config = torch.randn(5, 2, encoder.width), ['a cat']*5, TrainConfig(130, 1e-3, seed=9)
    step, steps = training._Run.step, []
    def counted(run, *args):
        steps.append(1)
        if len(steps) == 120: raise KeyboardInterrupt
        return step(run, *args)
    monkeypatch.setattr(training._Run, 'step', counted)
    with pytest.raises(KeyboardInterrupt): kept_map(encoder, lm, features, captions, config, batch_size=2)
    stopped = kept_map(encoder, lm, features, captions, config, batch_size=2)[0]
    assert len(steps) == 120 + 30   # from the hundredth step on
    whole = fit_map(encoder, lm, features, captions, config, batch_size=2)[0]
    assert torch.equal(stopped.linear.weight, whole.linear.weight)

@pytest.mark.parametrize('role', ['encoder', 'lm'])
def test_a_model_that_is_gone_is_named_with_its_map(tmp_path, role):
    shutil.copytree(data_path('zoo', 'limber'), tmp_path/'map')
    (tmp_path/'map/sha256.json').unlink()
    config = json.loads((tmp_path/'map/config.json').read_text())
    (tmp_path/'map/config.json').write_text(json.dumps(config | {role: str(tmp_path/'gone')}))
    refused(lambda: Limber.load(map=tmp_path/'map', device='cpu'), f"{tmp_path/'map'}: the {role} that this map was made for", str(tmp_path/'gone'))
