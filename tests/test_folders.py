"Files and folders: whole or not at all under failures and kills, places to write to, JSON with a schema, weights with their hash."
import json
import multiprocessing
import os
import shutil
import stat
from functools import partial
from pathlib import Path
from typing import Any, NotRequired
from unittest.mock import patch

import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file

from frozen_nb.core.folders import (
    SUMS, check_place, file_hash, holds_result, read_folder, read_json, schema_error, whole_folder,
    write_folder, write_whole,
)
from frozen_nb.core.frozen import BadInput, data_path

fork = multiprocessing.get_context('fork') if hasattr(os, 'fork') else None
forks = pytest.mark.skipif(fork is None, reason='needs fork')


def names(folder): return sorted(p.name for p in folder.iterdir())


def one_line(call, *words):
    with pytest.raises(BadInput) as error: call()
    message = str(error.value)
    assert '\n' not in message and all(word in message for word in words), message


# One file

def test_a_file_is_written_with_its_folders(tmp_path):
    path = tmp_path/'a'/'b'/'c.txt'
    assert write_whole(path, 'größer') == path and path.read_bytes() == 'größer'.encode()
    assert write_whole(str(path), b'\0') == path and path.read_bytes() == b'\0' and names(path.parent) == ['c.txt']


@pytest.mark.parametrize('where', ['os.fsync', 'os.replace'])
def test_an_older_file_survives_a_failure(tmp_path, where):
    path = write_whole(tmp_path/'a.txt', 'old')
    with patch(where, side_effect=OSError(28, 'full')), pytest.raises(OSError): write_whole(path, 'new')
    assert path.read_text() == 'old' and names(tmp_path) == ['a.txt']


def test_a_file_has_the_permissions_of_others(tmp_path):
    (tmp_path/'plain').write_text('')
    write_whole(tmp_path/'whole', '')
    with whole_folder(tmp_path/'folder'): pass
    (tmp_path/'made').mkdir()
    mode = {name: stat.S_IMODE((tmp_path/name).stat().st_mode) for name in names(tmp_path)}
    assert mode['whole'] == mode['plain'] and mode['folder'] == mode['made']


# A folder

def save(folder, version, fails=False):
    with whole_folder(folder) as new:
        for name in ('b.bin', 'config.json', 'z.bin'): (new/name).write_text(version)
        (new/'part').mkdir()
        (new/'part'/'c.bin').write_text(version)
        if fails: raise RuntimeError('in the block')


def versions(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob('*') if p.is_file() and p.name != SUMS}


FILES = 'b.bin', 'config.json', 'z.bin', 'part/c.bin'


def test_a_new_folder_and_one_that_is_there(tmp_path):
    folder = tmp_path/'x'/'y'
    save(folder, '1')
    assert versions(folder) == dict.fromkeys(FILES, '1') and names(folder.parent) == ['y']
    (folder/'note').write_text('by hand')
    save(folder, '2')
    assert versions(folder) == dict.fromkeys(FILES, '2') | {'note': 'by hand'} and names(folder.parent) == ['y']


def test_a_failure_in_the_block_leaves_no_trace(tmp_path):
    with pytest.raises(RuntimeError): save(tmp_path/'x'/'y', '1', fails=True)
    assert names(tmp_path) == []
    save(tmp_path/'y', '1')
    with pytest.raises(RuntimeError): save(tmp_path/'y', '2', fails=True)
    assert versions(tmp_path/'y') == dict.fromkeys(FILES, '1') and names(tmp_path) == ['y']


