"""Config values for tiny instances of every model module of mlx_lm: facts, no code.

`SHARED` serves every module by the name of the key; `SPECIAL` holds what a single module needs
besides; `TOWERS` says which language model stands in a multimodal wrapper.
"""

from typing import Any

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, VOCABULARY, WINDOW = 4, 64, 4, 2, 16, 128, 128, 8

MIXED = ["sliding_attention"] * 3 + ["full_attention"]
FIRST_DENSE = [0, 1, 1, 1]

_BY_VALUE: list[tuple[Any, str]] = [
    (WIDTH, "hidden_size d_model n_embd model_dim hidden_dim dim_model_base"),
    (LAYERS, "num_hidden_layers num_layers n_layer n_layers num_transformer_layers"),
    (HIDDEN, "intermediate_size ffn_hidden_size mlp_hidden_size n_inner ff_intermediate_size"),
    (HIDDEN, "dense_intermediate_size intermediate_size_mlp"),
    (WIDTH, "moe_intermediate_size expert_ffn_hidden_size shared_intermediate_size"),
    (WIDTH, "shared_expert_intermediate_size moe_shared_expert_intermediate_size"),
    (WIDTH, "share_expert_dim mamba_d_ssm"),
    (HEADS, "num_attention_heads n_head n_heads num_heads"),
    (KV_HEADS, "num_key_value_heads num_kv_heads n_kv_heads num_attention_groups"),
    (HEAD_DIM, "head_dim kv_channels"),
    (VOCABULARY, "vocab_size embedding_size num_vocab vocab_size_per_layer_input"),
    (1e-5, "rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps layernorm_epsilon"),
    (1e-5, "norm_epsilon"),
    (1e-8, "post_norm_eps"),
    (512, "max_position_embeddings n_positions n_ctx block_size model_max_length"),
    (10000.0, "rope_theta rope_local_base_freq swa_rope_theta"),
    (10000, "rotary_emb_base"),
    (0.5, "rotary_pct partial_rotary_factor output_multiplier"),
    (8, "rotary_dim index_topk mamba_chunk_size"),
    (None, "rope_scaling"),
    (WINDOW, "sliding_window sliding_window_size attention_window_size window_size"),
    ("silu", "hidden_act"),
    ("sigmoid", "scoring_func"),
    ("noaux_tc", "topk_method"),
    ("identity", "zero_expert_type"),
    ("MLA", "attention_method"),
    ([], "mlp_only_layers"),
    ((0.001, 100.0), "time_step_limit"),
    (True, "rope_interleave use_qk_norm qk_norm no_bias norm_topk_prob use_expert_bias"),
    (True, "mla_scale_q_lora mla_scale_kv_lora linear_allow_neg_eigval use_conv_bias"),
    (True, "mamba_conv_bias"),
    (False, "attention_bias mlp_bias use_bias use_qkv_bias post_norm tie_word_embeddings bias"),
    (False, "conv_bias layer_norm_bias router_bias mamba_proj_bias"),
    # experts
    (4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (2, "num_experts_per_tok num_experts_per_token moe_k moe_topk moe_top_k top_k_experts"),
    (2, "zero_expert_num"),
    (1, "n_shared_experts num_shared_experts num_shared_expert moe_num_shared_experts"),
    (1, "first_k_dense_replace num_dense_layers moe_layer_freq n_group topk_group"),
    (1, "decoder_sparse_step"),
    (1.0, "routed_scaling_factor moe_routed_scaling_factor"),
    # latent attention
    (32, "kv_lora_rank q_lora_rank qk_nope_head_dim v_head_dim index_head_dim"),
    (16, "qk_rope_head_dim"),
    (2, "index_n_heads"),
    # linear attention, state space, convolution
    (4, "linear_num_value_heads linear_conv_kernel_dim conv_kernel time_step_rank"),
    (4, "mamba_d_conv mamba_n_heads mamba_num_heads conv1d_width"),
    (2, "linear_num_key_heads full_attention_interval layer_group_size group_norm_size"),
    (2, "mamba_expand conv_window dense_attention_every_n_layers sliding_window_pattern"),
    (32, "linear_key_head_dim linear_value_head_dim"),
    (16, "state_size ssm_state_size mamba_d_state mamba_d_head mamba_head_dim"),
    (1, "n_groups mamba_n_groups"),
    (3, "conv_L_cache"),
    # scalars of single families
    (2.0, "logits_scaling scale_emb"),
    (0.25, "attention_multiplier"),
    (1.5, "embedding_multiplier"),
    (0.8, "residual_multiplier"),
    (30.0, "logits_soft_cap final_logit_softcapping"),
    (1.4, "scale_depth"),
    (16.0, "query_pre_attn_scalar"),
    (20.0, "gegelu_limit"),
]

SHARED: dict[str, Any] = {key: value for value, keys in _BY_VALUE for key in keys.split()}

_DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_PER_TYPE_ROPE = {kind: dict(_DEFAULT_ROPE) for kind in dict.fromkeys(MIXED)}
_LLAMA4_ROPE = _DEFAULT_ROPE | {
    "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": 16,
}
_DYNAMIC_ROPE = {"type": "dynamic", "factor": 1.0, "alpha": 1.0}
_DELTA = {
    "kda_layers": [1, 2, 3],
    "full_attn_layers": [4],
    "num_heads": HEADS,
    "head_dim": HEAD_DIM,
    "short_conv_kernel_size": 4,
}
_MLA = {"num_key_value_heads": HEADS}
_CONV = {"layer_types": ["conv", "full_attention"] * 2}

SPECIAL: dict[str, dict[str, Any]] = {
    "afm7": {"num_kv_reuse_layers": 1},
    "afmoe": {"layer_types": MIXED},
    "baichuan_m1": {
        "sliding_window_layers": [1, 3],
        "num_swa_attention_heads": HEADS,
        "num_swa_key_value_heads": KV_HEADS,
    },
    "bailing_hybrid": _MLA,
    "bailing_moe_linear": _MLA,
    "bailing_moe_v3": _MLA,
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": HIDDEN, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": KV_HEADS, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek_v2": {
        "topk_method": "greedy",
        "rope_scaling": {"factor": 1.0, "mscale_all_dim": 0.0},
    },
    "deepseek_v41": {
        "o_groups": 2,
        "o_lora_rank": 32,
        "head_dim": 32,
        "compress_ratios": (0, 4, 4, 4),
        "kv_source_layer_ids": (1,),
        "index_source_layer_ids": (1,),
        "index_topk": 4,
        "hc_mult": 2,
        "hc_sinkhorn_iters": 4,
        "rms_norm_eps": 1e-6,
    },
    "exaone4": {"sliding_window_pattern": "LLLG"},
    "exaone_moe": {"layer_types": MIXED, "is_moe_layer": [bool(i) for i in FIRST_DENSE]},
    "gear": {
        "layer_types": ["full_attention", "sliding_attention", "conv_mixer", "full_attention"],
        "attn_logit_softcapping": 20.0,
    },
    "gemma3n": {
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.5] * LAYERS,
        "hidden_size_per_layer_input": 8,
        "altup_num_inputs": 2,
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "altup_active_idx": 0,
        "laurel_rank": 8,
        "layer_types": MIXED,
    },
    "gemma4_text": {
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "global_head_dim": 32,
        "num_global_key_value_heads": 2,
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "partial_rotary_factor": 0.25},
            "sliding_attention": {"rope_theta": 1e4},
        },
    },
    "glm4_moe_lite": _MLA,
    "glm_moe_dsa": {"rope_parameters": _DEFAULT_ROPE},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "hunyuan": {
        "use_mixed_mlp_moe": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": _DYNAMIC_ROPE,
    },
    "hunyuan_v1_dense": {"rope_scaling": _DYNAMIC_ROPE},
    "iquestloopcoder": {"loop_window_size": WINDOW},
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
    },
    "kimi_k3": {
        "hidden_act": "situ",
        "activation_situ_beta": 1.0,
        "linear_attn_config": _DELTA | {"gate_lower_bound": -5.0},
        "attn_res_block_size": 2,
        "mla_use_output_gate": True,
        **_MLA,
    },
    "kimi_linear": {"linear_attn_config": _DELTA, "mla_use_nope": True, **_MLA},
    "laguna": {"layer_types": MIXED[::-1]},
    "lfm2": _CONV
    | {
        "block_dim": WIDTH,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "block_ff_dim": HIDDEN,
    },
    "lfm2_moe": _CONV,
    "llama": {"sliding_window": None},
    "llama4": {
        "attention_chunk_size": WINDOW,
        "interleave_moe_layer_step": 2,
        "num_experts_per_tok": 1,
    },
    "llama4_text": {"no_rope_layers": [1, 1, 1, 0]},
    "longcat_flash_ngram": {
        "ngram_vocab_size_ratio": 2,
        "emb_neighbor_num": 2,
        "emb_split_num": 2,
    },
    "mamba2": {"num_heads": 8, "intermediate_size": 128},
    "mellum": {"layer_types": MIXED, "rope_parameters": _PER_TYPE_ROPE},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [0, 1, 1, 0],
        "moe_layer_freq": FIRST_DENSE,
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "swa_num_attention_heads": HEADS,
        "swa_num_key_value_heads": KV_HEADS,
        "swa_head_dim": HEAD_DIM,
        "swa_v_head_dim": HEAD_DIM,
        "v_head_dim": HEAD_DIM,
    },
    "minicpm3": _MLA | {"rope_scaling": {"short_factor": 1.0, "long_factor": 1.0}},
    "minimax_m3_vl": {
        "moe_layer_freq": FIRST_DENSE,
        "index_n_heads": KV_HEADS,
        "index_head_dim": 16,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "ministral3": {"layer_types": MIXED, "rope_parameters": _LLAMA4_ROPE},
    "mistral4": _MLA | {"rope_parameters": _LLAMA4_ROPE},
    "muse_glimmer": {"layer_types": MIXED, "layer_rope_theta": [1e4, 1e4, 1e4, 0]},
    "muse_spark": {
        "layer_types": MIXED,
        "layer_rope_theta": [1e4, 1e4, 1e4, 0],
        "moe_hidden_size": WIDTH,
        "num_shared_experts": 0,
        "rope_parameters": {"rope_theta": 1e4},
    },
    "nanbeige": {"num_loops": 2},
    "nanochat": _MLA,
    "nemotron": {"hidden_act": "relu2"},
    "nemotron-nas": {
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 2.0}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 2.0}},
            {"attention": {"replace_with_linear": True}, "ffn": {"ffn_mult": 2.0}},
            {"attention": {"n_heads_in_group": 2}, "ffn": {"no_op": True}},
        ]
    },
    "nemotron_h": {"hybrid_override_pattern": ["M", "*", "M", "-"]},
    "olmo3": {"layer_types": MIXED},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "openelm": {
        "num_query_heads": [HEADS] * LAYERS,
        "num_kv_heads": [KV_HEADS] * LAYERS,
        "ffn_multipliers": [2.0] * LAYERS,
        "ffn_dim_divisor": 32,
    },
    "phi3": {"partial_rotary_factor": 1.0},
    "phi3small": {
        "vocab_size": 100352,
        "blocksparse_block_size": 32,
        "blocksparse_num_local_blocks": 1,
        "blocksparse_vert_stride": 2,
    },
    "phimoe": {
        "rope_scaling": {
            "long_factor": [1.0] * 8,
            "short_factor": [1.0] * 8,
            "long_mscale": 1.0,
            "short_mscale": 1.0,
        },
        "original_max_position_embeddings": 512,
    },
    "plamo": {"n_shared_head": 2},
    "plamo2": {"hidden_size_per_head": HEAD_DIM, "mamba_step": 2, "full_attention_idx": None},
    "qwen3_5": {
        "num_experts": 0,
        "rope_parameters": {
            "type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 1, 1],
        },
    },
    "recurrent_gemma": {
        "block_types": ["recurrent", "recurrent", "attention", "recurrent"],
        "num_key_value_heads": 1,
    },
    "rwkv7": {
        "head_dim": 32,
        "a_low_rank_dim": 8,
        "v_low_rank_dim": 8,
        "gate_low_rank_dim": 8,
        "decay_low_rank_dim": 8,
    },
    "smollm3": {"no_rope_layer_interval": 2, "sliding_window": None},
    "spark2_5": {"hidden_act": "gelu", "rope_parameters": _PER_TYPE_ROPE, "layer_types": MIXED},
    "step3p5": {
        "layer_types": MIXED,
        "attention_other_setting": {
            "num_attention_heads": HEADS,
            "num_attention_groups": KV_HEADS,
        },
        "moe_layers_enum": "1,2,3",
    },
    "talkie": _MLA,
}

