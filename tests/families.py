"""Tiny random models of the families of causal language models that transformers knows, saved in
folders as it saves them, with the tokenizer of the shipped `llama`: name -> its configuration."""
import torch
import transformers as T

from frozen_nb.core.zoo import load_tokenizer

def special_ids(tokenizer):
    "Vocabulary and special tokens of a configuration, from a tokenizer."
    return dict(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)

SIZES = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256)
ONE_HEAD_EACH = {**SIZES, 'num_key_value_heads': 4}
NO_GROUPS = {k: v for k, v in SIZES.items() if k != 'num_key_value_heads'}
GPT2 = dict(n_embd=32, n_layer=3, n_head=4, n_positions=256)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
MLA = dict(q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8,
           n_group=1, topk_group=1, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2,
           moe_intermediate_size=16, first_k_dense_replace=1)
GEMMA = dict(SIZES, head_dim=8)
GEMMA_2 = dict(GEMMA, query_pre_attn_scalar=8)
LOCAL = ['sliding_attention', 'full_attention', 'sliding_attention']

ATTENTION = dict(
    llama=lambda ids: T.LlamaConfig(**SIZES, **ids),
    mistral=lambda ids: T.MistralConfig(**SIZES, sliding_window=None, **ids),
    mistral_window=lambda ids: T.MistralConfig(**SIZES, sliding_window=24, **ids),
    mixtral=lambda ids: T.MixtralConfig(**SIZES, num_local_experts=4, **ids),
    qwen2=lambda ids: T.Qwen2Config(**SIZES, **ids),
    qwen2_moe=lambda ids: T.Qwen2MoeConfig(
        **SIZES, **EXPERTS, shared_expert_intermediate_size=32, **ids),
    qwen3=lambda ids: T.Qwen3Config(**SIZES, head_dim=8, **ids),
    qwen3_moe=lambda ids: T.Qwen3MoeConfig(**SIZES, **EXPERTS, head_dim=8, **ids),
    gemma=lambda ids: T.GemmaConfig(**GEMMA, **ids),
    gemma2=lambda ids: T.Gemma2Config(**GEMMA_2, sliding_window=24, **ids),
    gemma3_text=lambda ids: T.Gemma3TextConfig(
        **GEMMA_2, sliding_window=24, layer_types=LOCAL, **ids),
    phi=lambda ids: T.PhiConfig(**SIZES, **ids),
    phi3=lambda ids: T.Phi3Config(**SIZES, **ids),
    gpt2=lambda ids: T.GPT2Config(**GPT2, **ids),
    gpt_neo=lambda ids: T.GPTNeoConfig(
        hidden_size=32, num_layers=4, num_heads=4, max_position_embeddings=256, window_size=24,
        attention_types=[[['global', 'local'], 2]], **ids),
    gpt_neox=lambda ids: T.GPTNeoXConfig(**NO_GROUPS, **ids),
    gptj=lambda ids: T.GPTJConfig(**GPT2, rotary_dim=4, **ids),
    gpt_bigcode=lambda ids: T.GPTBigCodeConfig(**GPT2, **ids),
    codegen=lambda ids: T.CodeGenConfig(**GPT2, rotary_dim=4, **ids),
    opt=lambda ids: T.OPTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_dim=64,
        word_embed_proj_dim=32, max_position_embeddings=256, **ids),
    opt_350m=lambda ids: T.OPTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_dim=64,
        word_embed_proj_dim=16, do_layer_norm_before=False, max_position_embeddings=256, **ids),
    bloom=lambda ids: T.BloomConfig(hidden_size=32, n_layer=3, n_head=4, **ids),
    mpt=lambda ids: T.MptConfig(d_model=32, n_layers=3, n_heads=4, max_seq_len=256, **ids),
    falcon=lambda ids: T.FalconConfig(**NO_GROUPS, **ids),
    falcon_alibi=lambda ids: T.FalconConfig(
        **NO_GROUPS, alibi=True, multi_query=False, parallel_attn=False, bias=True, **ids),
    falcon_new=lambda ids: T.FalconConfig(
        **NO_GROUPS, new_decoder_architecture=True, num_kv_heads=2, **ids),
    stablelm=lambda ids: T.StableLmConfig(**SIZES, **ids),
    stablelm_parallel=lambda ids: T.StableLmConfig(
        **SIZES, use_parallel_residual=True, qk_layernorm=True, **ids),
    starcoder2=lambda ids: T.Starcoder2Config(**SIZES, **ids),
    olmo=lambda ids: T.OlmoConfig(**SIZES, **ids),
    olmo2=lambda ids: T.Olmo2Config(**SIZES, **ids),
    olmo3=lambda ids: T.Olmo3Config(**SIZES, sliding_window=24, **ids),
    olmoe=lambda ids: T.OlmoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, **ids),
    cohere=lambda ids: T.CohereConfig(**SIZES, **ids),
    cohere2=lambda ids: T.Cohere2Config(**SIZES, sliding_window=24, layer_types=LOCAL, **ids),
    granite=lambda ids: T.GraniteConfig(
        **SIZES, embedding_multiplier=12., logits_scaling=8., residual_multiplier=.22,
        attention_multiplier=.125, **ids),
    granitemoe=lambda ids: T.GraniteMoeConfig(
        **SIZES, embedding_multiplier=12., logits_scaling=8., residual_multiplier=.22,
        attention_multiplier=.125, num_local_experts=4, num_experts_per_tok=2, **ids),
    smollm3=lambda ids: T.SmolLM3Config(**SIZES, **ids),
    glm=lambda ids: T.GlmConfig(**SIZES, head_dim=8, **ids),
    glm4=lambda ids: T.Glm4Config(**SIZES, head_dim=8, **ids),
    nemotron=lambda ids: T.NemotronConfig(**SIZES, head_dim=8, **ids),
    persimmon=lambda ids: T.PersimmonConfig(**NO_GROUPS, **ids),
    xglm=lambda ids: T.XGLMConfig(
        d_model=32, ffn_dim=64, num_layers=3, attention_heads=4, max_position_embeddings=256,
        **ids),
    biogpt=lambda ids: T.BioGptConfig(**NO_GROUPS, **ids),
    deepseek_v2=lambda ids: T.DeepseekV2Config(**ONE_HEAD_EACH, **MLA, **ids),
    deepseek_v3=lambda ids: T.DeepseekV3Config(**ONE_HEAD_EACH, **MLA, **ids),
    gpt_oss=lambda ids: T.GptOssConfig(
        **SIZES, head_dim=8, sliding_window=24, num_local_experts=4, num_experts_per_tok=2,
        **ids),
    ernie4_5=lambda ids: T.Ernie4_5Config(**SIZES, head_dim=8, **ids),
    exaone4=lambda ids: T.Exaone4Config(**SIZES, sliding_window=24, layer_types=LOCAL, **ids),
    helium=lambda ids: T.HeliumConfig(**SIZES, head_dim=8, **ids),
    hunyuan=lambda ids: T.HunYuanDenseV1Config(**SIZES, head_dim=8, **ids),
    arcee=lambda ids: T.ArceeConfig(**SIZES, **ids),
    bitnet=lambda ids: T.BitNetConfig(**SIZES, **ids),
    seed_oss=lambda ids: T.SeedOssConfig(**SIZES, head_dim=8, **ids),
    ctrl=lambda ids: T.CTRLConfig(n_embd=32, dff=64, n_layer=3, n_head=4, n_positions=256, **ids),
    openai_gpt=lambda ids: T.OpenAIGPTConfig(**GPT2, **ids))

