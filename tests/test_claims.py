"Claims: intervals, the rule behind verdicts, records on disk, the report."
import json
import math
import os
import random
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from frozen_nb.core import claims
from frozen_nb.core.claims import Claim, ClaimsTable, Interval, KEYS, Ledger, PRESETS, Tables, VERDICTS, bootstrap, by_preset, check_record, claims_markdown, load_records, merge, number, paired_bootstrap, preset, report, stale, unmet, verdict, write_records
from frozen_nb.core.frozen import BadInput

settings.register_profile('shared', deadline=None, derandomize=True, max_examples=30)
settings.load_profile('shared')
finite = st.floats(-1e6, 1e6)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(claims, 'data_path', lambda *parts: tmp_path.joinpath('shipped', *parts))
    monkeypatch.delenv('FROZEN_NB_PRESET', raising=False)
    monkeypatch.delenv('FROZEN_NB_OUT', raising=False)
    monkeypatch.chdir(tmp_path)


def a_ledger(**kwargs):
    ledger = Ledger('demo', 'arXiv 0', models=dict(lm='aa'))
    ledger.claim('demo.level', 'A level.', source='1', measure='recall', **dict(threshold=.5, required=True) | kwargs)
    ledger.claim('demo.gap', 'A gap.', source='2', measure='gap', threshold=.1, on='low')
    ledger.claim('demo.loss', 'A loss.', source='3', measure='loss', unit='nats', better='lower', threshold=0, on='low')
    ledger.claim('demo.exact', 'Nothing changes.', source='4', measure='tensors', unit='', better='lower', threshold=0)
    return ledger


def recorded(**kwargs):
    ledger, rng = a_ledger(**kwargs), np.random.default_rng(0)
    ledger.record('demo.level', rng.normal(.7, .1, (3, 50)), seeds=[5, 6, 7], seconds=2.25)
    ledger.record('demo.gap', rng.normal(.6, .1, (3, 50)), against=rng.normal(.3, .1, (1, 50)))
    ledger.record('demo.exact', 0)
    return ledger


def test_presets(monkeypatch):
    assert preset() == 'quick' and by_preset(1, full=2) == 1
    for name, value in zip(PRESETS, (1, 1, 3, 3)):
        monkeypatch.setenv('FROZEN_NB_PRESET', name)
        assert by_preset(quick=1, extended=3) == value and by_preset(quick=1, full=None) is (1 if name == 'quick' else None)
    monkeypatch.setenv('FROZEN_NB_PRESET', 'Full')
    with pytest.raises(BadInput, match='quick, full, extended'): preset()


@given(st.integers(0, 999), st.integers(2, 30), st.integers(1, 4))
def test_bootstrap_properties(seed, items, seeds):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(seeds, items)), rng.normal(size=(seeds, items))
    x, order = paired_bootstrap(a, b, n=200), rng.permutation(seeds)
    assert np.isclose(x.value, a.mean() - b.mean()) and x.low <= x.high and (a - b).mean(0).min() - 1e-9 <= x.low and x.high <= (a - b).mean(0).max() + 1e-9
    assert x == paired_bootstrap(a, b, n=200)
    assert np.allclose([x.low, x.high], [(y := paired_bootstrap(a[order], b[order], n=200)).low, y.high])
    assert np.allclose([x.low, x.high], [-(y := paired_bootstrap(b, a, n=200)).high, -y.low], atol=.4)
    assert np.allclose([x.low + 3, x.high + 3], [(y := paired_bootstrap(a + 3, b, n=200)).low, y.high])


def test_bootstrap_keeps_pairs():
    hard = np.random.default_rng(0).normal(size=300)
    x = paired_bootstrap(hard + .1, hard)
    assert np.allclose([x.value, x.low, x.high], .1)
    torch = pytest.importorskip('torch')
    assert paired_bootstrap(torch.tensor(hard, requires_grad=True)) == paired_bootstrap(hard)
    assert paired_bootstrap(torch.tensor([[True, False]])).value == .5
    big = paired_bootstrap(np.random.default_rng(1).normal(size=(2, 4000)), n=2000)
    assert abs((big.high - big.low) / 2 - 1.96 / 8000**.5) < .002


