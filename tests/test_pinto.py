"Rationales by every family, the store, what is read and scored, perturbation, and bad input."
import copy, json, multiprocessing, sqlite3, warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration

from frozen_nb import pinto
from frozen_nb.benchmarks.choice_tokens import *
from frozen_nb.core import prompts
from frozen_nb.benchmarks.choices import as_question, check_question, correct_choices, read_questions
from frozen_nb.core.generation import continuations
from frozen_nb.core.folders import SUMS
from frozen_nb.core.frozen import BadInput, fingerprint, freeze, tensor_hashes, unfreeze
from frozen_nb.world.multiple_choice import MCQ, mcq
from frozen_nb.core.prompts import *
from frozen_nb.fits.pinto_baselines import *
import frozen_nb.fits.pinto as fits
from frozen_nb.fits.pinto import PintoFit, fit_questions
from frozen_nb.pinto import *
from frozen_nb.core.training import TrainConfig
from frozen_nb.core.zoo import LM, Seq2Seq, load_lm, load_seq2seq, load_text_model, load_tokenizer

SIZES = dict(vocab_size=1408, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=256, pad_token_id=1, bos_token_id=0, eos_token_id=0)
FAMILIES = dict(llama=dict(num_key_value_heads=2), opt=dict(ffn_dim=64, word_embed_proj_dim=32), gpt2={}, gpt_neox={}, mistral=dict(num_key_value_heads=2), gptj=dict(rotary_dim=4), qwen2=dict(num_key_value_heads=2))
TOKENIZER, T5_TOKENIZER = load_tokenizer('llama'), load_tokenizer('t5')
PROMPT = Prompt('Question: what? Choices: fox, cow. Choice: fox. Thought: The fox runs.\n', 'Question: {question} Choices: {choices}. Choice: {choice}. Thought:', ('\n', '.'))

def make(family, seed=0):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES | FAMILIES[family])).double().eval()
    for p in model.parameters(): torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=.4)
    freeze(model)
    return LM(model, TOKENIZER, family, fingerprint(model))

def make_t5(kind='t5', dropout=0., seed=0):
    torch.manual_seed(seed)
    config, cls = dict(t5=(T5Config, T5ForConditionalGeneration), mt5=(MT5Config, MT5ForConditionalGeneration), v1_1=(T5Config, T5ForConditionalGeneration))[kind]
    model = cls(config(vocab_size=1472, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=dropout, pad_token_id=1, eos_token_id=0, decoder_start_token_id=1, **dict(feed_forward_proj='gated-gelu', tie_word_embeddings=False) if kind != 't5' else {}))
    freeze(model)
    return Seq2Seq(model, T5_TOKENIZER, kind, fingerprint(model))

@pytest.fixture(scope='module')
def t5(): return make_t5()

# Rationales

@pytest.mark.parametrize('family', FAMILIES)
def test_sharing_changes_no_word(family):
    lm = make(family); before = tensor_hashes(lm.model)
    rows = [PROMPT.ask(m, k) for m in (mcq(0, 'csqa'), mcq(1, 'qasc'), mcq(2, 'strategy')) for k in range(2)]
    shared = continuations(lm, PROMPT.examples, rows, ('\0',), 6)
    assert shared == continuations(lm, PROMPT.examples, rows, ('\0',), 6, shared=False) == continuations(lm, PROMPT.examples, rows, ('\0',), 6, batch_size=4)
    assert len(set(shared)) > 1 and tensor_hashes(lm.model) == before

def test_a_stop_string_ends_a_rationale():
    lm = load_lm('llama', device='cpu'); m = mcq(0, 'obqa')
    long = continuations(lm, read_prompt('obqa').examples, [read_prompt('obqa').ask(m, 0)], ('\0',), 30)[0]
    short = continuations(lm, read_prompt('obqa').examples, [read_prompt('obqa').ask(m, 0)], (':',), 30)[0]
    assert ':' in long and short == long.split(':')[0] and continuations(lm, 'x', [], ('\n',)) == []

def test_the_answer_has_no_way_in():
    lm = make('llama'); m = mcq(0, 'csqa')
    assert len({rationalize(lm, [replace(m, answer=a, rationales=('gold',)*5)], PROMPT, 6, store=False)[0] for a in (None, 0, 1, 2, 3, 4)}) == 1

def test_said_once(tmp_path, monkeypatch):
    lm, ms, calls, real = make('llama'), [mcq(i, 'strategy') for i in range(3)], [], prompts.continuations
    monkeypatch.setattr(prompts, 'continuations', lambda lm, prefix, rows, *a, **k: calls.extend(rows) or real(lm, prefix, rows, *a, **k))
    first = rationalize(lm, ms[:2], PROMPT, 6, store=tmp_path); n = len(calls)
    assert rationalize(lm, ms, PROMPT, 6, store=tmp_path)[:2] == first and len(calls) == n + 2 and len(set(calls)) == len(calls)
    rationalize(lm, ms, PROMPT, 7, store=tmp_path); rationalize(make('llama', 1), ms, PROMPT, 6, store=tmp_path); rationalize(lm, ms, replace(PROMPT, stop=('?',)), 6, store=tmp_path)
    assert len(calls) == n + 2 + 3*6 and len(list(tmp_path.glob('*.sqlite'))) == 4                                  # another length, model or prompt is another file

def test_a_kill_between_batches_loses_only_the_batch(tmp_path, monkeypatch):
    lm, ms, real = make('llama'), [mcq(i, 'csqa') for i in range(4)], prompts.continuations
    done = []
    def once(lm, prefix, rows, *a, **k):
        if done: raise KeyboardInterrupt
        done.extend(rows); return real(lm, prefix, rows, *a, **k)
    monkeypatch.setattr(prompts, 'continuations', once)
    with pytest.raises(KeyboardInterrupt): rationalize(lm, ms, PROMPT, 6, 2, store=tmp_path)
    assert len(rationale_store(lm, PROMPT, 6, tmp_path).get(done)) == len(done) == 8

