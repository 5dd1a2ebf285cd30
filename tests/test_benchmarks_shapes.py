"""Readers of classes, points, skeletons, frames and paths: each on one well-formed folder, with the official number of predictions
scored by hand, and on folders that are wrong in ten ways, each one line that names the file."""
import gzip, io, json, shutil, sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from frozen_nb.benchmarks import classes, motion
from frozen_nb.benchmarks.readers import BENCHMARKS, measure_predictions, read_benchmark
from frozen_nb.core.frozen import BadInput


def encoded(size=8):
    f = io.BytesIO()
    Image.new('RGB', (size, size), (200, 30, 30)).save(f, 'JPEG')
    return f.getvalue()


def h5(**arrays):
    "An HDF5 file; where the library is not there, a text that says so."
    h5py = pytest.importorskip('h5py')
    f = io.BytesIO()
    with h5py.File(f, 'w') as out:
        for name, array in arrays.items(): out[name] = array
    return f.getvalue()


def voxels(array, cut=None):
    f = io.BytesIO()
    np.save(f, array)
    return gzip.compress(f.getvalue())[:cut]


JPEG, FISH, DOG = encoded(), 'n01443537', 'n02098286'   # classes 1 and 203


def case(files, main, n, predictions, official, bad, split=None, needs=None):
    """Files by name; the one that is spoiled; the number of items; predictions and official numbers; what can be wrong:
    name -> what the file holds instead, bytes or text or a function that changes the folder, or (old part, new part) of its text."""
    return SimpleNamespace(files=files, main=main, n=n, predictions=predictions, official=official, bad=bad, split=split, needs=needs)


# What can be wrong with a folder of images, all of one class or one among many

def gone(path): path.unlink()
def folder_instead(path): gone(path), path.mkdir()
def dead_link(path): gone(path), path.symlink_to('nowhere')
def loop(path): gone(path), path.symlink_to(path.name)
def no_class(path): path.parent.rename(path.parent.with_name('n00000000'))
def other_class(path): path.parent.with_name('cat').mkdir()
def file_for_a_class(path): shutil.rmtree(path.parent), path.parent.write_text('x')
def no_folders(path): [shutil.rmtree(p) for p in path.parent.parent.iterdir() if p.is_dir()]
def file_for_all(path): shutil.rmtree(path.parent.parent), path.parent.parent.write_text('x')


IMAGE = {'missing': gone, 'a folder': folder_instead, 'a link to nothing': dead_link, 'a link to itself': loop, 'empty': b'', 'no image': b'hello', 'cut off': JPEG[:200], 'zeros': bytes(500)}
FOLDERS = IMAGE | {'no such class': no_class, 'a class more': other_class, 'no folders': no_folders}
CORRUPTED = {f'{corruption}/{severity}/{FISH}/a.JPEG': JPEG for corruption in classes.ALEXNET_ERRORS for severity in range(1, 6)}
HALF = {name: .4 for name in classes.ALEXNET_ERRORS}   # severities 4 and 5 are wrong
TEXT = {'missing': gone, 'a folder': folder_instead, 'empty': b'', 'latin-1': 'B\xe4r\n'.encode('latin-1'), 'zeros': bytes(5000)}
TINY = {'wnids.txt': f'{DOG}\n{FISH}\n', 'words.txt': f'{FISH}\tgoldfish\n', 'val/val_annotations.txt': f'a.JPEG\t{FISH}\t0\t0\t9\t9\nb.JPEG\t{DOG}\t0\t0\t9\t9\n',
        'val/images/a.JPEG': JPEG, 'val/images/b.JPEG': JPEG, f'train/{FISH}/images/x.JPEG': JPEG, f'train/{DOG}/images/x.JPEG': JPEG}
