"Experiments: the clock, what a preset runs, what is kept, and what a record takes over."
import numpy as np
import pandas as pd
import pytest
import torch

from frozen_nb.core import claims, experiments
from frozen_nb.core.claims import Interval, Ledger, PRESETS, load_records, paired_bootstrap
from frozen_nb.core.experiments import Clock, Experiment, at_least, fingerprints_of, in_turn, interval_rows, intervals_by, seconds_of, with_intervals
from frozen_nb.core.frozen import BadInput
from frozen_nb.core.zoo import card


class Time:
    "A clock that moves when it is told to."
    def __init__(self): self.now = 100.
    def perf_counter(self): return self.now


@pytest.fixture(autouse=True)
def time(monkeypatch, tmp_path):
    monkeypatch.setattr(claims, 'data_path', lambda *parts: tmp_path.joinpath('shipped', *parts))
    for name in ('FROZEN_NB_PRESET', 'FROZEN_NB_OUT', 'FROZEN_NB_SEEDS', 'FROZEN_NB_REAL'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'cache'))
    monkeypatch.chdir(tmp_path)
    time = Time()
    monkeypatch.setattr(experiments, 'time', time)
    return time


@pytest.fixture
def at(monkeypatch): return lambda name: monkeypatch.setenv('FROZEN_NB_PRESET', name)


def demo():
    experiment = Experiment('demo', 'arXiv 0', dict(lm='aa'))
    for id in ('a', 'b', 'c'): experiment.claim(id, f'{id} is high.', measure='recall', threshold=.5)
    return experiment


def of(experiment, id): return {r['id']: r for r in experiment.ledger.records()}[f'demo.{id}']


def test_clock(time):
    clock = Clock()
    time.now += 2
    assert clock.seconds == 2 and clock.split() == 2 and clock.seconds == 0
    with clock: time.now += 3
    time.now += 5
    assert clock.seconds == 3
    with pytest.raises(KeyError):
        with clock:
            time.now += 1
            raise KeyError
    assert clock.seconds == 1


def test_in_turn(time):
    order = []
    def run(name, seconds):
        order.append(name)
        time.now += seconds
    seconds = in_turn({'a': lambda: run('a', 1), 'b': lambda: run('b', 2)}, 3, warmup=1)
    assert order == ['a', 'b']*4 and {k: x.tolist() for k, x in seconds.items()} == dict(a=[1]*3, b=[2]*3)
    assert seconds_of(lambda: run('a', 4)) == 4
    assert in_turn({'a': lambda: 3}, 2, measure=lambda f: f())['a'].tolist() == [3, 3]


@pytest.mark.parametrize('name', PRESETS)
def test_at_least(name, at):
    at(name)
    assert [p for p in PRESETS if at_least(p)] == list(PRESETS[:PRESETS.index(name) + 1])
    with pytest.raises(BadInput, match='quick, full'): at_least('fast')


def test_models_by_name_and_loaded():
    class Loaded: name, fingerprint = 'mine', 'ff'
    assert fingerprints_of(['llama', Loaded]) == dict(llama=card('llama')['fingerprint'], mine='ff')
    with pytest.raises(BadInput): fingerprints_of(['no-such-model'])
    experiment = Experiment('demo', models=['llama'])
    experiment.add_models(Loaded)
    experiment.models |= dict(other='0')
    assert experiment.ledger.models == experiment.models == dict(llama=card('llama')['fingerprint'], mine='ff', other='0')
    assert Experiment('demo').models == {}


def test_seeds(at, monkeypatch):
    at('full')
    experiment = Experiment('demo', seeds=(1, 4, 6))
    assert experiment.seeds == range(4) and experiment.some_seeds() == range(1) and experiment.some_seeds(full=3) == range(3)
    monkeypatch.setenv('FROZEN_NB_SEEDS', '2')
    assert Experiment('demo').some_seeds(full=3) == range(2)


def test_records_share_the_time_since_the_last(time):
    experiment, scores = demo(), np.full((2, 4), .75)
    time.now += 10
    assert experiment.record('a', scores) == 'holds' and of(experiment, 'a')['seconds'] == 10
    time.now += 6
    assert experiment.record_all({'demo.b': scores, 'c': (scores, scores)}, n=None) == {'demo.b': 'holds', 'c': 'fails'}
    assert of(experiment, 'b')['seconds'] == of(experiment, 'c')['seconds'] == 3 and of(experiment, 'b')['models'] == dict(lm='aa')
    assert experiment.record('a', .9, seconds=77) == 'holds' and of(experiment, 'a')['seconds'] == 77
    assert experiment.record_all({}) == {}


def test_a_record_is_that_of_the_ledger(time):
    rng = np.random.default_rng(0)
    a, b, ledger, experiment = rng.random((3, 20)), rng.random((3, 20)), Ledger('demo', 'arXiv 0', dict(lm='aa')), demo()
    for id in ('a', 'b', 'c'): ledger.claim(f'demo.{id}', f'{id} is high.', source='this library', measure='recall', threshold=.5)
    ledger.record('demo.a', a, b, seeds=[0, 1, 2])
    ledger.record('demo.b', Interval(.6, .5, .7), per_seed=[.6], n=9)
    experiment.record_all({'a': (a, b), 'b': dict(values=Interval(.6, .5, .7), per_seed=[.6], n=9)})
    assert experiment.ledger.records() == ledger.records()


def test_recorded_from_a_preset_on(at, time):
    experiment = demo()
    assert experiment.record('a', .9, preset='full') == 'not run' and of(experiment, 'a')['reason'] == 'not part of the preset quick'
    assert experiment.record_all(dict(b=.9), preset='extended') == dict(b='not run')
    at('full')
    assert experiment.record('a', .9, preset='full') == 'holds' and experiment.record_all(dict(b=.9), preset='extended') == dict(b='not run')


