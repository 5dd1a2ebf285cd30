"""Readers of captions, questions about images, and regions: of each a well-formed file with the number that its
data set's evaluation would give, worked out by hand, and files that are not well-formed, each one line that names the file."""
import json
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from PIL import Image

from frozen_nb.benchmarks import captions, questions, regions  # noqa: F401: they make their benchmarks known
from frozen_nb.benchmarks.captions import clip_score
from frozen_nb.benchmarks.readers import BENCHMARKS, measure_predictions, read_benchmark
from frozen_nb.benchmarks.regions import box_overlaps, CocoPanoptic, decode_mask, encode_mask, panoptic_counts, panoptic_quality
from frozen_nb.core.frozen import BadInput, real_path


@dataclass
class Set:
    "A small data set in its published format."
    name: str
    split: str
    file: str            # which is damaged
    write: Callable      # folder ->
    keys: list           # of its items
    predictions: list    # one for each item
    official: dict       # worked out by hand
    damages: dict        # what is wrong -> a function of what the file says that gives the damaged content

    @property
    def is_json(self): return self.file.endswith('.json') and self.name != 'pope'   # POPE's has a row a line


def image(folder, name, size=(60, 40)):
    (folder/name).parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, 'red').save(folder/name)


def write(folder, name, content):
    path = folder/name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding='utf-8')


def json_lines(rows): return '\n'.join(map(json.dumps, rows)) + '\n'


def at(*path, value):
    "A change of JSON: what stands at a place becomes another value; DROP takes it away, a function is called."
    def change(content):
        *up, last = path
        inner = content
        for step in up: inner = inner[step]
        if value is DROP: del inner[last]
        else: inner[last] = value(inner[last]) if callable(value) else value
        return content
    return change


DROP = object()
SETS = {}


def add(*args, **kwargs):
    data = Set(*args, **kwargs)
    SETS[f'{data.name} {data.split} {data.file}'] = data


# Captions. Two images; the first caption is met word by word (CIDEr-D 10), the second shares only words of both.

def coco_captions(folder):
    for name in '12': image(folder, f'val2017/{name}.jpg')
    write(folder, 'annotations/captions_val2017.json', dict(
        images=[dict(id=n, file_name=f'{n}.jpg') for n in (1, 2)],
        annotations=[dict(id=5, image_id=1, caption='a red fox runs'), dict(id=6, image_id=2, caption='a blue bird sings')]))

CAPTIONS = dict(predictions=['a red fox runs', 'a dog'], official={'CIDEr-D': 5., 'BLEU-1': 5/6*np.exp(1 - 8/6)})
COCO_DAMAGES = {
    'no images': at('images', value=DROP), 'an image without a name': at('images', 0, 'file_name', value=DROP), 'an id twice': at('annotations', 1, 'id', value=5),
    'an image twice': at('images', 1, 'id', value=1), 'a caption of no image': at('annotations', 0, 'image_id', value=9), 'an image without captions': at('annotations', value=lambda a: a[:1]),
    'a caption that is a number': at('annotations', 0, 'caption', value=3), 'an image that is not there': at('images', 0, 'file_name', value='7.jpg'),
    'an image elsewhere': at('images', 0, 'file_name', value='../val2017/1.jpg'), 'no items': lambda c: dict(images=[], annotations=[])}
add('coco-captions', 'val2017', 'annotations/captions_val2017.json', coco_captions, ['1', '2'], damages=COCO_DAMAGES, **CAPTIONS)


def karpathy(name, place):
    def write_set(folder):
        for n in '1234': image(folder, f'{place}/{n}.jpg')
        texts = ['a red fox runs', 'a lake', 'a blue bird sings', 'a tree']
        rows = [dict(filename=f'{n}.jpg', split=split, imgid=n, sentences=[dict(raw=text, tokens=text.split(), sentid=n)])
                for n, split, text in zip((1, 2, 3, 4), ('test', 'train', 'test', 'restval'), texts)]
        if name == 'coco': rows = [row | dict(filepath='val2014') for row in rows]
        write(folder, f'dataset_{name}.json', dict(dataset=name, images=rows))
    return write_set

for name, place in (('coco', 'val2014'), ('flickr8k', 'Images'), ('flickr30k', 'flickr30k-images')):
    add('coco-karpathy' if name == 'coco' else name, 'test', f'dataset_{name}.json', karpathy(name, place), ['1.jpg', '3.jpg'], **CAPTIONS, damages={
        'another set': at('dataset', value='mine'), 'no split': at('images', 0, 'split', value=DROP), 'a sentence without text': at('images', 0, 'sentences', 0, value={}),
        'no sentences': at('images', 0, 'sentences', value=[]), 'an image that is not there': at('images', 0, 'filename', value='9.jpg'), 'sentences that are a text': at('images', 0, 'sentences', value='a fox'),
        'no test images': at('images', value=lambda rows: rows[1:2]), 'an image twice': at('images', value=lambda rows: rows + rows), 'a list': lambda c: c['images']})


def flickr8k(folder):
    for n in '12': image(folder, f'Images/{n}.jpg')
    write(folder, 'captions.txt', 'image,caption\n1.jpg,a red fox runs\n2.jpg,"a blue bird , sings"\n')

