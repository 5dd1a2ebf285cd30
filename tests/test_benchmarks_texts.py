"""Readers of texts, dialogues and questions with choices: each on one well-formed file, with the official number of predictions
scored by hand, and on files that are wrong in ten ways, each one line that names the file."""
import gzip, json, tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pytest

from frozen_nb.benchmarks import choices, texts   # noqa: F401  they make their benchmarks known
from frozen_nb.benchmarks.readers import BENCHMARKS, measure_predictions, read_benchmark
from frozen_nb.core.frozen import BadInput


def jsonl(*rows): return ''.join(json.dumps(row) + '\n' for row in rows)


def case(files, keys, predictions, official, bad, split=None, needs=None, alone=False):
    """Files by name, the first being the one that is spoiled; keys of its items; predictions and their official numbers;
    what is wrong with the file otherwise: name -> (part of the text, what stands there instead); whether it is spoiled alone."""
    return SimpleNamespace(files=files, main=next(iter(files)), keys=keys, predictions=predictions, official=official,
                           bad=bad, split=split, needs=needs, alone=alone)


def squad(version, rows):
    paragraph = dict(context='Ada wrote the first program.', qas=rows)
    return {f'dev-v{version}.json': json.dumps(dict(version=version, data=[dict(title='Ada', paragraphs=[paragraph])]))}


def question(id, text, start=0, **more):
    return dict(id=id, question='who?', answers=[dict(text=text, answer_start=start)] if text else [], **more)


JSON = {'not a number': ('"who?"', 'NaN'), 'a number for a text': ('"who?"', '5'), 'null for a text': ('"who?"', 'null'),
        'no field': ('"question"', '"questio"')}
SQUAD = JSON | {'no answer': ('{"text": "Ada", "answer_start": 0}', ''), 'a start outside': ('"answer_start": 0', '"answer_start": 99'),
                'an object for a list': ('"data": [', '"data": {}, "rest": [')}
STREAM = dict(qa_id='eval-0', question='who?', answers=['Ada Lovelace', 'Ada', 'A. L.'], answers_additional=['Grace'], evidence_id='doc',
              recent_or_past='recent', written_or_generated='written', question_ts=1, evidence_ts=0)
