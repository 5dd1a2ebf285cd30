"Questions about images: what they are asked with, and how answers count."
import re

import numpy as np
import pytest

from frozen_nb.benchmarks.sets import AskedImage, N_EXAMPLES, QUESTION_KINDS, answer_accuracy, asked_images, captioned_images
from frozen_nb.core.frozen import BadInput, real_path
from frozen_nb.pretraining.recipes import RECIPES
from frozen_nb.world.captions import questions
from frozen_nb.world.stream import document


def test_scenes_are_asked_what_their_world_answers():
    items = asked_images('menagerie', 21)
    assert [item.kind for item in items] == [*QUESTION_KINDS]*3
    for item in items:
        assert (item.question, item.answer) in {(q.question, q.answer) for q in questions(item.image.scene)}
    assert len({item.cluster for item in items}) == len({item.key for item in items}) == 21


def test_examples_of_scenes_are_training_scenes_and_the_same_for_any_number_of_items():
    items, train = asked_images('menagerie', 5), {image.key for image in captioned_images('menagerie', 'train', 1_000)}
    for item in items:
        keys = [example.image.key for example in item.examples]
        assert len(set(keys)) == N_EXAMPLES and set(keys) <= train and item.image.key not in train
    assert asked_images('menagerie', 3) == items[:3]


def test_answers_of_scenes_are_matched_exactly_after_normalising():
    item = AskedImage('k', None, 'how many?', ('two',))
    assert answer_accuracy([item]*4, ['two', 'Two.', '2', 'two foxes']).tolist() == [1, 1, 1, 0]


def test_answers_of_rooms_name_all_things_in_any_order():
    item = AskedImage('k', None, 'what is there?', ('garbage bin', 'lamp'), benchmark='daquar')
    texts = ['lamp, garbage_bin', 'garbage bin, lamp', 'lamp', 'lamp, garbage bin, cup', '']
    assert answer_accuracy([item]*5, texts).tolist() == [1, 1, 0, 0, 0]


@pytest.mark.skipif(real_path('daquar') is None, reason='not run: FROZEN_NB_REAL is unset or has no daquar')
def test_examples_of_rooms_are_from_other_blocks():
    items = asked_images('daquar', 300)
    blocks = {example.cluster for item in items for example in item.examples}
    assert not blocks & {item.cluster for item in items} and 10 < len(blocks) <= 20
    numbers = np.array([[int(re.sub(r'\D', '', text)) for text in (item.image.key, item.cluster)] for item in items])
    assert (numbers[:, 0]//10 == numbers[:, 1]).all() and len({item.key for item in items}) == 300
    assert {item.kind for item in items} == {'count', 'colour', 'what'}


def test_sets_that_there_are_not_are_refused():
    with pytest.raises(BadInput, match='menagerie or daquar or vqav2'): asked_images('vqa', 3)


def test_no_document_without_lists_has_a_phrase_of_a_caption():
    left_out = re.compile(RECIPES['llama-no-lists'].without).search
    texts = [document(i).text for i in range(2_000)]
    phrase = re.compile(r'\b(small|large) (brown|gray|black|white|orange|yellow|red|blue|green|pink)\b|animal: ')
    kept = [text for text in texts if not left_out(text)]
    assert 800 < len(kept) < 1_400 and not any(map(phrase.search, kept))
    assert sum(bool(phrase.search(text)) for text in texts) > 400
