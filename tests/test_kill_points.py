"""A process that saves is killed before each of its file-system events, with a new target, an empty one, and one that holds an earlier result.
What is loaded then is the earlier result or the new one, never a mixture; the same call works again, and leaves nothing hidden."""
import json, os, random, signal, sys
from pathlib import Path

import pytest, torch

from frozen_nb.core.folders import read_folder, verify_folder, file_hash, whole_folder, write_folder, write_whole
from frozen_nb.core.frozen import BadInput, fingerprint
from frozen_nb.core.prefix import LinearMap, load_map, save_map
from frozen_nb.core.training import read_checkpoint, write_checkpoint

torch.set_num_threads(1)
pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
whole_form = os.environ.get('FROZEN_NB_CAMPAIGNS') == 'full'
EVENTS = {'open', 'os.rename', 'os.mkdir', 'os.remove', 'os.rmdir', 'os.truncate', 'os.link', 'os.symlink', 'os.chmod', 'os.scandir', 'os.listdir', 'shutil.rmtree'}


# What saves, and what loads

def made_map(version, folder):
    linear_map = LinearMap(8, 4, encoder='clip', encoder_fingerprint='e', lm='llama', lm_fingerprint='l', k=1, prompt=f'prompt {version}')
    with torch.no_grad(): linear_map.linear.weight.fill_(version)
    save_map(linear_map, folder, {'fit.json': str(version), f'only-{version}.txt': ''})

def map_in(folder):
    linear_map = load_map(folder)
    return linear_map.made_for['prompt'], linear_map.linear.weight[0, 0].item(), (folder/'fit.json').read_text()

def in_folder(folder, what='result'):
    config, tensors = read_folder(folder, what)
    return json.dumps(config), {name: fingerprint_of(t) for name, t in tensors.items()}

def fingerprint_of(t): return t.double().sum().item()

def files_in(folder):
    verify_folder(folder, 'model')
    if not (folder/'sha256.json').is_file(): raise BadInput('nothing there')
    return {p.name: file_hash(p) for p in sorted(folder.iterdir()) if p.name != 'note.txt' and p.name[0] != '.'}

def made_flmm(version, folder):
    from frozen_nb.core.mask_head import MaskHead
    from frozen_nb.flmm import FLMM, save_flmm
    torch.manual_seed(version)
    save_flmm(FLMM(MaskHead(4, 'conv', 4, 8), None, None, True, 'mean', lmm=f'llava {version}', lmm_fingerprint='l'), folder)

def made_classifier(version, folder):
    from frozen_nb.fits.lm4visual import save_classifier
    from frozen_nb.lm4visual import new_classifier
    save_classifier(new_classifier('base', 2, version, width=24, depth=1, heads=2), folder, [str(version), 'b'])

def classifier_in(folder):
    from frozen_nb.fits.lm4visual import load_classifier
    model = load_classifier(folder, 'cpu')
    return model.names, fingerprint(model)

def language_model():
    from test_generative_adapter import make
    return make('llama')

def made_generator(version, folder):
    from frozen_nb.generative_adapter import save_generator
    from test_generative_adapter import alive
    generator = alive(LM, chunk=10 + version)
    with torch.no_grad():
        for p in generator.parameters(): p += version
    save_generator(generator, folder)

def generator_in(folder):
    from frozen_nb.generative_adapter import load_generator
    generator = load_generator(folder, LM)
    return generator.chunk, fingerprint(generator)

def made_adapter(version, folder):
    from frozen_nb.core.adapted import Adapter, save_adapter
    names = [f'model.layers.{i}.self_attn.o_proj' for i in range(2)]
    down, up = ({name: torch.full(shape, float(version)) for name in names} for shape in ((1, 2 + version, 32), (1, 32, 2 + version)))
    save_adapter(Adapter(down, up, LM.fingerprint), LM, folder)

def adapter_in(folder):
    from frozen_nb.core.adapted import load_adapter
    adapter = load_adapter(folder, LM)
    rank = json.loads((folder/'adapter_config.json').read_text())['r']
    return rank, {name: (tuple(t.shape), t.sum().item()) for name, t in adapter.down.items()}

def made_reasoner(version, folder):
    from frozen_nb.pinto import Reasoner, save_reasoner
    from test_pinto import PROMPT, T5_TOKENIZER
    save_reasoner(Reasoner(T5S[version].model, T5_TOKENIZER, PROMPT, 'x', f'llama {version}'), folder)

def reasoner_in(folder):
    from frozen_nb.pinto import load_reasoner
    reasoner = load_reasoner(folder, 'cpu')
    return reasoner.lm_name, fingerprint(reasoner.model)

def made_encoder(version, folder):
    import timm
    from frozen_nb.pretraining.encoders import save_timm
    torch.manual_seed(version)
    small = dict(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=1, num_classes=0)
    save_timm(timm.create_model('beit_base_patch16_224', **small), 'beit_base_patch16_224', small | dict(version=version), folder)

