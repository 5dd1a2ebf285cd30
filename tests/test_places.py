"""What a user has in the folder that is given for a result: it stays, or the command is refused in one line before anything is trained."""
import json, os, subprocess, sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from frozen_nb.core.frozen import BadInput
from frozen_nb.core.training import TrainConfig
from frozen_nb.core import training
from frozen_nb.fits.flmm import FLMMFit, fit_grounding
from frozen_nb.core.adapted import check_adapter_place
from frozen_nb.fits.generative_adapter import fit_texts, GeneratorFit
from frozen_nb.fits.limber import fit_captions, LimberFit
from frozen_nb.fits.lm4visual import fit_folder, LM4VisualFit
from frozen_nb.fits.pinto import fit_questions, PintoFit
from frozen_nb.pretraining.recipes import pretrain

def contents(folder): return {p.relative_to(folder): p.read_bytes() for p in folder.rglob('*') if p.is_file()}

WRITERS = dict(
    limber=lambda out: fit_captions(LimberFit(data=Path('d.jsonl'), out=out)), flmm=lambda out: fit_grounding(FLMMFit(data=Path('d.json'), images=Path('i'), out=out)),
    lm4visual=lambda out: fit_folder(LM4VisualFit(data=Path('d'), out=out)), generator=lambda out: fit_texts(GeneratorFit(data=Path('d'), out=out)),
    pinto=lambda out: fit_questions(PintoFit(data=Path('d.jsonl'), out=out)), adapter=check_adapter_place, pretrain=lambda out: pretrain('ast', out, 1, 8))

def refused(call, out, *words):
    with pytest.raises(BadInput) as error: call(out)
    message = str(error.value)
    assert '\n' not in message and message.startswith(str(out)) and all(word in message for word in words), message

@pytest.mark.parametrize('writer', WRITERS)
def test_places_that_hold_something_else(tmp_path, monkeypatch, writer):
    "A language model, another program's LoRA, photos; a file, a link to nothing, and a place where nobody can write."
    monkeypatch.chdir(tmp_path)
    files = {'model/config.json': '{"model_type": "llama", "hidden_size": 8}', 'model/model.safetensors': 'weights', 'lora/adapter_config.json': '{"r": 8}', 'lora/adapter_model.safetensors': 'weights', 'photos/a.png': 'a', 'file': 'text'}
    for name, text in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    Path('link').symlink_to('gone')
    before, call = contents(tmp_path), WRITERS[writer]
    for place in ('model', 'lora', 'photos'): refused(call, tmp_path/place, 'holds something else than a')
    for place in ('file', 'file/deeper'): refused(call, tmp_path/place, 'a file where a folder has to be')
    refused(call, tmp_path/'link', 'a link to nothing')
    if Path('/proc/self').exists(): refused(call, Path('/proc/x'), 'cannot be written to')
    assert contents(tmp_path) == before and sorted(os.listdir()) == ['file', 'link', 'lora', 'model', 'photos']