def flickr30k(folder):
    for n in '12': image(folder, f'flickr30k_images/{n}.jpg')
    write(folder, 'results.csv', 'image_name| comment_number| comment\n1.jpg| 0| a red fox runs\n2.jpg| 4   a blue bird sings .\n')

def flickr_token(folder):
    for n in '123': image(folder, f'Flicker8k_Dataset/{n}.jpg')
    write(folder, 'Flickr8k.token.txt', '1.jpg#0\ta red fox runs\n2.jpg#0\ta blue bird sings\n3.jpg#0\ta tree\n3.jpg.1#0\ta lake\n')
    write(folder, 'Flickr_8k.testImages.txt', '1.jpg\n2.jpg\n')

TABLE = {'a tab or nothing in a row': lambda t: t + '3.jpg\n', 'an image that is not there': lambda t: t.replace('1.jpg', '9.jpg'), 'binary': lambda t: '\0'*200}
add('flickr8k', 'all', 'captions.txt', flickr8k, ['1.jpg', '2.jpg'], **CAPTIONS, damages=TABLE | {
    'another header': lambda t: t.replace('image,', 'file,'), 'three columns': lambda t: t + '1.jpg,a,b\n', 'an open quote': lambda t: t + '1.jpg,"a', 'a header alone': lambda t: 'image,caption\n',
    'a field without end': lambda t: t + '1.jpg,"' + 'a'*200_000 + '"\n'})
add('flickr30k', 'all', 'results.csv', flickr30k, ['1.jpg', '2.jpg'], **CAPTIONS, damages=TABLE | {
    'a number twice': lambda t: t + '1.jpg| 0| a fox\n', 'no number': lambda t: t + '1.jpg| a fox\n', 'a header alone': lambda t: t.split('\n')[0], 'commas': lambda t: t.replace('|', ','), 'no image': lambda t: t + '| 0| a fox\n'})
add('flickr8k', 'test', 'Flickr8k.token.txt', flickr_token, ['1.jpg', '2.jpg'], **CAPTIONS, damages=TABLE | {
    'a number twice': lambda t: t + '1.jpg#0\ta fox\n', 'a listed image without captions': lambda t: t.replace('1.jpg#0', '7.jpg#0'), 'commas': lambda t: t.replace('\t', ','), 'no image': lambda t: t + '#0\ta fox\n',
    'no number': lambda t: t + '1.jpg\ta fox\n'})


def nocaps(folder):
    for n in '1234': image(folder, f'val/{n}.jpg')
    domains = ['in-domain', 'in-domain', 'out-domain', 'near-domain']
    texts = ['a red fox runs', 'a blue bird sings', 'a cat', 'a dog']
    write(folder, 'nocaps_val_4500_captions.json', dict(
        images=[dict(id=n, file_name=f'{n + 1}.jpg', domain=domain) for n, domain in enumerate(domains)],
        annotations=[dict(id=n, image_id=n, caption=text) for n, text in enumerate(texts)]))

add('nocaps', 'val', 'nocaps_val_4500_captions.json', nocaps, list('0123'), ['a red fox runs', 'a dog', 'a', 'a'], {'CIDEr-D, in-domain': 5.},
    COCO_DAMAGES | {'an id twice': at('annotations', 1, 'id', value=0), 'an image twice': at('images', 1, 'id', value=0), 'no domain': at('images', 0, 'domain', value=DROP), 'a domain of its own': at('images', 0, 'domain', value='far')})


# Questions. The first is answered as people did, the second as three of ten or as nobody did.

def vqav2(folder):
    image(folder, 'val2014/COCO_val2014_000000000007.jpg')
    def answers(n): return [dict(answer='blue', answer_id=i) for i in range(n)] + [dict(answer='red', answer_id=i) for i in range(n, 10)]
    write(folder, 'v2_OpenEnded_mscoco_val2014_questions.json', dict(questions=[dict(question_id=n, image_id=7, question='What?') for n in (70, 71)]))
    write(folder, 'v2_mscoco_val2014_annotations.json', dict(annotations=[
        dict(question_id=n, image_id=7, answer_type=kind, question_type='what', multiple_choice_answer='red', answers=answers(few)) for n, kind, few in ((71, 'other', 3), (70, 'number', 10))]))

def entries(key, first):
    "What may be wrong with the entries of a list of questions."
    return {'no list': at(key, value=DROP), 'a list that is a text': at(key, value='x'), 'an id twice': at(key, 1, 'question_id', value=first), 'one too few': at(key, value=lambda rows: rows[1:]), 'an entry too many': at(key, value=lambda rows: [*rows, rows[0] | dict(question_id=9)]),
            'an entry that is a number': at(key, 0, value=3), 'an id that is a text': at(key, 0, 'question_id', value='x'), 'no id': at(key, 0, 'question_id', value=DROP)}

for file, more in (('v2_OpenEnded_mscoco_val2014_questions.json', {'no question': at('questions', 0, 'question', value=DROP), 'an image that is not there': at('questions', 0, 'image_id', value=8), 'a huge id': at('questions', 0, 'image_id', value=10**18)}),
                   ('v2_mscoco_val2014_annotations.json', {'nine answers': at('annotations', 0, 'answers', value=lambda x: x[1:]), 'an answer that is a number': at('annotations', 0, 'answers', 0, 'answer', value=1), 'another image': at('annotations', 0, 'image_id', value=9)})):
    key, first = ('questions', 70) if 'questions' in file else ('annotations', 71)
    add('vqav2', 'val2014', file, vqav2, ['70', '71'], ['Blue.', 'blue'], {'accuracy': .95, 'accuracy, number': 1, 'accuracy, other': .9, 'accuracy, 1 word': .95}, entries(key, first) | more)


