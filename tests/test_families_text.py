"""A text does not depend on what else is in its batch, nor on a cache: for every family of causal
language models that `load_lm` takes, greedy text alone is that in a batch and behind a shared prefix.

What went wrong: padding between a prefix and shorter prompts (sliding windows, local attention,
ALiBi), checkpoints that say `use_cache: false`, logits that overflow, a map at the wrong scale."""
import json
import os

import pytest
import torch
import transformers as T

from families import ATTENTION, SAMPLE, SIZES, STATE_SPACE, build, save, special_ids
from frozen_nb.core.frozen import BadInput, freeze
from frozen_nb.core.generation import continuations, cut_at, may_pad_inside, padded_in_front, start_ids
from frozen_nb.core.prefix import LinearMap, choose, generate, sequence, starts
from frozen_nb.core.states import multimodal_batch
from frozen_nb.core.zoo import LM, load_lm, load_tokenizer
from frozen_nb.limber import Limber, new_map

CAMPAIGN = os.environ.get('FROZEN_NB_CAMPAIGNS') == 'full'
HERE = [*ATTENTION] if CAMPAIGN else [*dict.fromkeys([*SAMPLE, 'mistral_window', 'gpt_neo', 'mpt', 'bloom', 'falcon_alibi', 'gpt_oss', 'opt'])]
PREFIX = 'Q: a bird flies. A: yes, it has wings and feathers. Q: a fish swims. A: yes. Q: a stone sleeps. A: no.\n'
PROMPTS = ['Q: it? A:', 'Q: what does a zebra that lives by the lake eat at night under the tall tree? A:', 'Q: the lion? A:', 'Q: who is it? A:']


@pytest.fixture(scope='module')
def family():
    "name -> a language model; built once."
    kept = {}
    def make(name):
        if name not in kept:
            model, tokenizer = build(name)
            kept[name] = LM(freeze(model), tokenizer, name, '')
        return kept[name]
    return make


@torch.no_grad()
def by_hand(lm, n, **inputs):
    "New tokens of one row, by a pass over the whole row for each, without a cache."
    new = []
    embeds = inputs['inputs_embeds'] if 'inputs_embeds' in inputs else lm.embeddings(inputs['input_ids'])
    while len(new) < n and lm.tokenizer.eos_token_id not in new:
        row = torch.cat([embeds, lm.embeddings(torch.tensor([new], dtype=torch.long))], 1) if new else embeds
        ids = inputs['input_ids'] if 'input_ids' in inputs else None
        if ids is None: logits = lm.model(inputs_embeds=row, attention_mask=torch.ones(row.shape[:2]).long(), use_cache=False).logits
        else:
            whole = torch.cat([ids, torch.tensor([new], dtype=torch.long)], 1) if new else ids
            logits = lm.model(input_ids=whole, attention_mask=torch.ones_like(whole), use_cache=False).logits
        new.append(logits[0, -1].argmax().item())
    return new


@pytest.mark.parametrize('name', HERE)
def test_a_text_is_the_same_alone_in_a_batch_and_with_a_cache(name, family):
    lm = family(name)
    def ids_of(text): return lm.tokenizer(text, add_special_tokens=False).input_ids
    start = [lm.tokenizer.bos_token_id]
    alone = [by_hand(lm, 6, input_ids=torch.tensor([start + ids_of(PREFIX) + ids_of(prompt)])) for prompt in PROMPTS]
    alone = [cut_at(lm.tokenizer.decode(ids, skip_special_tokens=True), ('\0',)) for ids in alone]
    ways = dict(shared={}, batch=dict(shared=False), one_by_one=dict(batch_size=1), pairs=dict(batch_size=2))
    for way, options in ways.items():
        assert continuations(lm, PREFIX, PROMPTS, ('\0',), 6, **options) == alone, (name, way)
    assert any(alone)


@pytest.mark.parametrize('name', HERE)
def test_a_text_behind_an_image_is_the_same_alone_and_in_a_batch(name, family):
    lm = family(name)
    torch.manual_seed(1)
    images = torch.randn(len(PROMPTS), 3, lm.width)*lm.embeddings.weight.std()
    try:
        together = generate(lm, images, PROMPTS, 6)
    except BadInput as error:
        assert name in ('ctrl', 'openai_gpt') and 'token ids only' in str(error)
        return
    assert name not in ('ctrl', 'openai_gpt')
    alone = []
    for image, prompt in zip(images, PROMPTS):
        seq = sequence(lm, image[None], prompt)
        alone.append(lm.tokenizer.decode(by_hand(lm, 6, inputs_embeds=seq.inputs_embeds), skip_special_tokens=True))
    assert together == alone, name
    choices = [' a fox', ' a small blue hippo']
    both = choose(lm, images, PROMPTS, choices)
    each = torch.cat([choose(lm, images[i:i + 1], PROMPTS[i], choices) for i in range(len(PROMPTS))])
    torch.testing.assert_close(both, each, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize('name', [*STATE_SPACE] if CAMPAIGN else ['mamba', 'lfm2'])
def test_models_without_attention_are_refused_when_they_are_loaded(name, tmp_path):
    with pytest.raises(BadInput, match='state-space or recurrent') as error: load_lm(save(tmp_path/name, name), device='cpu')
    assert '\n' not in str(error.value)


def test_where_padding_may_stand(family):
    assert may_pad_inside(family('gpt2').model, 200) and may_pad_inside(family('phi3').model, 200)
    assert not may_pad_inside(family('mpt').model, 10)
    assert may_pad_inside(family('falcon_alibi').model, 200) and may_pad_inside(family('bloom').model, 200)   # ALiBi that leaves padding out
    assert may_pad_inside(family('mistral_window').model, 20) and not may_pad_inside(family('mistral_window').model, 40)   # the window is 24
    ids, mask = padded_in_front([[5, 6], [7]], 1)
    assert ids.tolist() == [[5, 6], [1, 7]] and mask.tolist() == [[1, 1], [0, 1]]


# Settings of a checkpoint

def changed(folder, file, **settings):
    path = folder/file
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(config | settings))
    return folder