def test_unknown_claims_are_refused():
    with pytest.raises(BadInput, match='demo.zz'): demo().record('zz', 1)
    with pytest.raises(BadInput, match='declared twice'): demo().claim('demo.a', '', measure='', threshold=1)


def test_results_are_saved(tmp_path):
    experiment = demo()
    experiment.record('a', .9)
    table = experiment.results()
    assert load_records(tmp_path/'_out'/'claims') == experiment.ledger.records() == table.records


def test_a_table_is_measured_from_its_preset_on(at, time, capsys):
    experiment, calls = demo(), []

    @experiment.measured('t', preset='full', seeds=[4])
    def measure_t(value=1):
        "Doc."
        calls.append(value)
        time.now += 8
        experiment.record('a', .9)
        return [dict(x=value)]

    assert measure_t.__doc__ == 'Doc.' and measure_t.__name__ == 'measure_t'
    assert measure_t() is None and calls == [] and capsys.readouterr().out == 'not measured: the preset full makes this table\n'
    at('full')
    time.now += 50                                              # is not the table's
    table = measure_t(value=3)
    assert table.to_dict('records') == [dict(x=3)] and table.attrs == dict(preset='full', seeds=[4], seconds=8., models=dict(lm='aa'))
    assert of(experiment, 'a')['seconds'] == 8 and capsys.readouterr().out == 'measured at full, 1 seed\n'
    at('quick')
    assert measure_t().x.tolist() == [3] and calls == [3]


def test_several_tables_and_their_facts(at, capsys):
    at('extended')
    experiment = demo()
    both = experiment.measured('s', 't')(lambda: (dict(s=[dict(x=1)], t=[dict(x=2)]), dict(models=dict(other='b'), seconds=5)))
    s, t = both()
    assert (s.x.item(), t.x.item()) == (1, 2) and s.attrs == t.attrs == dict(preset='extended', seeds=[0, 1, 2, 3, 4], seconds=5, models=dict(other='b'))
    with pytest.raises(BadInput, match='no rows'): experiment.measured('u')(lambda: [])()
    with pytest.raises(BadInput, match='fast'): experiment.measured('u', preset='fast')


def test_without_its_data_a_table_is_not_measured(at, tmp_path, monkeypatch, capsys):
    at('extended')
    experiment = demo()
    data = experiment.real_data('one', 'two/x.csv', claims=('a', 'b'))
    assert data is None and capsys.readouterr().out == 'not run: FROZEN_NB_REAL names no folder with one and two/x.csv\n'
    assert [r['reason'] for r in experiment.ledger.records()][:2] == ['FROZEN_NB_REAL names no folder with one and two/x.csv']*2
    assert claims.unmet([r | dict(required=True) for r in experiment.ledger.records()]) == []
    assert experiment.measured('t', given=data is not None)(lambda: 1/0)() is None
    (tmp_path/'published'/'one').mkdir(parents=True)
    monkeypatch.setenv('FROZEN_NB_REAL', str(tmp_path/'published'))
    assert experiment.real_data('one') == dict(one=tmp_path/'published'/'one') and experiment.real_data('one', 'two') is None


def test_run_folders_depend_on_all_inputs(tmp_path):
    experiment = demo()
    inputs = [torch.arange(3.), np.arange(3), dict(lr=.1), 'text', torch.nn.Linear(2, 2)]
    folder = experiment.run_folder(*inputs)
    assert folder == experiment.run_folder(*inputs) and folder.parent == tmp_path/'cache'/'runs'/'demo' and not folder.exists()
    for i, other in enumerate([torch.arange(3.) + 1, np.arange(4), dict(lr=.2), 'texts', torch.nn.Linear(2, 2)]):
        assert experiment.run_folder(*inputs[:i], other, *inputs[i + 1:]) != folder
    assert Experiment('other').run_folder(*inputs).parent.name == 'other'


def test_intervals_in_tables():
    scores = {('a', 1): np.array([.2, .4]), ('a', 2): Interval(.5, .4, .6), ('b', 1): torch.tensor([[1., 0.]])}
    table = pd.DataFrame(interval_rows(scores, 'arm', 'shots', n=100))
    assert table.columns.tolist() == ['arm', 'shots', 'value', 'low', 'high'] and table.iloc[1].tolist() == ['a', 2, .5, .4, .6]
    nested = intervals_by(table, 'arm', 'shots')
    assert nested['a'] == {1: paired_bootstrap([.2, .4], n=100), 2: Interval(.5, .4, .6)} and list(nested) == ['a', 'b']
    assert with_intervals(table, 'F1').F1.map(str).iloc[1] == '0.500 [0.400, 0.600]' and with_intervals(table).columns.tolist() == ['arm', 'shots', 'interval']
    assert interval_rows(dict(a=[.1, .3]), 'arm')[0]['arm'] == 'a'
    with pytest.raises(BadInput, match='2 rows'): intervals_by(table, 'arm')
    with pytest.raises(ValueError): interval_rows(scores, 'arm')


def test_records_name_the_model_as_it_is_now():
    "Kind: the fingerprint taken at load, of a model that has changed since."
    import torch
    from types import SimpleNamespace
    from frozen_nb.core.experiments import fingerprints_of
    from frozen_nb.core.frozen import fingerprint, freeze
    model = freeze(torch.nn.Linear(2, 2))
    loaded = SimpleNamespace(name='lm', model=model, fingerprint=fingerprint(model))
    assert fingerprints_of([loaded]) == dict(lm=loaded.fingerprint)
    model.weight.data.mul_(2)
    assert fingerprints_of([loaded]) == dict(lm=fingerprint(model)) != dict(lm=loaded.fingerprint)