def gqa(folder):
    image(folder, 'images/n1.jpg')
    rows = {'01': ('fox', 'query'), '02': ('yes', 'verify'), '03': ('yes', 'logical')}
    write(folder, 'testdev_balanced_questions.json', {key: dict(question='What?', imageId='n1', answer=answer, fullAnswer='', types=dict(structural=kind)) for key, (answer, kind) in rows.items()})

add('gqa', 'testdev_balanced', 'testdev_balanced_questions.json', gqa, ['01', '02', '03'], ['A fox', 'yes', 'no'], {'accuracy': 1/3, 'accuracy, open': 0, 'accuracy, binary': .5, 'accuracy, verify': 1, 'accuracy, normalised': 2/3}, {
    'no answer': at('01', 'answer', value=DROP), 'an answer that is a number': at('01', 'answer', value=3), 'no types': at('01', 'types', value=DROP), 'an image that is not there': at('01', 'imageId', value='n2'), 'an image elsewhere': at('01', 'imageId', value='../images/n1'),
    'an image without a name': at('01', 'imageId', value=1), 'a list': lambda c: list(c.values()), 'no items': lambda c: {}, 'an entry that is a text': at('01', value='x'), 'no question': at('01', 'question', value=DROP)})


def daquar_text(folder):
    for n in '12': image(folder, f'images/image{n}.png')
    write(folder, 'qa.894.raw.test.txt', 'what is on the desk in the image1 ?\nlamp, book\nwhat colour is the wall of the image2 ?\nred\nhow many chairs are there in this image2?\n3\n')

def daquar_table(folder):
    for n in '12': image(folder, f'dataset/images/image{n}.jpg')
    write(folder, 'dataset/data_eval.csv', 'question,answer,image_id\nwhat is on the desk,"lamp, book",image1\nwhat colour is the wall,red,image2\nhow many,3,image2\n')

DAQUAR = dict(predictions=['book, lamp', 'Red', '4'], official={'accuracy': 2/3, 'accuracy, one thing': .5, 'accuracy, several things': 1})
add('daquar', 'test', 'qa.894.raw.test.txt', daquar_text, ['1', '3', '5'], **DAQUAR, damages={
    'a question without answer': lambda t: t + 'what is in the image1 ?\n', 'no image': lambda t: t.replace(' in the image1', ''), 'an image that is not there': lambda t: t.replace('image1', 'image9'), 'an empty answer': lambda t: t.replace('red', ''),
    'an answer of commas': lambda t: t.replace('red', ', ,'), 'a line too many': lambda t: '\n' + t, 'binary': lambda t: '\0'*99})
add('daquar', 'eval', 'dataset/data_eval.csv', daquar_table, ['2', '3', '4'], **DAQUAR, damages={
    'another header': lambda t: t.replace('image_id', 'image'), 'two columns': lambda t: t + 'what,red\n', 'an open quote': lambda t: t + 'what,"a', 'an image that is not there': lambda t: t.replace('image1', 'image9'), 'no answer': lambda t: t.replace(',red,', ',,'),
    'a header alone': lambda t: t.split('\n')[0], 'no question': lambda t: t.replace('how many', ' ')})


def pope(folder):
    for name in 'ab': image(folder, f'val2014/{name}.jpg')
    write(folder, 'coco_pope_popular.json', json_lines(dict(question_id=n, image=f'{name}.jpg', text='Is there a fox in the image?', label=label) for n, name, label in ((1, 'a', 'yes'), (2, 'a', 'no'), (3, 'b', 'yes'), (4, 'b', 'no'))))

add('pope', 'popular', 'coco_pope_popular.json', pope, list('1234'), ['Yes', 'No, none', 'no', 'It does not. Yes'], dict(accuracy=.75, precision=1, recall=.5, F1=2/3, yes=.25), {
    'another label': lambda t: t.replace('"yes"', '"maybe"', 1), 'no label': lambda t: t.replace('"label"', '"answer"', 1), 'an id twice': lambda t: t.replace('"question_id": 2', '"question_id": 1'), 'an image that is not there': lambda t: t.replace('a.jpg', 'c.jpg'),
    'half a line': lambda t: t[:-9], 'NaN': lambda t: t.replace('1', 'NaN', 1), 'a list of numbers': lambda t: '[1, 2]', 'a text': lambda t: 'yes\n' + t, 'deep': lambda t: '['*100_000})


def scanqa(folder):
    write(folder, 'ScanQA_v1.0_val.json', [dict(question_id=f'val-scene0011-{n}', scene_id='scene0011_00', question='What?', answers=answers, object_ids=[1]) for n, answers in enumerate((['a red chair', 'chair'], ['brown']))])

