"""Regions: sets in COCO format with entries that no mask can be made of, the region that a phrase names, and files that `ground` did not write."""
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from frozen_nb.core.frozen import BadInput
from frozen_nb.benchmarks.groundings import read_coco
from frozen_nb.benchmarks.wordings import own_and_others, paired_phrases, scene_regions
from frozen_nb.flmm import Grounder, load_grounder
from frozen_nb.world.drawing import draw
from frozen_nb.world.scenes import scene, SPECIES

POLYGON = [1, 1, 30, 1, 30, 20, 1, 20]


def coco(folder, image={}, annotation={}, more=(), encoding='utf-8'):
    "A set of one image and one annotation, changed."
    about = dict(id=1, file_name='x.png', width=60, height=40) | image
    entry = dict(id=1, image_id=1, category_id=1, iscrowd=0, segmentation=[POLYGON]) | annotation
    text = json.dumps(dict(images=[about], annotations=[entry, *more], categories=[dict(id=1, name='Löwe'), dict(id=2, name='cat')]), ensure_ascii=False)
    (folder/'a.json').write_text(text, encoding=encoding)
    return folder/'a.json'


@pytest.mark.timeout(20)
@pytest.mark.parametrize('changes', [
    dict(annotation=dict(segmentation=[])), dict(annotation=dict(segmentation=[[1, 1, 2]])), dict(annotation=dict(segmentation=[[float('nan'), *POLYGON[1:]]])),
    dict(annotation=dict(segmentation=[[1e30, *POLYGON[1:]]])), dict(annotation=dict(segmentation=[['1', *POLYGON[1:]]])), dict(annotation=dict(segmentation='x')),
    dict(annotation=dict(segmentation=dict(size=[60, 40], counts=[0, 2400]))), dict(annotation=dict(segmentation=dict(size=[40, 60], counts=[0, 7]))),
    dict(annotation=dict(segmentation=dict(size=[40, 60], counts=[-1, 2401]))), dict(annotation=dict(image_id=9)), dict(annotation=dict(category_id=9)),
    dict(image=dict(height=10**7, width=10**7)), dict(image=dict(height=0)), dict(image=dict(height='40')),
    dict(more=[dict(id=1, image_id=1, category_id=2, iscrowd=0, segmentation=[POLYGON])])], ids=str)
def test_entries_that_no_mask_can_be_made_of(changes, tmp_path):
    with pytest.raises(BadInput, match='a.json') as error: read_coco(coco(tmp_path, **changes), tmp_path)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_run_lengths_and_a_byte_order_mark(encoding, tmp_path):
    from pycocotools import mask as rle
    true = np.zeros((40, 60), np.uint8, order='F')
    true[5:20, 7:33] = 1
    counts = rle.encode(true)['counts'].decode()
    flat = true.flatten(order='F')
    ends = [*np.flatnonzero(np.diff(flat)) + 1, len(flat)]
    runs = np.diff([0, *ends]).tolist()
    plain = dict(id=2, image_id=1, category_id=2, iscrowd=0, segmentation=dict(size=[40, 60], counts=runs))
    examples = read_coco(coco(tmp_path, annotation=dict(segmentation=dict(size=[40, 60], counts=counts)), more=[plain], encoding=encoding), tmp_path)
    assert len(examples) == 2 and 'Löwe' in examples[0].text
    for example in examples: assert (example.masks[0] == true.astype(bool)).all()


# The region that a phrase names

@pytest.fixture(scope='module')
def grounder() -> Grounder: return load_grounder(device='cpu')


def test_a_mask_follows_its_phrase(grounder):
    "The sky, the ground and an animal of fresh scenes, each given alone: on its own region, and on no other."
    margins, first = {'animal': [], 'ground': [], 'sky': []}, []
    for i in range(6):
        s = scene(3000 + i, 'test', n_animals=1)
        regions = scene_regions(s, 128)
        named = {'animal 0': s.animals[0].species, 'ground': 'ground', 'sky': 'sky'}
        for (name, word), region in zip(named.items(), grounder.ground(draw(s, 128), [f'the {word}' for word in named.values()])):
            own, other = own_and_others(region.mask, regions, (name,))
            margins[name.split()[0]].append(own - other)
            first.append(own > other)
    assert np.mean(first) >= .9
    assert all(np.mean(values) > .5 for values in margins.values()), margins


def test_the_article_does_not_matter(grounder):
    image = draw(scene(3001, 'test', n_animals=1), 128)
    masks_of = [grounder.ground(image, [phrase])[0].mask for phrase in ('the sky', 'The sky', 'sky', 'a sky')]
    assert all((mask == masks_of[0]).all() for mask in masks_of)


def test_presence_knows_what_is_absent(grounder):
    "An animal that is there against another one; what is always there; and the same words before an image that shows it and one that does not."
    there, absent = [], []
    for i in range(12):
        s = scene(3100 + i, 'test', n_animals=1)
        other = next(name for name in SPECIES if name != s.animals[0].species)
        p = grounder.presence(draw(s, 128), [f'the {s.animals[0].species}', f'the {other}', 'the sky', 'the ground'])
        there.append(p[0])
        absent.append(p[1])
        assert min(p[2:]) > .5
    assert np.mean(there) > np.mean(absent) + .25
    pairs = paired_phrases(30, 'test', 5_000)
    p = np.array([grounder.presence(x.open(), [x.text])[0] for x in pairs])
    assert len(pairs) > 80 and ((p[::2] > p[1::2]).mean() > .65), (p[::2] > p[1::2]).mean()


# Files of others

def test_ground_writes_over_nothing_that_it_did_not_write(tmp_path, monkeypatch, shell):
    monkeypatch.chdir(tmp_path)
    draw(scene(3, 'test', 0), 64).save('photo.png')
    Image.new('RGB', (8, 8), 'blue').save('found-1.png')
    def sums(): return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in tmp_path.iterdir()}
    before = sums()
    for out in ('photo.png', 'found.png'):                    # the image itself; a mask's name is taken
        result = shell('ground', 'photo.png', 'the animal', '--out', out)
        assert result.status == 2 and len(result.err.strip().splitlines()) == 1 and 'replace' in result.err
        assert sums() == before
    for _ in range(2):                                          # its own files are replaced
        assert shell('ground', 'photo.png', 'the animal', '--out', 'mine.png').status == 0
    assert {'mine.png', 'mine-1.png'} <= {*sums()}
