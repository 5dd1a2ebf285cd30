"The shell: every kind of bad input as one line and status 2, Ctrl-C, chapters that fail, what a run leaves behind."
import fcntl, json, os, pty, signal, struct, subprocess, sys, termios, time
from pathlib import Path
from types import SimpleNamespace

import nbformat, pytest, torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from conftest import root
from frozen_nb import cli
from frozen_nb.core.claims import Ledger, load_records
from frozen_nb.core.frozen import BadInput, data_path
from frozen_nb.world.drawing import draw
from frozen_nb.world.scenes import scene

command = [sys.executable, '-c', 'from frozen_nb.cli import main; main()']
maps = pytest.mark.skipif(not data_path('zoo', 'limber', 'config.json').exists(), reason='data/zoo has no map yet')

def refused(said, *words):
    assert said.status == 2 and said.out == '' and said.err.count('\n') == 1 and 'Traceback' not in said.err, said
    for word in words: assert word in said.err

# --- command lines

@pytest.mark.parametrize('line, word', [
    ('', 'reproduce, claims'), ('reprodce', 'reprodce'), ('--frozen', '--frozen'), ('caption', 'IMAGE'), ('pretrain', 'NAME'), ('reproduce --seeds two', '--seeds'), ('reproduce --seeds 0 --dry-run', '--seeds 0'),
    ('reproduce --preset fast --dry-run', 'quick, full, extended'), ('reproduce nothing_like_it --dry-run', 'nothing_like_it'), ('claims nothing_like_it', 'claims'),
    ('claims --records nowhere.json', 'nowhere.json'), ('pretrain lama', 'llama'), ('pretrain llama --steps 0', '--steps 0'), (f'pretrain llama --out {__file__}', 'test_cli.py'),
    ('fit', 'give a method: limber, flmm, lm4visual, generative_adapter, pinto'), ('fit limbo --data a --out b', 'there are limber, flmm, lm4visual, generative_adapter, pinto'), ('fit flmm', '--data'), ('fit flmm --data a --images . --out b', 'a: not a JSON'), ('fit flmm --data a --images . --out b --steps 0', '--steps'), ('fit limber', '--data'), ('fit limber --data a', '--out'), ('fit limber --data nowhere.jsonl --out new', 'nowhere.jsonl'), (f'fit limber --data nowhere.jsonl --out {__file__}', 'test_cli.py'),
    ('fit limber --data a --out b --k 0', '--k'), ('fit limber --data a --out b --steps none', '--steps'), ('fit limber --data a --out b --dropout 1', '--dropout'), ('fit limber --data a --out b --optimizer sgd', 'sgd'),
    ('align', 'IMAGE_DIR'), ('align nowhere', 'nowhere'), ('align . --out seen.jpg', 'PNG'), ('align . --out no/seen.png', 'no'), ('align . --out seen.png', 'pairs'),
    ('adapt', 'DOCUMENT'), ('adapt nowhere.txt', '--ask QUESTION, --save DIR'), ('adapt nowhere.txt --ask why', 'nowhere.txt: no such file'), ('adapt . --ask why', 'folder'), ('adapt nowhere.txt --ask', '--ask'), ('adapt nowhere.txt --ask why --mode both', 'parallel or sequential'),
    (f'adapt {__file__} --save {__file__}', 'test_cli.py'), (f'adapt {__file__} --save {__file__}/deeper', 'test_cli.py'),
    ('fit generative_adapter', '--data'), ('fit generative_adapter --data a', '--out'), ('fit generative_adapter --data nowhere --out new', 'nowhere'), (f'fit generative_adapter --data nowhere --out {__file__}', 'test_cli.py'), ('fit generative_adapter --data a --out b --steps 0', '--steps'), ('fit generative_adapter --data a --out b --rank 0', '--rank'), ('fit generative_adapter --data a --out b --batch none', '--batch'),
    ('fit pinto', '--data'), ('fit pinto --data a', '--out'), ('fit pinto --data nowhere --out new', 'nowhere: no such file'), (f'fit pinto --data nowhere --out {__file__}', 'test_cli.py'), ('fit pinto --data a --out b --weight -1', '--weight'), ('fit pinto --data a --out b --prompt none', 'none: no such prompt'),
    ('explain', 'QUESTION'), ('explain why', 'no choices'), ('explain why --choices a', 'one choice'), ('explain why --choices a A', 'is there twice'), ('explain why --choices a b --reasoner nowhere', 'no reasoning model in nowhere'), ('explain  --choices a b --lm nowhere', 'one choice'),
    ('ask', 'IMAGE'), ('ask a.png', 'QUESTION'), ('ask nowhere.png why', 'nowhere.png')])
def test_bad_command_line(shell, line, word): refused(shell(*line.split()), word)

@pytest.mark.parametrize('verb', ['', 'reproduce', 'claims', 'caption', 'ask', 'ground', 'align', 'adapt', 'explain', 'fit', 'fit limber', 'fit flmm', 'fit lm4visual', 'fit generative_adapter', 'fit pinto', 'zoo', 'pretrain', 'book'])
def test_help(shell, verb):
    said = shell(*verb.split(), '--help')
    assert said.status == 0 and said.out.startswith(f'Usage: frozen-nb {verb}'.rstrip()) and said.err == ''

def test_zoo(shell):
    said = shell('zoo')
    assert said.status == 0 and said.out.startswith('| name | kind |')

def test_an_unforeseen_error_is_a_line_that_names_it(shell, monkeypatch):
    "A mistake of ours is not hidden: the line has its kind and place, and with FROZEN_NB_DEBUG=1 it keeps its traceback."
    monkeypatch.setattr(cli, 'select_chapters', lambda *args: 1 / 0)
    refused(shell('reproduce', '--dry-run'), 'ZeroDivisionError at test_cli.py:', 'FROZEN_NB_DEBUG=1')
    monkeypatch.setenv('FROZEN_NB_DEBUG', '1')
    with pytest.raises(ZeroDivisionError): cli.run(['reproduce', '--dry-run'])

def test_as_a_process(tmp_path):
    done = subprocess.run([*command, 'caption', 'nowhere.png'], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, '', 'frozen-nb: nowhere.png: no such file; check the path\n')

