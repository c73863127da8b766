"""Networks of transformers, built from small configs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.zoo.registry import Built, add

_TEXT = {"vocab_size": 67, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def _tokens(length: int = 12) -> Tensor:
    return torch.randint(3, 67, (2, length))


def _add(title: str, config: str, model: str, inputs: Any = None, **options: Any) -> None:
    def build() -> Built:
        import transformers

        built_config = getattr(transformers, config)(**options)
        built_config.use_cache = False
        arguments = (inputs or _tokens)()
        return getattr(transformers, model)(built_config).eval(), (
            arguments if isinstance(arguments, tuple) else (arguments,)
        )

    add(title, "transformers", build)


def _image() -> Tensor:
    return torch.randn(2, 3, 32, 32)


_KV = {"num_key_value_heads": 2}

_add("BERT", "BertConfig", "BertForMaskedLM", **_TEXT, **_SMALL)
_add("RoBERTa", "RobertaConfig", "RobertaForMaskedLM", **_TEXT, **_SMALL)
_add("ALBERT", "AlbertConfig", "AlbertForMaskedLM", **_TEXT, **_SMALL, embedding_size=16)
_add("ELECTRA", "ElectraConfig", "ElectraForMaskedLM", **_TEXT, **_SMALL, embedding_size=16)
_add(
    "DistilBERT",
    "DistilBertConfig",
    "DistilBertForMaskedLM",
    vocab_size=67,
    dim=32,
    n_layers=2,
    n_heads=4,
    hidden_dim=48,
)
_add("GPT-2", "GPT2Config", "GPT2LMHeadModel", **_TEXT, n_embd=32, n_layer=2, n_head=4, n_positions=32)
_add("GPT-Neo", "GPTNeoConfig", "GPTNeoForCausalLM", **_TEXT, hidden_size=32, num_layers=2, num_heads=4,
     attention_types=[[["global", "local"], 1]], max_position_embeddings=32)  # fmt: skip
_add("GPT-NeoX", "GPTNeoXConfig", "GPTNeoXForCausalLM", **_TEXT, **_SMALL)
_add("OPT", "OPTConfig", "OPTForCausalLM", **_TEXT, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
     ffn_dim=48, word_embed_proj_dim=32)  # fmt: skip
_add("BLOOM", "BloomConfig", "BloomForCausalLM", **_TEXT, hidden_size=32, n_layer=2, n_head=4)
_add(
    "Falcon",
    "FalconConfig",
    "FalconForCausalLM",
    **_TEXT,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
)
_add("Llama (grouped-query)", "LlamaConfig", "LlamaForCausalLM", **_TEXT, **_SMALL, **_KV)
_add("Mistral (grouped-query)", "MistralConfig", "MistralForCausalLM", **_TEXT, **_SMALL, **_KV)
_add("Qwen2 (grouped-query)", "Qwen2Config", "Qwen2ForCausalLM", **_TEXT, **_SMALL, **_KV)
_add("Qwen3 (grouped-query)", "Qwen3Config", "Qwen3ForCausalLM", **_TEXT, **_SMALL, **_KV, head_dim=8)
_add("Gemma 2", "Gemma2Config", "Gemma2ForCausalLM", **_TEXT, **_SMALL, **_KV, head_dim=8)
_add("Phi", "PhiConfig", "PhiForCausalLM", **_TEXT, **_SMALL)
_add("OLMo", "OlmoConfig", "OlmoForCausalLM", **_TEXT, **_SMALL)
_add(
    "Mixtral (mixture of experts)",
    "MixtralConfig",
    "MixtralForCausalLM",
    **_TEXT,
    **_SMALL,
    **_KV,
    num_local_experts=4,
)
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_add("Qwen3-MoE", "Qwen3MoeConfig", "Qwen3MoeForCausalLM", **_TEXT, **_SMALL, **_KV, **_EXPERTS, head_dim=8)
_add("DeepSeek-V3", "DeepseekV3Config", "DeepseekV3ForCausalLM", **_TEXT, **_SMALL, num_key_value_heads=4,
     n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1, moe_intermediate_size=16,
     first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=4,
     v_head_dim=8)  # fmt: skip
_add("GPT-OSS", "GptOssConfig", "GptOssForCausalLM", **_TEXT, **_SMALL, **_KV, num_local_experts=4,
     num_experts_per_tok=2, head_dim=8, sliding_window=8)  # fmt: skip
_add("Granite-MoE", "GraniteMoeConfig", "GraniteMoeForCausalLM", **_TEXT, **_SMALL, **_KV, num_local_experts=4,
     num_experts_per_tok=2)  # fmt: skip
_add("Jamba", "JambaConfig", "JambaForCausalLM", **_TEXT, **_SMALL, **_KV, num_experts=4, num_experts_per_tok=2,
     attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, use_mamba_kernels=False,
     mamba_d_state=8, mamba_dt_rank=4)  # fmt: skip
_add("Qwen3-Next", "Qwen3NextConfig", "Qwen3NextForCausalLM", **_TEXT, **_SMALL, **_KV, **_EXPERTS, head_dim=8,
     shared_expert_intermediate_size=16, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
     linear_value_head_dim=8)  # fmt: skip
_add("OLMoE", "OlmoeConfig", "OlmoeForCausalLM", **_TEXT, **_SMALL, num_key_value_heads=2, num_experts=4,
     num_experts_per_tok=2)  # fmt: skip
_add(
    "Mamba",
    "MambaConfig",
    "MambaForCausalLM",
    **_TEXT,
    hidden_size=32,
    num_hidden_layers=2,
    state_size=8,
    time_step_rank=4,
)
_add(
    "RWKV",
    "RwkvConfig",
    "RwkvForCausalLM",
    vocab_size=67,
    hidden_size=32,
    num_hidden_layers=2,
    context_length=32,
)
_add("T5", "T5Config", "T5ForConditionalGeneration", lambda: (_tokens(), None, _tokens(8)), vocab_size=67, d_model=32,
     d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)  # fmt: skip
_add("BART", "BartConfig", "BartForConditionalGeneration", lambda: (_tokens(), None, _tokens(8)), **_TEXT, d_model=32,
     encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
     decoder_ffn_dim=48)  # fmt: skip
_add(
    "FNet",
    "FNetConfig",
    "FNetForMaskedLM",
    **_TEXT,
    hidden_size=32,
    num_hidden_layers=2,
    intermediate_size=48,
)
_add(
    "ViT (transformers)",
    "ViTConfig",
    "ViTForImageClassification",
    _image,
    **_SMALL,
    image_size=32,
    patch_size=8,
)
_add("DINOv2", "Dinov2Config", "Dinov2ForImageClassification", _image, **_SMALL, image_size=32, patch_size=8)
_add("SegFormer", "SegformerConfig", "SegformerForSemanticSegmentation", lambda: (torch.randn(2, 3, 64, 64),),
     hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], decoder_hidden_size=24)  # fmt: skip
_add("Whisper", "WhisperConfig", "WhisperForConditionalGeneration", lambda: (torch.randn(2, 20, 64), None, _tokens(8)),
     **_TEXT, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
     encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=20, max_source_positions=32, max_target_positions=32,
     decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None)  # fmt: skip
_add("wav2vec 2.0", "Wav2Vec2Config", "Wav2Vec2ForCTC", lambda: (torch.randn(2, 800),), vocab_size=32, **_SMALL,
     conv_dim=(16, 16), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
     num_conv_pos_embedding_groups=4)  # fmt: skip


def gpt2_of_full_size() -> Built:
    """GPT-2 of 124 million parameters on the meta device: nothing is allocated."""
    import transformers

    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False)).eval()
        return model, (torch.zeros(1, 64, dtype=torch.long),)
