"LiMBeR outside its chapter: every family behind the three lines of the README, captions from a file, the authors' projections, the published models, the shell."
import json, pickle, shutil
from pathlib import Path

import pytest, torch
from PIL import Image

from frozen_nb.claims import load_records
from frozen_nb.frozen import BadInput, data_path, fingerprint, real_path, seeded, trainable_parameters
from frozen_nb.limber import *
from frozen_nb.menagerie import captions, draw, scene
from frozen_nb.prefix import LinearMap, load_map, save_map
from frozen_nb.training import TrainConfig
from frozen_nb.zoo import load_encoder, load_lm, open_image
from test_cli import refused, shell
from test_zoo import LMS, folders, no_network

# --- the three lines of the README

said = [['a red hippo'], ['a red hippo in the snow', 'a hippo'], ['the snow'], ['the red hippo in the snow']]

@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    for i in range(4): draw(scene(i, 'train', n_animals=1)).save(folder/f'{i}.png')
    return [str(folder/f'{i}.png') for i in range(4)]

@pytest.mark.parametrize('eyes', ['clip_vit', 'hf_beit', 'nfnet', 'mobilenet'])
@pytest.mark.parametrize('voice', LMS)
def test_three_lines_for_published_checkpoints(folders, pictures, tmp_path, eyes, voice):
    paths = pictures
    encoder, lm = load_encoder(folders.root/eyes, device='cpu'), load_lm(folders.root/voice, device='cpu')
    before = [fingerprint(encoder.model), fingerprint(lm.model)]
    features = image_features(encoder, lambda i: open_image(paths[i]), [f'{eyes}/{i}' for i in range(4)], k=4, progress=False)
    m, history = fit_map(encoder, lm, features, said, TrainConfig(3, 1e-2), prompt='a', batch_size=4)
    assert features.shape == (4, min(4, encoder.k), encoder.width) and history.steps == 3 and all(0 < x < 10 for x in history.losses)
    assert (m.linear.weight - new_map(encoder, lm, features, 'a').linear.weight).abs().max() > 1e-3
    assert [fingerprint(encoder.model), fingerprint(lm.model)] == before and sum(p.numel() for p in m.parameters()) == encoder.width*lm.width + lm.width
    limber, images = Limber(encoder, m, lm), [open_image(p) for p in paths]
    text = limber.caption(images, max_new_tokens=4)
    assert len(text) == 4 and all(isinstance(t, str) for t in text)
    again = Limber.load(save_map(m, tmp_path/'map'), encoder=folders.root/eyes, lm=folders.root/voice, device='cpu')
    torch.testing.assert_close(again.prefix(images), limber.prefix(images), rtol=1e-4, atol=1e-5)
    assert limber.ask(images[:2], 'a hippo', [(images[2], 'the snow', 'red')], 3) == [limber.ask([im], 'a hippo', [(images[2], 'the snow', 'red')], 3)[0] for im in images[:2]]

@pytest.mark.parametrize('k', [1, 4, 16, 64])
def test_an_encoder_that_gives_fewer_tokens_keeps_what_it_gives(folders, pictures, k):
    for name, most in dict(clip_vit=16, clip_rn=4, mobilenet=1, nfnet=1).items():
        encoder = load_encoder(folders.root/name, device='cpu')
        assert image_features(encoder, lambda i: open_image(pictures[i]), [f'{name}-{k}'], k=k, progress=False).shape[1] == min(k, most)

def test_shots_reach_the_answer():
    "In the form of the paper; examples are part of the prompt, in their order, each behind its own picture."
    assert shot_prompt('q2?', [('q0?', 'a0'), ('q1?', 'a1')]) == '<image> Q: q0? A: a0\n<image> Q: q1? A: a1\n<image> Q: q2? A:'
    assert [first_answer(t) for t in (' red\n<image>', ' red Q: what', ' red <image>', 'red', ' in the snow ')] == ['red', 'red', 'red', 'red', 'in the snow']

@pytest.mark.skipif(not data_path('zoo', 'limber', 'config.json').exists(), reason='data/zoo has no map yet')
def test_answers_of_the_shipped_map():
    limber, scenes = Limber.load(device='cpu'), [scene(i, 'test', n_animals=1) for i in range(20)]
    images = [draw(s) for s in scenes]
    plain = limber.ask(images, 'what animal is this?')
    assert sum(t == s.animals[0].species for t, s in zip(plain, scenes)) >= 10
    shown = limber.ask(images, 'what animal is this?', [(draw(s), 'what animal is this?', s.animals[0].species) for s in (scene(i, 'train', n_animals=1) for i in range(2))])
    assert len(shown) == 20 and all(t and '\n' not in t and 'Q:' not in t for t in shown)