def test_a_reader_that_goes_away():
    p = subprocess.Popen([*command, '--help'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    p.stdout.close()
    assert p.stderr.read() == '' and p.wait() in (0, 1)

# --- images

@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    picture = draw(scene(0, 'test', n_animals=1), 64)
    good = dict(rgb=picture, gray=picture.convert('L'), alpha=picture.convert('RGBA'), palette=picture.convert('P'), one=picture.resize((1, 1)), deep=Image.new('I;16', (64, 64), 40000), bits=picture.convert('1'))
    for name, image in good.items(): image.save(folder/f'{name}.png')
    picture.convert('CMYK').save(folder/'cmyk.jpg')
    (folder/'truncated.png').write_bytes((folder/'rgb.png').read_bytes()[:900])
    (folder/'truncated.jpg').write_bytes((folder/'cmyk.jpg').read_bytes()[:900])
    (folder/'text.png').write_text('a red hippo')
    (folder/'empty.png').touch()
    (folder/'folder.png').mkdir()
    return folder

GOOD = ['rgb.png', 'gray.png', 'alpha.png', 'palette.png', 'one.png', 'deep.png', 'bits.png', 'cmyk.jpg']
BAD = ['truncated.png', 'truncated.jpg', 'text.png', 'empty.png', 'folder.png', 'missing.png']

@pytest.fixture
def limber(monkeypatch, images):
    "A captioner that says an image's size and mode, and what it was loaded with."
    loaded = []
    class Limber:
        def load(**kwargs): loaded.append(kwargs); return Limber()
        def caption(self, images): return [f'{im.size[0]} x {im.size[1]}\n{im.mode} ' for im in images]
        def ask(self, images, question): return [f'{im.size[0]} px,\n{question!r} ' for im in images]
    monkeypatch.setitem(sys.modules, 'frozen_nb.limber', SimpleNamespace(Limber=Limber))
    monkeypatch.chdir(images)
    return loaded

@pytest.mark.parametrize('name', GOOD)
def test_good_image(shell, limber, name):
    side = 1 if name == 'one.png' else 64
    assert vars(shell('caption', name)) == dict(status=0, out=f'{name}: {side} x {side} RGB\n', err='')

@pytest.mark.parametrize('name', BAD)
def test_bad_image(shell, limber, name):
    refused(shell('caption', name), name)
    assert limber == []

def test_question(shell, limber):
    assert vars(shell('ask', 'rgb.png', ' how\n wide? ', '--map', 'm', '--dtype', 'bf16')) == dict(status=0, out="64 px, 'how wide?'\n", err='')
    assert limber == [dict(map='m', encoder=None, lm=None, device=None, dtype='bf16')]

@pytest.mark.parametrize('image, question, word', [('rgb.png', ' ', 'blank'), ('rgb.png', '', 'blank'), *((name, 'What is it?', name) for name in BAD)])
def test_question_that_cannot_be_asked(shell, limber, image, question, word):
    refused(shell('ask', image, question), word)
    assert limber == []

def test_bad_images_among_good_ones(shell, limber):
    said = shell('caption', 'rgb.png', *BAD[:3], 'gray.png', *BAD[3:], 'rgb.png', '--device', 'cpu', '--lm', 'opt')
    assert said.status == 2 and said.out == ''.join(f'{name}: 64 x 64 RGB\n' for name in ('rgb.png', 'gray.png', 'rgb.png'))
    assert [line.split(': ')[1] for line in said.err.splitlines()] == BAD
    assert limber == [dict(map=None, encoder=None, lm='opt', device='cpu', dtype=None)]

def test_many_images(shell, limber):
    said = shell('caption', *['rgb.png'] * 40, 'gray.png')
    assert said.status == 0 and said.out.count('\n') == 41 and len(limber) == 1

def test_a_model_that_is_refused(shell, limber, monkeypatch):
    def load(**kwargs): raise BadInput('the map in DIR was made\nfor clip')
    monkeypatch.setattr(sys.modules['frozen_nb.limber'].Limber, 'load', load)
    refused(shell('caption', 'rgb.png'), 'the map in DIR was made for clip')

@maps
@pytest.mark.parametrize('line, word', [('--lm lama', 'llama'), ('--encoder clap', 'clip'), ('--lm clip', 'clip'), ('--encoder clip-random', 'made for'), ('--lm llama-random', 'made for'),
                                        ('--map nowhere', 'nowhere'), ('--dtype int8', 'int8'), ('--device quantum', 'quantum')])
@pytest.mark.parametrize('verb', [('caption',), ('ask', 'What is it?')])
def test_models_that_are_refused(shell, images, verb, line, word): refused(shell(verb[0], images/'rgb.png', *verb[1:], *line.split()), word)

@maps
def test_captions(images):
    done = subprocess.run([*command, 'caption', 'rgb.png', 'text.png', 'gray.png'], cwd=images, capture_output=True, text=True)
    assert done.returncode == 2 and [line.split(': ')[0] for line in done.stdout.splitlines()] == ['rgb.png', 'gray.png'] and all(len(line) > 12 for line in done.stdout.splitlines())
    assert done.stderr.startswith('frozen-nb: text.png: ') and done.stderr.count('\n') == 1

# --- chapters

@pytest.fixture
def chapters(tmp_path, monkeypatch):
    "A function that writes a chapter where the library looks for them."
    folder = tmp_path/'nbs'
    folder.mkdir()
    monkeypatch.setattr('frozen_nb.core.frozen.notebooks_path', lambda *parts: folder.joinpath(*parts))
    monkeypatch.setenv('FROZEN_NB_PROGRESS', '0')
    monkeypatch.chdir(tmp_path)
    def write(name, *cells):
        (folder/name).parent.mkdir(exist_ok=True)
        nbformat.write(new_notebook(cells=[new_markdown_cell('# A chapter'), *map(new_code_cell, cells)]), folder/f'{name}.ipynb')
    return write

def record(value, required=True):
    "A cell that writes one record as `Ledger` does, without importing the library."
    ledger = Ledger('toy', 'a paper')
    ledger.claim('toy.claim', 'It holds.', source='section 1', measure='a number', threshold=1, required=required)
    if value is None: ledger.not_run('toy.claim', 'no data here')
    else: ledger.record('toy.claim', value, seeds=[0], seconds=90)
    return f'import os, json\nfolder = os.environ["FROZEN_NB_OUT"] + "/claims"\nos.makedirs(folder, exist_ok=True)\nwith open(folder + "/toy.json", "w") as f: json.dump({json.loads(json.dumps(ledger.records()))!r}, f)'.replace('true', 'True')

def test_records_that_a_user_keeps_beside_those_of_a_run(shell, chapters):
    "A copy of records under a name of one's own, of a method of the run or of another: refused before the run, and both stay."
    chapters('10_toy', record(2))
    assert shell('reproduce', '--out', 'results').status == 0
    theirs, mine = Path('results/claims/toy.json'), Path('results/claims/my-old-results.json')
    before = theirs.read_bytes()
    for move in (mine.write_bytes, lambda data: (theirs.rename(mine), None)):
        move(before)
        refused(shell('reproduce', '--out', 'results'), 'my-old-results.json', 'move it elsewhere')
        assert mine.read_bytes() == before
    mine.rename('kept.json')
    assert shell('reproduce', '--out', 'results').status == 0 and Path('kept.json').read_bytes() == before

@pytest.mark.parametrize('place', ['notebooks', 'claims', 'claims/findings'])
def test_a_file_where_a_run_has_a_folder(shell, chapters, place):
    chapters('10_toy', 'pass')
    (Path('results')/place).parent.mkdir(parents=True, exist_ok=True)
    (Path('results')/place).write_text('mine')
    refused(shell('reproduce', '--out', 'results'), place)
    assert (Path('results')/place).read_text() == 'mine'

@pytest.mark.parametrize('text', ['{bad', '{"cells": []}', '[]', '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code", "source": 5}]}'])
def test_a_damaged_notebook_is_named(shell, chapters, text):
    chapters('10_toy', 'pass')
    Path('nbs/10_toy.ipynb').write_text(text)
    refused(shell('reproduce', '--dry-run'), '10_toy.ipynb', 'not a notebook')

def test_a_page_of_claims_that_was_edited_stays(shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path('page.md')
    for _ in range(2): assert shell('claims', 'limber', '--markdown', page).status == 0      # as it was written: replaced
    text = page.read_text()
    assert '## LiMBeR' in text and '## PINTO' not in text
    page.write_text(text + 'My notes.\n')
    refused(shell('claims', '--markdown', page), 'page.md')
    assert page.read_text().endswith('My notes.\n')

def test_methods_that_are_not_evaluated(shell):
    for method in ('nope', 'ima'): refused(shell('evaluate', method, '--format', 'list', '--data', '.'), method, 'limber')
    assert 'flickr8k' in shell('evaluate', 'limber', '--format', 'list', '--data', '.').out

def test_the_figure_of_an_earlier_run_is_no_image(tmp_path):
    from frozen_nb.cli import _images_in
    from frozen_nb.world.drawing import draw
    from frozen_nb.world.scenes import scene
    from PIL.PngImagePlugin import PngInfo
    for i in range(3): draw(scene(i, 'test'), 64).save(tmp_path/f'{i}.png')
    about = PngInfo()
    about.add_text('Software', 'frozen-nb align')
    draw(scene(9, 'test'), 64).save(tmp_path/'alignment.png', pnginfo=about)
    images, _ = _images_in(tmp_path)
    assert sorted(path.name for path in images) == ['0.png', '1.png', '2.png']

def test_names_that_are_too_long_leave_nothing(shell, tmp_path, monkeypatch):
    from frozen_nb.world.drawing import draw
    from frozen_nb.world.scenes import scene
    monkeypatch.chdir(tmp_path)
    draw(scene(3, 'test'), 64).save('a.png')
    refused(shell('ground', 'a.png', 'the sky', '--out', 'x'*250 + '.png'), 'too long a name')
    assert [path.name for path in tmp_path.iterdir()] == ['a.png']

@pytest.mark.parametrize('words', [('ground', 'a.png', '\udcff'), ('ask', 'a.png', 'caf\udce9?'), ('explain', 'what\udcff?', 'a', 'b'), ('adapt', 'a.txt', '--ask', 'who\udcff?')], ids=str)
def test_words_that_are_not_utf8(shell, tmp_path, monkeypatch, words):
    from frozen_nb.world.drawing import draw
    from frozen_nb.world.scenes import scene
    monkeypatch.chdir(tmp_path)
    draw(scene(3, 'test'), 64).save('a.png')
    Path('a.txt').write_text('Bella is a cow. She is two years old.')
    refused(shell(*words), 'UTF-8')

def test_environment_of_a_chapter(shell, chapters, monkeypatch):
    monkeypatch.setenv('IN_TEST', '1')
    chapters('10_toy', 'import os\nassert os.environ["FROZEN_NB_PRESET"] == "full" and os.environ["FROZEN_NB_SEEDS"] == "2" and "IN_TEST" not in os.environ\nassert os.getcwd() == os.path.join(os.environ["FROZEN_NB_OUT"], "notebooks"), os.getcwd()')
    said = shell('reproduce', '--preset', 'full', '--seeds', '2', '--out', 'results')
    assert said.status == 0 and said.out == '1 of 1 notebooks ran, 0 of 0 claims hold: results/report.html\n', said
    assert sorted(p.name for p in Path('results').iterdir()) == ['claims.json', 'notebooks', 'report.html'] and [p.name for p in Path('nbs').iterdir()] == ['10_toy.ipynb']

@pytest.mark.parametrize('value, required, status, word', [(2, True, 0, ''), (0, False, 0, ''), (0, True, 1, 'toy.claim: required, and fails'), (None, True, 0, 'warning: toy.claim: required, and not run: no data here')])
def test_required_claims_decide(shell, chapters, value, required, status, word):
    chapters('10_toy', record(value, required))
    said = shell('reproduce', 'toy')
    assert said.status == status and word in said.err and [r['id'] for r in load_records('_out/claims.json')] == ['toy.claim']

def test_an_edited_notebook_is_kept(shell, chapters):
    "A run does not replace what somebody wrote into an executed notebook, and replaces what it wrote itself."
    chapters('10_toy', 'print("a\\nb")\n1 + 1')
    assert shell('reproduce').err.count('edited') == 0 and shell('reproduce').err.count('edited') == 0 and not Path('_out/notebooks/edited').exists()
    path = Path('_out/notebooks/10_toy.ipynb')
    for n, note in enumerate(('my note', 'another'), 1):
        path.write_text(path.read_text().replace('# A chapter', f'# A chapter, {note}'))
        mine = path.read_bytes()
        said = shell('reproduce')
        assert said.status == 0 and 'edited' in said.err and Path(f'_out/notebooks/edited/10_toy-{n}.ipynb').read_bytes() == mine and note not in path.read_text()

# --- experiments of a chapter

NOTE = 'open("order", "a").write("{0} ")'   # every notebook runs in the folder of the executed ones

def executed(): return sorted(p.name for p in Path('_out/notebooks').glob('*.ipynb'))

def test_experiments_run_after_their_chapter(shell, chapters, monkeypatch):
    "In the order of their names, into copies of their own; those of other chapters and other folders are left alone."
    chapters('10_toy', 'import time; time.sleep(1)', NOTE.format('chapter'))
    chapters('11_toy_box', NOTE.format('box'))
    for name in ('toy', 'toy_questions', 'toy_box', 'toy_box_more', 'toys', 'other'): chapters(f'experiments/{name}', NOTE.format(name))
    chapters('fits/toy', NOTE.format('fits'))
    said = shell('reproduce', 'toy', '--jobs', '2')
    assert said.status == 0 and said.out == '3 of 3 notebooks ran, 0 of 0 claims hold: _out/report.html\n', said
    assert Path('_out/notebooks/order').read_text() == 'chapter toy toy_questions ' and executed() == ['10_toy.ipynb', 'experiments-toy.ipynb', 'experiments-toy_questions.ipynb']
    assert all(nbformat.read(p, 4).metadata.frozen_nb.name == p.stem for p in Path('_out/notebooks').glob('*.ipynb'))
    page = Path('_out/report.html').read_text()
    assert all(page.count(name) == 1 for name in ('10_toy', 'experiments-toy_questions')) and 'experiments-toy<' in page
    assert sorted(p.name for p in Path('nbs/experiments').iterdir()) == ['other.ipynb', 'toy.ipynb', 'toy_box.ipynb', 'toy_box_more.ipynb', 'toy_questions.ipynb', 'toys.ipynb']
    Path('_out/notebooks/order').unlink()
    said = shell('reproduce', '--jobs', '1')
    assert said.out.startswith('6 of 6 notebooks ran') and Path('_out/notebooks/order').read_text() == 'chapter toy toy_questions box toy_box toy_box_more '
    chapters('12_alone', NOTE.format('alone'))
    assert shell('reproduce', 'alone').out.startswith('1 of 1 notebooks ran')

def test_methods_run_side_by_side_and_each_in_its_order(shell, chapters):
    "Two chapters that wait for each other's experiments to begin would never end; here one waits for the other's experiments."
    wait = 'import pathlib, time\nuntil = time.time() + 60\nwhile not pathlib.Path("{0}").exists():\n    time.sleep(.1)\n    assert time.time() < until'
    chapters('10_one', wait.format('two is done'))
    chapters('experiments/one', 'import pathlib; pathlib.Path("one is done").touch()')
    chapters('11_two', 'import pathlib; assert not pathlib.Path("one is done").exists()')
    chapters('experiments/two', 'import pathlib; pathlib.Path("two is done").touch()', wait.format('one is done'))
    said = shell('reproduce', '--jobs', '2')
    assert said.status == 0 and said.out.startswith('4 of 4 notebooks ran'), said

def test_experiments_run_where_their_chapter_fails(shell, chapters):
    chapters('10_toy', '1/0')
    chapters('experiments/toy', 'x = 1', 'raise ValueError("no")')
    chapters('experiments/toy_more', record(2))
    said = shell('reproduce', 'toy')
    lines = [line for line in said.err.splitlines() if line.startswith('frozen-nb')]
    assert said.status == 1 and lines == ['frozen-nb: 10_toy.ipynb, cell [1]: ZeroDivisionError: division by zero', 'frozen-nb: experiments-toy.ipynb, cell [2]: ValueError: no']
    assert said.out.startswith('1 of 3 notebooks ran, 1 of 1 claims hold')

def test_notes_in_executed_experiments_are_kept(shell, chapters):
    "Also where the chapter and two notebooks of experiments would have had one name."
    for name in ('10_toy', 'experiments/toy', 'experiments/toy_more'): chapters(name, '1')
    assert shell('reproduce').status == 0
    mine = {}
    for path in Path('_out/notebooks').glob('*.ipynb'):
        path.write_text(path.read_text().replace('# A chapter', f'# My note in {path.stem}'))
        mine[path.stem] = path.read_bytes()
    said = shell('reproduce')
    assert said.status == 0 and said.err.count('edited') == 3 and sorted(mine) == ['10_toy', 'experiments-toy', 'experiments-toy_more']
    assert {p.stem: p.read_bytes() for p in Path('_out/notebooks/edited').iterdir()} == {f'{name}-1': text for name, text in mine.items()}
    assert shell('reproduce').err.count('edited') == 0

def test_a_plan_names_experiments_and_what_was_never_timed(shell, chapters, tmp_path, monkeypatch):
    for name in ('10_toy', '11_other', 'experiments/toy', 'experiments/toy_more'): chapters(name, '1')
    assert shell('reproduce', '--dry-run').out.splitlines() == [f'{line}.ipynb, 1 cells, preset quick: not timed yet' for line in ('toy: 10_toy', 'toy: experiments/toy', 'toy: experiments/toy_more', 'other: 11_other')]
    monkeypatch.setattr('frozen_nb.core.frozen.data_path', lambda *parts: tmp_path.joinpath(*parts))
    monkeypatch.setattr(cli, 'machine_seconds', lambda *args: 2.)
    times = {'toy': 600, 'other': 900, 'experiments-toy': 1200}   # on a machine that is twice as fast
    Path('timings.json').write_text(json.dumps(dict(machine=1, seconds=dict(quick=times))))
    lines = shell('reproduce', '--dry-run', '--jobs', '2').out.splitlines()
    assert [line.rpartition(': ')[2] for line in lines[:4]] == ['about 20 min here', 'about 40 min here', 'not timed yet', 'about 30 min here']
    assert lines[4:] == ['all, 2 at once: about 60 min, and 1 that was not timed yet']   # the experiments do not begin beside their chapter
    assert shell('reproduce', '--dry-run', '--jobs', '1').out.splitlines()[4] == 'all, 1 at once: about 90 min, and 1 that was not timed yet'
    Path('timings.json').write_text(json.dumps(dict(machine=1, seconds=dict(quick=times | {'experiments-toy_more': 60}))))
    assert shell('reproduce', '--dry-run', '--jobs', '2').out.splitlines()[4] == 'all, 2 at once: about 62 min'
    assert shell('reproduce', 'other', '--dry-run').out.count('\n') == 1 and not Path('_out').exists()

def test_the_time_that_is_left_knows_what_waits_for_what(monkeypatch):
    now = [0.]
    monkeypatch.setattr(cli.time, 'time', lambda: now[0])
    seconds = {'a': 600, 'a-more': 1200, 'b': 900, 'c': 300}
    progress = cli._Progress(dict.fromkeys(seconds, 1), seconds, 2, [['a', 'a-more'], ['b'], ['c']])
    at = lambda name: SimpleNamespace(name=name)
    assert progress.left() == ', about 30 min left'   # a and then a-more, beside b and c
    progress.begin(at('a'))
    watches = {name: at(name) for name in seconds}
    progress.watches.clear()
    progress.begin(watches['b'])
    now[0] = 600.
    progress.watches.append(watches['a']), progress.end(watches['a'])
    assert progress.left() == ', about 20 min left'   # a-more has a place of its own; b has 5 minutes, and c follows it
    progress.begin(watches['a-more'])
    now[0] = 900.
    progress.end(watches['b'])
    assert progress.left() == ', about 15 min left'
    del seconds['c']
    assert progress.left() == ''   # nobody knows

def test_at_another_scale_only_notebooks_that_know_it_run(shell, chapters, monkeypatch):
    monkeypatch.setenv('FROZEN_NB_SCALE', 'miniature')
    chapters('10_toy', NOTE.format('chapter'))
    chapters('experiments/toy', '# read_scale(\'toy\')\n' + NOTE.format('experiments'))
    chapters('experiments/toy_more', NOTE.format('more'))
    chapters('11_other', NOTE.format('other'))
    assert shell('reproduce', 'toy', '--scale', 'real').out.startswith('1 of 1 notebooks ran') and Path('_out/notebooks/order').read_text() == 'experiments '
    refused(shell('reproduce', 'other', '--scale', 'real'), 'other: this chapter runs at the scale miniature so far')
    assert shell('reproduce', '--scale', 'real', '--out', 'all').out.startswith('1 of 1 notebooks ran')      # and no chapter without scales

def test_ctrl_c_begins_no_experiments(chapters, tmp_path):
    chapters('10_slow', 'import pathlib, time\npathlib.Path("started").touch()\ntime.sleep(300)')
    chapters('experiments/slow', 'import pathlib; pathlib.Path("went on").touch()')
    p = subprocess.Popen([sys.executable, '-c', REPRODUCE_HERE, 'reproduce'], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | dict(FROZEN_NB_PROGRESS='0'), start_new_session=True)
    until = time.time() + 180
    while not (tmp_path/'_out/notebooks/started').exists() and p.poll() is None and time.time() < until: time.sleep(.2)
    time.sleep(1)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and err.rstrip().endswith('frozen-nb: interrupted') and 'Traceback' not in err
    assert [x.name for x in (tmp_path/'_out/notebooks').iterdir() if x.is_file()] and sorted(x.name for x in (tmp_path/'_out/notebooks').glob('*.ipynb')) == ['10_slow.ipynb'] and not (tmp_path/'_out/notebooks/went on').exists()

def test_a_chapter_runs_in_this_interpreter(shell, chapters, tmp_path, monkeypatch):
    "Whatever kernel is installed under the name python3."
    (tmp_path/'kernels/python3').mkdir(parents=True)
    (tmp_path/'kernels/python3/kernel.json').write_text(json.dumps(dict(argv=['/bin/false'], display_name='mine', language='python')))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path))
    chapters('10_toy', f'import sys\nassert sys.executable == {sys.executable!r}')
    assert shell('reproduce').status == 0

def test_other_chapters_go_on(shell, chapters):
    chapters('10_first', 'raise ValueError("a\\nb")', 'print("stale")')
    chapters('11_dies', 'import os\nos._exit(1)')
    chapters('12_toy', record(2))
    said = shell('reproduce')
    lines = [line for line in said.err.splitlines() if line.startswith('frozen-nb')]
    assert said.status == 1 and lines[0] == 'frozen-nb: 10_first.ipynb, cell [1]: ValueError: a b' and lines[1].startswith('frozen-nb: 11_dies.ipynb, cell [1]: the kernel died') and len(lines) == 2
    assert said.out.startswith('1 of 3 notebooks ran, 1 of 1 claims hold')
    assert sorted(p.name for p in Path('_out/notebooks').iterdir()) == ['10_first.ipynb', '11_dies.ipynb', '12_toy.ipynb']

def test_records_of_a_run_that_was_killed_come_back(shell, chapters):
    chapters('10_toy', record(0))
    other = dict(json.loads(json.dumps(cli_record())), id='other.claim', method='other')
    Path('_out/.claims-before').mkdir(parents=True)
    Path('_out/.claims-before/all.json').write_text(json.dumps([other]))
    assert shell('reproduce').status == 1
    assert [r['id'] for r in load_records('_out/claims')] == ['other.claim', 'toy.claim'] and sorted(p.name for p in Path('_out').iterdir()) == ['claims', 'claims.json', 'notebooks', 'report.html']

def cli_record():
    ledger = Ledger('toy', 'a paper')
    ledger.claim('toy.claim', 'It holds.', source='section 1', measure='a number', threshold=1)
    ledger.record('toy.claim', 2, seeds=[0])
    return ledger.records()[0]

def test_changed_terms_are_said(shell, chapters):
    chapters('10_toy', record(2))
    Path('_out/claims').mkdir(parents=True)
    Path('_out/claims/toy.json').write_text(json.dumps([dict(cli_record(), threshold=.5)]))
    said = shell('reproduce')
    assert said.status == 1 and 'threshold 0.5 -> 1' in said.err and load_records('_out/claims')[0]['threshold'] == .5

def test_preset_of_the_environment(shell, chapters, monkeypatch):
    chapters('10_toy', '1')
    monkeypatch.setenv('FROZEN_NB_PRESET', 'extended')
    assert 'preset extended' in shell('reproduce', '--dry-run').out and 'preset full' in shell('reproduce', '--dry-run', '--preset', 'full').out
    monkeypatch.setenv('FROZEN_NB_PRESET', 'fast')
    refused(shell('reproduce', '--dry-run'), "'fast'")

def test_out_is_a_file(shell, chapters):
    chapters('10_toy', '1')
    Path('taken').touch()
    for dry in ([], ['--dry-run']): refused(shell('reproduce', '--out', 'taken/deeper', *dry), 'taken')

def test_a_scale_is_planned_without_weights(shell, monkeypatch):
    import torch
    before = torch.get_rng_state()
    said = shell('reproduce', '--scale', 'paper', '--dry-run')
    assert torch.equal(before, torch.get_rng_state())
    assert said.status == 0 and said.err == '' and all(f'{m}, scale paper' in said.out for m in ('limber', 'ima', 'flmm', 'lm4visual', 'generative_adapter', 'pinto'))
    counts = dict(limber='trained: map, 12,587,008', ima='trained: mapper, 7,362,048', flmm='trained: head, 7,77', lm4visual='trained: maps, 3,145,728', generative_adapter='trained: 32 layers, 537,001,984', pinto='trained: t5, 222,903,552')
    for words in counts.values(): assert words in said.out, words
    assert 'missing here: ' in said.out and 'hours on one H100' in said.out and said.out.count('operations: ') == 6 and 'optimizer state' in said.out and '2,936 GB' in said.out and not Path('_out').exists()
    real = shell('reproduce', 'limber', '--scale', 'real', '--dry-run').out
    assert 'smollm2-135m' in real and 'flickr8k' in real

def test_a_scale_that_a_chapter_does_not_know(shell, chapters):
    chapters('10_toy', 'open("ran", "w")')
    for scale in ('real', 'paper'): refused(shell('reproduce', '--scale', scale), 'toy', 'scale miniature so far')
    refused(shell('reproduce', '--scale', 'moon'), "'moon'", 'miniature, real, paper')
    refused(shell('reproduce', '--preset', 'paper'), "'paper'", 'quick, full, extended')
    assert not Path('_out').exists()

def test_a_chapter_gets_the_scale(shell, chapters, monkeypatch):
    chapters('10_toy', 'import os; # read_scale(\'toy\')\nopen("scale", "w").write(os.environ["FROZEN_NB_SCALE"])')
    monkeypatch.setenv('FROZEN_NB_SCALE', 'miniature')
    assert shell('reproduce', '--scale', 'real').status == 0
    assert next(Path('_out').rglob('scale')).read_text() == 'real'

REPRODUCE_HERE = 'import frozen_nb.core.frozen, pathlib, signal; signal.signal(signal.SIGINT, signal.default_int_handler); frozen_nb.core.frozen.notebooks_path = lambda *p: pathlib.Path("nbs", *p).absolute()\nfrom frozen_nb.cli import main; main()'

def test_ctrl_c(chapters, tmp_path):
    chapters('10_slow', 'import pathlib, time', 'try:\n    pathlib.Path("started").touch()\n    time.sleep(300)\nexcept KeyboardInterrupt:\n    pathlib.Path("checkpoint").touch()\n    raise', 'pathlib.Path("went on").touch()')
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 100, 0, 0))
    env = {k: v for k, v in os.environ.items() if k != 'FROZEN_NB_PROGRESS'}
    p = subprocess.Popen([sys.executable, '-c', REPRODUCE_HERE, 'reproduce'], cwd=tmp_path, stdout=subprocess.PIPE, stderr=terminal, text=True, env=env, start_new_session=True)
    os.close(terminal)
    until = time.time() + 180
    while not (tmp_path/'_out/notebooks/started').exists() and p.poll() is None and time.time() < until: time.sleep(.2)
    time.sleep(3)
    p.send_signal(signal.SIGINT)
    shown = b''
    try:
        while chunk := os.read(screen, 65536): shown += chunk
    except OSError: pass
    assert p.wait(60) == 130 and p.stdout.read() == ''
    shown = shown.decode()
    assert '10_slow' in shown and '1/3' in shown and 'Traceback' not in shown and shown.rstrip().endswith('frozen-nb: interrupted')
    assert (tmp_path/'_out/notebooks/checkpoint').exists() and not (tmp_path/'_out/notebooks/went on').exists()
    assert nbformat.read(tmp_path/'_out/notebooks/10_slow.ipynb', 4).metadata.frozen_nb.status == 'interrupted' and (tmp_path/'_out/report.html').exists()

