"""The authors' published code and the library, on the same small inputs and weights.

`tests/parity/` holds the inputs, the weights and what the published code answered; its README
says what each file is. Every array that is no input is a test here. An array is *held* (as
published, or as the paper's formula where the published code departs from it), it *departs*
(the published code does something else, and so does the library: the difference must be there),
or it is *absent*: the library has no counterpart, and the test is skipped with the reason.
"""
import copy
import json
import re
import warnings
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from frozen_nb import flmm, generative_adapter, ima, lm4visual, pinto
from frozen_nb.core import activations, states as lm_states
from frozen_nb.fits import lm4visual as lm4visual_fits, vit_llama as vit_llama_reader
from frozen_nb.fits.flmm_checkpoints import published_unet_names, read_flmm
from frozen_nb.core.adapted import adapted
from frozen_nb.core.contexts import chunks_of
from frozen_nb.core.low_rank import polar
from frozen_nb.fits.limber import read_projection
from frozen_nb.fits.published_generators import read_generator
from frozen_nb.core.frozen import BadInput, fingerprint, freeze
from frozen_nb.core.mask_head import mask_losses
from frozen_nb.core.metrics import mask_iou, mask_overlap
from frozen_nb.core.phrase_maps import merge_rows, Phrases
from frozen_nb.core.phrases import lmm_images, unpad
from frozen_nb.core.prefix import LinearMap, sequence, target_loss
from frozen_nb.core.refiner import mask_boxes, Refiner
from frozen_nb.core.skipping import skipping
from frozen_nb.core.subnetworks import linears, subnetwork, subnetwork_iou
from frozen_nb.core.zoo import LM, visual_tokens
from frozen_nb.world.multiple_choice import MCQ

VECTORS = Path(__file__).parent/'parity'
FUNCTIONS, INPUTS = {}, {}


@dataclass
class Held:
    "Equal within a tolerance, which is relative for numbers above one."
    ours: object
    theirs: object
    tolerance: float = 1e-5
    of: str = 'published'   # or 'paper'

    def check(self):
        gap, size = difference(self.ours, self.theirs)
        assert gap <= self.tolerance*max(1, size), f'{gap:.1e} from what is {self.of}, of {size:.2g}'


@dataclass
class Departs:
    "The published code does something else, and the difference is more than rounding."
    ours: object
    theirs: object
    why: str
    tolerance: float = 1e-5

    def check(self):
        gap, size = difference(self.ours, self.theirs)
        assert gap > self.tolerance*max(1, size), f'no difference any more: {self.why}'


@dataclass
class Absent:
    why: str
    def check(self): pytest.skip(self.why)


def difference(a, b):
    "Largest difference, and largest finite number of the second."
    a, b = (torch.as_tensor(x).detach().double() for x in (a, b))
    assert a.shape == b.shape, (a.shape, b.shape)
    equal = (a == b) | (a.isnan() & b.isnan())
    gaps = torch.where(equal, 0., (a - b).abs()).nan_to_num(torch.inf)
    return float(gaps.max()), float(torch.where(b.isfinite(), b.abs(), 0.).max())


def vectors(name, inputs):
    "Register what computes the outcomes of a file; `inputs`: a pattern of the names of its inputs."
    def register(function):
        FUNCTIONS[name], INPUTS[name] = function, re.compile(inputs)
        return function
    return register


@cache
def names_in(file):
    with np.load(VECTORS/f'{file}.npz', allow_pickle=False) as z: return tuple(z.files)


@cache
def read(file):
    "The arrays of a file: floats in single precision, the rest as whole numbers."
    with np.load(VECTORS/f'{file}.npz', allow_pickle=False) as z:
        arrays = {name: np.array(z[name]) for name in z.files}
    return {name: torch.from_numpy(x if x.dtype == np.float32 else x.astype(np.int64))
            for name, x in arrays.items()}


@cache
def outcomes(file):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return FUNCTIONS[file](read(file))


def under(arrays, prefix):
    return {name[len(prefix):]: x for name, x in arrays.items() if name.startswith(prefix)}


def items():
    for path in sorted(VECTORS.glob('*/*.npz')):
        file = f'{path.parent.name}/{path.stem}'
        for name in names_in(file):
            if file not in INPUTS or not INPUTS[file].fullmatch(name): yield file, name


def tiny_lm(model, tokenizer=None): return LM(freeze(model), tokenizer, 'vectors', '0')


# ---- LiMBeR

def linear_map(weight, bias, out_tokens=1):
    m = LinearMap(weight.shape[1], len(bias)//out_tokens, out_tokens=out_tokens)
    m.linear.load_state_dict(dict(weight=weight, bias=bias))
    return m.eval()


@vectors('limber/projection', r'features|pooled/features|(pooled/\d/)?proj\.\w+|layernorm/ln\.\w+')
def projections(z):
    out = {'projected': Held(linear_map(z['proj.weight'], z['proj.bias'])(z['features']), z['projected'])}
    for s in (1, 2, 4):
        p = under(z, f'pooled/{s}/')
        m = linear_map(p['proj.weight'], p['proj.bias'], s)
        out[f'pooled/{s}/projected'] = Held(m(z['pooled/features'][:, None]), p['projected'])
    return out | {'layernorm/projected': Absent('no layer norm behind the projection: no released map has one')}


class Numbers:
    "A tokenizer for texts that are numbers."
    bos_token_id = None
    def __init__(self, end): self.eos_token_id = self.pad_token_id = end
    def __call__(self, text, add_special_tokens=False):
        def ids(t): return [10] if t == 'a' else [int(x) for x in t.split()]
        return SimpleNamespace(input_ids=ids(text) if isinstance(text, str) else [ids(t) for t in text])
    def convert_ids_to_tokens(self, i): return str(i)


def gptj(z):
    from transformers import GPTJConfig, GPTJForCausalLM
    w = under(z, 'lm.')
    V, d = w['transformer.wte.weight'].shape
    model = GPTJForCausalLM(GPTJConfig(
        vocab_size=V, n_positions=64, n_embd=d, n_layer=2, n_head=4, rotary_dim=4, n_inner=64,
        bos_token_id=V - 2, eos_token_id=V - 2)).eval()
    assert model.load_state_dict(w, strict=False).unexpected_keys == []
    return tiny_lm(model, Numbers(V - 2))


def loss_outcomes(lm, m, seq, p, front):
    "Of one way to pad: what a batch is, what comes out, and the gradients."
    width = p['labels'].shape[1]
    k = width - p['captions'].shape[1]   # visual tokens
    cut = lambda x: x[:, :width]
    theirs = p['attention_mask'].bool()
    length = seq.attention_mask.sum(1, keepdim=True) - 1   # without the end, which nothing reads
    ours = torch.arange(seq.labels.shape[1]) < length
    there = F.pad(ours, (0, width - ours.shape[1])) if width > ours.shape[1] else cut(ours)
    logits = lm.model(inputs_embeds=seq.inputs_embeds, attention_mask=seq.attention_mask).logits
    m.zero_grad()
    loss = target_loss(lm, seq)
    loss.backward()
    ids = torch.cat([row[k:int(n)] for row, n in zip(seq.labels, length)])
    their_captions = torch.cat([row[:int(n) - k] for row, n in zip(p['captions'], length)])
    labels = F.pad(seq.labels, (0, max(0, width - seq.labels.shape[1])), value=-100)
    same = {
        'captions': (ids, their_captions), 'attention_mask': (there.long(), theirs.long()),
        'labels': (cut(labels), p['labels']), 'loss': (loss, p['loss']),
        'inputs_embeds': (seq.inputs_embeds[ours], p['inputs_embeds'][theirs]),
        'logits': (logits[ours], p['logits'][theirs]),
        'grad/proj.weight': (m.linear.weight.grad.clone(), p['grad/proj.weight']),
        'grad/proj.bias': (m.linear.bias.grad.clone(), p['grad/proj.bias']),
        'trainable': (int(not any(x.requires_grad for x in lm.model.parameters())), p['trainable']),
    }
    return {f'{front}/{name}': Held(*pair) for name, pair in same.items()}


@vectors('limber/sequence_loss', r'lm\..*|features|proj\.\w+|captions_lengths|caption_tokens|greedy/prompt')
def sequences_and_losses(z):
    lm, m = gptj(z), linear_map(z['proj.weight'], z['proj.bias'])
    pieces = z['caption_tokens'].split(z['captions_lengths'].tolist())
    captions = [' '.join(map(str, piece.tolist())) for piece in pieces]
    seq = sequence(lm, m(z['features']), '', captions)
    out = loss_outcomes(lm, m, seq, under(z, 'padded_by_one/'), 'padded_by_one')
    # as published: the longest caption of a batch has no end to learn; here it is taken away
    seq = sequence(lm, m(z['features']), '', captions)
    seq.labels[z['captions_lengths'].argmax(), -1] = -100
    out |= loss_outcomes(lm, m, seq, under(z, 'published/'), 'published')
    g = under(z, 'greedy/')
    seq = sequence(lm, m(z['features']).detach(), ' '.join(map(str, g['prompt'].tolist())), padding='left')
    ids = lm.model.generate(
        inputs_embeds=seq.inputs_embeds, attention_mask=seq.attention_mask, max_new_tokens=12,
        do_sample=False, eos_token_id=None, pad_token_id=lm.tokenizer.pad_token_id)
    return out | {
        'projected': Held(m(z['features']), z['projected']),
        'greedy/inputs_embeds': Held(seq.inputs_embeds, g['inputs_embeds']),
        'greedy/tokens': Held(ids, g['tokens']),
        'greedy/published_raises': Departs(0, g['published_raises'], 'temperature 0 raises there'),
    }


@vectors('limber/sampling', r'logits|cut/tokens|eos|image_token')
def sampling(z):
    why = 'no sampling: the library decodes greedily, and ends a text at its first end token'
    return {name: Absent(why) for name in z if not INPUTS['limber/sampling'].fullmatch(name)}


@vectors('limber/encoder_beit', r'beit\..*|pixels')
def beit(z):
    from transformers import BeitConfig, BeitModel
    model = BeitModel(BeitConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        use_relative_position_bias=True, layer_scale_init_value=.1, image_size=32, patch_size=8)).eval()
    assert model.load_state_dict(under(z, 'beit.'), strict=False).unexpected_keys == []
    with torch.no_grad(): return {'tokens': Held(visual_tokens(model, z['pixels'])[0], z['tokens'])}