NQ = dict(question='who?', answers=['Ada'], ctxs=[dict(title='Ada', text='Ada wrote it.', hasanswer=True, isgold=True)])
ICL = dict(task='t', input='nice', output='yes', options=['yes', 'no'])
TEXTS = {
    'squad': case(squad('1.1', [question('a', 'Ada'), question('b', 'the first program', 10)]), ['a', 'b'], ['ada!', 'first'],
                  dict(exact_match=.5, f1=(1 + 2/3)/2), SQUAD),
    'squad2': case(squad('2.0', [question('a', 'Ada'), question('b', '', is_impossible=True)]), ['a', 'b'], ['Ada', 'Bob'],
                   {'exact_match': .5, 'HasAns f1': 1, 'NoAns f1': 0}, SQUAD | {'a text for a truth': ('true', '"true"')}),
    'xquad': case({'xquad.en.json': squad('1.1', [question('a', 'Ada')])['dev-v1.1.json']}, ['a'], [''], dict(exact_match=0, f1=0), SQUAD),
    'streamingqa': case({'streaminqa_eval.jsonl.gz': jsonl(STREAM, STREAM | dict(qa_id='eval-1', recent_or_past='past'))}, ['eval-0', 'eval-1'],
                        ['Ada', 'Grace'], {'exact_match': .5, 'f1': .5, 'f1 of recent': 1, 'f1 of past': 0},
                        JSON | {'no answers': ('["Ada Lovelace", "Ada", "A. L."]', '[]'), 'an id twice': ('eval-1', 'eval-0'), 'a list': ('{', '[{')}),
    'nq-oracle': case({'nq-open-oracle.jsonl.gz': jsonl(NQ, NQ | dict(question='what?'))}, ['who?', 'what?'], ['It was Ada.', 'Bob'],
                      dict(contained=.5, exact_match=0, f1=.25), JSON | {'no passage': ('[{"title"', '[], "rest": [{"title"'), 'a key twice': ('what?', 'who?'),
                                                                        'no answers': ('["Ada"]', '[" "]')}),
    'metaicl': case({'t/t_16_100_test.jsonl': jsonl(ICL, ICL | dict(output='no'), ICL), 'u/u_16_100_test.jsonl': jsonl(ICL | dict(options=[]))},
                    ['t/0', 't/1', 't/2', 'u/0'], ['yes', 'yes', 'yes', 'yes'], {'t': (2*2/(3 + 2) + 0)/2, 'u': 1, 'mean of tasks': .7, 'accuracy': .75},
                    {'NaN': ('"nice"', 'NaN'), 'a number for a text': ('"nice"', '1'), 'no field': ('"input"', '"inputs"'), 'an output that is no option': ('"output": "no"', '"output": "nein"'),
                     'an option that is no text': ('["yes"', '[1')}),
    'sst2': case({'stsa.binary.dev': '1 a fine film .\n0 dull .\n'}, ['1', '2'], ['Positive', 'positive'], dict(accuracy=.5),
                 {'another label': ('0 ', '2 '), 'no label': ('0 dull', 'dull'), 'a tab': ('0 ', '0\t'), 'a word': ('1 ', 'good '), 'a label with a sign': ('1 ', '-1 ')}, 'dev'),
    'trec': case({'train.txt': 'NUM:date When ?\nLOC:city Where ?\n'}, ['1', '2'], ['number', 'person'], dict(accuracy=.5),
                 {'another label': ('NUM', 'NUMBER'), 'no label': ('NUM:date ', ''), 'small letters': ('NUM', 'num'), 'no coarse label': ('NUM:', ''), 'a blank in front': ('NUM', ' NUM')}, 'train'),
    'agnews': case({'test.csv': 'Class Index,Title,Description\n3,"Oil, dear",up\n1,b,c\n'}, ['2', '3'], ['business', 'sports'], dict(accuracy=.5),
                   {'another label': ('3,', '7,'), 'a column less': (',up', ''), 'a column more': (',up', ',up,down'), 'an open quote': ('dear"', 'dear'), 'no label': ('1,b', ',b')}),
    'cb': case({'train.jsonl': jsonl(dict(premise='p', hypothesis='who?', label='neutral', idx=0), dict(premise='p', hypothesis='h', label='entailment', idx=1))},
               ['0', '1'], ['neither', 'false'], dict(accuracy=.5),
               {'another label': ('neutral', 'unknown'), 'no label': ('"label"', '"l"'), 'a text for a number': ('"idx": 0', '"idx": "0"'), 'an id twice': ('"idx": 1', '"idx": 0'), 'NaN': ('"p"', 'NaN')}, 'train'),
    'rte': case({'val.jsonl': jsonl(dict(premise='p', hypothesis='h', label='not_entailment', idx=0), dict(premise='p', hypothesis='h', label='entailment', idx=1))},
                ['0', '1'], ['false', 'false'], dict(accuracy=.5),
                {'a label of CB': ('not_entailment', 'neutral'), 'no label': ('"label"', '"l"'), 'a text for a number': ('"idx": 0', '"idx": "0"'), 'an id twice': ('"idx": 1', '"idx": 0'), 'NaN': ('"p"', 'NaN')}),
    'atis': case({'atis.test.slots.csv': '2 0 1 2\n2 0 2\n', 'atis.test.query.csv': '0 1 2 3\n0 1 3\n', 'atis.dict.vocab.csv': 'BOS\nnew\nyork\nEOS\n', 'atis.dict.slots.csv': 'B-city\nI-city\nO\n'},
                 ['1/city', '2/city'], ['new york', 'york'], dict(accuracy=.5),
                 {'a number too large': ('1', '3'), 'a word': ('1', 'one'), 'a number below zero': ('1', '-1'), 'a word less': ('2 0 1 2', '2 0 1'), 'a line less': ('2 0 2\n', '')}),
    'mit-movies': case({'test': 'a:O film:O by:O ann:B-Director lee:I-Director <=> <NULL>\nold:B-Year <=> <NULL>\n'}, ['1/Director', '2/Year'], ['ann lee', 'new'], dict(accuracy=.5),
                       {'no tag': ('film:O', 'film'), 'no word': ('film:O', ':O'), 'an empty tag': ('film:O', 'film:'), 'a colon alone': ('film:O', ':'), 'no marker': ('<=>', '=')}),
    'bbh': case({'bbh/a.json': json.dumps(dict(examples=[dict(input='who?', target='(A)'), dict(input='w', target='(B)')])), 'bbh/b.json': json.dumps(dict(examples=[dict(input='w', target='yes')]))},
                ['a/0', 'a/1', 'b/0'], ['Hm. So the answer is (A).', '(A)', 'yes'], {'accuracy': 2/3, 'accuracy of a': .5, 'mean of tasks': .75},
                {'NaN': ('"who?"', 'NaN'), 'a number for a text': ('"who?"', '1'), 'no field': ('"target"', '"answer"'), 'no list': ('"examples"', '"rows"'), 'no examples': ('[', '[], "rest": [')}, alone=True),
    'locomo': case({'c.json': json.dumps(dict(speaker_a='A', speaker_b='B', session_1_date_time='May', session_1=[dict(speaker='A', text='I ran')],
                                              qa=[dict(question='who?', answer='running, dogs', category=1), dict(question='w', category=5), dict(question='w', answer=7, category=4)]))},
                   ['c/0', 'c/1', 'c/2'], ['run, cats', 'Not mentioned.', 'seven'], {'f1': .5, 'f1 of multi-hop': .5, 'f1 of adversarial': 1},
                   JSON | {'another kind': ('"category": 1', '"category": 6'), 'no answer': ('"answer": 7, ', ''), 'no session': ('session_1"', 'sessions"'), 'a turn without text': ('"text"', '"t"')}, needs='nltk'),
}
PERSONA = "1 your persona: i run.\n2 partner's persona: i swim.\n3 hi\thello there\t\tbye|hello there\n4 ok\tbye\t\tbye|hello there\n1 your persona: i eat.\n2 hi\tyo\t\tyo|no\n"
CONVAI = dict(dialog_id='d', dialog=[dict(id=0, sender='p1', text='who?'), dict(id=1, sender='p2', text='It is a dog')], user_profile=['i run'])
MSC = dict(personas=[['i run'], ['i swim']], previous_dialogs=[dict(dialog=[dict(text='hi')])], dialog=[dict(text='back?'), dict(text='yes, back')], metadata=dict(initial_data_id='m'))
TEXTS |= {
    'personachat': case({'valid_self_original.txt': PERSONA}, ['3', '4', '6'], ['hello there', 'hello there', 'no'], {'hits@1': 1/3, 'f1': 1/3},
                        {'no number': ('3 hi', 'hi'), 'no reply': ('\tbye\t', '\t\t'), 'no tab': ('\tbye\t\tbye|hello there', ' bye'), 'a reply that is no candidate': ('|hello there\n4', '|hello\n4'), 'a word for a number': ('4 ok', 'four ok')}),
    'convai2': case({'a.json': json.dumps([CONVAI, CONVAI | dict(dialog_id='o')])}, ['a/d', 'a/o'], ['the dog', 'is it?'], dict(f1=(2/4 + 4/5)/2),
                    {'a number for a text': ('"who?"', '1'), 'no field': ('"sender"', '"from"'), 'an id twice': ('"o"', '"d"'), 'a text for a list': ('["i run"]', '"i run"'), 'no dialogue': ('"dialog":', '"turns":')}),
    'msc': case({'msc_dialogue/session_5/test.txt': jsonl(MSC)}, ['m/0', 'm/1'], ['back', 'no'], dict(f1=.5),
                {'NaN': ('"back?"', 'NaN'), 'one persona': ('["i run"], ', ''), 'no field': ('"dialog": [{"text": "back', '"talk": [{"text": "back'), 'no id': ('initial_data_id', 'id'), 'a list for an object': ('{"initial_data_id": "m"}', '[]')}),
}
CSQA = dict(id='q', answerKey='B', question=dict(question_concept='c', stem='who?', choices=[dict(label=k, text=f'c{k}') for k in 'ABCDE']))
OBQA = dict(id='q', fact1='dogs bark', answerKey='D', question=dict(stem='who?', choices=[dict(label=k, text=f'c{k}') for k in 'ABCD']))
QASC = dict(id='q', fact1='one.', fact2='two.', combinedfact='three', answerKey='H', question=dict(stem='who?', choices=[dict(label=k, text=f'c{k}') for k in 'ABCDEFGH']))
COSE = dict(id='q', answerKey='B', question=dict(stem='w', choices=[dict(label=k, text=f'c{k}') for k in 'ABC']))
WHY = dict(id='q', explanation={'open-ended': 'because', 'selected': 'w'})
GKP = dict(query='who?', cands=['a', 'b'], answer='b', facts=['f'], knowledges=['k', 'l'])
STRATEGY = dict(qid='q', term='t', description='d', question='who?', answer=True, facts=['a b.', 'c d.'])
STORY = 'mc500.dev.0\tAuthor: x\tAda ran.\\newlineShe fell.' + ''.join(f'\t{kind}: who {i}?\ta\tb\tc\td' for i, kind in enumerate(['one', 'multiple', 'one', 'one'])) + '\n'
LABELLED = JSON | {'no field': ('"stem"', '"root"'), 'a key that is no choice': ('"answerKey": "', '"answerKey": "Z'), 'a label twice': ('"label": "C"', '"label": "A"'), 'an id twice': ('"r"', '"q"')}
CHOICES = {
    'commonsenseqa': case({'dev_rand_split.jsonl': jsonl(CSQA, CSQA | dict(id='r'))}, ['q', 'r'], [1, 'cA'], dict(accuracy=.5),
                          LABELLED | {'a choice less': ('{"label": "D", "text": "cD"}, ', '')}),
    'openbookqa': case({'Data/Main/test.jsonl': jsonl(OBQA, OBQA | dict(id='r'))}, ['q', 'r'], ['cD ', 0], dict(accuracy=.5), LABELLED),
    'qasc': case({'dev.jsonl': jsonl(QASC, QASC | dict(id='r'))}, ['q', 'r'], [7, 'none of these'], dict(accuracy=.5), LABELLED),
    'cos-e': case({'v1.0/cose_train_v1.0.jsonl': jsonl(WHY), 'v1.0/train_rand_split.jsonl': jsonl(COSE)}, ['q'], [1], dict(accuracy=1),
                  {'another id': ('"q"', '"z"'), 'NaN': ('"because"', 'NaN'), 'no field': ('explanation', 'why'), 'a text for an object': ('{"open-ended": "because", "selected": "w"}', '"because"'), 'a number for an id': ('"q"', '1')}, '1.0.train'),
    'flan-rationales': case({'ecqa_train.tsv': 'who?\\nOptions:\\n- a\\n- b\tb\tb is it\nwhat?\\nOptions:\\n- (A) c\\n- (B) d\t(A)\tc is\n'}, ['ecqa/1', 'ecqa/2'], ['b', 1], dict(accuracy=.5),
                            {'an answer that is no option': ('\tb\t', '\tz\t'), 'a column less': ('\tb is it', ''), 'a column more': ('b is it', 'b\tis'), 'one option': ('\\n- a\\n- b', '\\n- b'), 'an empty answer': ('\tb\t', '\t\t')}),
    'gkp-qasc': case({'data/qasc/knowledge/knowledge_gpt3.dev.qasc.json': json.dumps([GKP, GKP])}, ['0', '1'], [1, 'a'], dict(accuracy=.5),
                     {'NaN': ('"who?"', 'NaN'), 'a number for a text': ('"who?"', '1'), 'an answer that is no choice': ('"answer": "b"', '"answer": "z"'), 'no field': ('"knowledges"', '"know"'), 'one choice': ('["a", "b"]', '["b"]')}),
    'strategyqa': case({'strategyqa_train.json': json.dumps([STRATEGY, STRATEGY | dict(qid='r', answer=False)])}, ['q', 'r'], ['yes', 'yes'], dict(accuracy=.5),
                       JSON | {'a text for a truth': ('true', '"yes"'), 'an id twice': ('"r"', '"q"')}),
    'mctest': case({'MCTest/mc500.dev.tsv': STORY, 'MCTest/mc500.dev.ans': 'A\tB\tC\tD\n'}, [f'mc500.dev.0/{i}' for i in range(1, 5)], ['a', 'b', 'a', 0], {'accuracy': .5, 'accuracy of one': 1/3, 'accuracy of multiple': 1},
                   {'a column less': ('\td', ''), 'a column more': ('\td', '\td\te'), 'another kind': ('one:', 'two:'), 'no kind': ('one: ', ''), 'a story more': ('mc500.dev.0\t', STORY + 'mc500.dev.1\t')}, 'mc500.dev'),
}
CASES = TEXTS | CHOICES