add('scanqa', 'val', 'ScanQA_v1.0_val.json', scanqa, ['val-scene0011-0', 'val-scene0011-1'], ['a chair', 'brown '], {'EM': .5, 'EM, normalised': 1, 'BLEU-1': 1}, {
    'no answers': at(0, 'answers', value=[]), 'an answer that is a number': at(0, 'answers', value=[3]), 'no scene': at(0, 'scene_id', value=DROP), 'an id twice': at(1, 'question_id', value='val-scene0011-0'), 'an id that is a number': at(0, 'question_id', value=0),
    'a row that is a text': at(0, value='x'), 'an object': lambda c: c[0], 'no items': lambda c: [], 'no question': at(0, 'question', value=DROP)})


def sqa3d(folder):
    rows = [dict(question_id=n, scene_id='scene0380_00', question=question, situation='I face the sofa.') for n, question in ((1, 'What is behind me?'), (2, 'Am I near?'))]
    write(folder, 'balanced/v1_balanced_questions_test_scannetv2.json', dict(questions=rows))
    place = dict(position=dict(x=.5, y=1., z=0), rotation=dict(_x=0, _y=0, _z=1, _w=0))
    write(folder, 'balanced/v1_balanced_sqa_annotations_test_scannetv2.json', dict(annotations=[dict(question_id=n, scene_id='scene0380_00', answers=[dict(answer=answer)]) | place for n, answer in ((2, 'yes'), (1, 'table'))]))

for file, more in (('questions', {'no situation': at('questions', 0, 'situation', value=DROP), 'another scene': at('questions', 0, 'scene_id', value='x'), 'an empty question': at('questions', 0, 'question', value='  ')}),
                   ('sqa_annotations', {'no answers': at('annotations', 0, 'answers', value=[]), 'an answer that is a number': at('annotations', 0, 'answers', value=[3]), 'another scene': at('annotations', 0, 'scene_id', value='x')})):
    add('sqa3d', 'test', f'balanced/v1_balanced_{file}_test_scannetv2.json', sqa3d, ['1', '2'], ['Table', 'no'], {'EM': .5, 'EM, what': 1, 'EM, other': 0}, entries(file.removeprefix('sqa_'), 1 if file == 'questions' else 2) | more)


# Regions. One image of 60 x 40 pixels with two foxes, of 200 and 100 pixels, and a dog of 50.

BOXES = {1: (30, 10, 20, 10), 2: (0, 0, 10, 10), 3: (0, 20, 10, 5)}

def box_mask(n, size=(40, 60)):
    x, y, w, h = BOXES[n]
    mask = np.zeros(size, bool)
    mask[y:y + h, x:x + w] = True
    return mask

def outline(n):
    x, y, w, h = BOXES[n]
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]

def coco_content():
    annotations = [dict(id=n, image_id=7, category_id=5 + (n == 3), iscrowd=0, bbox=list(BOXES[n]), segmentation=outline(n)) for n in (1, 2, 3)]
    annotations[1]['segmentation'] = encode_mask(box_mask(2))
    crowd = dict(id=4, image_id=7, category_id=5, iscrowd=1, bbox=[0, 0, 60, 40], segmentation=dict(size=[40, 60], counts=[0, 2400]))
    return dict(images=[dict(id=7, file_name='7.jpg', width=60, height=40)], annotations=[*annotations, crowd], categories=[dict(id=5, name='fox'), dict(id=6, name='dog')])

def coco_instances(folder):
    image(folder, 'val2017/7.jpg')
    write(folder, 'annotations/instances_val2017.json', coco_content())

def entry(**changes): return at('annotations', 0, value=lambda a: a | changes)

INSTANCES = {
    'NaN coordinates': entry(segmentation=[[float('nan'), *outline(1)[0][1:]]]), 'far outside': entry(segmentation=[[1e30, *outline(1)[0][1:]]]), 'two corners': entry(segmentation=[[1, 1, 2, 2]]), 'no outline': entry(segmentation=[]),
    'run lengths of another size': entry(segmentation=dict(size=[60, 40], counts=[0, 2400])), 'run lengths that end early': entry(segmentation=dict(size=[40, 60], counts=[0, 7])), 'texts': entry(segmentation=[list('123456')]),
    'no such image': entry(image_id=8), 'no such category': entry(category_id=9), 'an id twice': entry(id=2), 'a huge image': at('images', 0, 'width', value=10**9), 'no height': at('images', 0, 'height', value=DROP), 'no pixels': at('images', 0, 'height', value=0)}
DANGLING = {'an image that is not there': at('images', 0, 'file_name', value='8.jpg'), 'an image elsewhere': at('images', 0, 'file_name', value='../7.jpg')}

add('coco-instances', 'val2017', 'annotations/instances_val2017.json', coco_instances, ['7-5', '7-6'], [encode_mask(box_mask(1)), np.zeros((40, 60), bool)],
    {'cIoU': 200/350, 'mIoU': 1/3, 'Pr@0.5': .5, 'Pr@0.7': 0}, INSTANCES | DANGLING | {'no items': lambda c: c | dict(annotations=[]), 'no categories': at('categories', value=DROP), 'a category without a name': at('categories', 0, 'name', value=DROP)})


def references(): return [dict(ref_id=n, ann_id=n, image_id=7, split=split, category_id=5, file_name='7.jpg', sent_ids=[n], sentences=[dict(sent=text, raw=text, sent_id=n) for text in texts])
                          for n, split, texts in ((1, 'val', ['fox on the right', 'larger fox']), (2, 'testA', ['small fox']), (3, 'val', ['the dog', ' ']))]

