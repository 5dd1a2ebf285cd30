"Every family as a tiny random model in a folder, and everything that can be wrong with a name, a folder or an image."
import json, shutil, socket, time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import open_clip, pytest, timm, torch, transformers
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import frozen_nb.core.zoo as module
from frozen_nb.core.frozen import BadInput, fingerprint, is_frozen, real_path
from frozen_nb.core.zoo import card, clip_vision_model, load_encoder, load_lm, load_lmm, load_sam, load_seq2seq, open_image, pool_tokens, shipped, visual_tokens, weight_files, zoo
from tiny_models import ENCODERS, LMS, lm_config, make_encoders, make_lms, save_open_clip, tokenizer

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp('zoo')
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield SimpleNamespace(root=root, lms=make_lms(root), encoders=make_encoders(root))
    torch.set_num_threads(threads)

@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    "Nothing here may look for a network; whoever does is noted, and finds none."
    asked = []
    def refuse(*args, **kwargs):
        asked.append(args)
        raise socket.gaierror(-2, 'Name or service not known')
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    return asked

@pytest.fixture
def copy(folders, tmp_path):
    "A copy of one of the folders, to be damaged."
    return lambda name: Path(shutil.copytree(folders.root/name, tmp_path/name))

@pytest.fixture
def pixels(): return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

def refused(f, *words):
    with pytest.raises(BadInput) as e: f()
    message = str(e.value)
    assert '\n' not in message and len(message) < 700, message
    for word in words: assert str(word) in message, message
    return message

def cpu(load, *args, **kwargs): return load(*args, device='cpu', **kwargs)

# Language models