# --- captions from a file

@pytest.fixture(scope='module')
def album(tmp_path_factory):
    "Pictures of the menagerie as a user has them."
    folder = tmp_path_factory.mktemp('album')
    lines = []
    for i in range(100):
        s = scene(i, 'train', n_animals=1)
        draw(s).save(folder/f'{i}.png')
        lines.append(dict(image=f'{i}.png', caption=captions(s)[:3]))
    (folder/'captions.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    (folder/'broken.png').write_bytes((folder/'0.png').read_bytes()[:200])
    return folder

def line(**kwargs): return json.dumps(kwargs)

BAD = {
    'no json': ['{"image": "0.png"', 'line 1 is no JSON'], 'a list': ['[1]', 'line 1 has no "image"'], 'no image': [line(caption='x'), 'line 1 has no "image"'], 'image is a number': [line(image=3, caption='x'), 'line 1 has no "image"'],
    'no caption': [line(image='0.png'), 'line 1 has no "caption"'], 'blank caption': [line(image='0.png', caption='  '), 'line 1 has no "caption"'], 'captions with a number': [line(image='0.png', caption=['x', 1]), 'line 1 has no "caption"'],
    'no captions': [line(image='0.png', caption=[]), 'line 1 has no "caption"'], 'second line': [line(image='0.png', caption='x') + '\n\n' + line(image='nowhere.png', caption='x'), 'line 3: '], 'empty': ['', 'empty'], 'blank lines': ['\n \n', 'empty'],
    'few': [line(image='0.png', caption='x'), '10 are needed']}

@pytest.mark.parametrize('case', BAD)
def test_bad_captions(shell, album, tmp_path, monkeypatch, case):
    text, word = BAD[case]
    (album/'bad.jsonl').write_text(text)
    monkeypatch.chdir(album)
    refused(shell('fit', 'limber', '--data', 'bad.jsonl', '--out', tmp_path/'map'), 'bad.jsonl', word)
    assert not (tmp_path/'map').exists()

def test_an_image_that_cannot_be_read_is_named_with_its_line(shell, album, tmp_path, monkeypatch):
    monkeypatch.chdir(album)
    (album/'bad.jsonl').write_text((album/'captions.jsonl').read_text() + '\n' + line(image='broken.png', caption='x'))
    refused(shell('fit', 'limber', '--data', 'bad.jsonl', '--out', tmp_path/'map', '--steps', 2), 'line 101', 'broken.png')
    assert not (tmp_path/'map').exists()

@pytest.mark.parametrize('args, word', [
    ('--data nowhere.jsonl --out new', 'nowhere.jsonl'), ('--data . --out new', 'folder'), ('--data 0.png --out new', '0.png'), ('--data captions.jsonl --out 0.png', '0.png'), ('--data captions.jsonl --out .', 'something else than a map'),
    ('--data captions.jsonl --out new --k 5', '5 visual tokens'), ('--data captions.jsonl --out new --encoder clap', 'clip'), ('--data captions.jsonl --out new --lm lama', 'llama'), ('--data captions.jsonl', '--out'), ('--out new', '--data'),
    ('--data captions.jsonl --out new --steps 0', '--steps'), ('--data captions.jsonl --out new --optimizer sgd', 'sgd')])
def test_bad_command_lines_of_fit(shell, album, monkeypatch, args, word):
    monkeypatch.chdir(album)
    refused(shell('fit', 'limber', *args.split()), word)
    assert not (album/'new').exists()

@pytest.mark.parametrize('words, expected', [(['fit'], 'limber'), (['fit', 'limbo'], 'limbo'), (['fit', 'limbo'], 'limber')])
def test_methods_that_can_be_fitted(shell, words, expected): refused(shell(*words), expected)

def test_lines_with_one_image_are_put_together(album):
    (album/'two.jsonl').write_text('\ufeff' + line(image='0.png', caption=' one ') + '\r\n' + line(image='1.png', caption=['two', 'three']) + '\n' + line(image='0.png', caption='four', more=1))
    paths, texts = read_captions(album/'two.jsonl')
    assert [p.name for p in paths] == ['0.png', '1.png'] and texts == [['one', 'four'], ['two', 'three']]

def test_fit_and_use(shell, album, tmp_path, monkeypatch):
    monkeypatch.chdir(album)
    fitted = shell('fit', 'limber', '--data', 'captions.jsonl', '--out', tmp_path/'map', '--steps', 60)
    found = json.loads((tmp_path/'map'/'fit.json').read_text())
    assert fitted.status == 0 and '100 images with 300 captions, 10 of the images held out; 60 steps' in fitted.out
    assert found['data'] == dict(images=100, captions=300, training_images=90, held_out_images=10) and found['held_out']['difference']['ci'][0] > .2
    assert str(tmp_path) not in (tmp_path/'map'/'fit.json').read_text() and str(album) not in (tmp_path/'map'/'fit.json').read_text()
    captioned, answered = shell('caption', '0.png', '--map', tmp_path/'map'), shell('ask', '0.png', 'what  animal is this?', '--map', tmp_path/'map')
    assert captioned.status == answered.status == 0 and captioned.out.startswith('0.png: ') and answered.out.strip()
    again = shell('fit', 'limber', '--data', 'captions.jsonl', '--out', tmp_path/'again', '--steps', 60)
    assert again.status == 0 and (tmp_path/'again'/'model.safetensors').read_bytes() == (tmp_path/'map'/'model.safetensors').read_bytes()

def test_the_same_picture_twice_is_never_on_both_sides(album, tmp_path):
    for i in range(12):
        for name in 'ab': shutil.copy(album/f'{i}.png', album/f'twin-{name}-{i}.png')
    (album/'twins.jsonl').write_text('\n'.join(line(image=f'twin-{name}-{i}.png', caption='a dog') for i in range(12) for name in 'ab'))
    found = fit_captions(album/'twins.jsonl', tmp_path/'map', load_encoder('nfnet', device='cpu'), load_lm('llama', device='cpu'), config=TrainConfig(1, 1e-3), progress=False)
    assert found['data'] == dict(images=12, captions=24, training_images=10, held_out_images=2)

# --- ask

@pytest.mark.parametrize('args, word', [(['0.png', ' '], 'blank'), (['0.png'], 'QUESTION'), (['nowhere.png', 'what?'], 'nowhere.png'), (['broken.png', 'what?'], 'broken.png'), (['captions.jsonl', 'what?'], 'captions.jsonl'),
                                        (['0.png', 'what?', '--map', 'nowhere'], 'nowhere'), (['0.png', 'what?', '--lm', 'opt'], 'made for'), (['0.png', 'what?', '--device', 'quantum'], 'quantum')])
def test_bad_questions(shell, album, monkeypatch, args, word):
    monkeypatch.chdir(album)
    refused(shell('ask', *args), word)

# --- the authors' projections

@pytest.fixture
def models(): return load_encoder('clip', device='cpu'), load_lm('llama', device='cpu')

def layer(e=128, d=192):
    with seeded(3): return torch.nn.Linear(e, d).state_dict()

@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('prefix', ['', 'proj.', 'module.image_prefix.proj.'])
@pytest.mark.parametrize('tokens', [1, 2])
def test_projections_are_read(models, tmp_path, dtype, prefix, tokens):
    state = {name: t.to(dtype) for name, t in layer(d=192*tokens).items()}
    torch.save({prefix + name: t for name, t in state.items()}, tmp_path/'proj.ckpt')
    m = read_projection(tmp_path/'proj.ckpt', *models)
    x = torch.randn(2, 5, 128)
    assert m.out_tokens == tokens and trainable_parameters(m) == 0
    torch.testing.assert_close(m(x), (x @ state['weight'].float().T + state['bias'].float()).view(2, 5*tokens, 192))
    kept = load_map(save_map(m, tmp_path/'map'), *models)
    torch.testing.assert_close(kept(x), m(x))

class Bomb:
    def __reduce__(self): return (Path.touch, (Path('exploded'),))

WRONG = {
    'a third tensor': (lambda p: torch.save(dict(layer(), scale=torch.ones(3)), p), 'scale'), 'no bias': (lambda p: torch.save({'weight': layer()['weight']}, p), 'no bias'), 'no weight': (lambda p: torch.save({'bias': layer()['bias']}, p), 'no weight'),
    'nothing': (lambda p: torch.save({}, p), 'empty'), 'another encoder': (lambda p: torch.save(layer(64), p), '128'), 'another language model': (lambda p: torch.save(layer(d=200), p), '192'), 'bias of another size': (lambda p: torch.save(dict(layer(), bias=torch.ones(7)), p), '(7,)'),
    'a layer': (lambda p: torch.save(torch.nn.Linear(128, 192), p), 'code'), 'a tensor': (lambda p: torch.save(torch.ones(3), p), 'state dict'), 'numbers': (lambda p: torch.save(dict(weight=1.), p), 'state dict'), 'not finite': (lambda p: torch.save(dict(layer(), bias=torch.full((192,), torch.nan)), p), 'NaN'),
    'code': (lambda p: p.write_bytes(pickle.dumps({'weight': Bomb()})), ''), 'text': (lambda p: p.write_text('weights'), 'damaged'), 'empty file': (lambda p: p.touch(), 'damaged'), 'folder': (lambda p: p.mkdir(), 'folder'), 'no file': (lambda p: None, 'no such file')}

@pytest.mark.parametrize('case', WRONG)
def test_projections_are_refused(models, tmp_path, monkeypatch, case):
    make, word = WRONG[case]
    monkeypatch.chdir(tmp_path)
    make(tmp_path/'proj.ckpt')
    with pytest.raises(BadInput, match='proj.ckpt') as e: read_projection(tmp_path/'proj.ckpt', *models)
    assert word in str(e.value) and '\n' not in str(e.value) and not Path('exploded').exists()

def test_a_cut_projection(models, tmp_path):
    torch.save(layer(), tmp_path/'whole')
    (tmp_path/'cut').write_bytes((tmp_path/'whole').read_bytes()[:-2000])
    with pytest.raises(BadInput, match='damaged'): read_projection(tmp_path/'cut', *models)

# --- the published models

def test_the_published_plan(no_network, monkeypatch, tmp_path):
    plan = paper_plan()
    table = plan.models.set_index('model')
    assert list(table['trained'][:3]) == ['12,587,008', '4,198,400', '8,392,704'] and list(table['visual tokens'][:3]) == ['144 x 3072', '196 x 1024', '1 x 2048']
    assert table.loc['EleutherAI/gpt-j-6b', 'map'] == 'width 4096' and 6000 < float(table.loc['EleutherAI/gpt-j-6b', 'parameters (M)'].replace(',', '')) < 6100
    assert no_network == [] and 'CC3M' in str(plan) and '15,000 steps' in plan.recipe and plan.command.startswith('frozen-nb fit limber')

def test_the_published_preset_is_a_plan(shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = shell('reproduce', 'limber', '--preset', 'paper', '--dry-run')
    assert said.status == 0 and '12,587,008' in said.out and 'frozen-nb fit limber' in said.out
    refused(shell('reproduce', 'limber', '--preset', 'paper'), 'CC3M', 'frozen-nb fit limber')
    assert list(tmp_path.iterdir()) == []

# --- real photographs

@pytest.mark.skipif(not all(real_path(n) for n in ('coco', 'mobilenetv2_100', 'stories260k')), reason='FROZEN_NB_REAL has no coco, mobilenetv2_100 and stories260k')
def test_real_photographs_with_captions(shell, tmp_path):
    "51 photographs are few: it has to run, and its numbers have to be numbers."
    encoder, lines = tmp_path/'encoder', []
    shutil.copytree(real_path('mobilenetv2_100'), encoder)
    settings = dict(input_size=[3, 160, 160], mean=[.5]*3, std=[.5]*3, interpolation='bicubic', crop_pct=1., num_classes=1001)
    (encoder/'config.json').write_text(json.dumps(dict(architecture='mobilenetv2_100', num_classes=1001, num_features=1280, model_args=dict(pad_type='same'), pretrained_cfg=settings)))
    for split in ('train2017', 'val2017'):
        found = json.loads(real_path('coco', 'annotations', f'captions_{split}.json').read_text())
        files = {im['id']: str(real_path('coco', split, im['file_name'])) for im in found['images']}
        lines += [dict(image=files[a['image_id']], caption=a['caption']) for a in found['annotations']]
    (tmp_path/'coco.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    fitted = shell('fit', 'limber', '--data', tmp_path/'coco.jsonl', '--out', tmp_path/'map', '--encoder', encoder, '--lm', real_path('stories260k'), '--k', 1, '--out-tokens', 4, '--feature-dropout', .8, '--prompt', 'This is', '--steps', 30)
    found = json.loads((tmp_path/'map'/'fit.json').read_text())
    assert fitted.status == 0 and found['data'] == dict(images=51, captions=255, training_images=46, held_out_images=5)
    assert all(0 < found['held_out'][k]['value'] < 10 for k in ('right', 'another')) and all(0 < loss < 10 for _, loss in found['losses'])
    answered = shell('ask', lines[0]['image'], 'What is it?', '--map', tmp_path/'map', '--encoder', encoder, '--lm', real_path('stories260k'))
    assert answered.status == 0