def refcoco(ending, name='refcoco', author='unc'):
    def write_set(folder):
        image(folder, 'images/mscoco/images/train2014/7.jpg')
        write(folder, f'{name}/instances.json', coco_content())
        path = folder/name/f'refs({author}).{ending}'
        if ending == 'p': path.write_bytes(pickle.dumps(references(), protocol=2))
        else: path.write_text(json.dumps(references()))
    return write_set

REGIONS = dict(keys=['1.0', '1.1', '3.0'], predictions=[box_mask(1), encode_mask(box_mask(1) | box_mask(2)), box_mask(2)], official={'cIoU': 400/650, 'mIoU': (1 + 2/3)/3, 'Pr@0.5': 2/3, 'Pr@0.7': 1/3})
REFERENCES = {
    'no such object': at(0, 'ann_id', value=9), 'no such image': at(0, 'image_id', value=8), 'an id twice': at(2, 'ref_id', value=1), 'no id': at(0, 'ref_id', value=DROP), 'no split': at(0, 'split', value=DROP), 'another split': lambda rows: rows[1:2],
    'no sentences': at(0, 'sentences', value=DROP), 'a sentence that is a text': at(0, 'sentences', value=['fox']), 'sentences without words': lambda rows: [rows[2] | dict(sentences=[dict(sent=' ')])], 'an object': lambda rows: dict(rows=rows), 'no rows': lambda rows: [], 'a row that is a number': at(0, value=3)}

for name, author in (('refcoco', 'unc'), ('refcoco+', 'unc'), ('refcocog', 'umd')): add(name, 'val', f'{name}/refs({author}).json', refcoco('json', name, author), damages=REFERENCES, **REGIONS)
add('refcoco', 'val', 'refcoco/instances.json', refcoco('p'), damages=INSTANCES | DANGLING, **REGIONS)
add('refcoco', 'val', 'refcoco/refs(unc).p', refcoco('p'), damages=REFERENCES, **REGIONS)


def sunspot(ending):
    def write_set(folder):
        image(folder, 'data/images/7.jpg')
        write(folder, 'data/sunspot/instances.json', coco_content() | dict(annotations=[dict(id=n, image_id=7, category_id=[], area=3, bbox=list(box)) for n, box in BOXES.items()]))
        path = folder/f'data/sunspot/refs(boulder).{ending}'
        if ending == 'p': path.write_bytes(pickle.dumps(references(), protocol=2))
        else: path.write_text(json.dumps(references()))
    return write_set

BOXED = dict(keys=['1.0', '1.1', '3.0'], predictions=[[30, 10, 20, 10], [40, 10, 20, 10], [0, 20, 10.0, 6]], official={'accuracy@0.5': 2/3, 'mIoU': (1 + 1/3 + 5/6)/3})
add('sunspot', 'val', 'data/sunspot/refs(boulder).p', sunspot('p'), damages=REFERENCES, **BOXED)
add('sunspot', 'val', 'data/sunspot/instances.json', sunspot('json'), damages=DANGLING | {
    'NaN in a box': entry(bbox=[float('nan'), 0, 1, 1]), 'infinity in a box': entry(bbox=[1e308*10, 0, 1, 1]), 'three numbers': entry(bbox=[0, 0, 1]), 'no width': entry(bbox=[0, 0, 0, 1]), 'far outside': entry(bbox=[0, 0, 1e9, 1]), 'a text': entry(bbox='0 0 1 1'),
    'no box': at('annotations', 0, 'bbox', value=DROP), 'no such image': entry(image_id=8), 'an id twice': entry(id=2), 'a huge image': at('images', 0, 'width', value=10**9), 'truth values': entry(bbox=[True, True, True, True])}, **BOXED)


# Segments of the same image: sky (11) but for a fox (300) of 200 pixels and a crowd of foxes (70000) of 100.

SEGMENTS = np.where(box_mask(1), 300, np.where(box_mask(2), 70000, 11))