def _write(folder, i):
    lm = type('lm', (), dict(fingerprint='x'))
    for k in range(20): rationale_store(lm, PROMPT, 6, folder).put({f'{i}/{k}': str(k), 'both': 'same'})

def test_several_processes_write_one_file(tmp_path):
    ps = [multiprocessing.get_context('spawn').Process(target=_write, args=(tmp_path, i)) for i in range(3)]
    for p in ps: p.start()
    for p in ps: p.join()
    assert [p.exitcode for p in ps] == [0]*3
    found = rationale_store(type('lm', (), dict(fingerprint='x')), PROMPT, 6, tmp_path).get([f'{i}/{k}' for i in range(3) for k in range(20)] + ['both', 'none'])
    assert len(found) == 61

def test_a_damaged_store_is_named(tmp_path):
    lm = make('llama'); kept = rationale_store(lm, PROMPT, 6, tmp_path); kept.path.write_bytes(b'nothing of the kind'*100)
    with pytest.raises(BadInput, match=f'{kept.path.name}.*delete it'): rationalize(lm, [mcq(0)], PROMPT, 6, store=tmp_path)

def test_too_long_for_the_model():
    lm = make('llama')
    with pytest.raises(BadInput, match='of llama: take fewer examples'): rationalize(lm, [mcq(0)], replace(PROMPT, examples=PROMPT.examples*20), store=False)

# Prompts and questions

@pytest.mark.parametrize('line, words', [('Q: {choice}', 'no place for the question'), ('Q: {question}', 'no place for the choice'), ('{question} {choice} {answer}', r'\{answer\} that nothing'), ('{question} {choice', 'prompt'), ('{question} {choice} {}', 'nothing goes into')])
def test_a_prompt_with_missing_places(tmp_path, line, words):
    (tmp_path/'p.json').write_text(json.dumps(dict(examples='', line=line, stop=['\n'])))
    with pytest.raises(BadInput, match=words): read_prompt(tmp_path/'p.json')

@pytest.mark.parametrize('text', ['{', '[]', '{"line": 3}', '{"line": "{question} {choice}", "examples": 4}', '{"line": "{question} {choice}", "stop": [""]}'])
def test_no_prompt(tmp_path, text):
    (tmp_path/'p.json').write_text(text)
    with pytest.raises(BadInput): read_prompt(tmp_path/'p.json')
    with pytest.raises(BadInput, match='no such prompt; give a file, or one of commonsense, csqa, obqa, qasc, strategy'): read_prompt('nowhere')

@pytest.mark.parametrize('row, words', [
    (dict(question='what?', choices=[], answer=0), 'no choices'), (dict(question='what?', choices=['a'], answer=0), 'one choice'), (dict(question='what?', choices=['a', 'A '], answer=0), 'is there twice'),
    (dict(question='what?', choices=['a', ' '], answer=0), 'blank'), (dict(question='what?', choices=['a', 'b']), 'no answer'), (dict(question='what?', choices=['a', 'b'], answer=2), 'number 2 of 2'),
    (dict(question='what?', choices=['a', 'b'], answer='c'), 'none of the choices'), (dict(question='what?', choices=['a', 'b'], answer=True), 'neither'), (dict(question='what?', choices=['a', 'b'], answer=1.5), 'neither'), (dict(question=' ', choices=['a', 'b'], answer=0), 'without words'),
    (dict(question='what?', choices='ab', answer=0), 'no list'), (dict(choices=['a', 'b']), 'question'), ([], 'question'), (dict(question='what?', choices=['a', 'b'], answer=0, rationales=['x']), '1 rationales for 2'), (dict(question='what?', choices=[str(i) for i in range(27)], answer=0), '26')])
def test_questions_that_cannot_be_used(tmp_path, row, words):
    with pytest.raises(BadInput, match=words): as_question(row)
    good = dict(question='which?', choices=['fox', 'cow'], answer='cow')
    (tmp_path/'q.jsonl').write_text(f'{json.dumps(good)}\n\nno json\n{json.dumps(row)}\n')
    with pytest.warns(UserWarning, match='2 of 3 lines passed over; line 3: no JSON'): assert [m.answer for m in read_questions(tmp_path/'q.jsonl')] == [1]
    (tmp_path/'q.jsonl').write_text(json.dumps(row))
    with pytest.raises(BadInput, match='no question that can be used'): read_questions(tmp_path/'q.jsonl')

def test_no_file_of_questions(tmp_path):
    with pytest.raises(BadInput, match='no such file'): read_questions(tmp_path/'nowhere.jsonl')
    with pytest.raises(BadInput, match='this is a folder'): read_questions(tmp_path)
    (tmp_path/'a').write_bytes(b'\xff\xfe\xff')
    with pytest.raises(BadInput, match='UTF-8'): read_questions(tmp_path/'a')

# What is read, and how it scores

GROUP = [mcq(0, 'csqa'), mcq(1, 'strategy'), mcq(2, 'qasc')]
WHYS = [m.rationales for m in GROUP]

@pytest.mark.parametrize('kind', ['t5', 'mt5', 'v1_1'])
def test_scores_of_every_t5(kind):
    t5 = make_t5(kind); model = copy.deepcopy(t5.model).double(); e = encode_questions(T5_TOKENIZER, GROUP, WHYS)
    with torch.no_grad(): together, alone = choice_scores(model, e), [choice_scores(model, encode_questions(T5_TOKENIZER, [m], [w]))[0] for m, w in zip(GROUP, WHYS)]
    assert all(torch.allclose(s[:len(a)], a, atol=1e-9) and (s[len(a):] == -torch.inf).all() for s, a in zip(together, alone))
    ids, m = e.input_ids[0, 1][e.attention_mask[0, 1]], GROUP[0]
    target = T5_TOKENIZER(m.choices[1], add_special_tokens=False, return_tensors='pt').input_ids
    with torch.no_grad(): by_hand = -model(input_ids=ids[None], labels=target).loss                                  # the mean over the tokens of the choice
    assert torch.allclose(together[0, 1].double(), by_hand.double(), atol=1e-5)
    p = probabilities(model, e, batch_size=2)
    assert np.allclose(p.sum(1), 1) and (p[1, 2:] == 0).all() and np.allclose(p, probabilities(model, e))

