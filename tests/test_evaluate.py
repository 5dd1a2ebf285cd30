"""A head measured on a published data set: from Python and from the shell, with what is written, and what is refused."""
import csv, json, os
from pathlib import Path

import numpy as np
import pytest

from frozen_nb.benchmarks.readers import measure_predictions
from frozen_nb.core.frozen import BadInput, real_path
from frozen_nb.evaluate import all_benchmarks, evaluate_head, Evaluation, PREDICTORS, predictor, save_evaluation
from frozen_nb.world.captions import captions
from frozen_nb.world.documents import biography
from frozen_nb.world.drawing import draw, masks
from frozen_nb.world.multiple_choice import mcq
from frozen_nb.world.scenes import scene

N = 4

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "The miniature world in four published formats."
    folder, scenes = tmp_path_factory.mktemp('data'), [scene(i, 'test', n_animals=1) for i in range(N)]
    (folder/'flickr'/'Images').mkdir(parents=True)
    rows = [('image', 'caption')] + [(f'{i}.jpg', text) for i, s in enumerate(scenes) for text in captions(s)[:5]]
    for i, s in enumerate(scenes): draw(s, 64).save(folder/'flickr'/'Images'/f'{i}.jpg', quality=95)
    with open(folder/'flickr'/'captions.txt', 'w', newline='', encoding='utf-8') as f: csv.writer(f).writerows(rows)
    texts = [biography(i, 1, seed=3) for i in range(N)]
    paragraphs = [dict(context=b.text, qas=[dict(id=f'{i}-{k}', question=q, answers=[dict(text=a, answer_start=max(0, b.text.find(a)))]) for k, (q, a) in enumerate(b.questions[:2])]) for i, b in enumerate(texts)]
    (folder/'squad').mkdir()
    (folder/'squad'/'dev-v1.1.json').write_text(json.dumps(dict(version='1.1', data=[dict(title='animals', paragraphs=paragraphs)])))
    (folder/'csqa').mkdir()
    questions = [mcq(i, 'csqa', 'test') for i in range(N)]
    lines = [dict(id=str(i), answerKey='ABCDE'[m.answer], question=dict(stem=m.question, choices=[dict(label='ABCDE'[k], text=c) for k, c in enumerate(m.choices)])) for i, m in enumerate(questions)]
    (folder/'csqa'/'dev_rand_split.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    return folder

CASES = dict(limber=('flickr', 'flickr8k', 'all', 'CIDEr-D', 1.), generative_adapter=('squad', 'squad', 'dev', 'F1', .3), pinto=('csqa', 'commonsenseqa', None, 'accuracy', .4))

@pytest.mark.parametrize('method', CASES)
def test_shipped_heads_on_published_formats(data, tmp_path, method):
    folder, name, split, measure, least = CASES[method]
    evaluated = evaluate_head(Evaluation(method, data/folder, name, split, device='cpu'))
    official = {k.lower(): v for k, v in evaluated.scores.official.items()}
    assert official[measure.lower()] > least, official
    if method != 'pinto':   # predictions for other items are worse
        others = measure_predictions(name, evaluated.items, evaluated.predictions[2:] + evaluated.predictions[:2]).official
        assert official[measure.lower()] > 1.5*{k.lower(): v for k, v in others.items()}[measure.lower()]
    saved = save_evaluation(evaluated, tmp_path/'out')
    lines = [json.loads(line) for line in (saved/'predictions.jsonl').read_text().splitlines()]
    assert [line['key'] for line in lines] == [item.key for item in evaluated.items] and [line['prediction'] for line in lines] == evaluated.predictions
    with open(saved/'scores.csv', newline='') as f: rows = list(csv.DictReader(f))
    assert len(rows) == len(lines) and {*rows[0]} == {'key', *evaluated.scores.by_item}
    save_evaluation(evaluated, tmp_path/'out')                        # its own result may be replaced
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'a.txt').write_text('mine')
    with pytest.raises(BadInput, match='something else'): save_evaluation(evaluated, tmp_path/'mine')