def colour_map(folder, name, numbers):
    (folder/name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([numbers % 256, numbers//256 % 256, numbers//65536], -1).astype(np.uint8)).save(folder/name)

def panoptic(folder):
    image(folder, 'val2017/7.jpg')
    colour_map(folder, 'annotations/panoptic_val2017/7.png', SEGMENTS)
    info = [dict(id=11, category_id=9, iscrowd=0), dict(id=300, category_id=5, iscrowd=0), dict(id=70000, category_id=5, iscrowd=1)]
    write(folder, 'annotations/panoptic_val2017.json', dict(
        images=[dict(id=7, file_name='7.jpg', width=60, height=40)], annotations=[dict(image_id=7, file_name='7.png', segments_info=info)],
        categories=[dict(id=5, name='fox', isthing=1), dict(id=9, name='sky', isthing=0)]))

def info(**changes): return at('annotations', 0, 'segments_info', 0, value=lambda s: s | changes)

PANOPTIC = DANGLING | {
    'a map that is not there': at('annotations', 0, 'file_name', value='8.png'), 'no such category': info(category_id=8), 'a segment twice': info(id=300), 'a number that is no colour': info(id=2**24), 'no such image': at('annotations', 0, 'image_id', value=8),
    'no segments': at('annotations', 0, 'segments_info', value=DROP), 'a segment that is a number': at('annotations', 0, 'segments_info', 0, value=11), 'a category without a kind': at('categories', 0, 'isthing', value=DROP), 'a category twice': at('categories', 0, 'id', value=9),
    'an image twice': at('annotations', value=lambda a: a + a)}
HALF = np.where(SEGMENTS == 300, np.arange(60) < 45, False)   # 15 of the fox's 20 columns
PREDICTED = np.where(HALF, 1, np.where(SEGMENTS == 70000, 2, 3))
# The fox is matched with IoU 150/200, the fox in the crowd does not count, and the sky has 2100 of 2150 pixels
add('coco-panoptic', 'val2017', 'annotations/panoptic_val2017.json', panoptic, ['7'], [dict(pixels=PREDICTED, segments_info=[dict(id=1, category_id=5), dict(id=2, category_id=5), dict(id=3, category_id=9)])],
    {'PQ': (.75 + 2100/2150)/2, 'PQ, things': .75, 'SQ, stuff': 2100/2150, 'RQ': 1, 'PQ, fox': .75}, PANOPTIC | {'no items': lambda c: c | dict(annotations=[])})


def narratives(folder):
    panoptic(folder)
    parts = [('In this picture', [], False), ('a fox', ['300'], False), (', under', [], False), ('the sky', ['11'], False), ('and foxes', ['70000', '300', '5'], False)]   # two of one image are several
    write(folder, 'annotations/png_coco_val2017.json', [dict(image_id='7', annotator_id=1, caption='', segments=[dict(utterance=text, segment_ids=ids, plural=plural, noun=bool(ids)) for text, ids, plural in parts]), dict(image_id='7', segments=[])])

NARRATIVES = dict(keys=['7.0'], predictions=[[box_mask(1), encode_mask(SEGMENTS == 11), box_mask(1)]], official={'AR': (1 + 1 + 2/3)/3, 'AR, stuff': 1, 'AR, things': 5/6, 'AR, plural': 2/3, 'AR, singular': 1})
add('panoptic-narratives', 'val2017', 'annotations/png_coco_val2017.json', narratives, **NARRATIVES, damages={
    'no such image': at(0, 'image_id', value=8), 'an image that is a word': at(0, 'image_id', value='x'), 'no segments': at(0, 'segments', value=DROP), 'a part without text': at(0, 'segments', 0, 'utterance', value=DROP), 'a segment that is a word': at(0, 'segments', 1, 'segment_ids', value=['x']),
    'a segment that is a list': at(0, 'segments', 1, 'segment_ids', value=[[1]]), 'no phrases': lambda rows: rows[1:], 'a huge number': at(0, 'image_id', value='9'*5000), 'one or several': at(0, 'segments', 1, 'plural', value='no'), 'a row that is a text': at(0, value='x'), 'an object': lambda rows: rows[0]})
add('panoptic-narratives', 'val2017', 'annotations/panoptic_val2017.json', narratives, damages=PANOPTIC, **NARRATIVES)


# What holds for all of them

each_set = pytest.mark.parametrize('data', SETS.values(), ids=list(SETS))

@each_set
def test_items_and_the_official_number(data, tmp_path):
    data.write(tmp_path)
    items = read_benchmark(data.name, tmp_path, data.split)
    assert [item.key for item in items] == data.keys
    scores = measure_predictions(data.name, items, data.predictions)
    assert {name: scores.official[name] for name in data.official} == pytest.approx(data.official, abs=1e-5)
    for name, values in scores.by_item.items(): assert np.isfinite(np.asarray(values, float)).all(), name


def _first(text, more): return text[0] + more + ', ' + text[1:] if text[0] == '[' else '{"more": ' + more + ', ' + text[1:]

def _of_text(change): return lambda path: path.write_text(change(path.read_text(encoding='utf-8')), encoding='utf-8')

def _pipe(path):
    path.unlink()
    os.mkfifo(path)

FILES = {
    'missing': Path.unlink, 'a folder': lambda path: (path.unlink(), path.mkdir()), 'empty': lambda path: path.write_bytes(b''), 'a pipe': _pipe,
    'UTF-16': lambda path: path.write_bytes(path.read_text().encode('utf-16')), 'Latin-1': lambda path: path.write_bytes(path.read_bytes()[:20] + b'\xe9\xe8' + path.read_bytes()[20:])}
JSON = {
    'truncated': _of_text(lambda t: t.rstrip()[:-4]), 'NaN': _of_text(lambda t: _first(t, 'NaN')), 'a number': lambda path: path.write_text('3'), 'a list of numbers': lambda path: path.write_text('[1, 2]'),
    'infinite': _of_text(lambda t: _first(t, '1e999')), 'deep': lambda path: path.write_text('['*100_000), 'half a character': _of_text(lambda t: _first(t, '"\\ud800"'))}

class Evil:
    def __reduce__(self): return os.mkdir, ('was-run',)

PICKLES = {name: FILES[name] for name in ('missing', 'a folder', 'empty', 'a pipe')} | {
    'truncated': lambda path: path.write_bytes(path.read_bytes()[:-9]), 'a text': lambda path: path.write_text('refs'), 'code': lambda path: path.write_bytes(pickle.dumps([Evil()])),
    'an array': lambda path: path.write_bytes(pickle.dumps([np.zeros(3)])), 'a number': lambda path: path.write_bytes(pickle.dumps(3)), 'itself': lambda path: path.write_bytes(b'\x80\x02]q\x00h\x00a.')}

def damages_of(data):
    "Everything that may be wrong with a file: what may be wrong with any, with JSON, and with this one."
    if data.file.endswith('.p'): yield from PICKLES.items()
    else: yield from FILES.items()
    if data.is_json: yield from JSON.items()
    for what, change in data.damages.items():
        def damage(path, change=change):
            if path.suffix == '.p': return path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes())), protocol=2))
            text = path.read_text(encoding='utf-8')
            if data.is_json: path.write_text(json.dumps(change(json.loads(text))))
            else: path.write_text(change(text), encoding='utf-8')
        yield what, damage