def test_what_is_read(t5):
    m = MCQ('what runs?', ('fox', 'cow'), 0, (), 'own'); e = encode_questions(T5_TOKENIZER, [m], [('It runs.', 'It does not.')])
    read = [T5_TOKENIZER.decode(e.input_ids[0, k][e.attention_mask[0, k]]) for k in range(2)]
    assert read == ['Question: what runs? Answer Choices: (a) fox (b) cow. Explanation: It runs.', 'Question: what runs? Answer Choices: (a) fox (b) cow. Explanation: It does not.']
    assert T5_TOKENIZER.decode(e.input_ids[0, 1][e.rationale_mask[0, 1]]) == ' Explanation: It does not.' and T5_TOKENIZER.decode(e.input_ids[0, 0][e.question_mask[0, 0]]) == 'Question: what runs?'
    assert not encode_questions(T5_TOKENIZER, [m]).rationale_mask.any() and e.answer.tolist() == [0] and encode_questions(T5_TOKENIZER, [replace(m, answer=None)]).answer.tolist() == [-1]

def test_long_and_empty_rationales_are_said(t5):
    m = MCQ('what runs?', ('fox', 'cow'), 0, (), 'own')
    with pytest.warns(UserWarning, match='^1 rationales do not fit into 32 tokens'): e = encode_questions(T5_TOKENIZER, [m], [('so ' * 80, 'It does not.')], max_length=32)
    assert e.input_ids.shape[2] == 32 and e.n_truncated == 1 and e.attention_mask[0, 0].all()
    with pytest.warns(UserWarning, match='^1 rationales are empty'): e = encode_questions(T5_TOKENIZER, [m], [('', 'It does not.')])
    with torch.no_grad(): assert torch.allclose(choice_scores(t5.model, e)[0, 0], choice_scores(t5.model, encode_questions(T5_TOKENIZER, [m]))[0, 0], atol=1e-5)
    with pytest.raises(BadInput, match='question and choices take'): encode_questions(T5_TOKENIZER, [replace(m, question='so '*80)], max_length=32)
    with pytest.raises(BadInput, match='as many rationales as choices'): encode_questions(T5_TOKENIZER, [m], [('one',)])

@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_perturbed_rationales(seed, mask_prob, mask_ratio, replace_ratio):
    e = encode_questions(T5_TOKENIZER, GROUP, WHYS); d = perturbed(e, np.random.default_rng(seed), 1408, mask_prob, mask_ratio, replace_ratio)
    n, hidden, other = e.rationale_mask.sum(2), (d.attention_mask != e.attention_mask), (d.input_ids != e.input_ids)
    assert not (hidden & ~e.rationale_mask).any() and not (other & ~e.rationale_mask).any() and not (hidden.any(2) & other.any(2)).any()
    masked = hidden.sum(2) == (mask_ratio*n.double() + 1e-9).floor()
    assert (masked | (hidden.sum(2) == 0)).all() and (other.sum(2) <= (replace_ratio*n.double() + 1e-9).floor()).all()
    assert (d.input_ids.max() < 1408) and torch.equal(d.labels, e.labels)

@settings(deadline=None, max_examples=25)
@given(st.integers(2, 6), st.floats(0, 1), st.integers(0, 10**6))
def test_smoothing(K, eps, seed):
    s, gold = torch.randn(4, K, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), torch.arange(4) % K
    wide = torch.cat([s, torch.full((4, 2), -torch.inf, dtype=s.dtype)], 1)                                           # choices that are not there change nothing
    for spread in SPREADS: assert torch.allclose(smoothed_loss(s, gold, eps, spread), smoothed_loss(wide, gold, eps, spread))
    assert torch.allclose(smoothed_loss(s, gold, eps), F.cross_entropy(s, gold, label_smoothing=eps))
    p = s.log_softmax(1); right = p.gather(1, gold[:, None])[:, 0]
    assert torch.allclose(smoothed_loss(s, gold, eps, 'others'), -((1 - eps)*right + eps*(p.sum(1) - right)/(K - 1)).mean())

def test_no_such_spread():
    with pytest.raises(BadInput, match='all or others'): smoothed_loss(torch.zeros(1, 2), torch.tensor([0]), .1, 'some')

def test_short_choices_beside_long_ones(t5):
    some = [MCQ('what?', ('a rather long choice of words', 'cow'), 0, (), 'own'), MCQ('what?', ('fox', 'cow', 'pig'), 1, (), 'own')]
    e = encode_questions(T5_TOKENIZER, some)
    assert np.allclose(probabilities(t5.model, e, batch_size=1), probabilities(t5.model, e)) and np.isfinite(train_reasoner(t5, e, TrainConfig(2, 1e-3), batch_size=1).shared.weight.detach().numpy()).all()

# Writers and simulators

