"""Images and their encoders, by kinds of what went wrong: formats that start other programs, images that an EXIF tag turns,
tokens that stand for no place, features that depend on chance or on the image beside them, SAM under other names."""
import numpy as np
import pytest
import torch
import transformers as T
from PIL import Image

from frozen_nb.core.frozen import BadInput
from frozen_nb.core.zoo import IMAGE_FORMATS, image_formats, load_encoder, load_sam, open_image, to_rgb

VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)


def one_line(run, *words):
    with pytest.raises(BadInput) as error: run()
    assert '\n' not in str(error.value) and all(word in str(error.value) for word in words), error.value


# Files

def test_postscript_under_another_name_starts_nothing(tmp_path, monkeypatch):
    import subprocess
    def started(*args, **kwargs): pytest.fail(f'a program was started: {args}')
    monkeypatch.setattr(subprocess, 'check_call', started)
    monkeypatch.setattr(subprocess, 'run', started)
    path = tmp_path/'photo.png'
    path.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n')
    one_line(lambda: open_image(path), 'photo.png')
    assert 'EPS' not in IMAGE_FORMATS and {'PNG', 'JPEG'} <= {*image_formats()}


@pytest.mark.parametrize('orientation', range(1, 9))
def test_an_exif_tag_turns_an_image_wherever_it_comes_from(orientation, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path/'a.png', exif=exif)
    from_file = open_image(tmp_path/'a.png')
    assert from_file.size == ((9, 6) if orientation < 5 else (6, 9))
    assert to_rgb(Image.open(tmp_path/'a.png')).tobytes() == from_file.tobytes()
    assert to_rgb(from_file).tobytes() == from_file.tobytes()          # turned once


# Encoders of transformers

def saved(folder, model):
    model.save_pretrained(folder)
    T.CLIPImageProcessor(size=dict(height=64, width=64), do_center_crop=False).save_pretrained(folder)
    return folder


def random_images(n=2): return [Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)) for i in range(n)]


def check_places(encoder):
    "A grid of places, a row for each image that depends on nothing else, and the changed corner changes most."
    assert encoder.k == encoder.grid[0]*encoder.grid[1] > 1
    H, W = encoder.size
    a = torch.randn(1, 3, H, W, generator=torch.Generator().manual_seed(0))
    b = a.clone()
    b[..., :H//4, :W//4] += 3
    x, again, alone = encoder.encode(torch.cat([a, b])), encoder.encode(torch.cat([a, b])), encoder.encode(a)
    assert x.shape[:2] == (2, encoder.k)
    torch.testing.assert_close(x, again)
    torch.testing.assert_close(x[:1], alone, rtol=1e-3, atol=1e-3)
    return (x[0] - x[1]).norm(dim=-1).view(encoder.grid)


WITH_PLACES = dict(
    internvl=lambda: T.InternVLVisionModel(T.InternVLVisionConfig(**VISION, image_size=[64, 64], patch_size=[8, 8])),
    dinov3_convnext=lambda: T.DINOv3ConvNextModel(T.DINOv3ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], image_size=64)),
    vit_list=lambda: T.ViTModel(T.ViTConfig(**VISION, image_size=[64, 64], patch_size=[8, 8])),
    metaclip2=lambda: T.MetaClip2VisionModel(T.MetaClip2VisionConfig(**VISION, image_size=64, patch_size=8)),
    pixtral=lambda: T.PixtralVisionModel(T.PixtralVisionConfig(**VISION, image_size=64, patch_size=8)),
    vit_mae=lambda: T.ViTMAEModel(T.ViTMAEConfig(**VISION, image_size=64, patch_size=8)),
)


@pytest.mark.parametrize('name', WITH_PLACES)
def test_tokens_that_stand_for_places(name, tmp_path):
    torch.manual_seed(0)
    encoder = load_encoder(saved(tmp_path/name, WITH_PLACES[name]()), device='cpu')
    check_places(encoder)
    assert encoder.encode(encoder.preprocess(random_images())).shape == (2, encoder.k, encoder.width)


def test_an_encoder_that_wants_more_than_pixels_is_refused(tmp_path):
    model = T.Siglip2VisionModel(T.Siglip2VisionConfig(**VISION, patch_size=8, num_patches=64))
    one_line(lambda: load_encoder(saved(tmp_path/'siglip2', model), device='cpu'), 'siglip2')


