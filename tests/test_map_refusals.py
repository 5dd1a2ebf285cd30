"LiMBeR's maps, captions and trainings refuse what cannot be meant, in one line, before anything is trained or replaced."
import json, os
from dataclasses import replace
from functools import cache

import numpy as np
import pytest, torch

from frozen_nb.core.folders import file_hash
from frozen_nb.core.frozen import BadInput
from frozen_nb.core.prefix import caption_nll, choose, generate, load_map, save_map, sequence, target_loss
from frozen_nb.core.scales import missing_here, read_scale
from frozen_nb.core.stores import FeatureStore
from frozen_nb.core.training import TrainConfig
from frozen_nb.core.zoo import load_encoder, load_lm
from frozen_nb.limber import Limber, fit_map, new_map

FEW, SAID = TrainConfig(2, 1e-2, optimizer='muon'), [f'a dog {i}' for i in range(12)]

@cache
def models(): return load_encoder('clip', device='cpu'), load_lm('llama', device='cpu')
@cache
def features():
    torch.manual_seed(0)
    return torch.randn(12, 16, 128)
@cache
def prefix(): return load_map('limber')(features()[:3])

def refused(call, *words):
    with pytest.raises(BadInput) as error: call()
    message = str(error.value)
    assert '\n' not in message and len(message) < 700 and all(str(word) in message for word in words), message

# --- nothing of a user's is replaced, nothing good by something that cannot be loaded

def test_a_file_of_somebody_else_in_a_map_s_folder_stays(tmp_path):
    save_map(load_map('limber'), tmp_path/'m')
    (tmp_path/'m'/'fit.json').write_text('my own notes')
    before = file_hash(tmp_path/'m'/'model.safetensors')
    refused(lambda: save_map(load_map('limber'), tmp_path/'m', {'fit.json': '{}'}), tmp_path/'m'/'fit.json', 'move it')
    assert (tmp_path/'m'/'fit.json').read_text() == 'my own notes' and file_hash(tmp_path/'m'/'model.safetensors') == before
    save_map(load_map('limber'), tmp_path/'m')
    save_map(load_map('limber'), tmp_path/'n', {'fit.json': '{}'})
    save_map(load_map('limber'), tmp_path/'n', {'fit.json': '{"steps": 2}'})     # a file of ours is

@pytest.mark.parametrize('spoil', [lambda m: m.linear.bias.data.fill_(float('nan')), lambda m: m.made_for.update(k=0), lambda m: m.made_for.update(prompt=['A']), lambda m: setattr(m, 'out_tokens', 0)])
def test_a_map_that_could_not_be_loaded_is_not_saved(tmp_path, spoil):
    encoder, lm = models()
    good, bad = (new_map(encoder, lm, features()) for _ in range(2))
    save_map(good, tmp_path/'m')
    spoil(bad)
    refused(lambda: save_map(bad, tmp_path/'m'), 'nothing was saved')
    assert torch.equal(load_map(tmp_path/'m').linear.weight, good.linear.weight)

def test_all_files_of_a_result_have_one_mode(tmp_path):
    old = os.umask(0o022)
    try: folder = save_map(load_map('limber'), tmp_path/'m')
    finally: os.umask(old)
    assert {oct(p.stat().st_mode & 0o777) for p in folder.iterdir() if not p.name.startswith('.')} == {'0o644'}

@pytest.mark.skipif(os.name != 'posix', reason='names are bytes there')
def test_a_folder_whose_name_is_not_utf8_is_read_as_it_was_written(tmp_path):
    folder = tmp_path/os.fsdecode(b'oo\xff')
    save_map(load_map('limber'), folder)
    assert torch.equal(load_map(folder).linear.weight, load_map('limber').linear.weight)

# --- a run is what its settings say

@pytest.mark.parametrize('option', ['dropout', 'feature_dropout'])
def test_a_run_with_another_dropout_is_another_run(tmp_path, option):
    encoder, lm = models()
    fit_map(encoder, lm, features(), SAID, FEW, folder=tmp_path/'f')
    refused(lambda: fit_map(encoder, lm, features(), SAID, FEW, folder=tmp_path/'f', **{option: .5}), 'name another folder')

@pytest.mark.parametrize('said, words', [(['extra', *SAID], '13 images'), (SAID[:-1], '11 images'), ([[]]*12, 'no caption'), (None, ''), (3*['a'], '3 images')])
def test_there_is_a_caption_for_each_image(said, words):
    encoder, lm = models()
    refused(lambda: fit_map(encoder, lm, features(), said, FEW), words)
    if said: refused(lambda: caption_nll(lm, load_map('limber'), features(), 'A picture of', [[s] if isinstance(s, str) else s for s in said]), words)

@pytest.mark.parametrize('x', [torch.zeros(0, 16, 128), torch.zeros(4, 128), torch.zeros(12, 16, 64), torch.full((12, 16, 128), float('nan')), np.zeros((12, 16, 128)), None, torch.zeros(12, 16, 0)])
def test_features_that_are_none_are_refused(x):
    encoder, lm = models()
    refused(lambda: fit_map(encoder, lm, x, SAID, FEW), 'features')

def test_one_image_with_one_token_has_a_map():
    encoder, lm = models()
    assert new_map(encoder, lm, features()[:1, :1]).std.isfinite().all()

