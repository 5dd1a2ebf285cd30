"Greedy decoding against a loop by hand, settings of checkpoints that must not leak, shared prefixes, and likelihoods, over families."
import copy
import inspect
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from frozen_nb.core.frozen import BadInput, freeze, tensor_hashes
from frozen_nb.core.generation import (GREEDY, behind_prefix, cache_argument, choice_log_likelihoods, continuations, cut_at, greedy, log_likelihoods,
                                       position_arguments, prefix_cache)
from frozen_nb.core.zoo import LM, load_tokenizer

SIZES = dict(vocab_size=1408, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=256,
             pad_token_id=1, bos_token_id=0, eos_token_id=0)
FAMILIES = dict(llama=dict(num_key_value_heads=2), opt=dict(ffn_dim=64, word_embed_proj_dim=32), gpt2={}, gpt_neox={},
                mistral=dict(num_key_value_heads=2), gptj=dict(rotary_dim=4), qwen2=dict(num_key_value_heads=2))
TOKENIZER = load_tokenizer('llama')
PREFIX = 'Question: what? Choices: fox, cow. Choice: fox. Thought: The fox runs.\n'
PROMPTS = ['Question: which animal? Thought:', 'Thought:', 'A small red fox', 'The hippo lives in the lake, and the fox']
every_family = pytest.mark.parametrize('family', FAMILIES)


@lru_cache
def lm(family):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES | FAMILIES[family])).double().eval()
    for p in model.parameters(): torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=.4)
    return LM(freeze(model), TOKENIZER, family, '')


def padded(side='left'):
    batch = TOKENIZER(PROMPTS, return_tensors='pt', padding=True, padding_side=side)
    return dict(input_ids=batch.input_ids, attention_mask=batch.attention_mask)


@torch.no_grad()
def by_hand(model, ids, n, end=0):
    "New tokens of one row, with a forward pass over the whole row for each."
    new = []
    while len(new) < n and end not in new:
        logits = model(torch.tensor([[*ids, *new]])).logits[0, -1]
        new.append(logits.argmax().item())
    return new


def without_padding(ids): return [row[:row.index(0) + 1] if 0 in row else row for row in ids.tolist()]


# Greedy decoding

@every_family
def test_greedy_is_the_loop_by_hand(family):
    model, before = lm(family).model, tensor_hashes(lm(family).model)
    ids = greedy(model, TOKENIZER, 8, **padded())
    assert without_padding(ids) == [by_hand(model, TOKENIZER(p).input_ids, 8) for p in PROMPTS]
    embeds = model.get_input_embeddings()(padded()['input_ids'])
    assert torch.equal(greedy(model, TOKENIZER, 8, inputs_embeds=embeds, attention_mask=padded()['attention_mask']), ids)
    assert tensor_hashes(model) == before


@pytest.mark.parametrize('setting', [
    dict(do_sample=True, temperature=2., top_k=5, top_p=.5), dict(num_beams=3), dict(repetition_penalty=4.), dict(no_repeat_ngram_size=1), dict(min_new_tokens=9),
    dict(min_length=40), dict(bad_words_ids=[[i] for i in range(20, 700)]), dict(suppress_tokens=[*range(20, 700)]), dict(begin_suppress_tokens=[*range(20, 700)]),
    dict(forced_eos_token_id=7), dict(sequence_bias=[[[9], 99.]]), dict(exponential_decay_length_penalty=(1, 9.)), dict(return_dict_in_generate=True, output_attentions=True),
    dict(use_cache=False), dict(cache_implementation='static'), dict(max_new_tokens=2), dict(eos_token_id=[5, 6]), dict(stop_strings=['a', 'e'])], ids=', '.join)
def test_no_setting_of_a_checkpoint_leaks(setting):
    model = copy.deepcopy(lm('llama').model)
    for name, value in setting.items(): setattr(model.generation_config, name, value)
    assert torch.equal(greedy(model, TOKENIZER, 8, **padded()), greedy(lm('llama').model, TOKENIZER, 8, **padded()))


def test_a_setting_that_is_given_counts():
    model = lm('llama').model
    free = greedy(model, TOKENIZER, 8, **padded())
    assert not torch.equal(free, greedy(model, TOKENIZER, 8, **padded(), repetition_penalty=4.))
    assert greedy(model, TOKENIZER, 8, end=free[0, 1].item(), **padded(), min_new_tokens=8).shape == (4, 8)
    assert 'max_new_tokens' not in GREEDY and 'eos_token_id' not in GREEDY


def test_what_ends_a_row():
    model, one = lm('llama').model, dict(input_ids=padded()['input_ids'][3:], attention_mask=padded()['attention_mask'][3:])
    free = greedy(model, TOKENIZER, 8, **one)[0].tolist()
    assert greedy(model, TOKENIZER, 8, end=[5, free[3]], **one)[0].tolist() == free[:free.index(free[3]) + 1]
    text = next(t for t in (TOKENIZER.decode([i]) for i in free[2:]) if t.strip())
    stopped = greedy(model, TOKENIZER, 8, stop=(text,), **one)[0].tolist()
    assert stopped == free[:len(stopped)] and text in TOKENIZER.decode(stopped) and text not in TOKENIZER.decode(stopped[:-1])


