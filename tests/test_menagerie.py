"The world's promises over random items of the streams: every sentence is true of its scene."
import re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from frozen_nb.core.frozen import BadInput
from frozen_nb.world.clips import ACTIONS, Clip, clip, clip_caption, clip_captions, clip_questions, frames, moments, track
from frozen_nb.world.scenes import Animal, COLOURS, HABITATS, SIZES, SPECIES, SPLITS, Scene, held_out, scene, split_bucket
from frozen_nb.world.calls import Call, RATE, VOICES, call, call_caption, call_captions, call_questions, held_out_call, spectrogram, waveform
from frozen_nb.world.stream import DOCUMENT_KINDS, document
from frozen_nb.world.captions import captions, narrative, questions, referrals, relation
from frozen_nb.world.clouds import cloud, held_out_solid, space, space_questions
from frozen_nb.world.drawing import draw, masks, sprite
from frozen_nb.world.multiple_choice import mcq
from frozen_nb.world.captions import relation

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

does = st.sampled_from([None, *ACTIONS])

@some
@given(index, split, does)
def test_clip_is_a_function_of_its_arguments_and_stays_in_its_split(i, split, action):
    c = clip(i, split, action=action)
    assert c == clip(i, split, action=action) and len(c.scene.animals) == 1 and action in (None, c.action)
    assert held_out(c.animal.species, c.animal.colour, c.scene.habitat) if split == 'unseen' else split_bucket(c.scene) in SPLITS[split] and not held_out(c.animal.species, c.animal.colour, c.scene.habitat)

@some
@given(index, split, does)
def test_frames_show_the_animal_in_its_track_and_nowhere_else(i, split, action):
    c = clip(i, split, action=action)
    film, boxes = np.stack([np.asarray(f) for f in frames(c)]).astype(int), track(c)
    assert film.shape == (8, 64, 64, 3) and boxes.shape == (8, 4) and (0 <= boxes).all() and (boxes <= 1).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    other = 'red' if c.animal.colour != 'red' else 'blue'
    recoloured = Clip(Scene(c.scene.habitat, c.scene.time, (Animal(**{**c.animal.__dict__, 'colour': other}),), c.scene.seed), c.action, c.phase)
    changed = (film != np.stack([np.asarray(f) for f in frames(recoloured)])).any(-1)   # only where the animal is
    ys, xs = (np.mgrid[:64, :64] + .5)/64
    for box, here in zip(boxes, changed):
        assert here.any() and not (here & ((xs < box[0] - .02) | (xs > box[2] + .02) | (ys < box[1] - .02) | (ys > box[3] + .02))).any(), c

@some
@given(index, split)
def test_tracks_tell_the_actions_apart(i, split):
    for action in ACTIONS:
        c = clip(i, split, action=action)
        box = track(c); centre, height = box[:, [0, 2]].mean(1), box[:, 3] - box[:, 1]
        inside = (box[:, 0] > 0).all() and (box[:, 2] < 1).all()
        moved, grown, sign = centre[-1] - centre[0], height[-1]/height[0], 1 if c.animal.facing == 'right' else -1
        if action in ('walk', 'run') and inside: assert abs(moved*sign - dict(walk=.15, run=.40)[action]) < .05, c
        if action in ('come', 'go'): assert grown > 1.4 if action == 'come' else grown < .7, c
        if action in ('jump', 'turn', 'stand', 'lie'): assert abs(moved) < .02 and (grown < .7 if action == 'lie' else abs(grown - 1) < .05), c
        if action == 'jump': assert np.ptp(box[:, 3]) > .05, c
        if action == 'turn': assert {m.facing for m in moments(c)} == {'left', 'right'} and moments(c)[-1].facing == c.animal.facing
        if action == 'stand': assert len({f.tobytes() for f in frames(c)}) == 1

@some
@given(index, split, does)
def test_what_is_said_of_a_clip_is_true(i, split, action):
    c = clip(i, split, action=action)
    for said in [clip_caption(c), *clip_captions(c)]:
        words = said.split()
        assert [w for w in words if w in SPECIES] == [c.animal.species] and [w for w in words if w in COLOURS] == [c.animal.colour] and [w for w in words if w in HABITATS] == [c.scene.habitat], said
        stem = dict(run='run', lie='l').get(c.action, c.action[:3])
        assert any(w.startswith(stem) for w in words) and [w for w in words if w in ('left', 'right')] == ([c.animal.facing] if c.action in ('walk', 'run', 'turn') else []), said
    for q in clip_questions(c):
        if q.kind in ('what', 'colour', 'side', 'action'): assert q.answer == dict(what=c.animal.species, colour=c.animal.colour, side=moments(c)[-1].facing, action=ACTIONS[c.action].split()[0])[q.kind]
        if q.kind == 'yesno': assert (q.answer == 'yes') == (q.question.rstrip('?').split()[-1] == c.action)

