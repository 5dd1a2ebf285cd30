"""Findings: intervals that hold what they promise, verdicts that do not depend on an order, protocols that cannot be changed in silence, records that
follow from the scores that are kept, and writers that lose nothing."""
import json, os, subprocess, sys, textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from frozen_nb.core import findings as module
from frozen_nb.core.claims import Interval
from frozen_nb.core.findings import (
    amend_protocol, Findings, findings_table, fresh_value, hierarchical_bootstrap, judge, read_findings, read_items, read_protocol, Terms, verify_findings, write_protocol)
from frozen_nb.core.frozen import BadInput

ROOT = Path(__file__).parents[1]
whole_form = os.environ.get('FROZEN_NB_CAMPAIGNS') == 'full'
N = 2000 if whole_form else 200

FINDING = dict(
    statement='Captions name the animal more often with the image than with another one.', origin='ours', source='here', measure='share of captions', unit='accuracy',
    statistic='difference', null='noise in place of the image', cluster='scene', threshold=0., margin=.02, runs=3)


# Intervals, on simulated experiments

def simulated(rng, S, C, m, runs=.2, clusters=.5, both=.2, items=1., skewed=False):
    cluster = np.repeat(np.arange(C), m)
    noise = rng.normal(0, items, (S, C*m))
    if skewed: noise = rng.exponential(items, (S, C*m)) - items
    return rng.normal(0, runs, (S, 1)) + rng.normal(0, clusters, C)[cluster] + rng.normal(0, both, (S, C))[:, cluster] + noise, cluster

DESIGNS = {
    '5 runs, 40 scenes': dict(S=5, C=40, m=3), '3 runs, 40 scenes': dict(S=3, C=40, m=3), '5 runs, 8 tasks': dict(S=5, C=8, m=15), 'runs differ most': dict(S=5, C=30, m=4, runs=.6, clusters=.1),
    'clusters differ most': dict(S=3, C=30, m=4, runs=.05, clusters=1.), 'one run': dict(S=1, C=40, m=3, runs=0, both=0), 'skewed': dict(S=5, C=40, m=3, skewed=True)}

@pytest.mark.campaign
@pytest.mark.parametrize('design', DESIGNS)
def test_intervals_hold_the_true_value(design):
    rng, hits = np.random.default_rng(1), 0
    for _ in range(N): hits += 0 in hierarchical_bootstrap(*_scored(simulated(rng, **DESIGNS[design])), n=400)
    slack = 0 if whole_form else .035
    assert .92 - slack <= hits/N <= .98 + slack, hits/N
    print(f'{design}: {hits/N:.3f} of {N} intervals')

def _scored(pair): return pair[0], None, pair[1]

@pytest.mark.campaign
@pytest.mark.parametrize('design', [name for name in DESIGNS if name != 'one run'])
def test_where_there_is_nothing_a_finding_seldom_holds(design):
    "Two arms and a null arm of one distribution, runs of their own, the same scenes."
    rng, holds, how = np.random.default_rng(2), 0, DESIGNS[design]
    terms = Terms(runs=how['S'])
    for _ in range(N):
        scores, cluster = simulated(rng, **how)
        scene = rng.normal(0, .3, cluster.max() + 1)[cluster]     # what is hard for both arms
        against, null = (simulated(rng, **how)[0] + scene for _ in range(2))
        own, other = (hierarchical_bootstrap(x, against, cluster, 'difference', n=400) for x in (scores + scene, null))
        holds += judge(own, terms, how['S'], other)[0] == 'holds'
    assert holds/N <= (.03 if whole_form else .055), holds/N
    print(f'{design}: holds in {holds/N:.4f} of {N}')

