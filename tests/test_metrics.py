"Metrics against COCO's code, recomputation by other means, and properties that hold for any input."
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from frozen_nb.core.frozen import BadInput
from frozen_nb.core.metrics import attribute_recall, average_precision, bleu, cider_d, mentions, normalise_answer, tokenize, vqa_accuracy, wu_palmer

settings.register_profile('shared', deadline=None, derandomize=True, max_examples=30)
settings.load_profile('shared')

captions = st.lists(st.sampled_from('a the lion zebra in snow and brown'.split()), max_size=9).map(' '.join)
corpora = st.lists(st.tuples(captions, st.lists(captions, min_size=1, max_size=4)), min_size=2, max_size=8).map(lambda items: tuple(map(list, zip(*items))))


def coco(candidates, references):
    pytest.importorskip('pycocoevalcap')
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    words = lambda text: ' '.join(tokenize(text))
    gts, res = {i: [words(r) for r in refs] for i, refs in enumerate(references)}, {i: [words(c)] for i, c in enumerate(candidates)}
    return *Cider().compute_score(gts, res), *map(np.array, Bleu(4).compute_score(gts, res, verbose=0))


@given(corpora.filter(lambda corpus: any(any(refs) for refs in corpus[1]))) # COCO's code stops at references without a single word
def test_captions_as_coco(corpus):
    for ours, theirs in zip((*cider_d(*corpus), *bleu(*corpus)), coco(*corpus)): np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize('corpus', [
    (['', ''], [['a lion'], ['']]),
    (['lion', 'lion'], [['lion'], ['lion']]),
    (['', 'a lion in snow'], [['a lion'], ['', 'a lion in the snow', 'a lion in snow']]),
    (['a ' * 40, 'lion zebra'], [['a'], ['lion zebra ' * 20]]),
    (['A LION, in snow!', "the lion's snow"], [['a lion in snow'], ["The lion's snow."]]),
], ids=['empty', 'no weight', 'empty reference', 'long', 'punctuation'])
def test_captions_as_coco_at_the_edges(corpus):
    for ours, theirs in zip((*cider_d(*corpus), *bleu(*corpus)), coco(*corpus)): np.testing.assert_allclose(ours, theirs, atol=1e-6)


@given(corpora)
def test_captions_bounds(corpus):
    mean, items = cider_d(*corpus)
    assert items.shape == (len(corpus[0]),) and (items >= 0).all() and (items <= 10 + 1e-9).all() and np.isclose(mean, items.mean())
    scores, items = bleu(*corpus)
    assert items.shape == (4, len(corpus[0])) and (items >= 0).all() and (items <= 1 + 1e-9).all() and (scores >= 0).all() and (scores <= 1 + 1e-9).all()


@given(corpora, st.randoms(use_true_random=False))
def test_captions_order(corpus, random):
    order = list(range(len(corpus[0])))
    random.shuffle(order)
    mixed = [corpus[0][i] for i in order], [random.sample(corpus[1][i], len(corpus[1][i])) for i in order]
    np.testing.assert_allclose(cider_d(*mixed)[1], cider_d(*corpus)[1][order], atol=1e-9)
    np.testing.assert_allclose(bleu(*mixed)[1], bleu(*corpus)[1][:, order], atol=1e-9)
    np.testing.assert_allclose(bleu(*mixed)[0], bleu(*corpus)[0], atol=1e-9)


@given(corpora)
def test_captions_identical_is_best(corpus):
    candidates, references = corpus[0], [refs[:1] for refs in corpus[1]]
    same = [refs[0] for refs in references]
    assert (cider_d(same, references)[1] >= cider_d(candidates, references)[1] - 1e-9).all()
    assert (bleu(same, references)[0] >= bleu(candidates, references)[0] - 1e-6).all()


@pytest.mark.parametrize('f', [cider_d, bleu])
@pytest.mark.parametrize('candidates, references', [
    ([], []), (['a', 'b'], [['a']]), (['a', 'b'], [['a'], []]), (['a', 'b'], ['a', 'b']), (['a', None], [['a'], ['b']]), (['a', 'b'], [['a'], [3]]), ('ab', [['a'], ['b']])])
def test_captions_refuse(f, candidates, references):
    with pytest.raises(BadInput) as e: f(candidates, references)
    assert '\n' not in str(e.value)


@given(captions, st.lists(st.sampled_from(['lion', 'zebra', 'brown', 'bear', 'brown bear']), min_size=1, max_size=4))
def test_attribute_recall(caption, words):
    share = attribute_recall([caption], [words])[0]
    assert 0 <= share <= 1 and np.isclose(share * len(set(words)), len(mentions(caption, words)))
    assert attribute_recall([' and '.join(words)], [words])[0] == 1
    assert attribute_recall([caption], [words[::-1]])[0] == share == attribute_recall([caption.upper()], [words * 2])[0]


@st.composite
def trees(draw):
    size = draw(st.integers(1, 12))
    return {f'n{i}': f'n{draw(st.integers(0, i - 1))}' if i else None for i in range(size)}


