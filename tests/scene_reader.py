"""A reader of the menagerie's sentences that shares nothing with their writer but the tables of the world: it takes every word of a sentence
or stops, and compares all that the sentence says with the fields of the scene. Every function raises `Untrue` for what is false or ambiguous."""
import re

from frozen_nb.world.scenes import COLOURS, SPECIES, VISIBLE
from frozen_nb.world.multiple_choice import NEEDS

PLACES = {'in the savanna': 'savanna', 'in the forest': 'forest', 'in the desert': 'desert', 'in the snow': 'snow', 'in the meadow': 'meadow',
          'on the beach': 'beach', 'in the mountains': 'mountains', 'by the lake': 'lake'}
SIDES = {'on the left': 'left', 'in the middle': 'middle', 'on the right': 'right'}
GROUNDS = {'dry grass': 'savanna', 'forest floor': 'forest', 'sand': 'desert beach', 'white snow': 'snow', 'green grass': 'meadow', 'rocks': 'mountains', 'shore': 'lake'}
NUMBERS = {'one': 1, 'two': 2, 'three': 3}
TIMES = {'at night': 'night', 'by day': 'day'}
SIZES, WAYS = ('small', 'large'), ('left', 'right')
DOES = {'eat meat': 'eats meat', 'eat plants': 'eats plants', 'live in a herd': 'lives in a herd', 'live alone': 'lives alone', 'swim well': 'swims well',
        'climb trees': 'climbs trees', 'run fast': 'runs fast', 'lay eggs': 'lays eggs', 'give milk': 'gives milk', 'sleep all winter': 'sleeps all winter',
        'live in Africa': 'lives in Africa', 'carry people': 'carries people', 'dig holes': 'digs holes'}
IS = {'awake at night': 'is awake at night', 'kept by people': 'is kept by people', 'dangerous': 'is dangerous', 'heavy': 'is heavy'}
HAVE = {t: t for t in VISIBLE}
CHOICES = dict(csqa=5, strategy=2, obqa=4, qasc=8)
MEALS = dict(meat='eats meat', mice='eats meat', fish='eats meat', grass='eats plants', hay='eats plants', leaves='eats plants', roots='eats plants', seeds='eats plants')

class Untrue(AssertionError):
    "What is written is not so."

def check(so, *words):
    if not so: raise Untrue(' | '.join(map(str, words)))

class Text:
    "The words and signs of a text, taken from left to right."
    def __init__(self, text, tidy=True):
        self.text, found = text, list(re.finditer(r"\w+|[^\w\s]", text))
        self.words, self.spans, self.at = [m[0] for m in found], [m.span() for m in found], 0
        check(not tidy or text == ' '.join(text.split()), 'spaces', repr(text))

    def next(self, n=1): return ' '.join(self.words[self.at:self.at + n])

    def take(self, options, n=1):
        "The next `n` words if they are one of `options`, else None."
        found = self.next(n)
        if found not in options or not found: return None
        self.at += n
        return found

    def need(self, words):
        for w in words.split(): check(self.take((w,)), 'expected', w, 'at', self.next(4), 'in', self.text)

    def rest(self, options, stop):
        "What is left up to the sign `stop`, which ends the text: one of `options`."
        found = ' '.join(self.words[self.at:-1])
        check(found in options and self.words[-1] == stop, 'not understood', found, self.text)
        self.at = len(self.words)
        return options[found]

    def end(self): check(self.at == len(self.words), 'not understood', self.next(99), self.text)

def noun(t, article):
    "Article, size, colour and species (or 'animal'): what they say, as fields of an `Animal`."
    if article == 'a':
        given = t.take(('a', 'an'))
        check(given == ('an' if t.next()[:1] in tuple('aeiou') else 'a'), 'article', given, t.next(), t.text)
    else: t.need(article)
    said = dict(size=t.take(SIZES), colour=t.take(COLOURS), species=t.take(SPECIES))
    if article == 'a' or not t.take(('animal',)): check(said['species'], 'no animal', t.next(4), t.text)
    else: check(not said['species'], 'two nouns', t.text)
    return {k: v for k, v in said.items() if v}

def fitting(scene, said): return [i for i, a in enumerate(scene.animals) if all(getattr(a, k) == v for k, v in said.items())]

def side(t):
    found = t.take(SIDES, 3)
    return {'position': SIDES[found]} if found else {}

def facing(t): return {'facing': t.take(WAYS) or check(False, 'facing', t.text)} if t.take(('facing',)) else {}

def read_scene(scene):
    "The fields agree with each other: sides with places, and no two animals that no words could tell apart."
    for a in scene.animals: check(a.position == ('left' if a.x < .4 else 'middle' if a.x < .6 else 'right'), a)
    check(len({a.position for a in scene.animals}) == len({(a.species, a.colour) for a in scene.animals}) == len(scene.animals), scene)
    check([a.y for a in scene.animals] == sorted(a.y for a in scene.animals), scene)