@pytest.mark.parametrize('kind', LMS)
def test_lm_from_folder(folders, kind, no_network):
    before = torch.get_rng_state()
    lm = cpu(load_lm, folders.root/kind)
    assert torch.equal(before, torch.get_rng_state()) and not no_network
    assert is_frozen(lm.model) and lm.fingerprint == fingerprint(lm.model)
    assert lm.dtype == torch.float32 and lm.device.type == 'cpu' and lm.width == (8 if kind == 'opt' else 16) == lm.embeddings.weight.shape[1]
    t = lm.tokenizer
    assert (t.padding_side, t.pad_token, t.eos_token) == ('right', '</s>', '</s>')
    batch = t(['a red hippo', 'the snow'], padding=True, return_tensors='pt')
    ids, mask = batch.input_ids, batch.attention_mask
    with torch.no_grad():
        logits = lm.model(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(logits, folders.lms[kind](input_ids=ids, attention_mask=mask).logits)
        assert torch.equal(logits, lm.model(inputs_embeds=lm.embeddings(ids), attention_mask=mask).logits)

@pytest.mark.parametrize('kind', LMS)
def test_lm_random(folders, kind):
    a, b, trained = (cpu(load_lm, f'{folders.root/kind}{end}') for end in ('-random', '-random', ''))
    assert a.fingerprint == b.fingerprint != trained.fingerprint and a.width == trained.width and is_frozen(a.model)

def test_lm_dtype(folders):
    lm, random = (cpu(load_lm, f'{folders.root}/llama{end}', dtype='bf16') for end in ('', '-random'))
    assert {p.dtype for m in (lm, random) for p in m.model.parameters()} == {torch.bfloat16}
    assert lm.fingerprint != cpu(load_lm, folders.root/'llama').fingerprint
    with torch.no_grad(): assert lm.model(torch.tensor([[2, 3]])).logits.isfinite().all()

def test_lm_tokenizer_argument(folders, copy):
    folder = copy('llama')
    (folder/'tokenizer.json').unlink()
    refused(lambda: cpu(load_lm, folder), folder, 'tokenizer')
    for given in (tokenizer(), str(folders.root/'opt')): assert cpu(load_lm, folder, tokenizer=given).tokenizer('hippo').input_ids == [4]

def test_lm_pickle(copy, folders):
    folder = copy('llama')
    weights = load_file(folder/'model.safetensors')
    (folder/'model.safetensors').unlink()
    torch.save(weights, folder/'pytorch_model.bin')
    assert cpu(load_lm, folder).fingerprint == cpu(load_lm, folders.root/'llama').fingerprint
    torch.save(dict(weights, trap=Path('x')), folder/'pytorch_model.bin')
    refused(lambda: cpu(load_lm, folder), folder)

LAYER = 'model.layers.1.mlp.up_proj.weight'
WRONG_WEIGHTS = dict(
    missing=(lambda w: w.pop(LAYER), f'{LAYER} is missing'), head=(lambda w: w.pop('lm_head.weight'), 'lm_head.weight is missing'),
    shape=(lambda w: w.update({LAYER: w[LAYER][:3].clone()}), f'{LAYER} has shape (3, 16)'),
    extra=(lambda w: w.update({LAYER.replace('1', '7'): w[LAYER].clone()}), 'is in the weights and not in the model'),
    nan=(lambda w: w.update({LAYER: w[LAYER]*torch.inf}), LAYER))

@pytest.mark.parametrize('case', WRONG_WEIGHTS)
def test_lm_wrong_weights(copy, case):
    folder, (change, says) = copy('llama'), WRONG_WEIGHTS[case]
    weights = load_file(folder/'model.safetensors')
    change(weights)
    save_file(weights, folder/'model.safetensors', {'format': 'pt'})
    refused(lambda: cpu(load_lm, folder), folder, says)

def test_lm_tied_head_may_be_missing(tmp_path):
    config = transformers.LlamaConfig(vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert 'lm_head.weight' not in load_file(tmp_path/'model.safetensors')
    lm = cpu(load_lm, tmp_path)
    assert lm.model.lm_head.weight is lm.embeddings.weight

def test_lm_old_buffers_are_no_harm(tmp_path):
    "The published GPT-2 has its keys without a prefix, and causal masks among them."
    model = AutoModelForCausalLM.from_config(lm_config('gpt2')).eval()
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    weights = {k.removeprefix('transformer.'): t for k, t in load_file(tmp_path/'model.safetensors').items()}
    save_file(dict(weights, **{'h.0.attn.bias': torch.ones(1, 1, 64, 64), 'h.0.attn.masked_bias': torch.tensor(-1e4)}), tmp_path/'model.safetensors', {'format': 'pt'})
    ids = torch.tensor([[2, 3, 4]])
    with torch.no_grad(): assert torch.equal(cpu(load_lm, tmp_path).model(ids).logits, model(ids).logits)

FILES = dict(
    cut=('model.safetensors', lambda p: p.write_bytes(p.read_bytes()[:-50])), text=('model.safetensors', lambda p: p.write_text('version https://git-lfs.github.com/spec/v1')),
    empty_weights=('model.safetensors', lambda p: p.write_bytes(b'')), no_weights=('', lambda p: (p/'model.safetensors').unlink()),
    bad_json=('config.json', lambda p: p.write_text('{')), list_json=('config.json', lambda p: p.write_text('[]')), no_type=('config.json', lambda p: p.write_text('{}')),
    unknown_type=('', lambda p: (p/'config.json').write_text('{"model_type": "hippo"}')), no_config=('config.json', lambda p: p.unlink()),
    bad_tokenizer=('', lambda p: (p/'tokenizer.json').write_text('{}')), empty=('', lambda p: [f.unlink() for f in p.iterdir()]))

@pytest.mark.parametrize('case', FILES)
def test_lm_damaged_folder(copy, case):
    folder, (name, damage) = copy('llama'), FILES[case]
    damage(folder/name)
    refused(lambda: cpu(load_lm, folder), folder.name, name)

def test_lm_shard_missing(copy, folders):
    folder = copy('llama')
    folders.lms['llama'].save_pretrained(folder, max_shard_size='10kB')
    (folder/'model.safetensors').unlink()
    assert len(weight_files(folder)) > 1 and cpu(load_lm, folder).fingerprint == cpu(load_lm, folders.root/'llama').fingerprint
    gone = weight_files(folder)[0]
    gone.unlink()
    refused(lambda: cpu(load_lm, folder), gone, 'missing')

def test_lm_tokenizer_does_not_fit(copy):
    folder = copy('llama')
    tokenizer(eos_token=None).save_pretrained(folder)
    refused(lambda: cpu(load_lm, folder), folder, 'eos_token')
    big = tokenizer()
    big.add_tokens([f'word{i}' for i in range(20)])
    refused(lambda: cpu(load_lm, folder, tokenizer=big), folder, '28 tokens', '16 embeddings')

class Trap:
    "A pickle of this writes a file as soon as it is opened."
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.write_text, (self.path, 'ran')

@pytest.mark.parametrize('name', ['llama', 'opt', 'clip_vit', 'beit', 'hf_clip'])
def test_a_pickle_with_code_is_refused_and_does_not_run(copy, name, tmp_path):
    folder, trap = copy(name), tmp_path/'trap'
    path = weight_files(folder)[0]
    weights = load_file(path)
    path.unlink()
    bad = folder/('open_clip_pytorch_model.bin' if name == 'clip_vit' else 'pytorch_model.bin')
    torch.save(dict(weights, trap=Trap(trap)), bad)
    refused(lambda: cpu(load_lm if name in LMS else load_encoder, folder), folder)
    assert not trap.exists()
    torch.load(bad, weights_only=False)
    assert trap.exists()  # the trap works

BYTES = dict(cut=lambda b: b[:-50], empty=lambda b: b'', zeros=lambda b: bytes(len(b)), header=lambda b: b[:9] + bytes([b[9] ^ 64]) + b[10:], length=lambda b: b[:5] + b'\xff' + b[6:])

@pytest.mark.parametrize('name', ['llama', 'clip_vit', 'beit', 'hf_clip'])
@pytest.mark.parametrize('case', BYTES)
def test_damaged_safetensors_are_named(copy, name, case):
    folder = copy(name)
    path = weight_files(folder)[0]
    path.write_bytes(BYTES[case](path.read_bytes()))
    refused(lambda: cpu(load_lm if name in LMS else load_encoder, folder), path, 'copy it again')

@pytest.mark.parametrize('name', ['clip_vit', 'beit', 'hf_clip'])
def test_encoder_weights_that_belong_nowhere_are_named(copy, name):
    folder = copy(name)
    path, key = weight_files(folder)[0], dict(clip_vit='visual.transformer.resblocks.7.ln_1.bias', beit='blocks.7.norm1.bias', hf_clip='encoder.layers.7.layer_norm1.bias')[name]
    save_file(dict(load_file(path), **{key: torch.zeros(32)}), path, {'format': 'pt'})
    refused(lambda: cpu(load_encoder, folder), folder, key.removeprefix('visual.'), 'not in the model')

# Names

def test_unknown_names(folders, monkeypatch, tmp_path, no_network):
    monkeypatch.setattr(module, 'data_path', lambda *parts: tmp_path.joinpath('data', *parts))
    for name, kind in (('llama', 'lm'), ('clip', 'encoder'), ('beit-ft', 'encoder')):
        (tmp_path/'data'/'zoo'/name).mkdir(parents=True)
        (tmp_path/'data'/'zoo'/name/'card.json').write_text(json.dumps(dict(name=name, kind=kind)))
    refused(lambda: load_lm('lama'), 'did you mean llama', 'ship: llama,')
    refused(lambda: load_encoder('clipp-random'), 'clip', 'beit-ft')
    refused(lambda: load_encoder('resnet50'), 'timm/resnet50')
    refused(lambda: load_encoder('./resnet50'), './resnet50', 'no such folder')
    refused(lambda: load_encoder(''), "''")
    for odd in ('x'*300, '~nobody', 'a\0b', '.', 'x/y/'): refused(lambda: load_lm(odd))
    refused(lambda: load_lm(folders.root/'llama'/'model.safetensors'), 'give the folder')
    refused(lambda: load_lm('a/b/c'), 'a/b/c', 'neither a folder')
    refused(lambda: load_lm('a b/c'), 'a b/c', 'neither a folder')
    refused(lambda: card('llamas'), 'llama')
    assert not no_network

def test_wrong_kind(folders):
    refused(lambda: cpu(load_lm, folders.root/'clip_vit'), 'open_clip', 'load_encoder')
    refused(lambda: cpu(load_lm, folders.root/'hf_clip'), 'clip_vision_model')
    refused(lambda: cpu(load_encoder, folders.root/'llama'), 'llama', 'load_lm')
    refused(lambda: cpu(load_seq2seq, folders.root/'llama'), "'llama' is not an encoder-decoder", 't5'); refused(lambda: cpu(load_lm, 't5'), "'t5' is not a causal language model", 'llama')
    refused(lambda: cpu(load_lm, folders.root/'llama', dtype='fp12'), 'fp12')
    refused(lambda: load_lm(folders.root/'llama', device='abacus'), 'abacus')

@pytest.mark.parametrize('load,name,words', [
    (load_lm, 'EleutherAI/gpt-j-6b', ['config.json, model.safetensors and tokenizer.json', "'llama'"]), (load_lm, 'facebook/opt-1.3b', ["'opt'"]), (load_seq2seq, 'google-t5/t5-base', ['config.json, model.safetensors and tokenizer.json', "'t5'"]),
    (load_encoder, 'timm/nf_resnet50.ra2_in1k', ['config.json and model.safetensors', "'nfnet'"]), (load_encoder, 'RN50x16/openai', ['open_clip_config.json', "'clip'"]),
    (load_encoder, 'microsoft/beit-large-patch16-224-pt22k-ft22k', ['preprocessor_config.json', "'beit-ft'"]),
    (load_encoder, 'facebook/timesformer-base-finetuned-k600', ['preprocessor_config.json', "'timesformer'"]), (load_encoder, 'MIT/ast-finetuned-audioset-10-10-0.4593', ["'ast'"])])
@pytest.mark.parametrize('offline', [True, False])
def test_no_network(monkeypatch, tmp_path, load, name, words, offline):
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', offline)
    started = time.time()
    refused(lambda: load(name), name, *words, 'HF_HUB_OFFLINE' if offline else 'cannot be reached')
    assert time.time() - started < 5

def test_unknown_tag(): refused(lambda: load_encoder('RN50x16/hippo'), 'hippo', 'openai')

def cache(monkeypatch, root, repo, folder):
    "Lay `folder` down as the hub's client keeps a download."
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(root))
    store = root/f"models--{repo.replace('/', '--')}"
    (store/'refs').mkdir(parents=True)
    (store/'refs'/'main').write_text('a'*40)
    shutil.copytree(folder, store/'snapshots'/('a'*40))
    return store/'snapshots'/('a'*40)

@pytest.mark.parametrize('name', ['llama', 'mobilenet', 'clip_vit', 'hf_beit'])
def test_cached_hub_model_needs_no_network(folders, monkeypatch, tmp_path, name, no_network):
    snapshot = cache(monkeypatch, tmp_path, f'owner/{name}', folders.root/name)
    load = load_lm if name == 'llama' else load_encoder
    for asked in (f'owner/{name}', f'hf-hub:owner/{name}', f'owner/{name}@main', f"owner/{name}@{'a'*40}", f'owner/{name}-random'):
        found = cpu(load, asked)
        assert (found.fingerprint == cpu(load, folders.root/name).fingerprint) == (not asked.endswith('random')) and found.name == asked
    assert not no_network
    weight_files(snapshot)[0].unlink()  # a download that did not come to its end
    refused(lambda: cpu(load, f'owner/{name}'), f'owner/{name}', 'cannot be reached')

def interrupted(store, snapshot, case):
    "What a download leaves that was cut off; the files of a snapshot are links to blobs."
    blobs, weights = store/'blobs', weight_files(snapshot)
    blobs.mkdir()
    if case == 'shards':
        weights[0].rename(snapshot/'model-00001-of-00002.safetensors')
        return
    (blobs/'1234.incomplete').write_bytes(weights[0].read_bytes()[:100])
    weights[0].unlink()
    if case == 'dangling': weights[0].symlink_to('../../blobs/1234')
    if case == 'config': (snapshot/'config.json').unlink()

@pytest.mark.parametrize('case', ['incomplete', 'dangling', 'shards', 'config'])
@pytest.mark.parametrize('name', ['llama', 'hf_clip'])
def test_an_interrupted_download_is_as_good_as_none(folders, monkeypatch, tmp_path, name, case):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    snapshot = cache(monkeypatch, tmp_path, f'owner/{name}', folders.root/name)
    interrupted(snapshot.parent.parent, snapshot, case)
    refused(lambda: cpu(load_lm if name == 'llama' else load_encoder, f'owner/{name}'), f'owner/{name}: not in the local cache', 'HF_HUB_OFFLINE', 'which ships')

@pytest.mark.parametrize('name', ['llama', 'hf_clip'])
def test_one_shard_of_two_is_not_enough(copy, name):
    "Also where the index has not arrived."
    folder = copy(name)
    weight_files(folder)[0].rename(folder/'model-00002-of-00002.safetensors')
    refused(lambda: cpu(load_lm if name == 'llama' else load_encoder, folder), folder/'model-00001-of-00002.safetensors', 'missing')

def test_download_takes_one_set_of_weights(folders, monkeypatch, tmp_path):
    asked = {}
    def download(repo, revision=None, local_files_only=False, allow_patterns=None):
        if local_files_only: raise LocalEntryNotFoundError('nothing here')
        asked.update(repo=repo, revision=revision, files=allow_patterns)
        return str(folders.root/'llama')
    files = ['config.json', 'tokenizer.json', 'flax_model.msgpack', 'pytorch_model-00001-of-00002.bin', 'pytorch_model-00002-of-00002.bin', 'onnx/config.json', 'README.md']
    monkeypatch.setattr(module, 'hub_reachable', lambda: True)
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    monkeypatch.setattr(huggingface_hub.HfApi, 'list_repo_files', lambda self, repo, revision=None: files)
    assert cpu(load_lm, 'owner/llama@v2').fingerprint == cpu(load_lm, folders.root/'llama').fingerprint
    assert asked == dict(repo='owner/llama', revision='v2', files=['config.json', 'tokenizer.json', *files[3:5]])
    def gone(self, repo, revision=None): raise ConnectionError('reset by peer')
    monkeypatch.setattr(huggingface_hub.HfApi, 'list_repo_files', gone)
    refused(lambda: cpu(load_lm, 'owner/llama'), 'owner/llama', 'reset by peer')

# Encoders

@pytest.mark.parametrize('name', ENCODERS)
def test_encoder_from_folder(folders, name, no_network):
    reference, k, width, grid = folders.encoders[name]
    before = torch.get_rng_state()
    e = cpu(load_encoder, folders.root/name)
    assert torch.equal(before, torch.get_rng_state()) and not no_network
    assert is_frozen(e.model) and e.fingerprint == fingerprint(e.model) and (e.k, e.width, e.grid) == (k, width, grid)
    images = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)) for i in range(3)]
    pixels = e.preprocess(images)
    assert pixels.shape == (3, 3, *e.size) and pixels.dtype == torch.float32 and torch.equal(pixels, e.preprocess(images))
    x = e.encode(pixels)
    assert x.shape == (3, k, width) and not x.requires_grad
    with torch.no_grad(): assert torch.allclose(x, reference(pixels), atol=1e-5)
    assert torch.allclose(x[1:2], e.encode(pixels[1:2]), atol=1e-5)
    assert json.loads(e.preprocessing)['tokens'] == ('pooled' if name == 'nfnet' else 'grid')

