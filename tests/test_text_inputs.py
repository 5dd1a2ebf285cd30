"""What goes into a language model and comes out: no setting of a checkpoint, a start token by one rule, positions that there are, logits
that are numbers, strings that are strings, and folders that should load or should not."""
import json, shutil

import pytest
import torch
import transformers as T
from safetensors.torch import load_file, save_file

from families import SIZES, special_ids
from frozen_nb import limber
from frozen_nb.core.frozen import BadInput, data_path
from frozen_nb.core.generation import continuations, start_ids
from frozen_nb.core.prefix import choose, generate, sequence
from frozen_nb.core.zoo import load_lm, load_lmm, load_tokenizer
from frozen_nb.benchmarks.documents import answers
from frozen_nb.pinto import rationalize, read_prompt
from frozen_nb.world.drawing import draw
from frozen_nb.world.multiple_choice import MCQ, mcq
from frozen_nb.world.scenes import scene

TOKENIZER = load_tokenizer('llama')
IDS = special_ids(TOKENIZER)


def saved(folder, model, tokenizer=TOKENIZER):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny(**more):
    torch.manual_seed(0)
    model = T.LlamaForCausalLM(T.LlamaConfig(**SIZES, **IDS | more))
    for p in model.parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, std=.3)
    return model


@pytest.mark.parametrize('setting', [
    dict(repetition_penalty=1.5), dict(no_repeat_ngram_size=1), dict(suppress_tokens=[*range(20, 700)]), dict(num_beams=3), dict(penalty_alpha=.6, top_k=4),
    dict(use_cache=False), dict(min_length=40), dict(cache_implementation='static'), dict(max_length=3), dict(dola_layers='low'), dict(prompt_lookup_num_tokens=3)],
    ids=str)
@pytest.mark.parametrize('file', ['generation_config.json', 'config.json'])
def test_no_setting_of_a_checkpoint_leaks(setting, file, tmp_path):
    plain = load_lm(saved(tmp_path/'plain', tiny()), device='cpu')
    folder = saved(tmp_path/'set', tiny())
    (folder/file).write_text(json.dumps(json.loads((folder/file).read_text()) | setting))
    changed = load_lm(folder, device='cpu')
    for run in (lambda lm: continuations(lm, 'Q: a bird. ', ['Q: who?', 'Q: what does it eat?'], max_new_tokens=8), lambda lm: generate(lm, None, ['A', 'A fox'], 8)):
        assert run(plain) == run(changed)
    assert changed.model.generation_config.to_dict() == load_lm(folder, device='cpu').model.generation_config.to_dict()


@pytest.mark.parametrize('setting', [dict(repetition_penalty=1.05), dict(repetition_penalty=1.1), dict(use_cache=False)], ids=str)
def test_shipped_models_beside_settings_as_qwen_and_vicuna_have_them(setting, tmp_path):
    "The same weights, thus the same fingerprint: the same captions, answers and rationales."
    for name in ('llama', 'llava'):
        shutil.copytree(data_path('zoo', name), tmp_path/name)
        path = tmp_path/name/'generation_config.json'
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | setting))
    images = [draw(scene(i, 'test', 0), 64) for i in range(12)]
    plain, changed = limber.Limber.load(device='cpu'), limber.Limber.load(lm=str(tmp_path/'llama'), device='cpu')
    assert changed.lm.fingerprint == plain.lm.fingerprint and changed.caption(images) == plain.caption(images)
    first, second = (load_lmm(name, device='cpu').answer(images, 'What do you see?', 24) for name in ('llava', tmp_path/'llava'))
    assert first == second
    questions, prompt = [mcq(i, 'obqa') for i in range(4)], read_prompt('obqa')
    first, second = (rationalize(lm, questions, prompt, 16, store=False) for lm in (plain.lm, changed.lm))
    assert first == second