def test_bootstrap_statistic():
    rng = np.random.default_rng(0)
    i, u = rng.random((3, 100)), 1 + rng.random((3, 100))
    x = bootstrap(lambda i, u: i.sum() / u.sum(), i, u, n=300)
    assert x.value == i.sum() / u.sum() and x.value in x
    with pytest.raises(BadInput): bootstrap(lambda i, u: 0., i, u[:, :-1])


@pytest.mark.parametrize('a, b', [(.5, None), ([.5], None), ([.1, math.nan], None), ([.1, math.inf], None), ([[.1, .2], [.3]], None), (['a', 'b'], None), (np.zeros((2, 2, 2)), None),
                                  (np.zeros((3, 0)), None), (np.zeros((3, 4)), np.zeros((3, 5))), (np.zeros(4), [.1, .2, math.nan, .3]), (None, None)])
def test_bootstrap_refuses(a, b):
    with pytest.raises(BadInput) as e: paired_bootstrap(a, b)
    assert '\n' not in str(e.value)


@given(finite, finite, finite, finite, st.lists(finite, max_size=3), st.sampled_from(['value', 'low']), st.booleans())
def test_verdict_mirrored_and_complete(t, v, x, y, seeds, on, exact):
    ci = None if exact else sorted((x, y))
    got = verdict('higher', t, v, ci, seeds, on)
    assert got in VERDICTS[:3] and (ci is not None or got != 'inconclusive')
    assert got == verdict('lower', -t, -v, None if exact else [-ci[1], -ci[0]], [-s for s in seeds], on)
    if got == 'holds': assert verdict('higher', t - 1, v, ci, seeds, on) == 'holds'
    if got == 'fails': assert verdict('higher', t + 1, v, ci, seeds, on) == 'fails'


@pytest.mark.parametrize('on, ci, value, per_seed, expected', [
    ('value', (.6, .8), .7, [.7], 'holds'), ('value', (.4, .6), .5, [], 'holds'), ('value', (.4, .5), .45, [], 'inconclusive'), ('value', (.4, .49), .45, [], 'fails'),
    ('low', (.51, .6), .55, [.51, .6], 'holds'), ('low', (.5, .6), .55, [.55], 'inconclusive'), ('low', (.51, .6), .55, [.5, .6], 'inconclusive'), ('low', (.4, .5), .45, [.45], 'fails'), ('low', (.4, .51), .45, [], 'inconclusive')])
def test_verdict_at_the_threshold(on, ci, value, per_seed, expected): assert verdict('higher', .5, value, ci, per_seed, on) == expected


def test_record_has_the_schema():
    records = recorded().records()
    assert [r['id'] for r in records] == ['demo.exact', 'demo.gap', 'demo.level', 'demo.loss']
    exact, gap, level, loss = records
    for r in records[:3]: assert tuple(r) == KEYS
    assert tuple(loss) == KEYS + ('reason',) and loss['verdict'] == 'not run' and loss['value'] is None
    assert level['verdict'] == 'holds' and level['seeds'] == [5, 6, 7] and level['n'] == 50 and len(level['per_seed']) == 3 and level['seconds'] == 2.2 and level['models'] == dict(lm='aa')
    assert np.isclose(level['value'], np.mean(level['per_seed']), atol=1e-5) and level['ci'][0] < level['value'] < level['ci'][1]
    assert gap['measure'] == 'gap (lower end of the interval)' and loss['measure'] == 'loss (upper end of the interval)' and level['measure'] == 'recall'
    assert exact['ci'] is None and exact['value'] == 0 and exact['verdict'] == 'holds'
    json.dumps(records, allow_nan=False)


