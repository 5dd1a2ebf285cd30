"""The same weights under another configuration, tokenizer or preprocessing are another model: no kept run, rationale or head of one is taken for the
other without a word; and the same model in another precision is still the model that a head was made for."""
import json, shutil, warnings
from pathlib import Path

import pytest

from frozen_nb.core.frozen import BadInput, data_path
from frozen_nb.core.stores import hash_inputs
from frozen_nb.core.zoo import folder_settings, load_encoder, load_lm, load_lmm
from frozen_nb.flmm import load_grounder
from frozen_nb.limber import Limber
from frozen_nb.pinto import rationale_store, read_prompt
from frozen_nb.world.drawing import draw
from frozen_nb.world.scenes import scene


def changed(tmp_path, name, file, change, place='changed'):
    "A copy of a shipped model in which one file is changed."
    folder = tmp_path/place/name
    shutil.copytree(data_path('zoo', name), folder)
    path = folder/file
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder

def relu(config): config['hidden_act'] = 'relu'
def eps(config): config['rms_norm_eps'] = 1.
def letters(tokenizer): tokenizer['normalizer'] = dict(type='Replace', pattern=dict(String='a'), content='e')

@pytest.mark.parametrize('file, change', [('config.json', relu), ('config.json', eps), ('tokenizer.json', letters)], ids=lambda x: getattr(x, '__name__', x))
def test_a_language_model_with_other_settings_is_another(tmp_path, file, change):
    plain, other = load_lm('llama', device='cpu'), load_lm(changed(tmp_path, 'llama', file, change), device='cpu')
    assert plain.fingerprint == other.fingerprint and plain.settings != other.settings
    assert hash_inputs(plain) != hash_inputs(other)
    stores = [rationale_store(lm, read_prompt('obqa'), 8, tmp_path).path for lm in (plain, other)]
    assert stores[0] != stores[1]
    with pytest.warns(UserWarning, match='configuration, tokenizer or preprocessing'): Limber.load(lm=tmp_path/'changed'/'llama', device='cpu')

def test_what_changes_nothing_is_no_setting(tmp_path):
    def cosmetic(config): config |= dict(transformers_version='9.9', dtype='bfloat16', _name_or_path='some/folder')
    assert load_lm(changed(tmp_path, 'llama', 'config.json', cosmetic), device='cpu').settings == load_lm('llama', device='cpu').settings
    def order(config):
        for key in sorted(config): config[key] = config.pop(key)
    assert folder_settings(changed(tmp_path, 'llama', 'config.json', order, 'ordered')) == folder_settings(data_path('zoo', 'llama'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Limber.load(device='cpu')
        load_grounder(device='cpu')

def test_a_tokenizer_of_its_own_counts(tmp_path):
    other = changed(tmp_path, 'llama', 'tokenizer.json', letters)
    settings = [load_lm('llama', device='cpu', tokenizer=t).settings for t in (None, str(other), 'llama', 'llama')]
    assert len({*settings}) == 3 and settings[2] == settings[3]

def test_an_encoder_with_other_preprocessing(tmp_path):
    def mean(config): config['preprocess_cfg'] |= dict(mean=[0, 0, 0])
    folder = changed(tmp_path, 'clip', 'open_clip_config.json', mean)
    assert load_encoder(folder, device='cpu').settings != load_encoder('clip', device='cpu').settings
    with pytest.warns(UserWarning, match='preprocessing'): Limber.load(encoder=folder, device='cpu')

def test_a_multimodal_model_with_other_settings(tmp_path):
    def layer(config): config['vision_feature_layer'] = 1
    def mean(config): config['image_processor' if 'image_processor' in config else 'image_mean'] = config.get('image_processor', {}) | dict(image_mean=[0, 0, 0])
    for file, change, place in (('config.json', layer, 'a'), ('processor_config.json', mean, 'b')):
        lmm = load_lmm(changed(tmp_path, 'llava', file, change, place), device='cpu')
        assert hash_inputs(lmm) != hash_inputs(load_lmm('llava', device='cpu'))
        with pytest.warns(UserWarning, match='preprocessing'): load_grounder(lmm=lmm, device='cpu')

@pytest.mark.parametrize('dtype', ['bf16', 'fp16'])
def test_shipped_heads_in_half_precision(dtype):
    image = draw(scene(3, 'test', n_animals=1), 64)
    species = scene(3, 'test', n_animals=1).animals[0].species
    assert species in Limber.load(dtype=dtype, device='cpu').caption([image])[0]
    half, whole = (load_grounder(device='cpu', dtype=t).ground(image, ['the animal'])[0].mask for t in (dtype, None))
    assert (half & whole).sum() > .8*(half | whole).sum()

def test_other_weights_are_still_refused():
    with pytest.raises(BadInput, match='made for the lm'): Limber.load(lm='llama-random', dtype='bf16', device='cpu')
    with pytest.raises(BadInput, match='made for the encoder'): Limber.load(encoder='beit', dtype='bf16', device='cpu')
