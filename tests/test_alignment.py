"""Measures of alignment: what moves them, what does not, and what they refuse."""
import numpy as np
import pytest
import torch

from frozen_nb.benchmarks.alignment import (
    alignment_scores, MEASURES, mutual_neighbours, noise_like, pair_cosines, random_words)
from frozen_nb.core.frozen import BadInput

CONTENT = [name for name in MEASURES if name != 'raw cosine']


def pairs(strength, cone, N=60, d=24, seed=0):
    rng = torch.Generator().manual_seed(seed)
    z, W, u = torch.randn(N, 4, generator=rng), torch.randn(4, d, generator=rng), torch.randn(d, generator=rng)
    def side(): return torch.randn(N, d, generator=rng) + strength*(z @ W) + cone*u
    return side(), side()


@pytest.mark.parametrize('name', MEASURES)
def test_order_of_images_is_of_no_matter(name):
    images, texts = pairs(1., 2.)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    scores = MEASURES[name](images, texts)
    assert scores.shape == (60,) and np.allclose(MEASURES[name](images[order], texts[order]), scores[order], atol=1e-8)


@pytest.mark.parametrize('name', CONTENT)
def test_a_cone_that_all_share_is_no_content(name):
    "Averaged over many pairings that mean nothing, a measure is where it is by chance."
    images, texts = pairs(0., 3.)
    chance = {'retrieval rank': .5, 'mutual neighbours': 10/59}.get(name, 0.)
    values = [MEASURES[name](images, texts.roll(i, 0)).mean() for i in range(60)]
    assert abs(np.mean(values) - chance) < .01
    assert MEASURES['raw cosine'](images, texts).mean() > .8


@pytest.mark.parametrize('name', CONTENT)
def test_content_is_seen(name):
    images, texts = pairs(1., 0.)
    own, moved = (MEASURES[name](images, t).mean() for t in (texts, texts.roll(1, 0)))
    assert own > moved + .2


def test_the_raw_cosine_does_not_know_which_text_is_whose():
    images, texts = pairs(1., 1.)
    raw = MEASURES['raw cosine']
    assert raw(images, texts).mean() == pytest.approx(raw(images, texts.roll(7, 0)).mean(), abs=1e-12)


@pytest.mark.parametrize('name', ['centred cosine', 'linear CKA', 'mutual neighbours'])
def test_moving_a_side_as_a_whole_changes_nothing(name):
    images, texts = pairs(1., 0.)
    measure = MEASURES[name]
    assert np.allclose(measure(images + 100, texts - 3), measure(images, texts), atol=1e-4)


@pytest.mark.parametrize('name', ['linear CKA', 'mutual neighbours'])
def test_relations_survive_a_rotation_of_one_side(name):
    images, texts = pairs(1., 0.)
    turn = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(5)))[0]
    measure = MEASURES[name]
    assert np.allclose(measure(images, texts @ turn), measure(images, texts), atol=1e-4)
    assert MEASURES['centred cosine'](images, texts @ turn).mean() < MEASURES['centred cosine'](images, texts).mean()/2


def test_layers_are_measured_one_by_one():
    layers = [pairs(1., 0., seed=s) for s in range(3)]
    images, texts = (torch.stack(x) for x in zip(*layers))
    scores = alignment_scores(images, texts)
    assert list(scores) == list(MEASURES) and all(x.shape == (3, 60) for x in scores.values())
    assert np.array_equal(scores['linear CKA'][1], MEASURES['linear CKA'](*layers[1]))


@pytest.mark.parametrize('images, texts', [
    (torch.randn(8, 4), torch.randn(7, 4)), (torch.randn(8, 4), torch.randn(8, 5)),
    (torch.randn(5, 4), torch.randn(5, 4)), (torch.randn(8), torch.randn(8)),
    (torch.full((8, 4), torch.nan), torch.randn(8, 4))])
def test_states_that_do_not_fit_are_refused(images, texts):
    with pytest.raises(BadInput): pair_cosines(images, texts)


def test_images_that_are_all_equal_are_refused_by_cka():
    with pytest.raises(BadInput, match='differ too little'): MEASURES['linear CKA'](torch.ones(10, 4), torch.ones(10, 4))


def test_as_many_neighbours_as_images_are_refused():
    with pytest.raises(BadInput, match='neighbours'): mutual_neighbours(torch.randn(8, 4), torch.randn(8, 4), k=7)


def test_noise_and_words_are_those_of_their_seed():
    tokens = torch.randn(20, 3, 5)*4 + 2
    assert torch.equal(noise_like(tokens, 1), noise_like(tokens, 1)) and not torch.equal(noise_like(tokens, 1), noise_like(tokens, 2))
    assert noise_like(tokens.half()).dtype == torch.half
    texts = ['a fox', 'two deer rest', '']
    assert random_words(texts, 1) == random_words(texts, 1) and [len(t.split()) for t in random_words(texts)] == [2, 3, 0]
