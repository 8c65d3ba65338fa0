"Tiny random models of every family of causal language models that transformers knows: made from configs, no network"
import torch
from transformers import AutoConfig, AutoModelForCausalLM

vocabulary = 400
small = dict(
    hidden_size=32, d_model=32, n_embd=32, embedding_size=32, num_hidden_layers=2, n_layer=2, n_layers=2, num_layers=2,
    decoder_layers=2, encoder_layers=2, num_attention_heads=2, n_head=2, n_heads=2, num_heads=2, decoder_attention_heads=2,
    encoder_attention_heads=2, num_key_value_heads=1, intermediate_size=64, ffn_dim=64, decoder_ffn_dim=64,
    encoder_ffn_dim=64, d_ff=64, n_inner=64, n_positions=64, max_position_embeddings=64, max_seq_len=64,
    vocab_size=vocabulary, head_dim=16, bos_token_id=0, eos_token_id=0, pad_token_id=None, dropout=0.0,
    attention_dropout=0.0)

bidirectional = ["bert", "bert-generation", "big_bird", "electra", "ernie", "megatron-bert", "rembert", "roformer"]
few = ["bart", "bert", "bloom", "cohere", "gemma2", "gpt2", "llama", "mamba", "mixtral", "mpt", "opt", "qwen3", "rwkv"]
every = sorted({
    "apertus", "arcee", "aria_text", "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt", "bitnet",
    "blenderbot", "blenderbot-small", "bloom", "cohere", "cohere2", "ctrl", "cwm", "doge", "electra", "ernie", "ernie4_5",
    "exaone4", "falcon_h1", "falcon_mamba", "flex_olmo", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2",
    "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "granite", "granitemoe", "granitemoeshared", "helium",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "jais2", "jetmoe", "lfm2", "llama", "llama4_text", "mamba", "marian", "mbart",
    "megatron-bert", "minimax", "ministral", "mistral", "mixtral", "mpt", "mvp", "nanochat", "nemotron", "olmo", "olmo2",
    "olmo3", "olmoe", "openai-gpt", "opt", "pegasus", "persimmon", "phi", "phi3", "phimoe", "plbart", "qwen2", "qwen3",
    "rembert", "roformer", "rwkv", "seed_oss", "smollm3", "stablelm", "starcoder2", "trocr", "vaultgemma", "whisper",
    "xglm", *few})


def make(family: str, **changes):
    "A model of about twenty thousand weights; one that has the choice looks back only"
    usual = AutoConfig.for_model(family)
    own = {name: value for name, value in small.items() if hasattr(usual, name)}
    if family in bidirectional: own["is_decoder"] = True
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(type(usual)(**own | changes), dtype=torch.float32).eval()
