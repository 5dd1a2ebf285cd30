"The world's promises over random items of the streams: every sentence is true of its scene."
import re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from frozen_nb.frozen import BadInput
from frozen_nb.menagerie import *
from frozen_nb.menagerie import relation

index, animals = st.integers(0, 2**40), st.sampled_from([None, 1, 2, 3])
split = st.sampled_from(['text', 'train', 'val', 'test', 'unseen'])
some = settings(max_examples=60, deadline=None)

@some
@given(index, split, animals)
def test_scene_is_a_function_of_its_arguments(i, split, n):
    s = scene(i, split, n_animals=n)
    assert s == scene(i, split, n_animals=n)
    assert n is None or len(s.animals) == n
    held = [held_out(a.species, a.colour, s.habitat) for a in s.animals]
    if split == 'unseen': assert all(held)
    else: assert not any(held) and split_bucket(s) in SPLITS[split]

@some
@given(index, split, animals)
def test_masks_are_disjoint_and_cover(i, split, n):
    s = scene(i, split, n_animals=n)
    m = masks(s, 64)
    layers = np.stack([*m.animals, *m.stuff.values()])
    assert len(m.animals) == len(s.animals) and (layers.sum(0) == 1).all()
    assert draw(s, 64).size == (64, 64)

@some
@given(index, split, animals, st.sampled_from([32, 64]))
def test_the_visible_part_of_an_animal_lies_inside_its_sprite(i, split, n, size):
    "And all of it that no nearer animal covers is seen."
    s, k = scene(i, split, n_animals=n), 4
    shapes = np.zeros((len(s.animals), size*k, size*k), bool)
    for a, shape, gait in zip(s.animals, shapes, [(s.seed + j) % 3 - 1. for j in range(3)]):
        drawn = sprite(a.species, a.size, a.facing, size*k, gait)
        canvas = Image.new('L', (size*k, size*k))
        canvas.paste(drawn, (round(a.x*size*k - drawn.width/2), round(a.y*size*k) - drawn.height + 2))
        shape[:] = np.asarray(canvas) > 0
    share = shapes.reshape(len(shapes), size, k, size, k).mean((2, 4))  # of each pixel
    for j, seen in enumerate(masks(s, size).animals):
        assert (share[j][seen] > 0).all() and seen[(share[j] == 1) & (share[j+1:] == 0).all(0)].all() and not (seen & (share[j+1:] == 1).any(0)).any()
        assert seen.sum() > .2*share[j].sum()

@some
@given(index, split, animals)
def test_captions_are_true(i, split, n):
    s = scene(i, split, n_animals=n)
    for c in captions(s):
        words = re.findall(r'\w+', c)
        for kind, values in dict(species=SPECIES, colour=COLOURS, size=SIZES).items():
            said = sorted(w for w in words if w in values)
            assert said == sorted(getattr(a, kind) for a in s.animals), c
        assert [w for w in words if w in HABITATS] == [s.habitat]
        if m := re.search(r'(left|right) of', c):
            first, second = sorted(s.animals, key=lambda a: c.index(f'{a.colour} {a.species}'))
            assert relation(first, second) == m[0], c

@some
@given(index, split, animals, st.sampled_from(['any', 'plain', 'long']))
def test_referrals_fit_exactly_one_animal(i, split, n, flavour):
    s = scene(i, split, n_animals=n)
    for r in referrals(s, flavour):
        words = set(re.findall(r'\w+', r.text.split(',')[0]))
        side = re.search(r'on the (left|right)|in the (middle)', r.text)
        facing = re.search(r'facing (left|right)', r.text)
        def fits(a):
            told = [a.species if w in SPECIES else a.colour if w in COLOURS else a.size if w in SIZES else w for w in words]
            return set(told) == words and (not side or a.position in side[0]) and (not facing or a.facing == facing[1])
        assert [k for k, a in enumerate(s.animals) if fits(a)] == [r.target], r
        if flavour == 'plain': assert not side

@some
@given(index, split, animals)
def test_narratives_link_to_what_they_name(i, split, n):
    s = scene(i, split, n_animals=n)
    for start, end, targets in narrative(s).links:
        words = narrative(s).text[start:end]
        for t in targets:
            if isinstance(t, int) and len(targets) == 1: assert s.animals[t].species in words and s.animals[t].colour in words

@some
@given(index, split, animals)
def test_answers_follow_from_the_scene(i, split, n):
    s = scene(i, split, n_animals=n)
    for q in questions(s):
        if q.kind == 'count': assert q.answer == {1: 'one', 2: 'two', 3: 'three'}[len(s.animals)]
        if q.kind == 'what': assert q.answer in {a.species for a in s.animals}
        if q.kind == 'place': assert q.answer in (s.habitat, s.time)
        if q.kind == 'colour': assert q.answer in {a.colour for a in s.animals}
        if q.question.startswith('is there'): assert (q.answer == 'yes') == (q.question.rstrip('?').split()[-1] in {a.species for a in s.animals})

@some
@given(index, st.sampled_from(DOCUMENT_KINDS), st.booleans())
def test_documents_repeat_and_stay_short(i, kind, shifted):
    d = document(i, kind, shifted=shifted)
    assert d == document(i, kind, shifted=shifted) and d.kind == kind and 10 < len(d.text) < 6000

@pytest.mark.parametrize('call', [lambda: scene(0, 'nowhere'), lambda: document(0, 'poem'), lambda: mcq(0, 'sat')])
def test_unknown_names_are_refused_with_the_choices(call):
    with pytest.raises(BadInput, match='choose from'): call()