@pytest.mark.timeout(20)
@each_set
def test_damaged_files_are_named_in_one_line(data, tmp_path):
    whole = tmp_path/'whole'
    whole.mkdir()
    data.write(whole)
    damages = dict(damages_of(data))
    assert len(damages) >= 10
    for n, (what, damage) in enumerate(damages.items()):
        folder = tmp_path/f'set{n}'
        shutil.copytree(whole, folder)
        damage(folder/data.file)
        try: read_benchmark(data.name, folder, data.split)
        except BadInput as error: message = str(error)
        else: pytest.fail(f'{what}: read')
        assert '\n' not in message and len(message) < 500, what
        if message.startswith((f'{folder}: no items', f'{folder}: the item')): continue   # of `read_benchmark`
        assert str(folder) in message and Path(data.file).name in message, (what, message)


@each_set
def test_images_that_are_not_there_are_noticed_when_the_set_is_read(data, tmp_path):
    data.write(tmp_path)
    images = sorted(path for path in tmp_path.rglob('*') if path.suffix in ('.jpg', '.png'))
    if not images: pytest.skip('a set without images')
    for path in images: path.unlink()
    with pytest.raises(BadInput) as error: read_benchmark(data.name, tmp_path, data.split)
    assert '\n' not in str(error.value) and str(tmp_path) in str(error.value)


def test_predictions_that_are_no_texts_are_refused(tmp_path):
    coco_captions(tmp_path)
    items = read_benchmark('coco-captions', tmp_path)
    for predictions in (['a fox', None], [1, 2], ['a fox']):
        with pytest.raises(BadInput): measure_predictions('coco-captions', items, predictions)


# Regions: what tests of files do not reach

def test_masks_as_run_lengths_and_outlines():
    for n in BOXES:
        assert (decode_mask(outline(n), 40, 60) == box_mask(n)).all()
        assert (decode_mask(json.loads(json.dumps(encode_mask(box_mask(n)))), 40, 60) == box_mask(n)).all()


@pytest.mark.parametrize('mask', [np.zeros((40, 61), bool), np.zeros((40, 60)), None, 3, {}, dict(size=[40, 60], counts=[1]), dict(size=[40, 60], counts='zzz'), dict(size=[60, 40], counts=[2400])], ids=str)
def test_predicted_masks_that_are_none(mask, tmp_path):
    coco_instances(tmp_path)
    items = read_benchmark('coco-instances', tmp_path)
    with pytest.raises(BadInput, match='the mask for 7-5') as error: measure_predictions('coco-instances', items, [mask, mask])
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('change', [dict(pixels=PREDICTED[:9]), dict(segments_info=[]), dict(pixels='nowhere.png'), dict(segments_info=[dict(id=1)]), dict(segments_info=3)], ids=lambda c: str(list(c)))
def test_predicted_segments_that_are_none(change, tmp_path):
    panoptic(tmp_path)
    items, good = read_benchmark('coco-panoptic', tmp_path), SETS['coco-panoptic val2017 annotations/panoptic_val2017.json'].predictions[0]
    with pytest.raises(BadInput) as error: measure_predictions('coco-panoptic', items, [good | change])
    assert '\n' not in str(error.value)


def test_a_map_and_its_list_must_agree(tmp_path):
    panoptic(tmp_path)
    item, = read_benchmark('coco-panoptic', tmp_path)
    assert (item.pixels() == SEGMENTS).all()
    colour_map(tmp_path, 'annotations/panoptic_val2017/7.png', np.where(box_mask(3), 5, SEGMENTS))
    with pytest.raises(BadInput, match='7.png'): item.pixels()
    with pytest.raises(BadInput, match='no segments of the image 8'): CocoPanoptic(tmp_path/'annotations'/'panoptic_val2017.json', tmp_path, tmp_path).of_image(8)


@pytest.mark.parametrize('seed', range(5))
def test_panoptic_quality_against_the_definition(seed):
    "All pairs of masks, one after another, as the paper defines it; no crowds, but pixels without a segment."
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 5, (6, 6)).repeat(4, 0).repeat(4, 1)
    predicted = np.where(rng.random(true.shape) < .3, rng.integers(1, 6, true.shape), np.maximum(true, 1))
    known = true > 0
    categories, guesses = {n: n % 2 for n in np.unique(true[known]).tolist()}, {n: n % 2 for n in np.unique(predicted).tolist()}
    counts = {c: np.zeros(4) for c in (0, 1)}
    free, left = set(categories), set(guesses)
    for t in categories:
        for p in guesses:
            a, b = true == t, (predicted == p) & known
            iou = (a & b).sum()/(a | b).sum()
            if iou > .5 and categories[t] == guesses[p]:
                counts[categories[t]] += (iou, 1, 0, 0)
                free.remove(t)
                left.remove(p)
    for t in free: counts[categories[t]][3] += 1
    for p in left: counts[guesses[p]][2] += ((predicted == p) & ~known).sum() <= (predicted == p).sum()/2
    ours = panoptic_counts(true, {n: (c, False) for n, c in categories.items()}, predicted, guesses)
    for category, row in counts.items(): assert np.allclose(row, ours.get(category, np.zeros(4)))
    assert 0 < panoptic_quality(ours)['PQ'] < 1