@pytest.mark.parametrize('change', [dict(verdict='fails'), dict(verdict='yes'), dict(value=None), dict(value=math.nan), dict(ci=[1, 0]), dict(ci=[0]), dict(ci=None, measure='x (lower end of the interval)'),
                                    dict(seeds=[1]), dict(seeds=[.5]), dict(per_seed='x'), dict(n=1.5), dict(threshold='0'), dict(threshold=True), dict(required=1), dict(better='more'), dict(preset='q'),
                                    dict(models=[]), dict(models=dict(a=1)), dict(seconds=-1), dict(reason='x'), dict(extra=1), dict(unit=None), dict(threshold=.69), dict(method='../../up'), dict(method='/etc/x'), dict(method='a\nb'), dict(method='')])
def test_check_record_refuses(change):
    record = recorded().records()[2]
    assert check_record(record) == record
    with pytest.raises(BadInput): check_record(record | change | (dict(threshold=.99) if change == dict(threshold=.69) else {}))


def test_check_record_refuses_what_is_missing():
    record = recorded().records()[2]
    for key in KEYS:
        with pytest.raises(BadInput): check_record({k: v for k, v in record.items() if k != key})
    for junk in [None, [], 'x', {}]:
        with pytest.raises(BadInput): check_record(junk)


def test_ledger_refuses():
    ledger = recorded()
    for id in ['demo.level', 'Bad Id', '']:
        with pytest.raises(BadInput): ledger.claim(id, '', source='', measure='', threshold=1)
    for kwargs in [dict(threshold=math.nan), dict(threshold='1'), dict(threshold=1, better='up'), dict(threshold=1, on='high')]:
        with pytest.raises(BadInput): ledger.claim('demo.new', '', source='', measure='', **kwargs)
    for args, kwargs in [(('demo.new', 1.), {}), (('demo.level', math.nan), {}), (('demo.level', [.1, math.nan]), {}), (('demo.level', [[.1, .2]]), dict(seeds=[1, 2])), (('demo.gap', .5), {}), (('demo.level', 'x'), {}), (('demo.level', None), {})]:
        with pytest.raises(BadInput): ledger.record(*args, **kwargs)
    with pytest.raises(BadInput): ledger.not_run('demo.new', 'x')
    for method in ('../up', 'a/b', '', '.', 'a b', '/etc'):
        with pytest.raises(BadInput, match='is no name'): Ledger(method)
        with pytest.raises(BadInput, match='is no name'): Tables(method)
    with pytest.raises(AttributeError): ledger.claims['demo.level'].threshold = 0


def test_ledger_interval_and_numbers():
    ledger = a_ledger()
    assert ledger.record('demo.gap', Interval(.3, .2, .4), per_seed=[.25, .35], seeds=[0, 1], n=77) == 'holds'
    assert ledger.records()[1]['per_seed'] == [.25, .35] and ledger.records()[1]['n'] == 77
    for zero in [0, 0., False, np.int64(0), np.float32(0), np.bool_(False)]: assert ledger.record('demo.exact', zero) == 'holds'
    assert ledger.record('demo.exact', 2) == 'fails'


def test_save_merges(monkeypatch, tmp_path):
    file = recorded().save()
    assert file.resolve() == (tmp_path/'_out'/'claims'/'demo.json').resolve()
    assert load_records(file) == recorded().records() and sorted(p.name for p in file.parent.iterdir()) == ['.lock', 'demo.json']
    text = file.read_bytes()
    assert recorded().save().read_bytes() == text
    monkeypatch.setenv('FROZEN_NB_PRESET', 'full')
    full = recorded()
    full.record('demo.level', [.9, .91])
    full.save()
    monkeypatch.setenv('FROZEN_NB_PRESET', 'quick')
    recorded().save()
    by_id = {r['id']: r for r in load_records(file)}
    assert by_id['demo.level']['preset'] == 'full' and by_id['demo.level']['value'] == .905
    a_ledger(required=False).save()
    by_id = {r['id']: r for r in load_records(file)}
    assert by_id['demo.level']['value'] == .905 and by_id['demo.level']['required'] is False
    monkeypatch.setenv('FROZEN_NB_OUT', str(tmp_path/'other'))
    assert recorded().save() == tmp_path/'other'/'claims'/'demo.json'