@pytest.mark.parametrize('file', ['config.json', 'generation_config.json'])
@pytest.mark.parametrize('name', ['llama', 'mpt', 'opt'])
def test_a_checkpoint_that_keeps_no_cache_gives_the_same_text(name, file, family, tmp_path):
    "Checkpoints saved after training with activation checkpointing say `use_cache: false`."
    lm = load_lm(changed(save(tmp_path/name, name), file, use_cache=False), device='cpu')
    assert continuations(lm, PREFIX, PROMPTS, ('\0',), 6) == continuations(family(name), PREFIX, PROMPTS, ('\0',), 6)


# Half precision

def overflowing():
    tokenizer = load_tokenizer('llama')
    torch.manual_seed(0)
    model = T.LlamaForCausalLM(T.LlamaConfig(**special_ids(tokenizer), **SIZES))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if 'down_proj' in name: p.fill_(3e4)
            elif 'mlp' in name: p.normal_(0, 4.)
    return model, tokenizer


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_logits_that_overflow_are_refused(dtype):
    model, tokenizer = overflowing()
    lm = LM(freeze(model.to(dtype)), tokenizer, 'big', '')
    x = torch.randn(2, 3, lm.width, generator=torch.Generator().manual_seed(0))
    tries = (lambda: generate(lm, x, 'A picture of', 4), lambda: choose(lm, x, 'A picture of', [' a lion', ' a bear']),
             lambda: continuations(lm, 'Q: ', ['a', 'b c'], max_new_tokens=4))
    for run in tries:
        if dtype == torch.float16:
            with pytest.raises(BadInput, match="not finite in torch.float16; load it with dtype='fp32' or 'bf16'"): run()
        else: assert len(run()) == 2


# Start token

class _Begun:
    "A tokenizer that puts its start token in front, as that of Gemma does."
    def __init__(self, tokenizer): self.inner = tokenizer
    def __getattr__(self, name): return getattr(self.inner, name)
    def __call__(self, text, add_special_tokens=True, **kwargs):
        batch = self.inner(text, add_special_tokens=False, **kwargs)
        if add_special_tokens and isinstance(text, str): batch['input_ids'] = [self.bos_token_id, *batch['input_ids']]
        return batch


def test_a_start_token_that_is_not_there():
    lm = LM(torch.nn.Linear(1, 1), _Begun(load_tokenizer('llama')), 'none', '')
    lm.tokenizer.bos_token_id = None
    assert start_ids(lm) == []
    with pytest.raises(BadInput, match='no start token'): start_ids(lm, True)

@pytest.mark.parametrize('begun', [False, True])
def test_a_start_token_before_an_image_is_neither_visual_nor_textual(family, begun):
    lm = family('llama')
    if begun: lm = LM(lm.model, _Begun(lm.tokenizer), 'begun', '')
    batch = multimodal_batch(lm, torch.zeros(2, 3, lm.width), 'a', [' red', ' red fox'])
    assert batch.visual[:, begun:begun + 3].all() and batch.visual.sum() == 6
    assert not (batch.visual & batch.text).any() and not batch.text[:, :begun].any()
    assert (batch.visual | batch.text).sum() + 2*begun == batch.inputs['attention_mask'].sum()



def test_a_map_is_used_as_it_was_trained(family):
    lm = family('gemma2')
    begun, features = LM(lm.model, _Begun(lm.tokenizer), 'begun', ''), torch.randn(4, 3, 8)
    assert starts(new_map(None, begun, features)) and not starts(new_map(None, lm, features))
    assert not starts(LinearMap(2, 2)) and not starts(Limber.load(device='cpu').map)   # the shipped one says nothing


@pytest.mark.parametrize('name', ['gemma', 'gemma2', 'granite', 'llama'])
def test_a_new_map_starts_at_the_scale_of_what_the_model_takes(name, family):
    "A Gemma multiplies its token embeddings by the square root of their width."
    lm, features = family(name), torch.randn(64, 3, 8)
    m = new_map(None, lm, features)      # blind: its bias starts at this scale, too
    words = lm.embeddings(torch.arange(lm.embeddings.num_embeddings))
    for x in (m(features) - m.linear.bias, m.linear.bias): assert .75 < x.std()/words.std() < 1.3
