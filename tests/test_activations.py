"Hidden states and attention rows against the library's eager attention, over families, paddings, caches and index forms."
import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from transformers import (AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, LlavaConfig, LlavaForConditionalGeneration,
                          T5Config, T5ForConditionalGeneration)

from frozen_nb.core.activations import attention_rows, blocks, cached_length, hidden_states, positions
from frozen_nb.core.frozen import BadInput, freeze, seeded

torch.set_num_threads(1)
sizes = dict(vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, max_position_embeddings=128,
             pad_token_id=0, bos_token_id=1, eos_token_id=2)
grouped = dict(num_key_value_heads=2)
local = dict(attention_types=[[['global', 'local'], 1], [['global'], 1]], window_size=5)
families = dict(llama=grouped, opt=dict(ffn_dim=64, word_embed_proj_dim=32), gpt2={}, gpt_neox={}, mistral=grouped | dict(sliding_window=6),
                gptj=dict(rotary_dim=4), gpt_neo=local, gemma2=grouped | dict(head_dim=8, sliding_window=6), bloom={}, qwen3=grouped | dict(head_dim=8))
ids = torch.randint(3, 99, (2, 12), generator=torch.Generator().manual_seed(0))
full = torch.ones_like(ids)
right = full.clone()
right[1, 8:] = 0
left = right.flip(1)
made = {}


def tiny(family, fresh=False, **more):
    if (family in made) and not more and not fresh: return made[family]
    with seeded(0):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes | families[family] | more))
        for p in model.parameters():
            if p.ndim == 2: nn.init.normal_(p, std=.15)
    if not more and not fresh: made[family] = model
    return freeze(model)


def eager_maps(model, **inputs):
    eager = copy.deepcopy(model)
    eager.set_attn_implementation('eager')
    return eager(**inputs, output_attentions=True).attentions


def hooks(model): return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
def places(mask): return (mask.cumsum(1) - 1).clamp(0)


def assert_rows(rows, maps, mask, atol=1e-6):
    real = mask[:, None, :, None].bool()
    for layer, m in enumerate(maps): assert ((rows[layer] - m) * real).abs().max() < atol, layer


@pytest.mark.parametrize('family', families)
def test_hidden_states_are_the_librarys(family):
    model = tiny(family)
    for mask in (full, right, left):
        inputs = dict(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask)
        want = model(**inputs, output_hidden_states=True).hidden_states
        got = hidden_states(model, [0, 1, 2, 3, -1, -4], **inputs)
        assert all(torch.equal(got[i], want[i]) for i in got) and list(got) == [0, 1, 2, 3, -1, -4]
    assert torch.equal(hidden_states(model, [1], input_ids=ids)[1], model(ids, output_hidden_states=True).hidden_states[1])
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_hidden_states_leave_no_hooks_after_a_failure():
    model = tiny('llama', fresh=True)
    with pytest.raises(ValueError): hidden_states(model, [0, -1], input_ids=ids, inputs_embeds=ids)
    assert hooks(model) == 0


def test_hidden_states_carry_gradients_to_what_is_trained():
    model = tiny('llama')
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    hidden_states(model, [-1], inputs_embeds=embeds)[-1].sum().backward()
    assert embeds.grad.abs().sum() > 0
    assert not hidden_states(model, [-1], input_ids=ids)[-1].requires_grad


@pytest.mark.parametrize('mask', [full, right, left], ids=['no padding', 'right', 'left'])
@pytest.mark.parametrize('family', families)
def test_rows_are_those_of_eager_attention(family, mask):
    model, inputs = tiny(family), dict(input_ids=ids, attention_mask=mask, position_ids=places(mask))
    if family == 'bloom': inputs.pop('position_ids')
    before = model.config._attn_implementation
    plain, hooked = model(**inputs).logits, hooks(model)
    with attention_rows(model, slice(None)) as seen: looked = model(**inputs).logits
    assert_rows(seen.rows, eager_maps(model, **inputs), mask)
    assert torch.equal(looked, plain) and model.config._attn_implementation == before
    assert hooks(model) == hooked