def test_terms_stand(tmp_path):
    recorded().save(tmp_path/'shipped'/'claims')
    a_ledger()
    for change in [dict(threshold=.4), dict(unit='points'), dict(better='lower'), dict(on='low')]:
        with pytest.raises(BadInput, match='measured already'): a_ledger(**change)
        with pytest.raises(BadInput, match='measured already'): merge([r for r in recorded().records()], [r | change if r['id'] == 'demo.level' and 'on' not in change else
            r | dict(measure='recall (lower end of the interval)') if r['id'] == 'demo.level' else r for r in recorded().records()])


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = recorded().save()
    old = file.read_bytes()
    with pytest.raises(BadInput): write_records([recorded().records()[2] | dict(value=math.nan)], file)
    with pytest.raises(BadInput): write_records([recorded().records()[2]] * 2, file)
    monkeypatch.setattr(claims.os, 'replace', lambda *a: (_ for _ in ()).throw(OSError('full')))
    with pytest.raises(BadInput, match='demo.json: cannot be written .full.; make room'): recorded().save()
    assert file.read_bytes() == old


@pytest.mark.parametrize('text', ['', '{', '{}', '[1]', '[{}]', 'null', '[{"value": NaN}]', '\x00'])
def test_load_refuses(text, tmp_path):
    (tmp_path/'x.json').write_text(text)
    with pytest.raises(BadInput) as e: load_records(tmp_path)
    assert 'x.json' in str(e.value) and '\n' not in str(e.value)


def test_load(tmp_path):
    with pytest.raises(BadInput): load_records()
    with pytest.raises(BadInput): load_records(tmp_path/'none')
    (tmp_path/'empty').mkdir()
    assert load_records(tmp_path/'empty') == []
    recorded().save(tmp_path/'a')
    (tmp_path/'a'/'copy.json').write_bytes((tmp_path/'a'/'demo.json').read_bytes())
    with pytest.raises(BadInput, match='two records'): load_records(tmp_path/'a')


def test_stale_and_unmet():
    records = recorded().records()
    assert stale(records, dict(lm='aa', other='x')) == {} == stale(records, {})
    assert stale(records, dict(lm='bb')) == {id: ['lm'] for id in ('demo.exact', 'demo.gap', 'demo.level')}
    assert unmet(records) == [] and [r['id'] for r in unmet([records[2] | dict(verdict='fails')])] == ['demo.level']


@pytest.mark.parametrize('reason, counts', [('not part of the preset quick', False), ('FROZEN_NB_REAL names no folder with cifar10', False), ('out of memory', True)])
def test_what_nobody_was_told_to_measure_is_not_unmet(reason, counts, tmp_path):
    ledger = a_ledger()
    assert unmet(ledger.records()) == []
    ledger.not_run('demo.level', reason)
    assert [r['id'] for r in unmet(ledger.records())] == ['demo.level']*counts
    lead = re.search('class="lead">(.*?)<', report(tmp_path, ledger.records()).read_text())[1]
    assert lead == '0 of 4 claims hold. ' + ('1 of the required claims does not.' if counts else 'All required claims that were run hold. 1 was not run.')


def test_table():
    table = recorded().table()
    lines = table.markdown().splitlines()
    assert len(lines) == 2 + 4 and all(line.count('|') == 7 for line in lines)
    assert ClaimsTable([table.records[2] | dict(statement='a|b\nc')]).markdown().count('\n') == 3
    assert list(table.frame['verdict']) == ['holds', 'holds', 'holds', 'not run'] and table.frame.loc['demo.level', 'threshold'] == .5
    assert ClaimsTable([])._repr_html_() and len(ClaimsTable([]).frame) == 0
    assert '&lt;b&gt;' in ClaimsTable([table.records[2] | dict(statement='<b>')])._repr_html_()