STATE_SPACE = dict(
    mamba=lambda ids: T.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8, **ids),
    mamba2=lambda ids: T.Mamba2Config(
        hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=8, head_dim=8, n_groups=2,
        **ids),
    falcon_mamba=lambda ids: T.FalconMambaConfig(
        hidden_size=32, num_hidden_layers=2, state_size=8, **ids),
    rwkv=lambda ids: T.RwkvConfig(hidden_size=32, num_hidden_layers=2, context_length=256, **ids),
    recurrent_gemma=lambda ids: T.RecurrentGemmaConfig(
        **SIZES, lru_width=32, attention_window_size=24, **ids),
    jamba=lambda ids: T.JambaConfig(
        **SIZES, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, num_experts=4, mamba_d_state=8, mamba_dt_rank=4,
        use_mamba_kernels=False, **ids),
    lfm2=lambda ids: T.Lfm2Config(
        **SIZES, layer_types=['conv', 'full_attention', 'conv'], block_multiple_of=16, **ids))

FAMILIES = ATTENTION | STATE_SPACE   # STATE_SPACE: without attention in some or all of their layers

SAMPLE = ['gemma2', 'gpt2', 'gpt_neox', 'falcon', 'cohere', 'phi3', 'mixtral', 'olmo2']

def build(name, seed=0, tokenizer=None):
    "A random model of a family, and its tokenizer. Its weights are large, so that outputs differ."
    tokenizer = tokenizer or load_tokenizer('llama')
    config = FAMILIES[name](special_ids(tokenizer))
    torch.manual_seed(seed)
    model = T.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1: p.normal_(0, .3)
    return model, tokenizer

def save(folder, name, seed=0):
    "Saves a random model of a family with its tokenizer; returns the folder."
    model, tokenizer = build(name, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