@pytest.mark.parametrize('name', ENCODERS)
def test_encoder_random(folders, name):
    a, b, trained = (cpu(load_encoder, f'{folders.root/name}{end}') for end in ('-random', '-random', ''))
    assert a.fingerprint == b.fingerprint != trained.fingerprint and a.preprocessing == trained.preprocessing
    assert (a.k, a.width, a.grid) == (trained.k, trained.width, trained.grid)

@pytest.mark.parametrize('name', ENCODERS)
def test_encoder_bf16(folders, name):
    e, half = (cpu(load_encoder, folders.root/name, dtype=dtype) for dtype in (None, 'bf16'))
    pixels = torch.rand(2, 3, *e.size)
    x, y = e.encode(pixels), half.encode(pixels)
    assert y.dtype == half.dtype == torch.bfloat16 and half.fingerprint != e.fingerprint
    assert (x - y.float()).norm() < .1*x.norm()

@pytest.mark.parametrize('name', ENCODERS)
def test_encoder_tokens(folders, name, pixels):
    made = {kind: cpu(load_encoder, folders.root/name, tokens=kind) for kind in ('grid', 'pooled')}
    x = pixels if name != 'clip_rn' else torch.randn(2, 3, 64, 64)
    whole, pooled = made['grid'].encode(x), made['pooled'].encode(x)
    assert torch.allclose(whole.mean(1, keepdim=True), pooled, atol=1e-5) and made['pooled'].grid is None and made['pooled'].k == 1
    assert made['grid'].fingerprint == made['pooled'].fingerprint and made['grid'].preprocessing != made['pooled'].preprocessing
    if name in ('clip_rn', 'nfnet', 'mobilenet', 'swin'): refused(lambda: cpu(load_encoder, folders.root/name, tokens='cls'), 'no CLS')
    else:
        cls = cpu(load_encoder, folders.root/name, tokens='cls').encode(x)
        assert cls.shape == (2, 1, whole.shape[-1]) and (cls - whole).abs().amax((0, 2)).min() > 1e-4