@pytest.mark.parametrize('statistic', ['mean', 'difference', 'ratio'])
@given(st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_no_order_matters(statistic, random):
    "Of runs, and of items together with their clusters."
    rng = np.random.default_rng(random.randrange(2**32))
    S, n = int(rng.integers(1, 6)), int(rng.integers(6, 40))
    a, b = (rng.random((k, n)).astype(np.float16) + np.float16(.5) for k in (S, int(rng.integers(1, 6))))
    cluster = rng.integers(0, 4, n)
    cluster[:2] = 0, 1
    runs, others, items = rng.permutation(S), rng.permutation(len(b)), rng.permutation(n)
    def interval(a, b, cluster): return hierarchical_bootstrap(a, None if statistic == 'mean' else b, cluster, statistic, n=50)
    first, second = interval(a, b, cluster), interval(a[runs][:, items], b[others][:, items], cluster[items])
    assert first == second and judge(first, Terms(runs=0)) == judge(second, Terms(runs=0))

def test_one_cluster_of_all_items_is_not_many_items():
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 1, (1, 10)).repeat(20, 1)
    wide, narrow = (hierarchical_bootstrap(scores, cluster=c) for c in (np.arange(10).repeat(20), None))
    assert wide.high - wide.low > 2*(narrow.high - narrow.low)

@pytest.mark.parametrize('scores, more, words', [
    ([[1., np.nan]], {}, 'NaN'), ([1.], {}, 'two items'), ('abc', {}, 'array'), ([[1, 2j]], {}, 'array'), (np.ma.masked_array([1., 2, 99], mask=[0, 0, 1]), {}, 'array'), ([['1', '2']], {}, 'array'), ([[1, 2]]*3, {}, 'runs of 2 items'), ([[1, 2, 3]], dict(against=[[0, 0, 1]], statistic='ratio'), 'not finite'), ([[1, 2]], dict(cluster=[[0, 1]]), 'one number or name'), ([[1, 2]], dict(against=[[1, 2, 3]], statistic='difference'), 'same items'), ([[1, 2]], dict(statistic='median'), 'no statistic'),
    ([[1, 2]], dict(statistic='difference'), '2 arms'), ([[1, 2]], dict(against=[[1, 2]]), '1 arm'), ([[1, 2]], dict(cluster=[0, 0]), 'one cluster'), ([[1, 2]], dict(cluster=[0, 1, 2]), 'same items'), ([[[1, 2]]], {}, 'shape')])
def test_scores_that_cannot_be_used(scores, more, words):
    with pytest.raises(BadInput, match=words) as error: hierarchical_bootstrap(scores, **more)
    assert '\n' not in str(error.value)


# Verdicts

CLEAR, NOISE = Interval(.3, .2, .4), Interval(0, -.1, .1)

@pytest.mark.parametrize('interval, terms, runs, null, against, verdict', [
    (CLEAR, dict(runs=3), 3, NOISE, .5, 'holds'), (CLEAR, dict(runs=3), 2, NOISE, .5, 'inconclusive'), (CLEAR, dict(runs=0), 1, NOISE, .5, 'holds'), (CLEAR, dict(runs=3), 3, CLEAR, .5, 'inconclusive'),
    (CLEAR, dict(runs=3), 3, Interval(.25, -.2, .5), .5, 'inconclusive'), (CLEAR, dict(runs=3, better='lower'), 3, NOISE, .5, 'fails'), (Interval(-.3, -.4, -.2), dict(runs=3, better='lower'), 3, NOISE, .5, 'holds'),
    (NOISE, dict(runs=3), 3, NOISE, .5, 'inconclusive'), (NOISE, dict(runs=3, margin=.1), 3, NOISE, .5, 'equal'), (NOISE, dict(runs=3, ceiling=.9), 3, NOISE, .95, 'ceiling'), (CLEAR, dict(runs=3, ceiling=.9), 3, NOISE, .95, 'holds'),
    (Interval(0, 0, 0), dict(runs=3), 3, NOISE, .5, 'fails'), (CLEAR, dict(runs=3, threshold=.35), 3, NOISE, .5, 'inconclusive'), (CLEAR, dict(runs=5), 1, NOISE, .5, 'inconclusive'),
    (Interval(-.3, -.4, -.2), dict(runs=3), 1, NOISE, .5, 'inconclusive'), (NOISE, dict(runs=3, margin=.1), 1, NOISE, .5, 'inconclusive'), (Interval(-.2, -.25, -.15), dict(runs=3, ceiling=.99), 3, NOISE, 1., 'fails'),
    (Interval(.03, .01, .055), dict(runs=3, margin=.05), 3, Interval(0, -.01, .01), .5, 'inconclusive'), (Interval(.08, .01, .15), dict(runs=3, margin=.05), 3, Interval(0, -.01, .01), .5, 'holds'),
    (CLEAR, dict(runs=3), 3, Interval(.1, -.5, .7), .5, 'inconclusive'), (Interval(-.3, -.4, -.2), dict(runs=3, better='lower'), 3, Interval(-.1, -.7, .5), .5, 'inconclusive'),
    (CLEAR, dict(runs=3, better='equal', margin=.1), 3, NOISE, .5, 'fails'), (Interval(-.3, -.4, -.2), dict(runs=3, better='equal', margin=.1), 3, NOISE, .5, 'fails'),
    (NOISE, dict(runs=3, better='equal', margin=.1), 3, NOISE, .5, 'equal'), (Interval(.12, .05, .2), dict(runs=3, better='equal', margin=.1), 3, NOISE, .5, 'inconclusive')])