def test_an_image_processor_inside_a_processor(tmp_path):
    from tokenizers import Tokenizer, models
    v = dict(VISION, image_size=32, patch_size=8)
    T.CLIPModel(T.CLIPConfig(vision_config=v, text_config=dict(v, vocab_size=20), projection_dim=8)).save_pretrained(tmp_path/'c')
    words = Tokenizer(models.WordLevel({'<unk>': 0, 'a': 1}, unk_token='<unk>'))
    tokenizer = T.PreTrainedTokenizerFast(tokenizer_object=words, unk_token='<unk>', eos_token='a', pad_token='a')
    processor = T.CLIPImageProcessor(size=dict(shortest_edge=32), crop_size=dict(height=32, width=32))
    T.CLIPProcessor(processor, tokenizer).save_pretrained(tmp_path/'c')
    assert not (tmp_path/'c'/'preprocessor_config.json').exists() and (tmp_path/'c'/'processor_config.json').exists()
    assert load_encoder(tmp_path/'c', device='cpu').k == 16


# Encoders of timm

@pytest.mark.parametrize('name', ['volo_d1_224', 'efficientvit_m0', 'edgenext_xx_small'])
def test_timm_models_with_places(name):
    difference = check_places(load_encoder(f'timm/{name}-random', device='cpu'))
    h, w = difference.shape
    assert difference[:(h + 1)//2, :(w + 1)//2].mean() > difference[h//2:, w//2:].mean()      # the corner that changed


@pytest.mark.parametrize('name', ['pit_ti_224', 'coat_tiny', 'crossvit_tiny_240'])
def test_timm_models_without_places_are_refused(name):
    one_line(lambda: load_encoder(f'timm/{name}-random', device='cpu'), name)


# SAM

def sam_of_transformers(mlp=64, features=16):
    small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16, mlp_dim=mlp, output_channels=32, window_size=2,
                 global_attn_indexes=[1], num_pos_feats=features)
    prompt = dict(hidden_size=32, image_size=64, patch_size=16, mask_input_channels=16)
    torch.manual_seed(0)
    model = T.SamModel(T.SamConfig(vision_config=small, prompt_encoder_config=prompt, mask_decoder_config=dict(hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16)))
    for p in model.parameters(): torch.nn.init.normal_(p, std=.2)
    return model.eval()