def test_cnn_grids(folders):
    "1, 4, 9, 49 tokens from one network, by the size of its image."
    model = cpu(load_encoder, folders.root/'mobilenet').model
    with torch.no_grad(): counts = {s: visual_tokens(model, torch.zeros(1, 3, s, s))[0].shape[1] for s in (32, 64, 96, 224)}
    assert counts == {32: 1, 64: 4, 96: 9, 224: 49}
    with torch.no_grad(): x, grid = visual_tokens(model, torch.zeros(1, 3, 64, 128))
    assert grid == (2, 4) and x.shape[1] == 8

def test_row_major(folders):
    e = cpu(load_encoder, folders.root/'hf_clip')
    x = torch.zeros(17, 3, 32, 32)
    for i in range(16): x[i + 1, :, 8*(i//4):8*(i//4) + 8, 8*(i%4):8*(i%4) + 8] = 3.
    y = e.encode(x)
    assert [int((y[i + 1] - y[0]).norm(dim=-1).argmax()) for i in range(16)] == list(range(16))

def test_settings_are_part_of_the_key(tmp_path):
    "An activation function has no weights: the fingerprint cannot tell these two apart."
    vision, made = dict(layers=1, width=32, head_width=16, patch_size=8, image_size=32), []
    for fast in (False, True):
        torch.manual_seed(0)
        save_open_clip(tmp_path/str(fast), vision, quick_gelu=fast)
        made.append(cpu(load_encoder, tmp_path/str(fast)))
    assert made[0].fingerprint == made[1].fingerprint and made[0].preprocessing != made[1].preprocessing
    x = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(made[0].encode(x), made[1].encode(x), atol=1e-5)

@pytest.mark.parametrize('name,key', [('clip_vit', 'visual.ln_pre.weight'), ('beit', 'cls_token'), ('mobilenet', 'conv_stem.weight'), ('hf_clip', 'pre_layrnorm.weight')])
def test_encoder_wrong_weights(copy, name, key):
    folder = copy(name)
    path = weight_files(folder)[0]
    whole = load_file(path)
    short = key.removeprefix('visual.')
    for change, says in ((lambda w: w.pop(key), 'missing'), (lambda w: w.update({key: torch.zeros(5)}), 'shape (5,)'), (lambda w: w.update({key: w[key]*torch.nan}), 'NaN')):
        weights = dict(whole)
        change(weights)
        save_file(weights, path, {'format': 'pt'})
        refused(lambda: cpu(load_encoder, folder), folder, short, says)
    path.write_bytes(b'hello')
    refused(lambda: cpu(load_encoder, folder), path)

def test_layers_beyond_the_configuration(copy):
    folder = copy('hf_clip')
    config = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps(dict(config, num_hidden_layers=1)))
    refused(lambda: cpu(load_encoder, folder), folder, 'encoder.layers.1', 'not in the model')

def test_encoder_bad_configurations(copy):
    folder = copy('mobilenet')
    whole = (folder/'config.json').read_text()
    for text, says in (('{', 'config.json'), ('{"architecture": "hippo"}', 'hippo'), ('{"a": 1}', 'model_type')):
        (folder/'config.json').write_text(text)
        refused(lambda: cpu(load_encoder, folder), folder, says)
    (folder/'config.json').unlink()
    refused(lambda: cpu(load_encoder, folder), folder, 'config=')
    refused(lambda: cpu(load_encoder, folder, config=dict(model_args={})), 'architecture')
    e = cpu(load_encoder, folder, config=json.loads(whole))
    assert e.k == 1 and e.fingerprint == cpu(load_encoder, copy('nfnet').parent/'mobilenet', config=json.loads(whole)).fingerprint
    folder = copy('hf_clip')
    (folder/'preprocessor_config.json').unlink()
    refused(lambda: cpu(load_encoder, folder), folder, 'preprocessor_config.json')
    folder = copy('clip_vit')
    (folder/'open_clip_config.json').write_text('{"model_cfg": {}}')
    refused(lambda: cpu(load_encoder, folder), 'open_clip_config.json')

def test_encode_refuses(folders, pixels):
    e = cpu(load_encoder, folders.root/'beit')
    for wrong in (pixels[0], pixels[:, :1], torch.zeros(1, 3, 40, 40)): refused(lambda: e.encode(wrong), e.name, '(B, 3, 32, 32)')
    refused(lambda: e.encode(pixels*torch.nan), e.name, 'pixels are not finite')
    e.model.blocks[0].mlp.fc1.bias.fill_(torch.nan)
    refused(lambda: e.encode(pixels), e.name, 'features are not finite')
    refused(lambda: e.preprocess([]), e.name, 'no images')
    refused(lambda: e.preprocess(['a.png']), 'open_image')
    refused(lambda: cpu(load_encoder, folders.root/'beit', tokens='some'), 'some')

def test_transform_does_not_fit(copy):
    folder = copy('beit')
    config = json.loads((folder/'config.json').read_text())
    config['pretrained_cfg'].update(input_size=[3, 48, 48], fixed_input_size=False)
    (folder/'config.json').write_text(json.dumps(config))
    refused(lambda: cpu(load_encoder, folder), folder, '(3, 48, 48)')

def test_random_by_architecture_needs_no_network(no_network):
    a, b = (cpu(load_encoder, 'timm/mobilenetv2_035-random') for _ in range(2))
    assert a.fingerprint == b.fingerprint and a.grid == (7, 7) and a.width == 1280 and not no_network

def test_open_clip_around_timm(tmp_path):
    "SigLIP and others: the image half of an open_clip model is a timm model."
    vision = dict(timm_model_name='vit_tiny_patch16_224', timm_pool='avg', timm_proj='linear', image_size=224)
    visual = save_open_clip(tmp_path/'siglip', vision)
    e = cpu(load_encoder, tmp_path/'siglip')
    assert (e.k, e.grid, e.width) == (196, (14, 14), 192)
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad(): assert torch.allclose(e.encode(pixels), visual.trunk.forward_features(pixels)[:, 1:], atol=1e-5)

# Clips and sounds

@pytest.fixture(scope='module')
def senses(tmp_path_factory):
    "A tiny TimeSformer and a tiny AST with their heads, in folders as they are published."
    root, T = tmp_path_factory.mktemp('senses'), transformers
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3, initializer_range=.2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        film = T.TimesformerForVideoClassification(T.TimesformerConfig(image_size=32, patch_size=8, num_frames=4, **small)).eval()
        ear = T.ASTForAudioClassification(T.ASTConfig(num_mel_bins=32, max_length=100, frequency_stride=8, time_stride=10, **small)).eval()
        for p in [*film.parameters(), *ear.parameters()]: p.data += .1*torch.randn_like(p)
    film.save_pretrained(root/'film'); ear.save_pretrained(root/'ear')
    (root/'film'/'preprocessor_config.json').write_text(json.dumps(dict(crop_size=dict(height=32, width=32), do_center_crop=True, do_normalize=True, do_rescale=True, do_resize=True, feature_extractor_type='VideoMAEFeatureExtractor',
        image_mean=[.45]*3, image_processor_type='VideoMAEImageProcessor', image_std=[.225]*3, resample=2, size=dict(shortest_edge=32))))
    (root/'ear'/'preprocessor_config.json').write_text(json.dumps(dict(do_normalize=True, feature_extractor_type='ASTFeatureExtractor', feature_size=1, max_length=100, mean=-4.2677393, num_mel_bins=32, padding_side='right',
        padding_value=0., return_attention_mask=False, sampling_rate=16000, std=4.5689974)))
    return SimpleNamespace(root=root, film=film.timesformer, ear=ear.audio_spectrogram_transformer)

def noise(i, T=4): return [Image.fromarray(np.random.default_rng([i, t]).integers(0, 256, (40, 50, 3), dtype=np.uint8)) for t in range(T)]
def tone(i, n=16_000): return np.sin(np.arange(n)*(.1 + .05*i)).astype(np.float32)
def given(e, n=3): return [(noise if e.takes == 'clips' else tone)(i) for i in range(n)]

@pytest.mark.parametrize('name,takes,grid', [('film', 'clips', (4, 4, 4)), ('ear', 'sounds', (3, 9))])
def test_sense_from_folder(senses, name, takes, grid, no_network):
    before = torch.get_rng_state()
    e = cpu(load_encoder, senses.root/name)
    assert torch.equal(before, torch.get_rng_state()) and not no_network and is_frozen(e.model) and e.fingerprint == fingerprint(e.model)
    assert (e.takes, e.grid, e.k, e.width) == (takes, grid, int(np.prod(grid)), 16) and (e.frames, e.rate) == ((4, None) if takes == 'clips' else (None, 16_000))
    x = e.preprocess(given(e))
    assert x.shape == (3, *e.shape) and x.dtype == torch.float32 and torch.equal(x, e.preprocess(given(e)))
    with torch.no_grad(): whole = (senses.film(x) if takes == 'clips' else senses.ear(x)).last_hidden_state
    want = whole[:, 1:].view(3, 16, 4, 16).transpose(1, 2).flatten(1, 2) if takes == 'clips' else whole[:, 2:]
    assert torch.allclose(e.encode(x), want, atol=1e-5) and torch.allclose(e.encode(x)[1:2], e.encode(x[1:2]), atol=1e-5)
    assert torch.equal(e.preprocess(given(e)[0]), x[:1])                                         # a single one
    random, again = (cpu(load_encoder, f'{senses.root/name}-random') for _ in range(2))
    assert random.fingerprint == again.fingerprint != e.fingerprint and random.preprocessing == e.preprocessing and (random.k, random.takes) == (e.k, takes)
    half = cpu(load_encoder, senses.root/name, dtype='bf16').encode(x)
    assert half.dtype == torch.bfloat16 and (half.float() - want).norm() < .1*want.norm()
    assert cpu(load_encoder, senses.root/name, tokens='cls').encode(x).shape == cpu(load_encoder, senses.root/name, tokens='pooled').encode(x).shape == (3, 1, 16)

def test_tokens_of_a_clip_lie_frame_by_frame(senses):
    e = cpu(load_encoder, senses.root/'film')
    x = torch.zeros(65, *e.shape)
    for i in range(64): x[i + 1, i//16, :, 8*(i%16//4):8*(i%16//4) + 8, 8*(i%4):8*(i%4) + 8] = 5.
    y = e.encode(x)
    assert sum(int((y[i + 1] - y[0]).norm(dim=-1).argmax()) == i for i in range(64)) > 55        # attention mixes some; another order would hit a few

def test_pooled_at_the_door(senses):
    film, ear = (cpu(load_encoder, senses.root/name) for name in ('film', 'ear'))
    for e, name, k, grid in ((film, 'film', 16, (4, 2, 2)), (film, 'film', (2, 1, 2), (2, 1, 2)), (ear, 'ear', 9, (3, 3)), (ear, 'ear', (1, 9), (1, 9))):
        p, x = cpu(load_encoder, senses.root/name, k=k), e.preprocess(given(e))
        assert (p.grid, p.k) == (grid, int(np.prod(grid))) and p.fingerprint == e.fingerprint and p.preprocessing != e.preprocessing
        assert torch.allclose(p.encode(x), pool_tokens(e.encode(x), k, e.grid)) and torch.allclose(p.encode(x).mean(1), e.encode(x).mean(1), atol=1e-5)
    refused(lambda: cpu(load_encoder, senses.root/'film', k=10), 'film', '4 times a square number')
    refused(lambda: cpu(load_encoder, senses.root/'ear', k=(4, 4)), 'ear', 'none larger')

def test_senses_refuse(senses, folders, tmp_path):
    film, ear, eye = cpu(load_encoder, senses.root/'film'), cpu(load_encoder, senses.root/'ear'), cpu(load_encoder, folders.root/'beit')
    refused(lambda: film.preprocess([noise(0, 5)]), '5 frames', 'takes 4')
    refused(lambda: film.preprocess([[]]), '0 frames'); refused(lambda: film.preprocess([]), 'no clips'); refused(lambda: ear.preprocess([]), 'no sounds')
    refused(lambda: film.preprocess([tone(0)]), 'a clip is a list of 4 images'); refused(lambda: film.preprocess([['a.png']*4]), 'open_image')
    refused(lambda: film.preprocess([noise(0)], rate=16_000), 'no rate')
    for rate in (8000, 44_100): refused(lambda: ear.preprocess([tone(0)], rate=rate), rate, 'takes 16000')
    for wrong, says in ((tone(0)[:0], 'empty'), (tone(0)*np.nan, 'NaN'), (np.stack([tone(0)]*2), 'one channel'), ((tone(0)*9999).astype(np.int16), 'int16'), (tone(0)[:100], 'transform cannot take')): refused(lambda: ear.preprocess([wrong]), ear.name, says)
    assert ear.preprocess([tone(0, 3000)], rate=16_000).shape == ear.preprocess([tone(0, 90_000)]).shape                 # shorter and longer than the model's hundred windows
    refused(lambda: eye.preprocess([noise(0)]), 'list is not an image'); refused(lambda: film.encode(torch.zeros(1, 3, 32, 32)), '(B, 4, 3, 32, 32)'); refused(lambda: ear.encode(torch.zeros(1, 100, 31)), '(B, 100, 32)')
    refused(lambda: ear.encode(ear.preprocess([tone(0)])*np.nan), 'look at the sounds')
    for name, change in (('film', dict(size=dict(shortest_edge=64), crop_size=dict(height=64, width=64))), ('ear', dict(max_length=80))):
        folder = Path(shutil.copytree(senses.root/name, tmp_path/name))
        settings = json.loads((folder/'preprocessor_config.json').read_text())
        (folder/'preprocessor_config.json').write_text(json.dumps(settings | change))
        refused(lambda: cpu(load_encoder, folder), 'takes 32 x 32' if name == 'film' else 'does not take')
        (folder/'preprocessor_config.json').unlink()
        refused(lambda: cpu(load_encoder, folder), folder, 'image processor' if name == 'film' else 'feature extractor')

@pytest.mark.parametrize('name,key', [('film', 'timesformer.encoder.layer.1.temporal_dense.weight'), ('ear', 'audio_spectrogram_transformer.embeddings.cls_token')])
def test_senses_wrong_weights(senses, tmp_path, name, key):
    folder = Path(shutil.copytree(senses.root/name, tmp_path/name))
    weights = load_file(folder/'model.safetensors')
    save_file({k: v for k, v in weights.items() if k != key}, folder/'model.safetensors', {'format': 'pt'})
    refused(lambda: cpu(load_encoder, folder), folder, key.split('.', 1)[1], 'missing')

@pytest.mark.parametrize('name', ['film', 'ear'])
def test_features_of_clips_and_sounds_are_kept(senses, tmp_path, name):
    from frozen_nb.core.stores import FeatureStore, encode_images
    e, store, asked = cpu(load_encoder, senses.root/name), FeatureStore(tmp_path), []
    def make(i):
        asked.append(i)
        return given(e, 5)[i]
    names = [f'{name} {i}' for i in range(5)]
    first, again = (encode_images(e, make, names, store, progress=False) for _ in range(2))
    assert sorted(asked) == list(range(5)) and torch.equal(first[:], again[:]) and torch.allclose(first[:], e.encode(e.preprocess(given(e, 5))), atol=1e-5)

# CLIP in two libraries

@pytest.mark.parametrize('fast', [False, True])
def test_clip_vision_model(tmp_path, fast):
    visual = save_open_clip(tmp_path/'clip', dict(layers=3, width=48, head_width=16, patch_size=8, image_size=32, mlp_ratio=3.), quick_gelu=fast)
    e = cpu(load_encoder, tmp_path/'clip')
    twin = clip_vision_model(e)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad(): out = twin(pixel_values=x)
    assert is_frozen(twin) and twin.config.hidden_act == ('quick_gelu' if fast else 'gelu')
    assert (out.last_hidden_state[:, 1:] - e.encode(x)).abs().max() < 1e-5
    with torch.no_grad(): assert (out.pooler_output @ visual.proj - visual(x)).abs().max() < 1e-5
    wrong = dict(gelu='quick_gelu', quick_gelu='gelu')[twin.config.hidden_act]
    for layer in twin.encoder.layers: layer.mlp.activation_fn = transformers.activations.ACT2FN[wrong]
    with torch.no_grad(): assert (twin(pixel_values=x).last_hidden_state[:, 1:] - e.encode(x)).abs().max() > 1e-4

def test_clip_vision_model_refuses(folders):
    refused(lambda: clip_vision_model(cpu(load_encoder, folders.root/'clip_rn')), 'ModifiedResNet')
    odd = open_clip.CLIP(embed_dim=8, vision_cfg=dict(layers=1, width=16, head_width=8, patch_size=8, image_size=16, ls_init_value=.1), text_cfg=dict(context_length=4, vocab_size=8, width=8, heads=1, layers=1))
    refused(lambda: clip_vision_model(odd.visual), 'layer scale')

# Images

def fractions(image): return np.asarray(image).astype(float)/255

def test_image_modes(tmp_path):
    ramp = np.linspace(0, 255, 32).round().astype(np.uint8)[None].repeat(8, 0)
    gray, rgb = Image.fromarray(ramp), Image.fromarray(np.stack([ramp, ramp[:, ::-1], ramp], -1))
    files = {'gray.png': gray, 'rgb.png': rgb, 'bits.png': gray.convert('1'), 'palette.png': rgb.quantize(64), 'cmyk.jpg': rgb.convert('CMYK'), 'cmyk.tif': rgb.convert('CMYK'),
             'one.png': Image.new('RGB', (1, 1), 'red'), 'la.png': gray.convert('LA'), 'lab.tif': rgb.convert('LAB'), 'frames.gif': gray, 'ycc.jpg': rgb.convert('YCbCr')}
    for name, image in files.items():
        image.save(tmp_path/name)
        found = open_image(tmp_path/name)
        assert found.mode == 'RGB' and found.size == image.size, name
    for name in ('gray.png', 'la.png', 'frames.gif'): assert np.array_equal(np.asarray(open_image(tmp_path/name))[..., 0], ramp), name
    assert np.array_equal(np.asarray(open_image(tmp_path/'rgb.png')), np.asarray(rgb))
    assert np.abs(fractions(open_image(tmp_path/'cmyk.tif')) - fractions(rgb)).mean() < .02

def test_sixteen_bits(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path/'deep.png')
    Image.fromarray(ramp).save(tmp_path/'deep.tif')
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path/'int.tif')
    for name in ('deep.png', 'deep.tif', 'int.tif'): assert np.asarray(open_image(tmp_path/name))[0, :, 2].tolist() == list(range(256)), name
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path/'float.tif')
    refused(lambda: open_image(tmp_path/'float.tif'), 'float.tif', 'floating-point')