@vectors('limber/encoder_clip_resnet', r'visual\..*|pixels')
def clip_resnet(z):
    import open_clip
    vision = dict(layers=(1, 1, 1, 1), width=4, image_size=64, patch_size=None, head_width=16)
    text = dict(context_length=8, vocab_size=16, width=16, heads=2, layers=1)
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).visual.eval()
    assert model.load_state_dict(under(z, 'visual.'), strict=False).unexpected_keys == []
    with torch.no_grad(): return {'tokens': Held(visual_tokens(model, z['pixels'])[0], z['tokens'])}


# ---- IMA

@vectors('ima/query_mapper', r'(?!output$).*')
def query_mapper(z):
    m = ima.QueryMapper(24, 32, width=32, queries=len(z['const']), layers=2, heads=int(z['heads']), ffn=64).eval()
    with torch.no_grad():
        m.queries.copy_(z['const'])
        m.inside.load_state_dict(under(z, 'down.'))
        m.mix.load_state_dict(under(z, 'trans.'))
        m.out[0].load_state_dict(under(z, 'up.'))
        m.out[1].load_state_dict(under(z, 'proj.'))
        return {'output': Held(m(z['features']), z['output'])}


@vectors('ima/model', '.*')
def model_of_ima(z): return {}


@cache
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM
    z = read('ima/model')
    c = {name: x.item() for name, x in under(z, 'config_').items()}
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=c['vocab_size'], hidden_size=c['hidden_size'], max_position_embeddings=2048,
        intermediate_size=c['intermediate_size'], num_hidden_layers=c['layers'],
        num_attention_heads=c['heads'], num_key_value_heads=c['key_value_heads'],
        rms_norm_eps=c['rms_norm_eps'],
        rope_parameters=dict(rope_type='default', rope_theta=c['rope_theta']))).eval()
    model.load_state_dict({name: x for name, x in z.items() if not name.startswith('config_')})
    return freeze(model)


def prompts_of(z, n=None):
    "A batch with its first tokens visual."
    x = z['inputs_embeds']
    att = z.get('attention_mask', torch.ones(x.shape[:2], dtype=torch.long))
    visual = (torch.arange(x.shape[1]) < int(z.get('prompt_len', 10))).expand(len(x), -1)
    x, att, visual = x[:n], att[:n], visual[:n]
    return lm_states.MultimodalBatch(dict(inputs_embeds=x, attention_mask=att), visual, att.bool() & ~visual)


@cache
def states_of_alignment():
    batch = prompts_of(read('ima/alignment'))
    with torch.no_grad(): return batch, lm_states.token_states(llama(), batch)


@vectors('ima/alignment', r'inputs_embeds|attention_mask|prompt_len')
@torch.no_grad()
def alignment(z):
    batch, states = states_of_alignment()
    real = z['attention_mask'].bool()
    last = llama().base_model(**batch.inputs).last_hidden_state
    al = ima.Alignment(len(real)).add(states, batch)
    out = {'states': Held(torch.stack([*states, last])[:, real], z['states'][:, real])}
    for reading, name in (('pooled', 'pooled'), ('token', 'token/mean')):
        out[f'{name}/same_layer'] = Held(al.curve(reading=reading), z[f'{name}/same_layer'])
        out[f'{name}/image_layer_0'] = Held(al.curve(reading=reading, images=0), z[f'{name}/image_layer_0'])
    for kind in ('max', 'min', 'median', 'max_mean'):
        for where in ('same_layer', 'image_layer_0'):
            out[f'token/{kind}/{where}'] = Absent('of the cosines of tokens only the mean is measured')
    for k in 'PT':
        halves = 'the first half of the examples is compared with the second'
        others = 'pairs of different examples are averaged, and few of a token with itself'
        per_example = 'the median of each example, averaged, and not the median of all tokens'
        out |= {
            f'pooled/all_pairs_{k}': Held(al.curve(k, k), z[f'pooled/all_pairs_{k}'], of='paper'),
            f'pooled/published_intra_{k}': Departs(al.curve(k, k), z[f'pooled/published_intra_{k}'], halves),
            f'change/token_itself_{k}': Held(al.changes(k), z[f'change/token_itself_{k}'], of='paper'),
            f'change/published_avg_{k}': Departs(al.changes(k), z[f'change/published_avg_{k}'], others),
            f'change/published_diag_mean_{k}': Departs(al.changes(k), z[f'change/published_diag_mean_{k}'], others),
            # a running median is known to 0.26 %
            f'norms/pooled_median_{k}': Held(al.norms[k].value, z[f'norms/pooled_median_{k}'], 3e-3, 'paper'),
            f'norms/published_{k}': Departs(al.norms[k].value, z[f'norms/published_{k}'], per_example, 3e-3),
        }
    return out


@vectors('ima/vocabulary', r'p|q|underflow_p|q_with_zeros')
@torch.no_grad()
def vocabulary(z):
    p, q = z['p'], z['q']
    curves = lm_states.vocabulary_curves(tiny_lm(llama()), *reversed(states_of_alignment()))
    paired = 'tokens of all examples are lined up and paired, mostly across examples'
    out = {
        'kl': Held(lm_states.kl(p.log(), q.log()), z['kl']), 'entropy': Held(lm_states.entropy(q.log()), z['entropy']),
        'underflow_entropy': Held(lm_states.entropy(z['underflow_p'].log()), z['underflow_entropy'], of='paper'),
        'underflow_entropy_published': Departs(
            lm_states.entropy(z['underflow_p'].log()), z['underflow_entropy_published'], 'NaN at probability 0'),
        'kl_q_with_zeros_published': Departs(
            lm_states.kl(q.log(), z['q_with_zeros'].log()), z['kl_q_with_zeros_published'],
            'words with probability 0 are left out, where the formula is infinite'),
        'states_kl_zipped_within_example': Held(
            curves['P against T'], z['states_kl_zipped_within_example'], 1e-4, 'paper'),
    }
    for name in ('published_one_call_each', 'published_layers'):
        out[f'states_kl_{name}'] = Departs(curves['P against T'], z[f'states_kl_{name}'], paired, 1e-4)
    for k in 'PT': out[f'states_entropy_{k}'] = Held(curves[k], z[f'states_entropy_{k}'], 1e-4)
    return out


