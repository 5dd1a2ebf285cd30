"""What a run finds in its folder (kinds: a file that a killed run or a failing disk has damaged; a name in a file that leads out of the folder; a link that
someone has planted where a file is going to be written). Records of one file are lost at most, and nothing outside the folder changes."""
import json

import pytest

from frozen_nb import cli
from frozen_nb.core.claims import Ledger, load_records
from frozen_nb.core.frozen import BadInput

DAMAGED = {'empty': b'', 'cut': b'[{"id": "limber.a"', 'zeros': bytes(200), 'no list': b'{}', 'no records': b'[1]', 'not text': b'\xff\xfe\0', 'NaN': b'[NaN]'}


def save(out, method, value=.7):
    ledger = Ledger(method)
    ledger.claim(f'{method}.a', 'A level.', source='1', measure='recall', threshold=.5)
    ledger.record(f'{method}.a', value)
    return ledger.save(out/'claims')


def ids(path): return [r['id'] for r in load_records(path)]


@pytest.mark.parametrize('kind', DAMAGED)
def test_a_damaged_file_of_records_stops_no_report(tmp_path, kind, capsys):
    save(tmp_path, 'pinto')
    (tmp_path/'claims'/'limber.json').write_bytes(DAMAGED[kind])
    assert cli.Reproduction(tmp_path).write_report().exists() and ids(tmp_path/'claims.json') == ['pinto.a']
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and 'limber.json' in said[0]


@pytest.mark.parametrize('when', ['before', 'during'])
def test_a_damaged_file_of_records_stops_no_run(tmp_path, when):
    "It stays under another name, the chapter writes a new one, and a line says so."
    save(tmp_path, 'pinto')
    file, bad = tmp_path/'claims'/'limber.json', b'[{"id": "limber.a"'
    if when == 'before': file.write_bytes(bad)
    lines = cli._put_aside(tmp_path)
    assert not list((tmp_path/'claims').glob('*.json'))
    if when == 'before': save(tmp_path, 'limber')
    else: file.write_bytes(bad)
    records, refused = cli._bring_back(tmp_path)
    lines += refused
    assert len(lines) == 1 and 'limber.json' in lines[0] and '\n' not in lines[0]
    assert ids(tmp_path/'claims') == (['limber.a'] if when == 'before' else []) + ['pinto.a']
    assert (tmp_path/'claims'/'limber.damaged-1').read_bytes() == bad and not (tmp_path/'.claims-before').exists()
    assert cli._put_aside(tmp_path) == [] and cli._bring_back(tmp_path)[1] == []


@pytest.mark.parametrize('method', ['../../precious', '/precious', '..', 'a/b', '', 'limber\0', '.hidden'])
def test_a_method_that_leads_out_of_the_folder(tmp_path, method):
    out, precious = tmp_path/'a'/'b', tmp_path/'precious.json'
    precious.write_text('mine')
    record = json.loads(save(out, 'limber').read_text())[0] | dict(method=method)
    del record['sha256']
    (out/'claims'/'limber.json').write_text(json.dumps([record]))
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(BadInput, match='method'): load_records(out/'claims')
    lines = cli._put_aside(out) + cli._bring_back(out)[1]
    assert len(lines) == 1 and 'method' in lines[0] and precious.read_text() == 'mine'
    assert {p for p in tmp_path.rglob('*') if out not in p.parents} == {p for p in before if out not in p.parents}


@pytest.mark.parametrize('name', ['.claims-before', '.claims-before/all.json', 'claims/.lock', 'claims.json'])
def test_a_planted_link(tmp_path, name):
    "What it leads to stays as it is: the run refuses the link, or replaces it."
    out, home = tmp_path/'out', tmp_path/'home'
    save(out, 'limber')
    (home/'sub').mkdir(parents=True)
    for mine in ('all.json', 'notes.json', 'notes.txt'): (home/mine).write_text('[]')
    link = out/name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(home if name == '.claims-before' else home/'notes.json')
    run = cli.Reproduction(out)
    for f in (lambda: cli._put_aside(out), lambda: cli._bring_back(out), run.write_report):
        try: f()
        except BadInput as error: assert '\n' not in str(error)
    assert sorted(p.name for p in home.iterdir()) == ['all.json', 'notes.json', 'notes.txt', 'sub'] and {p.read_text() for p in home.glob('*.*')} == {'[]'}


def test_files_of_others_among_the_records_put_aside(tmp_path):
    save(tmp_path, 'limber')
    cli._put_aside(tmp_path)
    (tmp_path/'.claims-before'/'notes.txt').write_text('mine')
    cli._bring_back(tmp_path)
    assert (tmp_path/'.claims-before'/'notes.txt').read_text() == 'mine' and ids(tmp_path/'claims') == ['limber.a']


def test_a_file_that_cannot_be_read_is_not_damaged(tmp_path, monkeypatch):
    "No file descriptor is left for it, or its disk fails: it stays where it is, and nothing is deleted."
    file, good = save(tmp_path, 'limber'), save(tmp_path, 'pinto').parent/'limber.json'
    before, real = good.read_bytes(), open
    def fails(path, *args, **kwargs):
        if str(path).endswith('limber.json'): raise OSError(24, 'Too many open files')
        return real(path, *args, **kwargs)
    for name in ('builtins.open', 'io.open'): monkeypatch.setattr(name, fails)
    with pytest.raises((BadInput, OSError), match='Too many open files'): cli._put_aside(tmp_path)
    monkeypatch.undo()
    assert good.read_bytes() == before and ids(tmp_path/'claims') == ['limber.a', 'pinto.a']