@pytest.mark.parametrize('at', range(5))
def test_after_a_failure_at_any_move_the_result_is_whole(tmp_path, at):
    "Either the old one, or, from the moment at which all of it is there, the new one."
    save(tmp_path/'y', '1')
    moves, rename, replace = [], os.rename, os.replace

    def fail_once(move, source, target):
        moves.append(target)
        if len(moves) == at + 1: raise OSError(5, 'input/output error')
        move(source, target)

    with patch('os.rename', partial(fail_once, rename)), patch('os.replace', partial(fail_once, replace)):
        with pytest.raises(OSError): save(tmp_path/'y', '2')
    assert holds_result(tmp_path/'y')
    assert versions(tmp_path/'y') == dict.fromkeys(FILES, '12'[at > 0]) and names(tmp_path) == ['y']
    assert not [name for name in names(tmp_path/'y') if name.startswith('.')]


def test_a_file_that_the_new_result_does_not_have(tmp_path):
    "It goes with the old result, unless somebody has changed it, or it was never ours."
    def only(**texts):
        with whole_folder(tmp_path/'y', holds=lambda folder: True) as new:
            for name, text in texts.items(): (new/name).write_text(text)
    only(a='1', b='1', c='1')
    (tmp_path/'y'/'b').write_text('by hand')
    (tmp_path/'y'/'note').write_text('by hand')
    only(c='2')
    assert versions(tmp_path/'y') == dict(b='by hand', note='by hand', c='2')


def test_a_list_of_hashes_that_climbs_out_of_the_folder(tmp_path):
    (tmp_path/'letter').write_text('dear')
    save(tmp_path/'y', '1')
    for name in ('../letter', str(tmp_path/'letter')):
        (tmp_path/'y'/SUMS).write_text(json.dumps({name: file_hash(tmp_path/'letter')}))
        assert not holds_result(tmp_path/'y')
        with whole_folder(tmp_path/'y', holds=lambda folder: True) as new: (new/'b.bin').write_text('2')
        assert (tmp_path/'letter').read_text() == 'dear'


def test_only_what_no_process_holds_is_swept(tmp_path):
    "Hidden names of a running process, of another place, and of nobody."
    dead = [f'.y-{"0"*32}.part', f'.y-{"1"*32}.part', f'.y-{"2"*32}.lock']
    kept = [f'.z-{"0"*32}.part', '.y-00.part', f'.y-{"3"*32}.part', f'.y-{"3"*32}.lock', f'.y-{"4"*32}.part']
    for name in dead + kept: (tmp_path/name).write_text('')
    (tmp_path/dead[0]).unlink()
    (tmp_path/dead[0]).mkdir()
    (tmp_path/kept[-1]).unlink()
    (tmp_path/kept[-1]).symlink_to(tmp_path/kept[0])
    with FileLock(tmp_path/kept[3]): save(tmp_path/'y', '1')
    assert names(tmp_path) == sorted([*kept, 'y'])


def test_a_file_of_somebody_else_is_not_replaced(tmp_path):
    "Neither by a writer that was told nothing about the place, nor by one that asks what it holds."
    (tmp_path/'model').mkdir()
    (tmp_path/'model'/'config.json').write_text('{"model_type": "llama"}')
    for call in (lambda: save(tmp_path/'model', '1'), lambda: write_folder(tmp_path/'model', TENSORS, {}, 'a map', lambda folder: read_folder(folder, 'map'))):
        one_line(call, f'{tmp_path/"model"}: this folder holds something else than a ')
    assert names(tmp_path) == ['model'] and names(tmp_path/'model') == ['config.json']
    save(tmp_path/'y', '1')
    (tmp_path/'y'/'b.bin').write_text('by hand')
    one_line(lambda: save(tmp_path/'y', '2'), 'holds something else')
    with pytest.raises(BadInput, match='this was written meanwhile'), whole_folder(tmp_path/'new') as new:
        (new/'a').write_text('mine')
        (tmp_path/'new').mkdir()
        (tmp_path/'new'/'a').write_text('theirs')
    assert versions(tmp_path/'new') == dict(a='theirs')