def read_caption(scene, text, full):
    "Every animal once, in their order in the picture; with one animal, also where it is and looks."
    t = Text(text, tidy=full) # two spaces stand in some of the captions without a place
    named, way, listed = [noun(t, 'a')], t.take(WAYS), False
    if way: t.need('of'); named.append(noun(t, 'a'))
    else:
        while t.take((',',)): named.append(noun(t, 'a')); listed = True
        if t.take(('and',)): named.append(noun(t, 'a')); listed = False
    check(not listed and len(named) == len(scene.animals), 'number', text)
    said = {}
    while t.at < len(t.words):
        found = {}
        if place := t.take(PLACES, 3): found = {'habitat': PLACES[place]}
        elif time := t.take(TIMES, 2): found = {'time': TIMES[time]}
        elif len(named) == 1: found = side(t) or facing(t) or ({'standing': True} if t.take(('standing',)) else {})
        check(found and not found.keys() & said.keys(), 'not understood', t.next(99), text)
        said |= found
    check(said.pop('habitat', scene.habitat) == scene.habitat and said.pop('time', scene.time) == scene.time, text, scene)
    said.pop('standing', None)
    if full: check(all(n.keys() == {'size', 'colour', 'species'} for n in named) and any(p in text for p in PLACES), 'not full', text)
    named[0] |= said
    across = sorted(scene.animals, key=lambda a: a.x)
    orders = dict(left=[across], right=[across[::-1]]).get(way, [across, across[::-1]])
    check(any(all(getattr(a, k) == v for a, n in zip(order, named) for k, v in n.items()) for order in orders), text, scene)

def read_referral(scene, r, flavour):
    "It fits its target and nothing else; the plain flavour has no word about a place, the long one names the habitat."
    t = Text(r.text)
    said = noun(t, 'the') | facing(t) | side(t)
    if flavour == 'long':
        t.need(',')
        place = t.take(PLACES, 3)
        check(place and PLACES[place] == scene.habitat and {'size', 'colour', 'species'} < said.keys(), r, scene)
    t.end()
    check(said and r.flavour == flavour and fitting(scene, said) == [r.target], r, scene)
    if flavour == 'plain': check(said.keys() <= {'size', 'colour', 'species'}, 'a place', r)

def read_referrals(scene, referrals, flavour):
    "One for each animal: species and colour tell any two apart."
    for r in referrals: read_referral(scene, r, flavour)
    check([r.target for r in referrals] == [*range(len(scene.animals))], referrals)

def answers(scene, question):
    "Kind of a question, and the set of its answers over all animals that it may be about."
    t = Text(question)
    about = lambda said, answer: {answer(scene.animals[i]) for i in fitting(scene, said)}
    def asked(kind, said, answer): t.need('?'); t.end(); return kind, about(said, answer)
    yes = lambda so: 'yes' if so else 'no'
    if t.take(('how many animals are there',), 5): return asked('count', {}, lambda a: next(w for w, n in NUMBERS.items() if n == len(scene.animals)))
    if t.take(('where is this',), 3): return asked('place', {}, lambda a: scene.habitat)
    if t.take(('where in the picture is',), 5): return asked('position', noun(t, 'the'), lambda a: a.position)
    if t.take(('is it day or night',), 5): return asked('place', {}, lambda a: scene.time)
    if t.take(('what animal is',), 3):
        where = {} if t.take(('this',)) else side(t) or check(False, 'which', question)
        return asked('what', where, lambda a: a.species)
    if t.take(('what colour is',), 3): return asked('colour', noun(t, 'the') | side(t), lambda a: a.colour)
    if t.take(('what does',), 2):
        said = noun(t, 'the'); t.need('eat')
        return asked('property', said, lambda a: SPECIES[a.species].food)
    if t.take(('is there',), 2):
        said = noun(t, 'a'); t.need('?'); t.end()
        return 'yesno', {yes(fitting(scene, said))}
    if t.take(('does',)):
        said = noun(t, 'the')
        trait = t.rest(HAVE if t.take(('have',)) else DOES, '?')
        return 'property', about(said, lambda a: yes(trait in SPECIES[a.species].traits))
    t.need('is')
    said = noun(t, 'the')
    if where := side(t):
        colour = t.take(COLOURS)
        return asked('yesno', said | where, lambda a: yes(a.colour == colour))
    trait = t.rest(IS, '?')
    return 'property', about(said, lambda a: yes(trait in SPECIES[a.species].traits))

