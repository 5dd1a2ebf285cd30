"""A full disk under the fits (`FROZEN_NB_CAMPAIGNS=full`: under each of the five), from the shell: one line, what was there stays whole, and the same command goes through when there is room."""
import json, os, shutil, subprocess, sys


import pytest

from frozen_nb.world.captions import captions
from frozen_nb.world.documents import biography
from frozen_nb.world.drawing import draw
from frozen_nb.world.scenes import scene

COMMAND = [sys.executable, '-c', 'from frozen_nb.cli import main; main()']


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Twelve images with captions, classes and instances; questions with rationales; documents."
    folder = tmp_path_factory.mktemp('data')
    rows, images, annotations = [], [], []
    for i in range(12):
        name = f'{"ab"[i % 2]}/{i}.png'
        (folder/'images'/name).parent.mkdir(parents=True, exist_ok=True)
        draw(scene(i), 64).save(folder/'images'/name)
        rows.append(dict(image=f'images/{name}', caption=captions(scene(i))[0]))
        images.append(dict(id=i, file_name=name, width=64, height=64))
        outline = [10, 10, 40, 10, 40, 40, 10, 40]
        annotations.append(dict(id=i, image_id=i, category_id=1, segmentation=[outline], iscrowd=0))
    coco = dict(images=images, categories=[dict(id=1, name='fox')], annotations=annotations)
    questions = [dict(question=f'which animal is number {i}?', choices=['a fox', 'a goat'], answer=i % 2, rationales=['it is red', 'it climbs']) for i in range(20)]
    (folder/'instances.json').write_text(json.dumps(coco))
    for name, lines in {'captions.jsonl': rows, 'questions.jsonl': questions}.items(): (folder/name).write_text('\n'.join(map(json.dumps, lines)))
    (folder/'texts').mkdir()
    for i in range(3): (folder/'texts'/f'{i}.txt').write_text(biography(i, 1).text)
    return folder


FITS = dict(
    limber='limber --data captions.jsonl --steps 2',
    flmm='flmm --data instances.json --images images --steps 2 --sam none',
    lm4visual='lm4visual --data images --steps 2 --width 24 --depth 1 --heads 2 --batch 4',
    generative_adapter='generative_adapter --data texts --steps 2 --width 8 --batch 2',
    pinto='pinto --data questions.jsonl --own --steps 2 --batch 4')


@pytest.fixture
def disk(tmp_path):
    place = tmp_path/'disk'
    place.mkdir()
    done = shutil.which('mount') and subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=60m', 'tmpfs', place], capture_output=True).returncode == 0
    if not done: pytest.skip('needs to mount a file system')
    yield place
    subprocess.run(['umount', '-l', place], capture_output=True)


def fill(place, room):
    "Take what is left on a disk, but for `room` bytes."
    free = os.statvfs(place)
    (place/'filler').write_bytes(bytes(max(0, free.f_bavail*free.f_frsize - room)))

def contents(folder): return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}

def run(data, method, out, cache, seed):
    line = ['fit', *FITS[method].split(), '--out', str(out), '--seed', str(seed), '--device', 'cpu']
    return subprocess.run([*COMMAND, *line], cwd=data, capture_output=True, text=True, env=os.environ | dict(FROZEN_NB_CACHE=str(cache), OMP_NUM_THREADS='1'))

CASES = [(method, full) for method in FITS for full in ('result', 'cache')]
SHORT = [('lm4visual', 'result'), ('pinto', 'cache')]   # of the whole campaign

@pytest.mark.campaign
@pytest.mark.parametrize('method, full', CASES if os.environ.get('FROZEN_NB_CAMPAIGNS') == 'full' else SHORT)
def test_a_fit_on_a_full_disk(data, disk, tmp_path, method, full):
    "`result`: no room for what comes out; `cache`: none for features, rationales and checkpoints."
    out = disk/'out' if full == 'result' else tmp_path/'out'
    cache = tmp_path/'cache' if full == 'result' else disk/'cache'
    first = run(data, method, out, cache, seed=0)
    assert first.returncode == 0, first.stderr
    before = contents(out)
    if full == 'cache': shutil.rmtree(cache)
    fill(disk, 8192 if full == 'result' else 4096)
    failed = run(data, method, out, cache, seed=1)
    lines = failed.stderr.strip().splitlines()
    assert failed.returncode == 2 and len(lines) == 1 and lines[0].startswith('frozen-nb: '), failed.stderr
    assert 'No space left' in lines[0] or 'disk is full' in lines[0]
    assert contents(out) == before and {p.name for p in disk.rglob('.*')} <= {'.lock'}
    (disk/'filler').unlink()
    again = run(data, method, out, cache, seed=1)
    assert again.returncode == 0, again.stderr
    assert contents(out) != before