LABELS = {
    'imagenet': case({f'val/{FISH}/a.JPEG': JPEG, f'val/{DOG}/b.JPEG': JPEG}, f'val/{DOG}/b.JPEG', 2, [[1, 2, 3, 4, 5], [5, 4, 3, 203, 1]], {'top-1': .5, 'top-5': 1}, FOLDERS),
    'imagenet-sample': case({'classes.txt': f'{FISH}_goldfish\n{DOG}_west_terrier\n', f'{DOG}_west_terrier.JPEG': JPEG}, 'classes.txt', 1, [1], {'top-1': 1},
                            TEXT | {'no name': ('_goldfish', ''), 'no number': (FISH, 'fish'), 'a class twice': (f'{FISH}_goldfish', f'{DOG}_dog'), 'a class less': (f'{DOG}_west_terrier\n', ''), 'blanks': ' \n \n'}),
    'tiny-imagenet': case(TINY, 'val/val_annotations.txt', 2, [1, 1], {'top-1': .5},
                          TEXT | {'another class': (FISH, 'n00000000'), 'a column less': ('\t9\n', '\n'), 'a box of words': ('\t0', '\tx'), 'an image twice': ('b.JPEG', 'a.JPEG'), 'an image that is not there': ('b.JPEG', 'c.JPEG'), 'a line less': (f'a.JPEG\t{FISH}\t0\t0\t9\t9\n', '')}),
    'imagenet-c': case(CORRUPTED, f'fog/3/{FISH}/a.JPEG', 75, [1, 1, 1, 2, 2]*15, {'top-1': .6, 'error of fog': .4, 'mCE': np.mean([.4/x for x in classes.ALEXNET_ERRORS.values()])}, FOLDERS),
    'imagenet-a': case({f'{FISH}/a.jpg': JPEG, f'{DOG}/b.jpg': JPEG}, f'{FISH}/a.jpg', 2, [1, 1], {'top-1': .5}, FOLDERS),
    'imagenet-r': case({f'{FISH}/a.jpg': JPEG, f'{DOG}/b.jpg': JPEG}, f'{DOG}/b.jpg', 2, [np.int64(1), [203, 7]], {'top-1': 1}, FOLDERS)}

CUBES = np.zeros((3, 4, 4, 4), np.uint8)
CUBES[:, 0, 0, 0] = CUBES[0, 3, 3, 3] = 1
NAN = np.zeros((2, 5, 3), np.float32) + np.nan


def skeleton(frames=2, last='1.0e+00'): return f'  1.0e+02  8.0e+01  6.0e+02  {last}\n'*20*frames


WALK = [f'{10*t}\t{person}\t{t}\t{person}\n' for t in range(21) for person in (1., 2.)]
ARGO = ['TIMESTAMP,TRACK_ID,OBJECT_TYPE,X,Y,CITY_NAME\n'] + [f'{t/10},{who},{kind},{t},0,MIA\n' for t in range(50) for who, kind in (('a', 'AGENT'), ('b', 'AV'))]
SSV2 = {'something-something-v2-validation.json': json.dumps([dict(id='7', label='holding a cup', template='Holding [something]', placeholders=['cup']), dict(id='8', label='x', template='Moving [something] up')]),
        'something-something-v2-labels.json': json.dumps({'Holding something': '0', 'Moving something up': '1'}), 'frames/7/00001.jpg': JPEG, 'frames/7/00002.jpg': JPEG, 'frames/8/00001.jpg': JPEG}
KINETICS = {'val.csv': 'label,youtube_id,time_start,time_end,split\nzumba,abc,10,20,val\n"juggling, balls",d-f,0,10,val\n', 'val/zumba/abc_000010_000020/1.jpg': JPEG, 'val/juggling, balls/d-f_000000_000010/1.jpg': JPEG}
H5 = {'missing': gone, 'a folder': folder_instead, 'empty': b'', 'no HDF5': b'hello', 'zeros': bytes(5000)}


def clouds(n=3, labels=(0, 4, 4), name='label', data=None): return lambda: h5(**{'data': np.zeros((n, 5, 3), np.float32) if data is None else data, name: np.array(labels)})


H5 |= {'NaN': clouds(2, (0, 4), data=NAN), 'a label too large': clouds(labels=(0, 4, 99)), 'a label below zero': clouds(labels=(0, -1, 4)), 'a label less': clouds(labels=(0, 4)), 'no labels': clouds(name='mask'),
       'labels with a comma': clouds(labels=(0., .5, 1.)), 'points of two numbers': clouds(data=np.zeros((3, 5, 2), np.float32)), 'points of texts': clouds(data=np.zeros((3, 5, 3), 'S3'))}