def test_checkpoints_of_others_beside_a_result(tmp_path, monkeypatch):
    "`checkpoints` and `step-1000` in the folder of a result are not touched by a fit."
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'cache'))
    rows = [dict(question=f'which animal is number {i}?', choices=['a fox', 'a goat'], answer=i % 2, rationales=['it is red', 'it climbs']) for i in range(20)]
    (tmp_path/'q.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    mine = tmp_path/'out'/'checkpoints'
    for name in ('step-1000', 'step-00000002'):
        (mine/name).mkdir(parents=True)
        (mine/name/'weights.bin').write_text('a week of training')
    before = contents(mine)
    fit = PintoFit(data=tmp_path/'q.jsonl', out=tmp_path/'out', own=True, steps=2, batch=4, device='cpu')
    fit_questions(fit)
    assert contents(mine) == before and (tmp_path/'out'/'pinto.json').is_file()
    assert not list((tmp_path/'cache').rglob('step-*'))   # its own are gone

CHANGES = dict(data=None, weight=0., batch=5, length=64, tokens=47, prompt='csqa')

@pytest.mark.parametrize('change', CHANGES)
def test_a_fit_does_not_go_on_with_the_run_of_another(tmp_path, monkeypatch, change):
    "A fit that was stopped leaves a checkpoint; one with other data, weight, batch, length or prompt starts at the beginning."
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'cache'))
    def write(shift):
        rows = [dict(question=f'which animal is number {i}?', choices=['a fox', 'a goat'], answer=(i + shift) % 2, rationales=['it is red', 'it climbs']) for i in range(20)]
        (tmp_path/'q.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    monkeypatch.setattr(PintoFit, 'train_config', property(lambda fit: TrainConfig(3, checkpoint_every=1)))
    steps, step = [], training._Run.step
    def counted(self, *args):
        steps.append(self.history.steps)
        if stop and len(steps) == 3: raise KeyboardInterrupt
        return step(self, *args)
    monkeypatch.setattr(training._Run, 'step', counted)
    def fit(**options): return fit_questions(PintoFit(**dict(data=tmp_path/'q.jsonl', out=tmp_path/'out', own=True, batch=4, device='cpu') | options))
    write(0)
    stop = True
    with pytest.raises(KeyboardInterrupt): fit()
    stop = False
    steps.clear()
    if change == 'data': write(1)
    fit(**({} if change == 'data' else {change: CHANGES[change]}))
    assert steps == [0, 1, 2]
    steps.clear()
    write(0)
    fit()
    assert steps == [2]   # the run that was stopped is still there

# Results of two at once, and files that a user wrote

def test_a_result_that_another_process_wrote_meanwhile_is_kept(tmp_path):
    "Two fits with one place: the second to end is refused; one after the other replaces its own."
    from frozen_nb.core.folders import check_place, holds_result, write_folder
    def save(seed): return write_folder(tmp_path/'g', dict(w=torch.full((2,), float(seed))), dict(seed=seed))
    def other(seed):
        code = f'from frozen_nb.core.folders import write_folder; import torch; write_folder({str(tmp_path/"g")!r}, dict(w=torch.full((2,), {seed}.)), dict(seed={seed}))'
        subprocess.run([sys.executable, '-c', code], check=True)
    check_place(tmp_path/'g', 'a result', holds_result)
    other(1)                                            # it was not there at the start
    before = contents(tmp_path)
    with pytest.raises(BadInput, match='another process has written') as error: save(2)
    assert '\n' not in str(error.value) and contents(tmp_path) == before
    for seed in (2, 3):                                  # begun when a result was there: it may be replaced
        check_place(tmp_path/'g', 'a result', holds_result)
        save(seed)
    check_place(tmp_path/'g', 'a result', holds_result)
    other(4)
    with pytest.raises(BadInput, match='another process has written'): save(5)
    assert json.loads((tmp_path/'g'/'config.json').read_text())['seed'] == 4

def png(path): Image.new('RGB', (8, 8), 'blue').save(path)

def test_align_writes_over_no_file_of_others(tmp_path, shell):
    for i in range(2): png(tmp_path/f'{i}.png')
    before = contents(tmp_path)
    (tmp_path/'link.png').symlink_to(tmp_path/'gone.png')
    for name in ('0.png', 'link.png'):
        said = shell('align', tmp_path, '--out', tmp_path/name, '--lm', 'nowhere')
        assert said.status == 2 and said.err.count('\n') == 1 and 'align would replace it' in said.err
    assert contents(tmp_path) == before and (tmp_path/'link.png').is_symlink()
    (tmp_path/'link.png').unlink()
    from frozen_nb import cli
    import matplotlib.pyplot as plt
    from functools import partial
    cli._write_png(partial(plt.figure().savefig, metadata=dict(Software='frozen-nb align')), tmp_path/'mine.png')
    assert 'nowhere' in shell('align', tmp_path, '--out', tmp_path/'mine.png', '--lm', 'nowhere').err   # its own is replaced

def test_the_page_of_claims_replaces_no_notes(tmp_path, shell):
    notes = tmp_path/'notes.md'
    notes.write_text('# Claims\n\nwhat I want to claim')
    (tmp_path/'link.md').symlink_to(notes)
    for name in ('notes.md', 'link.md', '.'):
        said = shell('claims', '--records', tmp_path/'nowhere', '--markdown', tmp_path/name)
        assert said.status == 2 and said.err.count('\n') == 1 and str(tmp_path) in said.err and 'nowhere' not in said.err
    assert notes.read_text().endswith('claim') and (tmp_path/'link.md').is_symlink()
    for _ in range(2): assert shell('claims', '--markdown', tmp_path/'page.md').status == 0     # its own is replaced

@pytest.mark.parametrize('name, text', [('report.html', '<html>mine</html>'), ('claims.json', '{"mine": 1}'), ('claims/mine.json', 'mine')])
def test_a_run_replaces_no_report_of_others(tmp_path, monkeypatch, shell, name, text):
    monkeypatch.chdir(tmp_path)
    path = tmp_path/'o'/name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    for dry in (['--dry-run'], []):
        said = shell('reproduce', 'limber', '--out', 'o', *dry)
        assert said.status == 2 and said.err.count('\n') == 1 and name in said.err and 'not of a run' in said.err
    assert contents(tmp_path) == {path.relative_to(tmp_path): text.encode()}

@pytest.mark.parametrize('name, text', [('limber.json', None), ('findings/limber.json', None), ('findings/limber.json', '[{"a": 1}]')])
def test_records_that_a_run_could_not_add_to_are_named_before_it(tmp_path, monkeypatch, shell, name, text):
    monkeypatch.chdir(tmp_path)
    path = tmp_path/'o'/'claims'/name
    path.parent.mkdir(parents=True)
    if text is None: path.mkdir()
    else: path.write_text(text)
    for dry in (['--dry-run'], []):
        said = shell('reproduce', 'limber', '--out', 'o', *dry)
        assert said.status == 2 and said.err.count('\n') == 1 and name in said.err and 'move' in said.err
    assert path.is_dir() if text is None else path.read_text() == text

def test_an_empty_list_among_the_records_stays(tmp_path):
    from frozen_nb import cli
    (tmp_path/'claims').mkdir()
    (tmp_path/'claims'/'mine.json').write_text('[]')
    assert cli._put_aside(tmp_path) == [] and cli._bring_back(tmp_path) == ([], [])
    assert (tmp_path/'claims'/'mine.json').read_text() == '[]'

def test_a_user_without_home_is_told_of_the_cache(monkeypatch):
    from frozen_nb.core.frozen import cache_path
    def no_home(self): raise RuntimeError('Could not determine home directory.')
    monkeypatch.delenv('FROZEN_NB_CACHE')
    monkeypatch.setattr(Path, 'expanduser', no_home)
    with pytest.raises(BadInput, match='FROZEN_NB_CACHE'): cache_path('zoo')

def test_make_room_is_said_of_a_full_disk_only(tmp_path, monkeypatch):
    from frozen_nb.core.folders import write_whole
    (tmp_path/'folder').mkdir()
    for place, reason in (('folder', 'directory'), ('x'*300, 'too long')):
        with pytest.raises(BadInput, match=reason) as error: write_whole(tmp_path/place, 'a')
        assert 'make room' not in str(error.value) and 'choose another place' in str(error.value)
    monkeypatch.setattr('os.fsync', lambda fd: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(BadInput, match='make room'): write_whole(tmp_path/'a', 'a')

@pytest.mark.parametrize('name', ['動'*80, 'é'*120, 'a'*250, 'name with  two spaces'])
def test_every_name_that_is_valid_can_be_written(name, tmp_path):
    "Up to 255 bytes: the hidden name beside it is no longer."
    from frozen_nb.core.folders import write_folder, write_whole
    (tmp_path/'at').mkdir()
    write_whole(tmp_path/name, 'a')
    write_folder(tmp_path/'at'/name, dict(w=torch.zeros(1)), {})
    assert (tmp_path/name).read_text() == 'a' and sorted(os.listdir(tmp_path/'at'/name)) == ['config.json', 'model.safetensors', 'sha256.json']
    assert os.listdir(tmp_path/'at') == [name]

def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    "The user of the shell has not chosen the place of the checkpoints."
    from frozen_nb.core.training import train
    monkeypatch.setenv('FROZEN_NB_CACHE', str(tmp_path/'cache'))
    (tmp_path/'cache').mkdir(mode=0o700)
    (tmp_path/'cache'/'runs').write_text('in the way')
    layer = torch.nn.Linear(2, 1)
    def fit(folder): train(layer, lambda step: torch.ones(1, 2), lambda model, batch: model(batch).sum(), TrainConfig(1), folder=folder, inputs=('a',))
    with pytest.raises(BadInput, match='FROZEN_NB_CACHE') as error: fit(tmp_path/'cache'/'runs'/'a')
    assert 'choose another place' not in str(error.value)
    (tmp_path/'mine').write_text('in the way')
    with pytest.raises(BadInput, match='choose another place'): fit(tmp_path/'mine')
