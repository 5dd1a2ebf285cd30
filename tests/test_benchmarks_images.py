"""Readers of captions, questions about images, and regions: of each a well-formed file with the number that its
data set's evaluation would give, worked out by hand, and files that are not well-formed, each one line that names the file."""
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from PIL import Image

from frozen_nb.benchmarks import captions, questions  # noqa: F401: they make their benchmarks known
from frozen_nb.benchmarks.readers import BENCHMARKS, measure_predictions, read_benchmark
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

add('pope', 'popular', 'coco_pope_popular.json', pope, list('1234'), ['Yes', 'No, there is not', 'no', 'yes'], dict(accuracy=.5, precision=.5, recall=.5, F1=.5, yes=.5), {
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


# What holds for all of them

each_set = pytest.mark.parametrize('data', SETS.values(), ids=list(SETS))

@each_set
def test_items_and_the_official_number(data, tmp_path):
    data.write(tmp_path)
    items = read_benchmark(data.name, tmp_path, data.split)
    assert [item.key for item in items] == data.keys
    scores = measure_predictions(data.name, items, data.predictions)
    assert {name: scores.official[name] for name in data.official} == pytest.approx(data.official, abs=1e-6)
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

def damages_of(data):
    "Everything that may be wrong with a file: what may be wrong with any, with JSON, and with this one."
    yield from FILES.items()
    if data.is_json: yield from JSON.items()
    for what, change in data.damages.items():
        def damage(path, change=change):
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


# On files that were published

@pytest.mark.skipif(not os.environ.get('FROZEN_NB_REAL'), reason='not run: FROZEN_NB_REAL is unset')
@pytest.mark.parametrize('name, part, split, items, check', [
    ('flickr8k', 'flickr8k', 'all', 804, lambda x: len(x.captions) == 5),
    ('coco-captions', 'coco', 'val2017', 25, lambda x: len(x.captions) == 5),
    ('coco-captions', 'coco_panoptic', 'val2017', 44, lambda x: len(x.captions) >= 5),
    ('daquar', 'daquar', 'all', 7245, lambda x: x.image.suffix == '.jpg'),
], ids=str)
def test_published_files(name, part, split, items, check):
    folder = real_path(part)
    if folder is None: pytest.skip(f'not run: FROZEN_NB_REAL has no {part}')
    rows = read_benchmark(name, folder, split)
    assert len(rows) == items and all(map(check, rows)) and BENCHMARKS[name].tried_on == 'its files'
