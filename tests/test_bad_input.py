"""More than 500 kinds of bad input to the shell: each gives status 2 and one line that names it, no traceback, within 20 seconds.

A kind is what is wrong (a named pipe, JSON 100,000 deep, a text where a number belongs) at one place where something is read.
A sample runs by default; `FROZEN_NB_CAMPAIGNS=full` runs all of them."""
import json, os, shutil, signal, socket, subprocess, sys, zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from frozen_nb import cli
from frozen_nb.core.frozen import data_path
from frozen_nb.world.drawing import draw
from frozen_nb.world.scenes import scene

pytestmark = pytest.mark.campaign
torch.set_num_threads(1)
SECONDS, SHARE = 20, 1 if os.environ.get('FROZEN_NB_CAMPAIGNS') == 'full' else 40


# What is wrong with a file

def raw(data): return lambda path: path.write_bytes(data if isinstance(data, bytes) else data.encode())
def link(target): return lambda path: path.symlink_to(target)

def bound_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)                      # the name of a socket is short
    s = socket.socket(socket.AF_UNIX)
    s.bind(path.name)
    s.close()
    os.chdir(here)

def sparse(path):
    with open(path, 'wb') as f: f.truncate(20*2**30)

SPECIAL = {
    'missing': lambda path: None, 'folder': lambda path: path.mkdir(), 'named pipe': os.mkfifo, 'socket': bound_socket, 'link to itself': lambda path: path.symlink_to(path.name),
    'dead link': link('gone'), '/dev/zero': link('/dev/zero'), '/dev/tty': link('/dev/tty'), 'kernel messages': link('/proc/kmsg'), 'memory of a process': link('/proc/self/mem'), 'sparse 20 GB': sparse}