@torch.no_grad()
def test_a_sam_of_transformers_is_the_same_model(tmp_path):
    theirs = sam_of_transformers()
    theirs.save_pretrained(tmp_path/'hf')
    ours = load_sam(tmp_path/'hf', device='cpu')
    pixels = torch.randn(1, 3, 64, 64)
    features = ours.encode(pixels)
    torch.testing.assert_close(features, theirs.get_image_embeddings(pixels), rtol=1e-3, atol=1e-3)
    point, label = torch.tensor([[[20., 30.]]]), torch.ones(1, 1, dtype=torch.int)
    sparse, dense = ours.model.prompt_encoder(points=(point, label), boxes=None, masks=None)
    places = ours.model.prompt_encoder.get_dense_pe()
    masks, quality = ours.model.mask_decoder(features, places, sparse, dense, multimask_output=True)
    expected = theirs(image_embeddings=features, input_points=point[None], input_labels=label[None])
    torch.testing.assert_close(masks, expected.pred_masks[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(quality, expected.iou_scores[0], rtol=1e-3, atol=1e-3)


def test_a_sam_of_transformers_that_segment_anything_cannot_build(tmp_path):
    sam_of_transformers(features=128).save_pretrained(tmp_path/'hf')
    one_line(lambda: load_sam(tmp_path/'hf', device='cpu'), 'transformers', 'num_pos_feats 128')


@pytest.mark.parametrize('key', ['model', 'state_dict'])
def test_wrapped_checkpoints(key, tmp_path):
    from frozen_nb.core.zoo import sam_model
    model = sam_model(size=64, patch=16, width=32, depth=2, heads=2, out=32, window=2, global_blocks=(1,), mask_channels=4, mlp=32, iou_width=16)
    torch.save({key: model.state_dict()}, tmp_path/'wrapped.pth')
    assert load_sam(tmp_path/'wrapped.pth', device='cpu').size == 64


# Images, texts and folders that were a mistake of the library

@pytest.mark.parametrize('size', [(3000, 10), (1, 3000)])
def test_an_image_too_narrow_for_sam(size, tmp_path, shell):
    Image.new('RGB', size).save(tmp_path/'strip.png')
    said = shell('ground', tmp_path/'strip.png', 'fox', '--out', tmp_path/'o.png')
    assert said.status == 2 and said.err.count('\n') == 1 and 'too narrow' in said.err and not (tmp_path/'o.png').exists()


def test_the_mark_of_an_image_in_a_text(tmp_path, shell):
    from frozen_nb.core.zoo import load_lmm
    from frozen_nb.core.states import lmm_batch
    image = random_images(1)[0]
    image.save(tmp_path/'a.png')
    said = shell('ground', tmp_path/'a.png', 'the <image>', '--out', tmp_path/'o.png')
    assert said.status == 2 and said.err.count('\n') == 1 and 'the mark of an image' in said.err
    lmm = load_lmm('llava', device='cpu')
    one_line(lambda: lmm.answer([image], 'what is <image>?'), '<image>')
    one_line(lambda: lmm_batch(lmm, [image], ['<image>']), '<image>')


LLAVA = [('processor_config.json', dict(patch_size=3), 'patch_size'), ('config.json', dict(vision_feature_select_strategy='full'), 'select_strategy'),
         ('processor_config.json', dict(vision_feature_select_strategy='full'), 'select_strategy'), ('config.json', dict(vision_feature_layer=-99), 'vision_feature_layer')]

@pytest.mark.parametrize('file, change, word', LLAVA, ids=[f'{word} in {file}' for file, _, word in LLAVA])
def test_a_llava_whose_parts_count_differently(file, change, word, tmp_path):
    import json, shutil
    from frozen_nb.core.frozen import data_path
    from frozen_nb.core.zoo import load_lmm
    shutil.copytree(data_path('zoo', 'llava'), tmp_path/'llava')
    path = tmp_path/'llava'/file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    one_line(lambda: load_lmm(tmp_path/'llava', device='cpu'), word)


@pytest.mark.parametrize('pickled', [False, True], ids=['safetensors', 'bin'])
def test_weights_in_whole_numbers(pickled, tmp_path):
    import shutil
    from safetensors.torch import load_file, save_file
    from frozen_nb.core.frozen import data_path
    from frozen_nb.core.zoo import load_lm
    shutil.copytree(data_path('zoo', 'llama'), tmp_path/'int8')
    path = tmp_path/'int8'/'model.safetensors'
    state = {name: (t*50).to(torch.int8) if t.ndim == 2 else t for name, t in load_file(path).items()}
    if pickled:
        path.unlink()
        torch.save(state, tmp_path/'int8'/'pytorch_model.bin')
    else: save_file(state, path, dict(format='pt'))
    one_line(lambda: load_lm(tmp_path/'int8', device='cpu'), 'whole numbers', 'quantized')


def test_a_model_is_no_name_of_a_model():
    from frozen_nb.core.zoo import load_lm, load_lmm
    lm = load_lm('llama', device='cpu')
    for load in (load_lm, load_lmm, load_encoder, load_sam):
        for what in (lm, None, 5, ['llama']): one_line(lambda: load(what), 'no name of a model')


@pytest.mark.parametrize('name', ['timm', 'sam'])
def test_weights_in_shards(name, tmp_path):
    import json, shutil
    from safetensors.torch import load_file, save_file
    from frozen_nb.core.frozen import data_path
    source = data_path('zoo', 'beit' if name == 'timm' else 'sam')
    load = load_encoder if name == 'timm' else load_sam
    shutil.copytree(source, tmp_path/name)
    path = tmp_path/name/'model.safetensors'
    state = load_file(path)
    path.unlink()
    halves = {f'model-0000{i}-of-00002.safetensors': {k: t for n, (k, t) in enumerate(state.items()) if n % 2 == i - 1} for i in (1, 2)}
    for file, half in halves.items(): save_file(half, tmp_path/name/file)
    index = dict(metadata={}, weight_map={k: file for file, half in halves.items() for k in half})
    (tmp_path/name/'model.safetensors.index.json').write_text(json.dumps(index))
    assert load(tmp_path/name, device='cpu').fingerprint == load(source, device='cpu').fingerprint


def test_encoders_of_something_else_are_named():
    one_line(lambda: load_encoder('llava', device='cpu'), 'multimodal model')
    ast = load_encoder('ast', device='cpu')
    one_line(lambda: ast.preprocess(random_images()), 'takes sounds')


def test_images_without_pixels():
    "Of no size, cut off, or closed: one line each."
    import io
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole, 'PNG')
    cut, closed = Image.open(io.BytesIO(whole.getvalue()[:400])), Image.open(io.BytesIO(whole.getvalue()))
    closed.close()
    for image in (Image.new('RGB', (0, 5)), cut, closed):
        with pytest.raises(BadInput, match='an image') as error: to_rgb(image)
        assert '\n' not in str(error.value)


def test_premultiplied_grey_is_drawn_over_white():
    "A mode of few programs, which PIL does not turn into RGBA."
    from PIL import Image

    from frozen_nb.core.zoo import to_rgb
    clear, black = Image.new('La', (2, 2), (0, 0)), Image.new('La', (2, 2), (0, 255))
    assert to_rgb(clear).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(black).getpixel((0, 0)) == (0, 0, 0)
