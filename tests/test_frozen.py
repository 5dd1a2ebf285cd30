"What the notebook of `frozen` cannot show in one process on one machine."
import fcntl, os, pty, shutil, struct, subprocess, sys, termios
from pathlib import Path

import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

import frozen_nb
from frozen_nb.core.frozen import *

package = Path(frozen_nb.__file__).parent

def python(code, cwd=None, **env):
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | dict(PYTHONPATH=str(package.parent), OMP_NUM_THREADS='1') | env
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=env, cwd=cwd).stdout.strip()

@pytest.fixture(scope='module')
def llama():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True))

def test_fingerprint_of_a_language_model(llama, tmp_path):
    names = tensor_hashes(llama)
    assert names['lm_head.weight'] == names['model.embed_tokens.weight']
    assert 'model.rotary_emb.inv_freq' in names and 'model.rotary_emb.inv_freq' not in llama.state_dict()
    llama.save_pretrained(tmp_path)
    assert fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)) == fingerprint(llama)

def test_frozen_language_model_computes_the_same_and_learns_nothing(llama):
    ids = torch.arange(8)[None]
    free = llama.eval()(ids).logits
    freeze(llama)
    parent = nn.ModuleDict(dict(lm=llama, map=nn.Linear(4, 16))).train()
    with guard(llama):
        embeds = llama.get_input_embeddings()(ids) + parent['map'](torch.ones(4))
        llama(inputs_embeds=embeds).logits.sum().backward()
    assert torch.equal(llama(ids).logits, free)
    assert parent['map'].weight.grad.abs().sum() > 0 and all(p.grad is None for p in llama.parameters())
    unfreeze(llama)
    assert trainable_parameters(llama) == sum(p.numel() for p in llama.parameters())

@settings(max_examples=30, deadline=None)
@given(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64]),
       st.lists(st.integers(0, 3), max_size=3), st.booleans())
def test_fingerprint_depends_on_values_and_not_on_strides(dtype, shape, flip):
    values = torch.randint(0, 2, shape).to(dtype)
    m, same, other = nn.Module(), nn.Module(), nn.Module()
    m.register_buffer('t', values)
    same.register_buffer('t', values.mT.contiguous().mT if flip and values.ndim > 1 else values.clone())
    assert fingerprint(m) == fingerprint(same)
    if not values.numel(): return
    changed = values.clone()
    changed.view(-1)[0] = 1 - changed.view(-1)[0].to(torch.int) if dtype == torch.bool else changed.view(-1)[0] + 1
    other.register_buffer('t', changed)
    assert fingerprint(m) != fingerprint(other)

def test_fingerprint_in_other_processes():
    code = 'import torch; from frozen_nb.core.frozen import *; seed_everything(3); print(fingerprint(torch.nn.LSTM(3, 4)))'
    seed_everything(3)
    here = fingerprint(nn.LSTM(3, 4))
    assert python(code, PYTHONHASHSEED='1') == python(code, PYTHONHASHSEED='2') == here

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_fingerprint_on_cuda():
    m = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).bfloat16()
    assert fingerprint(m) == fingerprint(m.cuda())

def test_light_import():
    loaded = python("import sys, torch, time; t = time.time(); import frozen_nb.core.frozen; print(time.time() - t < 2, 'transformers' in sys.modules, 'matplotlib' in sys.modules)")
    assert loaded == 'True False False'

def test_data_lies_inside_an_installed_package_and_beside_a_checkout(tmp_path):
    code = 'from frozen_nb.core.frozen import *; print(data_path("zoo"), notebooks_path("core", "00_frozen.ipynb"))'
    shutil.copytree(package, tmp_path/'frozen_nb', ignore=shutil.ignore_patterns('__pycache__', 'data', 'nbs'))
    assert python(code, cwd=tmp_path, PYTHONPATH=str(tmp_path)) == f"{tmp_path/'data'/'zoo'} {tmp_path/'nbs'/'core'/'00_frozen.ipynb'}"
    for folder in ('data', 'nbs'): (tmp_path/'frozen_nb'/folder).mkdir()
    assert python(code, cwd=tmp_path, PYTHONPATH=str(tmp_path)) == f"{tmp_path/'frozen_nb'/'data'/'zoo'} {tmp_path/'frozen_nb'/'nbs'/'core'/'00_frozen.ipynb'}"

def bar_on_a_terminal(**env):
    "What a bar writes when stderr is a terminal."
    code = "from frozen_nb.core.frozen import progress_bar\nwith progress_bar(10, 'training', initial=4) as bar:\n    bar.update(6)\n    bar.set_postfix_str('loss 0.693')"
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 100, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'FROZEN_NB_PROGRESS')} | dict(PYTHONPATH=str(package.parent)) | env
    child = subprocess.Popen([sys.executable, '-c', code], stderr=follower, env=env)
    child.wait()
    os.close(follower)
    try: return os.read(leader, 10_000).decode()
    except OSError: return ''
    finally: os.close(leader)

def test_progress_is_for_terminals():
    shown = bar_on_a_terminal()
    assert 'training' in shown and '10/10' in shown and 'loss 0.693' in shown
    assert bar_on_a_terminal(FROZEN_NB_PROGRESS='0') == '' and bar_on_a_terminal(IN_TEST='1') == ''
    assert progress_bar(3, show=False).disable and not progress_bar(3).disable