def read_questions(scene, questions):
    "Each has one answer in this scene, the stated one; every kind is asked."
    for q in questions:
        kind, found = answers(scene, q.question)
        check(len(found) == 1, 'ambiguous' if found else 'about nothing', q, scene)
        check(found == {q.answer} and kind == q.kind, found, q, scene)
    check({q.kind for q in questions} == {'what', 'colour', 'count', 'place', 'position', 'yesno', 'property'}, questions)

def read_narrative(scene, n):
    "All animals from left to right, ground, water and sky, and the links that these phrases must have."
    t, links = Text(n.text), []
    def linked(read, targets):
        start, found = t.spans[t.at][0], read()
        links.append((start, t.spans[t.at - 1][1], targets(found)))
        return found
    t.need('In this picture we can see')
    across = sorted(range(len(scene.animals)), key=lambda i: scene.animals[i].x)
    for k, i in enumerate(across):
        if k: t.need('and' if k == len(across) - 1 else ',')
        said = linked(lambda: noun(t, 'a'), lambda said: tuple(fitting(scene, said)))
        check(links[-1][2] == (i,) and fitting(scene, side(t)).count(i), n, scene)
    t.need('. Below , there is')
    def ground():
        t.need('the')
        found = t.take(GROUNDS, 2) or t.take(GROUNDS)
        check(found and scene.habitat in GROUNDS[found], n, scene)
    linked(ground, lambda _: ('ground',))
    if scene.habitat in ('beach', 'lake'): t.need('and'); linked(lambda: t.need('the water'), lambda _: ('water',))
    t.need('. Above , there is')
    linked(lambda: t.need('the dark sky' if scene.time == 'night' else 'the blue sky'), lambda _: ('sky',))
    t.need('.')
    if t.at < len(t.words):
        number = linked(lambda: (t.need('The'), t.take(NUMBERS), t.need('animals'))[1], lambda _: tuple(range(len(scene.animals))))
        check(NUMBERS.get(number) == len(scene.animals), n, scene)
        t.need('are')
        check(PLACES.get(t.take(PLACES, 3)) == scene.habitat, n, scene)
        t.need('.')
    t.end()
    check(n.links == tuple(links), n.links, links, n.text)

def told(text):
    "A sentence about a species: its name, a trait, and whether it is said to have it."
    t = Text(text[:1].lower() + text[1:])
    species = noun(t, 'the' if t.next() == 'the' else 'a')['species']
    if t.take(('has no',), 2): return species, t.rest({v.removeprefix('a '): v for v in HAVE}, '.'), False
    if t.take(('does not have',), 3): return species, t.rest(HAVE, '.'), False
    if t.take(('does not',), 2): return species, t.rest(DOES, '.'), False
    if t.take(('is not',), 2): return species, t.rest(IS, '.'), False
    if t.take(('has',)): return species, t.rest(HAVE, '.'), True
    return species, t.rest({v: v for v in (*DOES.values(), *IS.values())}, '.'), True

def read_mcq(m, shifted):
    "Its answer is the only right choice, and every rationale is true, is about its choice and decides."
    lead = 'find the animal that ' if shifted else 'which animal '
    yesno = re.fullmatch(r'could (an? \w+) (.*)\?', m.question) if m.dataset == 'strategy' else None
    if yesno: about, activity = [told(f'{yesno[1]} is heavy.')[0]]*2, yesno[2]
    else:
        check(m.question.startswith(lead) and m.question.endswith('?'), m)
        rest = m.question.removeprefix(lead)[:-1]
        about, activity = m.choices, rest.removeprefix('could ') if m.dataset == 'obqa' else None
    traits = [NEEDS[activity]] if activity else [told(f'a lion {part}.')[1] for part in rest.split(' and ')]
    check(len({*traits}) == (2 if m.dataset == 'qasc' else 1), m)
    owns = [{*traits} <= SPECIES[s].traits for s in about]
    right = [owns[0], not owns[0]] if yesno else owns
    check(len({*m.choices}) == len(m.choices) == CHOICES[m.dataset] == len(m.rationales) and right == [i == m.answer for i in range(len(right))], m)
    if yesno: check(m.choices == ('yes', 'no'), m)
    for species, own, why in zip(about, owns, m.rationales):
        if activity:
            begin = f'To {activity}, an animal needs this: it {NEEDS[activity]}. '
            check(why.startswith(begin), m)
            why = why.removeprefix(begin)
        facts = [told(s) for s in re.findall(r'[^.]+\.', why.replace('. ', '.'))]
        check(facts and all(s == species and t in traits and so == (t in SPECIES[s].traits) for s, t, so in facts), why, m)
        check({t for _, t, _ in facts} == {*traits} if own else not all(so for *_, so in facts), 'does not decide', why, m)