@given(trees(), st.data())
def test_wu_palmer(parents, data):
    a, b = data.draw(st.sampled_from(sorted(parents))), data.draw(st.sampled_from(sorted(parents)))
    def up(x): return [] if x is None else [x, *up(parents[x])]
    common = max((x for x in up(a) if x in up(b)), key=lambda x: len(up(x)))
    assert wu_palmer(a, b, parents) == wu_palmer(b, a, parents) == 2 * len(up(common)) / (len(up(a)) + len(up(b)))
    assert 0 < wu_palmer(a, b, parents) <= 1 and (wu_palmer(a, b, parents) == 1) == (a == b)


@given(st.lists(st.sampled_from(['zebra', 'a zebra', 'Zebra!', 'horse', 'two', '2']), min_size=4, max_size=10), st.sampled_from(['zebra', 'two', 'dog']), st.randoms(use_true_random=False))
def test_vqa_accuracy(answers, answer, random):
    "The average over every choice of all answers but one."
    alike = [normalise_answer(a) == normalise_answer(answer) for a in answers]
    expected = np.mean([min(1, sum(rest) / 3) for rest in combinations(alike, len(alike) - 1)])
    assert np.isclose(vqa_accuracy(answer, answers), expected)
    assert vqa_accuracy(answer, random.sample(answers, len(answers))) == vqa_accuracy(answer.upper(), answers)


@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing_in_a_match(text):
    assert vqa_accuracy(text, text) == 1 and vqa_accuracy(text, [text] * 4) == 1


@given(st.text(max_size=30) | st.text("'aone.,- ;d2t’", max_size=12))
@example("'one'").via('the quotes hid the number')
@example("'the' dog")
def test_normalise_answer_twice_is_once(text):
    assert normalise_answer(normalise_answer(text)) == normalise_answer(text) == normalise_answer(text.upper() if text.isascii() else text)


@pytest.mark.parametrize('quoted, plain', [("'one'", '1'), ("'two' dogs", '2 dogs'), ("'the' dog", 'dog'), ("'a'", ''), ("'twas", "'twas"), ("dont'", "don't"), ("horses'", 'horses')])
def test_quotes_around_a_word_are_no_part_of_it(quoted, plain): assert normalise_answer(quoted) == plain


@given(st.integers(4, 12), st.data())
def test_vqa_accuracy_grows_with_the_people_who_agree(n, data):
    one = data.draw(st.permutations(range(n)))
    scores = [vqa_accuracy('zebra', ['zebra' if i in one[:agree] else 'horse' for i in range(n)]) for agree in range(n + 1)]
    assert scores[0] == 0 and scores == sorted(scores) and scores[1] < scores[2] < scores[3] < scores[4] == scores[-1] == 1


@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=1, max_size=20).filter(lambda rows: any(l for _, l in rows)), st.randoms(use_true_random=False))
def test_average_precision_depends_on_the_order_alone(rows, random):
    scores, labels = map(np.array, zip(*rows))
    ap = average_precision(scores, labels)
    for same in (3*scores - 7, scores**3, np.exp(scores), np.arctan(scores)): assert np.isclose(average_precision(same, labels), ap)
    order = random.sample(range(len(rows)), len(rows))
    assert np.isclose(average_precision(scores[order], labels[order]), ap)
    higher = scores + 100*labels
    assert np.isclose(average_precision(higher, labels), 1) and ap <= 1 + 1e-9


@given(corpora)
def test_captions_say_as_much_to_whoever_asks_for_them_alone(corpus):
    "The BLEU of an item does not depend on the other items; more references can only raise its matches."
    scores, items = bleu(*corpus)
    for i, (c, refs) in enumerate(zip(*corpus)):
        alone = bleu([c], [refs])
        np.testing.assert_allclose(alone[1][:, 0], items[:, i], atol=1e-12)
        np.testing.assert_allclose(alone[0], alone[1][:, 0], atol=1e-12)
        np.testing.assert_allclose(bleu([c.upper() + ' .'], [refs * 2])[1], alone[1], atol=1e-12)
    assert (np.diff(scores) <= 1e-6).all()


@given(st.lists(st.tuples(st.sampled_from([0., .1, .5, .9]), st.booleans()), min_size=1, max_size=20).filter(lambda rows: any(l for _, l in rows)))
def test_average_precision(rows):
    scores, labels = map(np.array, zip(*rows))
    ap, recall = 0., 0.
    for t in sorted(set(scores), reverse=True):
        chosen = labels[scores >= t]
        ap, recall = ap + (chosen.sum() / labels.sum() - recall) * chosen.mean(), chosen.sum() / labels.sum()
    assert np.isclose(average_precision(scores, labels), ap) and 0 < ap <= 1 + 1e-9
    assert average_precision(labels.astype(float), labels) == 1


@pytest.mark.parametrize('scores, labels', [([], []), ([.1], [0]), ([.1, .2], [1]), ([np.nan], [1]), ([np.inf, 0], [0, 1]), ([.1], [2]), ([[.1]], [[1]])])
def test_average_precision_refuses(scores, labels):
    with pytest.raises(BadInput): average_precision(scores, labels)