def without(what, z, tokens='all', **options):
    "The last states of a batch without some parts, at tokens that are no padding."
    m, batch = llama(), prompts_of(z)
    with skipping(m, what, batch, tokens=tokens, **options):
        y = m.base_model(**batch.inputs, use_cache=False).last_hidden_state
    return y[z['attention_mask'].bool()]


def generated(what, when, z, published=False):
    "The last states of a prompt, and of a token behind it, with a cache."
    m, batch = llama(), prompts_of(z, 1)
    with skipping(m, what, batch, when=when, published=published):
        a = m.base_model(inputs_embeds=batch.inputs['inputs_embeds'], use_cache=True)
        b = m.base_model(inputs_embeds=z['generation/next'], use_cache=True, past_key_values=a.past_key_values)
    return dict(prefill=a.last_hidden_state, token=b.last_hidden_state)


@vectors('ima/skip', r'inputs_embeds|attention_mask|prompt_len|end_layer|generation/next')
@torch.no_grad()
def skip(z):
    m, batch, real = llama(), prompts_of(z), z['attention_mask'].bool()
    whole = m.base_model(**batch.inputs, use_cache=False).last_hidden_state[real]
    out = {'normal/interval_2': Held(whole, z['normal/interval_2'][real])}
    departures = dict(context_skip_attn=('attention', 'all'), context_skip_ffn_prompt=('ffn', 'visual'))
    for tag, options in (('interval_2', {}), ('interval_2/start_2', dict(start=2)), ('interval_1', dict(interval=1))):
        for what in ('block', 'ffn'):
            name = f'context_skip_{what}/{tag}'
            out[name] = Held(without(what, z, **options), z[name][real])
        for mode, (what, tokens) in departures.items():
            out[f'paper/{mode}/{tag}'] = Held(without(what, z, tokens, **options), z[f'paper/{mode}/{tag}'][real], of='paper')
            out[f'{mode}/{tag}'] = Held(without(what, z, tokens, published=True, **options), z[f'{mode}/{tag}'][real])
        name = f'context_parrallel_attn/{tag}'
        out[name] = Held(without('parallel attention', z, **options), z[name][real])
    modes = dict(skip_block=('block', 'generation'), skip_ffn=('ffn', 'generation'),
                 skip_attn=('attention', 'generation'), context_skip_block=('block', 'both'),
                 context_skip_ffn=('ffn', 'both'), onlycontext_skip_block=('block', 'prefill'),
                 onlycontext_skip_ffn=('ffn', 'prefill'))
    runs = {mode: generated(*how, z, published=True) for mode, how in modes.items()}
    a = m.base_model(inputs_embeds=z['inputs_embeds'][:1], use_cache=True)
    b = m.base_model(inputs_embeds=z['generation/next'], use_cache=True, past_key_values=a.past_key_values)
    runs['normal'] = dict(prefill=a.last_hidden_state, token=b.last_hidden_state)
    for mode, parts in runs.items():
        for part, y in parts.items():
            out[f'generation/{mode}/{part}'] = Held(y, z[f'generation/{mode}/{part}'])
    return out


@vectors('ima/points', 'inputs_embeds')
@torch.no_grad()
def points(z):
    batch, out = prompts_of(z), {}
    for layer in (1, 4):
        for name, y in lm_states.point_states(llama(), batch, layer).items():
            means = torch.stack([y[:, :10].mean(1), y[:, 10:].mean(1)], 1)
            out[f'layer_{layer}/{name}'] = Held(means, z[f'layer_{layer}/{name}'])
    return out


def calibration(z, kind, unequal):
    "Examples as the published code makes them: image, start token, text; padded by nothing."
    emb, out = llama().get_input_embeddings(), []
    for i, image in enumerate(z['images']):
        n = int(z['lengths'][i]) if unequal else z['texts'].shape[1]
        ids = [int(z['bos']), *([] if kind == 'P' else z['texts'][i, :n].tolist())]
        x = emb(torch.tensor([ids]))
        if kind != 'T': x = torch.cat([image[None], x], 1)
        visual = torch.arange(x.shape[1])[None] < (0 if kind == 'T' else len(image))
        att = torch.ones(x.shape[:2], dtype=torch.long)
        out.append(lm_states.MultimodalBatch(dict(inputs_embeds=x, attention_mask=att), visual, ~visual))
    return out


@vectors('ima/wanda', 'images|texts|lengths|bos')
@torch.no_grad()
def wanda(z):
    m, out = llama(), {}
    layers = {name: x for i in range(6) for name, x in linears(m, i).items()}
    def unpack(bits):
        flat = torch.from_numpy(np.unpackbits(bits.numpy().astype(np.uint8)).astype(bool))
        parts = flat[:sum(x.weight.numel() for x in layers.values())].split([x.weight.numel() for x in layers.values()])
        return {name: part.view(x.weight.shape) for (name, x), part in zip(layers.items(), parts)}
    def share(a, bits):
        b = unpack(bits)
        return sum((a[name] != b[name]).sum().item() for name in b)/sum(x.numel() for x in b.values())
    def iou(a, b): return np.array(list(subnetwork_iou(a, b).values()))
    padding = 'examples are filled with zero states, which count and which the tokens see'
    for s in (.5, .3):
        equal, unequal = ({k: subnetwork(m, calibration(z, k, u), s) for k in ('PT', 'P', 'T')} for u in (False, True))
        largest, at = subnetwork(m, [], s, by='magnitude'), f's{s}'
        out[f'{at}/magnitude'] = Held(share(largest, z[f'{at}/magnitude']), 0., 2e-4)
        for k in equal:
            out[f'{at}/no_padding/{k}'] = Held(share(equal[k], z[f'{at}/no_padding/{k}']), 0., 2e-4)
            published = z[f'{at}/published_seqlen_128/{k}']
            out[f'{at}/published_seqlen_128/{k}'] = Departs(share(unequal[k], published), 0., padding, .05)
            paper = f'{at}/paper_unequal/{k}'
            if paper in z: out[paper] = Held(share(unequal[k], z[paper]), 0., 2e-4, 'paper')
        ious = dict(P_T=iou(equal['P'], equal['T']), P_magnitude=iou(equal['P'], largest))
        for name, x in ious.items(): out[f'{at}/iou/{name}'] = Held(x, z[f'{at}/iou/{name}'], 2e-3)
        both = iou(unequal['P'], unequal['T'])
        out[f'{at}/iou/paper_unequal_P_T'] = Held(both, z[f'{at}/iou/paper_unequal_P_T'], 2e-3, 'paper')
        published = z[f'{at}/iou/published_seqlen_128_P_T']
        out[f'{at}/iou/published_seqlen_128_P_T'] = Departs(both, published, padding, 2e-3)
    return out


# ---- LM4Visual

META = {'self_attn.q_proj': 'attention.wq', 'self_attn.k_proj': 'attention.wk',
        'self_attn.v_proj': 'attention.wv', 'self_attn.o_proj': 'attention.wo',
        'mlp.gate_proj': 'feed_forward.w1', 'mlp.down_proj': 'feed_forward.w2',
        'mlp.up_proj': 'feed_forward.w3', 'input_layernorm': 'attention_norm',
        'post_attention_layernorm': 'ffn_norm'}


def vit_llama_file(z):
    "What a checkpoint of the authors holds: their names, and query and key in their order of rows."
    out = under(z, 'vit.')
    for name, x in under(z, 'lm.model.layers.').items():
        i, _, part = name.removesuffix('.weight').partition('.')
        meta = f'layers.{i}.{META[part]}.weight'
        out[f'llama.{meta}'] = z.get(f'meta.{meta}', x)
    width = len(out[next(name for name in out if name.endswith('ffn_norm.weight'))])
    return {name: x.contiguous() for name, x in out.items()} | {'llama.norm.weight': torch.ones(width)}


def vit_llama_of(z, path):
    save_file(vit_llama_file(z), path)
    return vit_llama_reader.read_vit_llama(path, int(z['config_vit_heads']), int(z['config_lm_heads']))


def their_gradients(model):
    "Gradient of each trainable parameter, by the authors' names."
    e, out = model.encoder, {}
    parts = {'patch_embed.proj.': e.tokenizer.project, 'blocks.': e.layers, 'norm.': e.norm,
             'head.': model.head, 'llama_dim_mapper1.': e.inserted.into, 'llama_dim_mapper2.': e.inserted.out}
    for front, module in parts.items():
        out |= {front + name: p.grad for name, p in module.named_parameters()}
    return out | {'cls_token': e.cls.grad, 'pos_embed': torch.cat([e.cls.grad, e.tokenizer.position.grad], 1)}