def test_boxes_against_torchvision():
    import torch
    from torchvision.ops import box_convert, box_iou
    a, b = torch.rand(2, 40, 4, generator=torch.Generator().manual_seed(1)) + .01
    theirs = box_iou(box_convert(a, 'xywh', 'xyxy'), box_convert(b, 'xywh', 'xyxy')).diagonal()
    assert np.allclose(box_overlaps(a, b), theirs, atol=1e-6) and 0 < theirs.mean() < 1


def test_code_in_a_pickle_did_not_run(): assert not Path('was-run').exists()


def test_clip_score_is_two_and_a_half_times_the_cosine_and_never_negative(tmp_path):
    import torch
    class Embedding(torch.nn.Module):
        "A CLIP whose embedding of an image is its first channel, and of a text the vector that stands in it."
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))
        def encode_image(self, pixels): return self.scale*pixels
        def encode_text(self, tokens): return self.scale*tokens
    def tokenizer(texts):
        assert all(text.startswith('A photo depicts ') for text in texts)
        return torch.tensor([[float(x) for x in text.split()[3:]] for text in texts])
    image(tmp_path, 'a.png')
    images = [tmp_path/'a.png', Image.new('RGB', (4, 4)), tmp_path/'a.png']
    scores = clip_score(Embedding(), lambda image: torch.tensor([3., 4.]), tokenizer, images, ['3 4', '4 -3', '4 3'], batch_size=2)
    assert np.allclose(scores, [2.5, 0, 2.5*24/25])
    assert np.allclose(clip_score(Embedding(), lambda image: torch.tensor([3., 4.]), tokenizer, images[:1], ['-3 -4']), [0])
    with pytest.raises(BadInput): clip_score(Embedding(), None, tokenizer, images, ['3 4'])


# Splits and measures beside the reported ones

def test_the_rest_of_the_validation_images_is_trained_on(tmp_path):
    karpathy('coco', 'val2014')(tmp_path)
    assert [item.key for item in read_benchmark('coco-karpathy', tmp_path, 'train')] == ['2.jpg', '4.jpg']
    with pytest.raises(BadInput, match='no split'): read_benchmark('coco-karpathy', tmp_path, 'restval')


def test_the_name_in_flickr8k_that_has_no_image(tmp_path):
    flickr_token(tmp_path)
    assert [item.key for item in read_benchmark('flickr8k', tmp_path, 'all')] == ['1.jpg', '2.jpg', '3.jpg']


def test_wups_in_both_directions():
    near = {frozenset('ab'): .95, frozenset('ac'): .5, frozenset('bc'): .2}
    def similarity(a, b): return near[frozenset((a, b))]
    def score(answer, truth, threshold): return questions.wups(answer, truth, similarity, threshold)
    assert score('b', ('a',), .9) == .95 and score('c', ('a',), .9) == pytest.approx(.05) and score('c', ('a',), 0) == .5
    assert score('a', ('a', 'c'), 0) == .5 and score('a, c', ('a',), 0) == .5 and score('c, b', ('a', 'c'), 0) == .95 and score(' , ', ('a',), 0) == 0


# On files that were published

@pytest.mark.skipif(not os.environ.get('FROZEN_NB_REAL'), reason='not run: FROZEN_NB_REAL is unset')
@pytest.mark.parametrize('name, part, split, items, check', [
    ('flickr8k', 'flickr8k', 'all', 804, lambda x: len(x.captions) == 5),
    ('coco-captions', 'coco', 'val2017', 25, lambda x: len(x.captions) == 5),
    ('coco-captions', 'coco_panoptic', 'val2017', 44, lambda x: len(x.captions) >= 5),
    ('coco-panoptic', 'coco_panoptic', 'val2017', 44, lambda x: {*x.segments}), ('coco-panoptic', 'coco_panoptic', 'train2017', 100, lambda x: {*x.segments}),
    ('coco-instances', 'coco', 'val2017', 98, lambda x: len(x.data.annotations) == 213), ('coco-instances', 'coco_panoptic', 'train2017', None, lambda x: len(x.data.annotations) == 747),
    ('sunspot', 'sunspot', 'train', None, lambda x: len(x.box) == 4 and x.phrase),
    ('daquar', 'daquar', 'all', 7245, lambda x: x.image.suffix == '.jpg'),
], ids=lambda x: getattr(x, "__name__", None) and "check" or str(x))
def test_published_files(name, part, split, items, check):
    folder = real_path(part)
    if folder is None: pytest.skip(f'not run: FROZEN_NB_REAL has no {part}')
    rows = read_benchmark(name, folder, split)
    assert len(rows) == (items or len(rows)) > 0 and all(map(check, rows)) and BENCHMARKS[name].tried_on == 'its files'