def test_from_the_shell(data, tmp_path, shell, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = shell('evaluate', 'limber', '--data', data/'flickr', '--format', 'flickr8k:all', '--limit', 3, '--out', 'result', '--device', 'cpu')
    assert said.status == 0 and said.out.startswith('limber on 3 items of flickr8k') and 'CIDEr-D: ' in said.out and len((tmp_path/'result'/'predictions.jsonl').read_text().splitlines()) == 3
    listed = shell('evaluate', 'pinto', '--format', 'list').out
    assert 'commonsenseqa: choice' in listed and 'flickr8k' not in listed

@pytest.mark.parametrize('line, words', [
    ('limber --data . --format flicker8k', 'flickr8k'), ('pinto --data . --format flickr8k', 'answers to choice'), ('ima --data . --format flickr8k', 'no method that can be evaluated'), ('limber --format flickr8k', '--data'),
    ('limber --data nowhere --format flickr8k', 'no such folder'), ('limber --data . --format flickr8k:summer', "no split 'summer'"), ('lm4visual --data . --format imagenet', ''), ('limber --data .', '--format'), ('limber --data . --format ""', 'blank')])
def test_what_is_refused(shell, tmp_path, monkeypatch, line, words):
    import shlex
    monkeypatch.chdir(tmp_path)
    said = shell('evaluate', *shlex.split(line))
    assert said.status == 2 and said.err.count('\n') == 1 and words in said.err and not [*tmp_path.iterdir()]

def test_a_sample_is_the_same_each_time(data):
    def keys(limit): return [item.key for item in evaluate_head(Evaluation('limber', data/'flickr', 'flickr8k', 'all', limit=limit, device='cpu')).items]
    assert keys(2) == keys(2) and len(keys(2)) == 2 and len(keys(99)) == N

def test_every_predictor_is_of_a_task_that_has_data():
    tasks = {b.task for b in all_benchmarks().values()}
    assert {task for _, task in PREDICTORS} <= tasks
    for (method, task) in PREDICTORS: assert predictor(method, next(name for name, b in all_benchmarks().items() if b.task == task)) is PREDICTORS[method, task]

@pytest.mark.skipif(not os.environ.get('FROZEN_NB_REAL'), reason='FROZEN_NB_REAL is not set')
def test_boxes_of_real_expressions():
    "The shipped miniature on SUNSPOT: it knows nothing of rooms, and its boxes are measured all the same."
    evaluated = evaluate_head(Evaluation('flmm', real_path('sunspot'), 'sunspot', limit=2, device='cpu'))
    for item, (x, y, w, h) in zip(evaluated.items, evaluated.predictions):
        width, height = item.open().size
        assert 0 <= x < x + w <= width and 0 <= y < y + h <= height
    assert evaluated.scores.official['mIoU'] == evaluated.scores.by_item['IoU'].mean() and (evaluated.scores.by_item['IoU'] <= 1).all()


def test_own_files_of_the_same_names_are_no_evaluation(tmp_path):
    from frozen_nb.evaluate import holds_evaluation
    for name in ('predictions.jsonl', 'scores.csv', 'measures.csv', 'sha256.json'): (tmp_path/name).write_text('{}')
    assert not holds_evaluation(tmp_path)


@pytest.mark.parametrize('method, format', [('flmm', 'sunspot'), ('lm4visual', 'cifar10')])
def test_a_language_model_that_a_head_cannot_take(method, format):
    from frozen_nb.evaluate import _check_no_lm
    with pytest.raises(BadInput, match='leave --lm out'): _check_no_lm(Evaluation(method, Path('.'), format, lm='opt'))

def test_the_item_that_cannot_be_read_is_named(data, tmp_path):
    text = biography(0, 1, seed=3)
    def question(key, words): return dict(id=key, question=words, answers=[dict(text='x', answer_start=0)])
    paragraph = dict(context=text.text, qas=[question('short', 'who is it?'), question('long', 'word '*6000)])
    (tmp_path/'dev-v1.1.json').write_text(json.dumps(dict(version='1.1', data=[dict(title='a', paragraphs=[paragraph])])))
    with pytest.raises(BadInput, match='^item long: ') as error:
        evaluate_head(Evaluation('generative_adapter', tmp_path, 'squad', 'dev', device='cpu'))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('data_format, error', [
    ('nothing', 'names them'), ('DAQUAR', 'take daquar'), ('daquar:moon', 'no split'),
    ('daquar:', 'no split'), ('commonsenseqa', 'of the task choice'), ('daquar', '--data is missing')])
def test_what_does_not_fit_is_refused_before_a_missing_folder(data_format, error):
    from frozen_nb.cli import _check_evaluation
    with pytest.raises(BadInput, match=error): _check_evaluation('limber', None, data_format)