def test_an_encoder_decoder_gives_new_tokens_only():
    torch.manual_seed(0)
    tokenizer = load_tokenizer('t5')
    model = freeze(T5ForConditionalGeneration(T5Config(vocab_size=1472, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=1, eos_token_id=0, decoder_start_token_id=1)))
    inputs = dict(input_ids=torch.randint(2, 900, (3, 7)), attention_mask=torch.ones(3, 7).long())
    ids = greedy(model, tokenizer, 5, **inputs)
    assert torch.equal(ids, model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, 1:]) and ids.shape == (3, 5)


# Continuations

@every_family
def test_a_shared_prefix_changes_no_word(family):
    model = lm(family)
    texts = continuations(model, PREFIX, PROMPTS, ('\0',), 6)
    assert texts == continuations(model, PREFIX, PROMPTS, ('\0',), 6, shared=False) == continuations(model, PREFIX, PROMPTS, ('\0',), 6, batch_size=3)
    start = TOKENIZER(PREFIX).input_ids
    alone = [by_hand(model.model, [0, *start, *TOKENIZER(p).input_ids], 6) for p in PROMPTS]
    assert texts == [cut_at(TOKENIZER.decode(ids, skip_special_tokens=True)) for ids in alone] and len({*texts}) > 1


def test_a_prefix_is_run_once(monkeypatch):
    model, lengths = lm('llama'), []
    forward = model.model.forward
    def counted(*args, **kwargs):
        lengths.append((kwargs['input_ids'] if 'input_ids' in kwargs else args[0]).shape)
        return forward(*args, **kwargs)
    counted.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(model.model, 'forward', counted)
    continuations(model, PREFIX, PROMPTS, ('\0',), 3, batch_size=2)
    P, lengths = 1 + len(TOKENIZER(PREFIX).input_ids), lengths[2:]   # after the trial of `may_pad_inside`
    assert lengths[0] == (1, P) and all(T < P for _, T in lengths[1:])


def test_the_cache_of_a_prefix_is_that_of_the_model():
    model, ids = lm('llama'), TOKENIZER(PREFIX).input_ids
    cache = prefix_cache(model, ids)
    assert cache.get_seq_length() == len(ids) and cache_argument(model.model) in ('cache', 'past_key_values')
    whole = model.model(torch.tensor([[*ids, 5, 6]])).logits[:, -2:]
    torch.testing.assert_close(model.model(torch.tensor([[5, 6]]), **{cache_argument(model.model): cache}).logits, whole)


def test_nothing_to_continue_and_too_much():
    assert continuations(lm('llama'), PREFIX, []) == []
    with pytest.raises(BadInput, match='a prompt of 0 and a continuation of up to 300 do not fit into the 256 of llama: take fewer examples'):
        continuations(lm('llama'), '', [''], max_new_tokens=300)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(2, 9), max_size=4), st.lists(st.lists(st.integers(2, 9), max_size=5), min_size=1, max_size=4))
def test_rows_behind_a_prefix(prefix, prompts):
    ids, mask = behind_prefix(prefix, prompts, 1)
    assert ids.shape == mask.shape == (len(prompts), len(prefix) + max(map(len, prompts)))
    for row, seen, prompt in zip(ids, mask.bool(), prompts):
        assert row[seen].tolist() == prefix + prompt and (row[~seen] == 1).all()
        assert seen[:len(prefix)].all() and seen[seen.shape[0] - len(prompt):].all()


@given(st.text('ab .\n', max_size=12), st.lists(st.text('ab.\n', min_size=1, max_size=2), max_size=3))
def test_a_text_is_cut_at_the_first_stop_string(text, stop):
    cut = cut_at(text, tuple(stop))
    assert cut == ' '.join(cut.split())
    ends = [i for i in range(len(text)) if any(text[i:].startswith(s) for s in stop)]
    assert cut == ' '.join(text[:min(ends, default=len(text))].split())


# Likelihoods

@every_family
@pytest.mark.parametrize('side', ['left', 'right'])
def test_likelihoods_are_sums_of_log_probabilities(family, side):
    model, inputs = lm(family).model, padded(side)
    labels = inputs['input_ids'].where(inputs['attention_mask'] == 1, -100)
    for row, mask in zip(labels, inputs['attention_mask']): row[mask.nonzero()[0]] = -100          # nothing comes before the first token
    total, n = log_likelihoods(model, labels, **inputs)
    for i, prompt in enumerate(PROMPTS):
        ids = torch.tensor(TOKENIZER(prompt).input_ids)
        log_p = model(ids[None]).logits[0].log_softmax(-1)
        want = log_p[:-1].gather(1, ids[1:, None]).sum()
        assert n[i] == len(ids) - 1 and abs(total[i] - want) < 1e-3*abs(want)


def test_positions_are_given_where_they_are_needed():
    model = lm('gpt2').model
    assert position_arguments(model, padded('right')['attention_mask']) == {}
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    assert position_arguments(model, mask)['position_ids'].tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


def test_choices_stand_one_after_the_other():
    model = lm('opt').model
    rows = [[5, 6, 7], [5, 6, 8], [9, 4, 7], [9, 4, 8]]                                               # two questions, two choices of one token
    ids = torch.tensor(rows)
    labels = ids.clone()
    labels[:, :1] = -100
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
    total, n = log_likelihoods(model, labels, **inputs)
    assert n.tolist() == [2]*4
    assert torch.equal(choice_log_likelihoods(model, labels, 2, normalise=False, **inputs), total.view(2, 2))
    assert torch.equal(choice_log_likelihoods(model, labels, 2, **inputs), total.view(2, 2)/2)