TOWERS: dict[str, str] = {
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n",
    "gemma4": "gemma4_text",
    "kimi_k25": "deepseek_v3",
    "kimi_k3": "kimi_k3",
    "kimi_vl": "deepseek_v3",
    "lfm2-vl": "lfm2",
    "llama4": "llama4",
    "minimax_m3_vl": "minimax_m3_vl",
    "mistral3": "llama",
    "muse_spark": "muse_spark",
    "pixtral": "llama",
    "prism_hadamard_qwen35": "qwen3_5",
    "qwen2_vl": "qwen2",
    "qwen3_5": "qwen3_5",
    "qwen3_5_moe": "qwen3_5",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
}
"""Wrapper: whose values its ``text_config`` takes."""

TEXT: dict[str, dict[str, Any]] = {
    "qwen3_5_moe": {"model_type": "qwen3_5_moe_text", "num_experts": 4},
    "prism_hadamard_qwen35": {"model_type": "qwen3_5_text", "intermediate_size": 512},
}
"""What a wrapper changes in its ``text_config``."""

OUTER: dict[str, dict[str, Any]] = {
    "prism_hadamard_qwen35": {
        "schema_version": 2,
        "tensor_namespace": "mlx-vlm-qwen3_5",
        "modules": [
            {
                "path": "model.layers.1.mlp.down_proj",
                "embedding": False,
                "dtype": "float16",
                "block": 512,
            }
        ],
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
    }
}
"""What stands beside the ``text_config`` of a wrapper."""
