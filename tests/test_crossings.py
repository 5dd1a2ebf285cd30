"What one method gives in the hands of another: attention from phrases to visual tokens of a language model that never saw an image."
import pytest, torch
from frozen_nb.core.frozen import BadInput
from frozen_nb.core.prefix import sequence
from frozen_nb.core.skipping import skipping
from frozen_nb.core.zoo import load_lm
from frozen_nb.crossings import visual_maps

PHRASES = ['red fox', 'small yellow animal on the left', 'sky']


@pytest.fixture(scope='module')
def lm(): return load_lm('llama', device='cpu')


@pytest.fixture(scope='module')
def images(lm): return torch.randn(3, 16, lm.width, generator=torch.Generator().manual_seed(0))*.05


def by_hand(lm, image, phrase, prompt='A picture of'):
    "Mean over the tokens of one phrase of the full attention maps, of the columns of the image."
    rows = sequence(lm, image[None], prompt, [f' {phrase}'], end=False)
    of_phrase, start = (rows.labels[0] != -100), rows.labels.shape[1] - len(lm.tokenizer(prompt + f' {phrase}', add_special_tokens=False).input_ids) - len(image)
    lm.model.set_attn_implementation('eager')
    with torch.no_grad(): layers = lm.model(inputs_embeds=rows.inputs_embeds, attention_mask=rows.attention_mask, output_attentions=True).attentions
    lm.model.set_attn_implementation('sdpa')
    return torch.cat([a[0][:, of_phrase, start:start + len(image)].mean(1) for a in layers])   # (M N, k)


def test_maps_are_the_mean_attention_of_the_tokens_of_each_phrase(lm, images):
    found = visual_maps(lm, images, PHRASES)
    assert found.maps.shape == (3, 36, 4, 4) and len(found) == 3
    for image, phrase, maps in zip(images, PHRASES, found.maps):   # padding of the batch changes nothing
        assert torch.allclose(maps.flatten(1), by_hand(lm, image, phrase), atol=1e-5)
    assert not torch.allclose(found.maps, visual_maps(lm, images.roll(1, 0), PHRASES).maps, atol=1e-3)


def test_maps_in_a_context_of_the_batch(lm, images):
    def nothing(batch): return skipping(lm.model, 'ffn', batch, 'visual', layers=[])
    def every_layer(batch): return skipping(lm.model, 'ffn', batch, 'visual', layers=range(6))
    plain = visual_maps(lm, images, PHRASES).maps
    assert torch.allclose(visual_maps(lm, images, PHRASES, within=nothing).maps, plain, atol=1e-6)
    assert (visual_maps(lm, images, PHRASES, within=every_layer).maps - plain).abs().max() > 1e-3
    assert torch.equal(visual_maps(lm, images, PHRASES).maps, plain)   # the model is as before


def test_tokens_without_a_grid_are_refused(lm, images):
    with pytest.raises(BadInput, match='15 visual tokens'): visual_maps(lm, images[:, :15], PHRASES)