@given(finite, st.floats(0, 1e6))
def test_number_reads_back(x, width): assert abs(float(number(x, width).replace('−', '-')) - x) <= max(.006 * (width or abs(x)), .05 * abs(x) if max(width or abs(x), abs(x)) < .005 else 0, .0006)


class Links(HTMLParser):
    def __init__(self): super().__init__(); self.open, self.links = [], []
    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ('src', 'href')]
        if tag not in ('meta', 'link', 'img', 'rect', 'line', 'circle', 'br'): self.open.append(tag)
    def handle_endtag(self, tag):
        if tag not in ('rect', 'line', 'circle'): assert self.open.pop() == tag


def test_report(tmp_path):
    from PIL import Image
    Image.new('RGB', (40, 20)).save(tmp_path/'plain.png')
    (tmp_path/'drawing.svg').write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    records = recorded().records() + [recorded().records()[2] | dict(id='x.other', method='x', statement='<script>alert(1)</script> & "more"')]
    path = report(tmp_path/'new'/'out', records, [tmp_path/'plain.png', (tmp_path/'drawing.svg', 'A <drawing>.')], [dict(name='n', status='ran', seconds=1)], {'Host': '<b>'})
    page, links = path.read_text(), Links()
    links.feed(page)
    assert not links.open and len(links.links) > 4 and all(re.match('data:|#', link) for link in links.links)
    assert '<script' not in page and '&lt;drawing&gt;' in page and '&lt;b&gt;' in page and page.count('<svg class="interval"') == 4
    assert report(tmp_path, []).read_text().count('<h2>') == 1
    for figure in [tmp_path/'none.png', tmp_path/'new']:
        with pytest.raises(BadInput): report(tmp_path, [], [figure])


def test_tables_of_the_larger_preset_stay(monkeypatch, tmp_path):
    tables, rows = Tables('demo'), [dict(arm='clip', value=.5), dict(arm='beit', value=.25)]
    with pytest.raises(BadInput, match="no table 'shots' of demo"): tables['shots']
    monkeypatch.setenv('FROZEN_NB_PRESET', 'full')
    tables.keep('shots', rows, seeds=range(3), models=dict(lm='aa'), seconds=2.04)
    assert tables['shots'].to_dict('records') == rows and tables['shots'].attrs == dict(preset='full', seeds=[0, 1, 2], seconds=2.0, models=dict(lm='aa'))
    monkeypatch.setenv('FROZEN_NB_PRESET', 'quick')
    tables.keep('shots', [dict(arm='clip', value=9.)])
    tables.keep('other', [dict(x=1)])
    assert len(tables['shots']) == 2 and 'other' in tables and Tables('else').path != tables.path
    monkeypatch.setenv('FROZEN_NB_PRESET', 'extended')
    tables.keep('shots', [dict(arm='clip', value=9.)])
    assert tables['shots'].value.tolist() == [9.] and not list(tables.path.parent.glob('.*'))


def test_tables_that_ship_are_shown_by_smaller_presets(monkeypatch, tmp_path):
    monkeypatch.setenv('FROZEN_NB_PRESET', 'extended')
    Tables('demo', tmp_path/'shipped'/'claims').keep('shots', [dict(value=1.)])
    monkeypatch.setenv('FROZEN_NB_PRESET', 'quick')
    tables = Tables('demo')
    assert 'shots' in tables and tables['shots'].value.tolist() == [1.]
    tables.keep('shots', [dict(value=2.)])
    assert tables['shots'].value.tolist() == [1.]
    monkeypatch.setenv('FROZEN_NB_PRESET', 'extended')
    tables.keep('shots', [dict(value=3.)])
    assert tables['shots'].value.tolist() == [3.]