def test_a_folder_where_a_file_goes_and_a_file_where_a_folder_goes(tmp_path):
    for where in ('b.bin', 'part'):
        save(tmp_path/where, '1')
        folder = tmp_path/where
        (folder/'b.bin').unlink() if where == 'b.bin' else shutil.rmtree(folder/'part')
        (folder/where).mkdir() if where == 'b.bin' else (folder/where).write_text('')
        def again():
            with whole_folder(folder, holds=lambda folder: True) as new:
                (new/'part').mkdir()
                for name in ('b.bin', 'part/c.bin'): (new/name).write_text('2')
        one_line(again, str(folder/where), 'choose another folder')
        assert not [name for name in names(folder) if name.startswith('.')]


def test_a_folder_that_somebody_else_made_meanwhile(tmp_path):
    with whole_folder(tmp_path/'y') as new:
        (new/'a').write_text('mine')
        (tmp_path/'y').mkdir()
        (tmp_path/'y'/'b').write_text('theirs')
    assert versions(tmp_path/'y') == {'a': 'mine', 'b': 'theirs'} and names(tmp_path) == ['y']
    assert names(tmp_path/'y') == ['a', 'b', SUMS]


def test_the_working_folder_and_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save('.', '1')
    assert versions(tmp_path) == dict.fromkeys(FILES, '1')
    (tmp_path/'far').mkdir()
    (tmp_path/'link').symlink_to('far')
    save('link', '2')
    assert (tmp_path/'link').is_symlink() and versions(tmp_path/'far') == dict.fromkeys(FILES, '2')


# A place

def test_a_file_where_a_folder_has_to_be(tmp_path):
    (tmp_path/'file').write_text('')
    for folder in ('file', 'file/deeper', 'file/deeper/still'):
        words = f'{tmp_path/folder}: there is a file where a folder has to be; choose another place for the map'
        one_line(lambda: check_place(tmp_path/folder, 'a map'), words)
        one_line(lambda: write_folder(tmp_path/folder, {}, {}), 'a file where a folder has to be')


def test_a_folder_that_holds_something_else(tmp_path):
    def refuse(folder): raise BadInput('no map')
    for content in ((), ('.hidden',), ('checkpoints',)):
        for name in content: (tmp_path/name).write_text('')
        assert check_place(str(tmp_path), 'an F-LMM', refuse) == tmp_path
    (tmp_path/'letter.txt').write_text('dear')
    assert check_place(tmp_path, 'an F-LMM') == check_place(tmp_path, 'an F-LMM', lambda folder: True) == tmp_path
    for holds in (refuse, lambda folder: False):
        one_line(lambda: check_place(tmp_path, 'an F-LMM', holds), f'{tmp_path}: this folder holds something else than an F-LMM; choose another one')
    assert check_place(tmp_path/'new', 'an F-LMM', refuse) == tmp_path/'new' and not (tmp_path/'new').exists()


@pytest.mark.parametrize('place', ['/proc/x', '/proc/x/deeper', '/dev/null/x', '/sys/x'])
@pytest.mark.skipif(not Path('/proc/self').exists(), reason='needs Linux')
def test_a_place_that_nobody_can_write_to(place):
    "Not even root: permissions do not say so."
    for save_there in (lambda: check_place(place, 'a map'), lambda: write_folder(place, {}, {})): one_line(save_there, place)


def test_a_link_to_nothing_a_name_that_is_too_long_and_one_that_is_no_name(tmp_path):
    (tmp_path/'link').symlink_to(tmp_path/'gone')
    for place in ('link', 'link/deeper'): one_line(lambda: check_place(tmp_path/place, 'a map'), f'{tmp_path/"link"} is a link to nothing; choose another place')
    one_line(lambda: check_place(tmp_path/('x'*300), 'a map'), 'File name too long')
    one_line(lambda: check_place('a\0b', 'a map'), 'is no path')
    assert names(tmp_path) == ['link']


@forks
@pytest.mark.skipif(os.geteuid() != 0, reason='needs root, to become somebody else')
def test_a_place_without_permission(tmp_path):
    def child():
        os.setuid(65534)
        one_line(lambda: check_place(tmp_path/'a', 'a map'), 'cannot be written to')
    tmp_path.chmod(0o500)
    process = fork.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0