def vit_llama(z, folder):
    model = vit_llama_of(z, folder)
    e, seen = model.encoder, {}
    hook = e.inserted.register_forward_hook(lambda m, args, y: seen.update(into=args[0], out=y))
    logits = model(z['images'])
    hook.remove()
    loss = F.cross_entropy(logits, z['labels'])
    loss.backward()
    grads, theirs = their_gradients(model), under(z, 'grad/')
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    norms = torch.stack([grads[name].norm() for name in sorted(grads)])
    with torch.no_grad(): block = e.inserted.block(z['block_input'])
    return {
        'logits': Held(logits, z['logits']), 'loss': Held(loss, z['loss']),
        'block_output': Held(block, z['block_output']),
        'encoder_tokens': Held(seen['into'], z['encoder_tokens']),
        'inserted_tokens': Held(seen['out'], z['inserted_tokens']),
        'grad_norms_of_all': Held(norms, z['grad_norms_of_all']),
        'trainable_parameters': Departs(trainable, z['trainable_parameters'],
                                        'CLS has a position of its own, which is part of the token here'),
    } | {f'grad/{name}': Held(grads[name], x) for name, x in theirs.items()}


OF_VIT = r'images|labels|block_input|(vit|lm|meta)\..*|config_\w+'
for number in ('one', 'two'):
    @vectors(f'lm4visual/vit_{number}_block{"s"*(number == "two")}', OF_VIT)
    def vit_llama_in_a_file(z):
        import tempfile
        with tempfile.TemporaryDirectory() as folder: return vit_llama(z, Path(folder)/'vit.safetensors')


# ---- F-LMM

LlavaForConditionalGeneration = type('LlavaForConditionalGeneration', (), dict(
    config=SimpleNamespace(vision_config=SimpleNamespace(image_size=336))))


def lmm_of(width, depth, heads):
    "What a reader has to know of a LLaVA."
    return SimpleNamespace(name='vectors', fingerprint='0', width=width, depth=depth, heads=heads,
                           device='cpu', model=LlavaForConditionalGeneration())


@vectors('flmm/merge', 'attentions|span_lengths|span_tokens')
def merge(z):
    spans = [list(map(int, span)) for span in z['span_tokens'].split(z['span_lengths'].tolist())]
    grid = torch.arange(36)
    return {how: Held(merge_rows(z['attentions'], grid, [grid.view(6, 6)], spans, how), z[how]) for how in ('mean', 'max')}


def head_of(z, path, depth=3, heads=2):
    "The mask head of a checkpoint of the authors."
    torch.save({'state_dict': {f'mask_head.{name}': x for name, x in under(z, 'head.').items()}}, path)
    return read_flmm(path, lmm_of(16, depth, heads), upsample=int(z['upsample_input'])).head


def losses_of(front, logits, masks):
    ce, dice = mask_losses(logits, masks.bool())
    return {f'{front}/cross_entropy': ce, f'{front}/dice': dice}


@vectors('flmm/mask_head', r'head\..*|\w+/maps|losses/masks|upsample_input|base_channels|edge/(logits|masks)')
def mask_head(z):
    import tempfile
    with tempfile.TemporaryDirectory() as folder: head = head_of(z, Path(folder)/'head.pth')
    out = {f'{tag}/logits': Held(head(z[f'{tag}/maps']), z[f'{tag}/logits']) for tag in ('12x12', '9x15', '34x37')}
    logits, l, e = head(z['12x12/maps']), under(z, 'losses/'), under(z, 'edge/')
    head.zero_grad()
    losses = losses_of('losses', logits, l['masks'])
    sum(losses.values()).backward()
    resized = losses_of('losses', logits, l['masks_resized'])
    out['losses/masks_resized'] = Held(resized['losses/dice'], losses['losses/dice'])
    out |= {name: Held(x, z[name]) for name, x in (losses | losses_of('edge', e['logits'], e['masks'])).items()}
    grads = {name: p.grad for name, p in head.net.named_parameters()}
    ours = {theirs: name for name, theirs in published_unet_names(4).items()}
    out |= {f'losses/grad/{name}': Held(grads[ours[name]], x, 2e-5) for name, x in under(l, 'grad/').items()}
    for front, x, masks in (('losses', logits, l['masks_resized']), ('edge', e['logits'], e['masks'])):
        iou = mask_iou(*mask_overlap(x.detach() > 0, masks.bool())).mean()
        out[f'{front}/iou'] = Held(iou, z[f'{front}/iou'])
        out[f'{front}/accuracy'] = Absent('no accuracy by pixels: most of an image is no animal')
    return out


def centre(x, size):
    "Where a bump in a map over an image is highest, in pixels: by a parabola through logarithms."
    out = []
    for axis, length in zip((0, 1), size):
        y = x[0].sum(axis).log()
        i = int(y[1:-1].argmax()) + 1
        a, b, c = y[i - 1:i + 2]
        out.append((i + .5 + (a - c)/(a - 2*b + c)/2)*length/len(y))
    return torch.stack(out)