@pytest.mark.parametrize('mask', [full, right, left], ids=['no padding', 'right', 'left'])
@pytest.mark.parametrize('family', families)
def test_rows_in_bf16_are_eagers_to_its_rounding(family, mask):
    "Of the same states: sdpa and eager attention round differently, so each eager block is given what the watched one got."
    model, inputs = copy.deepcopy(tiny(family)).bfloat16(), dict(input_ids=ids, attention_mask=mask, position_ids=places(mask))
    if family == 'bloom': inputs.pop('position_ids')
    with attention_rows(model, slice(None)) as seen: states = hidden_states(model, range(3), **inputs)
    def given(state, block, args, kwargs): return ((state, *args[1:]), kwargs) if args else (args, kwargs | dict(hidden_states=state))
    eager = copy.deepcopy(model)
    eager.set_attn_implementation('eager')
    for i, block in enumerate(blocks(eager)): block.register_forward_pre_hook(partial(given, states[i]), with_kwargs=True)
    maps, real = eager(**inputs, output_attentions=True).attentions, mask[:, None, :, None].bool()
    for i, m in enumerate(maps):
        assert seen.rows[i].dtype == m.dtype == torch.bfloat16
        apart = (seen.rows[i].float() - m.float()).abs() * real
        assert (apart <= m.float() * 2**-7).all() if family != 'gptj' else apart.max() <= 2**-8, i     # a GPT-J's eager attention has scores in float32


@pytest.mark.parametrize('family', families)
def test_generation_gives_the_rows_of_one_pass(family):
    model = tiny(family)
    with attention_rows(model, slice(None)) as seen:
        text = model.generate(input_ids=ids, attention_mask=left, min_new_tokens=6, max_new_tokens=6, do_sample=False)
    assert text.shape == (2, 18) and seen.queries.tolist() == [list(range(17))]
    mask = nn.functional.pad(left, (0, 5), value=1)
    inputs = dict(input_ids=text[:, :-1], attention_mask=mask) | ({} if family == 'bloom' else dict(position_ids=places(mask)))
    assert_rows(seen.rows, eager_maps(model, **inputs), mask, atol=2e-6)


@pytest.mark.parametrize('family', ['llama', 'mistral'])
def test_static_cache(family):
    model = tiny(family)
    with attention_rows(model, slice(None)) as seen:
        text = model.generate(input_ids=ids, min_new_tokens=4, max_new_tokens=4, do_sample=False, cache_implementation='static')[:, :-1]
    assert_rows(seen.rows, eager_maps(model, input_ids=text), torch.ones_like(text))


def test_generation_with_chosen_positions():
    model = tiny('llama')
    run = dict(input_ids=ids, min_new_tokens=6, max_new_tokens=6, do_sample=False)
    with attention_rows(model, torch.tensor([[13, 2, -1], [16, 0, 11]]), slice(0, 4), layers=[-1]) as seen: text = model.generate(**run)
    want = eager_maps(model, input_ids=text[:, :-1])[-1]
    for b, row in enumerate([[13, 2, -1], [16, 0, 11]]):
        for slot, q in enumerate(row):
            assert torch.allclose(seen.rows[-1][b, :, slot], want[b, :, q, :4] if q >= 0 else torch.zeros(4, 4), atol=1e-6)
    with attention_rows(model, slice(-1, None)) as seen: model.generate(**run)
    assert seen.queries.tolist() == [list(range(11, 17))]
    with attention_rows(model, [17]) as seen: model.generate(**run)
    with pytest.raises(BadInput, match='position 17'): seen.rows


def test_a_cache_filled_outside_the_block():
    model = tiny('llama')
    past = model(ids[:, :7], use_cache=True).past_key_values
    with attention_rows(model, [9, 7]) as seen: model(ids[:, 7:], past_key_values=past)
    assert torch.allclose(seen.rows[1], eager_maps(model, input_ids=ids)[1][:, :, [9, 7]], atol=1e-6)
    for early in (slice(None), [9, 6], torch.tensor([[8, -1], [0, 8]])):
        past = model(ids[:, :7], use_cache=True).past_key_values
        with attention_rows(model, early) as seen: model(ids[:, 7:], past_key_values=past)
        with pytest.raises(BadInput, match='give positions from 7 on'): seen.rows


def test_cached_tokens_are_counted_under_either_name():
    past = tiny('llama')(ids[:, :7], use_cache=True).past_key_values
    assert cached_length({}) == cached_length(dict(cache=None, past_key_values=None)) == 0
    assert cached_length(dict(cache=past)) == cached_length(dict(past_key_values=past, cache=None)) == 7


@pytest.fixture(scope='module')
def llama_maps(): return {layer: m.numpy() for layer, m in enumerate(eager_maps(tiny('llama'), input_ids=ids))}


bound = st.none() | st.integers(-20, 20)
place = st.integers(-12, 11)
spec = st.one_of(st.builds(slice, bound, bound, st.none() | st.integers(1, 5)), st.lists(place, min_size=1, max_size=20),
                 st.lists(st.booleans(), min_size=12, max_size=12).map(torch.tensor))