MOTION = {
    'modelnet10-voxels': case({'chair.npy.gz': voxels(CUBES), 'monitor.npy.gz': voxels(CUBES[:1])}, 'monitor.npy.gz', 4, [2, 2, 2, 2], {'top-1': .75, 'mean class accuracy': .5},
                              {'missing': gone, 'a folder': folder_instead, 'empty': b'', 'no gzip': b'hello', 'zeros': bytes(500), 'cut off': voxels(CUBES, -30), 'a number above one': voxels(CUBES*2), 'NaN': voxels(np.full((1, 2, 2, 2), np.nan)),
                               'no cubes': voxels(CUBES[:, 1:]), 'a flat array': voxels(CUBES[0]), 'no shapes': voxels(CUBES[:0]), 'an empty shape': voxels(0*CUBES), 'a pickle': voxels(np.array([dict(a=1)], object)), 'another class': lambda path: path.rename(path.with_name('cat.npy.gz'))}),
    'modelnet40': case({'shape_names.txt': '\n'.join(f's{i}' for i in range(40)), 'test_files.txt': 'data/modelnet40_ply_hdf5_2048/ply_data_test0.h5\n', 'ply_data_test0.h5': clouds(labels=[[0], [4], [4]])}, 'ply_data_test0.h5', 3, [0, 4, 0],
                       {'top-1': 2/3, 'mean class accuracy': .75}, H5, needs='h5py'),
    'scanobjectnn': case({'main_split/test_objectdataset_augmentedrot_scale75.h5': clouds()}, 'main_split/test_objectdataset_augmentedrot_scale75.h5', 3, [1, 4, 4], {'top-1': 2/3, 'mean class accuracy': .5}, H5, needs='h5py'),
    'msr-action3d': case({f'a{a:02}_s{s:02}_e01_skeleton.txt': skeleton() for a in (1, 20) for s in (1, 2)}, 'a20_s02_e01_skeleton.txt', 2, [0, 0], {'top-1': .5},
                         {k: v for k, v in TEXT.items() if k != 'missing'} | {'NaN': skeleton(last='nan'), 'a word': skeleton(last='one'), 'a column less': skeleton(last=''), 'a line less': skeleton()[43:], 'infinity': skeleton(last='inf'),
                                 'another name': lambda path: path.rename(path.with_name('a21_s02_e01_skeleton.txt')), 'no take': lambda path: path.rename(path.with_name('a20_s02_e00_skeleton.txt')), 'an eleventh person': lambda path: path.rename(path.with_name('a20_s12_e01_skeleton.txt'))}),
    'ssv2': case(SSV2, 'something-something-v2-validation.json', 2, [0, 0], {'top-1': .5},
                 TEXT | {'NaN': ('"7"', 'NaN'), 'a number for a text': ('"7"', '7'), 'no field': ('"template"', '"pattern"'), 'another label': ('Holding [', 'Eating ['), 'an id twice': ('"8"', '"7"'), 'cut off': ('"placeholders": ["cup"]}', ''), 'no folder of frames': ('"7"', '"9"'), 'an object': ('[', '{"rows": [')}),
    'kinetics': case(KINETICS, 'val.csv', 2, [1, 1], {'top-1': .5},
                     TEXT | {'no column': ('youtube_id', 'id'), 'a cell less': (',10,20', ',10'), 'a cell more': ('abc', 'abc,abc'), 'a word for a time': ('10,20', 'ten,20'), 'no label': ('zumba', ''), 'an open quote': ('balls"', 'balls'), 'a clip twice': ('"juggling, balls",d-f,0,10', 'zumba,abc,10,20')}),
    'eth-ucy': case({'eth/test/biwi_eth.txt': ''.join(WALK)}, 'eth/test/biwi_eth.txt', 4, [[[8. + t, person] for t in range(12)] for person in (1., 2.)] + [[[[9. + t, person] for t in range(12)], [[0, 0]]*12] for person in (1., 3.)],
                    {'minADE': .25, 'minFDE': .25, 'miss rate': 0},
                    TEXT | {'NaN': ('\t5\t', '\tnan\t'), 'a word': ('\t5\t', '\tfive\t'), 'a column less': ('\t5\t', '\t'), 'a person twice': ('2.0\t0\t', '1.0\t0\t'), 'one person': lambda path: path.write_text(''.join(WALK[::2])), 'too short': lambda path: path.write_text(''.join(WALK[:20])), 'commas': lambda path: path.write_text(''.join(WALK).replace('\t', ','))}),
    'argoverse': case({'val/data/1.csv': ''.join(ARGO)}, 'val/data/1.csv', 1, [[[[t, 1] for t in range(20, 50)], [[t, 0 if t == 49 else 5] for t in range(20, 50)]]], {'minADE': 29*5/30, 'minFDE': 0, 'miss rate': 0},
                      TEXT | {'no column': ('OBJECT_TYPE', 'TYPE'), 'NaN': ('AGENT,7', 'AGENT,nan'), 'a word': ('AGENT,7', 'AGENT,seven'), 'a cell less': (',MIA', ''), 'no agent': lambda path: path.write_text(''.join(ARGO).replace('AGENT', 'OTHERS')), 'a row of the agent less': ('a,AGENT', 'a,AV'), 'two times in one': ('4.9,a', '4.8,a')}),
}
CASES = LABELS | MOTION


def write(folder, files):
    for name, content in files.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        content = content() if callable(content) else content
        (folder/name).write_bytes(content if isinstance(content, bytes) else content.encode())


