"""Heads whose configuration is wrong in one place: a field that is missing, of another type, or a number that means nothing.
Each is refused in one line when the head is loaded; none ends in a traceback, and none is used."""
import json, shutil

import pytest

from frozen_nb.core.frozen import BadInput, data_path
from frozen_nb.core.prefix import load_map
from frozen_nb.core.zoo import load_lm
from frozen_nb.generative_adapter import load_generator
from frozen_nb.limber import Limber

GONE = object()

def head(tmp_path, name, field, value, file='config.json'):
    "A copy of a head that ships, changed in one place; a field of a field is named with a dot."
    folder = shutil.copytree(data_path('zoo', name), tmp_path/name, ignore=shutil.ignore_patterns('sha256.json'))
    config = json.loads((folder/file).read_text())
    *outer, last = field.split('.')
    place = config
    for key in outer: place = place[key]
    place.pop(last) if value is GONE else place.update({last: value})
    (folder/file).write_text(json.dumps(config))
    return folder

def refused(call, *words):
    with pytest.raises(BadInput) as error: call()
    assert '\n' not in str(error.value) and all(word in str(error.value) for word in words), str(error.value)

@pytest.mark.parametrize('field, value', [
    ('encoder', GONE), ('encoder', 3), ('encoder', None), ('lm', GONE), ('lm', ['llama']), ('lm_fingerprint', 5), ('encoder_fingerprint', {}), ('k', '16'), ('k', None), ('k', 0), ('k', -3),
    ('k', 2.5), ('prompt', 5), ('prompt', None), ('mean', 'x'), ('std', [1]), ('scale', 'x'), ('dropout', 'x'), ('feature_dropout', 7), ('width_in', 1e9), ('width_out', None), ('out_tokens', True)])
def test_maps(tmp_path, field, value):
    refused(lambda: Limber.load(head(tmp_path, 'limber', field, value)), str(tmp_path), 'config.json')

def test_a_map_without_its_models_is_read_alone(tmp_path):
    "Who has both models at hand does not need their names."
    assert load_map(head(tmp_path, 'limber', 'encoder', GONE)).out_tokens == 1

@pytest.fixture(scope='module')
def llama(): return load_lm('llama')

@pytest.mark.parametrize('field, value', [
    ('chunk', 0), ('chunk', -5), ('chunk', 'x'), ('chunk', 2.5), ('scale', 'x'), ('scale', float('nan')), ('scale', float('inf')), ('floor', 'x'), ('floor', float('nan')), ('width', 0), ('width', 'x'),
    ('rank', -1), ('rank', None), ('rank', 65), ('part', 3), ('part', 'head'), ('norm', 'x'), ('norm', None), ('base', GONE), ('base', 5), ('more', 1)])
def test_generators(tmp_path, llama, field, value):
    refused(lambda: load_generator(head(tmp_path, 'adapter', field, value), llama))

@pytest.mark.parametrize('field, value', [
    ('head', GONE), ('head', []), ('head.channels', '36'), ('head.channels', 0), ('head.kind', 'x'), ('head.kind', 3), ('head.width', -1), ('head.width', None), ('head.upsample', 0), ('head.more', 1), ('refiner', 'x'),
    ('refiner.depth', 'x'), ('refiner.mask', 1), ('refiner.width', GONE), ('selector', 'yes'), ('padded', 1), ('merge', 3), ('merge', 'x'), ('lmm', None), ('lmm', GONE), ('sam', GONE), ('sam', 4), ('lmm_fingerprint', 3)])
def test_mask_heads(tmp_path, field, value):
    from frozen_nb.flmm import load_grounder
    refused(lambda: load_grounder(head(tmp_path, 'flmm', field, value)))

@pytest.mark.parametrize('field, value', [
    ('prompt', GONE), ('prompt', 'x'), ('prompt.line', 3), ('prompt.line', 'no places'), ('prompt.stop', 'END'), ('prompt.stop', [1]), ('prompt.examples', None), ('prompt.more', 1), ('lm', 3), ('lm', GONE), ('lm_name', None),
    ('tokens', '48'), ('tokens', 0), ('tokens', 2.5), ('length', -1), ('length', None), ('fingerprint', GONE), ('fingerprint', 7)])
def test_reasoning_models(tmp_path, field, value):
    from frozen_nb.pinto import load_reasoner
    refused(lambda: load_reasoner(head(tmp_path, 'pinto', field, value, 'pinto.json'), 'cpu'), 'pinto.json')

def test_a_map_that_was_trained_in_another_precision_is_for_the_same_models(tmp_path):
    import torch
    from frozen_nb.core.prefix import save_map
    from frozen_nb.core.zoo import load_encoder, load_lm
    from frozen_nb.limber import new_map
    encoder, features = load_encoder('clip'), torch.zeros(4, 1, 128)
    for trained, used in (('bf16', None), (None, 'bf16'), ('bf16', 'bf16')):
        folder = save_map(new_map(encoder, load_lm('llama', trained), features), tmp_path/f'{trained}-{used}')
        assert load_map(folder, encoder, load_lm('llama', used)).made_for['lm'] == 'llama'
        with pytest.raises(BadInput, match='made for the lm'): load_map(folder, encoder, load_lm('opt', used))
