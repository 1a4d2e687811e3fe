"""The values that single model types need beside the generic ones; the line above each says why."""

from __future__ import annotations

from tiny_parts import (
    ASSISTANT,
    BLT,
    DENSE_FIRST,
    DOTS3,
    FULL_AND_SLIDING,
    GEMMA3N,
    GEMMA4,
    INKLING,
    LLAMA4,
    MAMBA1,
    MAMBA2,
    MINIMAX_M3,
    NEMOTRON_H,
    QWEN4,
    SHARED_KV,
    WINDOWED,
    Values,
)

__all__ = ["SPECIFIC"]

SPECIFIC: dict[str, Values] = {
    # its layer types are counted from the indices of the attention layers
    "bamba": {**MAMBA2, "attn_layer_indices": [1]},
    # sequences too short for random blocks are attended to fully, with a warning; longer ones draw blocks with numpy
    "big_bird": {"attention_type": "original_full"},
    # likewise
    "bigbird_pegasus": {"attention_type": "original_full"},
    # four models in one: the patcher, two local ones and the global one, each with sizes of its own
    "blt": BLT,
    # heads are a multiple of 4, and the rotated part is smaller than a head
    "codegen": {"n_head": 8, "rotary_dim": 4},
    # no dense layer by default
    "cohere2_moe": {**DENSE_FIRST, "prefix_dense_intermediate_size": 44},
    # no rotary parameters by default, yet the layers look them up
    "cohere_compass_text": {
        **FULL_AND_SLIDING,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
            for kind in ("full_attention", "sliding_attention")
        },
    },
    # names of its own for widths
    "cpmant": {"dim_head": 8, "dim_ff": 56, "position_bias_num_buckets": 32, "position_bias_max_distance": 64},
    # likewise
    "ctrl": {"dff": 56},
    # rope_theta is read from the attention's part, which has no such field of its own, and clip_qkv is not optional
    "dbrx": {
        "attn_config": {"kv_n_heads": 3, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 48, "ffn_hidden_size": 40, "moe_num_experts": 4, "moe_top_k": 2},
    },
    # no dense layer by default
    "deepseek_v2": {"first_k_dense_replace": 1},
    # a single KV head by design; short sequences need small compression rates
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "partial_rotary_factor": 0.5,
        "o_groups": 2,
        "o_lora_rank": 12,
        "hc_mult": 3,
        "hc_sinkhorn_iters": 3,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    # values are split in two along the KV heads, which are therefore even
    "diffllama": {"num_attention_heads": 8, "num_key_value_heads": 4},
    # a window of keys for each query, smaller than a sequence
    "doge": {"keep_window_size": 8},
    # the number of shared experts has no default; one dense layer before the sparse ones
    "dots1": {"n_shared_experts": 1, "first_k_dense_replace": 1, **FULL_AND_SLIDING},
    # sliding layers have sizes of their own; the adapters lead from the towers' width to the model's
    "dots3_note": {
        "text_config": DOTS3,
        "vision_config": {"adapter_in_dim": 48, "adapter_out_dim": 48},
        "audio_config": {"adapter_input_size": 48, "adapter_out_dim": 48},
    },
    # likewise, without the towers
    "dots3_note_text": DOTS3,
    # the last sparse layer, counted from the default depth
    "ernie4_5_moe": {"moe_layer_end_index": 2},
    # the form with several KV heads
    "falcon": {"new_decoder_architecture": True},
    # attention and state space side by side, whose widths do not follow from the hidden size
    "falcon_h1": {**MAMBA2, "mamba_d_ssm": 96},
    # the width does not follow from the hidden size
    "falcon_mamba": MAMBA1,
    # a dense layer, and sparse ones of both kinds of attention
    "flint": {"num_hidden_layers": 4, "mlp_only_layers": [0]},
    # layers that share keys and values need their sources among so few layers
    "gemma3n": {"text_config": GEMMA3N},
    # likewise
    "gemma3n_text": GEMMA3N,
    # the small form (inputs per layer, shared keys and values, wide MLPs) here, the sparse one in gemma4_text
    "gemma4": {"text_config": {**GEMMA4, **SHARED_KV, "use_double_wide_mlp": True}},
    # all keys and values come from the model that it assists; no inputs per layer, which are the default
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text",
            **ASSISTANT,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
        },
        "backbone_hidden_size": 44,
    },
    # likewise
    "gemma4_unified_assistant": {"text_config": ASSISTANT, "backbone_hidden_size": 44},
    # the sparse form: experts beside the MLP, keys that are values too
    "gemma4_text": {
        **GEMMA4,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 2,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 40,
    },
    # shared keys and values, and heads of another size in full layers
    "gemma4_unified": {"text_config": {"global_head_dim": 12, **SHARED_KV}},
    # likewise
    "gemma4_unified_text": {"global_head_dim": 12, **SHARED_KV},
    # small images: their towers are built, though no image is shown to them
    "git": {"vision_config": {"image_size": 32, "patch_size": 16}},
    # likewise
    "got_ocr2": {"vision_config": {"image_size": 64, "patch_size": 16, "mlp_dim": 56, "output_channels": 24}},
    # one window for each local layer; layers and heads under names of their own
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]], "num_heads": 6, "window_size": 8},
    # the rotated part is smaller than a head
    "gptj": {"rotary_dim": 4},
    # no shared expert by default
    "granitemoe_swa": {"shared_intermediate_size": 20},
    # only state-space layers by default, with as many heads as fit 4096
    "granitemoehybrid": {
        **MAMBA2,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "shared_intermediate_size": 20,
        "position_embedding_type": "rope",
    },
    # no shared expert by default
    "granitemoeshared": {"shared_intermediate_size": 20},
    # streams of the hyper-connections: another number than of experts
    "hy_v4": {"hc_mult": 3},
    # heads of the sliding layers have sizes of their own; all layers are sparse by default
    "inkling_text": {**INKLING, **DENSE_FIRST},
    # likewise; attention residuals over blocks of layers, and a vocabulary that is not padded
    "inkling2_text": {
        **INKLING,
        "unpadded_vocab_size": 101,
        "log_scaling_n_floor": 8,
        "n_layers_per_attn_res_block": 2,
    },
    # three layers: state space and dense, state space and sparse, attention
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 2, "mamba_d_state": 12, "mamba_dt_rank": 4},
    # heads are KV heads times experts a token
    "jetmoe": {"kv_channels": 8},
    # heads differ between layers
    "laguna": {**FULL_AND_SLIDING, "num_attention_heads_per_layer": [6, 9, 9]},
    # only attention by default; widths are rounded up to 256
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8},
    # layer types have no default
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    # dense and sparse, chunked and full layers
    "llama4": {"text_config": LLAMA4},
    # likewise
    "llama4_text": LLAMA4,
    # two attentions and two MLPs a layer
    "longcat_flash": {"num_layers": 2, "expert_ffn_hidden_size": 40, "zero_expert_num": 2},
    # the width does not follow from the hidden size
    "mamba": MAMBA1,
    # heads times their size are twice the hidden size
    "mamba2": {"num_heads": 6, "head_dim": 16, "n_groups": 2, "state_size": 12, "chunk_size": 10, "time_step_rank": 4},
    # a vocabulary of the decoder's own
    "marian": {"decoder_vocab_size": 101},
    # full attention and sparse MLPs only, by default
    "mellum": {**FULL_AND_SLIDING, **DENSE_FIRST},
    # several blocks of linear attention in a sequence
    "minimax": {"block_size": 8},
    # no sparse attention and no dense MLP by default
    "minimax_m3_vl_text": MINIMAX_M3,
    # one of the three layers looks at the image
    "mllama": {"text_config": {"cross_attention_layers": [1]}},
    # neurons are counted in hidden sizes
    "mpt": {"expansion_ratio": 2},
    # four kinds of layers
    "nemotron_h": NEMOTRON_H,
    # small towers: they are built, though neither image nor sound is shown to them
    "phi4_multimodal": {
        "vision_config": {"image_size": 56, "patch_size": 14, "crop_size": 56},
        "audio_config": {
            "num_blocks": 3,
            "ext_pw_out_channel": 48,
            "depthwise_separable_out_channel": 48,
            "nemo_conv_channels": 48,
            "bias_max_distance": 20,
        },
    },
    # names of its own for layers and heads
    "prophetnet": {
        "num_decoder_layers": 3,
        "num_decoder_attention_heads": 6,
        "num_encoder_layers": 3,
        "num_encoder_attention_heads": 6,
    },
    # sliding windows are off by default
    "qwen2": WINDOWED,
    # likewise; and no dense layer
    "qwen2_moe": {**WINDOWED, "mlp_only_layers": [0]},
    # sliding windows are off by default
    "qwen3": WINDOWED,
    # no dense layer by default
    "qwen3_moe": {"mlp_only_layers": [0]},
    # no dense layer by default
    "qwen3_next": {"mlp_only_layers": [0]},
    # embeddings per layer and the index of sparse attention are off by default
    "qwen4_exp": {"text_config": QWEN4},
    # likewise
    "qwen4_exp_text": QWEN4,
    # the recurrence has a width of its own
    "recurrent_gemma": {
        "block_types": ["recurrent", "recurrent", "attention"],
        "lru_width": 48,
        "attention_window_size": 8,
    },
    # a decoder only on request; 16 tokens are 4 chunks, and 4 times 4 positions
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh", "local"],
        "axial_pos_shape": [4, 4],
        "axial_pos_embds_dim": [20, 28],
        "attention_head_size": 8,
        "feed_forward_size": 56,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    # embeddings of other widths than the stream
    "rembert": {"input_embedding_size": 24, "output_embedding_size": 40},
    # tables of pronunciations and shapes
    "roc_bert": {
        "pronunciation_embed_dim": 20,
        "pronunciation_vocab_size": 101,
        "shape_embed_dim": 24,
        "shape_vocab_size": 101,
    },
    # its attention's width does not follow from the hidden size
    "rwkv": {"attention_hidden_size": 48, "context_length": 64},
    # sliding windows are off by default, and a layer without rotary embedding is the fourth
    "smollm3": {**WINDOWED, "no_rope_layers": [1, 0, 1]},
    # names of their own
    "xglm": {"attention_heads": 6},
    # likewise
    "xlnet": {"d_inner": 56, "d_head": 8},
    # the default mode is inference; 20 tokens are 2 chunks
    "xlstm": {"num_blocks": 3, "num_heads": 3, "chunk_size": 10, "ffn_round_up_to_multiple_of": 8, "mode": "train"},
    # the language chooses the adapters
    "xmod": {"default_language": "en_XX"},
    # hybrid layers share one transformer block, of twice the width: at least two of them
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 96,
        "attention_head_dim": 16,
        "num_key_value_heads": 6,
        "mamba_d_state": 12,
        "mamba_dt_rank": 4,
    },
    # two shared blocks, the first of them used twice
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid", "hybrid"],
        "attention_head_dim": 16,
        "num_key_value_heads": 6,
        "num_mem_blocks": 2,
        "use_shared_attention_adapter": True,
        "adapter_rank": 20,
        "use_mem_rope": True,
        "n_mamba_heads": 6,
        "mamba_ngroups": 2,
        "mamba_d_state": 12,
        "chunk_size": 10,
    },
    # one expert for each token is a condition of the configuration
    "zaya": {
        "num_attention_heads": 8,  # each half of the KV heads comes from another projection
        "num_key_value_heads": 4,
        "num_experts_per_tok": 1,
        "router_hidden_size": 20,
        "layer_types": ["hybrid", "hybrid_sliding", "hybrid"],
        "sliding_window": 8,
    },
}