def test_a_writer_learns_by_heart(tmp_path):
    t5, pairs = make_t5(), [('one', 'the fox runs'), ('two and three and more', 'a cow'), ('four', 'so')]
    how = dict(config=TrainConfig(150, 1e-2), batch_size=3)
    model = train_writer(t5, pairs, **how, folder=tmp_path/'run')
    reads = [a for a, _ in pairs]
    assert written(model, T5_TOKENIZER, reads) == [b for _, b in pairs] == [written(model, T5_TOKENIZER, [r])[0] for r in reads] and not model.training
    assert len(T5_TOKENIZER(written(model, T5_TOKENIZER, reads, tokens=1)[0]).input_ids) == 1 and written(model, T5_TOKENIZER, []) == []
    assert fingerprint(t5.model) == t5.fingerprint and fingerprint(train_writer(t5, pairs, **how, folder=tmp_path/'run')) == fingerprint(model)
    with pytest.raises(BadInput, match='pairs of texts'): train_writer(t5, [])

@pytest.mark.parametrize('text, answer', [('It runs. So the answer is fox.', 0), ('So the answer is  Cow .', 1), ('So the answer is cow. So the answer is fox', 0), ('So the answer is mouse.', -1), ('fox', -1), ('', -1), ('So the answer is fox\nQuestion: which?', 0), ('So the answer is', -1)])
def test_what_a_thought_comes_to(text, answer): assert answer_in(text, ('fox', 'cow')) == answer

def test_views_hide_what_they_say(t5):
    e = encode_questions(T5_TOKENIZER, GROUP, WHYS); seen = views(e)
    assert torch.equal(seen['both'].attention_mask, e.attention_mask) and not (seen['question'].attention_mask & e.rationale_mask).any() and not (seen['rationale'].attention_mask & e.question_mask).any()
    assert torch.equal(seen['question'].attention_mask | e.rationale_mask, e.attention_mask) and torch.equal(seen['rationale'].attention_mask | e.question_mask, e.attention_mask)
    other = encode_questions(T5_TOKENIZER, [replace(m, question=m.question[:-1] + '!') for m in GROUP], WHYS)          # another question of as many tokens
    assert other.input_ids.shape == e.input_ids.shape and not torch.equal(other.input_ids, e.input_ids) and np.allclose(probabilities(t5.model, views(other)['rationale']), probabilities(t5.model, seen['rationale']))

def test_a_simulator_learns_answers_that_are_wrong():
    t5, e = make_t5(), read(); wrong = 1 - e.answer
    got = guesses(train_simulator(t5, e, wrong.numpy(), TrainConfig(200, 1e-2), batch_size=12), e, wrong)
    assert got['both'].mean() > .9 and set(got) == {'both', 'question', 'rationale'} and all(g.shape == (12,) for g in got.values())
    assert e.answer.tolist() == [m.answer for m in QUESTIONS] and fingerprint(t5.model) == t5.fingerprint

# Training, and what is kept

QUESTIONS = [mcq(i, 'strategy', seed=4) for i in range(12)]
def read(): return encode_questions(T5_TOKENIZER, QUESTIONS, [m.rationales for m in QUESTIONS])
SHORT = TrainConfig(3, 1e-3, 'constant', seed=3)

def test_weight_zero_is_plain_with_dropout():
    t5 = make_t5(dropout=.1)
    a, b = train_reasoner(t5, read(), SHORT, Regularizer(weight=0), 4), train_reasoner(t5, read(), SHORT, None, 4)
    assert fingerprint(a) == fingerprint(b) != fingerprint(train_reasoner(t5, read(), SHORT, Regularizer(), 4)) and fingerprint(t5.model) == t5.fingerprint and not a.training

def test_a_training_resumes(tmp_path):
    t5 = make_t5(); whole = train_reasoner(t5, read(), SHORT, batch_size=5)
    class Stop(Exception): pass
    losses, real = [], pinto.smoothed_loss
    def stopping(*a, **k):
        losses.append(1)
        if len(losses) == 5: raise Stop
        return real(*a, **k)
    pinto.smoothed_loss = stopping
    try:
        with pytest.raises(Stop): train_reasoner(t5, read(), replace(SHORT, checkpoint_every=1), batch_size=5, folder=tmp_path/'run')
    finally: pinto.smoothed_loss = real
    assert fingerprint(train_reasoner(t5, read(), replace(SHORT, checkpoint_every=1), batch_size=5, folder=tmp_path/'run')) == fingerprint(whole)

def test_hidden_questions_and_no_answers(t5):
    assert fingerprint(train_reasoner(t5, read(), SHORT, None, 4, hide_question=.5)) != fingerprint(train_reasoner(t5, read(), SHORT, None, 4))
    with pytest.raises(BadInput, match='1 questions have no answer'): train_reasoner(t5, encode_questions(T5_TOKENIZER, [QUESTIONS[0], replace(QUESTIONS[1], answer=None)]), SHORT)

def test_saved_and_loaded(t5, tmp_path):
    lm = replace(make('llama'), settings='0123'); mine = Reasoner(t5.model, T5_TOKENIZER, PROMPT, lm.fingerprint, 'llama', 6, 100)
    back = load_reasoner(save_reasoner(mine, tmp_path/'a'), 'cpu')
    assert replace(back, model=0, tokenizer=0) == replace(mine, model=0, tokenizer=0) and np.array_equal(back.probabilities(GROUP, WHYS), mine.probabilities(GROUP, WHYS))
    other = replace(mine, model=make_t5(seed=1).model)
    assert fingerprint(load_reasoner(save_reasoner(other, tmp_path/'a'), 'cpu').model) == fingerprint(other.model) and sorted(p.name for p in tmp_path.iterdir()) == ['a']
    found = explain(back, lm, 'what runs?', ['fox', 'cow'])
    assert found.answer in ('fox', 'cow') and abs(found.probabilities.sum() - 1) < 1e-6 and len(found.rationales) == 2
    with pytest.raises(BadInput, match='is there twice'): explain(back, lm, 'what runs?', ['fox', 'fox'])
    ours = load_reasoner(save_reasoner(replace(mine, lm_settings=lm.settings), tmp_path/'b'), 'cpu')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ours.rationalize(lm, GROUP[:1])
    with pytest.warns(UserWarning, match='this reasoning model: the weights of llama .*tokenizer'): replace(ours, lm_settings='another').rationalize(lm, GROUP[:1])
    with pytest.raises(BadInput, match='not of opt'): explain(back, make('opt'), 'what runs?', ['fox', 'cow'])