@pytest.mark.parametrize('rows, word', [([], 'no rows'), ([dict(x=math.nan)], "column 'x'"), ([dict(x=math.inf)], "column 'x'"), ([dict(x=None)], "column 'x'")])
def test_tables_refuse(rows, word):
    with pytest.raises(BadInput, match=word): Tables('demo').keep('bad', rows)
    assert 'bad' not in Tables('demo')


def test_a_damaged_table_is_named(tmp_path):
    Tables('demo').keep('a', [dict(x=1)])
    Tables('demo').path.write_text('{')
    with pytest.raises(BadInput, match='demo.json: not a JSON file that can be read.*run its chapter again'): Tables('demo')['a']


def test_the_table_of_claims_can_show_what_ships(tmp_path):
    recorded().save(tmp_path/'shipped'/'claims')
    ledger = a_ledger()
    ledger.record('demo.exact', 1)
    verdicts = lambda shipped: {r['id']: r['verdict'] for r in ledger.table(shipped=shipped).records}
    assert set(verdicts(False).values()) == {'not run', 'fails'} and verdicts(True) == {'demo.level': 'holds', 'demo.gap': 'holds', 'demo.loss': 'not run', 'demo.exact': 'fails'}


def test_the_table_of_claims_prefers_what_ships_of_a_larger_preset(tmp_path, monkeypatch):
    monkeypatch.setenv('FROZEN_NB_PRESET', 'full')
    recorded().save(tmp_path/'shipped'/'claims')
    monkeypatch.setenv('FROZEN_NB_PRESET', 'quick')
    def table(**kwargs):
        ledger = Ledger('demo', 'arXiv 0', models=kwargs)
        ledger.claim('demo.exact', 'Nothing at all changes.', source='4', measure='tensors', unit='', better='lower', threshold=0)
        ledger.record('demo.exact', 1)
        return ledger.table(shipped=True)
    same, other = table(lm='aa'), table(lm='bb')
    assert [(r['verdict'], r['preset'], r['statement']) for r in same.records] == [('holds', 'full', 'Nothing at all changes.')]
    assert [(r['verdict'], r['preset']) for r in other.records] == [('fails', 'quick')]
    assert 'measured at full' in same._repr_html_() and 'measured at' not in other._repr_html_() + ClaimsTable(same.records)._repr_html_()
    monkeypatch.setenv('FROZEN_NB_PRESET', 'full')
    assert [r['verdict'] for r in table(lm='aa').records] == ['fails']


def test_the_page_of_claims():
    records = recorded().records()
    own = records[1] | dict(id='demo.a', source='this library, after Figure 2', statement='a | b', per_seed=[], seeds=[])
    other = records[2] | dict(id='limber.x', method='limber', paper='arXiv 2209.15162', statement='clip is better')
    page = claims_markdown([*records, own, other])
    heads, rows = re.findall('^## (.*)$', page, re.M), [line for line in page.splitlines() if line.startswith('| ') and '`' in line]
    assert heads == ['LiMBeR', 'This library: demo'] and '| LiMBeR | [arXiv 2209.15162](https://arxiv.org/abs/2209.15162) | 1 | 1 | 0 | 0 | 0 |' in page and '[arXiv 2209.15162](https://arxiv.org/abs/2209.15162)' in page
    assert [re.search('`(.*?)`', row)[1] for row in rows] == ['limber.x', 'demo.exact', 'demo.gap', 'demo.level', 'demo.loss', 'demo.a']   # the library's own last
    assert all(len(re.findall(r'(?<!\\)\|', row)) == 9 for row in rows) and 'A \\| b.' in rows[-1] and "this library's own, after Figure 2" in rows[-1]
    assert '| 3 | 50 |' in rows[3] and '*(required)*' in rows[3] and 'not part of the preset quick' in rows[4]
    assert claims_markdown([]).startswith('# Claims')