NO_TEXT = {'empty': raw(b''), 'blanks': raw(b' \n \t\n'), 'latin-1': raw('B\xe4r f\xfcr'.encode('latin-1')), 'utf-16': raw('{"a": 1}'.encode('utf-16')), 'zeros': raw(bytes(5000)), 'png': raw(b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR'), 'gzip': raw(b'\x1f\x8b\x08\0abc')}
JSON = {
    'no json': raw('hello'), 'cut off': raw('{"question": "wh'), 'list': raw('[]'), 'object': raw('{}'), 'null': raw('null'), 'number': raw('5'), 'text': raw('"a"'), 'list of lists': raw('[[]]'), 'list of numbers': raw('[1]'),
    '100,000 deep': raw('['*100_000), '100,000 deep object': raw('{"a":'*100_000), 'lone surrogate': raw('{"question": "a\\ud800", "image": "a\\ud800", "line": "\\ud800", "id": "\\ud800"}'), 'NaN': raw('{"question": NaN, "line": NaN, "image": NaN}'), '1e999': raw('{"question": 1e999}'),
    'a name twice': raw('{"question": 1, "question": 2}'), '5,000 digits': raw('{"question": %s}' % ('9'*5000)), 'escape sequence': raw('{"\\u001b[2J": "\\u001b]0;title\\u0007"}')}
ANY = SPECIAL | NO_TEXT | JSON
PLACES = {   # where a file is read: command, ending of the file, what can be wrong with it
    'caption': ('caption BAD', '.png', SPECIAL | NO_TEXT), 'ask': ('ask BAD why', '.png', SPECIAL | NO_TEXT), 'ground': ('ground BAD fox', '.png', SPECIAL | NO_TEXT),
    'captions of align': ('align images --captions BAD', '.jsonl', ANY), 'captions of a map': ('fit limber --data BAD --out new', '.jsonl', ANY),
    'questions': ('fit pinto --data BAD --out new', '.jsonl', ANY), 'questions in a list': ('fit pinto --data BAD --out new', '.json', ANY), 'table of questions': ('fit pinto --data BAD --out new', '.tsv', SPECIAL | NO_TEXT),
    'prompt': ('fit pinto --data questions.jsonl --out new --prompt BAD', '.json', ANY), 'COCO': ('fit flmm --data BAD --images images --out new', '.json', ANY),
    'records': ('claims --records BAD', '.json', {k: v for k, v in ANY.items() if k not in ('folder', 'list')}), 'document': ('adapt BAD --ask why', '.txt', SPECIAL | {k: NO_TEXT[k] for k in ('empty', 'blanks', 'latin-1', 'utf-16', 'zeros', 'png')}),
    'map': ('caption a.png --map BAD', '', SPECIAL | NO_TEXT), 'generator': ('adapt doc.txt --ask why --generator BAD', '', SPECIAL | NO_TEXT), 'reasoner': ('explain why --choices a b --reasoner BAD', '', SPECIAL), 'head': ('ground a.png fox --model BAD', '', SPECIAL | NO_TEXT),
    'language model': ('caption a.png --lm BAD', '', SPECIAL), 'encoder': ('caption a.png --encoder BAD', '', SPECIAL), 'texts': ('fit generative_adapter --data BAD --out new', '', SPECIAL), 'classes': ('fit lm4visual --data BAD --out new', '', SPECIAL)}

def file_kind(command, ending, make):
    def build(folder):
        path = folder/f'bad{ending}'
        make(path)
        return command.replace('BAD', str(path)).split()
    return build

KINDS = {f'{place}: {what}': file_kind(command, ending, make) for place, (command, ending, kinds) in PLACES.items() for what, make in kinds.items()}
KINDS |= {f'{place}: a name of 5,000 letters': (lambda command: lambda folder: command.replace('BAD', 'a'*5000).split())(command) for place, (command, *_) in PLACES.items()}
KINDS |= {f'{place}: a name with NUL': (lambda command: lambda folder: [w.replace('BAD', 'a\0b') for w in command.split()])(command) for place, (command, *_) in PLACES.items()}


# What is wrong with an option

FIT = {
    'limber': 'fit limber --data captions.jsonl --out new', 'pinto': 'fit pinto --data questions.jsonl --out new', 'generative_adapter': 'fit generative_adapter --data texts --out new',
    'lm4visual': 'fit lm4visual --data classes --out new', 'flmm': 'fit flmm --data coco.json --images images --out new'}
VALUES = {
    'lr': 'inf nan -1 0 x 1e30', 'steps': '-1 0 1.5 1000000000000 x', 'batch': '-1 0 1000000000000 nan', 'seed': '-1 100000000000000000000000000000 x', 'device': 'meta nonsense cuda:99 cpu:x vulkan', 'dtype': 'int8 nonsense',
    'weight': 'nan inf -1', 'k': '0 -1 1000000000000', 'out-tokens': '0 10000000', 'dropout': 'nan 1 -1 inf', 'feature-dropout': 'nan 2', 'tokens': '0 -1 1000000000', 'length': '0 1000000000', 'width': '0 -5 10000000000', 'rank': '0 10000000000',
    'chunk': '0 -1 100000000000', 'size': '0 1000000000', 'patch': '0 1000000', 'depth': '0 1000000', 'heads': '0 1000000', 'optimizer': 'sgd', 'schedule': 'cosin greedy', 'warmup': '-1 1.5 x 1000000000000', 'norm': 'batch', 'part': 'head', 'lm': 'lama clip /nowhere ../../etc', 'prompt': 'nowhere', 'reasoner': 'clip nowhere', 'lora': '-1 x nan 100000000000', 'encoder': 'llama nowhere', 'layer': '99 100000000000000000000000000 x', 'split': 'nowhere'}
HAS = {
    'limber': 'lr steps batch seed device dtype k out-tokens dropout feature-dropout optimizer schedule warmup lm encoder', 'pinto': 'lr steps batch seed device dtype weight tokens length lm prompt reasoner lora', 'generative_adapter': 'lr steps batch seed device dtype width rank chunk part lm',
    'lm4visual': 'steps batch seed device size patch width depth heads norm lm layer', 'flmm': 'lr steps batch seed device dtype width'}

def words(line): return lambda folder: line.split()

KINDS |= {f'fit {method}: --{name} {value}': words(f'{FIT[method]} --{name}={value}') for method, names in HAS.items() for name in names.split() for value in VALUES[name].split()}
KINDS |= {f'{line}': words(line) for line in (
    'caption a.png --device meta', 'caption a.png --device nonsense', 'caption a.png --dtype int8', 'ask a.png why --device meta', 'ground a.png fox --device meta', 'ground a.png fox --sam nowhere', 'ground a.png fox --lmm llama', 'ground a.png fox --out x.jpg', 'ground a.png fox --out no/x.png',
    'explain why --choices a b --device meta', 'explain why --choices a b --lm clip', 'adapt doc.txt --ask why --device meta', 'adapt doc.txt --ask why --mode none', 'adapt doc.txt --save doc.txt', 'align images --device meta', 'align images --out x.gif', 'align a.png',
    'reproduce --dry-run --preset none', 'reproduce --dry-run --seeds 0', 'reproduce --dry-run --seeds 1000000000000', 'reproduce --dry-run --seeds x', 'reproduce --dry-run --jobs 0', 'reproduce --dry-run --out a.png', 'reproduce nothing --dry-run', 'claims nothing', 'pretrain nothing', 'pretrain llama --steps 0', 'pretrain llama --steps 1000000000000', 'pretrain llama --out a.png',
    'zoo more', 'nothing', 'fit nothing', '--nothing', 'caption', 'ask a.png', 'ground a.png', 'explain', 'adapt', 'align', 'claims --records')}


# What is wrong inside of a file

GOOD_ROW = dict(question='which one eats grass?', choices=['fox', 'cow'], answer=1)
ROWS = {
    'no choices': dict(choices=[]), 'one choice': dict(choices=['a']), 'choices a text': dict(choices='ab'), 'choices an object': dict(choices={'a': 1}), 'choices null': dict(choices=None), 'choices lists': dict(choices=[[], []]), 'choices objects': dict(choices=[{}, {}]), 'choices null inside': dict(choices=[None, 'a']),
    'equal choices': dict(choices=['a', 'a ']), 'a blank choice': dict(choices=['a', ' ']), 'answer a float': dict(answer=1.0), 'answer true': dict(answer=True), 'answer too large': dict(answer=2), 'answer negative': dict(answer=-1), 'answer a text of a number': dict(answer='1'), 'answer a list': dict(answer=[1]), 'answer null': dict(answer=None), 'answer 10**400': dict(answer=10**400),
    'question a number': dict(question=5), 'question blank': dict(question=' '), 'question null': dict(question=None), 'question an empty object': dict(question={}), 'rationales a text': dict(rationales='ab'), 'rationales a number': dict(rationales=5), 'one rationale': dict(rationales=['a']), 'rationales of numbers': dict(rationales=[1, 2]), 'data set a list': dict(dataset=[1]),
    'stem a number': dict(question=dict(stem=5, choices=[dict(label='A', text='a'), dict(label='B', text='b')])), 'labels missing': dict(question=dict(stem='a', choices=[dict(text='a')])), 'columns of two lengths': dict(choices=dict(label=['A'], text=['a', 'b']), answerKey='A'), 'columns no lists': dict(choices=dict(label='AB', text='ab')), 'key of none': dict(choices=dict(label=['A', 'B'], text=['a', 'b']), answerKey='C'), 'key a number': dict(choices=dict(label=['A', 'B'], text=['a', 'b']), answerKey=1)}

def row_kind(change, ending):
    def build(folder):
        rows = [GOOD_ROW | change]*12
        text = json.dumps(rows) if ending == '.json' else '\n'.join(map(json.dumps, rows))
        (folder/f'bad{ending}').write_text(text)
        return ['fit', 'pinto', '--data', str(folder/f'bad{ending}'), '--out', 'new']
    return build

KINDS |= {f'question{ending}: {what}': row_kind(change, ending) for ending in ('.jsonl', '.json') for what, change in ROWS.items()}

PROMPTS = {
    'stop a text': dict(stop='END'), 'stop empty': dict(stop=[]), 'stop blank': dict(stop=['']), 'stop numbers': dict(stop=[1]), 'stop null': dict(stop=None), 'line a number': dict(line=1), 'line missing': dict(line=...), 'no question': dict(line='{choice}'), 'no choice': dict(line='{question}'), 'another place': dict(line='{question} {choice} {other}'), 'no name': dict(line='{} {question} {choice}'),
    'width of 999,999,999': dict(line='{question:>999999999} {choice}'), 'conversion': dict(line='{question!r} {choice}'), 'attribute': dict(line='{question.__class__} {choice}'), 'element': dict(line='{question[0]} {choice}'), 'open brace': dict(line='{question} {choice'), 'nested': dict(line='{question:{choice}} {choice}'), 'examples a list': dict(examples=[]), 'examples null': dict(examples=None)}

def changed(good, change): return {k: v for k, v in (good | change).items() if v is not ...}

def prompt_kind(change):
    def build(folder):
        good = dict(line='{question} {choice}:', examples='', stop=['\n'])
        (folder/'bad.json').write_text(json.dumps(changed(good, change)))
        return f'fit pinto --data questions.jsonl --out new --prompt {folder}/bad.json'.split()
    return build

KINDS |= {f'prompt: {what}': prompt_kind(change) for what, change in PROMPTS.items()}

CAPTIONS = {'image a number': dict(image=1), 'image null': dict(image=None), 'image blank': dict(image=' '), 'no image': dict(image=...), 'image missing': dict(image='gone.png'), 'image a folder': dict(image='.'), 'image /dev/zero': dict(image='/dev/zero'), 'image with NUL': dict(image='a\0b.png'), 'caption a number': dict(caption=1), 'caption null': dict(caption=None), 'caption an object': dict(caption={}), 'caption blank': dict(caption=' '), 'captions none': dict(caption=[]), 'captions of numbers': dict(caption=[1]), 'caption of half a pair': dict(caption='\ud800')}

def caption_kind(change):
    def build(folder):
        good = dict(image=str(Path.cwd()/'a.png'), caption='a fox')
        (folder/'bad.jsonl').write_text(json.dumps(changed(good, change)))
        return f'fit limber --data {folder}/bad.jsonl --out new'.split()
    return build

KINDS |= {f'caption: {what}': caption_kind(change) for what, change in CAPTIONS.items()}


# What is wrong with a trained head

NOT_A_NUMBER = float('nan')
HEADS = {   # method -> its folder in the zoo, command, changes of its configuration
    'map': ('limber', 'caption a.png --map BAD', [dict(encoder=...), dict(lm=...), dict(encoder=5), dict(lm=['llama']), dict(k='16'), dict(k=None), dict(k=0), dict(k=-1), dict(k=1.5), dict(prompt=5), dict(prompt=[]), dict(mean='x'), dict(dropout='x'), dict(dropout=NOT_A_NUMBER), dict(width_in='x'), dict(width_in=10**15), dict(width_out=0), dict(out_tokens=True), dict(out_tokens=10**30), dict(encoder_fingerprint=5), dict(lm_fingerprint='x')]),
    'generator': ('adapter', 'adapt doc.txt --ask why --generator BAD', [dict(chunk=0), dict(chunk='x'), dict(chunk=-5), dict(chunk=10**30), dict(scale='x'), dict(scale=NOT_A_NUMBER), dict(floor='x'), dict(width='x'), dict(width=10**12), dict(rank=0), dict(rank=-1), dict(part='x'), dict(part=5), dict(base=5), dict(base=...), dict(more=1)])}

def config_kind(name, command, change):
    def build(folder):
        shutil.copytree(data_path('zoo', name), folder/'model')
        path = folder/'model'/'config.json'
        path.write_text(json.dumps(changed(json.loads(path.read_text()), change)))
        return command.replace('BAD', str(folder/'model')).split()
    return build

KINDS |= {f'{method}: {change}': config_kind(name, command, change) for method, (name, command, changes) in HEADS.items() for change in changes}

def files_kind(name, command, file, make):
    "One file of a folder from the zoo is another one."
    def build(folder):
        shutil.copytree(data_path('zoo', name), folder/'model')
        for path in (folder/'model'/file, folder/'model'/'SHA256SUMS'): path.unlink(missing_ok=path.name != file)
        make(folder/'model'/file)
        return command.replace('BAD', str(folder/'model')).split()
    return build

DAMAGE = SPECIAL | {k: NO_TEXT[k] for k in ('empty', 'zeros', 'latin-1')} | {k: JSON[k] for k in ('no json', 'list', '100,000 deep', 'number')}
for _name, _command, _files in (('limber', 'caption a.png --map BAD', ('config.json', 'model.safetensors')), ('adapter', 'adapt doc.txt --ask why --generator BAD', ('config.json',)), ('pinto', 'explain why --choices a b --reasoner BAD', ('pinto.json', 'config.json', 'tokenizer.json')),
                                ('flmm', 'ground a.png fox --model BAD', ('config.json',)), ('llama', 'adapt doc.txt --ask why --lm BAD', ('config.json', 'tokenizer.json', 'model.safetensors')), ('clip', 'fit limber --data captions.jsonl --out new --encoder BAD', ('open_clip_config.json',)), ('beit', 'fit limber --data captions.jsonl --out new --encoder BAD', ('config.json', 'preprocessor_config.json'))):
    for _file in _files:
        if data_path('zoo', _name, _file).exists(): KINDS |= {f'{_name}/{_file}: {what}': files_kind(_name, _command, _file, make) for what, make in DAMAGE.items()}


# What is wrong with a model's folder

CONFIGS = [dict(model_type=5), dict(model_type=[]), dict(model_type=None), dict(model_type='x'), dict(model_type='bert'), dict(num_hidden_layers=10**9), dict(num_hidden_layers='x'), dict(num_hidden_layers=-1), dict(hidden_size=10**12), dict(hidden_size='x'), dict(hidden_size=None), dict(hidden_size=7), dict(vocab_size=10**12), dict(vocab_size=-1), dict(vocab_size='x'), dict(num_attention_heads=0), dict(num_attention_heads=10**9), dict(intermediate_size=10**15), dict(rms_norm_eps='x'), dict(hidden_act='x'), dict(hidden_act=5), dict(rope_parameters='x'), dict(auto_map=dict(AutoConfig='x.Y'), model_type='own')]

KINDS |= {f'llama: {change}': config_kind('llama', 'adapt doc.txt --ask why --lm BAD', change) for change in CONFIGS}
VISION = [dict(architecture='x'), dict(architecture=5), dict(architecture=...), dict(model_args=5), dict(model_args=dict(depth=10**9)), dict(model_args=dict(patch_size='x')), dict(model_args=dict(patch_size=0)), dict(pretrained_cfg=5), dict(pretrained_cfg=dict(input_size='x')), dict(pretrained_cfg=dict(mean='x', std='x'))]
KINDS |= {f'beit: {change}': config_kind('beit', 'fit limber --data captions.jsonl --out new --encoder BAD', change) for change in VISION}

def added(name, command, make):
    def build(folder):
        shutil.copytree(data_path('zoo', name), folder/'model')
        make(folder/'model')
        return command.replace('BAD', str(folder/'model')).split()
    return build

def template(text):
    def make(folder):
        for path in (folder/'chat_template.jinja', folder/'chat_template.json'): path.unlink(missing_ok=True)
        for name in ('tokenizer_config.json', 'processor_config.json'):
            path = folder/name
            if path.exists(): path.write_text(json.dumps(changed(json.loads(path.read_text()), dict(chat_template=...))))
        if text is not None: (folder/'chat_template.jinja').write_text(text)
    return make

LMM = 'ground a.png fox --lmm BAD'
OF_LM = 'adapt doc.txt --ask why --lm BAD'
KINDS |= {
    'llama: shards of 100,000,000': added('llama', OF_LM, lambda f: (f/'model.safetensors').rename(f/'model-00001-of-100000000.safetensors')), 'llama: a shard is missing': added('llama', OF_LM, lambda f: (f/'model.safetensors').rename(f/'model-00001-of-00002.safetensors')),
    'llama: index out of the folder': added('llama', OF_LM, lambda f: (f/'model.safetensors.index.json').write_text('{"weight_map": {"a": "../../etc/passwd"}}')), 'llama: index of numbers': added('llama', OF_LM, lambda f: (f/'model.safetensors.index.json').write_text('{"weight_map": {"a": 1}}')), 'llama: index a list': added('llama', OF_LM, lambda f: (f/'model.safetensors.index.json').write_text('{"weight_map": []}')),
    'llama: pipe beside it': added('llama', OF_LM, lambda f: os.mkfifo(f/'generation.json')), 'llama: no tokenizer': added('llama', OF_LM, lambda f: (f/'tokenizer.json').unlink()), 'llama: other weights': added('llama', OF_LM, lambda f: save_file({'a': torch.ones(1)}, f/'model.safetensors')),
    'llava: no template': added('llava', LMM, template(None)), 'llava: endless template': added('llava', LMM, template('{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(9999) %}{% endfor %}{% endfor %}{% endfor %}')), 'llava: power in a template': added('llava', LMM, template('{{ 2**10**10 }}')),
    'llava: no jinja': added('llava', LMM, template('{% for %}')), 'llava: template that fails': added('llava', LMM, template('{{ raise_exception("\x1b[31mno") }}')), 'llava: template of unknown names': added('llava', LMM, template('{{ a.b.c }}')), 'llava: template out of the sandbox': added('llava', LMM, template("{{ ''.__class__.__mro__ }}{{ messages.__class__.__base__.__subclasses__() }}"))}


# The campaign

@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "Good input for everything that is not wrong in a kind."
    folder = tmp_path_factory.mktemp('good')
    for name in ('images', 'classes/a', 'classes/b', 'texts'): (folder/name).mkdir(parents=True)
    draw(scene(0, 'test', 0), 64).save(folder/'a.png')
    lines = []
    for i in range(12):
        draw(scene(i, 'test', 0), 64).save(folder/'images'/f'{i}.png')
        lines.append(dict(image=f'images/{i}.png', caption=f'animal {i}'))
        shutil.copy(folder/'images'/f'{i}.png', folder/'classes'/'ab'[i % 2]/f'{i}.png')
        (folder/'texts'/f'{i}.txt').write_text(f'Bruno is animal number {i}. Bruno lives by the lake and eats grass.')
    (folder/'captions.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    (folder/'questions.jsonl').write_text('\n'.join(json.dumps(GOOD_ROW | dict(question=f'which of {i} eats grass?')) for i in range(12)))
    (folder/'doc.txt').write_text('Bruno is a zebra. Bruno lives by the lake.')
    square = dict(segmentation=[[4, 4, 30, 4, 30, 30, 4, 30]], category_id=1, iscrowd=0)
    coco = dict(images=[dict(id=i, file_name=f'{i}.png', height=64, width=64) for i in range(12)], annotations=[square | dict(id=i, image_id=i) for i in range(12)], categories=[dict(id=1, name='fox')])
    (folder/'coco.json').write_text(json.dumps(coco))
    return folder

class TooLong(BaseException): "Not an `Exception`: no library may catch it."

def sample(): return [name for name in KINDS if zlib.crc32(name.encode()) % SHARE == 0]

@pytest.mark.parametrize('name', sample())
def test_a_kind_of_bad_input_is_one_line(name, place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(place)
    before = sorted(place.rglob('*'))
    words = KINDS[name](tmp_path)
    def too_long(*_): raise TooLong(f'{SECONDS} s')
    old = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try: status = cli.run(words)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    out, err = capsys.readouterr()
    assert status == 2 and err.startswith('frozen-nb: ') and err.count('\n') == 1 and len(err) < 10_000, (status, out, err)
    assert 'mistake in frozen-nb' not in err and '\x1b' not in err + out, err
    assert sorted(place.rglob('*')) == before

def test_there_are_enough_kinds(): assert len(KINDS) >= 500


# Streams

COMMAND = [sys.executable, '-c', 'from frozen_nb.cli import main; main()']

@pytest.mark.parametrize('env', [dict(PYTHONIOENCODING='ascii'), dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0')])
def test_a_terminal_that_knows_ascii_only(tmp_path, env):
    "Values of claims and names of files beyond ASCII (PEP 538 and 540)."
    done = subprocess.run([*COMMAND, 'claims', 'pinto'], env=os.environ | env, capture_output=True)
    assert done.returncode == 0 and done.stderr == b'' and b'\\u2212' in done.stdout and done.stdout.isascii()
    done = subprocess.run([*COMMAND, 'caption', 'fehlt ü.png'.encode()], env=os.environ | env, capture_output=True)
    assert done.returncode == 2 and done.stderr.count(b'\n') == 1 and done.stderr.startswith(b'frozen-nb: fehlt ')

def test_escape_sequences_of_a_file_do_not_reach_the_terminal(shell, tmp_path):
    "A record whose statement clears the screen, sets the title of the window and turns the direction of a line."
    from frozen_nb.core.claims import load_records
    record = load_records()[0] | dict(statement='\x1b[2J\x1b]0;title\x07 It holds \x9b31m \u202eabc.')
    (tmp_path/'claims.json').write_text(json.dumps([record]))
    shown, as_json = shell('claims', '--records', tmp_path/'claims.json'), shell('claims', '--records', tmp_path/'claims.json', '--json')
    for out in (shown.out, as_json.out): assert '\\u001b[2J' in out and not {*'\x1b\x07\x9b\u202e'} & {*out}
    assert json.loads(as_json.out)[0]['statement'] == record['statement']

@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
def test_an_output_that_cannot_be_written():
    with open('/dev/full', 'w') as full: done = subprocess.run([*COMMAND, 'claims'], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and done.stderr.startswith('frozen-nb: ') and 'the disk is full' in done.stderr

@pytest.mark.parametrize('error', [MemoryError(), RecursionError('maximum recursion depth exceeded'), OSError(28, 'No space left on device'), OSError(24, 'Too many open files', 'a'), RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), torch.OutOfMemoryError('CUDA out of memory.'), UnicodeEncodeError('ascii', 'a', 0, 1, 'no')], ids=lambda e: type(e).__name__)
def test_what_the_machine_lacks_is_one_line(shell, monkeypatch, error):
    def fail(*args): raise error
    monkeypatch.setattr(cli, 'select_chapters', fail)
    said = shell('reproduce', '--dry-run')
    assert said.status == 2 and said.err.count('\n') == 1 and 'mistake' not in said.err


# A folder of images as macOS leaves it, and what a run left

def test_hidden_files_and_dead_links_among_images_are_passed_over(shell, place, tmp_path, monkeypatch):
    "macOS writes ._NAME beside every file on a foreign disk."
    images = tmp_path/'im [1] é'
    shutil.copytree(place/'images', images)
    (images/'._0.png').write_bytes(b'\0\5\x16\7' + bytes(50))
    (images/'dead.png').symlink_to('gone')
    monkeypatch.chdir(tmp_path)
    said = shell('align', images, '--encoder', 'beit')
    assert said.status == 2 and said.err.count('\n') == 1 and '--map' in said.err

@pytest.mark.parametrize('name, data', [('figures/old.png', b''), ('figures/old.png', b'\x89PNG\r\n\x1a\n\0\0'), ('notebooks/mine.ipynb', b''), ('notebooks/mine.ipynb', b'{"a": 1}'), ('notebooks/mine.ipynb', b'{"cells": [], "metadata": {"frozen_nb": 5}, "nbformat": 4, "nbformat_minor": 5}')])
def test_a_report_is_made_beside_damaged_files(tmp_path, name, data):
    "What a killed run or a full disk left half-written."
    for folder in ('figures', 'notebooks'): (tmp_path/folder).mkdir()
    (tmp_path/name).write_bytes(data)
    run = cli.Reproduction(tmp_path)
    assert run.write_report().is_file() and (tmp_path/name).read_bytes() == data
    assert run.left_out == ([] if b'frozen_nb' in data else [tmp_path/name])


# A blank value is no default

@pytest.mark.parametrize('line', [
    f'{command} --{name}=' for command, names in {
        'caption a.png': 'map encoder lm device dtype', 'ask a.png why': 'map lm', 'ground a.png fox': 'model lmm sam out', 'align images': 'captions map lm out',
        'adapt doc.txt --ask why': 'generator lm save mode', 'explain why --choices a b': 'reasoner lm', 'reproduce': 'out preset', 'claims': 'records markdown',
        'verify': 'records', 'pretrain llama': 'out', 'book': 'out', 'fit limber --data captions.jsonl --out new': 'lm encoder', 'fit limber --data captions.jsonl': 'out',
        'fit pinto --data questions.jsonl --out new': 'reasoner lm prompt'}.items() for name in names.split()])
def test_a_blank_value_is_not_the_default(line, place, monkeypatch, shell):
    monkeypatch.chdir(place)
    before = sorted(place.rglob('*'))
    said = shell(*line.split())
    assert said.status == 2 and said.out == '' and said.err.count('\n') == 1 and line.split()[-1].rstrip('=') in said.err and 'blank' in said.err
    assert sorted(place.rglob('*')) == before

@pytest.mark.parametrize('words', [('claims', ''), ('pretrain', ''), ('caption', 'a.png', ''), ('align', ''), ('reproduce', '', '--dry-run'), ('adapt', '', '--ask', 'why')])
def test_a_blank_argument_is_named(words, place, monkeypatch, shell):
    monkeypatch.chdir(place)
    said = shell(*words)
    assert said.status == 2 and said.out == '' and said.err.count('\n') == 1 and 'blank' in said.err and 'please report' not in said.err

def test_a_blank_prompt_is_a_prompt(place, monkeypatch, shell):
    "Also for `fit limber`, as the paper has none."
    from frozen_nb.core.zoo import open_image
    from frozen_nb.limber import Limber
    import frozen_nb.limber as limber
    monkeypatch.chdir(place)
    given, captioner = [], Limber.load(device='cpu')
    monkeypatch.setattr(limber, 'generate', lambda lm, prefix, prompt, *more, **options: given.append(prompt) or ['a fox'])
    for prompt in ('', None): captioner.caption([open_image('a.png')], prompt=prompt)
    assert given == ['', captioner.map.made_for['prompt']]
    said = shell('fit', 'limber', '--data', 'nowhere.jsonl', '--out', 'new', '--prompt', '')
    assert 'nowhere.jsonl' in said.err and 'blank' not in said.err


# Lines that say what is true, and help

def denied(monkeypatch, name):
    "A file without permission to read, also for root."
    access, opened = os.access, open
    monkeypatch.setattr(os, 'access', lambda path, mode, **more: Path(path).name != name and access(path, mode, **more))

def test_a_file_without_permission_is_not_damaged(place, tmp_path, monkeypatch, shell):
    monkeypatch.chdir(place)
    shutil.copytree(data_path('zoo', 'limber'), tmp_path/'map')
    shutil.copytree(data_path('zoo', 'llama'), tmp_path/'llama')
    for name, words in (('a.png', ['caption', 'a.png']), ('model.safetensors', ['caption', 'a.png', '--map', tmp_path/'map']), ('config.json', ['caption', 'a.png', '--map', tmp_path/'map']),
                        ('model.safetensors', ['adapt', 'doc.txt', '--ask', 'why', '--lm', tmp_path/'llama'])):
        with monkeypatch.context() as m:
            denied(m, name)
            said = shell(*words)
        assert said.status == 2 and said.err.count('\n') == 1 and name in said.err and 'permission denied' in said.err and 'damaged' not in said.err and 'again' not in said.err

def test_an_image_from_a_pipe_is_named(place):
    "As by process substitution."
    r, w = os.pipe()
    os.write(w, (place/'a.png').read_bytes())
    os.close(w)
    code = 'import sys; from frozen_nb import cli; sys.exit(cli.run(sys.argv[1:]))'
    done = subprocess.run([sys.executable, '-c', code, 'caption', f'/dev/fd/{r}'], pass_fds=[r], capture_output=True, text=True)
    os.close(r)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and 'a named pipe' in done.stderr and 'empty' not in done.stderr

def test_names_are_shown_as_they_are(place, tmp_path, shell):
    from frozen_nb import cli
    said = shell('caption', tmp_path/'two  spaces.png')
    assert 'two  spaces.png' in said.err
    shutil.copy(place/'a.png', tmp_path/'a\nb.png')
    said = shell('caption', tmp_path/'a\nb.png', '--device', 'cpu')
    assert said.status == 0 and said.out.count('\n') == 1 and 'a\\nb.png: ' in said.out
    said = shell('caption', tmp_path/'no\nsuch.png')
    assert said.status == 2 and said.err.count('\n') == 1

def test_a_loss_that_is_no_number_names_a_way_out():
    from frozen_nb.core.training import train, TrainConfig
    layer = torch.nn.Linear(2, 1)
    with pytest.raises(FloatingPointError, match='--lr'): train(layer, lambda step: torch.ones(1, 2), lambda model, batch: model(batch).sum()*float('nan'), TrainConfig(1))

def test_options_that_are_named_exist(place, tmp_path, monkeypatch, shell):
    monkeypatch.chdir(place)
    said = shell('explain', 'why '*150, '--choices', 'a', 'b', '--device', 'cpu')
    assert said.status == 2 and 'make them shorter' in said.err and 'give a larger length' not in said.err
    said = shell('fit', 'pinto', '--data', 'questions.jsonl', '--out', tmp_path/'new', '--own', '--device', 'cpu')
    assert said.status == 2 and '--own' in said.err and 'own=True' not in said.err
    assert 'reproduce limber' in shell('pretrain', 'limber').err and 'reproduce generative_adapter' in shell('pretrain', 'adapter').err

def test_a_blank_category_is_refused(place, tmp_path, shell):
    coco = json.loads((place/'coco.json').read_text()) | dict(categories=[dict(id=1, name=' ')])
    (tmp_path/'coco.json').write_text(json.dumps(coco))
    said = shell('fit', 'flmm', '--data', tmp_path/'coco.json', '--images', place/'images', '--out', tmp_path/'new')
    assert said.status == 2 and said.err.count('\n') == 1 and 'blank' in said.err and not (tmp_path/'new').exists()

def test_a_sam_without_effect_is_said(tmp_path):
    from frozen_nb.core.zoo import load_lmm, load_sam
    from frozen_nb.flmm import load_grounder, new_flmm, save_flmm
    lmm, sam = load_lmm('llava', device='cpu'), load_sam('sam', device='cpu')
    save_flmm(new_flmm(lmm, None, 0, width=4, upsample=8), tmp_path/'head')
    with pytest.warns(UserWarning, match='has no effect'): load_grounder(tmp_path/'head', lmm, sam)

def test_what_is_no_path_is_named(tmp_path):
    "None and numbers where a file, a folder or a place belongs."
    from frozen_nb.core.folders import check_place, read_folder, read_text, write_folder
    from frozen_nb.core.frozen import BadInput
    from frozen_nb.flmm import load_grounder
    from frozen_nb.core.streams import read_classes
    from frozen_nb.fits.generative_adapter import read_document, read_texts
    from frozen_nb.generative_adapter import load_generator
    from frozen_nb.fits.limber import read_captions
    from frozen_nb.fits.lm4visual import load_classifier
    from frozen_nb.benchmarks.choices import read_questions
    from frozen_nb.pinto import load_reasoner, read_prompt
    readers = [read_text, read_captions, read_document, read_texts, read_classes, read_questions, read_prompt, load_reasoner, load_classifier, lambda x: load_generator(x, None),
               lambda x: read_folder(x, 'map'), lambda x: check_place(x, 'a map'), lambda x: write_folder(x, {}, {}), lambda x: load_grounder(5)]
    for reader in readers:
        for what in (None, 5, ['a']):
            with pytest.raises(BadInput, match='is no path'): reader(what)