@pytest.mark.parametrize('kind', ['llama', 'gpt_neo', 'gpt_oss'])
def test_a_shipped_prompt_longer_than_the_window(kind, tmp_path):
    "About 260 tokens of examples before the question; GPT-Neo looks 256 back, gpt-oss 128."
    sizes = SIZES | IDS | dict(max_position_embeddings=2048, num_hidden_layers=4)
    if kind == 'gpt_neo': config = T.GPTNeoConfig(hidden_size=32, num_layers=4, num_heads=4, attention_types=[[['global', 'local'], 2]], max_position_embeddings=2048, **IDS)
    if kind == 'gpt_oss': config = T.GptOssConfig(**sizes | dict(head_dim=8, num_local_experts=4, num_experts_per_tok=2))
    if kind == 'llama': config = T.LlamaConfig(**sizes)
    torch.manual_seed(0)
    model = T.AutoModelForCausalLM.from_config(config)
    for p in model.parameters():
        if p.ndim > 1: torch.nn.init.normal_(p, std=.3)
    lm, prompt = load_lm(saved(tmp_path/kind, model), device='cpu'), read_prompt('csqa')
    assert len(TOKENIZER(prompt.examples).input_ids) > 256
    questions = [MCQ('what eats grass?', ('zebra', 'the big lion that lives in the desert'), 0, (), 'own'), MCQ('is it?', ('yes', 'no'), 1, (), 'own'),
        MCQ('who is it that lives by the lake and sleeps at night under the tall tree?', ('it', 'Bruno the zebra', 'a cow'), 1, (), 'own')]
    together = rationalize(lm, questions, prompt, 8, store=False)
    assert together == [rationalize(lm, [q], prompt, 8, batch_size=1, store=False)[0] for q in questions]


class Begins:
    "A tokenizer that puts a start token in front by default."
    def __init__(self, tokenizer): self.tokenizer = tokenizer
    def __getattr__(self, name): return getattr(self.tokenizer, name)
    def __call__(self, text, add_special_tokens=True, **more):
        ids = self.tokenizer(text, add_special_tokens=False, **more)
        if add_special_tokens: ids['input_ids'] = [self.bos_token_id, *ids['input_ids']]
        return ids


def test_one_rule_for_the_start_token(tmp_path):
    lm = load_lm(saved(tmp_path/'m', tiny()), device='cpu')
    assert start_ids(lm) == [] and start_ids(lm, True) == [0]
    lm.tokenizer = Begins(lm.tokenizer)
    images = torch.randn(1, 2, lm.width)
    for shown in (None, images):
        with_start, without = (sequence(lm, shown, ['A fox'], start=start) for start in ('auto', False))
        assert torch.equal(with_start.inputs_embeds[:, 1:], without.inputs_embeds)
        assert torch.equal(with_start.inputs_embeds[0, 0], lm.embeddings.weight[0])
        assert torch.equal(choose(lm, shown, 'A', [' fox']), choose(lm, shown, 'A', [' fox'], start=True))
        assert not torch.equal(choose(lm, shown, 'A', [' fox']), choose(lm, shown, 'A', [' fox'], start=False))
    assert limber.new_map(None, lm, images).made_for['start'] is True
    with pytest.raises(BadInput, match='start'): start_ids(lm, 'maybe')


@pytest.mark.parametrize('config', [T.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=24, **IDS),
                                    T.OPTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, word_embed_proj_dim=16,
                                                max_position_embeddings=24, **IDS)], ids=lambda c: c.model_type)
def test_past_the_last_position(config, tmp_path):
    lm = load_lm(saved(tmp_path/'m', T.AutoModelForCausalLM.from_config(config)), device='cpu')
    for run in (lambda: generate(lm, torch.zeros(1, 16, lm.width), 'A picture of', 32), lambda: answers(lm, ['which animal lives by the lake?'], tokens=20),
                lambda: continuations(lm, 'a fox', ['Q: who?'], max_new_tokens=30)):
        with pytest.raises(BadInput, match='fit into the 24'): run()
    assert len(generate(lm, torch.zeros(1, 8, lm.width), 'A', 8)) == 1


