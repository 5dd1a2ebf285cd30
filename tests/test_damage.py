"""Damage that a file system does: flipped bits in what is saved and read back, and disks that are full.
Flipped bits: each one is refused in one line, or changes nothing. Full disks: one line, the earlier result whole, nothing left, and the same call works once there is room."""
import json, os, random, shutil, subprocess

import pytest, torch

import test_kill_points as kills
from frozen_nb.core.figures import save_figure
from frozen_nb.core.folders import disk_errors, file_hash, read_folder, write_whole
from frozen_nb.core.frozen import BadInput, data_path
from frozen_nb.core.training import write_checkpoint
from test_kill_points import SAVERS, hidden, models

torch.set_num_threads(1)
whole_form = os.environ.get('FROZEN_NB_CAMPAIGNS') == 'full'
FOLDERS = [name for name in SAVERS if name not in ('tree', 'checkpoint', 'file')]


# Flipped bits

def flipped(data, bit): return data[:bit//8] + bytes([data[bit//8] ^ 1 << bit % 8]) + data[bit//8 + 1:]

def outcome(load, folder, expected):
    try: return 'as before' if load(folder) == expected else 'SILENT'
    except BadInput as error: return 'refused' if '\n' not in str(error) else 'several lines'

@pytest.mark.parametrize('saver', FOLDERS)
def test_single_bits(tmp_path, saver):
    "Bits of every file of a folder, in turn; those of the list of hashes as well."
    save, load, _ = SAVERS[saver]
    save(1, tmp_path/'out')
    expected, clock = load(tmp_path/'out'), random.Random(saver)
    paths = sorted(p for p in (tmp_path/'out').iterdir() if p.stat().st_size)
    for i in range(100 if whole_form else 6):
        path = paths[i % len(paths)]
        good = path.read_bytes()
        path.write_bytes(flipped(good, clock.randrange(8*len(good))))
        assert outcome(load, tmp_path/'out', expected) == 'refused', path.name
        path.write_bytes(good)
    assert load(tmp_path/'out') == expected

@pytest.mark.parametrize('name', ['obqa', 'csqa', 'qasc', 'strategy'])
def test_single_bits_of_a_prompt_that_ships(tmp_path, name):
    from frozen_nb.core.frozen import data_path
    from frozen_nb.pinto import read_prompt
    good, clock = data_path('prompts', f'{name}.json').read_bytes(), random.Random(name)
    path = tmp_path/'prompt.json'
    path.write_bytes(good)
    expected = read_prompt(path)
    assert expected == read_prompt(name)
    for i in range(100 if whole_form else 30):
        path.write_bytes(flipped(good, clock.randrange(8*len(good))))
        assert outcome(read_prompt, path, expected) in ('refused', 'as before')


# Full disks

@pytest.fixture
def disk(tmp_path):
    "A small disk of its own, where a process may mount one."
    place = tmp_path/'disk'
    place.mkdir()
    def mount(kilobytes):
        done = shutil.which('mount') and subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={kilobytes}k', 'tmpfs', place], capture_output=True).returncode == 0
        if not done: pytest.skip('needs to mount a file system')
        return place
    yield mount
    subprocess.run(['umount', '-l', place], capture_output=True)

def filled(place):
    "Take all the room that is left, but for some of it: a file that takes it."
    room = os.statvfs(place).f_bavail*os.statvfs(place).f_frsize
    (place/'filler').write_bytes(bytes(max(0, room - 8192)))
    return place/'filler'

@pytest.mark.parametrize('saver', [name for name in SAVERS if name != 'tree'])
def test_a_full_disk(disk, saver):
    save, load, _ = SAVERS[saver]
    place = disk(20_000)
    save(1, place/'out')
    expected = load(place/'out')
    filler = filled(place)
    messages = []
    for room in (8192, 4096, 0):
        filler.write_bytes(bytes(filler.stat().st_size + 8192 - max(room, 4096))) if room != 8192 else None
        if room == 0: (place/'more').write_bytes(bytes(os.statvfs(place).f_bavail*os.statvfs(place).f_frsize))
        try: saved = save(2, place/'out')
        except BadInput as error: messages.append(str(error))
        else: continue
        assert '\n' not in messages[-1] and str(place/'out') in messages[-1]
        assert load(place/'out') == expected and not hidden(place)
    assert messages, 'it found room'
    for name in ('filler', 'more'): (place/name).unlink(missing_ok=True)
    save(2, place/'out')
    assert load(place/'out') != expected

@pytest.mark.parametrize('kind', ['photo', 'text', 'own'])
def test_a_file_at_the_place_of_a_figure_stays_unless_it_is_one(kind, tmp_path, monkeypatch):
    import matplotlib.pyplot as plt
    from PIL import Image
    monkeypatch.setenv('FROZEN_NB_OUT', str(tmp_path))
    path, figure = tmp_path/'figures'/'a.png', plt.figure(figsize=(1, 1))
    path.parent.mkdir()
    if kind == 'photo': Image.new('RGB', (3, 3)).save(path)
    if kind == 'text': path.write_text('notes')
    if kind == 'own': save_figure(figure, 'a', 'an older caption')
    before = path.read_bytes()
    if kind == 'own': assert save_figure(figure, 'a', 'a caption') == path and path.read_bytes() != before
    else:
        with pytest.warns(UserWarning, match='a.png is another file and stays'): assert save_figure(figure, 'a', 'a caption') is None
        assert path.read_bytes() == before
    plt.close(figure)

def test_a_full_disk_under_a_figure(disk, monkeypatch):
    import matplotlib.pyplot as plt
    place = disk(64)
    monkeypatch.setenv('FROZEN_NB_OUT', str(place))
    (place/'filler').write_bytes(bytes(60_000))
    figure = plt.figure()
    with pytest.raises(BadInput, match='No space left on device.*make room'): save_figure(figure, 'a')
    assert not list(place.rglob('*.png')) and not hidden(place)
    (place/'filler').unlink()
    assert save_figure(figure, 'a').stat().st_size
    plt.close(figure)

def test_a_limit_on_the_size_of_files(tmp_path):
    "As `ulimit -f` sets it: whatever writes, Python, safetensors or torch."
    import resource, signal
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        for big in (dict(tensors=dict(w=torch.zeros(9000)), state={}), dict(tensors={}, state=dict(w=torch.zeros(9000)))):
            with pytest.raises(BadInput, match='cannot be written') as error: write_checkpoint(tmp_path/'run', 1, **big, info={})
            assert '\n' not in str(error.value) and not list(tmp_path.rglob('step-*')) and not hidden(tmp_path)
        with pytest.raises(BadInput, match='File too large'): write_whole(tmp_path/'a', bytes(9000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert write_checkpoint(tmp_path/'run', 1, dict(w=torch.zeros(9000)), {}, {}).is_dir()

@pytest.mark.parametrize('error, reason', [
    (OSError(28, 'No space left on device'), 'No space left on device'),
    (Exception('Error while serializing: I/O error: No space left on device (os error 28)'), 'No space left on device'),
    (RuntimeError('[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0: file write failed'), 'the disk is full'),
    (RuntimeError('[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0'), 'the disk is full')])
def test_the_words_of_libraries(error, reason):
    with pytest.raises(BadInput, match=reason), disk_errors('place'): raise error
    with pytest.raises(KeyError), disk_errors('place'): raise KeyError('something else')
    with pytest.raises(BadInput, match='^as it is$'), disk_errors('place'): raise BadInput('as it is')


# What ships

@pytest.mark.parametrize('name', ['adapter', 'flmm', 'limber', 'pinto'])
def test_heads_that_ship_have_their_hashes(name):
    folder = data_path('zoo', name)
    sums = json.loads((folder/'sha256.json').read_text())
    assert sums == {p.name: file_hash(p) for p in folder.iterdir() if p.name != 'sha256.json'}

def test_records_and_tables_that_ship_have_their_checksums():
    for path in data_path('claims').glob('*.json'): assert all('sha256' in record for record in json.loads(path.read_text())), path.name
    for path in data_path('claims', 'tables').glob('*.json'): assert all('sha256' in table for table in json.loads(path.read_text()).values()), path.name