@vectors('flmm/unpad', r'\w+/(padded|blob)')
def unpadding(z):
    out, places = {}, torch.arange(32*32).view(1, 32, 32)
    for tag in {name.split('/')[0] for name in z}:
        v, size = under(z, f'{tag}/'), tuple(map(int, tag.split('x')))
        kept = unpad(places, size, 'whole')[0]
        cut = torch.tensor([kept[0, 0]//32, kept[0, 0] % 32, *kept.shape])
        found = centre(unpad(v['blob'], size), size)
        out |= {
            f'{tag}/published': Held(unpad(v['padded'], size, 'whole'), v['published']),
            f'{tag}/blob_published': Held(unpad(v['blob'], size, 'whole'), v['blob_published']),
            f'{tag}/cut': Held(cut, v['cut']),
            # within 0.6 pixels, with fractions of a place, which the paper leaves open
            f'{tag}/blob_centre': Held(found, v['blob_centre'], .6/float(v['blob_centre'].max()), 'true'),
        }
    return out


def sam_of_vectors():
    "A SAM of the shape of the vectors, without its image encoder, with weights of chance."
    from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
    a = read('flmm/refiner_weights')
    E, G = a['text_proj.weight'].shape[0], 64
    torch.manual_seed(0)
    prompts = PromptEncoder(embed_dim=E, image_embedding_size=(G, G), input_image_size=(1024, 1024), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=E, mlp_dim=64, num_heads=int(a['transformer_heads']))
    decoder = MaskDecoder(num_multimask_outputs=3, transformer=transformer, transformer_dim=E,
                          iou_head_depth=3, iou_head_hidden_dim=32)
    model = SimpleNamespace(prompt_encoder=prompts, mask_decoder=decoder)
    return SimpleNamespace(name='sam', fingerprint='1', size=1024, model=model)


def flmm_file():
    "A checkpoint of the authors with a refiner for 4 layers; the head has one map for each."
    a = read('flmm/refiner_weights')
    parts = {f'mask_head.{name}': x for name, x in under(read('flmm/mask_head'), 'head.').items()}
    first = 'mask_head.encoder.0.0.convs.0.conv.weight'
    parts[first] = parts[first][:, :4].clone()
    for name, x in a.items():
        if name != 'transformer_heads':
            parts[name if name.startswith('text_') else f'sam.model.{name}'] = x.contiguous()
    return parts


@cache
def refiners():
    "The refiner as read, one of our conventions, and one for each prompt that is left out."
    import tempfile
    a, sam = read('flmm/refiner_weights'), sam_of_vectors()
    with tempfile.TemporaryDirectory() as folder:
        save_file(flmm_file(), Path(folder)/'flmm.safetensors')
        model = read_flmm(Path(folder)/'flmm.safetensors', lmm_of(a['text_proj.weight'].shape[1], 4, 1), sam)
    assert model.padded and model.cut == 'whole' and model.pixels == 336
    out = {'published': model.refiner}
    for what, options in (('own', {}), *((name, {name: False}) for name in ('text', 'mask', 'box'))):
        r = Refiner(sam, a['text_proj.weight'].shape[1], 4, **options).eval()
        r.load_state_dict(model.refiner.state_dict())
        out[what] = r
    return out


def refined(z):
    r, K = refiners(), len(z['logits'])
    size, lengths, hidden, logits = tuple(z['size'].tolist()), z['lengths'], z['hidden_states'], z['logits']
    features = F.interpolate(z['features_8x8'], (64, 64), mode='bilinear')
    phrases = Phrases(torch.zeros(K, 1, 1, 1), hidden, lengths)
    fit, theirs, ours = tuple(z['input_size'].tolist())[::-1], r['published'], r['own']
    boxes = theirs.boxes(logits, size, fit)
    out = {'boxes': Held(boxes, z['boxes'])}
    out['sparse_box_only'] = Held(torch.stack([theirs.sparse(b[None], hidden[k:k + 1, :1])[0, :2] for k, b in enumerate(boxes)]), z['sparse_box_only'])
    for k, n in enumerate(lengths.tolist()):
        tokens = theirs.sparse(boxes[k:k + 1], hidden[k:k + 1, :n])[0, 2:]
        out[f'text_embeds/{k}'] = Held(tokens, z[f'text_embeds/{k}'])
    everywhere = features.expand(K, -1, -1, -1)
    together = theirs(everywhere, logits, phrases, size)
    alone = torch.cat([theirs(features, logits[k:k + 1], phrases[k:k + 1], size) for k in range(K)])
    assert difference(ours(everywhere, logits, phrases, size), z['published_alone'])[0] < 1e-4   # by default each mask is alone
    out |= {'published_together': Held(together, z['published_together']),
            'published_alone': Held(alone, z['published_alone'])}
    for name in ('text', 'mask', 'box'):
        item = f'published_alone/without_{name}'
        if item in z: out[item] = Held(r[name](features, logits[:1], phrases[:1], size), z[item])
    if 'dense_alone' in z:
        out['dense_alone'] = Held(F.avg_pool2d(ours.dense(logits, fit), 8), z['dense_alone'])
        out['dense_together'] = Held(F.avg_pool2d(theirs.dense(logits, fit), 8), z['dense_together'])
        out['published_alone/multimask'] = Absent('of three masks, the one that agrees most with the first: no released configuration asks for it')
    return out


OF_REFINER = 'features_8x8|logits|hidden_states|lengths|size|input_size'
for tag in ('64x48', '80x53'):
    @vectors(f'flmm/refiner_{tag}', OF_REFINER)
    @torch.no_grad()
    def masks_of_sam(z): return refined(z)


@vectors('flmm/refiner_weights', '.*')
def weights_of_the_refiner(z): return {}


@vectors('flmm/boxes_rough', 'logits|size')
def rough_boxes(z):
    size, r = tuple(z['size'].tolist()), refiners()
    return {'boxes_published': Held(r['published'].boxes(z['logits'], size, size), z['boxes_published']),
            'boxes_of_resized_logits': Held(r['own'].boxes(z['logits'], size, size), z['boxes_of_resized_logits'])}


# ---- Generative Adapter

FASTLORA = dict(fastlora_A1='into', fastlora_A2='key', fastlora_A3='value', fastlora_B='out',
                fastlora_hidden_state_norm='norm')


def one_layer(z, rank, norm='svd'):
    "A generator of one layer, which belongs to no language model."
    R, d = z['fastlora_A2.weight'].shape
    g = generative_adapter.Generator.__new__(generative_adapter.Generator)
    nn.Module.__init__(g)
    g.width, g.rank, g.scale, g.kind, g.floor = R, rank, float(z['alpha'])/int(z['fastlora_r']), norm, 1e-6
    g.names, g.base = ['m'], 'x'
    layer = generative_adapter._Layer(d, z['fastlora_A1.weight'].shape[1], len(z['fastlora_B.weight']), R)
    layer.load_state_dict({f'{ours}.weight': z[f'{theirs}.weight'] for theirs, ours in FASTLORA.items()})
    g.layers = nn.ModuleList([layer])
    return g


def state_of(g, hidden, mask):
    return sum(g.states([hidden[:, s]], mask[:, s].bool()) for s in range(hidden.shape[1]))


def output(g, z, state, x, thin=False):
    a = g.write(state, thin)
    return F.linear(x, z['base_layer.weight']) + x @ a.down['m'].mT @ a.up['m'].mT


@vectors('generative_adapter/layer', r'(base_layer|fastlora_\w+)\.weight|alpha|fastlora_r|hidden_states|attention_mask|x|base_output|causal/x|few_tokens/hidden_states')
@torch.no_grad()
def layer_of_generator(z):
    R = int(z['fastlora_r'])
    g, H, mask, x = one_layer(z, R), z['hidden_states'], z['attention_mask'], z['x']
    state = state_of(g, H, mask)
    full, adapter = polar(state[:, 0], R), g.write(state)
    first = state_of(g, H[:, :1], mask[:, :1])
    y = z['causal/x'].view(2, 2, *z['causal/x'].shape[1:])
    causal = torch.stack([F.linear(y[:, 0], z['base_layer.weight']), output(g, z, first, y[:, 1])], 1)
    frobenius = one_layer(z, R, 'frobenius')
    out = {
        'outer_product': Held(state[:, 0], z['outer_product']),
        'singular_values': Held(torch.linalg.svdvals(state[:, 0]), z['singular_values']),
        'paper/normalised': Held(full, z['paper/normalised'], 2e-5, 'paper'),
        'full_rank/normalised': Held(full, z['full_rank/normalised'], 2e-5),
        'full_rank/output': Held(output(g, z, state, x), z['full_rank/output'], 2e-5),
        'full_rank/output_weights_mode': Held(output(g, z, state, x, True), z['full_rank/output_weights_mode'], 2e-5),
        'full_rank/lora_a': Held(adapter.down['m'], z['full_rank/lora_a'], 2e-5),
        'full_rank/lora_b': Held(adapter.up['m']/g.scale, z['full_rank/lora_b']),
        'streamed/outer_product_1': Held(first[:, 0], z['streamed/outer_product_1']),
        'streamed/outer_product_2': Held(state[:, 0], z['streamed/outer_product_2']),
        'streamed/lora_a': Held(adapter.down['m'], z['streamed/lora_a'], 2e-5),
        'causal/output': Held(causal.flatten(0, 1), z['causal/output'], 2e-5),
        'frobenius/normalised': Held(frobenius._factors(state, False)[0][:, 0], z['frobenius/normalised']),
        'frobenius/output': Held(output(frobenius, z, state, x), z['frobenius/output']),
        'merge_mean/output': Absent('states of segments are summed, as in every released generator'),
    }
    for name in ('normalised', 'output'):
        out[f'spectral/{name}'] = Absent('no spectral norm: no released generator has it')
    for r in (4, 8):
        h, paper = one_layer(z, r), polar(state[:, 0], r)
        chance = 'a random projection with one iteration, another one at each call'
        out |= {
            f'rank_{r}/paper/normalised': Held(paper, z[f'rank_{r}/paper/normalised'], 1e-4, 'paper'),
            f'rank_{r}/paper/output': Held(output(h, z, state, x, True), z[f'rank_{r}/paper/output'], 1e-4, 'paper'),
            f'rank_{r}/published_two_draws': Departs(paper.expand(2, -1, -1, -1), z[f'rank_{r}/published_two_draws'], chance, .1),
            f'rank_{r}/published_output': Departs(output(h, z, state, x), z[f'rank_{r}/published_output'], chance, 1e-3),
        }
    q = under(z, 'few_tokens/')
    few = g.states([q['hidden_states'][:, 0]], torch.ones(1, 6, dtype=torch.bool))
    ours = output(g, z, few, x[:1])
    out |= {
        'few_tokens/outer_product': Held(few[:, 0], q['outer_product']),
        'few_tokens/paper/normalised': Held(polar(few[:, 0], R), q['paper/normalised'], 1e-4, 'paper'),
        'few_tokens/paper/output': Held(ours, q['paper/output'], 1e-4, 'paper'),
        'few_tokens/published_training_output': Departs(ours, q['published_training_output'], 'nothing is added where singular values are equal', 1e-3),
    }
    for name in ('normalised', 'output'):
        out[f'few_tokens/published_{name}'] = Absent('directions of chance count one: they hold for one build of LAPACK')
    return out


@vectors('generative_adapter/gradients', r'hidden_states|attention_mask|x|y|(base_layer|fastlora_\w+)\.weight|alpha|fastlora_r')
def gradients_of_generator(z):
    H, mask, x, y = (z[name] for name in ('hidden_states', 'attention_mask', 'x', 'y'))
    out, chance = {}, 'the random projection'
    for tag, r in (('full_rank', int(z['fastlora_r'])), ('rank_4', 4)):
        g = one_layer(z, r)
        loss = F.mse_loss(output(g, z, state_of(g, H, mask), x), y)
        loss.backward()
        published = (lambda a, b: Held(a, b, 2e-5)) if tag == 'full_rank' else (lambda a, b: Departs(a, b, chance))
        out |= {f'{tag}/paper/loss': Held(loss, z[f'{tag}/paper/loss'], of='paper'),
                f'{tag}/published_loss': published(loss, z[f'{tag}/published_loss'])}
        for theirs, ours in FASTLORA.items():
            grad = getattr(g.layers[0], ours).weight.grad
            out[f'{tag}/paper/grad/{theirs}'] = Held(grad, z[f'{tag}/paper/grad/{theirs}'], 2e-5, 'paper')
            out[f'{tag}/published_grad/{theirs}'] = published(grad, z[f'{tag}/published_grad/{theirs}'])
    return out


def lm_of_generator(z):
    from transformers import LlamaConfig, LlamaForCausalLM
    w = under(z, 'lm.')
    V, d = w['model.embed_tokens.weight'].shape
    heads, inner = int(z['config_heads']), len(w['model.layers.0.mlp.up_proj.weight'])
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=V, hidden_size=d, intermediate_size=inner, num_hidden_layers=2,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=64)).eval()
    model.load_state_dict(w)
    return tiny_lm(model, SimpleNamespace(bos_token_id=None))