def test_transparency(tmp_path):
    glass = Image.new('RGBA', (4, 4), (255, 0, 0, 0))
    glass.putpixel((0, 0), (0, 0, 255, 255))
    glass.save(tmp_path/'rgba.png')
    palette = Image.new('P', (4, 4), 1)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path/'p.png', transparency=1)
    palette.save(tmp_path/'p.gif', transparency=1)
    Image.new('L', (4, 4), 7).save(tmp_path/'l.png', transparency=7)
    for name in ('rgba.png', 'p.png', 'p.gif', 'l.png'): assert open_image(tmp_path/name).getpixel((2, 2)) == (255, 255, 255), name
    for name in ('rgba.png', 'p.png', 'p.gif'): assert open_image(tmp_path/name).getpixel((0, 0)) == (0, 0, 255), name

@pytest.mark.parametrize('turn', range(1, 9))
def test_exif(tmp_path, turn):
    image = Image.new('RGB', (30, 20), 'white')
    image.paste('black', (0, 0, 8, 8))  # top left as stored
    exif = image.getexif()
    exif[0x0112] = turn
    image.save(tmp_path/'turned.png', exif=exif)
    found = open_image(tmp_path/'turned.png')
    w, h = found.size
    corners = [found.getpixel(at) == (0, 0, 0) for at in ((1, 1), (w - 2, 1), (w - 2, h - 2), (1, h - 2))]
    assert (w, h) == ((30, 20) if turn < 5 else (20, 30)) and corners.index(True) == {1: 0, 2: 1, 3: 2, 4: 3, 5: 0, 6: 1, 7: 2, 8: 3}[turn]