def test_verdicts(interval, terms, runs, null, against, verdict): assert judge(interval, Terms(**terms), runs, null, against)[0] == verdict


# Protocols

@pytest.fixture
def protocol(tmp_path): return write_protocol(tmp_path/'toy.json', 'toy', 'none', dict(animal=FINDING, colour=FINDING | dict(not_testable=dict(real='no labels'))))

@pytest.mark.parametrize('field', [name for name, value in FINDING.items() if isinstance(value, str)] + ['threshold', 'margin', 'runs'])
def test_a_changed_word_makes_records_stale_or_the_protocol_void(protocol, tmp_path, field):
    path = tmp_path/'toy.json'
    content, text = json.loads(path.read_text()), path.read_text()
    to = {'origin': 'paper', 'statistic': 'ratio'}.get(field, 'another word' if isinstance(FINDING[field], str) else 7)
    content['findings']['animal'][field] = to
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match='changed after it was written'): read_protocol(path)
    path.write_text(text)
    now = amend_protocol(path, 'animal', field, to, 'a reason', True)
    assert now.hash('animal') != protocol.hash('animal') and now.hash('colour') == protocol.hash('colour')
    assert now.amendments[0]['from'] == FINDING[field] and now.amendments[0]['results_seen'] is True
    back = amend_protocol(path, 'animal', field, FINDING[field], 'put back', True)
    assert back.hash('animal') == protocol.hash('animal') and len(back.amendments) == 2

def test_amendments_that_do_not_fit(protocol, tmp_path):
    path = tmp_path/'toy.json'
    amend_protocol(path, 'animal', 'threshold', .1, 'a reason', False)
    content = json.loads(path.read_text())
    for change in (dict(to=.2), {'from': .05}, dict(finding='none'), dict(field='unit')):
        content['amendments'][0] |= change
        path.write_text(json.dumps(content))
        with pytest.raises(BadInput, match='toy.json') as error: read_protocol(path)
        assert '\n' not in str(error.value)
        content = json.loads(path.read_text())
    with pytest.raises(BadInput): amend_protocol(path, 'none', 'unit', 'x', 'why', False)

@pytest.mark.parametrize('change', [dict(origin='theirs'), dict(better='more'), dict(margin=-1), dict(runs=1), dict(statistic='median'), dict(null=''), dict(cluster=''), dict(not_testable=dict(moon='x')), dict(threshold='0'), dict(statement=3), dict(treshold=1)])
def test_findings_that_are_none(tmp_path, change):
    with pytest.raises(BadInput, match='p.json') as error: write_protocol(tmp_path/'p.json', 'toy', 'none', dict(a=FINDING | change))
    assert '\n' not in str(error.value) and not (tmp_path/'p.json').exists()