@settings(deadline=None, max_examples=60)
@given(spec, st.none() | spec, st.integers(-3, 2))
def test_selection_is_numpys(llama_maps, queries, keys, layer):
    with attention_rows(tiny('llama'), queries, keys, layers=[layer]) as seen: tiny('llama')(ids)
    as_index = lambda s: slice(None) if s is None else s if isinstance(s, slice) else np.asarray(s)
    want = llama_maps[layer % 3][:, :, as_index(queries)][..., as_index(keys)]
    assert list(seen.rows) == [layer] and seen.rows[layer].shape == want.shape
    assert np.allclose(seen.rows[layer], want, atol=1e-6)


whole = {}
per_sample = st.integers(0, 6).flatmap(lambda n: st.lists(st.lists(st.integers(-1, 11), min_size=n, max_size=n), min_size=2, max_size=2))


@settings(deadline=None, max_examples=40)
@given(per_sample, per_sample, st.sampled_from(['llama', 'bloom']))
def test_an_index_for_each_sample(queries, keys, family):
    model = tiny(family)
    queries, keys = (torch.tensor(x).long().reshape(2, -1) for x in (queries, keys))
    with attention_rows(model, queries, keys, layers=[1]) as seen: model(ids)
    if family not in whole: whole[family] = eager_maps(model, input_ids=ids)[1]
    for b in range(2):
        want = whole[family][b][:, queries[b]][:, :, keys[b]] * (queries[b] >= 0)[:, None] * (keys[b] >= 0)
        assert torch.allclose(seen.rows[1][b], want, atol=1e-6)


def test_positions_of_a_mask():
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    assert positions(mask).tolist() == [[0, 2, 3], [-1, -1, -1], [1, -1, -1]]
    assert positions(mask[1:2]).shape == (1, 0)
    model = tiny('llama')
    with attention_rows(model, ids > 50, ids <= 50) as seen: model(ids)
    assert seen.queries.tolist() == positions(ids > 50).tolist() and seen.keys.tolist() == positions(ids <= 50).tolist()


def test_layers_dtype_and_device():
    model = copy.deepcopy(tiny('llama')).bfloat16()
    with attention_rows(model, [3], layers=[2, -3]) as seen: model(ids)
    with attention_rows(model, [3], layers=[2], to='cpu') as moved: model(ids)
    assert list(seen.rows) == [2, -3] and seen.rows[2].dtype == torch.bfloat16 and moved.rows[2].dtype == torch.float32
    assert torch.equal(seen.rows[2].float(), moved.rows[2])
    assert torch.allclose(seen.rows[2].float(), eager_maps(model, input_ids=ids)[2][:, :, 3:4].float(), atol=.01)


def test_the_latest_sequence_is_kept():
    model = tiny('llama')
    with attention_rows(model, slice(-2, None)) as seen:
        model(ids)
        first = seen.rows[0]
        model(ids[:, :5])
        assert seen.queries.tolist() == [[3, 4]] and seen.rows[0].shape == (2, 4, 2, 5)
    assert first.shape == (2, 4, 2, 12)


@pytest.mark.parametrize('family', ['llama', 'gptj', 'bloom'])
def test_nested_blocks_and_failures(family):
    model = tiny(family, fresh=True)
    before, hooked = model.config._attn_implementation, hooks(model)
    with pytest.raises(ZeroDivisionError):
        with attention_rows(model, [5]) as outer:
            with attention_rows(model, [2, 5], layers=[1]) as inner: model(ids)
            again = inner.rows[1]
            model(ids)
            assert torch.equal(outer.rows[1], again[:, :, 1:]) and torch.equal(inner.rows[1], again)
            1 / 0
    assert model.config._attn_implementation == before and hooks(model) == hooked


def test_an_eager_model_stays_eager():
    model = copy.deepcopy(tiny('llama'))
    model.set_attn_implementation('eager')
    with attention_rows(model, slice(None)) as seen: model(ids)
    assert model.config._attn_implementation == 'eager'
    assert_rows(seen.rows, model(ids, output_attentions=True).attentions, full)


def test_custom_masks():
    model, mask = tiny('llama'), torch.zeros(2, 1, 12, 12)
    mask[:, :, 6:, :3] = torch.finfo(torch.float32).min
    mask = mask + torch.full((12, 12), torch.finfo(torch.float32).min).triu(1)
    mask = mask.clamp(min=torch.finfo(torch.float32).min)
    with attention_rows(model, slice(None)) as seen: model(ids, attention_mask=mask)
    assert_rows(seen.rows, eager_maps(model, input_ids=ids, attention_mask=mask), full)
    with attention_rows(model, slice(None)) as seen: model(ids, attention_mask=mask == 0)
    assert_rows(seen.rows, eager_maps(model, input_ids=ids, attention_mask=mask), full)


def test_a_row_of_padding_is_zero():
    with attention_rows(tiny('llama'), slice(None)) as seen: tiny('llama')(ids, attention_mask=left)
    sums = seen.rows[0].sum(-1)                                            # (B, heads, T)
    assert torch.allclose(sums, left[:, None].float().expand_as(sums), atol=1e-5)


