"Tiny random models of every family, saved in folders as their libraries save them."
import json

import open_clip, timm, transformers
from safetensors.torch import save_file
from timm.models import save_for_hf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
SQUASH = dict(input_size=(3, 32, 32), crop_pct=1., crop_mode='squash', interpolation='bicubic', mean=(.5,)*3, std=(.5,)*3)

def tokenizer(eos_token='</s>'):
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate('</s> <unk> a red hippo in the snow'.split())}, unk_token='<unk>'))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token='<unk>', eos_token=eos_token)

def lm_config(kind):
    T, small = transformers, dict(vocab_size=16, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    old = dict(vocab_size=16, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    return dict(llama=lambda: T.LlamaConfig(**small, intermediate_size=32), mistral=lambda: T.MistralConfig(**small, intermediate_size=32, num_key_value_heads=1),
                opt=lambda: T.OPTConfig(**small, ffn_dim=32, word_embed_proj_dim=8), gpt2=lambda: T.GPT2Config(**old),
                gptj=lambda: T.GPTJConfig(**old, rotary_dim=4), gpt_neox=lambda: T.GPTNeoXConfig(**small, intermediate_size=32))[kind]()

LMS = ['llama', 'mistral', 'opt', 'gpt2', 'gptj', 'gpt_neox']

def save_open_clip(folder, vision, **more):
    text = dict(context_length=8, vocab_size=32, width=16, heads=2, layers=1)
    clip = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, **more).eval()
    for t in clip.visual.buffers():
        if t.is_floating_point(): t.uniform_(.5, 1.)
    for p in clip.visual.parameters():  # the zero weights of a fresh ResNet would hide mistakes
        if p.ndim == 1: nn.init.normal_(p, 1., .1)
    folder.mkdir()
    config = dict(embed_dim=16, vision_cfg=vision, text_cfg=dict(text, hf_tokenizer_name='nobody/nowhere'), **more)
    (folder/'open_clip_config.json').write_text(json.dumps(dict(model_cfg=config, preprocess_cfg=dict(resize_mode='squash', mean=[.5]*3, std=[.5]*3))))
    save_file({k: t.contiguous() for k, t in clip.state_dict().items()}, folder/'open_clip_model.safetensors')
    return clip.visual

def save_timm(folder, name, **args):
    model = timm.create_model(name, **args).eval()
    save_for_hf(model, folder, safe_serialization=True, data_config=SQUASH)
    return model

def save_hf(folder, model):
    model.eval().save_pretrained(folder)
    transformers.CLIPImageProcessor(size=dict(height=32, width=32), do_center_crop=False).save_pretrained(folder)
    return model

def prefixed(model, n): return lambda x: model(pixel_values=x).last_hidden_state[:, n:]
def grid(f): return lambda x: f(x).flatten(2).transpose(1, 2)

def make_encoders(root):
    "name -> (reference: pixels -> tokens, k, width, grid)"
    T = transformers
    vit = save_open_clip(root/'clip_vit', dict(layers=2, width=32, head_width=16, patch_size=8, image_size=32))
    rn = save_open_clip(root/'clip_rn', dict(layers=[1, 1, 1, 1], width=8, image_size=64))
    beit = save_timm(root/'beit', 'beit_base_patch16_224', img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    reg = save_timm(root/'registers', 'vit_small_patch14_reg4_dinov2', img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3)
    nf = save_timm(root/'nfnet', 'nf_resnet26', channels=(16, 16, 32, 32), depths=(1, 1, 1, 1), num_classes=3)
    mobile = save_timm(root/'mobilenet', 'mobilenetv2_035', num_classes=3)
    swin = save_timm(root/'swin', 'swin_tiny_patch4_window7_224', img_size=32, embed_dim=16, depths=(1, 1), num_heads=(2, 2), window_size=4, num_classes=0)
    hf_clip = save_hf(root/'hf_clip', T.CLIPVisionModel(T.CLIPVisionConfig(**VISION)))
    both = save_hf(root/'hf_whole_clip', T.CLIPModel(T.CLIPConfig(vision_config=VISION, text_config=dict(VISION, vocab_size=20), projection_dim=8)))
    hf_beit = save_hf(root/'hf_beit', T.BeitForImageClassification(T.BeitConfig(**VISION, num_labels=3, use_relative_position_bias=True)))
    hf_mim = save_hf(root/'hf_beit_mim', T.BeitForMaskedImageModeling(T.BeitConfig(**VISION, vocab_size=20)))
    open_vit = lambda x: vit.transformer(vit._embeds(x))[:, 1:]
    open_rn = lambda x: rn.layer4(rn.layer3(rn.layer2(rn.layer1(rn.stem(x)))))
    return dict(
        clip_vit=(open_vit, 16, 32, (4, 4)), clip_rn=(grid(open_rn), 4, 256, (2, 2)),
        beit=(lambda x: beit.forward_features(x)[:, 1:], 16, 32, (4, 4)), registers=(lambda x: reg.forward_features(x)[:, 5:], 16, 32, (4, 4)),
        nfnet=(lambda x: nn.AdaptiveAvgPool2d(1)(nf.forward_features(x)).flatten(1)[:, None], 1, 32, None),
        mobilenet=(grid(mobile.forward_features), 1, 1280, (1, 1)), swin=(lambda x: swin.forward_features(x).flatten(1, 2), 16, 32, (4, 4)),
        hf_clip=(prefixed(hf_clip, 1), 16, 32, (4, 4)), hf_whole_clip=(prefixed(both.vision_model, 1), 16, 32, (4, 4)),
        hf_beit=(prefixed(hf_beit.beit, 1), 16, 32, (4, 4)), hf_beit_mim=(prefixed(hf_mim.beit, 1), 16, 32, (4, 4)))

ENCODERS = ['clip_vit', 'clip_rn', 'beit', 'registers', 'nfnet', 'mobilenet', 'swin', 'hf_clip', 'hf_whole_clip', 'hf_beit', 'hf_beit_mim']

def make_lms(root):
    "name -> the model that lies in `root/name` with a tokenizer"
    lms = {}
    for kind in LMS:
        lms[kind] = AutoModelForCausalLM.from_config(lm_config(kind)).eval()
        lms[kind].save_pretrained(root/kind)
        tokenizer().save_pretrained(root/kind)
    return lms

LMM_KINDS = ['llava', 'llava_next', 'qwen2_vl', 'qwen2_5_vl']
_said = "{%- for m in messages -%}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text if p.type == 'text' else 'IMAGE' }} {% endfor %}{% endif %}\n{%- endfor -%}{%- if add_generation_prompt -%}assistant: {%- endif -%}"

def make_lmm(kind, folder):
    "A tiny random multimodal model of one family, saved in `folder` with its processor."
    from frozen_nb.core.zoo import load_tokenizer
    T, text = transformers, dict(vocab_size=1408, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, eos_token_id=0, pad_token_id=1, bos_token_id=0, max_position_embeddings=512)
    tokenizer = load_tokenizer('llama'); tokenizer.chat_template = None
    if kind.startswith('llava'):
        vision, grids = T.CLIPVisionConfig(**VISION), [[32, 64], [64, 32], [64, 64]]
        shared = dict(patch_size=8, vision_feature_select_strategy='default', num_additional_image_tokens=1, image_token='<image>', chat_template=_said.replace('IMAGE', '<image>'))
        if kind == 'llava':
            model = T.LlavaForConditionalGeneration(T.LlavaConfig(vision_config=vision, text_config=T.LlamaConfig(**text), image_token_id=2))
            processor = T.LlavaProcessor(T.CLIPImageProcessor(size=dict(shortest_edge=32), crop_size=dict(height=32, width=32)), tokenizer, **shared)
        else:
            model = T.LlavaNextForConditionalGeneration(T.LlavaNextConfig(vision_config=vision, text_config=T.LlamaConfig(**text), image_token_id=2, image_grid_pinpoints=grids))
            processor = T.LlavaNextProcessor(T.LlavaNextImageProcessor(size=dict(shortest_edge=32), crop_size=dict(height=32, width=32), image_grid_pinpoints=grids), tokenizer, **shared)
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token, pad_token=tokenizer.pad_token)   # without an image token of its own
        tokenizer.add_special_tokens(dict(additional_special_tokens=['<|vision_start|>', '<|image_pad|>', '<|vision_end|>', '<|video_pad|>']))
        start, image, end, video = tokenizer.convert_tokens_to_ids(['<|vision_start|>', '<|image_pad|>', '<|vision_end|>', '<|video_pad|>'])
        ids = dict(image_token_id=image, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end)
        text |= dict(rope_parameters=dict(rope_type='default', rope_theta=1e4, mrope_section=[1, 1, 2]))
        if kind == 'qwen2_vl':
            model = T.Qwen2VLForConditionalGeneration(T.Qwen2VLConfig(text_config=text, vision_config=dict(depth=1, embed_dim=32, num_heads=2, hidden_size=32, patch_size=8), **ids))
            make = T.Qwen2VLProcessor
        else:
            model = T.Qwen2_5_VLForConditionalGeneration(T.Qwen2_5_VLConfig(text_config=text, vision_config=dict(depth=1, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=32, patch_size=8, window_size=32, fullatt_block_indexes=[0]), **ids))
            make = T.Qwen2_5_VLProcessor
        pixels = T.Qwen2VLImageProcessor(patch_size=8, merge_size=2, min_pixels=32*32, max_pixels=96*96)
        processor = make(pixels, tokenizer, T.Qwen2VLVideoProcessor(patch_size=8, merge_size=2), chat_template=_said.replace('IMAGE', '<|vision_start|><|image_pad|><|vision_end|>'))
    model.eval().save_pretrained(folder); processor.save_pretrained(folder)
    return folder