def test_a_protocol_is_written_once(protocol, tmp_path):
    with pytest.raises(BadInput, match='stands'): write_protocol(tmp_path/'toy.json', 'toy', 'none', {})
    with pytest.raises(BadInput, match='without a reason'): amend_protocol(tmp_path/'toy.json', 'animal', 'margin', 1., ' ', False)


# Records and scores

def answers(seed, accuracy, S=3):
    rng = np.random.default_rng(seed)
    return (rng.random((S, 60)) < accuracy).astype(int)

SCENE = np.arange(20).repeat(3)

def measured(protocol, folder, seed=0, id='animal', scale='miniature'):
    findings = Findings(protocol, scale, models=dict(toy='00'))
    findings.record(id, answers(seed, .8), null=answers(seed + 1, .3), against=answers(seed + 2, .3), cluster=SCENE)
    findings.save(folder)
    return findings

def scores_of(folder):
    path, = (folder/'items'/'toy'/'miniature').glob('animal-*.npz')
    return path

def test_records_follow_from_their_scores(protocol, tmp_path):
    measured(protocol, tmp_path)
    record, = [r for r in read_findings(tmp_path/'findings'/'toy.json') if r['finding'] == 'animal']
    assert record['verdict'] == 'holds' and record['runs'] == dict(scores=3, against=3, null=3) and (record['items'], record['clusters']) == (60, 20)
    assert {'commit', 'date', 'versions', 'models'} <= record['about'].keys()
    assert (verify_findings('toy', tmp_path, protocol).fault == '').all()
    items = read_items(scores_of(tmp_path))
    assert items['scores'].dtype == np.uint8 and (items['scores'] == answers(0, .8)).all()

def test_verify_loads_no_model(protocol, tmp_path):
    measured(protocol, tmp_path)
    code = textwrap.dedent(f'''
        import sys
        from pathlib import Path
        from frozen_nb.core.findings import read_protocol, verify_findings
        assert (verify_findings('toy', {str(tmp_path)!r}, read_protocol(Path({str(tmp_path/'toy.json')!r}))).fault == '').all()
        assert not [m for m in sys.modules if m.split('.')[0] in ('transformers', 'timm', 'open_clip')]''')
    subprocess.run([sys.executable, '-c', code], check=True)

@pytest.mark.parametrize('at', np.linspace(0, .999, 25))
def test_one_flipped_byte_in_the_scores_is_found(protocol, tmp_path, at):
    measured(protocol, tmp_path)
    path = scores_of(tmp_path)
    data = bytearray(path.read_bytes())
    data[int(at*len(data))] ^= 1 << int(at*100) % 8
    path.write_bytes(data)
    fault = verify_findings('toy', tmp_path, protocol).set_index('finding').fault['animal']
    assert 'not the scores' in fault and '\n' not in fault

def test_records_that_were_changed(protocol, tmp_path):
    measured(protocol, tmp_path)
    path = tmp_path/'findings'/'toy.json'
    records = json.loads(path.read_text())
    for change in (dict(value=.9), dict(verdict='fails'), dict(verdict='maybe'), dict(scale='moon'), dict(preset='huge'), dict(why=3)):
        path.write_text(json.dumps([records[0] | change]))
        with pytest.raises(BadInput, match='toy.json') as error: read_findings(path)
        assert '\n' not in str(error.value)
    forged = {k: v for k, v in records[0].items() if k != 'sha256'} | dict(value=.9)
    path.write_text(json.dumps([forged | dict(sha256=module.content_hash(forged))]))     # with a checksum that fits
    assert 'the scores give' in verify_findings('toy', tmp_path, protocol).fault[0]
    scores_of(tmp_path).unlink()
    assert 'no such file' in verify_findings('toy', tmp_path, protocol).fault[0]

def test_scores_are_read_without_pickles(tmp_path):
    np.savez(tmp_path/'a.npz', scores=np.array([print], dtype=object), cluster=np.arange(1))
    (tmp_path/'b.npz').write_bytes(b'PK\x03\x04 nothing')
    np.savez(tmp_path/'c.npz', scores=np.zeros((1, 2)))
    for name in 'abc':
        with pytest.raises(BadInput, match=f'{name}.npz') as error: read_items(tmp_path/f'{name}.npz')
        assert '\n' not in str(error.value)

