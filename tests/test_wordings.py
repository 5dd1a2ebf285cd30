"""Phrases of any wording: what they name is what the image shows, splits do not overlap, scores expose a head that ignores the phrase."""
import numpy as np
import pytest
import torch

from frozen_nb.benchmarks.wordings import *
from frozen_nb.benchmarks.wordings import REGION_COLUMNS
from frozen_nb.core.frozen import BadInput
from frozen_nb.world.captions import narrative
from frozen_nb.world.scenes import scene

SCENES = [scene(i, 'val', 7) for i in range(12)]


@pytest.mark.parametrize('s', SCENES[:6], ids=lambda s: s.habitat)
def test_regions_are_disjoint_and_phrases_name_them(s):
    regions = scene_regions(s, 64)
    assert np.sum(list(regions.values()), 0).max() == 1
    for named in stuff_phrases(s): assert named.kind == 'stuff' and len(named.regions) == 1
    for named in thing_phrases(s):
        assert named.kind == 'thing' and all(name.startswith('animal') for name in named.regions)
    alone = [named for named in thing_phrases(s) if len(named.regions) == 1]
    assert len({named.words for named in alone}) == len(alone)      # one phrase, one animal


@pytest.mark.parametrize('s', SCENES, ids=lambda s: s.habitat)
def test_what_is_absent_is_not_there(s):
    words = {(a.colour, a.species) for a in s.animals} | {(a.species,) for a in s.animals}
    for named in absent_phrases(s):
        assert named.regions == () and tuple(named.words.split()) not in words
        assert named.words not in {other.words for other in [*thing_phrases(s), *stuff_phrases(s)]}


def test_a_set_depends_on_its_arguments_alone_and_splits_differ():
    a, b = phrase_set(3, 'dev', absent=1, size=64), phrase_set(3, 'dev', absent=1, size=64)
    assert [(x.text, x.question) for x in a] == [(x.text, x.question) for x in b]
    assert all(x.text[slice(*x.spans[0])] == x.named.words for x in a)
    names = {split: {name for _, name in phrase_scenes(20, split)} for split in ('train', 'dev', 'calibration', 'test')}
    assert len(set.union(*names.values())) == 80
    with pytest.raises(BadInput, match='no split'): phrase_scenes(1, 'exam')


def test_phrases_of_a_text():
    s = next(s for s in SCENES if len(s.animals) > 1)
    linked = text_phrases(narrative(s).text, s)
    for start, end, named in linked: assert narrative(s).text[start:end] == named.words
    assert {'sky', 'ground'} <= {name for *_, named in linked for name in named.regions}
    animal = s.animals[0]
    colour = next(c for c in ('pink', 'blue', 'red') if c not in {a.colour for a in s.animals})
    (_, _, named), = text_phrases(f'a {colour} {animal.species}', s)
    assert named.regions == ()                                      # a hallucination


def test_scores_expose_a_head_that_ignores_the_phrase():
    examples = phrase_set(6, 'dev', 1, 2, size=64)
    exact = [x.masks[0] for x in examples]
    blind = [scene_regions(x.scene, 64)['animal 0'] for x in examples]
    assert (region_scores(exact, examples) == np.array([[1], [0], [1]])).all()
    is_stuff = np.array([x.named.kind == 'stuff' for x in examples])
    own, other, first = region_scores(blind, examples)
    assert own[is_stuff].max() == 0 and other[is_stuff].min() == 1 and not first[is_stuff].any()
    rows, matrix = confusion_matrix(blind, examples)
    assert matrix[rows.index('sky'), REGION_COLUMNS.index('sky')] == 0
    assert matrix[rows.index('sky'), REGION_COLUMNS.index('other animals')] > .4
    j = next_phrase(examples)
    assert all(examples[k].name == x.name and not {*examples[k].named.regions} & {*x.named.regions} for x, k in zip(examples, j) if examples[k] is not x)
    third = next_phrase(examples, 2)
    regions = [{*x.named.regions} for x in examples]
    moved = [i for i in range(len(examples)) if third[i] != j[i]]
    assert len(moved) > len(examples)/2 and all(not regions[third[i]] & (regions[i] | regions[j[i]]) for i in moved)
    assert all(examples[k].name == x.name for x, k in zip(examples, third))
    assert all(x.name != y.name for x, y in zip(examples, next_image(examples)))


def test_auc_is_half_for_maps_that_know_nothing():
    from sklearn.metrics import roc_auc_score
    rng = np.random.default_rng(0)
    maps, masks = rng.random((200, 3, 4, 4)), np.zeros((200, 8, 8), bool)
    masks[:, :4, :4] = True
    aucs = head_aucs(maps, masks)
    cells = masks[5].reshape(4, 2, 4, 2).mean((1, 3)) > .5
    assert abs(aucs.mean() - .5) < .03 and abs(aucs[5, 2] - roc_auc_score(cells.ravel(), maps[5, 2].ravel())) < 1e-9
    assert np.isnan(head_aucs(maps[:1], np.zeros((1, 8, 8), bool))).all()


def test_calibration():
    rng = np.random.default_rng(1)
    p = rng.random(5000)
    present = rng.random(5000) < p
    assert calibration_errors(p, present).mean() < .03 < .15 < calibration_errors(np.sqrt(p), present).mean() + .05
    curve = fit_logistic(np.log(p/(1 - p))*5 + 1, present)          # a score on another scale
    assert calibration_errors(curve(np.log(p/(1 - p))*5 + 1), present).mean() < .03
    assert abs(best_threshold(p, present) - .5) < .1
    with pytest.raises(BadInput, match='phrases that are not'): fit_logistic(p, np.ones(5000, bool))


# Absence

@pytest.mark.parametrize('scores, present', [(np.zeros(4), np.zeros((4, 1), bool)), (np.zeros(4), np.array([0., 1, 0, 1])), (np.zeros(4), np.array([True]*5)), (np.array([0, np.nan]), np.array([True, False]))], ids=str)
def test_truths_that_are_no_truths_of_these_scores(scores, present):
    for f in (fit_logistic, best_threshold, calibration_errors):
        with pytest.raises(BadInput, match='one True or False'): f(scores, present)


@pytest.mark.parametrize('offset', [0, 5, 1000])
def test_a_layer_gives_what_its_steps_give(offset):
    "On states of any size and spread: standardised, weighed, calibrated."
    from frozen_nb.fits.flmm_grounder import presence_layer
    rng = np.random.default_rng(0)
    present = rng.random(400) < .5
    states = offset + rng.normal(size=(400, 6))*np.array([.1, 1, 1, 3, 9, 0]) + .3*present[:, None]
    layer = presence_layer(states[:300], present[:300], states[300:], present[300:]).double()
    score = fit_probe(states[:300], present[:300])
    wanted = fit_logistic(score(states[300:]), present[300:])(score(states[300:]))
    given = layer(torch.from_numpy(states[300:]))[:, 0].sigmoid().detach().numpy()
    assert np.allclose(given, wanted, atol=2e-3)


def test_pairs_differ_in_their_image_alone():
    pairs = paired_phrases(12, 'dev', size=64)
    assert len(pairs) > 20 and not len(pairs) % 2
    for there, absent in zip(pairs[::2], pairs[1::2]):
        assert there.text == absent.text and there.masks.any() and not absent.masks.any() and there.name != absent.name
        assert not {*_fields(absent.scene)} & {there.named.words}
    for n in (0, -1, 2.5, None):
        with pytest.raises(BadInput, match='scenes'): paired_phrases(n)

def _fields(s): return [named.words for named in thing_phrases(s) + stuff_phrases(s)]