def test_damaged_folders(t5, tmp_path):
    mine = Reasoner(t5.model, T5_TOKENIZER, PROMPT, 'x', 'llama')
    for name in ('pinto.json', 'model.safetensors', 'tokenizer.json', 'config.json'):
        folder = save_reasoner(mine, tmp_path/name); (folder/name).write_text('{')
        with pytest.raises(BadInput, match=f'{name}: not what was written there'): load_reasoner(folder, 'cpu')
        (folder/SUMS).unlink()
        with pytest.raises(BadInput, match=name.split('.')[0].replace('model', 'safetensors').replace('config', 'config|JSON')): load_reasoner(folder, 'cpu')
    save_reasoner(replace(mine, model=make_t5(seed=1).model), tmp_path/'b'); (tmp_path/'b'/'pinto.json').write_text((save_reasoner(mine, tmp_path/'c')/'pinto.json').read_text())
    (tmp_path/'b'/SUMS).unlink()
    with pytest.raises(BadInput, match='copy the folder again'): load_reasoner(tmp_path/'b', 'cpu')
    with pytest.raises(BadInput, match='no reasoning model'): load_reasoner(tmp_path/'nowhere')
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'letter.txt').write_text('dear'); (tmp_path/'file').write_text('')
    for folder, words in (('mine', 'something else'), ('file', 'a file where'), ('file/deeper', 'a file where')):
        with pytest.raises(BadInput, match=words): save_reasoner(mine, tmp_path/folder)
    assert (tmp_path/'mine'/'letter.txt').read_text() == 'dear'