def test_what_is_not_in_the_protocol_is_not_recorded(protocol, tmp_path):
    findings = Findings(protocol)
    for call in (lambda: findings.record('size', answers(0, .5), null=answers(0, .5)), lambda: findings.not_run('size', 'why'), lambda: Findings(protocol, 'moon')):
        with pytest.raises(BadInput): call()

def test_an_arm_without_training_stands_beside_each_run(protocol, tmp_path):
    "Given once, it is as if it had been given for each run; one run of a trained arm stays one."
    rng = np.random.default_rng(0)
    own, prior = rng.random((3, 60)), rng.random(60)
    def recorded(prior): return Findings(protocol).record('animal', own, null=prior, against=prior, cluster=SCENE)
    once, each, one_run = recorded(prior), recorded(np.stack([prior]*3)), recorded(prior[None])
    assert {**once, 'about': 0} == {**each, 'about': 0} and once['runs']['against'] == 3 and one_run['runs']['against'] == 1


@pytest.mark.parametrize('changes, words', [
    (dict(scores=None), 'scores: None'), (dict(scores=[[1, 2], [1]]), 'not an array of numbers'), (dict(against=np.zeros((3, 61))), 'against 61'),
    (dict(null=np.zeros(59)), 'null 59'), (dict(cluster=[float('nan')]*60), 'no NaN'), (dict(cluster=[None]*60), 'one number or name'), (dict(cluster=[[1], [2, 3]]*30), 'one number or name')], ids=str)
def test_arms_and_clusters_that_cannot_be_used(protocol, changes, words):
    arms = dict(scores=answers(0, .8), null=answers(1, .3), against=answers(2, .3), cluster=SCENE) | changes
    with pytest.raises(BadInput, match=words): Findings(protocol).record('animal', **arms)

def test_facts_that_json_cannot_hold_are_refused_before_anything_is_written(protocol, tmp_path):
    for fact in (np.float32(1), '\ud800', float('nan')):
        with pytest.raises(BadInput): Findings(protocol, models=dict(a=fact)).record('animal', answers(0, .8), null=answers(1, .3), against=answers(2, .3), cluster=SCENE)
    assert [path.suffix for path in tmp_path.iterdir()] == ['.json'] and not (tmp_path/'findings').exists()   # the protocol alone

def test_one_run_stays_one_where_only_the_null_arm_has_more(protocol):
    record = Findings(protocol).record('animal', answers(0, .9)[0], null=answers(1, .3), against=answers(2, .3)[0], cluster=SCENE)
    assert record['runs'] == dict(scores=1, against=1, null=3) and record['verdict'] != 'holds'

def test_verify_names_a_folder_without_records(tmp_path, shell):
    (tmp_path/'findings').mkdir()
    said = shell('verify', 'limber', '--records', tmp_path)
    assert said.status != 0 and 'no records in it' in said.err and said.err.count('\n') == 1
    (tmp_path/'findings'/'limber.json').mkdir()
    assert shell('verify', 'limber', '--records', tmp_path).status != 0

def test_not_run_and_not_testable(protocol, tmp_path):
    by_id = {r['finding']: r for r in Findings(protocol, 'real').records()}
    assert by_id['animal']['verdict'] == 'not run' and by_id['colour']['verdict'] == 'not testable here' and by_id['colour']['why'] == 'no labels'