def test_bad_images(tmp_path, monkeypatch):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for end in ('png', 'jpg', 'gif', 'tif', 'bmp', 'webp'):
        noise.save(tmp_path/f'whole.{end}')
        (tmp_path/f'cut.{end}').write_bytes((tmp_path/f'whole.{end}').read_bytes()[:1000])
        refused(lambda: open_image(tmp_path/f'cut.{end}'), tmp_path/f'cut.{end}')
    (tmp_path/'text.png').write_text('a red hippo')
    (tmp_path/'empty.png').write_bytes(b'')
    refused(lambda: open_image(tmp_path/'text.png'), tmp_path/'text.png', 'not an image')
    refused(lambda: open_image(tmp_path/'empty.png'), tmp_path/'empty.png', 'empty')
    refused(lambda: open_image(tmp_path/'none.png'), tmp_path/'none.png', 'no such file')
    refused(lambda: open_image(tmp_path), tmp_path, 'folder')
    refused(lambda: open_image('x'*300))
    for limit in (3000, 1000):  # PIL warns above the limit and fails above twice the limit
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', limit)
        refused(lambda: open_image(tmp_path/'whole.png'), tmp_path/'whole.png', 'pixels')

def test_preprocess_takes_every_mode(folders):
    e = cpu(load_encoder, folders.root/'clip_vit')
    images = [Image.new(mode, (w, h)) for mode in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'I;16', 'I') for w, h in ((1, 1), (7, 90))]
    x = e.preprocess(images)
    assert x.shape == (len(images), 3, 32, 32) and e.encode(x).isfinite().all()