def test_own_questions(tmp_path):
    rows = [dict(question=f'{m.question} {i % 14}', choices=m.choices, answer=m.answer, rationales=m.rationales) for i, m in enumerate(mcq(i, 'strategy', seed=9) for i in range(40))]
    (tmp_path/'q.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    found = fit_questions(PintoFit(tmp_path/'q.jsonl', tmp_path/'out', steps=3, batch=4, device='cpu', own=True))
    assert found['questions'] == 40 and found['chance'] == .5 and len(found['right']['with rationales']) == found['held_out'] > 0
    assert (tmp_path/'out'/'pinto.json').is_file() and not (tmp_path/'out'/'checkpoints').exists()
    lines = PintoFit(tmp_path/'q.jsonl', tmp_path/'out', steps=3).lines(found)
    assert lines[0] == f"40 questions, {found['held_out']} of them held out; 3 steps: {tmp_path/'out'}" and [l.split(':')[0] for l in lines[1:]] == ['held out, with rationales', 'held out, without']
    (tmp_path/'few.jsonl').write_text('\n'.join(map(json.dumps, rows[:5])))
    with pytest.raises(BadInput, match='5 different questions; ten or more'): fit_questions(PintoFit(tmp_path/'few.jsonl', tmp_path/'new'))
    del rows[3]['rationales']; (tmp_path/'q.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    with pytest.raises(BadInput, match='has no rationale for each of its choices'): fit_questions(PintoFit(tmp_path/'q.jsonl', tmp_path/'new', own=True))
    (tmp_path/'q.tsv').write_text('\n'.join(f'what runs {i}?\\nOptions:\\n- fox\\n- stone\tfox\tFoxes do.' for i in range(20)))    # what people wrote about the right choice alone
    with pytest.raises(BadInput, match='would give the answer away'): fit_questions(PintoFit(tmp_path/'q.tsv', tmp_path/'new', own=True))
    assert not (tmp_path/'new').exists()

@pytest.mark.parametrize('option, value, least', [('weight', -1, 0), ('steps', 0, 1), ('batch', 0, 1), ('length', 7, 8), ('lr', 0., 1e-12)])
def test_options_that_are_too_small(option, value, least):
    with pytest.raises(BadInput, match=f'{option} {value}: give {least} or more'): PintoFit('q.jsonl', 'out', **{option: value})

def test_parts_of_a_batch(tmp_path):
    assert PintoFit(tmp_path/'a', tmp_path/'b', accumulate=4).train_config.accumulate == 4
    rows = [dict(question=f'{m.question} {i % 14}', choices=m.choices, answer=m.answer, rationales=m.rationales) for i, m in enumerate(mcq(i, 'strategy', seed=9) for i in range(40))]
    (tmp_path/'q.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    refused = PintoFit(tmp_path/'q.jsonl', tmp_path/'out', steps=3, batch=4, accumulate=4, own=True)
    with pytest.raises(BadInput, match='accumulate 5: a batch has 4 items; give 4 or fewer'): replace(refused, accumulate=5)
    with pytest.raises(BadInput, match=r'accumulate 99: a batch has \d+ questions here; give \d+ or fewer'): fit_questions(replace(refused, batch=99, accumulate=99))
    whole, parts = (fit_questions(replace(refused, out=tmp_path/str(n), accumulate=n, device='cpu')) for n in (1, 4))
    one, other = (load_reasoner(tmp_path/str(n), 'cpu').probabilities(GROUP, WHYS) for n in (1, 4))
    assert np.abs(one - other).max() < 1e-4 and whole['right'].keys() == parts['right'].keys()

def test_the_recipe_of_a_fit():
    config = PintoFit('q.jsonl', 'out').train_config
    assert config == replace(PINTO_RECIPE, checkpoint_every=50)
    assert PintoFit('q.jsonl', 'out', steps=50, lr=.1, seed=3).train_config == replace(config, steps=50, warmup=5, lr=.1, seed=3)

# Equal choices

CSQA = dict(answerKey='B', id='1', question=dict(stem='what runs?', choices=[dict(label='A', text='stone'), dict(label='B', text='fox')]))
EQUAL = dict(answerKey='C', id='1', question=dict(stem='what runs?', choices=[dict(label=l, text=t) for l, t in zip('ABC', ('fox', 'stone', 'Fox'))]))

def test_equal_choices_are_kept_where_labels_tell_them_apart(tmp_path):
    (tmp_path/'q.jsonl').write_text('\n'.join(map(json.dumps, (EQUAL, CSQA))))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        equal, other = read_questions(tmp_path/'q.jsonl')
    assert (equal.choices, equal.answer) == (('fox', 'stone', 'Fox'), 2)
    (tmp_path/'q.tsv').write_text('what runs?\\nOptions:\\n- fox\\n- stone\\n- fox\tfox\tFoxes run.\n')
    assert [(m.choices, m.answer, m.rationales) for m in read_questions(tmp_path/'q.tsv')] == [(('fox', 'stone', 'fox'), 0, ('Foxes run.', '', ''))]
    with pytest.raises(BadInput, match='is there twice'): check_question(equal)
    with pytest.raises(BadInput, match='is there twice'): as_question(dict(question='what runs?', choices=list(equal.choices), answer=2))
    with pytest.raises(BadInput, match='two choices have the same label'): as_question(EQUAL | dict(question=dict(stem='what?', choices=[dict(label='C', text=t) for t in 'xyz'])))

def test_equal_choices_are_one_answer():
    equal = as_question(EQUAL)
    assert correct_choices([equal]*5, [0, 1, 2, 'FOX', 'fo']).tolist() == [1, 0, 1, 1, 0]
    with pytest.raises(BadInput, match='give the number of a choice, 0 to 2'): correct_choices([equal], [3])

def test_equal_choices_have_equal_scores(t5):
    equal = replace(as_question(EQUAL), choices=('fox', 'stone', 'fox'))
    rationales = rationalize(make('llama'), [equal], PROMPT, 6, store=False)
    assert rationales[0][0] == rationales[0][2]
    p = probabilities(t5.model, encode_questions(T5_TOKENIZER, [equal], rationales))[0]
    assert p[0] == pytest.approx(p[2], rel=1e-5) and p[0] != pytest.approx(p[1], rel=1e-2)

# A causal language model as the reasoner

def causal_batch(questions=None, rationales=None): return encode_questions(TOKENIZER, questions or GROUP, rationales or WHYS, causal=True)

def one_by_one(lm, questions, rationales):
    "Scores of choices, one row after the other, without padding."
    scores = []
    for m, texts in zip(questions, rationales):
        for choice, text in zip(m.choices, texts):
            ids = [TOKENIZER(part, add_special_tokens=False).input_ids for part in (*format_question(m), f' Explanation: {text}', f' {choice}')]
            whole, n = torch.tensor([sum(ids, [])]), len(ids[-1])
            with torch.no_grad(): log_p = lm.model(input_ids=whole).logits[0, -n-1:-1].log_softmax(-1)
            scores.append(float(log_p.gather(1, whole[0, -n:, None]).mean()))
    return scores

@pytest.mark.parametrize('family', FAMILIES)
def test_causal_scores_are_those_of_one_row_after_the_other(family):
    lm = make(family)
    with torch.no_grad(): scores = choice_scores(lm.model, causal_batch())
    assert torch.equal(scores > -torch.inf, causal_batch().choice_mask)
    assert np.allclose(scores[scores > -torch.inf].numpy(), one_by_one(lm, GROUP, WHYS), atol=1e-5, rtol=1e-6)

@pytest.mark.parametrize('family', FAMILIES)
def test_padding_and_company_change_no_causal_score(family):
    lm, batch = make(family), causal_batch()
    hidden = replace(batch, attention_mask=batch.attention_mask & ~batch.rationale_mask)
    for whole in (batch, hidden):
        with torch.no_grad():
            together, alone = choice_scores(lm.model, whole), [choice_scores(lm.model, whole[i:i + 1])[0] for i in range(3)]
        for row, single in zip(together, alone): assert torch.allclose(row[:len(single)], single, atol=1e-5, rtol=0)

@pytest.mark.parametrize('family', FAMILIES)
def test_a_hidden_rationale_says_nothing_and_keeps_its_place(family):
    lm, batch = make(family), causal_batch()
    other_ids = torch.where(batch.rationale_mask, (batch.input_ids + 7) % 1400, batch.input_ids)
    def scores(input_ids, hide):
        mask = batch.attention_mask & ~(batch.rationale_mask & hide)
        with torch.no_grad(): return choice_scores(lm.model, replace(batch, input_ids=input_ids, attention_mask=mask))[batch.choice_mask]
    assert torch.allclose(scores(batch.input_ids, True), scores(other_ids, True), atol=1e-6, rtol=0)
    assert not torch.allclose(scores(batch.input_ids, False), scores(other_ids, False), atol=1e-3)
    with torch.no_grad(): without = choice_scores(lm.model, encode_questions(TOKENIZER, GROUP, causal=True))[batch.choice_mask]
    assert not torch.allclose(scores(batch.input_ids, True), without, atol=1e-3)   # there the choice stands earlier

@pytest.mark.parametrize('family', FAMILIES)
def test_a_shared_prompt_changes_no_score_and_no_gradient(family, monkeypatch):
    from frozen_nb.benchmarks import choice_tokens
    model, lengths = unfreeze(make(family).model).eval().requires_grad_(True), []
    likelihoods = choice_tokens.log_likelihoods
    monkeypatch.setattr(choice_tokens, 'log_likelihoods', lambda model, labels, *rest, **inputs: (lengths.append(labels.shape[1]), likelihoods(model, labels, *rest, **inputs))[1])
    batch, outcomes = causal_batch(), []
    for whole in (batch, replace(batch, attention_mask=batch.attention_mask & ~batch.rationale_mask)):
        for shared in (True, False):
            model.zero_grad()
            scores = choice_tokens.causal_scores(model, whole, shared)
            smoothed_loss(scores, whole.answer).backward()
            outcomes.append((scores[whole.choice_mask].detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
        (one, grads), (other, other_grads) = outcomes[-2:]
        assert torch.allclose(one, other, atol=1e-5, rtol=0)
        assert all(torch.allclose(a, b, atol=1e-4, rtol=1e-3) for a, b in zip(grads, other_grads, strict=True))
    if family in ('llama', 'gpt2', 'gpt_neox'): assert lengths[0] < lengths[1]   # they do share

def test_rows_with_different_prompts_are_not_taken_for_one():
    from frozen_nb.benchmarks.choice_tokens import causal_scores
    lm, batch = make('llama'), causal_batch()
    batch.input_ids[0, 1, 2] = (batch.input_ids[0, 1, 2] + 7) % 1400
    with torch.no_grad(): assert torch.equal(causal_scores(lm.model, batch), causal_scores(lm.model, batch, shared=False))

def test_gradients_reach_a_causal_model():
    model = unfreeze(make('llama').model).requires_grad_(True); batch = causal_batch()
    smoothed_loss(choice_scores(model, batch), batch.answer).backward()
    assert all(p.grad.isfinite().all() and (p.grad != 0).any() for p in model.parameters())

def test_a_choice_of_a_causal_model_begins_with_a_space():
    batch, m = causal_batch(), GROUP[0]
    assert [TOKENIZER.decode(row[row >= 0]) for row in batch.labels[0, :5]] == [f' {choice}' for choice in m.choices]
    class WithStart:
        bos_token_id, pad_token_id = 5, 0
        def __call__(self, text, add_special_tokens=True): return type('out', (), dict(input_ids=[5]*add_special_tokens + TOKENIZER(text, add_special_tokens=False).input_ids))
    started = encode_questions(WithStart(), GROUP, WHYS, causal=True)
    assert (started.input_ids[:, :, 0] == 5).all() and torch.equal(started.input_ids[0, 0, 1:][started.attention_mask[0, 0, 1:]], batch.input_ids[0, 0][batch.attention_mask[0, 0]])
    assert (encode_questions(WithStart(), GROUP, WHYS).input_ids[:, :, 0] != 5).all()

def test_too_long_for_a_causal_model():
    with pytest.raises(BadInput, match='and this model has 64 positions'): choice_scores(short_gpt2().model, causal_batch())

def short_gpt2():
    model = freeze(AutoModelForCausalLM.from_config(AutoConfig.for_model('gpt2', **SIZES | dict(max_position_embeddings=64))))
    return LM(model, TOKENIZER, 'gpt2', fingerprint(model))

@pytest.mark.parametrize('lora', [0, 2])
def test_a_causal_reasoner_is_trained_kept_and_explains(lora, tmp_path):
    lm = make('llama'); freeze(lm.model.float()); batch = causal_batch()
    lm.fingerprint = fingerprint(lm.model)
    model = train_reasoner(lm, batch, TrainConfig(60, 1e-2, 'constant'), batch_size=3, lora=lora)
    assert fingerprint(lm.model) == lm.fingerprint != fingerprint(model) and not model.training
    assert {n for n, _ in model.named_parameters()} == {n for n, _ in lm.model.named_parameters()}
    with torch.no_grad(): after, before = (smoothed_loss(choice_scores(m, batch), batch.answer).item() for m in (model, lm.model))
    assert after < .5*before
    mine = Reasoner(model, TOKENIZER, PROMPT, lm.fingerprint, 'llama', 6, 100)
    back = load_reasoner(save_reasoner(mine, tmp_path/'a'), 'cpu')
    assert np.allclose(back.probabilities(GROUP, WHYS), probabilities(model, batch), atol=1e-6)
    assert explain(back, lm, 'what runs?', ['fox', 'cow']).answer in ('fox', 'cow')

def test_a_causal_training_resumes_and_weight_zero_is_plain(tmp_path):
    lm, batch = make('llama'), causal_batch()
    for lora in (0, 2):
        def train_it(regularizer, **options): return fingerprint(train_reasoner(lm, batch, SHORT, regularizer, 2, lora=lora, **options))
        assert train_it(Regularizer(weight=0)) == train_it(None) != train_it(Regularizer())
        first = train_it(None, folder=tmp_path/f'{lora}')
        assert first == train_it(None, folder=tmp_path/f'{lora}') == train_it(None)

def test_lora_trains_a_low_rank_change_of_a_t5():
    t5 = make_t5()
    model = train_reasoner(t5, read(), SHORT, batch_size=4, lora=2)
    before, after = t5.model.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    ranks = {n: int(torch.linalg.matrix_rank(after[n].double() - before[n].double(), rtol=1e-4)) for n in before if not torch.equal(before[n], after[n])}
    assert ranks and max(ranks.values()) <= 2 and not any('shared' in n or 'norm' in n for n in ranks)

def test_text_models_by_their_kind(t5, tmp_path):
    for name, kind in (('llama', LM), ('t5', Seq2Seq)): assert type(load_text_model(name, device='cpu')) is kind
    t5.model.save_pretrained(tmp_path/'t'); T5_TOKENIZER.save_pretrained(tmp_path/'t')
    assert type(load_text_model(tmp_path/'t', device='cpu')) is Seq2Seq
    with pytest.raises(BadInput): load_text_model('clip')

# What does not fit

LONG = MCQ('so '*80, ('fox', 'cow'), 0, (), 'own')

def test_long_questions_are_counted_and_cut_where_wanted(t5):
    questions = [LONG, GROUP[1], LONG]
    with pytest.raises(BadInput, match=r"question and choices take \d+ tokens, and 40 are allowed \(2 of 3 questions do not fit into 40 tokens\).*--truncate"):
        encode_questions(T5_TOKENIZER, questions, max_length=40)
    rationales = [('It runs.', 'It does not.'), ('It is.', 'It is not.'), ('It runs.', '')]
    with pytest.warns(UserWarning) as said: batch = encode_questions(T5_TOKENIZER, questions, rationales, max_length=40, truncate=True)
    assert str(said[0].message).startswith('2 of 3 questions do not fit into 40 tokens with their choices, and are cut; the longest takes ')
    with pytest.warns(UserWarning, match='^1 rationales are empty'): whole = encode_questions(T5_TOKENIZER, questions, rationales, max_length=999)
    assert torch.equal(batch.input_ids[0], whole.input_ids[0, :, :40]) and batch.attention_mask[0].all()     # the end is cut, as in the published code
    assert not batch.rationale_mask[0].any() and batch.question_mask[0].all()
    p = probabilities(t5.model, batch)
    assert np.allclose(p.sum(1), 1) and np.allclose(p[0], probabilities(t5.model, batch[:1])[0], atol=1e-6)
    with pytest.warns(UserWarning, match='2 of 3 questions'): batch = encode_questions(TOKENIZER, questions, max_length=40, truncate=True, causal=True)
    assert np.isfinite(probabilities(make('llama').model, batch)).all()

def test_a_fit_counts_what_it_cuts(tmp_path):
    rows = [dict(question=f'{m.question} {i}', choices=m.choices, answer=m.answer, rationales=m.rationales) for i, m in enumerate(mcq(i, 'strategy', seed=9) for i in range(20))]
    rows[3]['question'] = 'so '*80
    (tmp_path/'q.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    fit = PintoFit(tmp_path/'q.jsonl', tmp_path/'out', steps=1, batch=4, device='cpu', own=True, length=60)
    with pytest.raises(BadInput, match='1 of 20 questions do not fit into 60 tokens'): fit_questions(fit)
    fit = replace(fit, truncate=True)
    with pytest.warns(UserWarning, match='questions do not fit|rationales do not fit'): result = fit_questions(fit)
    assert result['too_long']['questions'] == 1 and 'cut at 60 tokens: 1 questions, and' in fit.lines(result)[-1]
    back = load_reasoner(tmp_path/'out', 'cpu')
    assert back.truncate and back.length == 60
    with pytest.warns(UserWarning, match='1 of 1 questions'): assert np.isfinite(back.probabilities([LONG])).all()
    assert fits._count_long(replace(fit, length=999), load_text_model('t5', device='cpu'), dict(a=GROUP), dict(a=WHYS)) == dict(questions=0, rationales=0)

def test_a_causal_fit(tmp_path):
    rows = [dict(question=f'{m.question} {i}', choices=m.choices, answer=m.answer, rationales=m.rationales) for i, m in enumerate(mcq(i, 'strategy', seed=9) for i in range(20))]
    (tmp_path/'q.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    found = fit_questions(PintoFit(tmp_path/'q.jsonl', tmp_path/'out', reasoner='llama', lora=2, steps=2, batch=4, device='cpu', own=True))
    assert found['held_out'] == 2 and not load_reasoner(tmp_path/'out', 'cpu').model.config.is_encoder_decoder
    assert not [p.name for p in (tmp_path/'out').iterdir() if 'adapter' in p.name]

# Published formats


def test_published_formats(tmp_path):
    (tmp_path/'csqa.jsonl').write_text(json.dumps(CSQA)); m = read_questions(tmp_path/'csqa.jsonl')[0]
    assert (m.question, m.choices, m.answer, m.rationales) == ('what runs?', ('stone', 'fox'), 1, ())
    (tmp_path/'strategy.json').write_text(json.dumps([dict(qid='1', question='do foxes run?', answer=True, facts=[]), dict(qid='2', question='do stones run?', answer=False)]))
    assert [(m.choices, m.answer) for m in read_questions(tmp_path/'strategy.json')] == [(('yes', 'no'), 0), (('yes', 'no'), 1)]
    (tmp_path/'q.tsv').write_text('what runs?\\nOptions:\\n- (A) stone\\n- (B) fox\t(B)\tFoxes run.\nwhat swims?\\nOptions:\\n- cow-shark\\n- 3 - 4 ducks\t3 - 4 ducks\tDucks do.\ndo stones run?\tno\tThey lie.\n')
    assert [(m.question, m.choices, m.answer, m.rationales) for m in read_questions(tmp_path/'q.tsv')] == [('what runs?', ('stone', 'fox'), 1, ('', 'Foxes run.')), ('what swims?', ('cow-shark', '3 - 4 ducks'), 1, ('', 'Ducks do.')), ('do stones run?', ('yes', 'no'), 1, ('', 'They lie.'))]

@pytest.mark.parametrize('name, text, words', [('a.jsonl', json.dumps(CSQA | dict(answerKey='C')), 'none of the choices'), ('a.jsonl', json.dumps(CSQA | dict(answerKey='')), 'no answer'), ('a.jsonl', json.dumps(dict(question=dict(stem='why?'))), 'without stem and choices'),
    ('a.json', '{', 'not JSON'), ('a.json', '{}', 'no list'), ('a.json', '[3]', 'question'), ('a.tsv', 'one\ttwo', '2 columns'), ('a.tsv', 'what?\\nOptions:\\n- a\\n- b\tc\twhy', 'none of the choices'), ('a.tsv', 'what?\\nOptions:\\n- a\ta\twhy', 'one choice')])
def test_published_formats_that_are_broken(tmp_path, name, text, words):
    (tmp_path/name).write_text(text)
    with warnings.catch_warnings(), pytest.raises(BadInput, match=words): warnings.simplefilter('ignore'); read_questions(tmp_path/name)