def test_a_smaller_preset_replaces_nothing_but_stale_records(protocol, tmp_path, monkeypatch):
    monkeypatch.setenv('FROZEN_NB_PRESET', 'extended')
    measured(protocol, tmp_path, 0)
    monkeypatch.setenv('FROZEN_NB_PRESET', 'quick')
    measured(protocol, tmp_path, 5)
    def kept(): return {r['finding']: r for r in read_findings(tmp_path/'findings'/'toy.json')}['animal']
    assert kept()['preset'] == 'extended' and (verify_findings('toy', tmp_path, protocol).fault == '').all()
    now = amend_protocol(tmp_path/'toy.json', 'animal', 'margin', .03, 'a reason', True)
    assert 'stale' in verify_findings('toy', tmp_path, now).set_index('finding').fault['animal']
    measured(now, tmp_path, 5)
    assert kept()['preset'] == 'quick' and (verify_findings('toy', tmp_path, now).fault == '').all()
    measured(now, tmp_path, 7, scale='real')
    assert len(verify_findings('toy', tmp_path, now)) == 4

def test_two_processes_lose_nothing(tmp_path):
    names = [f'finding-{i}' for i in range(40 if whole_form else 8)]
    write_protocol(tmp_path/'toy.json', 'toy', 'none', {name: FINDING | dict(cluster='item') for name in names})
    code = textwrap.dedent(f'''
        import sys
        from pathlib import Path
        import numpy as np
        from frozen_nb.core.findings import Findings, read_protocol
        protocol, rng = read_protocol(Path({str(tmp_path/'toy.json')!r})), np.random.default_rng(int(sys.argv[1]))
        for name in {names}[int(sys.argv[1])::2]:
            findings = Findings(protocol)
            a, b, c = (rng.integers(0, 2, (3, 20)) for _ in range(3))
            findings.record(name, a, null=b, against=c)
            findings.save({str(tmp_path)!r})''')
    both = [subprocess.Popen([sys.executable, '-c', code, str(i)], env=os.environ | dict(OMP_NUM_THREADS='1')) for i in range(2)]
    assert [p.wait() for p in both] == [0, 0]
    table = verify_findings('toy', tmp_path, read_protocol(tmp_path/'toy.json'))
    assert sorted(table.finding) == sorted(names) and (table.fault == '').all() and not (table.verdict == 'not run').any()

def test_fresh_items(protocol, tmp_path):
    record = measured(protocol, tmp_path).measured['animal']
    good, bad = (dict(scores=answers(9, accuracy, 1), against=answers(10, .3, 1), cluster=SCENE) for accuracy in (.8, .4))
    assert fresh_value(record, FINDING, good)[1] and not fresh_value(record, FINDING, bad)[1]

def test_the_table_has_a_column_for_each_scale(protocol, tmp_path):
    findings = measured(protocol, tmp_path)
    table = findings_table(protocol, findings.records() + Findings(protocol, 'real').records())
    assert list(table.columns) == ['id', 'finding', 'source', 'unit', 'paper', 'miniature', 'real']
    assert table.miniature[0].startswith('holds 0.') and 'null' in table.miniature[0] and table.real[1] == 'not testable here (no labels)'


# From the shell, and on the pages

@pytest.fixture
def shipped(protocol, tmp_path, monkeypatch):
    "A protocol and records in place of those that ship."
    measured(protocol, tmp_path/'claims')
    (tmp_path/'protocols').mkdir()
    (tmp_path/'toy.json').rename(tmp_path/'protocols'/'toy.json')
    monkeypatch.setattr(module, 'data_path', lambda *parts: tmp_path.joinpath(*parts))
    return tmp_path

def test_verify_from_the_shell(shipped, shell):
    said = shell('verify', '--records', shipped/'claims')
    assert (said.status, said.out.splitlines()) == (0, ['toy: 1 findings recomputed, 0 with a fault'])
    path, = (shipped/'claims'/'items'/'toy'/'miniature').glob('*.npz')
    path.write_bytes(path.read_bytes()[:-1] + b'x')
    said = shell('verify', 'toy', '--records', shipped/'claims')
    assert said.status == 1 and 'toy.animal (miniature)' in said.out and 'not the scores' in said.out and not said.err

def test_fresh_items_from_the_shell(shipped, shell, monkeypatch):
    monkeypatch.setitem(sys.modules, 'frozen_nb.toy', type(sys)('frozen_nb.toy'))
    for accuracy, word, status in ((.8, 'agrees', 0), (.4, 'DIFFERS', 1)):
        monkeypatch.setitem(module.FRESH, ('toy', 'animal'), lambda n: dict(scores=answers(9, accuracy, 1), against=answers(10, .3, 1), cluster=SCENE))
        said = shell('verify', 'toy', '--fresh', 60, '--records', shipped/'claims')
        assert said.status == status and word in said.out