def test_scale_of_a_map_is_that_of_the_embeddings_given(tmp_path):
    config = T.Gemma3TextConfig(**SIZES | dict(hidden_size=64), head_dim=8, query_pre_attn_scalar=8, **IDS)
    lm = load_lm(saved(tmp_path/'m', T.Gemma3ForCausalLM(config)), device='cpu')
    scale = limber.new_map(None, lm, torch.randn(4, 2, 32)).linear.weight.std().item() * 32**.5
    assert scale == pytest.approx(lm.embeddings(torch.arange(len(TOKENIZER))).std().item(), rel=.05)
    assert scale > 4 * lm.embeddings.weight.std().item()


def test_strings_are_strings(tmp_path):
    lm = load_lm(saved(tmp_path/'m', tiny()), device='cpu')
    for run in (lambda: choose(lm, None, 'A', 'fox'), lambda: generate(lm, None, [3]), lambda: continuations(lm, '', 'Q: who?'),
                lambda: continuations(lm, ['a'], ['Q: who?']), lambda: continuations(lm, 'a', ['b'], stop='END'), lambda: sequence(lm, None, ['a'], 'b'),
                lambda: generate(lm, None, 3)):
        with pytest.raises(BadInput): run()


@pytest.mark.parametrize('prompts, targets', [([3, 'a'], None), ([None]*2, None), (['a', ['b']], None), ('a', ['b', 3])])
def test_what_is_no_text(prompts, targets, tmp_path):
    lm = load_lm(saved(tmp_path/'m', tiny()), device='cpu')
    with pytest.raises(BadInput, match='is no text but') as refused: sequence(lm, torch.zeros(2, 2, lm.width), prompts, targets)
    assert '\n' not in str(refused.value)


def test_a_question_for_each_image():
    from frozen_nb.world.drawing import draw
    from frozen_nb.world.scenes import scene
    captioner = limber.Limber.load(device='cpu')
    images, questions = [draw(scene(i, 'test', 0), 64) for i in range(2)], ['what animal is this?', 'what colour is it?']
    assert captioner.ask(images, questions) == [captioner.ask([image], q)[0] for image, q in zip(images, questions)]
    for wrong in (questions[:1], questions * 2, [1, 2], None):
        with pytest.raises(BadInput): captioner.ask(images, wrong)
    with pytest.raises(BadInput): captioner.caption(images, ['A', 'B'])


def test_one_special_token_more_than_embeddings(tmp_path):
    tokenizer = load_tokenizer('llama')
    tokenizer.add_special_tokens(dict(additional_special_tokens=['<image_soft_token>']))
    lm = load_lm(saved(tmp_path/'m', tiny(), tokenizer), device='cpu')
    with pytest.raises(BadInput, match='no embedding'): generate(lm, None, ['a <image_soft_token>'], 2)
    tokenizer.add_tokens(['entirelynew'])
    with pytest.raises(BadInput, match='embeddings'): load_lm(saved(tmp_path/'n', tiny(), tokenizer), device='cpu')


def test_keys_that_transformers_ignores(tmp_path):
    opt = T.OPTForCausalLM(T.OPTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64, word_embed_proj_dim=32, **IDS))
    path = saved(tmp_path/'m', opt)/'model.safetensors'
    weights = load_file(path)
    save_file(weights | {'model.decoder.version': torch.zeros(1)}, path, dict(format='pt'))
    load_lm(tmp_path/'m', device='cpu')
    save_file(weights | {'model.decoder.layers.0.fc9.weight': torch.zeros(1)}, path, dict(format='pt'))
    with pytest.raises(BadInput, match='fc9'): load_lm(tmp_path/'m', device='cpu')


def test_a_folder_with_bin_only(tmp_path):
    path = saved(tmp_path/'m', tiny())/'model.safetensors'
    expected = continuations(load_lm(tmp_path/'m', device='cpu'), 'Q:', ['who?'])
    torch.save(load_file(path), tmp_path/'m'/'pytorch_model.bin')
    path.unlink()
    assert continuations(load_lm(tmp_path/'m', device='cpu'), 'Q:', ['who?']) == expected