@some
@given(index, split)
def test_call_is_a_function_of_its_arguments_and_stays_in_its_split(i, split):
    c = call(i, split)
    assert c == call(i, split) and held_out_call(c.species, c.size, c.times) == (split == 'unseen')
    sound = waveform(c)
    assert sound.dtype == np.float32 and sound.shape == (2*RATE,) and np.abs(sound).max() <= 1 and np.array_equal(sound, waveform(c)) and np.isfinite(spectrogram(sound)).all()
    for said in [call_caption(c), *call_captions(c)]: assert [w for w in said.split() if w in SPECIES] == [c.species] and c.distance in said.split()
    for q in call_questions(c):
        if q.kind in ('what', 'size', 'distance', 'count'): assert q.answer == dict(what=c.species, size=c.size, distance=c.distance, count={1: 'one', 2: 'two', 3: 'three'}[c.times])[q.kind]
        if q.kind == 'yesno': assert (q.answer == 'yes') == (q.question.rstrip('?').split()[-1] == c.species)

def test_splits_share_no_clip_and_no_call():
    films, heard = ({s: {what(i, s) for i in range(1500)} for s in SPLITS} for what in (lambda i, s: clip(i, s).scene, lambda i, s: (lambda c: (c.species, c.size, c.times, c.distance, c.pitch, c.pace))(call(i, s))))
    for made in (films, heard): assert not any(made[a] & made[b] for a in SPLITS for b in SPLITS if a < b)
    combos = {s: {(a.species, a.colour, x.habitat) for x in xs for a in x.animals} for s, xs in films.items()}, {s: {x[:3] for x in xs} for s, xs in heard.items()}
    for made in combos: assert made['unseen'] and not any(made[s] & made['unseen'] for s in SPLITS if s != 'unseen')

def loudness(sound, ms=20): return np.sqrt((sound[:len(sound)//(16*ms)*(16*ms)].reshape(-1, 16*ms)**2).mean(1))

@some
@given(st.sampled_from(sorted(VOICES)), st.sampled_from(['small', 'large']), st.integers(1, 3), st.integers(0, 2**31 - 1))
def test_a_call_has_as_many_cries_as_it_says_and_a_small_animal_is_higher(species, size, times, seed):
    c = Call(species, size, times, 'near', 1., 1., seed)
    loud = loudness(waveform(c)); on = np.convolve(loud > .25*loud.max(), np.ones(3), 'same') > 0                   # a trembling voice is silent for a moment
    starts = (np.diff(np.concatenate([[0], on.astype(int)])) == 1).sum()
    assert starts == times, (c, starts)
    far = waveform(Call(species, size, times, 'far', 1., 1., seed))
    assert far.std() < .6*waveform(c).std()

@pytest.mark.parametrize('ask', [lambda: scene(0, 'nowhere'), lambda: document(0, 'poem'), lambda: mcq(0, 'sat'), lambda: clip(0, 'nowhere'), lambda: clip(0, action='fly'), lambda: call(0, 'nowhere')])
def test_unknown_names_are_refused_with_the_choices(ask):
    with pytest.raises(BadInput, match='choose from'): ask()

@some
@given(index, split)
def test_space_is_a_function_of_its_arguments_and_stays_in_its_split(i, split):
    s = space(i, split)
    assert s == space(i, split) and all(held_out_solid(a.species, a.size, a.turn) == (split == 'unseen') for a in s.solids)
    p = cloud(s, 300)
    assert p.shape == (300, 3) and p.dtype == np.float32 and np.isfinite(p).all() and np.array_equal(p, cloud(s, 300))
    names = [a.species for a in s.solids]
    for q in space_questions(s):
        last = q.question.rstrip('?').split()[-1]
        if q.kind == 'count': assert q.answer == ('one', 'two', 'three')[len(names) - 1]
        if q.kind == 'what': assert [q.answer] == names
        if q.kind == 'size': assert (q.question.split()[2], q.answer) in {(a.species, a.size) for a in s.solids}
        if q.kind == 'yesno': assert (q.answer == 'yes') == (last in names)
        if q.kind == 'where': assert q.answer == (min if last == 'left' else max)(s.solids, key=lambda a: a.x).species
        if q.kind == 'property': assert q.answer == SPECIES[names[0]].food

def test_animals_in_space_do_not_stand_in_each_other():
    for i in range(60):
        s = space(i, n_solids=3)
        for a, b in zip(s.solids, s.solids[1:]): assert b.x - a.x > .9

def test_a_turned_animal_is_the_same_animal():
    s = space(7, n_solids=1)
    from dataclasses import replace
    flat = lambda turn: cloud(replace(s, solids=(replace(s.solids[0], turn=turn),)), 500, noise=0.)
    a, b = flat(0), flat(137)
    gaps = lambda p: np.linalg.norm(p[:, None] - p[None], axis=-1)
    assert np.allclose(gaps(a), gaps(b), atol=1e-4) and np.allclose(a[:, 1], b[:, 1], atol=1e-6)
