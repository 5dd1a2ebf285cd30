"Every sentence of the menagerie, read by a reader of its own and compared with the scene it is about."
import os, random
from collections import Counter
from dataclasses import replace

import pytest

from frozen_nb.world.scenes import Animal, LOOKALIKES, SPECIES, SPLITS, Scene, TRAITS, scene
from frozen_nb.world.multiple_choice import MCQ, MCQ_SETS, mcq
from frozen_nb.world.captions import Question, Referral, caption, captions, narrative, questions, referrals
from frozen_nb.world.drawing import masks
from scene_reader import *

FLAVOURS = 'any', 'plain', 'long'

def scenes(n):
    "From every split, with 1, 2, 3 and the usual number of animals."
    for i in range(n): yield i, scene(i, tuple(SPLITS)[i % 5], n_animals=(None, 1, 2, 3)[i//5 % 4])

N = 20_000 if os.environ.get('FROZEN_NB_CAMPAIGNS') == 'full' else 5_000

def test_all_sentences_of_many_scenes_are_true():
    count = Counter()
    for i, s in scenes(N):
        read_scene(s)
        rng = random.Random(i)
        told = [(text, True) for text in captions(s)] + [(caption(s, rng, full=full), full) for full in (True, False, False, False)]
        for text, full in told: read_caption(s, text, full)
        for flavour in FLAVOURS:
            found = referrals(s, flavour)
            read_referrals(s, found, flavour)
            count[f'referrals, {flavour}'] += len(found)
        asked = questions(s)
        read_questions(s, asked)
        count.update(f'questions, {q.kind}' for q in asked)
        n = narrative(s)
        read_narrative(s, n)
        count.update({'scenes': 1, 'captions': len(told), 'narratives': 1, 'links': len(n.links), f'scenes with {len(s.animals)}': 1})
    print(dict(count))
    assert count['captions'] == 9*N and count['referrals, plain'] == sum(n*count[f'scenes with {n}'] for n in (1, 2, 3)) > 1.75*N

def test_answers_of_multiple_choice_are_the_only_right_ones():
    for dataset in MCQ_SETS:
        for shifted in (False, True):
            for i in range(500): read_mcq(mcq(i, dataset, shifted=shifted), shifted)

def test_the_table_of_species_does_not_contradict_itself():
    for s in SPECIES.values():
        assert MEALS[s.food] in s.traits and not {'lives in a herd', 'lives alone'} <= s.traits and s.traits <= {*TRAITS}
        assert ('lays eggs' in s.traits) != ('gives milk' in s.traits) and ('a beak' in s.traits) == ('feathers' in s.traits)
    for child, parent in LOOKALIKES: assert SPECIES[child].traits != SPECIES[parent].traits

def test_narratives_name_only_what_the_picture_shows():
    for i, s in scenes(60):
        seen, named = masks(s), {t for *_, targets in narrative(s).links for t in targets}
        assert named == {*range(len(s.animals))} | {stuff for stuff, m in seen.stuff.items() if m.any()} and seen.animals.any((1, 2)).all()

# A reader that takes everything would find everything true

DOG = Animal('dog', 'red', 'small', 'left', 'left', .25, .9)
CAT = Animal('lion', 'brown', 'large', 'right', 'right', .65, .78)
PAIR, TWINS = Scene('snow', 'night', (CAT, DOG), 0), Scene('snow', 'night', (replace(CAT, species='dog'), DOG), 0)
ALONE = Scene('beach', 'day', (DOG,), 0)

@pytest.mark.parametrize('s, text', [
    (PAIR, 'a small red dog right of a large brown lion in the snow'), (PAIR, 'a large red dog left of a large brown lion in the snow'),
    (PAIR, 'a small red dog and a large brown tiger in the snow'), (PAIR, 'a small red dog and a large brown lion on the beach'),
    (PAIR, 'a small red dog and a large brown lion in the snow by day'), (PAIR, 'a small red dog in the snow'), (PAIR, 'a small red dog left of a large brown lion'),
    (PAIR, 'a small red dog and an large brown lion in the snow'), (PAIR, 'a small red dog and a large brown lion in the snow today'),
    (PAIR, 'a small red dog, a large brown lion in the snow'), (PAIR, 'a small red dog and a large brown lion facing left in the snow'),
    (ALONE, 'a small red dog facing right on the beach'), (ALONE, 'a small red dog on the right on the beach'), (ALONE, 'a small red dog on the beach on the beach'),
    (ALONE, 'a small red dog  on the beach'), (ALONE, 'a small red dog on the left on the beach at night'), (ALONE, 'a red small dog on the beach'), (ALONE, '')])
def test_false_captions_are_found(s, text):
    with pytest.raises(Untrue): read_caption(s, text, True)

@pytest.mark.parametrize('s, text, target, flavour', [
    (PAIR, 'the dog', 0, 'any'), (TWINS, 'the dog', 1, 'any'), (PAIR, 'the dog on the left', 1, 'plain'), (PAIR, 'the dog facing left', 1, 'plain'), (PAIR, 'the animal', 1, 'any'),
    (PAIR, 'the small red dog facing left, on the beach', 1, 'long'), (PAIR, 'the small red dog facing left', 1, 'long'), (PAIR, 'the small red dog, in the snow', 1, 'long'),
    (PAIR, 'the lion on the left', 0, 'any'), (PAIR, 'the big dog', 1, 'any'), (PAIR, 'the dog in the snow', 1, 'any'), (PAIR, 'the dog', 1, 'long')])
def test_false_and_ambiguous_referrals_are_found(s, text, target, flavour):
    with pytest.raises(Untrue): read_referral(s, Referral(text, target, flavour), flavour)

@pytest.mark.parametrize('s, kind, question, answer', [
    (TWINS, 'colour', 'what colour is the dog?', 'red'), (TWINS, 'position', 'where in the picture is the dog?', 'left'), (PAIR, 'what', 'what animal is this?', 'dog'),
    (PAIR, 'colour', 'what colour is the dog?', 'brown'), (PAIR, 'colour', 'what colour is the tiger?', 'brown'), (PAIR, 'position', 'where in the picture is the lion?', 'left'),
    (PAIR, 'yesno', 'is the dog on the left brown?', 'yes'), (PAIR, 'yesno', 'is there a tiger?', 'yes'), (PAIR, 'yesno', 'is there a dog?', 'no'), (PAIR, 'count', 'how many animals are there?', 'three'),
    (PAIR, 'place', 'where is this?', 'forest'), (PAIR, 'place', 'is it day or night?', 'day'), (PAIR, 'property', 'what does the dog eat?', 'grass'), (PAIR, 'property', 'does the dog have stripes?', 'yes'),
    (PAIR, 'property', 'does the lion have a mane?', 'no'), (PAIR, 'property', 'is the lion dangerous?', 'no'), (PAIR, 'property', 'does the dog eat meat?', 'no'), (PAIR, 'property', 'does the dog eat stones?', 'no'),
    (PAIR, 'what', 'what animal is on the left?', 'lion'), (PAIR, 'what', 'what animal is in the middle?', 'lion'), (PAIR, 'colour', 'where is this?', 'snow'), (PAIR, 'place', 'where is this ?!', 'snow')])
def test_false_answers_and_ambiguous_questions_are_found(s, kind, question, answer):
    with pytest.raises(Untrue): read_questions(s, [*questions(s), Question(kind, question, answer)])

@pytest.mark.parametrize('old, new', [('small', 'large'), (' and ', ', '), ('see a', 'see  a'), ('dark', 'blue'), ('white snow', 'sand'), ('two', 'three'), ('animals are in the snow', 'animals are in the forest'), ('red dog', 'brown lion')])
def test_false_narratives_are_found(old, new):
    n = next(n for s in (replace(PAIR, seed=i) for i in range(99)) if 'animals are' in (n := narrative(s)).text)
    read_narrative(PAIR, n)
    assert old in n.text
    with pytest.raises(Untrue): read_narrative(PAIR, replace(n, text=n.text.replace(old, new, 1)))

def test_shifted_links_are_found():
    n = narrative(PAIR)
    for k, (start, end, targets) in enumerate(n.links):
        for wrong in ((start + 1, end, targets), (start, end - 1, targets), (start, end, (9,))):
            with pytest.raises(Untrue): read_narrative(PAIR, replace(n, links=(*n.links[:k], wrong, *n.links[k+1:])))

MANE = MCQ('which animal has a mane?', ('lion', 'dog', 'cow', 'pig', 'bear'), 0, ('A lion has a mane.', 'The dog has no mane.', 'A cow does not have a mane.', 'The pig has no mane.', 'The bear has no mane.'), 'csqa')
RACE = MCQ('could a cow win a race?', ('yes', 'no'), 1, ('To win a race, an animal needs this: it runs fast. The cow does not run fast.',)*2, 'strategy')

def lie(m, old, new): return replace(m, question=m.question.replace(old, new), choices=tuple(c.replace(old, new) for c in m.choices), rationales=tuple(w.replace(old, new) for w in m.rationales))

@pytest.mark.parametrize('m', [replace(MANE, answer=1), replace(MANE, rationales=MANE.rationales[::-1]), lie(MANE, 'has no', 'has a'), lie(MANE, 'lion', 'dog'), lie(MANE, 'dog', 'horse'), lie(MANE, 'mane', 'trunk'),
                               lie(MANE, 'The dog has no mane', 'The dog has no trunk'), lie(MANE, 'A lion has a mane.', ''), lie(MANE, 'animal has', 'animal had'), replace(MANE, choices=MANE.choices[:4]),
                               replace(RACE, answer=0), lie(RACE, 'does not run', 'runs'), lie(RACE, 'cow', 'horse'), lie(RACE, 'win', 'lose'), lie(RACE, 'fast. ', 'slow. '), replace(RACE, choices=('no', 'yes'), answer=0)])
def test_wrong_multiple_choice_is_found(m):
    read_mcq(MANE, False); read_mcq(RACE, False)
    with pytest.raises((Untrue, KeyError)): read_mcq(m, False)
