"The cache: who can write to it, and what happens where nobody can (kind: results that nobody here computed)."
import os
from pathlib import Path

import pytest

from frozen_nb.core.frozen import BadInput, cache_path

@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'above'/'cache'))
    return tmp_path/'above'/'cache'

def test_the_cache_is_made_for_its_owner(cache):
    before = os.umask(0)
    try:
        assert cache_path('texts', 'x') == cache/'texts'/'x' and cache.stat().st_mode & 0o777 == 0o700 and not list(cache.iterdir())
        (cache/'features').mkdir(mode=0o755)
        assert cache_path('features') == cache/'features' == cache_path('features')
    finally:
        os.umask(before)

@pytest.mark.parametrize('part', ['', 'texts', 'texts/deep'])
@pytest.mark.parametrize('mode, fine', [(0o700, True), (0o755, True), (0o750, True), (0o777, False), (0o1777, False), (0o757, False), (0o702, False), (0o722, False)])
def test_a_cache_that_others_can_write_to(cache, part, mode, fine):
    (cache/'texts'/'deep').mkdir(parents=True)
    (cache/part).chmod(mode)
    if fine: assert cache_path('texts', 'deep', 'x') == cache/'texts'/'deep'/'x'
    else:
        with pytest.raises(BadInput, match='other users can write.*chmod 700.*FROZEN_NB_CACHE') as error: cache_path('texts', 'deep', 'x')
        assert '\n' not in str(error.value)

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0, reason='needs root')
def test_a_cache_of_another_user(cache):
    cache.mkdir(parents=True)
    os.chown(cache, 65534, 65534)
    with pytest.raises(BadInput, match='other users can write'): cache_path()

@pytest.mark.skipif(os.name != 'posix', reason='needs groups')
def test_a_cache_of_a_group(cache, monkeypatch):
    "A group of its owner alone, as many systems give to everybody, is nobody else."
    import grp
    from types import SimpleNamespace
    cache.mkdir(parents=True)
    cache.chmod(0o770)
    for members, fine in (([], True), (['someone'], False)):
        monkeypatch.setattr(grp, 'getgrgid', lambda gid: SimpleNamespace(gr_mem=members))
        if fine: assert cache_path() == cache
        else:
            with pytest.raises(BadInput, match='other users can write'): cache_path()
    def unknown(gid): raise KeyError(gid)                                 # a container's
    monkeypatch.setattr(grp, 'getgrgid', unknown)
    assert cache_path() == cache

@pytest.mark.parametrize('cache', ['/proc/none'])
def test_a_cache_that_cannot_be_written_to(cache, monkeypatch, shell):
    "As for a user without a home: the shell says it in one line, and what needs no cache works."
    monkeypatch.setenv('FROZEN_NB_CACHE', cache)
    assert cache_path('texts') == Path(cache, 'texts')
    said = shell('explain', 'What does a zebra eat?', '--choices', 'grass', 'meat')
    assert said.status == 2 and said.err.startswith('frozen-nb: ') and len(said.err.splitlines()) == 1 and 'FROZEN_NB_CACHE' in said.err, said
    monkeypatch.setenv('FROZEN_NB_CACHE', '')
    monkeypatch.setenv('HOME', cache)
    said = shell('explain', 'What does a zebra eat?', '--choices', 'grass', 'meat')
    assert said.status == 2 and len(said.err.splitlines()) == 1, said