def test_findings_stand_on_the_page_of_claims_and_in_the_report(shipped, tmp_path):
    from frozen_nb.core.claims import claims_markdown, report
    from frozen_nb.core.findings import findings_markdown, methods_with_findings
    methods = methods_with_findings(shipped/'claims')
    page = claims_markdown([], findings_markdown(methods))
    assert page.index('# Findings') < page.index('**holds** 0.') < page.index('# First edition')
    html = report(tmp_path/'out', [], findings={name: findings_table(*pair) for name, pair in methods.items()}).read_text()
    assert '<strong>holds</strong>' in html and FINDING['statement'] in html

@pytest.mark.parametrize('line', ['verify coins', 'verify --records nowhere', 'verify limber --fresh 1', 'verify limber --fresh x', 'verify limber pinto'])
def test_verify_refuses(shell, line):
    said = shell(*line.split())
    assert said.status == 2 and said.err.count('\n') == 1 and said.err.startswith('frozen-nb: ')


@pytest.mark.parametrize('scores, threshold', [(np.ones((3, 5)), .95), (np.ones((2, 2)), .5), (np.zeros((1, 40)), -.01)])
def test_scores_that_all_agree_are_not_certain(scores, threshold):
    interval = hierarchical_bootstrap(scores)
    assert interval.low < interval.high and 0 <= interval.low and interval.high <= 1
    assert interval.low < threshold or threshold < 0

def test_a_high_share_of_few_is_held():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200): hits += .99 in hierarchical_bootstrap((rng.random((1, 40)) < .99).astype(int), n=200)
    assert hits/200 > .9

@pytest.mark.parametrize('name', ['../../evil', '/evil', 'a/b', '', 'A b', 'ä'])
def test_names_that_lead_elsewhere(tmp_path, name):
    with pytest.raises(BadInput, match='no name'): write_protocol(tmp_path/'p.json', 'toy', 'none', {name: FINDING})
    with pytest.raises(BadInput, match='no name'): write_protocol(tmp_path/'p.json', name, 'none', dict(a=FINDING))

def test_recorded_again_with_the_same_scores(protocol, tmp_path):
    for seconds in (1, 2):
        findings = Findings(protocol, seconds=seconds)
        findings.record('animal', answers(0, .8), null=answers(1, .3), against=answers(2, .3), cluster=SCENE)
        findings.save(tmp_path)
    assert (verify_findings('toy', tmp_path, protocol).fault == '').all() and scores_of(tmp_path).is_file()

@pytest.mark.parametrize('scores', [1e-9, 3000., 1e6])
def test_what_is_stored_is_what_was_measured(protocol, tmp_path, scores):
    rng = np.random.default_rng(0)
    base = rng.normal(scores, scores/100, (3, 60))
    record = Findings(protocol).record('animal', base*1.001, null=base, against=base, cluster=SCENE)
    assert abs(record['value']/(scores*.001) - 1) < .02

def test_refused_before_anything_is_written(protocol, tmp_path):
    findings, real = Findings(protocol), Findings(protocol, 'real')
    good = dict(scores=answers(0, .8), null=answers(1, .3), against=answers(2, .3), cluster=SCENE)
    for findings, id, change, words in ((findings, 'animal', dict(cluster=None), 'cluster'), (findings, 'animal', dict(null=None), 'null arm'), (findings, 'animal', dict(seconds=float('nan')), 'beside the scores'), (findings, 'animal', dict(seconds=np.float32(1)), 'beside the scores'), (real, 'colour', {}, 'not testable')):
        with pytest.raises(BadInput, match=words): findings.record(id, **good | change)