vit = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)


def test_multimodal_models_and_encoders():
    with seeded(0):
        llava = freeze(LlavaForConditionalGeneration(LlavaConfig(image_token_index=3, text_config=sizes | dict(model_type='llama'),
                                                                 vision_config=vit | dict(model_type='clip_vision_model'))))
        clip, pixels = freeze(CLIPVisionModel(CLIPVisionConfig(**vit))), torch.randn(2, 3, 32, 32)
    prompt = torch.cat([torch.full((2, 16), 3), ids.clamp(min=4)], 1)
    with attention_rows(llava, slice(-3, None), prompt == 3) as seen:
        text = llava.generate(input_ids=prompt, pixel_values=pixels, min_new_tokens=3, max_new_tokens=3, do_sample=False)[:, :-1]
        assert llava.model.vision_tower.config._attn_implementation == 'sdpa'
    assert seen.queries.tolist() == [[25, 26, 27, 28, 29]] and llava.model.language_model.config._attn_implementation == 'sdpa'
    maps = eager_maps(llava, input_ids=text, pixel_values=pixels)
    assert all(torch.allclose(seen.rows[i], m[:, :, -5:, :16], atol=1e-6) for i, m in enumerate(maps))
    want = llava(input_ids=text, pixel_values=pixels, output_hidden_states=True).hidden_states
    got = hidden_states(llava, range(4), input_ids=text, pixel_values=pixels)
    assert all(torch.equal(got[i], h) for i, h in enumerate(want))
    with attention_rows(clip, slice(None)) as seen: clip(pixel_values=pixels)
    assert all(torch.allclose(seen.rows[i], m, atol=1e-6) for i, m in enumerate(eager_maps(clip, pixel_values=pixels)))


def test_t5_by_its_encoder_and_decoder():
    with seeded(0): t5 = freeze(T5ForConditionalGeneration(T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)))
    with attention_rows(t5.encoder, slice(None)) as enc, attention_rows(t5, slice(None)) as dec:
        t5(input_ids=ids, attention_mask=right, decoder_input_ids=ids[:, :5])
    eager = copy.deepcopy(t5)
    eager.set_attn_implementation('eager')
    out = eager(input_ids=ids, attention_mask=right, decoder_input_ids=ids[:, :5], output_attentions=True)
    assert all(torch.allclose(enc.rows[i], out.encoder_attentions[i], atol=1e-6) for i in range(2))
    assert all(torch.allclose(dec.rows[i], out.decoder_attentions[i], atol=1e-6) for i in range(2))


def test_a_replaced_block_keeps_the_numbers():
    model = copy.deepcopy(tiny('llama'))
    class Skip(nn.Module):
        def forward(self, hidden_states, **kwargs): return hidden_states
    blocks(model)[1] = Skip()
    states = hidden_states(model, range(4), input_ids=ids)
    assert len(states) == 4 and torch.equal(states[1], states[2])
    with attention_rows(model, [0]) as seen: model(ids)
    assert list(seen.rows) == [0, 2]
    with pytest.raises(BadInput, match='Skip'), attention_rows(model, [0], layers=[1]): pass


@pytest.mark.parametrize('queries, keys, layers, message', [
    ([12], None, None, 'position 12'), ([-13], None, None, 'before the first'), ([0], [40], None, 'position 40'), ([0], None, [3], 'no layer 3'),
    (slice(None, None, -1), None, None, 'forward'), ([.5], None, None, 'queries'), (torch.tensor([[0, -2], [1, 1]]), None, None, '-1, for padding'),
    (torch.zeros(3, 1).long(), None, None, 'batch of 2'), ([0], torch.zeros(2, 1, 1).long(), None, 'keys')])
def test_bad_positions_are_named(queries, keys, layers, message):
    model = tiny('llama')
    with pytest.raises(BadInput, match=message):
        with attention_rows(model, queries, keys, layers) as seen: model(ids)
        seen.rows
    assert model.config._attn_implementation == 'sdpa'


def test_what_cannot_be_seen_is_refused():
    with pytest.raises(BadInput, match='Linear is not a transformers model'), attention_rows(nn.Linear(2, 2), [0]): pass
    with pytest.raises(BadInput, match='Linear'): hidden_states(nn.Linear(2, 2), [0])
    with attention_rows(tiny('llama'), [0]) as seen: pass
    with pytest.raises(BadInput, match='inside the block'): seen.rows
    model = tiny('bloom', fresh=True)
    for block in blocks(model): block.self_attention.register_forward_hook(lambda module, args, output: (output[0], None))
    with pytest.raises(BadInput, match='BloomAttention gives no attention weights'), attention_rows(model, [0]): model(ids)