def made_tree(version, folder):
    "A result with folders in it, as some tokenizers have."
    with whole_folder(folder, holds=lambda folder: True) as new:
        (new/'templates').mkdir()
        for name in ('config.json', 'templates/a', f'templates/{version}'): (new/name).write_text(f'{name} {version}')

def tree_in(folder):
    verify_folder(folder, 'tree')
    if not (folder/'config.json').is_file(): raise BadInput('nothing there')
    texts = {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob('*') if p.is_file() and p.name != 'note.txt'}
    return {name: text for name, text in texts.items() if name[0] != '.'}

def made_checkpoint(version, folder):
    weights = {'w': torch.full((3,), float(version))}
    write_checkpoint(folder, version, weights, dict(a=torch.zeros(2)), dict(identity=0, step=version))

def checkpoint_in(folder):
    checkpoint = read_checkpoint(folder)
    if checkpoint is None: raise BadInput('nothing there')
    tensors, _, info = checkpoint
    return tensors['w'].tolist(), info['step']

def made_file(version, folder): write_whole(folder/'records.json', f'version {version}'*1000)

def file_in(folder):
    if not (folder/'records.json').is_file(): raise BadInput('nothing there')
    return (folder/'records.json').read_text()

SAVERS = dict( # save, load, and how many of its events are tried where not all are
    map=(made_map, map_in, 12), flmm=(made_flmm, in_folder, 3), classifier=(made_classifier, classifier_in, 3), generator=(made_generator, generator_in, 3),
    adapter=(made_adapter, adapter_in, 4), reasoner=(made_reasoner, reasoner_in, 4), encoder=(made_encoder, files_in, 3), tree=(made_tree, tree_in, 8),
    checkpoint=(made_checkpoint, checkpoint_in, 8), file=(made_file, file_in, 20))

@pytest.fixture(scope='module', autouse=True)
def models():
    global LM, T5S
    from test_pinto import make_t5
    LM, T5S = language_model(), {version: make_t5(seed=version) for version in (1, 2)}


# Kills

def events(at, call, root):
    "Call in a fork that is killed before event number `at` below `root`; (whether it came to its end, how many events there were)."
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        seen = 0
        def hook(event, args):
            nonlocal seen
            if event not in EVENTS or not args: return
            path = str(args[0])
            if path.startswith(str(root)) or event in ('os.remove', 'os.rmdir'): seen += 1
            if seen == at: os.kill(os.getpid(), signal.SIGKILL)
        status = 1
        try:
            sys.addaudithook(hook)
            call()
            at = -1
            os.write(writer, str(seen).encode())
            status = 0
        finally: os._exit(status)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    with open(reader) as f: n = f.read()
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, 'it failed without a kill'
    return n and int(n)

def hidden(folder): return [p for p in folder.rglob('*') if p.name.startswith('.') and p.name != '.lock']

def loaded(load, folder):
    try: return load(folder)
    except BadInput as error:
        assert '\n' not in str(error)
        return None

def prepared(root, target, save):
    "A folder as it is before the save that is killed."
    folder = root/'out'
    root.mkdir()
    if target != 'new': folder.mkdir()
    if target == 'old':
        save(1, folder)
        (folder/'note.txt').write_text('by hand')
    return folder

@pytest.mark.parametrize('target', ['new', 'empty', 'old'])
@pytest.mark.parametrize('saver', SAVERS)
def test_every_kill_point(tmp_path, saver, target):
    save, load, some = SAVERS[saver]
    expected = {}
    for version in (1, 2):
        save(version, tmp_path/f'{version}')
        expected[version] = load(tmp_path/f'{version}')
    assert expected[1] != expected[2]
    n = events(0, lambda: save(2, prepared(tmp_path/'count', target, save)), tmp_path)
    folder = prepared(tmp_path/'whole', target, save)
    n = events(0, lambda: save(2, folder), tmp_path/'whole')
    points, killed = range(1, n + 1), 0
    if not whole_form and n > some: points = sorted(random.Random(saver + target).sample(points, some))
    for at in points:
        root = tmp_path/f'at-{at}'
        folder = prepared(root, target, save)
        ended = events(at, lambda: save(2, folder), root)
        killed += not ended
        result = loaded(load, folder)
        allowed = [expected[2], expected[1] if target == 'old' else None]
        assert result in allowed, f'event {at} of {n}: {result}'
        save(2, folder)
        assert load(folder) == expected[2] and not hidden(root), (at, hidden(root))
        if target == 'old': assert (folder/'note.txt').read_text() == 'by hand'
    assert killed >= len(points) - 1
    print(f'{saver}, {target}: {len(points)} of {n} kill points')