# JSON

VALUES = [
    ('a', str), (3, int), (3, float), (3., float), (True, bool), (None, None), ({}, dict), ([], list),
    ([1, 2], list[int]), ({'a': 1}, dict[str, int]), (None, str | None), ('a', str | None), ([[1], []], list[list[int]]),
    ({'a': 1, 'b': 2}, {'a': int}), ({}, {'a': NotRequired[int]}), ({'a': {'b': [{'c': 'x'}]}}, {'a': {'b': list[{'c': str}]}}),
    ({'a': object()}, {'a': Any}), (None, Any), ([1, 'a', None], list[int | str | None]),
]


@pytest.mark.parametrize('value, schema', VALUES)
def test_values_that_match(value, schema): assert schema_error(value, schema) is None


@pytest.mark.parametrize('value, schema, error', [
    (3, str, 'it is a whole number, not a text'), (3., int, 'it is a number, not a whole number'), (True, int, 'it is true or false, not a whole number'),
    (True, float, 'it is true or false, not a number'), ([1, '2'], list[int], '[1] is a text, not a whole number'),
    ({'a': [0]}, dict[str, list[str]], "['a'][0] is a whole number, not a text"), ({}, {'a': int}, 'it has no "a"'), ([], {'a': int}, 'it is a list, not an object'),
    ({'a': None}, {'a': NotRequired[int]}, 'a is null, not a whole number'), ({'a': {'b': [{}]}}, {'a': {'b': list[{'c': str}]}}, 'a.b[0] has no "c"'),
    (3, str | None, 'it is a whole number, not a text or null'), (['a', 3.], list[int | str], '[1] is a number, not a whole number or a text'),
    ({}, None, 'it is an object, not null'), ((1,), list, 'it is a tuple, not a list'),
])
def test_what_does_not_match_is_named(value, schema, error): assert schema_error(value, schema) == error


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
schemas = st.recursive(st.sampled_from([str, int, float, bool, None, Any, dict, list]),
                       lambda inner: st.dictionaries(st.text(), inner, max_size=3) | inner.map(lambda s: list[s]) | inner.map(lambda s: dict[str, s]), max_leaves=5)


@settings(max_examples=200, deadline=None)
@given(json_values, schemas)
def test_any_value_matches_any_schema_or_says_why_not(value, schema):
    error = schema_error(value, schema)
    assert error is None or isinstance(error, str) and error


def test_a_file_that_is_read(tmp_path):
    path = write_whole(tmp_path/'a.json', '\ufeff{"a": [1, NaN]}')
    assert read_json(path)['a'][0] == 1 and read_json(str(path), 'a thing', {'a': list[float]})['a'][0] == 1
    for token in ('NaN', '-Infinity'):
        write_whole(path, f'[{token}]')
        one_line(lambda: read_json(path, 'a list', list, finite=True), f'({token} is no number in JSON)')
    write_whole(path, '[1]')
    assert read_json(path, schema=list, finite=True) == [1] and read_json(path, schema=list) == read_json(path, schema=Any) == [1]


@pytest.mark.parametrize('data', [b'{', b'\xff', b'', b'[' * 100_000, b'{"a": 1} more'])
def test_a_file_that_is_no_json(tmp_path, data):
    one_line(lambda: read_json(write_whole(tmp_path/'a.json', data)), f'{tmp_path/"a.json"}: not a JSON file that can be read', 'write it again')


def test_a_file_that_is_not_there_or_something_else(tmp_path):
    one_line(lambda: read_json(tmp_path/'none'), 'none: not a JSON file that can be read (no such file); write it again')
    one_line(lambda: read_json(tmp_path), 'this is a folder')
    path = write_whole(tmp_path/'a.json', '[{}]')
    one_line(lambda: read_json(path, 'a prompt', way_out='give another one'), f'{path}: not a prompt (it is a list, not an object); give another one')