# A text where a list belongs, and what is no text

@pytest.fixture(scope='module')
def told():
    from frozen_nb.generative_adapter import load_generator, Memory
    lm = load_lm('llama', device='cpu')
    memory = Memory(lm, load_generator(data_path('zoo', 'adapter'), lm))
    return lm, memory, memory.add('Bruno is a zebra.').adapter()


@pytest.mark.parametrize('questions', ['what is Bruno?', [None], None, 5, b'why', (q for q in ['why?'])], ids=['text', 'None in a list', 'None', 'number', 'bytes', 'generator'])
def test_answers_takes_a_list_of_texts(questions, told):
    lm, _, adapter = told
    with pytest.raises(BadInput, match='list of texts|is no text') as error: answers(lm, questions, adapter)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('texts', ['abc', [5], None, [], [' ']], ids=str)
def test_adapters_of_takes_a_list_of_texts(texts, told):
    from frozen_nb.generative_adapter import adapters_of
    lm, memory, _ = told
    with pytest.raises(BadInput): adapters_of(lm, memory.generator, texts)


@pytest.mark.parametrize('document', [b'Bruno', [3.7, 4.2], ['a'], None, 5, []], ids=str)
def test_a_memory_takes_a_text_or_token_ids(document, told):
    lm, memory, _ = told
    from frozen_nb.generative_adapter import Memory
    with pytest.raises(BadInput): memory.add(document)
    ids = TOKENIZER('Bruno is a zebra.', add_special_tokens=False).input_ids
    same = [Memory(lm, memory.generator).add(x).state for x in (ids, torch.tensor(ids), [*torch.tensor(ids).numpy()])]
    assert all(torch.equal(state, same[0]) for state in same)


def test_explain_takes_a_list_of_choices():
    from frozen_nb.pinto import explain
    for question, choices in (('which animal?', 'goat'), ('which animal?', [1, 2]), ('which animal?', None), (5, ['a', 'b']), (None, ['a', 'b'])):
        with pytest.raises(BadInput, match='list of texts|is no text'): explain(None, None, question, choices)


def test_captions_are_a_list_of_texts():
    from frozen_nb.ima import align_images
    from frozen_nb.limber import fit_map
    images = [draw(scene(i, 'test'), 32) for i in range(4)]
    for captions in ('abcd', [None]*4, None):
        with pytest.raises(BadInput, match='list of texts|is no text'): align_images(images, captions, None, None, None)
    for captions in ('abcd', [5], [None]):
        with pytest.raises(BadInput, match='list of texts|is no text'): fit_map(None, None, torch.zeros(4, 1, 2), captions)
    with pytest.raises(BadInput, match='no list of images'): align_images(images[0], ['a'], None, None, None)


def test_phrases_are_a_list_of_texts():
    from frozen_nb.flmm import load_grounder
    grounder, image = load_grounder(device='cpu'), draw(scene(0, 'test'), 64)
    for phrases in ([5], 'fox', None, [None]):
        with pytest.raises(BadInput, match='list of texts|is no text'): grounder.ground(image, phrases)


def test_images_are_a_list():
    "A single image and a generator, for a captioner and for a multimodal model."
    image = draw(scene(0, 'test'), 64)
    captioner, lmm = limber.Limber.load(device='cpu'), load_lmm('llava', device='cpu')
    for images in (image, 'a.png', None, (image for _ in range(2))):
        for call in (lambda: captioner.caption(images), lambda: captioner.ask(images, 'what is it?'), lambda: lmm.answer(images, 'what is it?')):
            with pytest.raises(BadInput, match='no list of images'): call()
    for questions in (None, 5, [None]):
        with pytest.raises(BadInput): lmm.answer([image], questions)
        with pytest.raises(BadInput): captioner.ask([image], questions)