def contents(name, text):
    data = text if isinstance(text, bytes) else text.encode()
    return gzip.compress(data) if name.endswith('.gz') else data


def write(folder, files):
    for name, text in files.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(contents(name, text))


@pytest.mark.parametrize('name', CASES)
def test_a_well_formed_file_gives_its_items_and_the_official_number(name, tmp_path):
    c = CASES[name]
    write(tmp_path, c.files)
    items = read_benchmark(name, tmp_path, c.split)
    assert [item.key for item in items] == c.keys
    if c.needs: pytest.importorskip(c.needs)
    scores = measure_predictions(name, items, c.predictions)
    assert {key: scores.official[key] for key in c.official} == pytest.approx(c.official)


def spoil(c):
    "Kinds of what is wrong: name -> bytes, None for no file, 'folder' for a folder in its place."
    text = c.files[c.main]
    kinds = {'missing': None, 'folder': 'folder', 'empty': b'', 'latin-1': text.encode() + 'B\xe4r\n'.encode('latin-1'), 'zeros': bytes(5000)}
    for kind, (old, new) in c.bad.items():
        assert old in text, (c.main, kind)
        kinds[kind] = text.replace(old, new, 1).encode()
    if c.main.endswith(('.json', '.jsonl', '.gz')): kinds['cut off'] = text[:-20].encode()
    if c.main.endswith('.gz'): kinds['cut gzip'], kinds['no gzip'] = 'cut', 'plain'
    return kinds