def test_features_with_a_history_are_trained_on_as_they_are():
    encoder, lm = models()
    _, history = fit_map(encoder, lm, features().clone().requires_grad_(), SAID, FEW)
    assert history.losses == fit_map(encoder, lm, features(), SAID, FEW)[1].losses

@pytest.mark.parametrize('options', [dict(batch_size=0), dict(batch_size=-1), dict(batch_size=None), dict(batch_size=1.5), dict(out_tokens=0), dict(out_tokens=1.5), dict(dropout=1.), dict(dropout=float('nan')), dict(dropout='x'), dict(feature_dropout=-1), dict(bias_rate=None), dict(bias_rate=0), dict(bias_rate=float('inf'))])
def test_settings_that_cannot_be_meant_are_refused(options):
    encoder, lm = models()
    refused(lambda: fit_map(encoder, lm, features(), SAID, FEW, **options), min(options))

@pytest.mark.parametrize('field, values', [('clip', (-1, float('nan'))), ('steps', (float('inf'), float('nan'), 2.5, -1)), ('lr', (float('nan'), -1, float('inf'), None)), ('weight_decay', (float('nan'), -1)), ('betas', ((2, 3), .9, (.9,), ('a', 'b'))), ('seed', (-1, 2**33, None, 'a', 1.5)), ('accumulate', (0, 1.5)), ('checkpoint_every', ('x', -1)), ('warmup', (-1, .5)), ('min_lr', (float('nan'), -1))])
def test_numbers_of_a_training_are_counts_and_amounts(field, values):
    for value in values: refused(lambda: replace(TrainConfig(2), **{field: value}), f'{field}=')
    assert TrainConfig(np.int64(2), np.float32(.5), betas=[.9, .95], seed=np.int64(3)).steps == 2

# --- sequences

def test_embeddings_of_another_width_or_shape_are_refused():
    _, lm = models()
    x = prefix()
    for bad in (torch.cat([x, x], -1), x[..., :96], x[None, None], x[0], x.detach().numpy(), [x]):
        refused(lambda: generate(lm, bad, 'A picture of', 2), lm.name, lm.width)

def test_models_that_a_map_was_not_made_for_are_refused():
    encoder, lm = models()
    linear_map = load_map('limber')
    refused(lambda: Limber(load_encoder('beit', device='cpu'), linear_map, lm), 'made for the encoder')
    refused(lambda: Limber(encoder, linear_map, load_lm('opt', device='cpu')), 'made for the lm')
    unnamed = new_map(encoder, lm, features()[..., :128])
    unnamed.made_for.clear()
    assert Limber(encoder, unnamed, lm)
    refused(lambda: Limber(load_encoder('nfnet', device='cpu'), unnamed, lm), 'features of width 128')

def test_prompts_and_batches_are_counted_first():
    _, lm = models()
    x = prefix()
    for n in (2, 4, 130): refused(lambda: generate(lm, x, ['A']*n, 1, batch_size=1), f'{n} prompts')
    for size in (0, -1, None, 1.5): refused(lambda: generate(lm, x, 'A', 1, batch_size=size), 'batch_size')
    assert generate(lm, x[:0], 'A', 1) == [] and choose(lm, x[:0], 'A', ['a', 'b']).shape == (0, 2)

def test_rows_without_a_token_are_refused():
    _, lm = models()
    x = prefix()
    refused(lambda: generate(lm, None, '', 1), 'prompt')
    refused(lambda: generate(lm, x[:, :0], '', 1), 'prompt')
    refused(lambda: sequence(lm, x, 'A', padding='middle'), 'padding')
    refused(lambda: choose(lm, x, 'A', ['', 'b'], end=False), 'target')
    refused(lambda: target_loss(lm, sequence(lm, x, 'A')), 'target')

# --- ways out that are there

def test_what_a_scale_lacks_is_said_before_anything_runs(tmp_path, monkeypatch, shell):
    (tmp_path/'empty').mkdir()
    monkeypatch.setenv('FROZEN_NB_REAL', str(tmp_path/'empty'))
    monkeypatch.chdir(tmp_path)
    lacking = missing_here(read_scale('limber', 'real'))
    assert any('flickr8k' in what for what in lacking) and not any('captions: none' in what for what in lacking)
    said = shell('reproduce', 'limber', '--scale', 'real')
    assert said.status == 2 and said.err.count('\n') == 1 and 'flickr8k' in said.err and not (tmp_path/'_out').exists()
    assert 'missing here: the data flickr8k' in shell('reproduce', 'limber', '--scale', 'real', '--dry-run').out

def test_a_number_format_that_is_unknown_is_not_the_map_s_fault(shell, tmp_path):
    from PIL import Image
    Image.new('RGB', (32, 32)).save(tmp_path/'a.png')
    said = shell('caption', str(tmp_path/'a.png'), '--dtype', 'int8')
    assert said.status == 2 and 'int8' in said.err and 'made for' not in said.err

def test_a_cache_that_cannot_be_used_has_a_name(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'file'))
    refused(lambda: FeatureStore().features(dict(fingerprint='a'), ['x'], lambda i: torch.zeros(1, 2)), 'FROZEN_NB_CACHE')

def test_a_configuration_with_a_name_of_python_s_is_no_map(tmp_path):
    folder = save_map(load_map('limber'), tmp_path/'m')
    (folder/'sha256.json').unlink()
    config = json.loads((folder/'config.json').read_text())
    (folder/'config.json').write_text(json.dumps(config | {'self': 1}))
    refused(lambda: load_map(folder), 'not of a map')