def test_records_of_a_protocol_that_was_amended_meanwhile(protocol, tmp_path):
    findings = Findings(read_protocol(tmp_path/'toy.json'))
    findings.record('animal', answers(0, .8), null=answers(1, .3), against=answers(2, .3), cluster=SCENE)
    now = amend_protocol(tmp_path/'toy.json', 'animal', 'margin', .03, 'a reason', True)
    with pytest.raises(BadInput, match='amended'): findings.save(tmp_path)
    measured(now, tmp_path)
    assert findings_table(amend_protocol(tmp_path/'toy.json', 'animal', 'runs', 2, 'a reason', True), read_findings(tmp_path/'findings'/'toy.json')).miniature[0].startswith('stale')

def test_an_amendment_of_a_field_that_was_not_there(protocol, tmp_path):
    now = amend_protocol(tmp_path/'toy.json', 'animal', 'ceiling', .9, 'a reason', False)
    assert now.terms('animal').ceiling == .9 and amend_protocol(tmp_path/'toy.json', 'animal', 'ceiling', None, 'back', True).terms('animal').ceiling is None


def protocol_at(commit, method):
    "The findings of a protocol in a commit of this repository."
    shown = subprocess.run(['git', 'show', f'{commit}:data/protocols/{method}.json'], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, f'{commit} has no protocol of {method}: {shown.stderr}'
    return json.loads(shown.stdout)['findings']


def whole_history():
    asked = subprocess.run(['git', 'rev-parse', '--is-shallow-repository'], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip() == 'false'


@pytest.mark.skipif(not (ROOT/'.git').exists() or not whole_history(), reason='no history here')
@pytest.mark.parametrize('path', sorted((ROOT/'data'/'claims'/'findings').glob('*.json')), ids=lambda p: p.stem)
def test_a_protocol_was_committed_before_the_run_that_it_is_about(path):
    "A hash can be written anew by hand; the history cannot. Amendments after the results say so."
    protocol = read_protocol(path.stem)
    seen = {a['finding'] for a in protocol.amendments if a['results_seen']}
    measured = [r for r in read_findings(path) if 'scores' in r and r['finding'] not in seen]
    assert measured
    for record in measured:
        then = protocol_at(record['about']['commit'].rstrip('+'), path.stem)
        assert then[record['finding']] == protocol.findings[record['finding']], record['finding']


def test_a_claim_of_no_difference_needs_a_margin(tmp_path):
    with pytest.raises(BadInput, match='equal needs a margin'):
        write_protocol(tmp_path/'toy.json', 'toy', 'here', dict(content=FINDING | dict(better='equal', margin=0)))
    assert write_protocol(tmp_path/'toy.json', 'toy', 'here', dict(content=FINDING | dict(better='equal'))).terms('content').better == 'equal'


def test_nothing_holds_beside_a_null_arm_that_is_the_other_arm_again(tmp_path):
    "Another seed minus this one is zero by arithmetic: it could reject nothing, so it shows nothing."
    rng = np.random.default_rng(0)
    ours, other, third = (rng.random((3, 200)) < p for p in (.8, .3, .3))
    protocol = write_protocol(tmp_path/'toy.json', 'toy', 'here', dict(content=FINDING))
    def verdict(null, against=None):
        record = Findings(protocol).record('content', ours, null, other, np.arange(200)//2, against)
        return record['verdict'], record['why']
    assert verdict(third) == ('holds', '')
    for turned in (other, np.roll(other, 1, 0), other[[2, 0, 1]]):
        assert verdict(turned) == verdict(turned, other) == ('inconclusive', 'the null arm is the other arm again, and rejects nothing')
    assert verdict(np.roll(other, 1, 1)) == ('holds', '')           # other items: a measure of its own
    assert verdict(0*other, 0*other) == ('holds', '')               # both at the bottom: measured, not arranged
    protocol = write_protocol(tmp_path/'apart.json', 'toy', 'here', dict(content=FINDING | dict(null_apart=True)))
    assert verdict(other) == ('holds', '')                          # a training of its own, which came out the same
    assert verdict(np.roll(other, 1, 0))[0] == 'inconclusive'       # the other arm in another order is none