KINDS = [(name, kind) for name in CASES for kind in spoil(CASES[name])]


def test_every_reader_of_texts_has_a_case_and_ten_kinds_of_files_that_are_wrong():
    modules = {texts.__name__, choices.__name__}
    here = {name for name, benchmark in BENCHMARKS.items() if getattr(benchmark.read, 'func', benchmark.read).__module__ in modules}
    assert here == set(CASES)
    assert all(sum(name == n for n, _ in KINDS) >= 10 for name in CASES)


@pytest.mark.parametrize(('name', 'kind'), KINDS)
def test_a_file_that_is_wrong_is_named_in_one_line(name, kind, tmp_path):
    c = CASES[name]
    write(tmp_path, {c.main: c.files[c.main]} if c.alone else c.files)
    path, wrong = tmp_path/c.main, spoil(c)[kind]
    whole = path.read_bytes()
    path.unlink()
    if wrong == 'folder': path.mkdir()
    elif wrong == 'cut': path.write_bytes(whole[:-12])
    elif wrong == 'plain': path.write_text(c.files[c.main])
    elif wrong is not None: path.write_bytes(contents(c.main, wrong))
    with pytest.raises(BadInput) as error: read_benchmark(name, tmp_path, c.split)
    message = str(error.value)
    named = str(tmp_path) in message and (kind.endswith('twice') or Path(c.main).name in message or Path(c.main).stem in message)
    assert '\n' not in message and len(message) < 500
    assert named or (kind == 'missing' and str(tmp_path) in message), message


