"""What a user has in the folder that is given for a result: it stays, or the command is refused in one line before anything is trained."""
import json, os
from pathlib import Path

import pytest

from frozen_nb.core.frozen import BadInput
from frozen_nb.core.training import TrainConfig
from frozen_nb.core import training
from frozen_nb.flmm import FLMMFit, fit_grounding
from frozen_nb.generative_adapter import check_adapter_place, fit_texts, GeneratorFit
from frozen_nb.limber import fit_captions, LimberFit
from frozen_nb.lm4visual import fit_folder, LM4VisualFit
from frozen_nb.pinto import fit_questions, PintoFit
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