# Weights

TENSORS = {'weight': torch.arange(6.).view(2, 3).T, 'half': torch.ones(2, dtype=torch.bfloat16, requires_grad=True)}


def test_weights_and_configuration_come_back(tmp_path):
    config = dict(kind='map', sizes=[1, 2], text='größer')
    assert write_folder(tmp_path/'a', TENSORS, config) == tmp_path/'a' and names(tmp_path) == ['a'] and names(tmp_path/'a') == ['config.json', 'model.safetensors', SUMS]
    read, tensors = read_folder(tmp_path/'a', 'map', dict(kind=str, sizes=list[int]))
    assert read == config and 'weights_sha256' not in config
    assert all(torch.equal(tensors[k], t) and tensors[k].dtype == t.dtype for k, t in TENSORS.items())
    assert json.loads((tmp_path/'a'/'config.json').read_text()) == config | dict(weights_sha256=file_hash(tmp_path/'a'/'model.safetensors'))
    assert read_folder(write_folder(str(tmp_path/'b'), tensors, read), 'map')[0] == config


@pytest.mark.parametrize('bad', [dict(config=dict(a=object())), dict(tensors=dict(a=3))])
def test_what_cannot_be_written_leaves_the_old_one(tmp_path, bad):
    write_folder(tmp_path/'a', TENSORS, dict(version=1))
    for name in ('a', 'b'):
        with pytest.raises(Exception): write_folder(tmp_path/name, **dict(tensors=TENSORS, config={}) | bad)
    assert read_folder(tmp_path/'a', 'map')[0] == dict(version=1) and names(tmp_path) == ['a']


def test_weights_of_something_else_are_noticed(tmp_path):
    write_folder(tmp_path/'a', TENSORS, {})
    save_file({'weight': torch.zeros(3, 2)}, tmp_path/'a'/'model.safetensors')
    one_line(lambda: read_folder(tmp_path/'a', 'map'), f'the map in {tmp_path/"a"} cannot be read (model.safetensors: not what was written', 'train or download it again')
    (tmp_path/'a'/SUMS).unlink()
    one_line(lambda: read_folder(tmp_path/'a', 'map'), f'the map in {tmp_path/"a"} cannot be read (model.safetensors: other weights', 'train or download it again')
    config = json.loads((tmp_path/'a'/'config.json').read_text())
    del config['weights_sha256']
    (tmp_path/'a'/'config.json').write_text(json.dumps(config))
    assert read_folder(tmp_path/'a', 'map')[0] == {}


@pytest.mark.parametrize('name, data, words', [
    ('config.json', b'{', 'config.json: JSONDecodeError'), ('config.json', b'[]', 'config.json is not of a map (it is a list, not an object)'), ('config.json', b'{"a": 1}', 'not of a map (it has no "kind")'),
    ('config.json', None, 'no map in'), ('model.safetensors', b'', 'model.safetensors: '), ('model.safetensors', None, 'model.safetensors: BadInput'),
])
def test_damage_is_named(tmp_path, name, data, words):
    write_folder(tmp_path/'a', TENSORS, dict(kind='map'))
    (tmp_path/'a'/name).unlink()
    if data is not None: (tmp_path/'a'/name).write_bytes(data)
    if words != 'no map in': one_line(lambda: read_folder(tmp_path/'a', 'map', dict(kind=str)), f'{name}: not what was written there', str(tmp_path/'a'))
    (tmp_path/'a'/SUMS).unlink()
    one_line(lambda: read_folder(tmp_path/'a', 'map', dict(kind=str)), words, str(tmp_path/'a'))


@pytest.mark.parametrize('name', ['limber', 'flmm', 'adapter'])
def test_folders_that_ship_are_read(name):
    config, tensors = read_folder(data_path('zoo', name), name)
    assert config and tensors