def test_a_prediction_that_is_no_text_or_no_choice_is_refused(tmp_path):
    write(tmp_path, TEXTS['squad'].files | CHOICES['commonsenseqa'].files)
    questions, items = read_benchmark('squad', tmp_path), read_benchmark('commonsenseqa', tmp_path)
    with pytest.raises(BadInput, match="'b' is 7"): measure_predictions('squad', questions, ['Ada', 7])
    for wrong in (5, -1, True, None, 1.):
        with pytest.raises(BadInput, match="'r'"): measure_predictions('commonsenseqa', items, [0, wrong])


def test_a_cell_of_a_table_that_never_ends_is_refused(tmp_path):
    (tmp_path/'test.csv').write_text('1,"' + 'a'*200_000)
    with pytest.raises(BadInput, match='test.csv: no table'): read_benchmark('agnews', tmp_path)


def test_lines_are_read_one_after_the_other(tmp_path):
    path = tmp_path/'long.jsonl.gz'
    def peak(lines):
        with gzip.open(path, 'wt', compresslevel=1) as f:
            for i in range(lines): f.write('{"text": "%s"}\n' % ('a'*2000))
        tracemalloc.start()
        assert sum(1 for _ in texts.json_lines(path, dict(text=str))) == lines
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size
    assert peak(2000) < .1*2000*2000   # bytes of text in the file


def test_rouge_l_is_that_of_rouge_score():
    rouge_scorer = pytest.importorskip('rouge_score.rouge_scorer')
    scorer = rouge_scorer.RougeScorer(['rougeL'])
    pairs = [('The cat sat on the mat.', 'the cat is on a mat'), ("it's 5 o'clock", 'It is 5 o clock!'), ('a b c d e f', 'f e d c b a'), ('x', 'y'), ('one two three two one', 'two one two')]
    for a, b in pairs: assert texts.rouge_l(a, b) == pytest.approx(scorer.score(b, a)['rougeL'].fmeasure)