# Damage: single bits of the files that hold records and tables

FLIPS = 400 if os.environ.get('FROZEN_NB_CAMPAIGNS') == 'full' else 60


def flips(path, read, n):
    "Flip single bits: how many files are refused in one line, how many still give what was written, how many give something else."
    good, want, rng, counts = path.read_bytes(), read(), random.Random(0), dict(refused=0, right=0, silent=0)
    for _ in range(n):
        at = rng.randrange(len(good))
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1:])
        try: counts['right' if read() == want else 'silent'] += 1
        except BadInput as error:
            assert '\n' not in str(error) and path.name in str(error)
            counts['refused'] += 1
    path.write_bytes(good)
    print(f'{n} flips of {path.name}: {counts}')
    return counts


@pytest.mark.campaign
def test_flipped_bits_of_records(tmp_path):
    file = recorded().save(tmp_path/'claims')
    assert flips(file, lambda: load_records(file), FLIPS)['silent'] == 0


@pytest.mark.campaign
def test_flipped_bits_of_tables(tmp_path):
    tables = Tables('demo', tmp_path/'claims')
    for name in ('shots', 'shorts'): tables.keep(name, [dict(arm='clip', value=.5, n=3), dict(arm='beit', value=.25, n=4)], seeds=[1, 2], models=dict(lm='aa'))
    def read(): return [(name, name in tables, tables[name].to_dict('records'), tables[name].attrs) for name in ('shots', 'shorts')]
    assert 'sha256' not in tables['shots'].attrs and flips(tables.path, read, FLIPS)['silent'] == 0


def test_files_without_checksums_are_read(tmp_path):
    "As those that ship: written by the first edition, or by hand."
    file, records = tmp_path/'demo.json', recorded().records()
    file.write_text(json.dumps(records))
    assert load_records(file) == records
    table = dict(preset='full', seeds=[0], seconds=1, models={}, rows=[dict(x=1)])
    Tables('demo').path.parent.mkdir(parents=True)
    Tables('demo').path.write_text(json.dumps(dict(a=table)))
    assert Tables('demo')['a'].to_dict('records') == [dict(x=1)]
    for wrong in (table | dict(preset='fill'), table | dict(seeds=['1']), table | dict(more=1), table | dict(rows=[1]), {}, []):
        Tables('demo').path.write_text(json.dumps(dict(a=wrong)))
        with pytest.raises(BadInput, match='demo.json.*run its chapter again'): Tables('demo')['a']


def test_one_damaged_file_stops_no_other(tmp_path):
    recorded().save(tmp_path)
    (tmp_path/'bad.json').write_text('[{')
    damaged = []
    assert load_records(tmp_path, damaged) == recorded().records() and len(damaged) == 1 and 'bad.json' in damaged[0]
    with pytest.raises(BadInput, match='bad.json'): load_records(tmp_path)


def test_a_lock_that_nobody_gives_back(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, '_PATIENCE', .2)
    file = recorded().save(tmp_path)
    old = file.read_bytes()
    with claims.records_lock(tmp_path):
        for f in (lambda: recorded().save(tmp_path), lambda: Tables('demo', tmp_path).keep('a', [dict(x=1)])):
            with pytest.raises(BadInput, match='another process.*wait'): f()
    assert file.read_bytes() == old and recorded().save(tmp_path) == file


def test_a_link_in_place_of_the_lock(tmp_path):
    "A link that someone has planted at its name: what it leads to stays as it is."
    (tmp_path/'precious').write_text('mine')
    (tmp_path/'claims').mkdir()
    (tmp_path/'claims'/'.lock').symlink_to(tmp_path/'precious')
    with pytest.raises(BadInput, match='claims: cannot be written to'): recorded().save(tmp_path/'claims')
    assert (tmp_path/'precious').read_text() == 'mine'
