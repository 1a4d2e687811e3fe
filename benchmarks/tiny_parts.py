"""Values that several model types share, where the generic ones will not do."""

from __future__ import annotations

from typing import Any

Values = dict[str, Any]

# State-space layers of the second Mamba: 2·48 channels are 6 heads of 16, in 2 groups; 17 tokens are 2 chunks of 10.
MAMBA2: Values = {
    "mamba_n_heads": 6,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 12,
    "mamba_chunk_size": 10,
}
# Of the first: 2·48 channels, which configurations otherwise count from their own defaults.
MAMBA1: Values = {"intermediate_size": 96, "state_size": 12, "time_step_rank": 4}
# A few layers of each kind, where the defaults have one kind only.
FULL_AND_SLIDING: Values = {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}
DENSE_FIRST: Values = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
WINDOWED: Values = {"use_sliding_window": True, "sliding_window": 8, **FULL_AND_SLIDING}
# KV sharing takes a layer of each kind that makes keys and values, and one of each that uses them.
SHARED_KV: Values = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
GEMMA3N: Values = {
    **SHARED_KV,
    "vocab_size_per_layer_input": 101,
    "hidden_size_per_layer_input": 12,
    "laurel_rank": 20,
    "altup_num_inputs": 3,
    "activation_sparsity_pattern": [0.75, 0.0, 0.0, 0.0],
}
GEMMA4: Values = {"vocab_size_per_layer_input": 101, "hidden_size_per_layer_input": 12, "global_head_dim": 12}
DOTS3: Values = {
    "shared_experts_intermediate_size": 20,
    "head_dim": 16,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 20,
    "swa_kv_lora_rank": 12,
    "swa_head_dim": 20,
    "swa_qk_nope_head_dim": 12,
    "swa_v_head_dim": 12,
}
ASSISTANT: Values = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "global_head_dim": 12,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 4,
    "max_position_embeddings": 64,
}
INKLING: Values = {
    "swa_num_attention_heads": 8,
    "swa_num_key_value_heads": 4,
    "swa_head_dim": 12,
    "d_rel": 8,
    "rel_extent": 32,
}
QWEN4: Values = {
    "hc_count": 3,
    "hc_lowrank": 12,
    "ple_layer_ids": [1],
    "ple_embed_dim": 24,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 50,
    "make_ngram_vocab_size_divisible_by": 4,
    "split_ngram_parts": 1,
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
LLAMA4: Values = {
    "num_hidden_layers": 4,
    "intermediate_size_mlp": 44,
    "interleave_moe_layer_step": 2,
    "no_rope_layers": [1, 0, 1, 0],
    "attention_chunk_size": 8,
    "floor_scale": 8,
}
# Four models in one: the patcher, two local ones and the global one.
BLT: Values = {
    "encoder_hash_byte_group_size": [3, 4],
    "encoder_hash_byte_group_vocab": 53,
    "local_attention_window_len": 8,
    "encoder_config": {"hidden_size_global": 96, "num_key_value_heads": 6},
    "decoder_config": {"hidden_size_global": 96, "num_key_value_heads": 6},
    "global_config": {"hidden_size": 96, "num_key_value_heads": 6, "head_dim": 16},
    "patcher_config": {"num_key_value_heads": 6},
}
# Layers of four kinds.
NEMOTRON_H: Values = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
    "num_hidden_layers": 4,
    "mamba_num_heads": 6,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 12,
    "chunk_size": 10,
    "moe_shared_expert_intermediate_size": 20,
    "moe_latent_size": 24,
}
# Sparse attention and dense MLPs too.
MINIMAX_M3: Values = {
    **DENSE_FIRST,
    "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
    "intermediate_size": 40,
    "dense_intermediate_size": 56,
    "shared_intermediate_size": 20,
    "rotary_dim": 4,
    "index_n_heads": 3,
    "index_block_size": 4,
    "index_topk_blocks": 2,
}