def test_squash_takes_the_whole_image(folders):
    "No crop: the left edge of a wide image is still there, in both libraries."
    wide = Image.new('RGB', (320, 32), 'white')
    wide.paste('black', (0, 0, 20, 32))
    for name in ('clip_vit', 'beit', 'hf_clip'):
        x = cpu(load_encoder, folders.root/name).preprocess(wide)[0]
        assert x[0, 16, 0] < x[0, 16, 16] - 1, name

# What ships

LOADERS = dict(lm=load_lm, seq2seq=load_seq2seq, encoder=load_encoder, lmm=load_lmm, sam=load_sam)

@pytest.mark.parametrize('name', [name for kind in LOADERS for name in shipped(kind)])
def test_shipped_models_match_their_cards(name):
    about = card(name)
    found = cpu(LOADERS[about['kind']], name)
    assert found.fingerprint == about['fingerprint'] and about['name'] == name and about['class'] == type(found.model).__name__
    assert {'parameters', 'data', 'steps', 'batch', 'seconds', 'seed', 'seen', 'never_seen', 'loss_curve', 'probes', 'licence', 'made_with'} <= {*about}

def test_table():
    table = zoo()
    assert list(table.index) == shipped() and {'kind', 'class', 'parameters', 'MB', 'trained on', 'not trained on', 'probes'} == {*table.columns}