def test_two_chapters_at_once_on_their_share_of_the_cores(shell, chapters, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    meet = 'import os, pathlib, time\npathlib.Path("{0}").touch()\nwhile not pathlib.Path("{1}").exists(): time.sleep(.1)\nassert os.environ["OMP_NUM_THREADS"] == "{2}"'
    half = max(1, os.cpu_count()//2)
    chapters('10_one', meet.format('one', 'two', half))
    chapters('11_two', meet.format('two', 'one', half))
    chapters('12_toy', record(2))
    said = shell('reproduce', '--jobs', '2')
    assert said.status == 0 and said.out.startswith('3 of 3 notebooks ran, 1 of 1 claims hold'), said
    Path('_out/claims/other.json').write_text(json.dumps([dict(json.loads(json.dumps(cli_record())), id='other.claim', method='other')]))
    assert shell('reproduce', 'toy').status == 0 and [r['id'] for r in load_records('_out/claims')] == ['other.claim', 'toy.claim']

def test_ctrl_c_ends_all_that_run_and_begins_no_other(chapters, tmp_path):
    for name in ('10_one', '11_two'): chapters(name, f'import pathlib, time\npathlib.Path("{name}").touch()\ntime.sleep(300)', 'pathlib.Path("went on").touch()')
    chapters('12_third', 'import pathlib\npathlib.Path("went on").touch()')
    p = subprocess.Popen([sys.executable, '-c', REPRODUCE_HERE, 'reproduce', '--jobs', '2'], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | dict(FROZEN_NB_PROGRESS='0'), start_new_session=True)
    ran, until = tmp_path/'_out/notebooks', time.time() + 180
    while not ((ran/'10_one').exists() and (ran/'11_two').exists()) and p.poll() is None and time.time() < until: time.sleep(.2)
    time.sleep(1)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and 'Traceback' not in err and err.rstrip().endswith('frozen-nb: interrupted'), err
    assert sorted(x.name for x in ran.glob('*.ipynb')) == ['10_one.ipynb', '11_two.ipynb'] and not (ran/'went on').exists()
    assert all(nbformat.read(x, 4).metadata.frozen_nb.status == 'interrupted' for x in ran.glob('*.ipynb'))

# --- align

@maps
def test_align_a_folder_with_broken_images(shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from frozen_nb.world.captions import captions
    from frozen_nb.world.drawing import draw
    from frozen_nb.world.scenes import scene
    (tmp_path/'seen').mkdir()
    for i in range(3): draw(scene(i), 64).save(tmp_path/'seen'/f'{i}.png')
    (tmp_path/'seen'/'broken.png').write_text('no image'); (tmp_path/'seen'/'notes.txt').write_text('no image')
    said = shell('align', 'seen')
    assert said.status == 2 and said.err.count('\n') == 1 and 'broken.png' in said.err and 'alignment score, same layer' in said.out and (tmp_path/'alignment.png').stat().st_size > 1000
    (tmp_path/'told.jsonl').write_text('\n'.join(json.dumps(dict(image=f'seen/{i}.png', caption=captions(scene(i))[0])) for i in range(3)))
    assert 'alignment score' in shell('align', 'seen', '--captions', 'told.jsonl').out
    said = shell('align', 'seen', '--lm', 'llama-random', '--captions', 'told.jsonl')
    assert said.status == 2 and '--map' in said.err
    (tmp_path/'one').mkdir(); draw(scene(0), 64).save(tmp_path/'one'/'0.png')
    refused(shell('align', 'one'), 'pairs')

# --- adapt

TOLD = 'Bella is a fox. Bella lives by the lake. Bella likes cheese.'

@pytest.fixture(scope='module')
def documents(tmp_path_factory):
    "A folder with a document and others that are none, a generator for `llama`, and folders that are in the way."
    from frozen_nb.generative_adapter import Generator, save_generator
    from frozen_nb.core.zoo import load_lm
    folder = tmp_path_factory.mktemp('documents')
    for name, content in {'bella.txt': TOLD.encode(), 'edited.txt': f'\ufeff{TOLD}\r\n'.encode(), 'long.txt': (TOLD + ' ').encode()*60, 'latin.txt': 'Bär'.encode('latin-1'), 'zeros.txt': bytes(10), 'empty.txt': b' \n'}.items(): (folder/name).write_bytes(content)
    for name in ('mine', 'map'): (folder/name).mkdir()
    (folder/'mine'/'letter.txt').write_text('dear'); (folder/'map'/'config.json').write_text('{}')
    torch.manual_seed(0); g = Generator(load_lm('llama', device='cpu'), width=8, rank=4, chunk=20)
    for layer in g.layers: torch.nn.init.normal_(layer.out.weight, std=.05)
    save_generator(g, folder/'generator')
    return folder

def test_adapt(shell, documents, tmp_path, monkeypatch):
    from frozen_nb.benchmarks.documents import answers
    from frozen_nb.core.adapted import load_adapter
    from frozen_nb.generative_adapter import Memory, load_generator
    from frozen_nb.core.zoo import load_lm
    monkeypatch.chdir(documents)
    lm = load_lm('llama', device='cpu'); g, asked = load_generator('generator', lm), ['where does Bella live?', 'why?']
    saved = {}
    for mode in ('parallel', 'sequential'):
        told = Memory(lm, g, mode).add(TOLD); saved[mode] = told.adapter()
        said = shell('adapt', 'bella.txt', '--ask', ' where does\n Bella live? ', '--ask', 'why?', '--save', tmp_path/mode, '--generator', 'generator', '--mode', mode, '--device', 'cpu')
        assert (said.status, said.err) == (0, '') and said.out.splitlines() == [f"Q: {q} A: {' '.join(a.split())}" for q, a in zip(asked, answers(lm, asked, saved[mode]))] + [f'{told.tokens} tokens encoded; kept: weights of rank 4, {saved[mode].nbytes/1000:.0f} kilobytes: {tmp_path/mode}']
        back = load_adapter(tmp_path/mode, lm)
        assert all(torch.allclose(back.down[k], saved[mode].down[k], atol=1e-6) and torch.allclose(back.up[k], saved[mode].up[k], atol=1e-6) for k in back.down) and back.down.keys() == saved[mode].down.keys()
    assert any(not torch.allclose(saved['parallel'].up[k], saved['sequential'].up[k]) for k in saved['parallel'].up)
    alone, edited = shell('adapt', 'bella.txt', '--save', tmp_path/'parallel', '--generator', 'generator', '--device', 'cpu'), shell('adapt', 'edited.txt', '--ask', 'why?', '--generator', 'generator', '--device', 'cpu')
    assert alone.status == edited.status == 0 and alone.out.count('\n') == 1 and edited.out.splitlines()[1] == alone.out.strip().rpartition(': ')[0]                    # saved again in its own place; a BOM and the end of the line are no text

def test_adapt_in_half_precision(shell, documents, monkeypatch):
    monkeypatch.chdir(documents)
    said = shell('adapt', 'bella.txt', '--ask', 'why?', '--generator', 'generator', '--dtype', 'bf16', '--device', 'cpu')
    assert (said.status, said.err) == (0, '') and said.out.startswith('Q: why? A: ')

def test_a_long_document_as_a_process(documents, tmp_path):
    done = subprocess.run([*command, 'adapt', documents/'long.txt', '--ask', 'where does Bella live?', '--save', tmp_path/'long', '--generator', documents/'generator'], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '') and '1,' in done.stdout and sorted(p.name for p in (tmp_path/'long').iterdir()) == ['adapter_config.json', 'adapter_model.safetensors', 'sha256.json']

@pytest.mark.parametrize('line, words', [
    ('latin.txt --ask why', 'latin.txt: not a text file in UTF-8'), ('zeros.txt --ask why', 'zeros.txt: not a text file in UTF-8'), ('empty.txt --ask why', 'empty.txt: this file is empty'), ('bella.txt', '--ask QUESTION, --save DIR'), ('bella.txt --ask= --ask why', 'blank'),
    ('bella.txt --save mine', 'mine: this folder holds something else than an adapter'), ('bella.txt --save empty.txt', 'empty.txt: there is a file where a folder'), ('bella.txt --save empty.txt/deeper', 'a file where a folder'),
    ('bella.txt --ask why --lm opt', 'generator: this generator was made for another language model than opt'), ('bella.txt --ask why --lm llama-random', 'another language model'), ('bella.txt --ask why --lm clip', 'clip'), ('bella.txt --ask why --lm lama', 'llama'), ('bella.txt --ask why --device quantum', 'quantum'), ('bella.txt --ask why --dtype int8', 'int8'),
    ('bella.txt --ask why --generator nowhere', 'no generator in nowhere'), ('bella.txt --ask why --generator map', 'map')])
def test_adapt_refuses(shell, documents, monkeypatch, line, words):
    monkeypatch.chdir(documents)
    before = sorted(documents.rglob('*'))
    refused(shell('adapt', *([] if '--generator' in line else ['--generator', 'generator']), *line.split()), words)
    assert sorted(documents.rglob('*')) == before and (documents/'mine'/'letter.txt').read_text() == 'dear'

def test_a_folder_in_the_way_is_seen_before_anything_is_read(shell, documents, monkeypatch):
    monkeypatch.chdir(documents); monkeypatch.setattr('frozen_nb.core.zoo.load_lm', lambda *args: 1/0)
    for folder in ('mine', 'empty.txt'): refused(shell('adapt', 'bella.txt', '--ask', 'why?', '--save', folder, '--generator', 'generator'), folder)
    monkeypatch.setattr('frozen_nb.core.frozen.data_path', lambda *parts: documents.joinpath('none', *parts))
    refused(shell('adapt', 'bella.txt', '--ask', 'why?'), '--generator DIR', 'frozen-nb fit generative_adapter')

def test_the_generator_that_ships_is_taken(shell, documents, monkeypatch):
    monkeypatch.chdir(documents); monkeypatch.setattr('frozen_nb.core.frozen.data_path', lambda *parts: documents/'generator' if parts == ('zoo', 'adapter') else 1/0)
    assert shell('adapt', 'bella.txt', '--ask', 'why?').out == shell('adapt', 'bella.txt', '--ask', 'why?', '--generator', 'generator').out != ''

def test_fit_a_generator(shell, tmp_path, monkeypatch):
    from frozen_nb.world.documents import biography
    monkeypatch.chdir(tmp_path); Path('texts').mkdir(); Path('bella.txt').write_text(TOLD)
    fit = 'fit generative_adapter --data texts --out out --steps 3 --width 8 --batch 2 --device cpu'.split()
    for i in range(2): Path(f'texts/{i}.txt').write_text(biography(i, 1).text)
    said = shell(*fit)
    lines = said.out.splitlines()
    assert said.status == 0 and lines[0] == '2 texts, 1 of them held out; 3 steps: out' and [line.split(' with')[0].rpartition(' ')[0] for line in lines[1:]] == ['held out, reconstruction: perplexity', 'held out, completion: perplexity']
    assert shell(*fit).out == said.out                                                                                     # nothing is left to do
    assert shell('adapt', 'bella.txt', '--ask', 'why?', '--generator', 'out', '--device', 'cpu').status == 0
    assert shell(*fit, '--lr', '0.1').out != said.out                                                                      # another rate is another training
    assert shell(*fit).out == said.out
    for i in range(2, 22): Path(f'texts/{i}.txt').write_text(biography(i, 1).text)
    said = shell(*fit)
    assert said.status == 0 and said.out.startswith('22 texts, 2 of them held out') and said.out.count('[') == 4                  # with intervals
    Path('texts/short.txt').write_text('A fox.'); refused(shell(*fit), 'short.txt (3 tokens)', '8 to 1,024')
    Path('texts/short.txt').write_bytes('Bär'.encode('latin-1')); refused(shell(*fit), 'short.txt: not a text file')
    for p in Path('texts').iterdir():
        if p.name != '0.txt': p.unlink()
    refused(shell(*fit), 'texts: 1 different text')
    Path('texts/0.txt').write_text(TOLD*60); Path('texts/1.txt').write_text(TOLD); refused(shell(*fit), '0.txt (1,', '8 to 1,024')
    refused(shell(*fit[:5], 'texts', *fit[6:]), 'something else')

# --- what a terminal is sent

def shown(text, columns):
    "What `_show` prints on a terminal of so many columns."
    code = f'from frozen_nb import cli; cli._show({text!r})'
    screen, terminal = pty.openpty()
    p = subprocess.Popen([sys.executable, '-c', code], stdout=terminal, env=os.environ | dict(COLUMNS=str(columns), TERM='xterm-256color'))
    os.close(terminal)
    out = b''
    try:
        while chunk := os.read(screen, 65536): out += chunk
    except OSError: pass
    assert p.wait() == 0
    return out.decode()

def test_a_statement_sends_no_link_and_no_hidden_character():
    text = '| id | statement |\n|---|---|\n| a | ![i](http://e.x/y) [l](http://e.x/z) &#8238;gpj.exe &#27;]0;title&#7; &amp; |\n'
    out = shown(text, 120)
    assert '\x1b]' not in out and '\u202e' not in out and '\x07' not in out and '\\u202e' in out and '&' in out

def test_a_narrow_terminal_shows_words():
    text = '| id | statement | value | threshold | verdict |\n|---|---|---|---|---|\n| limber.captions | It holds. | 0.52 | 0.5 | holds |\n'
    for columns in (20, 60): assert 'limber.captions' in shown(text, columns) and '…' not in shown(text, columns)
