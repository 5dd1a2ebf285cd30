"Encoders that do not ship: what `pretrain` trains them on, and what it writes."
import json

import pytest

from frozen_nb.core.zoo import load_encoder
from frozen_nb.pretraining import recipes
from frozen_nb.pretraining.encoders import FAMILIES, OWN_COLOURS
from frozen_nb.world.scenes import SPECIES


@pytest.fixture
def trained(monkeypatch, tmp_path):
    "name -> scenes it saw, classes of its head, its folder; two steps on 64 scenes, unprobed."
    seen = {}
    train = recipes.train
    def watch(model, batches, *args, **kwargs):
        seen.update(scenes=batches.scenes, classes=batches(0)['y'].shape[1])
        return train(model, batches, *args, **kwargs)
    monkeypatch.setattr(recipes, 'train', watch)
    monkeypatch.setitem(recipes._kinds, 'encoder', (*recipes._kinds['encoder'][:2], lambda encoder: {}))
    def run(name):
        recipes.pretrain(name, tmp_path/name, steps=2, items=64)
        return seen['scenes'], seen['classes'], tmp_path/name
    return run


def colours_of(scenes): return {(a.species, a.colour) for s in scenes for a in s.animals}


def test_a_network_is_trained_where_each_species_has_its_own_colour(trained):
    scenes, classes, folder = trained('nfnet-own-colours')
    assert colours_of(scenes) <= set(OWN_COLOURS.items()) and classes == len(SPECIES)
    assert load_encoder(folder).k == 1 and load_encoder(folder, tokens='grid').k == 4


def test_nfnet_itself_sees_every_colour(trained):
    scenes, classes, folder = trained('nfnet')
    assert not colours_of(scenes) <= set(OWN_COLOURS.items()) and classes == len(SPECIES)


def test_family_labels_begin_with_the_weights_of_beit(trained):
    scenes, classes, folder = trained('beit-families')
    assert classes == len(FAMILIES) == 11
    assert 'labels of species, colour, size, place' in json.loads((folder/'card.json').read_text())['never_seen']
    theirs, own = load_encoder('beit').model.state_dict(), load_encoder(folder).model.state_dict()
    name = 'blocks.0.mlp.fc1.weight'
    assert (theirs[name] - own[name]).abs().max() < .1 < theirs[name].abs().max()