# Real weights

def needs(*parts):
    path = real_path(*parts)
    return pytest.param(path, marks=[] if path else pytest.mark.skip(reason=f"not run: FROZEN_NB_REAL is unset or has no {'/'.join(parts)}"))

@pytest.mark.parametrize('folder', [needs('stories260k')])
def test_real_lm(folder):
    lm = cpu(load_lm, folder)
    ids = lm.model.generate(**lm.tokenizer('Once upon a time', return_tensors='pt'), max_new_tokens=30, do_sample=False)
    assert lm.tokenizer.decode(ids[0], skip_special_tokens=True).startswith('Once upon a time, there was a little girl named Lily.')

@pytest.mark.parametrize('folder', [needs('mobilenetv2_100')])
def test_real_encoder(folder):
    refused(lambda: cpu(load_encoder, folder), 'config=')
    config = dict(architecture='mobilenetv2_100', model_args=dict(num_classes=1001, pad_type='same'), pretrained_cfg=dict(input_size=(3, 224, 224), mean=(.5,)*3, std=(.5,)*3, num_classes=1001))
    e = cpu(load_encoder, folder, config=config)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    x = e.preprocess(image)
    inner = torch.from_numpy(np.asarray(image)[16:240, 16:240].copy()).permute(2, 0, 1)
    assert torch.allclose(x[0], inner/127.5 - 1, atol=1e-6)
    model = timm.create_model('mobilenetv2_100', num_classes=1001, pad_type='same').eval()
    model.load_state_dict(load_file(folder/'model.safetensors'))
    with torch.no_grad(): features = model.forward_features(x)
    assert features.shape == (1, 1280, 7, 7) and e.grid == (7, 7)
    assert torch.allclose(e.encode(x), features.flatten(2).transpose(1, 2), atol=1e-5)

@pytest.mark.parametrize('load, name', [(load_lm, 'gpt2'), (load_seq2seq, 't5-small')])
def test_a_hub_id_may_have_no_owner(load, name, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(BadInput, match=f'^{name}: not in the local cache'): load(name, device='cpu')
