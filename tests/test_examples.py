"""Every fenced block of the README and of the notebooks runs as it is pasted, and shows what it should.

Python blocks of a page run in one interpreter, in order, in a folder with a few files of a reader's
own. A block that names a model of the hub may end with the one line that says how to get it.
"""
import json
import os
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser

import numpy as np
import pytest
from PIL import Image

from conftest import root
from frozen_nb.core.frozen import BadInput
from frozen_nb.world.captions import captions
from frozen_nb.world.documents import biography
from frozen_nb.world.drawing import draw, masks
from frozen_nb.world.scenes import scene

ANIMAL = scene(2, 'test', n_animals=1)


def blocks(text, language):
    "The fenced blocks of a page in one language."
    return re.findall(rf'^```{language}\n(.*?)^```', text, re.M | re.S)


def markdown_of(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')


README = (root/'README.md').read_text(encoding='utf-8')
PAGES = {p.relative_to(root/'nbs').as_posix(): markdown_of(p) for p in sorted((root/'nbs').rglob('*.ipynb'))}
PAGES = {name: text for name, text in PAGES.items() if name != 'index.ipynb' and blocks(text, 'python')}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "What a reader has: an image, a document, images with captions; and no network."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    draw(ANIMAL, 128).save('animal.png')
    draw(ANIMAL, 128).save('cat.jpg')
    (tmp_path/'document.txt').write_text(biography(0, 1, seed=11).text)
    lines = []
    for i in range(12):
        s = scene(i, 'train', n_animals=1)
        draw(s).save(f'{i}.png')
        lines.append(json.dumps(dict(image=f'{i}.png', caption=captions(s)[0])))
    (tmp_path/'captions.jsonl').write_text('\n'.join(lines))
    (tmp_path/'photos').mkdir()
    for i in range(8): draw(scene(i, 'train', n_animals=1), 128).save(f'photos/{i}.png')
    return tmp_path


def run_blocks(text):
    "Run the Python blocks of a page; the names that they leave, and the models that could not be had."
    names, missing = {}, []
    for block in blocks(text, 'python'):
        try: exec(compile(block, 'example', 'exec'), names)
        except BadInput as error:
            if 'not in the local cache' not in str(error) and "device 'cuda'" not in str(error): raise
            missing.append(str(error))
    return names, missing


def test_python_of_the_readme(folder):
    names, missing = run_blocks(README)
    assert missing == []
    words = names['limber'].caption([names['draw'](names['animals'])])[0].split()
    assert any(a.species in words for a in names['animals'].animals)
    said = {p.phrase for p in names['grounded'].phrases}
    assert any(a.species in phrase for a in names['animals'].animals for phrase in said)
    true = dict(names['document'].questions)
    given = names['answers'](names['lm'], names['questions'], names['adapter'])
    assert [true[q] for q in names['questions']] == given
    assert names['explanation'].answer == 'crocodile'


@pytest.mark.parametrize('page', PAGES)
def test_python_of_a_notebook(page, folder):
    run_blocks(PAGES[page])


def commands(text):
    "The commands of `frozen-nb` on a page."
    lines = '\n'.join(blocks(text, 'sh')).replace('\\\n', ' ').splitlines()
    return [line for line in lines if line.startswith('.venv/bin/frozen-nb')]


@pytest.fixture
def outputs(folder, shell):
    "What each command of the README's examples prints: its words -> the result."
    results = {}
    for line in commands(README):
        words = shlex.split(line)[1:]
        results[words[0]] = shell(*words)
    return results


def test_shell_of_the_readme(outputs):
    animal, document = ANIMAL.animals[0], dict(biography(0, 1, seed=11).questions)
    assert {*outputs} == {'caption', 'ask', 'ground', 'align', 'adapt', 'explain', 'fit'}
    missing = outputs.pop('fit')
    assert missing.status == 2 and missing.err.count('\n') == 1
    assert 'not in the local cache' in missing.err or "device 'cuda'" in missing.err
    assert {r.status for r in outputs.values()} == {0}
    assert animal.species in outputs['caption'].out and animal.species in outputs['ask'].out
    assert outputs['explain'].out.splitlines()[-1].startswith('answer: crocodile')
    answer = outputs['adapt'].out.splitlines()[0].split(' A: ')[1]
    assert answer == document['how old is Dora?']


def test_the_region_of_the_readme_is_the_sky(outputs):
    path = outputs['ground'].out.strip().rpartition(', ')[2]
    found = np.array(Image.open(path).convert('L')) > 127
    sky = masks(ANIMAL, 128).stuff['sky']
    assert (found & sky).sum()/(found | sky).sum() > .8


def test_the_scores_of_the_readme_are_of_images_that_come_near_to_text(outputs):
    "Inside the language model images are nearer to text than at its entry, and not as near as text to text."
    lines = dict(line.split(': ') for line in outputs['align'].out.strip().splitlines())
    score = {name: float(value.split()[0]) for name, value in lines.items()}
    assert score['alignment score, same layer'] > 2*score['alignment score, image at entry'] > 0
    assert score['mean cosine, image with text'] < score['mean cosine, text with text']


def test_the_two_commands_are_those_of_the_readme():
    lines = [line for line in '\n'.join(blocks(README, 'sh')).splitlines() if line.startswith('python3 -m venv')]
    assert len(lines) == 2 and lines[0].endswith('frozen-nb reproduce') and lines[1].endswith('-m pytest -q -n 2')


def test_no_link_to_a_host_is_written_by_hand():
    config = ConfigParser(delimiters=['='])
    config.read(root/'settings.ini', encoding='utf-8')
    host = config['DEFAULT']['git_url'].split('//')[1].split('/')[0]
    pages = {'README.md': README} | {name: markdown_of(root/'nbs'/name) for name in PAGES}
    assert [name for name, text in pages.items() if f'{host}/{config["DEFAULT"]["user"]}' in text] == []


def test_the_first_page_is_short_and_begins_with_a_picture():
    lines = README.splitlines()
    assert len(lines) <= 250
    before = README[:README.index('## Quickstart')]
    assert '![' in before and 'README_files' in before