def fastlora_file(z, part='self_attn.o_proj'):
    "The tensors of a generator as the authors' code names them, in a model of peft."
    return {re.sub(r'layers\.(\d+)\.', rf'base_model.model.model.layers.\1.{part}.', name): x
            for name, x in z.items() if name.startswith('layers.')}


def fastlora_folder(z, folder):
    save_file(fastlora_file(z), folder/'adapter_model.safetensors')
    numbers = dict(peft_type='FASTLORA', fastlora_r=int(z['fastlora_r']), fastlora_alpha=float(z['alpha']),
                   fastlora_max_rank=int(z['fastlora_r']), fastlora_window=16, fastlora_norm='svd')
    (folder/'adapter_config.json').write_text(json.dumps(numbers))
    return folder


@vectors('generative_adapter/model', r'(lm|layers\.\d)\..*|context_ids|context_mask|query_ids|alpha|fastlora_r|config_heads|chunks/(tokens|window)')
@torch.no_grad()
def model_of_generator(z):
    import tempfile
    lm = lm_of_generator(z)
    with tempfile.TemporaryDirectory() as folder:
        g = read_generator(fastlora_folder(z, Path(folder)), lm)
    ids = torch.where(z['context_mask'].bool(), z['context_ids'], -1)[None]
    query = lm.model(input_ids=z['query_ids']).logits
    out = {'query/frozen_logits': Held(query, z['query/frozen_logits'])}
    for mode in generative_adapter.MODES:
        states = [generative_adapter.read_context(lm, g, ids[:, :c + 1], mode) for c in range(3)]
        adapter = g.write(states[-1], thin=True)
        with adapted(lm, adapter): logits = lm.model(input_ids=z['query_ids']).logits
        out[f'{mode}/logits'] = Held(logits, z[f'{mode}/logits'], 5e-5)
        for l, name in enumerate(g.names):
            if mode == 'parallel':
                out[f'parallel/outer_product/{l}'] = Held(states[-1][:, l], z[f'parallel/outer_product/{l}'], 2e-5)
                down = g.write(states[-1]).down[name]
                out[f'parallel/lora_a/{l}'] = Held(down, z[f'parallel/lora_a/{l}'].view_as(down), 5e-5)
                continue
            for c in range(3):
                item = f'sequential/{c}/outer_product/{l}'
                out[item] = Held(states[c][:, l], z[item], 2e-5)
    window, lengths = int(z['chunks/window']), []
    for n in z['chunks/tokens'].tolist():
        cut = [len(c) for c in chunks_of(list(range(n)), window)]
        lengths.append(cut + [-1]*(z['chunks/lengths'].shape[1] - len(cut)))
    return out | {'chunks/lengths': Held(torch.tensor(lengths), z['chunks/lengths'])}


# ---- PINTO

class Letters:
    "A tokenizer with a token for each letter: its code minus 30."
    pad_token_id = 0
    def __call__(self, text, add_special_tokens=False): return SimpleNamespace(input_ids=[ord(c) - 30 for c in text])


@cache
def questions():
    "The questions, and how they are read: with rationales, without, with empty ones, cut."
    z = read('pinto/inputs')
    def texts(name): return [bytes(int(b) for b in row if b).decode() for row in z[f'{name}_bytes']]
    q, c, w = map(texts, ('question', 'choice', 'rationale'))
    three = lambda x, i: tuple(x[3*i:3*i + 3])
    mcqs = [MCQ(q[i], three(c, i), int(z['gold'][i]), three(w, i), 'obqa') for i in range(len(q))]
    rationales = [m.rationales for m in mcqs]
    def of(rationales, length=160): return pinto.encode_questions(Letters(), mcqs, rationales, length)
    return dict(whole=of(rationales), bare=of(None), empty=of([('',)*3]*len(mcqs)), cut=of(rationales, 90))


def padded_like(x, like): return F.pad(x, (0, like.shape[-1] - x.shape[-1]))


def ids_and_mask(batch, z, front):
    "What a T5 is given, where it is no padding."
    theirs = z[f'{front}attention_mask'].bool()
    ours = padded_like(batch.attention_mask, theirs)
    ids = padded_like(batch.input_ids, theirs)
    return {f'{front}ids': (ids*ours, z[f'{front}ids']*theirs), f'{front}attention_mask': (ours, theirs)}


def replaced_counts(numbers):
    "Of rationales of so many tokens, how many are replaced."
    longest, n = int(numbers.max()), len(numbers)
    there = (torch.arange(longest) < numbers[:, None])[:, None]   # (N, 1, T)
    nothing = torch.zeros(n, 1, longest, dtype=torch.bool)
    batch = pinto.ChoiceBatch(torch.full(there.shape, -5), there, there, nothing, torch.zeros(n, 1, 1, dtype=torch.long),
                          torch.ones(n, 1, dtype=torch.bool), torch.zeros(n, dtype=torch.long))
    found = pinto.perturbed(batch, np.random.default_rng(0), 10, mask_prob=0., replace_ratio=.3)
    return (found.input_ids != -5).sum((1, 2))


@vectors('pinto/inputs', r'\w+_bytes|replace_counts_n|smoothing')
def inputs_of_reasoner(z):
    q = questions()
    e, empty = q['whole'], q['empty']
    T, at = e.input_ids.shape[2], torch.arange(e.input_ids.shape[2])
    pairs = ids_and_mask(e, z, '') | ids_and_mask(q['bare'], z, 'bare_') | ids_and_mask(q['cut'], z, 'cut_90_')
    out = {name: Held(*pair) for name, pair in pairs.items()}
    announced = 'an empty rationale is announced all the same'
    out |= {name: Departs(*pair, announced) for name, pair in ids_and_mask(empty, z, 'empty_rationale_').items()}
    mask = z['attention_mask'][..., :T].bool()
    hidden = mask & ~z['damaged_attention_mask'][..., :T].bool()
    swapped = mask & (z['damaged_ids'][..., :T] != z['ids'][..., :T])
    question = mask & ~z['dropout_context_attention_mask'][..., :T].bool()
    heads, lengths = z['head_lengths'].view(-1, 1, 1), z['lengths'][..., None]
    return out | {
        'targets': Held(e.labels, z['targets'][..., :e.labels.shape[2]]), 'gold': Held(e.answer, z['gold']),
        'lengths': Held(e.attention_mask.sum(2), z['lengths']),
        'head_lengths': Held((at >= heads) & (at < lengths), e.rationale_mask),
        'question_lengths': Held(e.question_mask.sum(2), z['question_lengths'].view(-1, 1).expand(-1, 3)),
        # their draws damage what is the rationale for us: all of it hidden, or some of it replaced
        'damaged_attention_mask': Held(hidden, e.rationale_mask & hidden.any(2, keepdim=True)),
        'damaged_ids': Held(swapped & e.rationale_mask, swapped),
        'dropout_context_attention_mask': Held(question, e.question_mask & question.any(2, keepdim=True)),
        'replace_counts_published': Held(replaced_counts(z['replace_counts_n']), z['replace_counts_published']),
    }