def use(items):
    "Open what an item only names."
    for item in items:
        for name in ('image', 'points', 'joints', 'frames'): getattr(item, name, None)
    return items


@pytest.mark.parametrize('name', CASES)
def test_a_well_formed_folder_gives_its_items_and_the_official_number(name, tmp_path):
    c = CASES[name]
    write(tmp_path, c.files)
    items = use(read_benchmark(name, tmp_path, c.split))
    assert len(items) == c.n
    scores = measure_predictions(name, items, c.predictions)
    assert {key: scores.official[key] for key in c.official} == pytest.approx(c.official)


def test_every_reader_has_a_case_and_ten_kinds_of_folders_that_are_wrong():
    here = {name for name, benchmark in BENCHMARKS.items() if benchmark.read.__module__ in (classes.__name__, motion.__name__)}
    assert here == set(CASES)
    assert all(len(c.bad) >= 10 for c in CASES.values())


@pytest.mark.parametrize(('name', 'kind'), [(name, kind) for name, c in CASES.items() for kind in c.bad])
def test_a_folder_that_is_wrong_is_named_in_one_line(name, kind, tmp_path):
    c = CASES[name]
    write(tmp_path, {c.main: c.files[c.main]} if kind == 'missing' and c.main == 'monitor.npy.gz' else c.files)
    path, wrong = tmp_path/c.main, c.bad[kind]
    if isinstance(wrong, tuple):
        text = path.read_text()
        assert wrong[0] in text
        path.write_text(text.replace(*wrong, 1))
    elif callable(wrong) and wrong.__code__.co_argcount: wrong(path)
    else:
        wrong = wrong() if callable(wrong) else wrong
        path.write_bytes(wrong if isinstance(wrong, bytes) else wrong.encode())
    with pytest.raises(BadInput) as error: use(read_benchmark(name, tmp_path, c.split))
    message = str(error.value)
    assert str(tmp_path) in message and '\n' not in message and len(message) < 500


def test_a_clip_without_frames_is_left_out_with_a_warning(tmp_path):
    write(tmp_path, KINETICS)
    shutil.rmtree(tmp_path/'val/zumba')
    with pytest.warns(UserWarning, match='1 of 2 clips'): items = read_benchmark('kinetics', tmp_path)
    assert [(item.key, item.label) for item in items] == [('d-f_000000_000010', 0)]


def test_without_h5py_there_is_one_line_that_says_how_to_get_it(tmp_path, monkeypatch):
    write(tmp_path, {'main_split/test_objectdataset_augmentedrot_scale75.h5': b'x'})
    monkeypatch.setitem(sys.modules, 'h5py', None)
    with pytest.raises(BadInput, match='pip install h5py$'): read_benchmark('scanobjectnn', tmp_path)


def test_points_are_centres_of_voxels_and_frames_are_in_order(tmp_path):
    write(tmp_path, MOTION['modelnet10-voxels'].files | SSV2)
    first = read_benchmark('modelnet10-voxels', tmp_path)[0]
    assert first.points.tolist() == [[-.75]*3, [.75]*3] and first.points.dtype == np.float32
    clip = read_benchmark('ssv2', tmp_path)[0]
    assert [Path(path).name for path in clip.frames] == ['00001.jpg', '00002.jpg']


@pytest.mark.parametrize('wrong', ['1', True, -1, [], [1, 'a'], None, 1.])
def test_a_prediction_that_is_no_class_is_refused(wrong, tmp_path):
    write(tmp_path, LABELS['imagenet'].files)
    items = read_benchmark('imagenet', tmp_path)
    with pytest.raises(BadInput, match='b.JPEG'): measure_predictions('imagenet', items, [1, wrong])


@pytest.mark.parametrize('wrong', [[[0, 0]]*11, [[0, 0, 0]]*12, [], 'a', [[float('nan'), 0]]*12, None])
def test_a_prediction_that_is_no_path_is_refused(wrong, tmp_path):
    write(tmp_path, MOTION['eth-ucy'].files)
    items = read_benchmark('eth-ucy', tmp_path)
    with pytest.raises(BadInput, match='biwi_eth/0/1'): measure_predictions('eth-ucy', items, [wrong]*4)


def test_images_are_opened_only_where_they_are_used(tmp_path, monkeypatch):
    write(tmp_path, LABELS['imagenet'].files)
    monkeypatch.setattr(classes, 'open_image', lambda path: 1/0)
    items = read_benchmark('imagenet', tmp_path)
    with pytest.raises(ZeroDivisionError): items[0].image