@vectors('pinto/model', '.*')
def model_of_pinto(z): return {}


def t5():
    from transformers import T5Config, T5ForConditionalGeneration
    a = read('pinto/model')
    sizes = {name: int(x) for name, x in under(a, 'config_').items()}
    model = T5ForConditionalGeneration(T5Config(
        **sizes, dropout_rate=0., feed_forward_proj='relu', tie_word_embeddings=True,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)).eval()
    assert model.load_state_dict(under(a, 't5.'), strict=False).unexpected_keys == []
    model.tie_weights()
    return model


@vectors('pinto/scores_losses', 'nothing')
def scores_and_losses(z):
    i, q, model = read('pinto/inputs'), questions(), t5()
    e = q['whole']
    T = e.input_ids.shape[2]
    ids = torch.where(e.attention_mask, i['damaged_ids'][..., :T], e.input_ids)
    damaged = replace(e, input_ids=ids, attention_mask=i['damaged_attention_mask'][..., :T].bool())
    dropped = replace(e, attention_mask=i['dropout_context_attention_mask'][..., :T].bool())
    batches = dict(scores=e, scores_bare=q['bare'], scores_damaged=damaged, scores_dropout_context=dropped)
    with torch.no_grad():
        out = {name: Held(pinto.choice_scores(model, batch), z[name]) for name, batch in batches.items()}
        empty = pinto.choice_scores(model, q['empty'])
    clean = pinto.smoothed_loss(pinto.choice_scores(model, e), e.answer)
    other = pinto.smoothed_loss(pinto.choice_scores(model, damaged), e.answer, .1)
    (clean + other).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    norms = torch.stack([grads[name].norm() for name in sorted(grads)])
    out |= {'scores_empty_rationale': Departs(empty, z['scores_empty_rationale'], 'an empty rationale is announced all the same'),
            'loss_clean': Held(clean, z['loss_clean']), 'loss_counter': Held(other, z['loss_counter']),
            'loss_total': Held(clean + other, z['loss_total']), 'grad_norms': Held(norms, z['grad_norms'])}
    for eps in (0., .1, .3):
        loss = pinto.smoothed_loss(z['scores_damaged'], e.answer, eps)
        out[f'smoothed_ce/{eps}'] = Held(loss, z[f'smoothed_ce/{eps}'])
    return out | {f'grad/{name}': Held(grads[name], x) for name, x in under(z, 'grad/').items()}


@vectors('pinto/losses', 'scores|gold')
def smoothed_losses(z):
    name = 'paper_uniform_over_others/0.1'
    out = {name: Held(pinto.smoothed_loss(z['scores'], z['gold'], .1, 'others'), z[name], of='paper')}
    for eps in (0., .05, .1, .5):
        loss = pinto.smoothed_loss(z['scores'], z['gold'], eps)
        out[f'cross_entropy/{eps}'] = Held(loss, z[f'cross_entropy/{eps}'])
    return out

# ---- what is checked

@pytest.mark.parametrize('file, item', items(), ids=lambda x: x)
def test_published_array(file, item):
    outcomes(file)[item].check()


@pytest.mark.parametrize('file', sorted(INPUTS))
def test_nothing_is_checked_that_is_not_in_the_file(file):
    outputs = {name for name in names_in(file) if not INPUTS[file].fullmatch(name)}
    assert {*outcomes(file)} == outputs


# ---- readers of the authors' checkpoints

class Code:
    def __reduce__(self): return Path.touch, (Path('trap'),)


def saved(state, path):
    (save_file if path.suffix == '.safetensors' else torch.save)(state, path)
    return path


def refused(call, *words):
    with pytest.raises(BadInput) as error: call()
    message = str(error.value)
    assert '\n' not in message and all(word in message for word in words), message


@pytest.mark.parametrize('tokens', [1, 2, 4])
def test_a_projection_of_limber(tmp_path, tokens):
    z = read('limber/projection')
    p = under(z, f'pooled/{tokens}/')
    path = saved({name: p[name] for name in ('proj.weight', 'proj.bias')}, tmp_path/'proj.ckpt')
    encoder = SimpleNamespace(width=16, name='e', fingerprint='0', k=1, model=nn.Identity())
    lm = SimpleNamespace(width=32, name='l', fingerprint='1', device='cpu')
    m = read_projection(path, encoder, lm)
    assert torch.allclose(m(z['pooled/features'][:, None]), p['projected'], atol=1e-5)


def vit_state(): return vit_llama_file(read('lm4visual/vit_one_block'))
def generator_state(): return fastlora_file(read('generative_adapter/model'))


def read_vit(path): return vit_llama_reader.read_vit_llama(path, 3, 4)
def read_head(path): return read_flmm(path, lmm_of(16, 4, 1), sam_of_vectors(), 32)
def read_writer(path):
    return read_generator(path, lm_of_generator(read('generative_adapter/model')), 4.)


READERS = dict(vit=(read_vit, vit_state), head=(read_head, flmm_file), generator=(read_writer, generator_state))
FIRST = dict(vit='blocks.0.attn.qkv.weight', head='mask_head.decoder.1.conv_block.convs.0.gn.bias',
             generator='base_model.model.model.layers.1.self_attn.o_proj.fastlora_B.weight')


@pytest.mark.parametrize('ending', ['.safetensors', '.pth'])
@pytest.mark.parametrize('name', READERS)
def test_a_checkpoint_reads_the_same_from_every_kind_of_file(tmp_path, name, ending):
    reader, state = READERS[name]
    alone = reader(saved(state(), tmp_path/f'alone{ending}'))
    from argparse import Namespace
    run = dict(model=state(), epoch=3, args=Namespace(lr=1e-3))
    front = {'state_dict': {f'module.{k}' if name == 'vit' else k: t for k, t in state().items()}}
    for i, other in enumerate((run, front)):
        assert fingerprint(reader(saved(other, tmp_path/f'{i}.pth'))) == fingerprint(alone)


@pytest.mark.parametrize('name', READERS)
def test_a_checkpoint_of_something_else_is_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    reader, state = READERS[name]
    first, whole = FIRST[name], state()
    def wrong(**change): return saved(whole | {first: change['t']} if 't' in change else change['of'], tmp_path/'x.pth')
    less = {k: t for k, t in whole.items() if k != first}
    for of in (less, dict(weight=torch.zeros(2, 3)), {}, [torch.zeros(1)], dict(other=3)):
        refused(lambda: reader(wrong(of=of)), 'x.pth')
    refused(lambda: reader(wrong(t=whole[first][:3])), 'x.pth')
    refused(lambda: reader(wrong(t=torch.full_like(whole[first], torch.nan))), 'x.pth')
    refused(lambda: reader(wrong(of=whole | {first: Code()})), 'x.pth', 'run code')
    assert not Path('trap').exists()
    for data in (b'', b'hello', b'version https://git-lfs.github.com/spec/v1\n'):
        for path in (tmp_path/'x.pth', tmp_path/'x.safetensors'):
            path.write_bytes(data)
            refused(lambda: reader(path), path.name, 'damaged')
    refused(lambda: reader(tmp_path/'none.pth'), 'no such file')
    refused(lambda: reader(tmp_path), str(tmp_path))


def test_a_head_of_another_lmm_or_without_a_refiner(tmp_path):
    path = saved(flmm_file(), tmp_path/'all.pth')
    refused(lambda: read_flmm(path, lmm_of(16, 5, 1)), '4 attention maps', 'has 5')
    refused(lambda: read_flmm(path, lmm_of(24, 4, 1), sam_of_vectors()), 'text_proj.weight', '(32, 24)')
    alone = {name: x for name, x in flmm_file().items() if name.startswith('mask_head')}
    path = saved(alone, tmp_path/'head.pth')
    assert read_flmm(path, lmm_of(16, 4, 1)).refiner is None
    assert read_flmm(path, lmm_of(16, 2, 1)).head.config['channels'] == 4   # an LMM that looks twice
    refused(lambda: read_flmm(path, lmm_of(16, 4, 1), sam_of_vectors()), 'a refiner')


def test_a_generator_without_its_numbers_or_of_another_part(tmp_path):
    z = read('generative_adapter/model')
    lm = lm_of_generator(z)
    path = saved(fastlora_file(z), tmp_path/'g.safetensors')
    refused(lambda: read_generator(path, lm), 'fastlora_alpha')
    mlp = {name: x for name, x in fastlora_file(z, 'mlp.down_proj').items()}
    for l in (0, 1):
        name = f'base_model.model.model.layers.{l}.mlp.down_proj.fastlora_A1.weight'
        mlp[name] = torch.randn(8, lm.model.config.intermediate_size)
    g = read_generator(saved(mlp, tmp_path/'m.safetensors'), lm, 4., rank=4)
    assert g.names[0].endswith('mlp.down_proj') and g.rank == 4 and g.scale == .5
    other = {name.replace('fastlora_A3', 'fastlora_B1'): x for name, x in fastlora_file(z).items()}
    refused(lambda: read_generator(saved(other, tmp_path/'o.safetensors'), lm, 4.), 'fastlora_B1')
    g = read_generator(fastlora_folder(z, tmp_path), lm)
    again = generative_adapter.load_generator(generative_adapter.save_generator(g, tmp_path/'mine'), lm)
    assert again.made_of == g.made_of and fingerprint(again) == fingerprint(g) and g.chunk == 16


def test_an_encoder_of_the_authors_is_not_saved_without_its_block(tmp_path):
    model = read_vit(saved(vit_state(), tmp_path/'vit.pth'))
    refused(lambda: lm4visual_fits.save_classifier(model, tmp_path/'mine'), 'vit.pth')
    images = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
    mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in ((.485, .456, .406), (.229, .224, .225)))
    labels = model((images/255 - mean)/deviation).argmax(1)
    assert lm4visual.right_answers(model, images, labels).all()
    assert not any(p.requires_grad for p in model.encoder.inserted.block.parameters())


# ---- what ships, and what was saved before, stays as it is

def test_a_head_that_was_saved_with_the_mean_divides_by_the_mean(tmp_path):
    from frozen_nb.core.zoo import load_lmm, load_sam
    lmm, sam = load_lmm('llava', device='cpu'), load_sam('sam', device='cpu')
    made = flmm.new_flmm(lmm, sam, divide='mean', boxes='longer')
    shipped = flmm.load_grounder(flmm.save_flmm(made, tmp_path/'head'), lmm, sam).flmm
    assert shipped.head.config['divide'] == 'mean' and shipped.cut == 'fractions'
    assert (shipped.refiner.config['boxes'], shipped.refiner.config['beside']) == ('longer', 'own')
    maps = torch.rand(2, 36, 8, 8, generator=torch.Generator().manual_seed(0))
    x = maps.float()/maps.float().mean((2, 3), keepdim=True).clamp_min(1e-12)
    with torch.no_grad():
        as_before = shipped.head.net(F.interpolate(x, scale_factor=4., mode='bilinear')).float()
        assert torch.equal(shipped.head(maps), as_before)
    logits = torch.randn(2, 20, 30, generator=torch.Generator().manual_seed(0))
    boxes = mask_boxes(F.interpolate(logits[:, None], (213, 320), mode='bilinear')[:, 0] > 0)
    size = shipped.refiner.size
    assert torch.equal(shipped.refiner.boxes(logits, (320, 213), (size, 85)), boxes*size/320)


def test_conventions_are_saved(tmp_path):
    from frozen_nb.core.zoo import load_lmm, load_sam
    llava, sam = load_lmm('llava', device='cpu'), load_sam('sam', device='cpu')
    model = flmm.new_flmm(llava, sam, width=4, beside='call')
    model.cut, model.pixels = 'whole', 48
    again = flmm.load_grounder(flmm.save_flmm(model, tmp_path/'mine'), llava, sam).flmm
    assert again.head.config == model.head.config and again.head.config['divide'] == 'sum'
    assert again.refiner.config == model.refiner.config and (again.cut, again.pixels) == ('whole', 48)
    from PIL import Image
    region, = flmm.Grounder(again, llava, sam).ground(Image.new('RGB', (60, 37), 'red'), ['the red fox'])
    assert region.mask.shape == (37, 60)   # 19.73 of 32 places: 20 are cut out
    for name in ('divide', 'boxes', 'beside'):
        refused(lambda: flmm.new_flmm(llava, sam, **{name: 'half'}), f"{name}='half'")
    config = tmp_path/'mine'/'config.json'
    (tmp_path/'mine'/'sha256.json').unlink(missing_ok=True)
    config.write_text(json.dumps(json.loads(config.read_text()) | dict(cut='half')))
    refused(lambda: flmm.load_grounder(tmp_path/'mine', llava, sam), "cut is 'half'")


def test_images_for_a_head_of_the_authors_are_resized_and_then_padded():
    from PIL import Image
    from frozen_nb.core.zoo import load_lmm
    llava = load_lmm('llava', device='cpu')
    shown, = lmm_images(llava, [Image.new('RGB', (500, 375), 'red')], 336)
    mean = tuple(int(255*x) for x in llava.processor.image_processor.image_mean)
    assert shown.size == (336, 336)
    assert [shown.getpixel((9, y)) for y in (41, 42, 293, 294)] == [mean, (255, 0, 0), (255, 0, 0), mean]
    # 42 of 336 pixels are 8 of 64 places; of the image as it is, 62 of 500 would be 7
    class Rows(nn.Module):
        def forward(self, maps): return torch.arange(64.)[:, None].expand(1, 64, 64)
    tops = []
    for pixels in (336, None):
        model = flmm.FLMM(Rows(), padded=True, cut='whole', pixels=pixels)
        logits, _ = model(SimpleNamespace(maps=None), None, (500, 375))
        tops.append(logits[0, [0, -1], 0].tolist())
    assert tops == [[8., 55.], [7., 54.]]


def test_a_classifier_that_was_saved_before_keeps_its_last_norm(tmp_path):
    new = lm4visual.new_classifier('base', 2, width=24, depth=1, heads=2)
    assert new.encoder.norm.eps == 1e-6
    folder = lm4visual_fits.save_classifier(new, tmp_path/'new', ['a', 'b'])
    assert lm4visual_fits.load_classifier(folder).encoder.norm.eps == 1e-6
    config = json.loads((folder/'config.json').read_text())
    del config['eps']
    (folder/'config.json').write_text(json.dumps(config))
    (folder/'sha256.json').unlink(missing_ok=True)
    assert lm4visual_fits.load_classifier(folder).encoder.norm.eps == 1e-5


@pytest.mark.parametrize('kind, gated', [('gpt2', False), ('opt', False), ('llama', True), ('phi3', True)])
def test_fc1_is_what_a_gate_lets_through(kind, gated):
    from transformers import GPT2Config, OPTConfig, LlamaConfig, Phi3Config, AutoModelForCausalLM
    sizes = dict(vocab_size=20, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    config = dict(
        gpt2=lambda: GPT2Config(**sizes, n_embd=16, n_layer=2, n_head=2),
        opt=lambda: OPTConfig(**sizes, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16),
        llama=lambda: LlamaConfig(**sizes, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2),
        phi3=lambda: Phi3Config(**sizes, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2))[kind]()
    model = freeze(AutoModelForCausalLM.from_config(config))
    parts, block = activations.parts_of(model)[1], activations.blocks(model)[1]
    seen = {}
    last = block.get_submodule(parts.ffn_out).register_forward_pre_hook(lambda m, args: seen.update(into=args[0]))
    first = block.get_submodule(parts.middle).register_forward_hook(lambda m, args, y: seen.update(out=y))
    batch = prompts_of(dict(inputs_embeds=torch.randn(1, 12, 16)))
    y = lm_states.point_states(model, batch, 1)['FC1']
    last.remove(), first.remove()
    assert torch.equal(y.flatten(), seen['into' if gated else 'out'].flatten())


def test_a_running_median_of_an_even_number_is_between_the_two_in_the_middle():
    running = lm_states.Medians(3)
    rows = [torch.tensor([1., 100.]), torch.tensor([1., 2., 50.]), torch.rand(1000)]
    for i, x in enumerate(rows): running.add(i, x)
    assert np.allclose(running.value, [np.median(x) for x in rows], rtol=3e-3)
